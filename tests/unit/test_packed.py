"""PyTorch's packed products against dequantise-then-multiply in float64."""

import pytest
import torch
from loud import loud_model

from minillama.packed import PackedInt4Linear, PackedInt8Linear, use_packed_products
from minillama.quantize import Int4Linear, Int8Linear, quantize


def weight(rows: int = 48, columns: int = 128) -> torch.Tensor:
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return w * torch.logspace(-2, 1, rows)[:, None]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_products_are_within_what_bfloat16_gives(kind: str, device: str) -> None:
    w = weight().to(device)
    if kind == "int8":
        plain = Int8Linear.from_weight(w)
        if device == "cuda":
            pytest.skip("int8 on CUDA is dequantised in the product that is compiled")
        packed = PackedInt8Linear(plain)
    else:
        plain = Int4Linear.from_weight(w)
        packed = PackedInt4Linear(plain)
    for count in (1, 3, 40):
        x = torch.randn(count, 128, device=device)
        want = x.double() @ plain.weight().double().T
        bound = x.double().norm(dim=1)[:, None] * plain.weight().double().norm(dim=1)
        error = ((packed(x) - want).abs() / bound).max().item()
        assert error < 2**-7, error


def test_a_model_without_a_compiler() -> None:
    model = loud_model(dim=64, ffn_dim=96, vocab_size=144)
    quantize(model, "int4")
    tokens = torch.randint(144, (2, 20))
    want = model(tokens)
    names = use_packed_products(model)
    assert len(names) == 3 * 7 + 1
    error = ((model(tokens) - want).std() / want.std()).item()
    assert error < 0.05
    assert use_packed_products(loud_model()) == []
