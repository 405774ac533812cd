"""Any number a token has, as its colour: norms, activations, losses, scores."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minillama.widgets.view import View, array

LONGEST = 2000  # tokens of all texts together
MOST = 1_000_000  # values
AXES = {1: (), 2: ("row",), 3: ("layer", "row")}


class ValuesView(View):
    """Tokens coloured by a value each, blue above nothing and orange below it.

    `values` has the shape T, K T or L K T for T tokens: what comes before the tokens
    is chosen from lists. `names` names the choices: a list for K T, a pair of lists for
    L K T, or a dictionary such as {"layer": [...], "head": [...]}. For several texts
    `tokens` is a list of lists and `values` a list of arrays that differ in T alone;
    the largest and smallest values are then found over all texts.
    """

    name = "values_view"
    title = "Values of tokens"

    def __init__(
        self,
        tokens: Sequence[str] | Sequence[Sequence[str]],
        values: Any,
        names: Mapping[str, Sequence[str]] | Sequence[Any] | None = None,
    ) -> None:
        self._rows: list[np.ndarray] = []
        super().__init__(lambda: self._prepare(tokens, values, names))

    def _prepare(self, tokens: Any, values: Any, names: Any) -> dict[str, Any]:
        several = len(tokens) > 0 and not isinstance(tokens[0], str)
        texts = [list(text) for text in tokens] if several else [list(tokens)]
        given = list(values) if several else [values]
        if len(given) != len(texts):
            raise ValueError(
                f"there are {len(texts)} texts and {len(given)} arrays: "
                "give one for each text"
            )
        arrays = [_array(v, text) for v, text in zip(given, texts, strict=True)]
        _refuse_large(texts, arrays)
        lead = arrays[0].shape[:-1]
        if any(a.shape[:-1] != lead for a in arrays):
            raise ValueError(
                f"the arrays have the shapes {[a.shape for a in arrays]}: they may "
                "differ in their last axis alone"
            )
        self._rows = [a.reshape(-1, a.shape[-1]) for a in arrays]
        return {
            "texts": [
                {
                    "tokens": [str(t) for t in text],
                    "values": b64encode(a.astype("<f4").tobytes()).decode(),
                }
                for text, a in zip(texts, arrays, strict=True)
            ],
            "axes": _axes(lead, names),
        }

    def words(self) -> str:
        tokens = self.data["texts"][0]["tokens"]
        row = self._rows[0][0]
        top = int(row.argmax())
        of = ", ".join(f"{a['name']} {a['options'][0]}" for a in self.data["axes"])
        return (
            f"Values of {len(tokens)} tokens{of and f' in {of}'}: "
            f"the largest is {row[top]:.4g} at {tokens[top]!r}"
        )

    def draw(self) -> Any:
        """The first row of the first text, with its numbers beneath the tokens."""
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        tokens, row = self.data["texts"][0]["tokens"], self._rows[0][0]
        places, lines = _places(tokens)
        figure = Figure(figsize=(9, 0.3 + 0.55 * lines))
        axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
        axes.set(xlim=(0, 110), ylim=(-lines, 0))
        axes.axis("off")
        most = float(np.abs(row).max()) or 1.0
        style: dict[str, Any] = {"family": "monospace", "ha": "center", "va": "center"}
        for (x, line, shown), value in zip(places, row, strict=False):
            shade = colormaps["Oranges" if value < 0 else "Blues"]
            box: dict[str, Any] = {
                "boxstyle": "square,pad=0.25",
                "ec": "#767676",
                "lw": 0.5,
            }
            box["fc"] = shade(0.7 * abs(float(value)) / most)
            axes.text(
                x, -line - 0.32, shown, parse_math=False, fontsize=9, bbox=box, **style
            )
            axes.text(x, -line - 0.75, f"{value:.2g}", fontsize=6.5, **style)
        return figure


def _places(tokens: Sequence[str]) -> tuple[list[tuple[float, int, str]], int]:
    """Where each token is written, and how many lines that takes; six at most."""
    places: list[tuple[float, int, str]] = []
    x, line = 1.0, 0
    for text in tokens:
        shown = text.replace(" ", "·").replace("\n", "⏎")
        width = max(1.15 * len(shown), 4) + 1.6
        if x + width > 109:
            x, line = 1.0, line + 1
        if line == 6:
            return places, line
        places.append((x + width / 2, line, shown))
        x += width
    return places, line + 1


def _array(values: Any, tokens: Sequence[str]) -> np.ndarray:
    if not tokens:
        raise ValueError("there are no tokens: give the text's tokens, a value each")
    numbers = array(values, "values")
    if (
        not 1 <= numbers.ndim <= 3
        or numbers.shape[-1] != len(tokens)
        or not numbers.size
    ):
        raise ValueError(
            f"the values have the shape {numbers.shape}, there are {len(tokens)} "
            "tokens: the last of one to three axes must be as long"
        )
    if wrong := int((~np.isfinite(numbers)).sum()):
        raise ValueError(
            f"{wrong} of {numbers.size} values are NaN or infinite: replace them"
        )
    return numbers


def _refuse_large(texts: Sequence[Sequence[str]], arrays: list[np.ndarray]) -> None:
    length, size = sum(map(len, texts)), sum(a.size for a in arrays)
    if length > LONGEST or size > MOST:
        raise ValueError(
            f"{length:,} tokens with {size:,} values are given, this view shows "
            f"{LONGEST:,} with {MOST:,}: take a part of them"
        )


def _axes(lead: tuple[int, ...], names: Any) -> list[dict[str, Any]]:
    titles: Sequence[str] = AXES[len(lead) + 1]
    if names is None:
        lists: list[Any] = [range(n) for n in lead]
    elif isinstance(names, Mapping):
        titles, lists = [str(t) for t in names], list(names.values())
    else:
        lists = [names] if len(lead) == 1 else list(names)
    if tuple(len(options) for options in lists) != lead:
        raise ValueError(
            f"names are given for {tuple(len(o) for o in lists)} choices, the values "
            f"have {lead} before the tokens: name each"
        )
    return [
        {"name": title, "options": [str(o) for o in options]}
        for title, options in zip(titles, lists, strict=True)
    ]
