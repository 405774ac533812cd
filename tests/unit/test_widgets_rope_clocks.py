"""The clocks of RoPE: what they take and refuse, and their picture on paper."""

from typing import Any

import numpy as np
import pytest
import torch

from minillama.config import RopeScaling
from minillama.rope import apply_rope, rope_frequencies
from minillama.widgets import RopeClocks
from minillama.widgets.rope_clocks import dot_product

FREQUENCIES = rope_frequencies(16, 500_000.0)


def test_the_dot_product_is_that_of_the_real_rope() -> None:
    data = RopeClocks(FREQUENCIES).data
    angles = torch.outer(torch.tensor([12.0, 7.0]), FREQUENCIES).double()
    pair = torch.tensor([data["q"], data["k"]], dtype=torch.float64)
    turned = apply_rope(pair, angles.cos(), angles.sin())
    expected = float(turned[0] @ turned[1])
    assert dot_product(data, 12, 7) == pytest.approx(expected, abs=1e-5)
    assert dot_product(data, 1012, 1007) == pytest.approx(expected, abs=1e-5)
    assert abs(dot_product(data, 12, 8) - expected) > 0.01


def test_data_words_and_picture() -> None:
    scaled = rope_frequencies(128, 500_000.0, RopeScaling())
    view = RopeClocks(rope_frequencies(128, 500_000.0), (3, 1), scaled=scaled)
    assert len(view.data["q"]) == 128
    assert "64 clocks of RoPE at positions 3 and 1" in view.words()
    figure = view.draw()
    assert [axes.get_title() for axes in figure.axes] == [
        f"pair {i}" for i in (0, 9, 18, 27, 36, 45, 54, 63)
    ]
    hand = figure.axes[1].lines[0].get_xdata()[1]
    assert hand == pytest.approx(3 * 500_000 ** (-18 / 128))
    slow = [line.get_xdata()[1] for line in figure.axes[7].lines]
    assert slow[1] == pytest.approx(slow[0] / 8)  # Llama 3.1 divides by 8 exactly
    assert view._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: RopeClocks([]), "shape (0,)"),
        (lambda: RopeClocks([[1.0]]), "shape (1, 1)"),
        (lambda: RopeClocks([1.0, np.nan]), "finite and above 0"),
        (lambda: RopeClocks([1.0, -1.0]), "finite and above 0"),
        (lambda: RopeClocks(["a"]), "must be numbers"),
        (lambda: RopeClocks([1.0], (5, 200)), "between 0 and 100"),
        (lambda: RopeClocks([1.0], longest=0), "longest is 0"),
        (lambda: RopeClocks([1.0], scaled=[1.0, 0.5]), "2 scaled ones"),
        (lambda: RopeClocks([1.0], vectors=([1], [1, 2])), "give 2 finite numbers"),
    ],
)
def test_a_sentence_in_its_place(made: Any, sentence: str) -> None:
    assert sentence in made().sentence
