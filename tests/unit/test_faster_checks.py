"""What the checks of notebook 10 say to answers as learners write them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from minillama.course.checks import faster
from minillama.quantize import Int4Linear, Int8Linear


# 10.1
def seconds_a_token(n_weights, bits, group, extra, bandwidth):
    nbytes = n_weights * bits / 8 + extra * (n_weights / group)
    return nbytes / bandwidth


def both_at_once(n_weights, bits, group, extra, bandwidth):
    return n_weights * bits / 8 / bandwidth


def no_scales(n_weights, bits, group, extra, bandwidth):
    return bandwidth / (n_weights * bits / 8)


def bits_for_bytes(n_weights, bits, group, extra, bandwidth):
    return bandwidth / (n_weights * (bits + extra / group))


def whole_bytes(n_weights, bits, group, extra, bandwidth):
    return bandwidth / (n_weights * (bits // 8) + n_weights // group * extra)


def whole_tokens(n_weights, bits, group, extra, bandwidth):
    return int(bandwidth / (n_weights * bits / 8 + n_weights / group * extra))


# 10.2
def both_times(rows, n_weights, bytes_a_weight, bandwidth, flops):
    return n_weights * bytes_a_weight / bandwidth + 2 * rows * n_weights / flops


def added_and_halved(rows, n_weights, bytes_a_weight, bandwidth, flops):
    return n_weights * bytes_a_weight / bandwidth + rows * n_weights / flops


def read_for_each_row(rows, n_weights, bytes_a_weight, bandwidth, flops):
    reading = rows * n_weights * bytes_a_weight / bandwidth
    return max(reading, rows * n_weights * 2 / flops)


def multiplications_alone(rows, n_weights, bytes_a_weight, bandwidth, flops):
    return max(n_weights * bytes_a_weight / bandwidth, rows * n_weights / flops)


def attainable(rows, n_weights, bytes_a_weight, bandwidth, flops):
    return min(flops, 2 * rows / bytes_a_weight * bandwidth)


# 10.3
def max_not_abs(weight):
    scale = weight.max(1, keepdim=True).values / 127
    scale[scale == 0] = 1
    return (weight / scale).round().clamp(-128, 127).to(torch.int8), scale


def cast_only(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1
    return (weight / scale).to(torch.int8), scale


def no_clamp(weight):
    scale = weight.abs().amax(1, keepdim=True) / 128
    scale[scale == 0] = 1
    return (weight / scale).round().to(torch.int16).to(torch.int8), scale


def columns(weight):
    scale = weight.abs().amax(0, keepdim=True) / 127
    scale[scale == 0] = 1
    return (weight / scale).round().to(torch.int8), scale


def whole_matrix(weight):
    scale = (weight.abs().max() / 127).expand(len(weight), 1).clone()
    return (weight / scale).round().to(torch.int8), scale


def one_number(weight):
    scale = weight.abs().max() / 127
    return (weight / scale).round().to(torch.int8), scale


def flat_scale(weight):
    scale = weight.abs().amax(1) / 127
    scale[scale == 0] = 1
    return (weight / scale[:, None]).round().to(torch.int8), scale


def floats(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1
    return (weight / scale).round(), scale


def zeros_divided(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().nan_to_num().to(torch.int8), scale


def only_q(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1
    return (weight / scale).round().to(torch.int8)


def in_place(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1
    return weight.div_(scale).round_().to(torch.int8), scale


# 10.4
def scale_as_column(x, q, scale):
    return x @ q.float().T * scale


def forgot_scale(x, q, scale):
    return F.linear(x, q.float())


def not_transposed(x, q, scale):
    return x @ (q.float() * scale)


def mixed_types(x, q, scale):
    return x @ q.T * scale[:, 0]


def inputs_rounded(x, q, scale):
    return (x.to(torch.int8).int() @ q.int().T).float() * scale[:, 0]


# 10.5
def swapped_nibbles(weight):
    linear = Int4Linear.from_weight(weight)
    groups = weight.unflatten(1, (-1, 32))
    zero = groups.amin(-1)
    both = linear.packed
    return both >> 4 | both << 4, (groups.amax(-1) - zero) / 15, zero


def neighbours(weight):
    groups = weight.unflatten(1, (-1, 32))
    zero = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - zero) / 15
    q = ((groups - zero) / scale).round().to(torch.uint8).flatten(1)
    return q[:, ::2] | q[:, 1::2] << 4, scale[..., 0], zero[..., 0]


def sixteen_steps(weight):
    groups = weight.unflatten(1, (-1, 32))
    zero = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - zero) / 16
    q = ((groups - zero) / scale).round().to(torch.uint8)
    packed = (q[..., :16] | q[..., 16:] << 4).flatten(1)
    return packed, scale[..., 0], zero[..., 0]


def truncated(weight):
    groups = weight.unflatten(1, (-1, 32))
    zero = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - zero) / 15
    q = ((groups - zero) / scale).to(torch.uint8)
    packed = (q[..., :16] | q[..., 16:] << 4).flatten(1)
    return packed, scale[..., 0], zero[..., 0]


def signed_nibbles(weight):
    groups = weight.unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1) / 7
    q = (groups / scale[..., None]).round().clamp(-8, 7).to(torch.int8)
    q = q.view(torch.uint8) & 15
    packed = (q[..., :16] | q[..., 16:] << 4).flatten(1)
    return packed, scale, torch.zeros_like(scale)


def not_packed(weight):
    groups = weight.unflatten(1, (-1, 32))
    zero = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - zero) / 15
    q = ((groups - zero) / scale).round().to(torch.uint8)
    return q.flatten(1), scale[..., 0], zero[..., 0]


def columns_kept(weight):
    groups = weight.unflatten(1, (-1, 32))
    zero = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - zero) / 15
    q = ((groups - zero) / scale).round().to(torch.uint8)
    return (q[..., :16] | q[..., 16:] << 4).flatten(1), scale, zero


def zero_point(weight):
    groups = weight.unflatten(1, (-1, 32))
    zero = groups.amin(-1)
    scale = (groups.amax(-1) - zero) / 15
    q = ((groups - zero[..., None]) / scale[..., None]).round().to(torch.uint8)
    packed = (q[..., :16] | q[..., 16:] << 4).flatten(1)
    return packed, scale, (-zero / scale).round()


def the_librarys_own(weight):
    linear = Int4Linear.from_weight(weight)
    return linear.packed, linear.scale, linear.zero


# 10.6
def dart_under_p(p, q, guess, dart):
    if dart < p[guess]:
        return F.one_hot(torch.tensor(guess), len(p)).float()
    more = (p - q).clamp(min=0)
    return more / more.sum()


def inverted(p, q, guess, dart):
    if dart < q[guess] / p[guess]:
        return F.one_hot(torch.tensor(guess), len(p)).float()
    more = (p - q).clamp(min=0)
    return more / more.sum()


def redrawn_from_p(p, q, guess, dart):
    return torch.eye(len(p))[guess] if dart < p[guess] / q[guess] else p


def not_normalised(p, q, guess, dart):
    if dart < p[guess] / q[guess]:
        return torch.eye(len(p))[guess]
    return (p - q).relu()


def struck_out(p, q, guess, dart):
    if dart < p[guess] / q[guess]:
        return torch.eye(len(p))[guess]
    p[guess] = 0
    return p / p.sum()


def an_id(p, q, guess, dart):
    if dart < p[guess] / q[guess]:
        return guess
    return int((p - q).argmax())


SAID: list[tuple[Any, Callable[..., Any], str]] = [
    (faster.check_bound, seconds_a_token, "upside down"),
    (faster.check_bound, both_at_once, "upside down, seconds .* and the scales"),
    (faster.check_roof, added_and_halved, "added, and each weight is one operation"),
    (faster.check_bound, no_scales, "scales are left out"),
    (faster.check_bound, bits_for_bytes, "Bits are taken for bytes"),
    (faster.check_bound, whole_bytes, "4 bits are half a byte"),
    (faster.check_bound, whole_tokens, "cut to a whole number"),
    (faster.check_roof, both_times, "The two times are added"),
    (faster.check_roof, read_for_each_row, "read anew for each row"),
    (faster.check_roof, multiplications_alone, "a multiplication and an addition"),
    (faster.check_roof, attainable, "a speed, in operations a second"),
    (faster.check_int8, max_not_abs, "largest without its sign"),
    (faster.check_int8, cast_only, "towards zero"),
    (faster.check_int8, no_clamp, "wraps round to -128"),
    (faster.check_int8, columns, "one scale for each column"),
    (faster.check_int8, whole_matrix, "one scale for the whole matrix"),
    (faster.check_int8, one_number, "a single number"),
    (faster.check_int8, flat_scale, "scales come flat"),
    (faster.check_int8, floats, "int8"),
    (faster.check_int8, zeros_divided, "A row of zeros"),
    (faster.check_int8, only_q, "tuple"),
    (faster.check_int8, in_place, "changes its input weight in place"),
    (faster.check_int8_product, scale_as_column, "as a column beside the T rows"),
    (faster.check_int8_product, forgot_scale, "The scale is left out"),
    (faster.check_int8_product, not_transposed, "not transposed"),
    (faster.check_int8_product, mixed_types, "x is float32 and q int8"),
    (faster.check_int8_product, inputs_rounded, "x is made int8"),
    (faster.check_int4, swapped_nibbles, "halves of each byte are exchanged"),
    (faster.check_int4, neighbours, "Neighbours share a byte"),
    (faster.check_int4, sixteen_steps, "15 steps between them"),
    (faster.check_int4, truncated, "cut off"),
    (faster.check_int4, signed_nibbles, "signed"),
    (faster.check_int4, not_packed, "not packed"),
    (faster.check_int4, columns_kept, "shape"),
    (faster.check_int4, zero_point, "a mark's number"),
    (faster.check_int4, the_librarys_own, "float16"),
    (faster.check_judge, dart_under_p, "compared with p alone"),
    (faster.check_judge, inverted, "upside down"),
    (faster.check_judge, redrawn_from_p, "p itself is drawn from"),
    (faster.check_judge, not_normalised, "does not add up to one"),
    (faster.check_judge, struck_out, "struck out of p"),
    (faster.check_judge, an_id, "should be a Tensor"),
]


@pytest.mark.parametrize(
    ("check", "answer", "words"), SAID, ids=[a.__name__ for _, a, _ in SAID]
)
def test_a_wrong_answer_is_told_what_is_wrong(check, answer, words):
    result = check.examine(answer)
    assert not result.ok
    assert re.search(words, result.message), result.message


def test_int8_and_its_product_are_the_librarys():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    library = Int8Linear.from_weight(weight)
    q, scale = faster.int8(weight)
    # The library rounds the scale to float16 first: a number may be one off.
    assert (q.int() - library.q.int()).abs().max() <= 1
    torch.testing.assert_close(scale, library.scale.float(), rtol=1e-3, atol=0)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    product = faster.int8_product(x, library.q, library.scale.float())
    torch.testing.assert_close(product, library(x), rtol=1e-5, atol=1e-4)


def test_int4_is_the_librarys():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    library = Int4Linear.from_weight(weight)
    packed, scale, zero = faster.int4(weight)
    assert (packed == library.packed).float().mean() > 0.99
    torch.testing.assert_close(scale, library.scale.float(), rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(zero, library.zero.float(), rtol=1e-3, atol=0)


def test_a_judged_guess_has_the_models_distribution():
    rng = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 5, generator=rng).unbind()
    p, q = p / p.sum(), q / q.sum()
    out, darts = torch.zeros(5), (torch.arange(500) + 0.5) / 500
    for guess in range(5):
        for dart in darts.tolist():
            out += q[guess] * faster.judged(p, q, guess, dart) / 500
    torch.testing.assert_close(out, p, rtol=0, atol=2e-3)
