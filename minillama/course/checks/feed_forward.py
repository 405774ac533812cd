"""Checks of notebook 05: SwiGLU."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillama.course.check import Case, Check, fill
from minillama.feed_forward import FeedForward


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """The feed-forward as one function; weights are (out, in), as in nn.Linear."""
    return (F.silu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _by_sigmoid(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    gate, up = F.linear(x, w_gate), F.linear(x, w_up)
    return F.linear(gate / (1 + torch.exp(-gate)) * up, w_down)


def _in_one_product(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    gate, up = torch.einsum("...d,fd->...f", x, torch.cat((w_gate, w_up))).chunk(2, -1)
    return torch.einsum("...f,df->...d", gate * gate.sigmoid() * up, w_down)


def _with(
    inner: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A wrong SwiGLU that joins gate and up in another way."""
    return lambda x, w_gate, w_up, w_down: inner(x @ w_gate.T, x @ w_up.T) @ w_down.T


def _inputs(rng: torch.Generator) -> Iterable[Case]:
    yield (
        torch.tensor([[1.0, -2.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
        torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]),
    )
    wide = int(torch.randint(9, 20, (1,), generator=rng))
    for shape, ffn_dim in (((4,), 6), ((3, 4), 10), ((2, 5, 8), wide)):
        dim = shape[-1]
        yield (
            torch.randn(shape, generator=rng),
            torch.randn(ffn_dim, dim, generator=rng),
            torch.randn(ffn_dim, dim, generator=rng),
            torch.randn(dim, ffn_dim, generator=rng) / ffn_dim**0.5,
        )


_MISTAKES: dict[str, Any] = {
    "Gate and up are exchanged: silu is on w_up. Llama gates with silu(w_gate x) and "
    "leaves w_up x as it is.": _with(lambda gate, up: gate * F.silu(up)),
    "The gate is a sigmoid (GLU). Llama's is silu: the gate times its sigmoid.": _with(
        lambda gate, up: gate.sigmoid() * up
    ),
    "The gate is a ReLU. Llama's is silu, which is smooth and a little negative below "
    "zero.": _with(lambda gate, up: gate.relu() * up),
    "The gate is a GELU. Llama's is silu: the gate times its sigmoid.": _with(
        lambda gate, up: F.gelu(gate) * up
    ),
    "The gate has no silu: two matrices multiplied, without a bend. Llama puts silu on "
    "w_gate x.": _with(lambda gate, up: gate * up),
    "silu comes after the product. Llama puts it on the gate alone, then multiplies: "
    "silu(w_gate x) * w_up x.": _with(lambda gate, up: F.silu(gate * up)),
    "silu is on both. Llama puts it on the gate alone.": _with(
        lambda gate, up: F.silu(gate) * F.silu(up)
    ),
    "Gate and up are added. Llama multiplies them, so that a gate near zero lets "
    "nothing through.": _with(lambda gate, up: F.silu(gate) + up),
    "w_up is not used: that is the two-matrix network of older models. Llama "
    "multiplies silu(w_gate x) with w_up x.": _with(lambda gate, up: F.silu(gate)),
    "w_gate is not used: that is the two-matrix network of older models. Llama "
    "multiplies w_up x with silu(w_gate x).": _with(lambda gate, up: F.silu(up)),
}

check_swiglu = Check(
    name="5.1",
    title="swiglu",
    reference=swiglu,
    inputs=_inputs,
    solutions=(_by_sigmoid, _in_one_product),
    mistakes=_MISTAKES,
)


def _with_weights(cls: type[nn.Module]) -> Callable[..., Any]:
    def feed_forward(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Any:
        names = {"w_gate.weight": w_gate, "w_up.weight": w_up, "w_down.weight": w_down}
        return fill(cls(w_gate.shape[1], w_gate.shape[0]), names)(x)

    return feed_forward


class _Linears(nn.Module):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.w_gate = nn.Linear(dim, ffn_dim, bias=False)
        self.w_up = nn.Linear(dim, ffn_dim, bias=False)
        self.w_down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _by_sigmoid(x, self.w_gate.weight, self.w_up.weight, self.w_down.weight)


class _InPlace(_Linears):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.w_gate(x)
        return self.w_down(gate.sigmoid().mul(gate).mul_(self.w_up(x)))


check_feed_forward = Check(
    name="5.2",
    title="FeedForward",
    reference=FeedForward,
    adapt=_with_weights,
    inputs=_inputs,
    solutions=(_Linears, _InPlace),
    mistakes=_MISTAKES,
)
