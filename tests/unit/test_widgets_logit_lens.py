"""The logit lens: what it takes, what it refuses, and its picture on paper."""

from typing import Any

import numpy as np
import pytest

from minillama.widgets import LogitLensView

TOKENS = ["<b>", " is", " $x$"]
CELLS = [
    [[("a", 0.5), ("b", 0.25)], [("c", 0.3), ("d", 0.2)], [("e", 0.2), ("f", 0.1)]],
    [[(" is", 0.9), ("b", 0.1)], [("d", 0.6), ("c", 0.4)], [("g", 0.7), ("e", 0.2)]],
]


def test_data_and_words() -> None:
    truth = np.array([[0.01, 0.2, np.nan], [0.9, 0.3, np.nan]])
    view = LogitLensView(TOKENS, CELLS, truth=truth)
    assert view.sentence is None
    assert view.data["layers"] == ["0", "1"]
    assert view.data["truth"] == [[0.01, 0.2, None], [0.9, 0.3, None]]
    assert (
        LogitLensView(TOKENS, CELLS, truth=truth[:, :2]).data["truth"]
        == (view.data["truth"])
    )
    assert "3 tokens through 2 layers" in view.words()
    assert "'g' (70%)" in view.words()


def test_the_picture_names_layers_and_tokens() -> None:
    many = LogitLensView(TOKENS, CELLS * 16, layers=[f"L{i}" for i in range(32)])
    axes = many.draw().axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[-1] == "L31"
    assert len(rows) == 16
    assert [t.get_text() for t in axes.texts][-1] == "g"
    assert many._repr_mimebundle_()[0]["image/png"]


def guess(p: Any) -> list[Any]:
    return [[[("a", p)]]]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: LogitLensView([], []), "no tokens"),
        (lambda: LogitLensView(["a"] * 2000, []), "2,000 tokens"),
        (lambda: LogitLensView(TOKENS, []), "no cells"),
        (lambda: LogitLensView(TOKENS, [CELLS[0][:2]]), "2 cells for 3 tokens"),
        (lambda: LogitLensView(TOKENS, CELLS, layers=["x"]), "1 names"),
        (lambda: LogitLensView(["a"], guess(float("nan"))), "lies between 0 and 1"),
        (lambda: LogitLensView(["a"], guess(1.5)), "probability 1.5"),
        (lambda: LogitLensView(["a"], [[[]]]), "no guesses"),
        (lambda: LogitLensView(["a"], [[[("a", 0.1), ("b", 0.2)]]]), "in order"),
        (lambda: LogitLensView(TOKENS, CELLS, truth=[[0.1]]), "truth is 1 x 1"),
        (lambda: LogitLensView(TOKENS, CELLS, truth=[[2, 0.1]] * 2), "probability 2"),
        (
            lambda: LogitLensView(TOKENS, CELLS, truth=[[float("nan"), 0.1]] * 2),
            "no finite number",
        ),
    ],
)
def test_a_sentence_in_its_place(made: Any, sentence: str) -> None:
    assert sentence in made().sentence
