"""Who looks at whom: attention weights by layer and head, with the query groups."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minillama.widgets.view import Answer, View, array

LONGEST = 1024  # tokens; the picture stays smooth to 512
LARGEST_PAGE = 60_000_000  # bytes of a saved page
EXACT_PAGE = 6_000_000  # up to this size a saved page keeps 16 bits a weight
THUMB = 24  # pixels of a map in the overview


class AttentionView(View):
    """The attention of a prompt: maps, lines, one head, families, all layers.

    `weights` is a list with an array a layer, H T S or 1 H T S, as `capture` gives
    them, or one array L H T S: probabilities, each row sums to one. `tokens` are S
    strings; where S is larger than T, the queries are the last T of them. Query heads
    that share one of `n_kv_heads` are framed together. `layers` keeps only those.
    """

    name = "attention"
    title = "Attention"

    def __init__(
        self,
        weights: Any,
        tokens: Sequence[str],
        *,
        n_kv_heads: int | None = None,
        layers: Iterable[int] | None = None,
    ) -> None:
        self._weights: list[np.ndarray] = []
        super().__init__(lambda: self._prepare(weights, tokens, n_kv_heads, layers))

    def _prepare(
        self, weights: Any, tokens: Any, n_kv_heads: Any, layers: Any
    ) -> dict[str, Any]:
        words = _strings(tokens)
        found = _by_layer(weights)
        numbers = _chosen(layers, len(found))
        kept = [_one_prompt(found[n], n) for n in numbers]
        for n, layer in zip(numbers, kept, strict=True):
            _check(layer, n, kept[0].shape, numbers[0], len(words))
        n_heads, n_queries, n_keys = kept[0].shape
        _check_families(n_heads, n_kv_heads)
        hidden = np.triu(np.ones((n_queries, n_keys), bool), n_keys - n_queries + 1)
        self._weights = kept
        self._causal = not any(layer[:, hidden].any() for layer in kept)
        self._seen = ~hidden if self._causal else np.ones_like(hidden)
        opens, head = _telling(kept)
        return {
            "tokens": words,
            "layers": numbers,
            "heads": n_heads,
            "families": n_kv_heads,
            "queries": n_queries,
            "causal": self._causal,
            "opens": opens,
            "head": head,
            "saved_bits": self._saved_bits(),
        }

    def answer(self, what: str, args: Mapping[str, Any]) -> Answer:
        if what == "layer":
            return {}, [self._encoded(int(args["layer"]), int(args["bits"]))]
        if what == "overview":
            thumbs = [_pooled(layer, THUMB) for layer in self._weights]
            sinks = [_sink(layer).round(3) for layer in self._weights]
            about = {"side": thumbs[0].shape[1:], "sinks": sinks}
            return about, [b"".join(map(_roots, thumbs))]
        return super().answer(what, args)

    def record(self) -> list[tuple[str, Mapping[str, Any]]]:
        """All layers, and their mean, one after the last. ValueError if too large."""
        bits = self.data["saved_bits"]
        size = self._stored(bits)
        if size > LARGEST_PAGE:
            raise ValueError(
                f"the saved page would have {size / 1e6:,.0f} MB, "
                f"{LARGEST_PAGE / 1e6:.0f} MB are the most: "
                "keep fewer layers, AttentionView(..., layers=[0, 1]), or a shorter "
                "prompt"
            )
        which = range(len(self._weights) + 1)
        asked = [("layer", {"layer": i, "bits": bits}) for i in which]
        return [*asked, ("overview", {})]

    def words(self) -> str:
        data = self.data
        shared = f" ({data['families']} KV heads)" if data["families"] else ""
        layer = self._weights[data["opens"]]
        return (
            f"Attention of {len(data['tokens'])} tokens, {len(data['layers'])} layers, "
            f"{data['heads']} heads{shared}. In layer {data['layers'][data['opens']]} "
            f"the first token takes {_sink(layer).mean():.2f} of the weight, "
            "from tokens after it"
        )

    def draw(self) -> Any:
        """The maps of all heads of the layer that the view opens with."""
        return _draw(self._weights[self.data["opens"]], self.data)

    def _encoded(self, index: int, bits: int) -> bytes:
        """The weights that the mask lets through, row by row, small whole numbers.

        16 bits hold a weight to 0.00001. 8 bits hold its root, so that what is drawn
        is right to 0.004, and small weights much better than that.
        """
        n = len(self._weights)
        if not 0 <= index <= n or bits not in (8, 16):
            raise ValueError(f"there is no layer {index} in {bits} bits among {n}")
        layer = self._weights[index] if index < n else _mean(self._weights)
        seen = np.clip(layer[:, self._seen], 0, 1)
        if bits == 8:
            return _roots(seen)
        return np.rint(seen * 65535).astype("<u2").tobytes()

    def _saved_bits(self) -> int:
        return 16 if self._stored(16) <= EXACT_PAGE else 8

    def _stored(self, bits: int) -> int:
        """Bytes in a saved page: base64 writes three bytes as four letters."""
        heads = self._weights[0].shape[0]
        values = (len(self._weights) + 1) * heads * int(self._seen.sum())
        return values * bits // 8 * 4 // 3


def _strings(tokens: Any) -> list[str]:
    if isinstance(tokens, str):
        raise ValueError("tokens is one string: give a list with a string a token")
    words = list(tokens)
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(
                f"token {i} is {type(word).__name__} {word!r}, not a string: decode it"
            )
    if not words:
        raise ValueError("there are no tokens: give one string for each key")
    if len(words) > LONGEST:
        raise ValueError(
            f"{len(words):,} tokens are too many for one picture, this view shows "
            f"{LONGEST:,}: run the model on a part of the text"
        )
    return words


def _by_layer(weights: Any) -> list[Any]:
    shape = getattr(weights, "shape", None)
    if shape is not None and len(shape) != 4:
        raise ValueError(
            f"the weights have shape {tuple(shape)}: give a list with an array H T S "
            "a layer, or one array L H T S"
        )
    found = list(weights)
    if not found:
        raise ValueError("there are no weights: give one array H T S a layer")
    return found


def _chosen(layers: Iterable[int] | None, n: int) -> list[int]:
    numbers = list(range(n)) if layers is None else [int(i) for i in layers]
    wrong = [i for i in numbers if not 0 <= i < n]
    if wrong or not numbers:
        raise ValueError(
            f"layers={numbers}: choose from the {n} layers given, 0 to {n - 1}"
        )
    return numbers


def _one_prompt(weights: Any, number: int) -> np.ndarray:
    """An array H T S of float32."""
    layer = array(weights, f"layer {number}", np.float32)
    if layer.ndim == 4 and layer.shape[0] == 1:
        layer = layer[0]
    if layer.ndim != 3:
        batch = "; one prompt at a time, weights[:1]" if layer.ndim == 4 else ""
        raise ValueError(
            f"layer {number} has shape {layer.shape}: it should be H T S{batch}"
        )
    return layer


def _check(
    layer: np.ndarray, number: int, shape: tuple[int, ...], first: int, n_tokens: int
) -> None:
    """Raise ValueError unless these are probabilities over the tokens."""
    if layer.shape != shape:
        raise ValueError(
            f"layer {number} has shape {layer.shape}, but layer {first} has {shape}: "
            "all layers should come from one run"
        )
    _, n_queries, n_keys = shape
    if n_keys != n_tokens:
        raise ValueError(
            f"the weights have {n_keys} keys, but {n_tokens} tokens are given: give "
            "one string for each key, cached ones too"
        )
    if 0 in shape or n_queries > n_keys:
        raise ValueError(
            f"layer {number} has shape H T S = {shape}: it needs a head, a query, and "
            "no more queries than keys"
        )
    sums = layer.sum(-1)
    wrong = ~(np.abs(sums - 1) <= 1e-2) | (layer.min(-1) < -1e-6)
    if wrong.any():
        head, query = (int(i) for i in np.argwhere(wrong)[0])
        row = layer[head, query]
        what = "contain NaN or infinity" if not np.isfinite(row).all() else ""
        what = what or ("fall below 0" if row.min() < -1e-6 else "")
        what = what or f"sum to {row.sum():.3f}, not 1"
        raise ValueError(
            f"layer {number}, head {head}: the weights of query {query} {what}: give "
            "probabilities, after mask and softmax"
        )


def _check_families(n_heads: int, n_kv_heads: int | None) -> None:
    if n_kv_heads is not None and (n_kv_heads < 1 or n_heads % n_kv_heads):
        raise ValueError(
            f"{n_heads} query heads cannot share {n_kv_heads} KV heads evenly: "
            "n_kv_heads is the model's config.n_kv_heads"
        )


def _sink(layer: np.ndarray) -> np.ndarray:
    """What each head gives to the first token, mean over the queries after it."""
    _, n_queries, n_keys = layer.shape
    later = layer[:, 1:] if n_queries == n_keys > 1 else layer
    return later[:, :, 0].mean(-1)


def _mean(layers: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros(layers[0].shape, np.float32)
    for layer in layers:
        total += layer
    return total / len(layers)


def _telling(layers: Sequence[np.ndarray]) -> tuple[int, int]:
    """The layer and the head that look most sharply at neither the first token nor
    the query itself: there is most to see."""
    _, n_queries, n_keys = layers[0].shape
    dull = np.eye(n_queries, n_keys, n_keys - n_queries, dtype=bool)
    dull[:, 0] = True
    sharp = [np.where(dull, 0, layer).max(-1).mean(-1) for layer in layers]
    opens = int(np.argmax([s.mean() for s in sharp]))
    return opens, int(np.argmax(sharp[opens]))


def _pooled(layer: np.ndarray, most: int) -> np.ndarray:
    """Smaller maps: each pixel shows the largest weight in it, or thin lines vanish."""
    for axis in (1, 2):
        size = layer.shape[axis]
        starts = np.unique(np.arange(min(size, most)) * size // min(size, most))
        layer = np.maximum.reduceat(layer, starts, axis=axis)
    return layer


def _roots(weights: np.ndarray) -> bytes:
    return np.rint(np.sqrt(np.clip(weights, 0, 1)) * 255).astype(np.uint8).tobytes()


def _draw(layer: np.ndarray, data: Mapping[str, Any]) -> Any:
    """Small multiples, framed by family, as many in a line as ten heads."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n_heads = len(layer)
    size = n_heads // data["families"] if data["families"] else n_heads
    per_line = size * max(10 // size, 1) if size <= 10 else 10
    labelled = len(data["tokens"]) <= 16
    longest = min(max(map(len, data["tokens"])), 9)
    below = 0.1 + 0.055 * longest * labelled  # inches for the names of the keys
    margin, step = 0.05 + below, 1.4 + below
    n_lines = -(-n_heads // per_line)
    width = margin + 0.95 * per_line + 0.15 * (per_line // size) + 0.05
    height = 0.35 + step * n_lines
    figure = Figure(figsize=(width, height))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, y / height, text, va="center", **style)

    number = data["layers"][data["opens"]]
    title = (
        f"layer {number}: a row is a query, a column a key; sink: first token's share"
    )
    write(0.1, height - 0.17, title, fontsize=8)
    for head in range(n_heads):
        line, at = divmod(head, per_line)
        left = margin + 0.95 * at + 0.15 * (at // size)
        top = height - 0.35 - step * line
        box = (left / width, (top - 1.3) / height, 0.86 / width, 0.86 / height)
        _draw_head(figure.add_axes(box), layer[head], data["tokens"], labelled, at)
        name = f"head {head}, sink {_sink(layer)[head]:.2f}"
        write(left + 0.43, top - 0.36, name, fontsize=6.5, ha="center")
        if data["families"] and head % size == 0:
            start = left - 0.05 if at else 0.05  # the names of the queries stand inside
            corner = (start / width, (top - 1.3 - below) / height)
            across = left + min(size, per_line - at) * 0.95 - start - 0.05
            area = (across / width, (1.28 + below) / height)
            frame = Rectangle(corner, *area, fill=False, ec="#555", lw=1)
            figure.add_artist(frame)
            write(left, top - 0.17, _family(head // size, size), size=7, weight="bold")
    return figure


def _draw_head(
    axes: Any, weights: np.ndarray, tokens: Sequence[str], labelled: bool, at: int
) -> None:
    small = _pooled(weights[None], 86)[0]
    axes.imshow(np.sqrt(small), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(xticks=[], yticks=[])
    if not labelled:
        return
    shown = [t.replace(" ", "·").replace("\n", "⏎")[:9] for t in tokens]
    style = {"fontsize": 6, "parse_math": False}
    axes.set_xticks(range(len(shown)), shown, rotation=90, **style)
    if at == 0:
        queries = shown[len(shown) - len(weights) :]
        axes.set_yticks(range(len(queries)), queries, **style)
    axes.tick_params(length=0, pad=2)


def _family(number: int, size: int) -> str:
    heads = range(number * size, (number + 1) * size)
    plural = "s" if size > 1 else ""
    return f"KV head {number}: query head{plural} {' '.join(map(str, heads))}"
