"""The values view: shapes it takes, shapes it refuses, its words and its picture."""

from base64 import b64decode
from typing import Any

import numpy as np
import pytest

from minillama.widgets import ValuesView

TOKENS = ["<i>", " is", " $x$\n"]
GRID = np.arange(12.0).reshape(2, 2, 3) - 6


def stored(view: ValuesView, text: int = 0) -> np.ndarray:
    return np.frombuffer(b64decode(view.data["texts"][text]["values"]), "<f4")


@pytest.mark.parametrize(
    ("values", "names", "axes"),
    [
        (GRID[0, 0], None, []),
        (GRID[0], None, [("row", ["0", "1"])]),
        (GRID[0], ["a", "b"], [("row", ["a", "b"])]),
        (GRID.tolist(), None, [("layer", ["0", "1"]), ("row", ["0", "1"])]),
        (GRID, {"x": "pq", "y": [5, 6]}, [("x", ["p", "q"]), ("y", ["5", "6"])]),
    ],
)
def test_shapes_and_names(values: Any, names: Any, axes: Any) -> None:
    view = ValuesView(TOKENS, values, names)
    assert view.sentence is None
    assert [(a["name"], a["options"]) for a in view.data["axes"]] == axes
    np.testing.assert_array_equal(stored(view), np.ravel(values))


def test_several_texts() -> None:
    view = ValuesView([TOKENS, ["a"]], [GRID[0], [[1.0], [2.0]]])
    assert [len(t["tokens"]) for t in view.data["texts"]] == [3, 1]
    np.testing.assert_array_equal(stored(view, 1), [1, 2])


def test_words_and_picture() -> None:
    view = ValuesView(TOKENS, GRID, {"layer": "AB", "head": "CD"})
    assert view.words() == (
        "Values of 3 tokens in layer A, head C: the largest is -4 at ' $x$\\n'"
    )
    texts = [t.get_text() for t in view.draw().axes[0].texts]
    assert texts == ["<i>", "-6", "·is", "-5", "·$x$⏎", "-4"]
    assert ValuesView(["long"] * 900, [0.0] * 900)._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: ValuesView([], []), "no tokens"),
        (lambda: ValuesView(TOKENS, [1.0, 2.0]), "shape (2,), there are 3 tokens"),
        (lambda: ValuesView(TOKENS, [[1], [1, 2, 3]]), "even rows"),
        (lambda: ValuesView(TOKENS, "abc"), "must be numbers"),
        (lambda: ValuesView(TOKENS, GRID[None]), "shape (1, 2, 2, 3)"),
        (lambda: ValuesView(TOKENS, [1, np.nan, np.inf]), "2 of 3 values"),
        (lambda: ValuesView(["a"] * 2001, [0.0] * 2001), "2,001 tokens"),
        (lambda: ValuesView(TOKENS, np.zeros((400_000, 3))), "1,200,000 values"),
        (lambda: ValuesView(TOKENS, GRID, ["a"]), "names are given for (1,)"),
        (lambda: ValuesView(TOKENS, GRID[0], ["a"]), "the values have (2,)"),
        (lambda: ValuesView([TOKENS, ["a"]], [GRID]), "2 texts and 1 arrays"),
        (lambda: ValuesView([TOKENS, ["a"]], [GRID, [1.0]]), "last axis alone"),
    ],
)
def test_a_sentence_in_its_place(made: Any, sentence: str) -> None:
    assert sentence in made().sentence
