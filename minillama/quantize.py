"""Quantisation: weights in 8 or 4 bits, so that fewer bytes are read for each token.

A weight becomes a small whole number and shares a scale with its neighbours. int8 has
one scale a row; int4 has a scale and a zero for each 32 weights, since 16 values are
few. The classes compute as plainly as can be: back to floating point, then multiply.
Faster products with the same numbers are a matter of `minillama.fast`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType as Packing
from jaxtyping import Float, Float16, Int8, UInt8
from torch import Tensor, nn

from minillama.swap import swap_modules

GROUP = 32
"""Weights that share a scale, in int4 and in GGUF's Q4_0, Q4_1 and Q8_0."""


class Int8Linear(nn.Module):
    """A Linear whose weight is q * scale: one byte a weight, one scale a row.

    GGUF's Q8_0 has a scale for each 32 weights of a row: `scale` then has more columns.
    """

    q: Tensor
    scale: Tensor

    def __init__(self, q: Int8[Tensor, "N K"], scale: Float16[Tensor, "N G"]) -> None:
        super().__init__()
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.out_features, self.in_features = q.shape

    @classmethod
    def from_weight(cls, weight: Float[Tensor, "N K"]) -> "Int8Linear":
        """Round each row to -127 ... 127, with the scale that its largest weight asks.

        No weight is off by more than half a scale, 1/254 of the row's largest.
        """
        weight = weight.float()
        # Rounded first: the numbers are then the best for the scale that is kept.
        scale = _kept(weight.abs().amax(1, keepdim=True) / 127)
        q = (weight / scale.float()).round().clamp(-127, 127)
        return cls(q.to(torch.int8), scale)

    def weight(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "N K"]:
        """The weight in floating point, as the product uses it."""
        q = self.q.unflatten(1, (self.scale.shape[1], -1))
        return (q * self.scale[..., None].float()).flatten(1).to(dtype)

    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... N"]:
        return F.linear(x, self.weight(x.dtype))


class Int4Linear(nn.Module):
    """A Linear whose weight is q * scale + zero, with q from 0 to 15 and groups of 32.

    Two weights share a byte: of a group's 16 bytes, byte i holds weight i in its lower
    and weight i + 16 in its upper four bits, as in GGUF. 5 bits a weight in all.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(
        self,
        packed: UInt8[Tensor, "N K/2"],
        scale: Float16[Tensor, "N G"],
        zero: Float16[Tensor, "N G"],
    ) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.out_features, self.in_features = len(packed), 2 * packed.shape[1]

    @classmethod
    def from_weight(cls, weight: Float[Tensor, "N K"]) -> "Int4Linear":
        """Spread 16 values evenly from the smallest to the largest weight of a group.

        No weight is off by more than half a step, 1/30 of its group's range.
        """
        groups = _groups(weight.float())  # N G 32
        zero = groups.amin(-1).half()
        scale = _kept((groups.amax(-1) - zero.float()) / 15)
        q = (groups - zero.float()[..., None]) / scale.float()[..., None]
        q = q.round().clamp(0, 15).to(torch.uint8)
        low, high = q.chunk(2, -1)  # N G 16 each
        return cls((low | high << 4).flatten(1), scale, zero)

    def weight(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "N K"]:
        """The weight in floating point, as the product uses it."""
        both = self.packed.unflatten(1, (-1, GROUP // 2))  # N G 16
        q = torch.cat((both & 15, both >> 4), -1)  # N G 32
        wide = q * self.scale.float()[..., None] + self.zero.float()[..., None]
        return wide.flatten(1).to(dtype)

    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... N"]:
        return F.linear(x, self.weight(x.dtype))


Small = Int8Linear | Int4Linear
KINDS: dict[str, type[Small]] = {"int8": Int8Linear, "int4": Int4Linear}


def quantize(model: nn.Module, kind: str) -> list[str]:
    """Quantise every Linear of a model in place, and return their names.

    An output that is tied to the embeddings parts from them, and becomes int8 also
    where `kind` is "int4": each of its rows decides over one token alone. Embeddings
    and norms stay as they are, since of the one a row is read a token, and the others
    are small.
    """
    make = maker(kind)
    tied = _tied_outputs(model)

    def small(linear: nn.Module) -> nn.Module:
        assert isinstance(linear, nn.Linear)
        return make(linear.weight.detach(), tied=linear in tied)

    return swap_modules(model, nn.Linear, small, untie=True)


def maker(kind: str) -> Callable[..., Small]:
    """The function `(weight, tied=False) -> module` for "int8" or "int4"."""
    if kind not in KINDS:
        raise ValueError(f"quantize is {kind!r}: choose int8, int4 or None")

    def make(weight: Tensor, *, tied: bool = False) -> Small:
        return (Int8Linear if tied else KINDS[kind]).from_weight(weight)

    return make


def joined(parts: Sequence[Small]) -> Small:
    """One Linear whose rows are those of several of the same kind."""
    buffers = zip(*(part.buffers() for part in parts), strict=True)
    return type(parts[0])(*map(torch.cat, buffers))


def from_blocks(blocks: np.ndarray, packing: Packing) -> Small | None:
    """The Linear that lies in a GGUF file, its bits as they are; None for other types.

    Q4_0 is scale * (q - 8), so its zero is -8 * scale, which float16 holds exactly.
    Q4_1 is scale * q + zero, and Q8_0 is scale * q. Source: ggml's block formats.
    """
    raw = torch.from_numpy(blocks)
    if packing == Packing.Q8_0:
        block = raw.unflatten(1, (-1, 34))
        q = block[..., 2:].flatten(1).view(torch.int8)
        return Int8Linear(q, _halves(block, 0))
    if packing == Packing.Q4_1:
        block = raw.unflatten(1, (-1, 20))
        packed = block[..., 4:].flatten(1)
        return Int4Linear(packed, _halves(block, 0), _halves(block, 2))
    if packing == Packing.Q4_0:
        block = raw.unflatten(1, (-1, 18))
        scale = _halves(block, 0)
        return Int4Linear(block[..., 2:].flatten(1), scale, -8 * scale)
    return None


def _halves(block: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block."""
    return block[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _groups(weight: Tensor) -> Tensor:
    if weight.shape[1] % GROUP:
        raise ValueError(
            f"a Linear of {weight.shape[1]} inputs cannot be int4, which takes "
            f"multiples of {GROUP}: choose int8"
        )
    return weight.unflatten(1, (-1, GROUP))


def _kept(scale: Tensor) -> Tensor:
    """A scale as float16 holds it, and 1 where all weights are equal."""
    half = scale.half()
    return torch.where(half > 0, half, torch.ones_like(half))


def _tied_outputs(model: nn.Module) -> set[nn.Module]:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linears = (m for m in model.modules() if isinstance(m, nn.Linear))
    return {linear for linear in linears if id(linear.weight) in tables}
