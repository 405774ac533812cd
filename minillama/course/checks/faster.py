"""Checks of notebook 10: what bounds the speed, and weights in 8 and in 4 bits."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from minillama.course.check import Case, Check
from minillama.quantize import GROUP

# 10.1 the bound


def bound(n_weights: int, bits: int, group: int, extra: int, bandwidth: float) -> float:
    """Tokens a second at most, if every weight is read for every token.

    A weight has `bits` bits, and each `group` of weights shares `extra` bytes of scale
    and zero. `bandwidth` is in bytes a second.
    """
    return bandwidth / (n_weights * bits / 8 + n_weights / group * extra)


def _bound_by_bits(
    n_weights: int, bits: int, group: int, extra: int, bandwidth: float
) -> float:
    bits_a_weight = bits + 8 * extra / group
    return 8 * bandwidth / bits_a_weight / n_weights


def _bound_by_groups(
    n_weights: int, bits: int, group: int, extra: int, bandwidth: float
) -> float:
    groups_a_second = bandwidth / (group * bits / 8 + extra)
    return groups_a_second * group / n_weights


def _models(rng: torch.Generator) -> Iterable[Case]:
    yield 32, 4, 32, 4, 1000.0  # one group: 20 bytes
    yield 128, 8, 64, 2, 6600.0
    yield 64, 16, 64, 0, 1280.0  # nothing but the weights
    for bits in (3, 4, 8):
        many, wide = torch.randint(3, 40, (2,), generator=rng).tolist()
        yield many * wide * 8, bits, wide * 8, 2, 1e5 * (many + wide)


check_bound = Check(
    name="10.1",
    title="bound",
    reference=bound,
    inputs=_models,
    atol=0,
    solutions=(_bound_by_bits, _bound_by_groups),
    mistakes={
        "The bound is upside down: that is seconds for one token. Tokens a second are "
        "bandwidth over bytes a token.": lambda n, b, g, e, w: 1 / bound(n, b, g, e, w),
        "The bound is upside down, seconds for one token, and the scales are left out. "
        "Tokens a second are bandwidth over bytes a token, scales included.": (
            lambda n, b, g, e, w: n * b / 8 / w
        ),
        "Bits are taken for bytes. A byte has 8 bits: divide by 8.": (
            lambda n, b, g, e, w: w / (n * b + n / g * e)
        ),
        "All is counted in bits, and the bandwidth is in bytes. Divide the bits by "
        "8.": lambda n, b, g, e, w: w / (n * b + n / g * e * 8),
        "The scales are left out. Each group has `extra` bytes besides its weights, "
        "and they are read as well.": lambda n, b, g, e, w: w / (n * b / 8),
        "The `extra` bytes are counted for each weight. A whole group shares "
        "them.": lambda n, b, g, e, w: w / (n * b / 8 + n * e),
        "The `extra` bytes are counted once. Each group has its own: there are "
        "n_weights / group of them.": lambda n, b, g, e, w: w / (n * b / 8 + e),
        "`extra` is taken for bits. It is in bytes already.": (
            lambda n, b, g, e, w: w / (n * b / 8 + n / g * e / 8)
        ),
        "There are taken to be as many groups as a group has weights. There are "
        "n_weights / group.": lambda n, b, g, e, w: w / (n * b / 8 + g * e),
        "Bandwidth and bytes are multiplied. A second has room for bandwidth / bytes "
        "tokens.": lambda n, b, g, e, w: w * (n * b / 8 + n / g * e),
        "The bytes of a weight are rounded down to a whole number (`//`): 4 bits are "
        "half a byte, not none.": lambda n, b, g, e, w: (
            w / (n * (b // 8) + n / g * e or 1)
        ),
        "The result is cut to a whole number. A bound of 5.9 tokens a second is not "
        "5.": lambda n, b, g, e, w: int(bound(n, b, g, e, w)),
        "That is the bound for one weight. A token reads n_weights of them.": (
            lambda n, b, g, e, w: w / (b / 8 + e / g)
        ),
    },
)

# 10.2 the roof


def roof(
    rows: int,
    n_weights: int,
    bytes_a_weight: float,
    bandwidth: float,
    flops: float,
) -> float:
    """Seconds at least for `rows` rows through a matrix of `n_weights` weights.

    The weights are read once, whatever `rows` is; each row takes a multiplication and
    an addition a weight. Reading and computing go on at the same time.
    """
    reading = n_weights * bytes_a_weight / bandwidth
    return max(reading, 2 * rows * n_weights / flops)


def _roof_by_intensity(
    rows: int, n_weights: int, bytes_a_weight: float, bandwidth: float, flops: float
) -> float:
    intensity = 2 * rows / bytes_a_weight
    return 2 * rows * n_weights / min(flops, intensity * bandwidth)


def _roof_by_ridge(
    rows: int, n_weights: int, bytes_a_weight: float, bandwidth: float, flops: float
) -> float:
    if 2 * rows / bytes_a_weight < flops / bandwidth:
        return n_weights * bytes_a_weight / bandwidth
    return rows * n_weights * 2 / flops


Roof = Callable[[int, int, float, float, float], float]


def _parts(combine: Callable[[float, float], float]) -> Roof:
    return lambda r, n, b, w, f: combine(n * b / w, 2 * r * n / f)


def _products(rng: torch.Generator) -> Iterable[Case]:
    yield 1, 1000, 4.0, 100.0, 1000.0  # reading: 40 s against 2
    yield 50, 1000, 4.0, 100.0, 1000.0  # computing: 100 s against 40
    yield 10, 1000, 4.0, 100.0, 1000.0  # still reading, 40 s against 20
    yield 3, 100, 4.0, 100.0, 10.0  # one row alone computes longer than it reads
    for bytes_a_weight in (4.0, 2.0, 0.625):
        rows = int(torch.randint(2, 9, (1,), generator=rng))
        weights = int(torch.randint(50, 500, (1,), generator=rng))
        # On one side of the ridge, and on the other.
        yield rows, weights, bytes_a_weight, 31.0, 100.0 * rows
        yield 30 * rows, weights, bytes_a_weight, 31.0, 100.0


check_roof = Check(
    name="10.2",
    title="roof",
    reference=roof,
    inputs=_products,
    atol=0,
    solutions=(_roof_by_intensity, _roof_by_ridge),
    mistakes={
        "The two times are added. Reading and computing go on at the same time: the "
        "longer one counts.": _parts(lambda read, work: read + work),
        "The two times are added, and each weight is one operation a row. The longer "
        "time counts, and a weight takes a multiplication and an addition.": _parts(
            lambda read, work: read + work / 2
        ),
        "The shorter time is taken. Both must be done: the longer one counts.": _parts(
            min
        ),
        "Reading alone is counted. With many rows computing takes longer.": _parts(
            lambda read, work: read
        ),
        "Computing alone is counted. With few rows reading takes longer.": _parts(
            lambda read, work: work
        ),
        "Each weight is one operation a row. It is two: a multiplication and an "
        "addition.": _parts(lambda read, work: max(read, work / 2)),
        "The weights are read anew for each row. They are read once, and used for all "
        "rows.": lambda r, n, b, w, f: max(r * n * b / w, 2 * r * n / f),
        "The operations of one row are counted. Each row takes its own.": (
            lambda r, n, b, w, f: max(n * b / w, 2 * n / f)
        ),
        "Weights are counted, not bytes: `bytes_a_weight` is not used for "
        "reading.": lambda r, n, b, w, f: max(n / w, 2 * r * n / f),
        "The result is a speed, in operations a second. Seconds are wanted.": (
            lambda r, n, b, w, f: min(f, 2 * r / b * w)
        ),
        "The fractions are upside down: seconds are bytes over bandwidth, and "
        "operations over flops.": lambda r, n, b, w, f: max(
            w / (n * b), f / (2 * r * n)
        ),
        "Bandwidth and flops are exchanged. Bytes are divided by bytes a second.": (
            lambda r, n, b, w, f: max(n * b / f, 2 * r * n / w)
        ),
    },
)

# 10.3 int8, one scale a row

Pair = tuple[Tensor, Tensor]


def int8(weight: Tensor) -> Pair:
    """Whole numbers from -127 to 127 (N K), and one scale a row (N 1), 1 for zeros."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def _int8_by_loop(weight: Tensor) -> Pair:
    q = torch.zeros(weight.shape, dtype=torch.int8)
    scale = torch.ones(len(weight), 1)
    for i, row in enumerate(weight.tolist()):
        largest = max(map(abs, row))
        if largest:
            scale[i] = largest / 127
            q[i] = torch.tensor([round(w * 127 / largest) for w in row])
    return q, scale


