"""Checks of notebook 03: RoPE."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from minillama.config import RopeScaling
from minillama.course.check import Case, Check
from minillama.rope import apply_rope, rope_frequencies, scale_frequencies


def _weave(even: Tensor, odd: Tensor, x: Tensor) -> Tensor:
    return torch.stack((even, odd), -1).flatten(-2).type_as(x)


def _halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.cat(turned, -1).type_as(x)


def _unwoven(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, even * sin + odd * cos), -1).type_as(x)


def _no_sin(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _weave(x[..., 0::2] * cos, x[..., 1::2] * cos, x)


def _both_minus(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return _weave(even * cos - odd * sin, odd * cos - even * sin, x)


def _both_plus(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return _weave(even * cos + odd * sin, odd * cos + even * sin, x)


def _second_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return _weave(even * sin + odd * cos, even * cos - odd * sin, x)


def _halves_woven(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return _weave(first * cos - second * sin, first * sin + second * cos, x)


def _repeated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.repeat(1, 2), sin.repeat(1, 2)
    return (x * cos + _weave(-x[..., 1::2], x[..., 0::2], x) * sin).type_as(x)


def _overwritten(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    even = even * cos - odd * sin
    return _weave(even, even * sin + odd * cos, x)


def _first_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return apply_rope(x, cos[:1].expand_as(cos), sin[:1].expand_as(sin))


def _wide(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return apply_rope(x.float(), cos, sin)


def _complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    return (x * cos + _weave(-x[..., 1::2], x[..., 0::2], x) * sin).type_as(x)


def _by_hand(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for t in range(x.shape[-2]):
        for i in range(x.shape[-1] // 2):
            a, b = x[..., t, 2 * i], x[..., t, 2 * i + 1]
            out[..., t, 2 * i] = a * cos[t, i] - b * sin[t, i]
            out[..., t, 2 * i + 1] = a * sin[t, i] + b * cos[t, i]
    return out


def _turns(rng: torch.Generator) -> Iterable[Case]:
    quarter = torch.tensor([[0.0, 0.0], [math.pi / 2, math.pi / 6]])
    yield torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2), quarter.cos(), quarter.sin()
    for shape in ((3, 6), (2, 5, 8), (2, 3, 7, 4)):
        x = torch.randn(shape, generator=rng)
        start = torch.randint(9, (1,), generator=rng)
        clocks = rope_frequencies(shape[-1], 100.0)
        angles = torch.outer(start + torch.arange(shape[-2]), clocks)
        yield x, angles.cos(), angles.sin()
    yield x.bfloat16(), angles.cos(), angles.sin()


check_apply_rope = Check(
    name="3.1",
    title="apply_rope",
    reference=apply_rope,
    inputs=_turns,
    solutions=(_complex, _interleaved, _by_hand),
    mistakes={
        "You pair number i with number i + Dh/2. Meta's Llama pairs neighbours: "
        "0 with 1, 2 with 3.": _halves,
        "You turn the other way. Llama's first of a pair is even*cos - odd*sin, the "
        "second even*sin + odd*cos.": lambda x, cos, sin: apply_rope(x, cos, -sin),
        "The turning is right, but the pairs come out as all firsts, then all seconds. "
        "Llama weaves them again: first, second, first, second.": _unwoven,
        "Both lines have a minus, so the pair is not turned but mirrored. Llama has "
        "plus in the second: even*sin + odd*cos.": _both_minus,
        "Both lines have a plus. Llama has minus in the first: even*cos - odd*sin.": (
            _both_plus
        ),
        "The turning is right, but the second of each pair stands first. Llama keeps "
        "the order within a pair.": _second_first,
        "Number i is paired with number i + Dh/2, and the two are then woven as "
        "neighbours. Meta's Llama takes neighbours, x[..., 0::2] and x[..., 1::2].": (
            _halves_woven
        ),
        "cos and sin are repeated as a whole: clocks 0, 1, 2, 0, 1, 2. In Llama "
        "neighbours share a clock: 0, 0, 1, 1, 2, 2 (repeat_interleave).": _repeated,
        "The second of a pair is made from the already turned first. Llama computes "
        "both from the old pair.": _overwritten,
        "Only cos is used, so vectors shrink. Llama's turning keeps every length: sin "
        "carries the other part.": _no_sin,
        "cos and sin are exchanged. Llama turns by 0 at position 0, so cos there is 1 "
        "and multiplies the number itself.": lambda x, cos, sin: apply_rope(
            x, sin, cos
        ),
        "Every position is turned by the angle of the first. Llama turns row t of x by "
        "row t of cos and sin.": _first_place,
        "The vectors come back unturned. Llama turns queries and keys by the angle of "
        "their place.": lambda x, cos, sin: x,
        "bfloat16 goes in and float32 comes out. Llama hands back the type it was "
        "given: type_as(x).": _wide,
    },
)


def _swapped_sign(head_dim: int, theta: float) -> Tensor:
    return theta ** (torch.arange(0, head_dim, 2) / head_dim)


def _frequencies(rng: torch.Generator) -> Iterable[Case]:
    yield 4, 100.0
    yield from ((8, 10_000.0), (64, 100_000.0), (128, 500_000.0))
    size = 2 * int(torch.randint(5, 40, (1,), generator=rng))
    yield size, float(torch.randint(50, 10**6, (1,), generator=rng))


check_rope_frequencies = Check(
    name="3.2",
    title="rope_frequencies",
    reference=lambda head_dim, theta: rope_frequencies(head_dim, theta),
    inputs=_frequencies,
    atol=0.0,
    solutions=(
        lambda head_dim, theta: theta ** (-torch.arange(0, head_dim, 2) / head_dim),
        lambda head_dim, theta: torch.tensor(
            [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        ),
        lambda head_dim, theta: torch.exp(
            -torch.arange(head_dim // 2) * 2 / head_dim * math.log(theta)
        ),
    ),
    mistakes={
        "The exponent lacks its minus, so each clock runs faster than the one before. "
        "Llama's clocks get slower: theta ** (-2i / head_dim).": _swapped_sign,
        "The exponent is i / head_dim. Llama divides 2i by head_dim: the last clock "
        "turns by about 1 / theta.": lambda head_dim, theta: (
            theta ** (-torch.arange(head_dim // 2) / head_dim)
        ),
        "There is a frequency for every number of a head. Llama has one for every "
        "pair: head_dim / 2 of them.": lambda head_dim, theta: (
            theta ** (-torch.arange(0, head_dim) / head_dim)
        ),
        "The number of the pair is doubled twice. Llama's exponent for pair i is "
        "-2i / head_dim.": lambda head_dim, theta: (
            theta ** (-2 * torch.arange(0, head_dim, 2) / head_dim)
        ),
        "The pairs are counted from 1. Llama's first pair has exponent 0 and turns by "
        "one radian a token.": lambda head_dim, theta: (
            theta ** (-(torch.arange(0, head_dim, 2) + 2) / head_dim)
        ),
        "The exponents run from 0 to -1, both included. Llama divides 2i by head_dim, "
        "so the last exponent stops short of -1.": lambda head_dim, theta: (
            theta ** -torch.linspace(0, 1, head_dim // 2)
        ),
        "2i is divided by head_dim with //, which rounds to whole numbers. Llama's "
        "exponents are fractions: divide with /.": lambda head_dim, theta: (
            theta ** (-torch.arange(0, head_dim, 2) // head_dim)
        ).float(),
        "theta is not used: 10000 is written out, the base of older models. Llama 3 "
        "takes the base that it is given.": lambda head_dim, theta: (
            10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        ),
        "These are the periods, in tokens for one turn. Llama wants radians a token: "
        "2 pi divided by that.": lambda head_dim, theta: (
            2 * math.pi * theta ** (torch.arange(0, head_dim, 2) / head_dim)
        ),
    },
)


def key_at(q: Tensor, distance: int, frequencies: Tensor) -> Tensor:
    """The key that answers the query `q` best from `distance` tokens before it."""
    angles = (distance * frequencies)[None]
    return apply_rope(q[None], angles.cos(), angles.sin())[0]


def _as_numbers(q: Tensor, distance: int, frequencies: Tensor) -> Tensor:
    pairs = torch.view_as_complex(q.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.exp(1j * distance * frequencies)).flatten()


def _step_by_step(q: Tensor, distance: int, frequencies: Tensor) -> Tensor:
    key = q.clone()
    for _ in range(distance):
        even, odd = key[0::2].clone(), key[1::2].clone()
        key[0::2] = even * frequencies.cos() - odd * frequencies.sin()
        key[1::2] = even * frequencies.sin() + odd * frequencies.cos()
    return key


def _aim_first_pair(q: Tensor, distance: int, frequencies: Tensor) -> Tensor:
    only = torch.cat((frequencies[:1], torch.zeros_like(frequencies[1:])))
    return key_at(q, distance, only)


def _aim_halves(q: Tensor, distance: int, frequencies: Tensor) -> Tensor:
    angles = distance * frequencies
    return _halves(q, angles.cos(), angles.sin())


def _aims(rng: torch.Generator) -> Iterable[Case]:
    yield torch.tensor([2.0, 1.0]), 1, torch.tensor([math.pi / 2])
    yield torch.tensor([2.0, 1.0, 1.0, 3.0]), 3, torch.tensor([1.0, 0.1])
    for size in (8, 16):
        distance = int(torch.randint(2, 60, (1,), generator=rng))
        q = torch.randn(size, generator=rng)
        yield q, distance, rope_frequencies(size, 100.0)


check_key_at = Check(
    name="3.3",
    title="key_at",
    reference=key_at,
    inputs=_aims,
    rtol=1e-4,
    atol=1e-4,
    solutions=(_as_numbers, _step_by_step),
    mistakes={
        "The key is turned back, so it answers best from `distance` tokens after the "
        "query. In Llama a query meets keys before it: turn the key forward, by "
        "+distance.": lambda q, d, f: key_at(q, -d, f),
        "The key is the query itself: it answers best at distance 0. In Llama the key "
        "loses the angle of `distance` tokens, so give it that angle beforehand.": (
            lambda q, d, f: q.clone()
        ),
        "The key is turned by one token, whatever the distance. In Llama each clock "
        "turns by frequency times distance.": lambda q, d, f: key_at(q, 1, f),
        "The key is turned by twice the distance. In Llama query and key differ by the "
        "distance once.": lambda q, d, f: key_at(q, 2 * d, f),
        "The key is turned by distance + 1. In Llama the word just before the query is "
        "at distance 1.": lambda q, d, f: key_at(q, d + 1, f),
        "Only the first pair is turned. In Llama every pair has a clock of its own.": (
            _aim_first_pair
        ),
        "All pairs are turned by the first clock. In Llama every pair has a frequency "
        "of its own.": lambda q, d, f: key_at(q, d, f[:1].expand_as(f)),
        "The direction is right, the length is not. In Llama a turn keeps the length: "
        "leave the key as long as the query.": lambda q, d, f: (
            key_at(q, d, f) / q.norm()
        ),
        "The key points away from the query: its score is the lowest one there. Leave "
        "out the minus.": lambda q, d, f: -key_at(q, d, f),
        "Number i is paired with number i + Dh/2. Meta's Llama pairs neighbours: "
        "0 with 1, 2 with 3.": _aim_halves,
    },
)


def _scaling(
    frequencies: Tensor, s: RopeScaling, kept: Tensor, cut: float = 1.0
) -> Tensor:
    return frequencies * (kept + (1 - kept) * cut / s.factor)


def _turned(frequencies: Tensor, s: RopeScaling) -> Tensor:
    """How often each clock turns in the old context."""
    return s.original_max_seq_len * frequencies / (2 * math.pi)


def _kept(frequencies: Tensor, s: RopeScaling) -> Tensor:
    share = _turned(frequencies, s) - s.low_freq_factor
    return (share / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)


def _no_blend(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    fast = _turned(frequencies, scaling) > scaling.high_freq_factor
    return torch.where(fast, frequencies, frequencies / scaling.factor)


def _middle_kept(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    slow = _turned(frequencies, scaling) < scaling.low_freq_factor
    return torch.where(slow, frequencies / scaling.factor, frequencies)


def _backwards(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    return _scaling(frequencies, scaling, 1 - _kept(frequencies, scaling))


def _no_two_pi(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    return _scaling(frequencies, scaling, _kept(2 * math.pi * frequencies, scaling))


def _extrapolates(frequencies: Tensor, s: RopeScaling) -> Tensor:
    share = _turned(frequencies, s) - s.low_freq_factor
    kept = share / (s.high_freq_factor - s.low_freq_factor)
    return _scaling(frequencies, s, kept)


def _multiplied(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    kept = _kept(frequencies, scaling)
    return frequencies * (kept + (1 - kept) * scaling.factor)


def _blend_of_periods(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    kept = _kept(frequencies, scaling)
    return frequencies / (kept + (1 - kept) * scaling.factor)


def _by_period(frequencies: Tensor, s: RopeScaling) -> Tensor:
    period = 2 * math.pi / frequencies
    long, short = (
        s.original_max_seq_len / limit
        for limit in (s.low_freq_factor, s.high_freq_factor)
    )
    return _scaling(frequencies, s, ((long - period) / (long - short)).clamp(0, 1))


def _span_of_high(frequencies: Tensor, s: RopeScaling) -> Tensor:
    share = _turned(frequencies, s) - s.low_freq_factor
    return _scaling(frequencies, s, (share / s.high_freq_factor).clamp(0, 1))


def _three_ranges(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    period = 2 * math.pi / frequencies
    old = scaling.original_max_seq_len
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (old / period - low) / (high - low)
    blend = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(period > old / low, frequencies / scaling.factor, blend)
    return torch.where(period < old / high, frequencies, scaled)


def _one_by_one(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    out = []
    for f in frequencies.tolist():
        turns = scaling.original_max_seq_len * f / (2 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = min(1.0, max(0.0, (turns - scaling.low_freq_factor) / span))
        out.append(kept * f + (1 - kept) * f / scaling.factor)
    return torch.tensor(out)


def _scalings(rng: torch.Generator) -> Iterable[Case]:
    def clocks(turns: list[float], s: RopeScaling) -> Tensor:
        return 2 * math.pi / s.original_max_seq_len * torch.tensor(turns)

    small = RopeScaling(original_max_seq_len=64)
    yield clocks([40.0, 2.5, 0.5], small), small
    yield clocks([8.0, 3.0, 1.5, 0.1], small), small
    yield rope_frequencies(128, 500_000.0), RopeScaling()
    yield rope_frequencies(64, 500_000.0), RopeScaling(factor=32.0)
    turns = torch.rand(20, generator=rng) * 12
    odd = RopeScaling(factor=5.0, low_freq_factor=2.0, high_freq_factor=9.0)
    yield clocks(turns.tolist(), odd), odd


check_scale_frequencies = Check(
    name="3.4",
    title="scale_frequencies",
    reference=scale_frequencies,
    inputs=_scalings,
    atol=0.0,
    solutions=(_three_ranges, _one_by_one),
    mistakes={
        "Every clock is slowed. Llama 3.1 keeps the fast ones, which turn more than "
        "high_freq_factor times in the old context.": lambda f, s: f / s.factor,
        "The clocks come back as they were. Llama 3.1 divides the slow ones by "
        "factor.": lambda f, s: f.clone(),
        "The fast clocks are slowed and the slow ones kept. Llama 3.1 does the "
        "opposite.": _backwards,
        "There is no blend. Between the two limits Llama 3.1 goes smoothly from "
        "divided to kept.": _no_blend,
        "The clocks between the limits are kept. Llama 3.1 blends them: partly kept, "
        "partly divided.": _middle_kept,
        "The blend goes on outside the limits. Llama 3.1 clamps it: below low all is "
        "divided, above high all is kept.": _extrapolates,
        "Turns are counted without 2 pi. A clock of f radians a token turns "
        "length * f / (2 pi) times, and that is what Llama 3.1 compares.": _no_two_pi,
        "The blend is one of periods (1 / frequency). Llama 3.1 blends the frequencies "
        "themselves.": _blend_of_periods,
        "The blend is linear in the period, tokens a turn. In Llama 3.1 it is linear "
        "in the turns within the old context.": _by_period,
        "The share is divided by high_freq_factor alone. Llama 3.1 divides by the way "
        "from low to high: high_freq_factor - low_freq_factor.": _span_of_high,
        "The factor 8 is written out. Llama 3.2 slows by 32: take scaling.factor.": (
            lambda f, s: scale_frequencies(f, replace(s, factor=8.0))
        ),
        "The old context of 8192 is written out. Llama reads it from its config: take "
        "scaling.original_max_seq_len.": (
            lambda f, s: scale_frequencies(f, replace(s, original_max_seq_len=8192))
        ),
        "The slow clocks are multiplied by factor. Llama 3.1 divides: they shall turn "
        "more slowly, to last for a longer text.": _multiplied,
    },
)


def to_halves(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a query or key matrix, in each head from neighbours to halves."""
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _to_neighbours(weight: Tensor, n_heads: int) -> Tensor:
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _head_by_head(weight: Tensor, n_heads: int) -> Tensor:
    heads = weight.chunk(n_heads)
    return torch.cat([rows[start::2] for rows in heads for start in (0, 1)])


