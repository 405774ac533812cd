"""One head's queries and keys: the weights are attention's own, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from minillama.attention import causal_mask
from minillama.capture import explicit_attend
from minillama.widgets import QueryKeyView

TOKENS = ["<s>", " a", " b", " c"]
Q, K = np.random.default_rng(0).standard_normal((2, 4, 16))


def test_the_weights_are_those_of_attention() -> None:
    q, k = (torch.from_numpy(x)[None, None] for x in (Q, K))
    for causal in (True, False):
        mask = causal_mask(4, 4) if causal else None
        probs = explicit_attend(q, k, k, mask)[1][0, 0]
        view = QueryKeyView(TOKENS, q[0, 0], k[0, 0], causal=causal)
        for query in range(4):
            own = view.weights(query)
            assert len(own) == (query + 1 if causal else 4)
            expected = probs[query, : len(own)].numpy()
            np.testing.assert_allclose(own, expected, atol=1e-12)


def test_tensors_of_any_kind() -> None:
    q = torch.ones(4, 16, dtype=torch.bfloat16, requires_grad=True)
    assert QueryKeyView(TOKENS, q, q).weights(3) == pytest.approx([0.25] * 4)


def test_words_and_picture() -> None:
    view = QueryKeyView(TOKENS, Q, K)
    top = int(view.weights(3).argmax())
    assert f"looks at {TOKENS[top]!r} (position {top})" in view.words()
    sides = view.draw().axes
    np.testing.assert_allclose(sides[1].images[0].get_array()[2], Q[3] * K[2])
    widths = [bar.get_width() for bar in sides[2].patches]
    np.testing.assert_allclose(widths, view.weights(3))
    assert view._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: QueryKeyView([], Q, K), "no tokens"),
        (lambda: QueryKeyView(["a"] * 2000, Q, K), "2,000 tokens"),
        (lambda: QueryKeyView(TOKENS, Q[:3], K), "q has the shape (3, 16)"),
        (lambda: QueryKeyView(TOKENS, Q, K[None]), "k has the shape (1, 4, 16)"),
        (lambda: QueryKeyView(TOKENS, Q, K[:, :8]), "16 numbers a token and k 8"),
        (lambda: QueryKeyView(TOKENS, Q * np.nan, K), "64 of the 64 numbers of q"),
    ],
)
def test_a_sentence_in_its_place(made: Any, sentence: str) -> None:
    assert sentence in made().sentence