def _int8_by_range(weight: Tensor) -> Pair:
    low, high = weight.amin(1, True), weight.amax(1, True)
    largest = torch.maximum(-low, high)
    scale = largest / 127 + (largest == 0)
    return torch.floor(weight / scale + 0.5).to(torch.int8), scale


def _divided(weight: Tensor, scale: Tensor, rounded: str = "round") -> Pair:
    q = getattr(weight / scale, rounded)()
    return q.clamp(-128, 127).nan_to_num().to(torch.int8), scale


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale != 0, scale, torch.ones_like(scale))


def _largest(weight: Tensor) -> Tensor:
    return _or_one(weight.abs().amax(1, keepdim=True))


def _wrapped(weight: Tensor, most: int) -> Pair:
    scale = _largest(weight) / most
    scale = torch.where(weight.any(1, keepdim=True), scale, torch.ones_like(scale))
    q = (weight / scale).round().to(torch.int64)
    return ((q + 128) % 256 - 128).to(torch.int8), scale


def _kept_one(weight: Tensor, scale: Tensor) -> Tensor:
    """The scale, but 1 for rows of zeros, as the task asks."""
    return torch.where(weight.any(1, keepdim=True), scale, torch.ones_like(scale))


def _per_row(weight: Tensor, scale: Tensor, rounded: str = "round") -> Pair:
    return _divided(weight, _kept_one(weight, scale), rounded)


