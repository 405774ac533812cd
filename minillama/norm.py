"""RMSNorm: keep the direction of a vector, set its length."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scale every vector to root mean square one, then by a learned weight.

    y = x / sqrt(mean(x^2) + eps) * weight, over the last axis. Unlike LayerNorm it
    subtracts no mean. The mean of squares is taken in float32 at least: bfloat16 keeps
    8 bits, and sums of squares lose too many of them.
    Source: Zhang and Sennrich, arXiv 1910.07467.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        # Rounded before the weight is applied, as in Meta's code: the order shows in
        # the last bit of bfloat16.
        return (wide * scale).type_as(x) * self.weight
