"""PyTorch's own products with packed weights: where there is no C compiler, and CUDA.

They take bfloat16 activations and scales, so a weight is off by 1/256 of itself, and a
product by about as much: less than the quantisation itself, more than decode.c.
"""

import torch
from torch import Tensor, nn

from minillama.model import Llama
from minillama.quantize import GROUP, Int4Linear, Int8Linear
from minillama.swap import swap_modules


class PackedInt8Linear(nn.Module):
    """An `Int8Linear` of one scale a row, through `_weight_int8pack_mm` (CPU)."""

    q: Tensor
    scale: Tensor

    def __init__(self, plain: Int8Linear) -> None:
        super().__init__()
        self.register_buffer("q", plain.q)
        self.register_buffer("scale", plain.scale[:, 0].bfloat16())
        self.out_features, self.in_features = plain.q.shape

    def forward(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().reshape(-1, self.in_features)
        y = torch.ops.aten._weight_int8pack_mm(rows, self.q, self.scale)
        return y.view(*x.shape[:-1], -1).to(x.dtype)


class PackedInt4Linear(nn.Module):
    """An `Int4Linear` through PyTorch's kernel, on a CPU or on CUDA (in tiles).

    Both compute (q - 8) * scale + zero over groups of 32.
    """

    packed: Tensor
    pairs: Tensor

    def __init__(self, plain: Int4Linear) -> None:
        super().__init__()
        both = plain.packed.unflatten(1, (-1, GROUP // 2))
        q = torch.cat((both & 15, both >> 4), -1).flatten(1)  # N K
        scale = plain.scale.float()
        zero = plain.zero.float() + 8 * scale
        pairs = torch.stack((scale, zero), -1).transpose(0, 1)  # G N 2
        self.register_buffer("pairs", pairs.bfloat16().contiguous())
        self.on_cuda = plain.packed.is_cuda
        if self.on_cuda:
            # There the first of two neighbours lies in the upper bits.
            two = (q[:, ::2] << 4 | q[:, 1::2]).to(torch.uint8)
            packed = torch.ops.aten._convert_weight_to_int4pack(two, 8)
        else:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
                q.to(torch.int32), 1
            )
        self.register_buffer("packed", packed)
        self.out_features, self.in_features = plain.out_features, plain.in_features

    def forward(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().reshape(-1, self.in_features)
        product = (
            torch.ops.aten._weight_int4pack_mm
            if self.on_cuda
            else torch.ops.aten._weight_int4pack_mm_for_cpu
        )
        y = product(rows, self.packed, GROUP, self.pairs)
        return y.view(*x.shape[:-1], -1).to(x.dtype)


def use_packed_products(model: Llama) -> list[str]:
    """Swap the quantised Linears that PyTorch has a product for; return their names."""

    def fits(_: str, module: nn.Module) -> bool:
        if isinstance(module, Int8Linear):
            return module.scale.shape[1] == 1 and module.q.device.type == "cpu"
        if not isinstance(module, Int4Linear):
            return False
        if module.packed.is_cuda:  # tiles of 8 rows, of 8 times 16 columns
            return module.out_features % 8 == 0 and module.in_features % 128 == 0
        return module.packed.device.type == "cpu" and module.out_features % 16 == 0

    def make(module: nn.Module) -> nn.Module:
        if isinstance(module, Int8Linear):
            return PackedInt8Linear(module)
        assert isinstance(module, Int4Linear)
        return PackedInt4Linear(module)

    if not any(fits(name, module) for name, module in model.named_modules()):
        return []
    return swap_modules(model, fits, make)