def _by_column(weight: Tensor) -> Pair:
    return _divided(weight, _or_one(weight.abs().amax(0, keepdim=True) / 127))


def _one_for_all(weight: Tensor) -> Pair:
    scale = _or_one(weight.abs().amax() / 127)
    return _divided(weight, scale.expand(len(weight), 1).clone())


def _unsigned(weight: Tensor) -> Pair:
    low, high = weight.amin(1, True), weight.amax(1, True)
    scale = _or_one((high - low) / 255)
    return ((weight - low) / scale).round().sub(128).to(torch.int8), scale


def _wide_too(weight: Tensor) -> Pair:
    q, scale = int8(weight)
    return q, scale[:, 0]


def _matrices(rng: torch.Generator) -> Iterable[Case]:
    # No weight lies half way between two marks: rounding is then a matter of taste.
    yield (torch.tensor([[8.0, 3.0, -1.0, 5.0], [-10.0, 1.0, 7.0, 2.0]]),)
    yield (torch.tensor([[3.0, -8.0, 1.0], [0.0, 0.0, 0.0], [7.0, 1.0, 6.0]]),)
    for _ in range(3):
        n, k = torch.randint(3, 8, (2,), generator=rng).tolist()
        steps = torch.randint(-110, 111, (n, k), generator=rng)
        steps += torch.where(steps < 0, -1, 1)
        off = 0.9 * torch.rand(n, k, generator=rng) - 0.45
        weight = steps + off
        top = torch.randint(k, (n, 1), generator=rng)
        sign = torch.randint(2, (n, 1), generator=rng) * 2.0 - 1
        sign[0], sign[1] = 1, -1  # the largest of a row may be below zero
        weight.scatter_(1, top, 127 * sign)
        yield (weight * (0.1 + torch.rand(n, 1, generator=rng)),)


