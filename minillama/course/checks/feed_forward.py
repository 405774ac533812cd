"""Checks of notebook 05: SwiGLU, the block, the width of the feed-forward."""

import math
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


# 5.3 block: the parts are handed in as functions

Part = Callable[[Tensor], Tensor]


def block(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    """One layer of Llama, made of its four parts."""
    x = x + attention(attention_norm(x))
    return x + feed_forward(ffn_norm(x))


def _in_names(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    found = attention(attention_norm(x))
    middle = x + found
    computed = feed_forward(ffn_norm(middle))
    return x + found + computed


def _with_torch_add(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    for norm, part in ((attention_norm, attention), (ffn_norm, feed_forward)):
        x = torch.add(part(norm(x)), x)
    return x


def _with_parts(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Attention and feed-forward are a matrix each here, and one of them bends."""

    def block(
        x: Tensor,
        attention_norm: Tensor,
        attention: Tensor,
        ffn_norm: Tensor,
        feed_forward: Tensor,
    ) -> Any:
        def norm(weight: Tensor) -> Part:
            return lambda x: F.rms_norm(x, x.shape[-1:], weight, 1e-5)

        return theirs(
            x,
            norm(attention_norm),
            lambda x: x @ attention.T,
            norm(ffn_norm),
            lambda x: F.relu(x @ feed_forward.T),
        )

    return block


def _layers(rng: torch.Generator) -> Iterable[Case]:
    yield (
        torch.tensor([[1.0, 7.0]]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([[1.0, 1.0], [0.0, 2.0]]),
        torch.tensor([3.0, 1.0]),
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
    )
    odd = 2 * int(torch.randint(2, 5, (1,), generator=rng)) + 1
    for shape in ((1, 3, 4), (2, 3, 6), (2, 2, odd)):
        dim = shape[-1]
        yield (
            2 * torch.randn(shape, generator=rng) + 1,
            torch.rand(dim, generator=rng) + 0.5,
            torch.randn(dim, dim, generator=rng),
            torch.rand(dim, generator=rng) + 0.5,
            torch.randn(dim, dim, generator=rng),
        )


def _only_one_sum(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    middle = x + attention(attention_norm(x))
    return feed_forward(ffn_norm(middle))


def _forgetful(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    middle = x + attention(attention_norm(x))
    return x + feed_forward(ffn_norm(middle))


def _post_norm(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    x = attention_norm(x + attention(x))
    return ffn_norm(x + feed_forward(x))


def _normed_stream(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    x = attention_norm(x)
    x = ffn_norm(x + attention(x))
    return x + feed_forward(x)


def _no_sums(
    x: Tensor, attention_norm: Part, attention: Part, ffn_norm: Part, feed_forward: Part
) -> Tensor:
    return feed_forward(ffn_norm(attention(attention_norm(x))))


def _same(x: Tensor) -> Tensor:
    return x


check_block = Check(
    name="5.3",
    title="block",
    reference=block,
    adapt=_with_parts,
    inputs=_layers,
    solutions=(_in_names, _with_torch_add),
    mistakes={
        "Nothing is added: each part takes the place of the stream. Llama adds what "
        "each part found to the stream: x = x + part(norm(x)).": _no_sums,
        "The stream is not added after attention. Llama adds what attention found to "
        "it: x = x + attention(...).": lambda x, an, a, fn, f: _forgetful(
            a(an(x)), an, lambda x: 0 * x, fn, f
        ),
        "The stream is not added after the feed-forward. Llama adds what it computed: "
        "x + feed_forward(...).": _only_one_sum,
        "What attention found is lost at the second sum. Llama adds the feed-forward "
        "to the stream that has it already: name both sums x.": _forgetful,
        "The norms stand after the sums (post-norm). Llama norms what a part reads and "
        "leaves the stream alone: x + part(norm(x)).": _post_norm,
        "The stream itself is normed. Llama hands a normed copy to the part and adds "
        "to the stream as it was: x + part(norm(x)).": _normed_stream,
        "What the parts give is normed, not what they read. In Llama the norm comes "
        "first: part(norm(x)).": lambda x, an, a, fn, f: block(
            x, _same, lambda x: an(a(x)), _same, lambda x: fn(f(x))
        ),
        "Both parts read the same x, side by side. In Llama the feed-forward reads "
        "the stream that attention has added to.": lambda x, an, a, fn, f: (
            x + a(an(x)) + f(fn(x))
        ),
        "The feed-forward comes first. In Llama attention gathers, then the "
        "feed-forward works on it.": lambda x, an, a, fn, f: block(x, fn, f, an, a),
        "The two norms are exchanged. attention_norm stands before attention, ffn_norm "
        "before the feed-forward.": lambda x, an, a, fn, f: block(x, fn, a, an, f),
        "Attention reads the stream without its norm. Llama norms what each part "
        "reads.": lambda x, an, a, fn, f: block(x, _same, a, fn, f),
        "The feed-forward reads the stream without its norm. Llama norms what each "
        "part reads.": lambda x, an, a, fn, f: block(x, an, a, _same, f),
        "Both parts read the stream without a norm. Llama norms what each part "
        "reads.": lambda x, an, a, fn, f: block(x, _same, a, _same, f),
    },
)

# 5.4 how wide the feed-forward is


def ffn_width(dim: int, multiplier: float, multiple_of: int) -> int:
    """Meta's rule: 8/3 of dim, times a factor, up to a round number."""
    width = int(multiplier * (8 * dim // 3))
    return -(-width // multiple_of) * multiple_of


def _up_by_steps(dim: int, multiplier: float, multiple_of: int) -> int:
    width = multiple_of
    while width < int(dim * 4 * 2 / 3 * multiplier):
        width += multiple_of
    return width


def _of(
    round_to: Callable[[float, int], float], wide: float = 8 / 3
) -> Callable[[int, float, int], int]:
    """A wrong width: other rounding, or another factor of dim."""
    return lambda dim, by, to: int(round_to(by * int(wide * dim + 1e-6), to))


def _up(width: float, to: int) -> int:
    return math.ceil(int(width) / to) * to


def _sizes(rng: torch.Generator) -> Iterable[Case]:
    yield 4096, 1.3, 1024  # Llama 3 8B
    yield 8192, 1.3, 4096  # Llama 3 70B
    yield 576, 1.0, 256  # SmolLM2: 1536, a multiple of 256 already
    yield 4096, 1.0, 256  # Llama 2 7B
    yield 64 * int(torch.randint(7, 99, (1,), generator=rng)), 1.3, 256


check_ffn_width = Check(
    name="5.4",
    title="ffn_width",
    reference=ffn_width,
    inputs=_sizes,
    solutions=(
        _up_by_steps,
        lambda dim, by, to: math.ceil(int(by * int(8 * dim / 3)) / to) * to,
    ),
    mistakes={
        "The width is rounded down to the multiple. Llama rounds up.": _of(
            lambda width, to: width // to * to
        ),
        "The width is rounded to the nearest multiple. Llama rounds up.": _of(
            lambda width, to: round(width / to) * to
        ),
        "The width is not rounded to a multiple. Llama rounds up to one of "
        "multiple_of.": _of(lambda width, to: width),
        "A whole multiple is added even where the width is one already. Llama leaves "
        "that as it is.": _of(lambda width, to: (width // to + 1) * to),
        "The width is 4 times dim, as with two matrices. Llama has three, and takes "
        "8/3.": _of(_up, 4),
        "The width is 4 times dim, and not rounded. Llama has three matrices, so it "
        "takes 8/3, and rounds up to a multiple.": _of(lambda width, to: width, 4),
        "The width is 2/3 of dim. Llama takes 2/3 of 4 dim, which is 8/3 of it.": _of(
            _up, 2 / 3
        ),
        "The multiplier is not used. Llama 3 widens by 1.3 before it rounds.": (
            lambda dim, by, to: _up(8 * dim / 3, to)
        ),
        "The multiplier comes after the rounding. Llama multiplies first and rounds "
        "last.": lambda dim, by, to: int(by * _up(8 * dim / 3, to)),
    },
)
