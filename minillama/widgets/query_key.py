"""Why one head looks where it looks: query times key, number by number."""

from base64 import b64encode
from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from minillama.widgets.view import View, array

LONGEST = 512  # tokens
WIDEST = 512  # numbers of a head


class QueryKeyView(View):
    """One head: a chosen query, each key, their products, the sum, the softmax.

    `q` and `k` are T Dh, a row a token, already turned by RoPE. With grouped queries
    give the key head that the query's head shares. `causal` hides the keys that come
    after the query. Scores are q·k / sqrt(Dh) (Vaswani et al., arXiv 1706.03762).
    """

    name = "query_key"
    title = "Query and keys"

    def __init__(
        self, tokens: Sequence[str], q: Any, k: Any, *, causal: bool = True
    ) -> None:
        self._q = self._k = np.zeros((0, 0))
        super().__init__(lambda: self._prepare(list(tokens), q, k, causal))

    def _prepare(
        self, tokens: list[str], q: Any, k: Any, causal: bool
    ) -> dict[str, Any]:
        if not tokens:
            raise ValueError("there are no tokens: give the text's tokens")
        if len(tokens) > LONGEST:
            raise ValueError(
                f"{len(tokens):,} tokens are given, this view shows {LONGEST}: "
                "take a part of them"
            )
        self._q = _rows(q, "q", len(tokens))
        self._k = _rows(k, "k", len(tokens))
        if self._q.shape != self._k.shape:
            raise ValueError(
                f"q has {self._q.shape[1]} numbers a token and k {self._k.shape[1]}: "
                "give both of one head"
            )
        return {
            "tokens": [str(t) for t in tokens],
            "width": self._q.shape[1],
            "q": b64encode(self._q.astype("<f4").tobytes()).decode(),
            "k": b64encode(self._k.astype("<f4").tobytes()).decode(),
            "causal": bool(causal),
        }

    def weights(self, query: int) -> np.ndarray:
        """Of the keys that this query sees: softmax(q·k / sqrt(Dh))."""
        seen = query + 1 if self.data["causal"] else len(self._k)
        scores = self._k[:seen] @ self._q[query] / sqrt(self._q.shape[1])
        raised = np.exp(scores - scores.max())
        return raised / raised.sum()

    def words(self) -> str:
        tokens = self.data["tokens"]
        weights = self.weights(len(tokens) - 1)
        top = int(weights.argmax())
        return (
            f"Query and keys of {len(tokens)} tokens: the last looks at "
            f"{tokens[top]!r} (position {top}) with {weights[top]:.0%}"
        )

    def draw(self) -> Any:
        """The last query with its 16 weightiest keys."""
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure

        query = len(self._q) - 1
        weights = self.weights(query)
        picked = np.sort(np.argsort(-weights)[:16])
        products = self._k[picked] * self._q[query]
        figure = Figure(figsize=(10, 1 + 0.24 * len(picked)), layout="constrained")
        sides: Any = figure.subplots(1, 3, width_ratios=(3, 3, 1), sharey=True)
        shades = LinearSegmentedColormap.from_list("", ["#d6600a", "white", "#3182bd"])
        for axes, rows, name in zip(
            sides, (self._k[picked], products), ("key", "query x key"), strict=False
        ):
            most = float(np.abs(rows).max()) or 1.0
            axes.imshow(
                rows, cmap=shades, vmin=-most, vmax=most, aspect="auto", resample=False
            )
            axes.set_title(name, fontsize=9)
            axes.tick_params(labelsize=8, length=0)
            axes.set_xlabel("number of the head", fontsize=8)
        tokens = self.data["tokens"]
        labels = [f"{p} {tokens[p].replace(' ', '·')[:9]}" for p in picked]
        sides[0].set_yticks(range(len(picked)), labels, parse_math=False)
        sides[2].barh(range(len(picked)), weights[picked], color="#0060a0")
        sides[2].set_title("weight", fontsize=9)
        sides[2].tick_params(labelsize=8)
        return figure


def _rows(given: Any, name: str, tokens: int) -> np.ndarray:
    rows = array(given, name)
    if rows.ndim != 2 or len(rows) != tokens or not 1 <= rows.shape[1] <= WIDEST:
        raise ValueError(
            f"{name} has the shape {rows.shape}, there are {tokens} tokens: give "
            f"({tokens}, Dh), with Dh from 1 to {WIDEST}"
        )
    if wrong := int((~np.isfinite(rows)).sum()):
        raise ValueError(
            f"{wrong} of the {rows.size} numbers of {name} are NaN or infinite"
        )
    return rows
