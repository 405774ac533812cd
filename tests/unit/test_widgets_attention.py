"""The attention view without a browser: what it takes, sends, draws and says."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from minillama.widgets import AttentionView
from minillama.widgets.attention_view import LARGEST_PAGE

TOKENS = ["the", " dog", " saw", " it"]


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def made(
    n_layers: int = 2, n_heads: int = 4, n_queries: int = 4, n_keys: int = 4
) -> list[np.ndarray]:
    """Random causal attention, loud enough that heads differ."""
    random = np.random.default_rng(0)
    scores = 3 * random.normal(size=(n_layers, n_heads, n_queries, n_keys))
    hidden = np.triu(np.ones((n_queries, n_keys), bool), n_keys - n_queries + 1)
    return list(softmax(np.where(hidden, -np.inf, scores)).astype(np.float32))


def unpacked(view: AttentionView, layer: int, bits: int) -> np.ndarray:
    """What a browser makes of the bytes, written anew."""
    _, [sent] = view.answer("layer", {"layer": layer, "bits": bits})
    packed = np.frombuffer(sent, np.uint8 if bits == 8 else "<u2")
    numbers = (packed / 255.0) ** 2 if bits == 8 else packed / 65535.0
    n_heads, n_queries = view.data["heads"], view.data["queries"]
    n_keys = len(view.data["tokens"])
    out = np.zeros((n_heads, n_queries, n_keys))
    at = 0
    for head in range(n_heads):
        for query in range(n_queries):
            seen = n_keys - n_queries + query + 1 if view.data["causal"] else n_keys
            out[head, query, :seen] = numbers[at : at + seen]
            at += seen
    assert at == len(numbers)
    return out


@pytest.mark.parametrize(("bits", "error"), [(8, 0.004), (16, 1e-5)])
def test_what_is_sent_is_right_to_what_is_said(bits: int, error: float) -> None:
    layers = made()
    view = AttentionView(layers, TOKENS, n_kv_heads=2)
    for i, layer in enumerate(layers):
        assert np.abs(unpacked(view, i, bits) - layer).max() < error
    mean = (layers[0].astype(float) + layers[1]) / 2
    assert np.abs(unpacked(view, 2, bits) - mean).max() < error


def test_eight_bits_are_right_for_every_weight() -> None:
    p = np.linspace(0, 1, 1000)
    weights = np.zeros((1, 1000, 1000))
    weights[0, :, 0], weights[0, :, 1] = p, 1 - p
    found = unpacked(AttentionView([weights], ["x"] * 1000), 0, 8)
    assert np.abs(found - weights).max() < 0.004
    assert np.abs(found - weights)[0, :10, 0].max() < 0.0004  # small ones better


def test_only_what_the_mask_shows_is_sent() -> None:
    causal = AttentionView(made(), TOKENS)
    assert len(causal.answer("layer", {"layer": 0, "bits": 8})[1][0]) == 4 * 10
    cached = AttentionView(made(n_queries=2), TOKENS)
    assert len(cached.answer("layer", {"layer": 0, "bits": 8})[1][0]) == 4 * (3 + 4)
    both = np.full((1, 4, 4), 0.25)
    view = AttentionView([both], TOKENS)
    assert not view.data["causal"]
    assert unpacked(view, 0, 16) == pytest.approx(both, abs=1e-5)


def test_every_kind_of_array() -> None:
    layers = made()
    wanted = unpacked(AttentionView(layers, TOKENS), 1, 16)
    kinds: list[Any] = [
        np.stack(layers),
        [layer[None] for layer in layers],
        [layer.tolist() for layer in layers],
        [torch.tensor(layer, requires_grad=True) for layer in layers],
        torch.tensor(np.stack(layers)),
        [layer.astype(np.float16) for layer in layers],
    ]
    for kind in kinds:
        found = unpacked(AttentionView(kind, TOKENS), 1, 16)
        assert found == pytest.approx(wanted, abs=5e-4)
    rough = [torch.tensor(layer).bfloat16() for layer in layers]
    assert unpacked(AttentionView(rough, TOKENS), 1, 16) == pytest.approx(
        wanted, abs=4e-3
    )


def test_chosen_layers_keep_their_numbers() -> None:
    layers = made(n_layers=5)
    view = AttentionView(layers, TOKENS, layers=[3, 1])
    assert view.data["layers"] == [3, 1]
    assert unpacked(view, 0, 16) == pytest.approx(layers[3], abs=1e-5)
    asked = [args["layer"] for what, args in view.record() if what == "layer"]
    assert asked == [0, 1, 2]


def test_it_opens_where_a_head_looks_sharply_away_from_the_first_token() -> None:
    plain = np.zeros((2, 4, 4))
    plain[:, :, 0] = 1
    telling = plain.copy()
    telling[1, 2:] = [[0, 1, 0, 0], [0, 0, 1, 0]]  # looks at the one before
    view = AttentionView([plain, telling, plain], TOKENS)
    assert (view.data["opens"], view.data["head"]) == (1, 1)
    assert "In layer 1 the first token takes 0.67 of the weight" in view.words()


def test_the_overview_keeps_thin_lines() -> None:
    line = np.zeros((1, 100, 100))
    line[:, :, 0] = 1
    line[:, 50:] = 0
    line[:, 50:, 37] = 1  # one column of a hundred
    answer, [roots] = AttentionView([line], ["x"] * 100).answer("overview", {})
    assert tuple(answer["side"]) == (24, 24)
    thumb = np.frombuffer(roots, np.uint8).reshape(24, 24)
    assert (thumb[12:] == 255).sum() == 12
    assert (thumb[12:] == 255).any(0).sum() == 1
    # 49 of the 99 queries after the first give all to it.
    assert answer["sinks"][0] == pytest.approx([49 / 99], abs=1e-3)


def nan(layers: list[np.ndarray]) -> list[np.ndarray]:
    layers[1][2, 3, 0] = np.nan
    return layers


@pytest.mark.parametrize(
    ("weights", "tokens", "how", "sentence"),
    [
        (made(), ["a"] * 3, {}, "have 4 keys, but 3 tokens are given"),
        (made(), [], {}, "there are no tokens"),
        (made(), "the dog", {}, "tokens is one string"),
        (made(), ["a", "b", 3, "d"], {}, "token 2 is int 3, not a string"),
        (made(), ["a"] * 2000, {}, "2,000 tokens are too many"),
        ([], TOKENS, {}, "there are no weights"),
        (made()[0], TOKENS, {}, "shape (4, 4, 4): give a list"),
        ([np.ones((4, 4))], TOKENS, {}, "layer 0 has shape (4, 4): it should be"),
        (
            [np.stack([made()[0]] * 2)],
            TOKENS,
            {},
            "(2, 4, 4, 4): it should be H T S; one prompt at a time",
        ),
        ([made()[0], made()[1][:3]], TOKENS, {}, "layer 1 has shape (3, 4, 4), but"),
        (made(n_queries=4), TOKENS, {"n_kv_heads": 3}, "4 query heads cannot share 3"),
        (made(), TOKENS, {"n_kv_heads": 0}, "cannot share 0 KV heads"),
        (made(), TOKENS, {"layers": [0, 2]}, "choose from the 2 layers given, 0 to 1"),
        (made(), TOKENS, {"layers": []}, "choose from the 2 layers"),
        (nan(made()), TOKENS, {}, "layer 1, head 2: the weights of query 3 contain"),
        ([2 * w for w in made()], TOKENS, {}, "query 0 sum to 2.000, not 1"),
        ([np.tile([2.0, -1, 0, 0], (1, 4, 1))], TOKENS, {}, "fall below 0"),
        ([["a"]], TOKENS, {}, "layer 0 must be numbers"),
        ([np.ones((0, 4, 4))], TOKENS, {}, "it needs a head"),
        ([np.full((1, 5, 4), 0.25)], TOKENS, {}, "no more queries than keys"),
    ],
)
def test_bad_input_is_a_sentence(
    weights: Any, tokens: Any, how: dict[str, Any], sentence: str
) -> None:
    view = AttentionView(weights, tokens, **how)
    assert view.sentence is not None
    assert sentence in view.sentence
    assert repr(view) == f"AttentionView: {view.sentence}"


def test_what_it_does_not_know() -> None:
    view = AttentionView(made(), TOKENS)
    with pytest.raises(ValueError, match="no layer 3 in 16 bits among 2"):
        view.answer("layer", {"layer": 3, "bits": 16})
    with pytest.raises(ValueError, match="knows nothing of 'heads'"):
        view.answer("heads", {})


def test_a_page_that_would_be_too_large_is_not_written(tmp_path: Any) -> None:
    row = np.full((1, 1, 1024), 1 / 1024, np.float32)
    layer = np.broadcast_to(row, (32, 1024, 1024))
    view = AttentionView([layer, layer], ["x"] * 1024)
    wanted = 3 * 32 * 1024 * 1024 * 4 // 3
    assert wanted > LARGEST_PAGE
    sentence = f"would have {wanted / 1e6:.0f} MB, 60 MB are the most: keep fewer"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        view.to_html(tmp_path / "large.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_128_tokens_stays_small(tmp_path: Any) -> None:
    layers = made(n_layers=30, n_heads=9, n_queries=128, n_keys=128)
    view = AttentionView(layers, ["x"] * 128, n_kv_heads=3)
    assert view.data["saved_bits"] == 8
    size = view.to_html(tmp_path / "view.html").stat().st_size
    assert 3e6 < size < 4e6
    assert AttentionView(made(), TOKENS).data["saved_bits"] == 16


@pytest.mark.parametrize("n_kv_heads", [None, 1, 2, 4])
def test_the_picture_frames_families(n_kv_heads: int | None) -> None:
    figure = AttentionView(made(), TOKENS, n_kv_heads=n_kv_heads).draw()
    said = [text.get_text() for text in figure.texts]
    families = [text for text in said if text.startswith("KV head")]
    assert (
        families
        == {
            None: [],
            1: ["KV head 0: query heads 0 1 2 3"],
            2: ["KV head 0: query heads 0 1", "KV head 1: query heads 2 3"],
            4: [f"KV head {i}: query head {i}" for i in range(4)],
        }[n_kv_heads]
    )
    assert len(figure.axes) == 4
    assert figure.axes[0].get_yticklabels()[1].get_text() == "·dog"


def test_the_picture_shows_the_layer_that_it_opens_with() -> None:
    layers = made()
    view = AttentionView(layers, TOKENS)
    figure = view.draw()
    opens = view.data["opens"]
    assert f"layer {opens}" in figure.texts[0].get_text()
    for axes, head in zip(figure.axes, layers[opens], strict=True):
        assert np.allclose(axes.images[0].get_array(), np.sqrt(head))


@pytest.mark.parametrize("word", ["$x$", "\u0301", "", "שלום", "<b>", "日本"])
def test_any_token_can_be_drawn(word: str) -> None:
    bundle, _ = AttentionView(made(), [word] * 4)._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR")


def test_many_heads_take_several_lines() -> None:
    layers = made(n_layers=1, n_heads=32)
    figure = AttentionView(layers, TOKENS, n_kv_heads=8).draw()
    tops = {round(axes.get_position().y0, 3) for axes in figure.axes}
    assert len(tops) == 4
    labels = [t.get_text() for t in figure.texts if t.get_text().startswith("KV")]
    assert labels[-1] == "KV head 7: query heads 28 29 30 31"
