"""Looking inside must not change what is looked at, and must show what is there."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loud import loud_model
from torch import Tensor, nn
from torch.nn.functional import silu

from minillama.attention import Attention, attend, causal_mask
from minillama.capture import NAMES, capture, explicit_attend
from minillama.config import LlamaConfig
from minillama.generate import generate, left_pad, new_caches, prefill
from minillama.model import Llama, Parts

TOKENS = torch.arange(24).view(2, 12) * 5 % 131


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> Llama:
    return loud_model()


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def traces(model: Llama) -> list[Any]:
    """All that a capture might leave behind."""
    left: list[Any] = [layer.attention.attend for layer in model.layers]
    for module in model.modules():
        left += module._forward_hooks.values()
        left += module._forward_pre_hooks.values()
    return left


# The explicit attention


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("pad", [None, [0, 3]])
@pytest.mark.parametrize(("new", "seen"), [(9, 9), (4, 9), (1, 9)])
def test_explicit_attention_equals_the_fast_one(
    kv_heads: int, pad: list[int] | None, new: int, seen: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, new, 16, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, seen, 16, generator=generator)
    mask = causal_mask(new, seen, pad if pad is None else torch.tensor(pad))
    out, probs = explicit_attend(q, k, v, mask)
    close(out, attend(q, k, v, mask))
    assert probs.shape == (2, 6, new, seen)
    close(probs.sum(-1), torch.ones(2, 6, new))
    if mask is not None:
        assert not probs.masked_select(~mask.expand_as(probs)).any()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float32, 2e-6)]
)
def test_explicit_attention_in_low_precision(
    dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 6, 9, 16, generator=generator).to(dtype)
    k, v = torch.randn(2, 1, 2, 9, 16, generator=generator).to(dtype)
    mask = causal_mask(9, 9)
    out, probs = explicit_attend(q, k, v, mask)
    assert (out.dtype, probs.dtype) == (dtype, torch.float32)
    want = attend(q.double(), k.double(), v.double(), mask)
    torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=tolerance)


# What is seen


def test_the_stream_is_the_sum_of_its_parts(model: Llama) -> None:
    with capture(model, *NAMES) as seen:
        logits = model(TOKENS)
    assert [len(seen.residual), len(seen.attention)] == [4, 3]
    close(seen.residual[0], model.tok_embeddings(TOKENS).detach())
    stream = seen.residual[0]
    for layer in range(3):
        stream = stream + seen.attention_out[layer] + seen.feed_forward_out[layer]
        close(stream, seen.residual[layer + 1])
    close(model.output(model.norm(stream)), logits)


def test_attention_is_that_of_each_layer_and_head(model: Llama) -> None:
    """Recomputed from the stream that was seen, with loops over heads and queries."""
    with capture(model, "attention", "residual") as seen:
        model(TOKENS)
    cos, sin = model.rope_tables(0, 12, TOKENS.device)
    for layer, probs, x in zip(
        model.layers, seen.attention, seen.residual, strict=False
    ):
        assert probs.shape == (2, 6, 12, 12)
        normed = layer.attention_norm(x)
        q, k = layer.attention.wq(normed), layer.attention.wk(normed)
        for head in range(6):
            own = slice(16 * head, 16 * head + 16)
            shared = slice(16 * (head // 3), 16 * (head // 3) + 16)
            turned = []
            for part in (q[..., own], k[..., shared]):
                pairs = torch.view_as_complex(part.unflatten(-1, (8, 2)).contiguous())
                turned.append(torch.view_as_real(pairs * (cos + 1j * sin)).flatten(-2))
            for query in range(12):
                scores = turned[0][:, query, None] @ turned[1][:, : query + 1].mT / 4
                close(probs[:, head, query, : query + 1], scores[:, 0].softmax(-1))
                assert not probs[:, head, query, query + 1 :].any()


def test_the_feed_forward_output(model: Llama) -> None:
    with capture(model, *NAMES) as seen:
        model(TOKENS)
    for layer, before, attended, out in zip(
        model.layers,
        seen.residual,
        seen.attention_out,
        seen.feed_forward_out,
        strict=False,
    ):
        x, ff = layer.ffn_norm(before + attended), layer.feed_forward
        close(out, ff.w_down(silu(ff.w_gate(x)) * ff.w_up(x)).detach())


def test_padding_is_never_looked_at(model: Llama) -> None:
    tokens, pad = left_pad([[1, 2, 3, 4], [5, 6]])
    with capture(model, "attention") as seen:
        model(tokens, None, pad)
        model(torch.tensor([[5, 6]]))
    padded, alone = (call["attention"] for call in seen.calls)
    for both, one in zip(padded, alone, strict=True):
        assert not both[1, :, 2:, :2].any()
        close(both[1:, :, 2:, 2:], one)


def test_a_call_a_token_while_decoding(model: Llama) -> None:
    ids = TOKENS[0].tolist()
    with capture(model, "attention", "residual") as seen:
        new = generate(model, ids, max_new_tokens=4)
    assert len(seen.calls) == 4
    shapes = [tuple(call["attention"][0].shape) for call in seen.calls]
    assert shapes == [(1, 6, 12, 12), *((1, 6, 1, s) for s in (13, 14, 15))]
    assert seen.attention is seen.calls[-1]["attention"]
    # Row by row they are the attention of the whole text at once.
    with capture(model, "attention") as whole:
        model(torch.tensor([ids + new[:-1]]))
    for number, call in enumerate(seen.calls[1:]):
        for one, full in zip(call["attention"], whole.attention, strict=True):
            close(one[0, :, 0], full[0, :, 12 + number, : 13 + number])


# Nothing is changed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_same_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(torch.float32)
    model = loud_model().to(dtype)
    with torch.inference_mode():
        want = model(TOKENS)
        before = traces(model)
        with capture(model, name):
            assert torch.equal(model(TOKENS), want)
        assert traces(model) == before
        assert torch.equal(model(TOKENS), want)


def test_gradients_flow_as_before(model: Llama) -> None:
    model(TOKENS).square().sum().backward()
    want = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    with capture(model, *NAMES) as seen:
        model(TOKENS).square().sum().backward()
    for name, weight in model.named_parameters():
        assert torch.equal(weight.grad, want[name]), name
    assert not any(x.requires_grad for name in NAMES for x in getattr(seen, name))


def test_what_was_seen_can_be_written_to(model: Llama) -> None:
    with capture(model, *NAMES) as seen:
        caches = new_caches(model, 2, 14)
        logits = prefill(model, TOKENS, caches)
        for name in NAMES:
            for x in getattr(seen, name):
                x.zero_()
        assert torch.equal(model(TOKENS)[:, -1], logits)
    assert not model.tok_embeddings.weight.eq(0).all(-1).any()


def test_a_part_that_writes_in_place_does_not_change_what_was_seen() -> None:
    class InPlace(nn.Module):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(config.dim))

        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(0.5) * self.weight

    model = loud_model(parts=Parts(norm=InPlace))
    with torch.no_grad(), capture(model, "residual") as seen:
        model(TOKENS)
    close(seen.residual[0], model.tok_embeddings.weight[TOKENS].detach())


@pytest.mark.parametrize("where", ["in the block", "in the model"])
def test_all_is_put_back_after_an_exception(model: Llama, where: str) -> None:
    before = traces(model)
    assert all(function is attend for function in before)

    def fail() -> None:
        if where == "in the model":
            model(torch.tensor([[999]]))
        raise RuntimeError("a mistake of the learner's")

    with pytest.raises((RuntimeError, IndexError)), capture(model, *NAMES):
        fail()
    after = traces(model)
    assert len(after) == len(before)
    assert all(function is attend for function in after)


def test_captures_within_captures(model: Llama) -> None:
    want = model(TOKENS)
    with capture(model, "attention", "residual") as outer:
        with capture(model, "attention", "feed_forward_out") as inner:
            assert torch.equal(model(TOKENS), want)
        first = outer.attention
        model(TOKENS[:1])
    assert len(inner.calls) == 1
    assert len(outer.calls) == 2
    for ours, theirs in zip(first, inner.attention, strict=True):
        assert torch.equal(ours, theirs)
    assert all(function is attend for function in traces(model))


# What is refused


def test_unknown_names(model: Llama) -> None:
    for names, words in [
        (("attention", "logits"), "cannot capture 'logits': choose from attention, "),
        ((), "nothing to capture: choose from attention, residual, attention_out, f"),
    ]:
        with pytest.raises(ValueError, match=words), capture(model, *names):
            pass
    assert all(function is attend for function in traces(model))


def test_what_was_not_asked_for(model: Llama) -> None:
    with capture(model, "residual") as seen:
        with pytest.raises(AttributeError, match="nothing was seen"):
            seen.residual
        model(TOKENS)
        with pytest.raises(AttributeError, match=r"capture\(model, 'attention'\)"):
            seen.attention
        with pytest.raises(AttributeError, match="no 'attentoin'"):
            seen.attentoin


def test_an_attention_without_attend() -> None:
    class Closed(Attention):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            del self.attend

    model = loud_model(parts=Parts(attention=Closed))
    with (
        pytest.raises(ValueError, match="layer 0 has no `attend`"),
        capture(model, "residual", "attention"),
    ):
        pass
    assert not any(module._forward_hooks for module in model.modules())
    with capture(model, "residual"), contextlib.suppress(AttributeError):
        model(TOKENS)


def test_an_attend_that_is_no_softmax_attention(model: Llama) -> None:
    def unscaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend(q * 4, k, v, mask)

    model.layers[1].attention.attend = unscaled
    with (
        pytest.raises(ValueError, match="`attend` of layer 1 is not softmax attention"),
        capture(model, "attention"),
    ):
        model(TOKENS)
    assert model.layers[1].attention.attend is unscaled


def test_an_attend_of_the_learners_own_is_seen(model: Llama) -> None:
    def mine(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return explicit_attend(q, k, v, mask)[0]

    for layer in model.layers:
        layer.attention.attend = mine
    want = model(TOKENS)
    with capture(model, "attention") as seen:
        assert torch.equal(model(TOKENS), want)
    assert len(seen.attention) == 3