def _by_number(weight: Tensor, n_heads: int) -> Tensor:
    size = len(weight) // n_heads
    inside = [*range(0, size, 2), *range(1, size, 2)]
    return weight[[head * size + i for head in range(n_heads) for i in inside]]


def _odd_first(weight: Tensor, n_heads: int) -> Tensor:
    heads = weight.unflatten(0, (n_heads, -1, 2)).flip(2)
    return heads.transpose(1, 2).flatten(0, 2)


def _columns(weight: Tensor, n_heads: int) -> Tensor:
    return torch.cat((weight[:, 0::2], weight[:, 1::2]), 1)


def _heads_for_pairs(weight: Tensor, n_heads: int) -> Tensor:
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(0, 1).flatten(0, 2)


def _heads_inside(weight: Tensor, n_heads: int) -> Tensor:
    return weight.unflatten(0, (-1, 2, n_heads)).permute(2, 1, 0, 3).flatten(0, 2)


def _rows(rng: torch.Generator) -> Iterable[Case]:
    yield torch.arange(8.0)[:, None].expand(8, 2).clone(), 1
    yield torch.arange(16.0)[:, None].expand(16, 2).clone(), 2
    for heads, size, dim in ((3, 8, 5), (2, 12, 7), (4, 10, 40)):
        yield torch.randn(heads * size, dim, generator=rng), heads
    heads = int(torch.randint(2, 6, (1,), generator=rng))
    yield torch.randn(heads * 6, 8, generator=rng), heads


