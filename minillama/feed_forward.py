"""SwiGLU: the part of a block that works on every token by itself."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Widen each vector, let one projection gate the other, and narrow it again.

    y = W_down (silu(W_gate x) * W_up x). Where the gate is near zero, what W_up found
    is not passed on. Meta's files call the three w1, w3 and w2.
    Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.
    """

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.w_gate = nn.Linear(dim, ffn_dim, bias=False)
        self.w_up = nn.Linear(dim, ffn_dim, bias=False)
        self.w_down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))  # ... F, then ... D
