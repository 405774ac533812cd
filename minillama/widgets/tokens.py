"""Coloured tokens with ids and bytes: any tokenizer, or several beside each other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from minillama.widgets.view import Answer, View

Pieces = Callable[[str], Iterable[tuple[int, bytes]]]
LONGEST = 20_000  # characters; more would make a page that nobody reads


class TokensView(View):
    """A text in tokens, with a field in which it can be changed.

    `tokenizers` maps a name to a function that gives the tokens of a text: pairs of id
    and bytes. `minillama.widgets.pieces(tokenizer)` makes one of a Tokenizer.
    """

    name = "tokens"
    title = "Tokens"

    def __init__(self, text: str, tokenizers: Mapping[str, Pieces]) -> None:
        self._tokenizers = dict(tokenizers)
        super().__init__(lambda: {"text": text, "rows": self._rows(text)})

    def answer(self, what: str, args: Mapping[str, Any]) -> Answer:
        if what != "encode":
            return super().answer(what, args)
        return {"rows": self._rows(args["text"])}, []

    def words(self) -> str:
        counts = (f"{len(r['tokens'])} in {r['name']}" for r in self.data["rows"])
        return f"{self.data['text']!r} in tokens: {', '.join(counts)}"

    def _rows(self, text: str) -> list[dict[str, Any]]:
        if not self._tokenizers:
            raise ValueError('no tokenizer is given: TokensView(text, {"name": ...})')
        if len(text) > LONGEST:
            raise ValueError(
                f"the text has {len(text):,} characters, this view shows {LONGEST:,}: "
                "take a part of it"
            )
        return [
            {"name": name, "tokens": _tokens(pieces(text))}
            for name, pieces in self._tokenizers.items()
        ]

    def draw(self) -> Any:
        """One line of tokens a tokenizer, cut where the paper ends."""
        from matplotlib.figure import Figure

        rows = self.data["rows"]
        figure = Figure(figsize=(9, 0.35 + 0.75 * len(rows)))
        axes = figure.add_axes((0.01, 0, 0.98, 1))
        axes.set(xlim=(0, 110), ylim=(-len(rows), 0.2))
        axes.axis("off")
        for line, row in enumerate(rows):
            axes.text(0, -line, f"{row['name']}: {len(row['tokens'])} tokens", va="top")
            _draw_tokens(axes, row["tokens"], -line - 0.62)
        return figure


def _draw_tokens(axes: Any, tokens: Sequence[Mapping[str, Any]], y: float) -> None:
    x = 0.0
    for i, token in enumerate(tokens):
        shown = token["text"].replace(" ", "·").replace("\n", "⏎")
        width = 1.3 * len(shown) + 1
        if x + width > 106:
            axes.text(x, y, "...", va="center", family="monospace")
            return
        edge = {"boxstyle": "square,pad=0.25", "fc": "#e8eef4" if i % 2 else "white"}
        style = {"family": "monospace", "va": "center", "fontsize": 10, "bbox": edge}
        axes.text(x + 0.5, y, shown, parse_math=False, **style)
        x += width


def _tokens(pieces: Iterable[tuple[int, bytes]]) -> list[dict[str, Any]]:
    return [
        {
            "id": int(id),
            "text": raw.decode("utf-8", "replace"),
            "bytes": raw.hex(" "),
        }
        for id, raw in pieces
    ]


def pieces(tokenizer: Any) -> Pieces:
    """What TokensView wants, of an object with `encode` and `token_bytes`."""

    def split(text: str) -> list[tuple[int, bytes]]:
        return [(id, tokenizer.token_bytes(id)) for id in tokenizer.encode(text)]

    return split
