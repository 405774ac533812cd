"""Checks of notebook 02: RMSNorm."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minillama.course.check import Case, Check, fill
from minillama.norm import RMSNorm


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm as one function, for the exercise before the class."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).type_as(x) * weight


def _root_and_divide(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    size = x.shape[-1]
    root = ((x.float() ** 2).sum(-1) / size + eps) ** 0.5
    return weight * (x.float() / root.unsqueeze(-1)).to(x.dtype)


def _from_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (
        nn.functional.rms_norm(x.float(), x.shape[-1:], None, eps).type_as(x) * weight
    )


def _scaled_by(
    measure: Callable[[Tensor, float], Tensor],
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """A wrong RMSNorm that divides by another measure of the vector."""

    def wrong(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return (x.float() / measure(x.float(), eps)).type_as(x) * weight

    return wrong


def _centred(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return rms_norm(wide - wide.mean(-1, keepdim=True), weight, eps).type_as(x)


def _without_float32(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _wide_result(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x.float(), weight.float(), eps)


def _all_of_it(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean() + eps).sqrt()


def _inputs(rng: torch.Generator) -> Iterable[Case]:
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0])
    yield torch.tensor([[4.0, 2.0, 1.0, 2.0], [8.0, 0.0, 0.0, 6.0]]), weight, 1e-5
    # So small that eps decides.
    yield 1e-3 * torch.tensor([[4.0, 2.0, 1.0, 2.0]]), weight, 1e-5
    for shape in ((6,), (3, 5), (2, 3, 8)):
        x = 3 * torch.randn(shape, generator=rng) + 1
        yield x, torch.rand(shape[-1], generator=rng) + 0.5, 1e-2
    # The square of 300 is more than float16 can hold, 65504.
    yield (100 * x).half(), torch.ones(8).half(), 1e-5


_MISTAKES: dict[str, Any] = {
    "The mean is subtracted first: that is LayerNorm. Llama's RMSNorm sets the length "
    "and leaves the direction.": _centred,
    "The mean is taken over the sequence axis. Llama normalises each token's vector by "
    "itself, over the last axis.": _scaled_by(
        lambda x, eps: (x.square().mean(0 if x.dim() < 2 else -2, True) + eps).sqrt()
    ),
    "One mean is taken over everything. Llama normalises each token's vector by "
    "itself: mean(-1, keepdim=True).": _scaled_by(_all_of_it),
    "eps is missing, so a vector of zeros would be divided by zero. Llama adds eps to "
    "the mean of the squares.": _scaled_by(
        lambda x, eps: x.square().mean(-1, True).sqrt()
    ),
    "eps is added after the root. Llama adds it to the mean of the squares, before the "
    "root.": _scaled_by(lambda x, eps: x.square().mean(-1, True).sqrt() + eps),
    "The squares are added up, not averaged. Llama divides by the root of their mean, "
    "so that a wide vector keeps entries near one.": _scaled_by(
        lambda x, eps: (x.square().sum(-1, True) + eps).sqrt()
    ),
    "The root is missing: x is divided by its mean square. Llama divides by the root "
    "of it.": _scaled_by(lambda x, eps: x.square().mean(-1, True) + eps),
    "The mean of absolute values is used. Llama squares, averages, and takes the root "
    "(root mean square).": _scaled_by(lambda x, eps: x.abs().mean(-1, True) + eps),
    "x is divided by its standard deviation, which measures from the mean. Llama "
    "measures from zero: the root mean square.": _scaled_by(
        lambda x, eps: x.std(-1, keepdim=True)
    ),
    "x is divided by its standard deviation plus eps, which measures from the mean. "
    "Llama measures from zero: the root mean square.": _scaled_by(
        lambda x, eps: x.std(-1, keepdim=True) + eps
    ),
    "x is divided by the root of its variance (over n - 1), which measures from the "
    "mean. Llama measures from zero: the root mean square.": _scaled_by(
        lambda x, eps: (x.var(-1, keepdim=True) + eps).sqrt()
    ),
    "x is divided by the root of its variance (over n), which measures from the mean. "
    "Llama measures from zero: the root mean square.": _scaled_by(
        lambda x, eps: (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
    ),
    "The weight is not used. Llama multiplies the result by a learned number for each "
    "dimension.": lambda x, weight, eps: rms_norm(x, torch.ones_like(weight), eps),
    "The squares are taken in half precision, which overflows at 65504. Llama squares "
    "and averages in float32.": _without_float32,
    "Half precision goes in and float32 comes out. Llama hands back the type that it "
    "was given: type_as(x).": _wide_result,
}

check_rms_norm = Check(
    name="2.1",
    title="rms_norm",
    reference=rms_norm,
    inputs=_inputs,
    solutions=(_root_and_divide, _from_torch),
    mistakes=_MISTAKES,
)


def _with_weight(cls: type[nn.Module]) -> Callable[..., Any]:
    """The function that a norm class computes with a given weight."""

    def norm(x: Tensor, weight: Tensor, eps: float) -> Any:
        return fill(cls(weight.shape[0], eps), {"weight": weight})(x)

    return norm


class _RootNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return _root_and_divide(x, self.weight, self.eps)


class _TorchNorm(_RootNorm):
    def forward(self, x: Tensor) -> Tensor:
        return _from_torch(x, self.weight, self.eps)


check_rms_norm_class = Check(
    name="2.2",
    title="RMSNorm",
    reference=RMSNorm,
    adapt=_with_weight,
    inputs=_inputs,
    solutions=(_RootNorm, _TorchNorm),
    mistakes={
        **_MISTAKES,
        "eps is written out as 1e-6. Llama takes the eps that it is given: 1e-5 in "
        "Llama 3.": lambda x, weight, eps: rms_norm(x, weight, 1e-6),
    },
)


def fold(matrix: Tensor, weight: Tensor) -> Tensor:
    """A norm's weight, moved into the matrix that comes after it."""
    return matrix * weight


def _column_by_column(matrix: Tensor, weight: Tensor) -> Tensor:
    out = matrix.clone()
    for i, factor in enumerate(weight.tolist()):
        out[:, i] = matrix[:, i] * factor
    return out


def _matrices(rng: torch.Generator) -> Iterable[Case]:
    yield torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 1.0])
    for shape in ((4, 4), (5, 3), (2, 7)):
        weight = torch.rand(shape[1], generator=rng) + 0.5
        yield torch.randn(shape, generator=rng), weight


check_fold = Check(
    name="2.3",
    title="fold",
    reference=fold,
    inputs=_matrices,
    solutions=(_column_by_column, lambda m, w: m @ torch.diag(w)),
    mistakes={
        "The rows are scaled. The weight stands before the matrix, so it meets the "
        "columns: column i gets weight i.": lambda m, w: m * w[:, None],
        "The matrix is divided by the weight. The norm multiplies by it, so the folded "
        "matrix does too.": lambda m, w: m / w,
        "The weight is added. It is a factor of each dimension, so column i is "
        "multiplied by weight i.": lambda m, w: m + w,
        "The matrix comes back as it was. The norm will run with ones, so its weight "
        "must go into the columns.": lambda m, w: m.clone(),
        "All columns get the mean of the weight. Each dimension has a number of its "
        "own: column i gets weight i.": lambda m, w: m * w.mean(),
        "The product is summed up: that is the layer's output for the weight as input. "
        "Wanted is a matrix, so scale the columns and do not add.": lambda m, w: m @ w,
        "The matrix is transposed. nn.Linear keeps it as (out, D), and so should "
        "the folded one.": lambda m, w: (m * w).T,
    },
)
