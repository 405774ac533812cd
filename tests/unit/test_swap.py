"""Changing the structure of a built model."""

import gc
import weakref
from typing import Any

import pytest
import torch
from loud import loud_model
from torch import Tensor, nn

from minillama.feed_forward import FeedForward
from minillama.model import Llama
from minillama.swap import swap_modules

TOKENS = torch.arange(10)[None]


class Scaled(nn.Module):
    """What a quantised Linear looks like: numbers of its own, and a factor."""

    def __init__(self, linear: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        assert isinstance(linear, nn.Linear)
        self.register_buffer("numbers", linear.weight.detach().clone() * factor)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.numbers.mT


class Adapted(nn.Module):
    """What LoRA looks like: the layer that was there, and something beside it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


def linears(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]


def test_by_class() -> None:
    model = loud_model()
    want, before = model(TOKENS), linears(model)
    assert len(before) == 3 * 7 + 1
    assert swap_modules(model, nn.Linear, Scaled) == before
    assert linears(model) == []
    torch.testing.assert_close(model(TOKENS), want, rtol=1e-4, atol=1e-4)


def test_by_name() -> None:
    model = loud_model()
    want = model(TOKENS)
    swapped = swap_modules(
        model,
        lambda name, module: name.endswith("attention.wq"),
        lambda old: Scaled(old, 1.5),
    )
    assert swapped == [f"layers.{n}.attention.wq" for n in range(3)]
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.wq.numbers /= 1.5
    torch.testing.assert_close(model(TOKENS), want, rtol=1e-4, atol=1e-4)


def test_match_sees_name_and_module() -> None:
    model = loud_model()
    shapes: list[tuple[int, ...]] = []

    def match(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and module.weight.shape[0] == 80

    def make(old: nn.Module) -> nn.Module:
        shapes.append(tuple(old.weight.shape))  # type: ignore[union-attr]
        return Scaled(old)

    names = swap_modules(model, match, make)
    assert names == [
        f"layers.{n}.feed_forward.{w}" for n in range(3) for w in ("w_gate", "w_up")
    ]
    assert shapes == [(80, 48)] * 6


def test_what_is_made_may_hold_what_was_there() -> None:
    """It is not swapped again inside of itself."""
    model = loud_model()
    swap_modules(model, FeedForward, Adapted)
    assert isinstance(model.layers[0].feed_forward, Adapted)
    assert isinstance(model.layers[0].feed_forward.inner, FeedForward)
    swap_modules(model, nn.Linear, Adapted)
    assert linears(model)[0] == "layers.0.attention.wq.inner"
    assert len(linears(model)) == 22


def test_the_mode_is_kept() -> None:
    for training in (True, False):
        model = loud_model().train(training)
        swap_modules(model, nn.Linear, Scaled)
        assert all(module.training is training for module in model.modules())


def test_each_is_let_go_before_the_next_is_made() -> None:
    model = loud_model()
    gone: list[weakref.ref[Any]] = []

    def make(old: nn.Module) -> nn.Module:
        assert all(ref() is None for ref in gone), "an old weight is still held"
        gone.append(weakref.ref(old.weight))  # type: ignore[arg-type]
        return Scaled(old)

    gc.disable()
    try:
        swap_modules(model, nn.Linear, make)
    finally:
        gc.enable()
    assert len(gone) == 22


def test_a_module_in_two_places_is_made_once() -> None:
    model = loud_model()
    model.layers[2].feed_forward = model.layers[0].feed_forward
    want = model(TOKENS)
    names = swap_modules(model, FeedForward, Adapted)
    assert names == [f"layers.{n}.feed_forward" for n in (0, 2, 1)]
    assert model.layers[2].feed_forward is model.layers[0].feed_forward
    assert model.layers[1].feed_forward is not model.layers[0].feed_forward
    for layer in model.layers[:2]:
        layer.feed_forward = layer.feed_forward.inner
    model.layers[2].feed_forward = model.layers[0].feed_forward
    assert torch.equal(model(TOKENS), want)


# Tied embeddings


def is_head(name: str, module: nn.Module) -> bool:
    return name == "output"


def unchanged(model: Llama) -> bool:
    return len(linears(model)) == 22 and (
        model.output.weight is model.tok_embeddings.weight
    )


@pytest.mark.parametrize("match", [nn.Linear, is_head])
def test_tied_weights_do_not_part_silently(match: Any) -> None:
    model = loud_model(tied_embeddings=True)
    with pytest.raises(
        ValueError, match=r"output shares a weight with tok_embeddings .* untie=True"
    ):
        swap_modules(model, match, Scaled)
    assert unchanged(model)


def test_the_embeddings_side_of_a_tie() -> None:
    model = loud_model(tied_embeddings=True)
    with pytest.raises(ValueError, match="tok_embeddings shares a weight with output"):
        swap_modules(model, nn.Embedding, lambda old: nn.Embedding(131, 48))
    assert unchanged(model)


def test_tied_weights_may_part() -> None:
    model = loud_model(tied_embeddings=True)
    want = model(TOKENS)
    assert swap_modules(model, is_head, Scaled, untie=True) == ["output"]
    torch.testing.assert_close(model(TOKENS), want, rtol=1e-4, atol=1e-4)


def test_a_tie_that_the_new_module_keeps() -> None:
    model = loud_model(tied_embeddings=True)
    assert swap_modules(model, is_head, Adapted) == ["output"]
    assert model.output.inner.weight is model.tok_embeddings.weight


def test_the_rest_of_a_tied_model_is_free() -> None:
    model = loud_model(tied_embeddings=True)
    names = swap_modules(
        model, lambda n, m: isinstance(m, nn.Linear) and n != "output", Scaled
    )
    assert len(names) == 21
    assert model.output.weight is model.tok_embeddings.weight


# What is refused


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (nn.Conv2d, "no module matches: the names here are like tok_embeddings, layer"),
        (lambda n, m: n.endswith("w1"), "no module matches"),
        (lambda n, m: True, "the model itself matches"),
        (Llama, "the model itself matches"),
        (
            lambda n, m: "attention" in n and "norm" not in n,
            r"both layers\.0\.attention and layers\.0\.attention\.wq inside it match",
        ),
    ],
)
def test_matches_that_cannot_be_swapped(match: Any, words: str) -> None:
    model = loud_model()
    made: list[nn.Module] = []
    with pytest.raises(ValueError, match=words):
        swap_modules(model, match, lambda old: made.append(old) or old)
    assert made == []
    assert len(linears(model)) == 22


def test_what_is_made_must_be_a_module() -> None:
    model = loud_model()
    with pytest.raises(
        ValueError, match=r"returned NoneType for layers\.0\.attention\.wq"
    ):
        swap_modules(model, nn.Linear, lambda old: None)  # type: ignore[arg-type]
    assert len(linears(model)) == 22


def test_an_error_in_make_is_handed_on() -> None:
    model = loud_model()
    with pytest.raises(ZeroDivisionError):
        swap_modules(model, nn.Linear, lambda old: 1 / 0)  # type: ignore[arg-type]
    assert len(linears(model)) == 22