check_to_halves = Check(
    name="3.5",
    title="to_halves",
    reference=to_halves,
    inputs=_rows,
    solutions=(_head_by_head, _by_number),
    mistakes={
        "This is the way back: it makes neighbours out of halves. Llama's files hold "
        "neighbours; Hugging Face wants rows 0, 2, 4, ... of a head, then 1, 3, 5, "
        "...": _to_neighbours,
        "All rows are sorted at once, so the heads are mixed. Llama's rows are n_heads "
        "blocks of head_dim rows: sort within each.": lambda w, n: to_halves(w, 1),
        "The rows are where they were: `unflatten` and `flatten` alone move nothing. "
        "Between them the axis of the pair and the axis within it change places.": (
            lambda w, n: w.clone()
        ),
        "The second of each pair comes first. Rotation turns the first towards the "
        "second: rows 0, 2, 4, ... of a head first, then 1, 3, 5, ...": _odd_first,
        "The columns are sorted, and they belong to the vector that comes in. Llama's "
        "head dimensions are the rows of the matrix.": _columns,
        "Only the first head is sorted. Llama rotates every head.": lambda w, n: (
            torch.cat((to_halves(w[: len(w) // n], 1), w[len(w) // n :]))
        ),
        "The rows of all heads are taken as if the heads alternated. In Llama's files "
        "each head's rows lie together.": _heads_inside,
        "Heads and pairs have changed places. Llama keeps the heads where they are: "
        "change pairs with the two of a pair, axes 1 and 2.": _heads_for_pairs,
        "The matrix is reordered but has kept its extra axes. The Linear wants "
        "(n_heads * head_dim, dim): flatten it again.": lambda w, n: w.unflatten(
            0, (n, -1, 2)
        ).transpose(1, 2),
    },
)