check_int8 = Check(
    name="10.3",
    title="int8",
    reference=int8,
    inputs=_matrices,
    solutions=(_int8_by_loop, _int8_by_range),
    mistakes={
        "The scale comes from the largest weight, not from the largest without its "
        "sign. A row may have its longest weight below zero: take abs() "
        "first.": lambda w: _per_row(w, _or_one(w.amax(1, True) / 127)),
        "The fraction is cut off (int, trunc), which pulls every weight towards zero. "
        "Round to the nearest.": lambda w: _per_row(w, _largest(w) / 127, "trunc"),
        "The fraction is cut off downwards (floor, //), which moves every weight down. "
        "Round to the nearest.": lambda w: _per_row(w, _largest(w) / 127, "floor"),
        "The scale is the largest / 128, and a weight that becomes 128 wraps round to "
        "-128: int8 ends at 127. Divide by 127.": lambda w: _wrapped(w, 128),
        "The scale is the largest / 255, and the numbers wrap round: int8 has 127 "
        "steps on each side of zero.": lambda w: _wrapped(w, 255),
        "The scale is the largest / 128. With 127 the numbers reach from -127 to 127, "
        "and the largest weight comes back as it was.": lambda w: _per_row(
            w, _largest(w) / 128
        ),
        "Four bits: the scale is the largest / 7. int8 reaches to 127.": (
            lambda w: _per_row(w, _largest(w) / 7)
        ),
        "There is one scale for each column. A row, which makes one output, has one: "
        "amax(1), not amax(0).": _by_column,
        "There is one scale for the whole matrix. Each row has its own.": _one_for_all,
        "There is one scale for the whole matrix, a single number. Each row has its "
        "own: a column of shape (N, 1).": lambda w: _divided(
            w, _or_one(w.abs().amax() / 127)
        ),
        "The numbers are counted from the row's smallest weight, with nothing kept "
        "that says where that is. Here q * scale alone gives the weight.": _unsigned,
        "A row of zeros gets scale 0, and 0 / 0 is no number. Give it scale 1.": (
            lambda w: _divided(w, w.abs().amax(1, True) / 127)
        ),
        "The scale comes upside down: 127 / largest. The weight is q * scale.": (
            lambda w: (int8(w)[0], _kept_one(w, 1 / int8(w)[1]))
        ),
        "The scale is the row's largest weight, not divided by 127: every number is "
        "-1, 0 or 1.": lambda w: _per_row(w, _largest(w)),
        "The rounded weights come back, and not the whole numbers.": (
            lambda w: (int8(w)[0] * int8(w)[1], int8(w)[1])
        ),
        "The scales come flat, (N,). A column, (N, 1), multiplies each row by its own: "
        "keepdim=True.": _wide_too,
    },
)

# 10.4 the product


