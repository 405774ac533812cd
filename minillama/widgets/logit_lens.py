"""The logit lens: what each layer would say next, if the model ended there."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from minillama.widgets.view import View, plain

Guess = tuple[str, float]
LONGEST = 512  # tokens
KEPT = 10  # guesses of a cell


class LogitLensView(View):
    """A table of layers and positions: the top token in each cell, its ten on demand.

    `cells[layer][position]` is a list of (text, probability) pairs, most likely first:
    what the norm and the output layer of the model make of the residual stream there
    (nostalgebraist, "interpreting GPT: the logit lens", 2020).
    `truth[layer][position]` is the probability of the token that really follows; the
    last position, which nothing follows, may be left out or None.
    """

    name = "logit_lens"
    title = "Logit lens"

    def __init__(
        self,
        tokens: Sequence[str],
        cells: Sequence[Sequence[Sequence[Guess]]],
        truth: Any = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(lambda: _data(list(tokens), cells, truth, layers))

    def words(self) -> str:
        cells, tokens = self.data["cells"], self.data["tokens"]
        text, p = cells[-1][-1][0]
        return (
            f"Logit lens of {len(tokens)} tokens through {len(cells)} layers: after "
            f"the last token the last layer says {text!r} ({p:.0%})"
        )

    def draw(self) -> Any:
        """The top tokens of the last positions, and of as many layers as fit."""
        from matplotlib.figure import Figure

        cells, tokens = self.data["cells"], self.data["tokens"]
        first = max(0, len(tokens) - 12)
        every = -(-len(cells) // 16)
        rows = sorted(range(len(cells) - 1, -1, -every))
        shades = [[c[0][1] for c in cells[row][first:]] for row in rows]
        width = 1.4 + 0.85 * (len(tokens) - first)
        figure = Figure(figsize=(width, 0.9 + 0.27 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
        for y, row in enumerate(rows):
            for x, cell in enumerate(cells[row][first:]):
                ink = "white" if cell[0][1] > 0.55 else "black"
                _write(axes, x, y, cell[0][0], ink)
        axes.set_yticks(range(len(rows)), [self.data["layers"][row] for row in rows])
        axes.set_xticks(
            range(len(tokens) - first),
            [_short(t).replace("$", r"\$") for t in tokens[first:]],
        )
        axes.tick_params(labelsize=8, length=0)
        axes.set_xlabel("token read")
        axes.set_ylabel("layer")
        return figure


def _write(axes: Any, x: float, y: float, text: str, ink: str) -> None:
    style = {"ha": "center", "va": "center", "fontsize": 8, "color": ink}
    axes.text(x, y, _short(text), parse_math=False, **style)


def _short(text: str) -> str:
    text = text.replace(" ", "·").replace("\n", "⏎")
    return text if len(text) <= 9 else text[:8] + "…"


def _data(tokens: list[str], cells: Any, truth: Any, layers: Any) -> dict[str, Any]:
    if not tokens:
        raise ValueError("there are no tokens: give the text's tokens, and a cell each")
    if len(tokens) > LONGEST:
        raise ValueError(
            f"{len(tokens):,} tokens are given, this view shows {LONGEST}: "
            "take a part of them"
        )
    if not len(cells):
        raise ValueError("there are no cells: give a list of cells for each layer")
    for layer, row in enumerate(cells):
        if len(row) != len(tokens):
            raise ValueError(
                f"layer {layer} has {len(row)} cells for {len(tokens)} tokens: "
                "give one for each token"
            )
    names = [str(i) for i in range(len(cells))] if layers is None else list(layers)
    if len(names) != len(cells):
        raise ValueError(f"{len(names)} names are given for {len(cells)} layers")
    return {
        "tokens": [str(t) for t in tokens],
        "layers": [str(name) for name in names],
        "cells": [
            [_guesses(cell, f"layer {i}, position {j}") for j, cell in enumerate(row)]
            for i, row in enumerate(cells)
        ],
        "truth": None if truth is None else _truth(truth, len(cells), len(tokens)),
    }


def _guesses(cell: Sequence[Guess], where: str) -> list[Guess]:
    guesses = [(str(text), float(p)) for text, p in cell[:KEPT]]
    if not guesses:
        raise ValueError(f"{where} has no guesses: give at least one (text, p) pair")
    for text, p in guesses:
        _probability(p, f"{where} gives {text!r}")
    falling = sorted(guesses, key=lambda guess: -guess[1])
    if falling != guesses:
        raise ValueError(f"{where} is not in order: give the most likely token first")
    return [(text, float(f"{p:.5g}")) for text, p in guesses]


def _truth(truth: Any, layers: int, positions: int) -> list[list[float | None]]:
    rows = [list(row) for row in plain(truth)]
    if len(rows) != layers or any(
        len(r) not in (positions, positions - 1) for r in rows
    ):
        shape = f"{len(rows)} x {len(rows[0]) if rows else 0}"
        raise ValueError(
            f"truth is {shape}, the cells are {layers} x {positions}: "
            "give one probability a cell"
        )
    for i, row in enumerate(rows):
        row[positions - 1 :] = [None]  # nothing follows the last
        for j, p in enumerate(row[:-1]):
            _probability(p, f"truth at layer {i}, position {j}, is given")
    return rows


def _probability(p: float | None, where: str) -> None:
    if p is None or not isfinite(p) or not 0 <= p <= 1.001:
        shown = "no finite number" if p is None else f"{p:g}"
        raise ValueError(f"{where} the probability {shown}: it lies between 0 and 1")
