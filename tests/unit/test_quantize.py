"""int8 and int4: the numbers that are kept, against gguf's and against arithmetic."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Packing
from loud import loud_model
from torch import nn

from minillama import load_model
from minillama.quantize import Int4Linear, Int8Linear, from_blocks, quantize


def weight(rows: int = 24, columns: int = 96, seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes, one of them with an outlier, one all zero."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator)
    w *= torch.logspace(-4, 2, rows)[:, None]
    w[3, 5] *= 50
    w[7] = 0
    return w


def test_int8_is_off_by_half_a_scale_at_most() -> None:
    w = weight()
    small = Int8Linear.from_weight(w)
    step = w.abs().amax(1, keepdim=True) / 127
    assert small.q.dtype == torch.int8
    assert small.scale.shape == (24, 1)
    # The scale itself is a float16: 2^-11 of it, times 127 steps.
    assert ((small.weight() - w).abs() <= step * (0.5 + 127 * 2**-11)).all()
    assert small.q.abs().max() <= 127
    assert (small.weight()[7] == 0).all()


def test_int8_keeps_the_largest_of_each_row_within_the_range() -> None:
    small = Int8Linear.from_weight(torch.tensor([[1.0, -2.0], [-3.0, 0.5]]))
    assert small.q.tolist() == [[64, -127], [-127, 21]]  # 63.5 goes to the even one


def test_int4_is_as_good_as_the_format_allows() -> None:
    """gguf's own Q4_1 has the same 16 steps a group; ours may not be worse."""
    w = weight()
    theirs = gguf.dequantize(gguf.quantize(w.numpy(), Packing.Q4_1), Packing.Q4_1)
    groups = w.unflatten(1, (-1, 32))
    span = (groups.amax(-1) - groups.amin(-1))[..., None]
    ours = (Int4Linear.from_weight(w).weight() - w).unflatten(1, (-1, 32))
    assert (ours.abs() <= span / 30 + span * 2**-9 + 1e-7).all()
    theirs_error = torch.from_numpy(np.square(theirs - w.numpy()).sum(1))
    assert (ours.flatten(1).square().sum(1) <= theirs_error * 1.02 + 1e-9).all()


def test_int4_layout_is_that_of_a_gguf_block() -> None:
    q = torch.arange(32) % 16
    small = Int4Linear.from_weight(q[None].float())
    assert small.scale.item() == 1
    assert small.zero.item() == 0
    low, high = q[:16], q[16:]
    assert small.packed[0].tolist() == (low + 16 * high).tolist()


@pytest.mark.parametrize("packing", [Packing.Q4_0, Packing.Q4_1, Packing.Q8_0])
def test_blocks_of_a_file_keep_their_bits(packing: Packing) -> None:
    blocks = gguf.quantize(weight().numpy(), packing)
    small = from_blocks(blocks, packing)
    assert small is not None
    want = torch.from_numpy(gguf.dequantize(blocks, packing))
    torch.testing.assert_close(small.weight(), want, rtol=2**-23, atol=0)
    assert small.in_features == 96
    assert small.out_features == 24


def test_other_blocks_are_not_taken_as_they_are() -> None:
    blocks = gguf.quantize(weight(8, 256).numpy(), Packing.Q5_0)
    assert from_blocks(blocks, Packing.Q5_0) is None


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_forward_is_dequantise_then_multiply(kind: str) -> None:
    w = weight()
    cls = {"int8": Int8Linear, "int4": Int4Linear}[kind]
    small = cls.from_weight(w)
    x = torch.randn(2, 5, 96)
    if isinstance(small, Int8Linear):
        wide = small.q.double() * small.scale.double()
    else:
        groups = small.packed.unflatten(1, (-1, 16)).long()
        q = torch.cat((groups % 16, groups // 16), -1).double()
        wide = (
            q * small.scale.double()[..., None] + small.zero.double()[..., None]
        ).flatten(1)
    want = torch.einsum("btk,nk->btn", x.double(), wide)
    size = want.abs().amax((0, 1))
    assert ((small(x).double() - want).abs() <= 1e-5 * size + 1e-12).all()
    assert small(x.bfloat16()).dtype == torch.bfloat16


def test_a_model_is_quantised_whole() -> None:
    model = loud_model(dim=64, ffn_dim=96)
    tokens = torch.randint(131, (1, 40))
    want = model(tokens)
    names = quantize(model, "int8")
    assert len(names) == 3 * 7 + 1
    assert not any(type(m) is nn.Linear for m in model.modules())
    error = (model(tokens) - want).std() / want.std()
    assert 1e-4 < error < 0.05


def test_a_tied_output_becomes_int8_and_the_embeddings_stay() -> None:
    model = loud_model(dim=64, ffn_dim=96, tied_embeddings=True)
    table = model.tok_embeddings.weight
    quantize(model, "int4")
    assert type(model.output) is Int8Linear
    assert type(model.layers[0].attention.wq) is Int4Linear
    assert model.tok_embeddings.weight is table


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match="'int5': choose int8, int4 or None"):
        quantize(loud_model(), "int5")
    with pytest.raises(
        ValueError, match="48 inputs cannot be int4, which takes multiples"
    ):
        quantize(loud_model(), "int4")


@pytest.mark.model
def test_the_real_file_runs_as_the_bits_it_is(smollm2_path: Path) -> None:
    plain = load_model(smollm2_path, device="cpu")
    small = load_model(smollm2_path, device="cpu", quantize="int4", compile=False)
    count = 0
    for name, module in small.named_modules():
        if isinstance(module, (Int4Linear, Int8Linear)):
            want = plain.get_submodule(name).weight
            assert torch.equal(module.weight(), want), name
            count += 1
    assert count == 211
    assert small.tok_embeddings.weight.dtype == torch.bfloat16
    held = sum(t.nbytes for t in [*small.parameters(), *small.buffers()])
    assert held < 0.55 * sum(t.nbytes for t in plain.parameters()) / 1.5