def int8_product(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """x (T K) times the matrix q * scale, transposed: T N."""
    return x @ q.float().T * scale[:, 0]


def _widened_first(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, q * scale)


def _product_by_einsum(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return torch.einsum("tk,nk,nz->tn", x, q.to(x.dtype), scale)


def _scaled_inputs(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return (x * scale[:, 0]) @ q.float().T


def _column(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return x @ q.float().T * scale


def _rows_and_scales(rng: torch.Generator) -> Iterable[Case]:
    q = torch.tensor([[127, 0, -64, 32], [10, 127, 5, -3]], dtype=torch.int8)
    yield torch.tensor([[4.0, 0.0, 0.0, 3.0]]), q, torch.tensor([[0.5], [0.25]])
    square = torch.tensor([[100, -50], [25, 127]], dtype=torch.int8)
    x = torch.tensor([[1.5, 2.5], [-3.5, 0.5]])
    yield x, square, torch.tensor([[0.5], [2.0]])
    for _ in range(3):
        t, n, k = torch.randint(2, 7, (3,), generator=rng).tolist()
        q = torch.randint(-127, 128, (n, k + 1), generator=rng).to(torch.int8)
        x = torch.randn(t, k + 1, generator=rng)
        yield x, q, 0.1 + torch.rand(n, 1, generator=rng)
    side = int(torch.randint(3, 6, (1,), generator=rng))
    q = torch.randint(-127, 128, (side, side), generator=rng).to(torch.int8)
    x = torch.randn(side, side, generator=rng)
    yield x, q, 0.1 + torch.rand(side, 1, generator=rng)


check_int8_product = Check(
    name="10.4",
    title="int8 product",
    reference=int8_product,
    inputs=_rows_and_scales,
    atol=1e-4,
    solutions=(_widened_first, _product_by_einsum),
    mistakes={
        "The scale is left out. The weight is q * scale, and the scale can be applied "
        "to the sum.": lambda x, q, s: x @ q.float().T,
        "x is float32 and q int8, and PyTorch multiplies no such pair: bring q to the "
        "type of x first, q.float() or q.to(x.dtype).": lambda x, q, s: (
            x @ q.T * s[:, 0]
        ),
        "The scales multiply the inputs. Each belongs to a row of the matrix, so to an "
        "output.": _scaled_inputs,
        "The scales stand as a column beside the T rows of x. They belong to the N "
        "outputs: scale[:, 0], or scale.T.": _column,
        "The result is divided by the scale. The weight is q * scale.": (
            lambda x, q, s: x @ q.float().T / s[:, 0]
        ),
        "The scale is applied twice, to the numbers and to the sum. Once is "
        "enough.": lambda x, q, s: x @ (q * s).T * s[:, 0],
        "The matrix is not transposed. A Linear has a row for each output: x @ w.T.": (
            lambda x, q, s: x @ (q * s)
        ),
        "x is made int8, too, and its fractions are lost. Bring q to x's type, not x "
        "to q's.": lambda x, q, s: x.to(torch.int8).float() @ q.float().T * s[:, 0],
        "All rows get the scale of the first.": lambda x, q, s: (
            x @ q.float().T * s[0, 0]
        ),
        "The result comes with its axes exchanged, (N, T). A Linear gives (T, N).": (
            lambda x, q, s: int8_product(x, q, s).T
        ),
    },
)

# 10.5 int4, packed

Triple = tuple[Tensor, Tensor, Tensor]


def int4(weight: Tensor) -> Triple:
    """Packed q (N K/2), scale and zero (N G), in groups of 32 weights."""
    return _packed(weight)


def _halves_in_a_byte(q: Tensor) -> Tensor:
    return (q[..., :16] | q[..., 16:] << 4).flatten(1)


def _packed(
    weight: Tensor,
    *,
    steps: int = 15,
    zero: Callable[[Tensor], Tensor] = lambda g: g.amin(-1),
    top: Callable[[Tensor], Tensor] = lambda g: g.amax(-1),
    rounded: Callable[[Tensor], Tensor] = torch.round,
    pack: Callable[[Tensor], Tensor] = _halves_in_a_byte,
) -> Triple:
    """Int4 with one thing done in another way if so wanted."""
    groups = weight.unflatten(1, (-1, GROUP))
    low = zero(groups)
    scale = (top(groups) - low) / steps
    q = rounded((groups - low[..., None]) / scale[..., None])
    q = q.clamp(0, 255).to(torch.uint8)
    return pack(q), scale, low


def _int4_by_loop(weight: Tensor) -> Triple:
    packed, scales, zeros = [], [], []
    for row in weight.tolist():
        for start in range(0, len(row), GROUP):
            group = row[start : start + GROUP]
            zero, scale = min(group), (max(group) - min(group)) / 15
            q = [round((w - zero) / scale) for w in group]
            packed += [
                low + 16 * high for low, high in zip(q[:16], q[16:], strict=True)
            ]
            scales.append(scale)
            zeros.append(zero)
    n = len(weight)
    return (
        torch.tensor(packed, dtype=torch.uint8).view(n, -1),
        torch.tensor(scales).view(n, -1),
        torch.tensor(zeros).view(n, -1),
    )


def _int4_by_chunks(weight: Tensor) -> Triple:
    groups = weight.reshape(len(weight), -1, 2, 16)
    low, high = groups.flatten(2).aminmax(dim=-1)
    scale = (high - low) / 15
    q = torch.floor((groups - low[..., None, None]) / scale[..., None, None] + 0.5)
    q = q.clamp(0, 15).byte()
    both = q[:, :, 0] + q[:, :, 1] * 16
    return both.reshape(len(weight), -1), scale, low


def _clamped(pack: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda q: pack(q.clamp(max=15))


def _symmetric(weight: Tensor) -> Triple:
    """-8 ... 7 in two's complement, with a scale from the largest."""
    groups = weight.unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1) / 7
    q = (groups / scale[..., None]).round().to(torch.int64) & 15
    return _halves_in_a_byte(q.to(torch.uint8)), scale, torch.zeros_like(scale)


def _signed(weight: Tensor) -> Triple:
    return _packed(weight, pack=lambda q: _halves_in_a_byte((q + 8) & 15))


def _one_a_row(weight: Tensor) -> Triple:
    low, high = weight.aminmax(dim=1, keepdim=True)
    scale = (high - low) / 15
    q = ((weight - low) / scale).round().to(torch.uint8)
    many = weight.shape[1] // GROUP
    packed = _halves_in_a_byte(q.unflatten(1, (-1, GROUP)))
    return packed, scale.repeat(1, many), low.repeat(1, many)


def _halves_of_the_row(q: Tensor) -> Tensor:
    row = q.flatten(1)
    low, high = row.chunk(2, 1)
    return low | high << 4


def _overlaid(q: Tensor) -> Tensor:
    return (q[..., :16] | q[..., 16:]).flatten(1)


def _integer_zero(weight: Tensor) -> Triple:
    packed, scale, low = _packed(weight)
    return packed, scale, (-low / scale).round()


def _rows_of_groups(rng: torch.Generator) -> Iterable[Case]:
    def marks(n: int, many: int) -> Tensor:
        """Weights near the marks 0 ... 15 of each group's ruler, at both ends on."""
        q = torch.randint(1, 15, (n, many, GROUP), generator=rng).float()
        q += 0.8 * torch.rand(q.shape, generator=rng) - 0.4
        at = torch.stack(
            [torch.randperm(GROUP, generator=rng)[:2] for _ in range(n * many)]
        ).view(n, many, 2)
        q.scatter_(2, at, torch.tensor([0.0, 15.0]).expand(n, many, 2))
        scale = 0.1 + torch.rand(n, many, 1, generator=rng)
        shift = 12 * torch.rand(n, many, 1, generator=rng)
        return ((q - shift) * scale).flatten(1)

    ramp = torch.arange(GROUP) % 16  # the second half begins at mark 8
    ramp = torch.cat((ramp[:16], (ramp[16:] + 8) % 16))
    yield (0.5 * ramp[None] - 3 + 0.1 * (ramp % 3 == 1),)
    yield (marks(1, 1),)
    yield (marks(2, 2),)
    yield (marks(3, 1),)
    yield (marks(int(torch.randint(2, 5, (1,), generator=rng)), 3),)


check_int4 = Check(
    name="10.5",
    title="int4",
    reference=int4,
    inputs=_rows_of_groups,
    rtol=1e-4,
    atol=1e-5,
    solutions=(_int4_by_loop, _int4_by_chunks),
    mistakes={
        "The two halves of each byte are exchanged. The group's first 16 numbers lie "
        "in the low four bits, the other 16 in the high ones.": lambda w: _packed(
            w, pack=_clamped(lambda q: (q[..., 16:] | q[..., :16] << 4).flatten(1))
        ),
        "Neighbours share a byte, 0 with 1. In GGUF number i shares it with number "
        "i + 16 of the same group.": lambda w: _packed(
            w, pack=_clamped(lambda q: (q[..., 0::2] | q[..., 1::2] << 4).flatten(1))
        ),
        "The halves of the whole row share bytes. It is the halves of each group of "
        "32.": lambda w: _packed(w, pack=_clamped(_halves_of_the_row)),
        "The second number is not moved up by four bits, so two numbers lie on top of "
        "each other: high << 4.": lambda w: _packed(w, pack=_clamped(_overlaid)),
        "The numbers are not packed: one byte each. Two of four bits share a "
        "byte.": lambda w: _packed(w, pack=_clamped(lambda q: q.flatten(1))),
        "The ruler has 16 steps. 16 marks have 15 steps between them: divide by "
        "15.": lambda w: _packed(w, steps=16, pack=_clamped(_halves_in_a_byte)),
        "The scale is the range / 16, and a group's largest weight becomes 16, which "
        "has five bits. 16 marks have 15 steps between them.": lambda w: _packed(
            w, steps=16
        ),
        "The fraction is cut off. Round to the nearest mark.": lambda w: _packed(
            w, rounded=torch.floor
        ),
        "The numbers are signed, and the ruler lies even on both sides of zero, from "
        "the largest without its sign. Here it begins at the group's smallest weight: "
        "0 to 15.": _symmetric,
        "The numbers are stored with 8 added or taken off, as signed ones are. Here "
        "they are 0 to 15, as they are.": _signed,
        "There is one ruler for the whole row. Each group of 32 has its "
        "own.": _one_a_row,
        "The zero is left out: the ruler begins at 0, and what lies below is lost. It "
        "begins at the group's smallest weight.": lambda w: _packed(
            w, zero=lambda g: torch.zeros_like(g[..., 0])
        ),
        "The zero that is kept is a mark's number (-smallest / scale). Here it is the "
        "smallest weight itself: the weight is q * scale + zero.": _integer_zero,
        "The zero comes with the wrong sign. It is added: q * scale + zero.": (
            lambda w: (*_packed(w)[:2], -_packed(w)[2])
        ),
        "The scale is the group's largest weight / 15. It is the distance from the "
        "smallest to the largest that has 15 steps.": lambda w: _packed_by_largest(w),
        "The zero is the mean of the group, and what lies below it is lost. Take the "
        "smallest.": lambda w: _packed(w, zero=lambda g: g.mean(-1)),
    },
)


def _packed_by_largest(weight: Tensor) -> Triple:
    groups = weight.unflatten(1, (-1, GROUP))
    low, scale = groups.amin(-1), groups.amax(-1) / 15
    q = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
    return _halves_in_a_byte(q.to(torch.uint8)), scale, low


# 10.6 a guess is judged


def judged(p: Tensor, q: Tensor, guess: int, dart: float) -> Tensor:
    """What the token is drawn from, once the dart has judged the guess.

    The model gives `p`, the draft gave `q`, and `guess` was drawn from `q`.
    """
    if dart < p[guess] / q[guess]:
        return torch.eye(len(p))[guess]
    more = (p - q).clamp(min=0)
    return more / more.sum()


def _judged_by_product(p: Tensor, q: Tensor, guess: int, dart: float) -> Tensor:
    if dart * q[guess] >= p[guess]:
        more = torch.relu(p - q)
        return more / (1 - torch.minimum(p, q).sum())
    sure = torch.zeros(len(p))
    sure[guess] = 1
    return sure


def _judged_by_list(p: Tensor, q: Tensor, guess: int, dart: float) -> Tensor:
    if dart < min(1.0, float(p[guess]) / float(q[guess])):
        return torch.tensor([float(i == guess) for i in range(len(p))])
    more = [max(a - b, 0.0) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    return torch.tensor(more) / sum(more)


Judge = Callable[[Tensor, Tensor, int, float], Tensor]


def _accepting(rule: Callable[[Tensor, Tensor, int, float], bool]) -> Judge:
    def verdict(p: Tensor, q: Tensor, guess: int, dart: float) -> Tensor:
        if rule(p, q, guess, dart):
            return torch.eye(len(p))[guess]
        more = (p - q).clamp(min=0)
        return more / more.sum()

    return verdict


def _instead(rest: Callable[[Tensor, Tensor, int], Tensor]) -> Judge:
    def verdict(p: Tensor, q: Tensor, guess: int, dart: float) -> Tensor:
        if dart < p[guess] / q[guess]:
            return torch.eye(len(p))[guess]
        return rest(p, q, guess)

    return verdict


def _without(p: Tensor, q: Tensor, guess: int) -> Tensor:
    rest = p * (torch.arange(len(p)) != guess)
    return rest / rest.sum()


def _guesses(rng: torch.Generator) -> Iterable[Case]:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    yield p, q, 2, 0.5  # accepted one time in three: this is none of them
    yield p, q, 2, 0.25  # and this is one
    yield p, q, 0, 0.9  # the model likes it better than the draft: always
    yield p, q, 1, 0.1
    for _ in range(4):
        size = int(torch.randint(4, 9, (1,), generator=rng))
        p, q = torch.rand(2, size, generator=rng).add(0.05).unbind()
        p, q = p / p.sum(), q / q.sum()
        guess = int((q - p).argmax())
        ratio = float(p[guess] / q[guess])
        yield p, q, guess, 0.9 * ratio
        yield p, q, guess, ratio + 0.5 * (1 - ratio)


check_judge = Check(
    name="10.6",
    title="judge a guess",
    reference=judged,
    inputs=_guesses,
    solutions=(_judged_by_product, _judged_by_list),
    mistakes={
        "The dart is compared with p alone. What counts is the ratio: of the draft's "
        "guesses of this token, p / q are kept.": _accepting(
            lambda p, q, i, dart: dart < float(p[i])
        ),
        "The ratio is upside down: q / p. A token that the model likes less than the "
        "draft must be refused at times.": _accepting(
            lambda p, q, i, dart: dart < float(q[i] / p[i])
        ),
        "Every guess is accepted: that is the draft's distribution, not the "
        "model's.": _accepting(lambda p, q, i, dart: True),
        "No guess is accepted.": _accepting(lambda p, q, i, dart: False),
        "A guess is accepted if it is the model's likeliest token. That is right for "
        "greedy decoding alone; here chance must decide.": _accepting(
            lambda p, q, i, dart: i == int(p.argmax())
        ),
        "A guess is accepted whenever the model finds it at least as likely as the "
        "draft, and never else. Else it is accepted with probability p / q.": (
            _accepting(lambda p, q, i, dart: bool(p[i] >= q[i]))
        ),
        "The dart is read the wrong way round: accepted where it is above the ratio. A "
        "dart falls below r with probability r.": _accepting(
            lambda p, q, i, dart: dart >= float(p[i] / q[i])
        ),
        "After a refusal p itself is drawn from. What the accepted guesses have given "
        "already must be taken off: max(p - q, 0).": _instead(lambda p, q, i: p),
        "After a refusal the refused token is struck out of p. Take off what the draft "
        "has for every token: max(p - q, 0).": _instead(_without),
        "What is left does not add up to one. Divide max(p - q, 0) by its sum.": (
            _instead(lambda p, q, i: (p - q).clamp(min=0))
        ),
        "What is left is taken the wrong way round, q - p. It is what the model has "
        "more than the draft: p - q.": _instead(
            lambda p, q, i: (q - p).clamp(min=0) / (q - p).clamp(min=0).sum()
        ),
        "What is left has |p - q|. Where the draft has more than the model, nothing "
        "is left: max(p - q, 0).": _instead(
            lambda p, q, i: (p - q).abs() / (p - q).abs().sum()
        ),
        "The difference goes through a softmax. Cut it at zero and divide it by its "
        "sum.": _instead(lambda p, q, i: (p - q).softmax(-1)),
        "After a refusal the likeliest of what is left is taken. It is drawn, so its "
        "whole distribution is wanted.": _instead(
            lambda p, q, i: torch.eye(len(p))[int((p - q).argmax())]
        ),
    },
)
