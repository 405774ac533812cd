"""Checks of notebook 07: windows, the loss, AdamW, clipping, the learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillama.course.check import Case, Check

# 7.1 windows: what the model reads, and what it shall say


def windows(ids: Tensor, starts: list[int], context: int) -> tuple[Tensor, Tensor]:
    """Windows that begin at `starts`, and the same moved on by one: B T each."""
    rows = torch.stack([ids[start : start + context + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def _windows_by_index(
    ids: Tensor, starts: list[int], context: int
) -> tuple[Tensor, Tensor]:
    places = torch.tensor(starts)[:, None] + torch.arange(context)
    return ids[places], ids[places + 1]


def _windows_in_a_loop(
    ids: Tensor, starts: list[int], context: int
) -> tuple[Tensor, Tensor]:
    tokens = [[int(ids[s + i]) for i in range(context)] for s in starts]
    targets = [[int(ids[s + i]) for i in range(1, context + 1)] for s in starts]
    return torch.tensor(tokens), torch.tensor(targets)


def _cut(ids: Tensor, starts: list[int], context: int, by: int) -> Tensor:
    """Windows moved on by `by`; past an end the row goes on at the other one."""
    return torch.stack([ids.roll(-start - by)[:context] for start in starts])


Windows = Callable[[Tensor, list[int], int], Any]


def _targets(of: Callable[[Tensor, list[int], int], Tensor]) -> Windows:
    """Wrong windows: the right tokens with other targets."""
    return lambda ids, starts, context: (
        _cut(ids, starts, context, 0),
        of(ids, starts, context),
    )


def _rows(rng: torch.Generator) -> Iterable[Case]:
    yield torch.tensor([10, 11, 12, 13, 14, 15]), [0, 2], 3
    for tokens, batch, context in ((9, 1, 8), (40, 4, 5), (60, 3, 16)):
        ids = torch.randint(1000, (tokens,), generator=rng)
        last = tokens - context - 1  # the last place that holds a window
        starts = torch.randint(last + 1, (batch,), generator=rng).tolist()
        starts[-1] = last
        yield ids, starts, context


check_windows = Check(
    name="7.1",
    title="windows",
    reference=windows,
    inputs=_rows,
    solutions=(_windows_by_index, _windows_in_a_loop),
    mistakes={
        "The targets are the tokens themselves: the model would learn to copy. Target "
        "number i is the token after token i.": _targets(
            lambda ids, starts, context: _cut(ids, starts, context, 0)
        ),
        "The targets are the tokens before: the model would learn to look back. Target "
        "number i is the token after token i.": _targets(
            lambda ids, starts, context: _cut(ids, starts, context, -1)
        ),
        "The targets are moved on by two. Llama predicts the very next token.": (
            _targets(lambda ids, starts, context: _cut(ids, starts, context, 2))
        ),
        "The targets are the next window: moved on by the whole context. Llama moves "
        "them on by one.": _targets(
            lambda ids, starts, context: _cut(ids, starts, context, context)
        ),
        "The last target is the window's first token: roll brings it round. Take one "
        "token more, then cut off the first.": _targets(
            lambda ids, starts, context: _cut(ids, starts, context, 0).roll(-1, 1)
        ),
        "The last target is a zero: cut from a window that ends too soon. The row goes "
        "on after the window, so cut context + 1 ids.": _targets(
            lambda ids, starts, context: torch.cat(
                (
                    _cut(ids, starts, context, 0)[:, 1:],
                    torch.zeros(len(starts), 1, dtype=ids.dtype),
                ),
                1,
            )
        ),
        "Only the token after the window is a target. Llama learns from every "
        "position at once: T targets a window.": _targets(
            lambda ids, starts, context: _cut(ids, starts, context, context)[:, 0]
        ),
        "Tokens and targets are exchanged. The model reads the first and predicts the "
        "second.": lambda ids, starts, context: windows(ids, starts, context)[::-1],
        "The windows are one token short. Cut context + 1 ids: the last one is a "
        "target only.": lambda ids, starts, context: windows(ids, starts, context - 1),
        "The windows are one token long. Cut context + 1 ids in all: the first is "
        "read only, the last is a target only.": (
            lambda ids, starts, context: tuple(
                _cut(ids, starts, context + 1, by) for by in (0, 1)
            )
        ),
        "A window is a column here. Llama wants B T: a row for each window.": (
            lambda ids, starts, context: tuple(
                side.T for side in windows(ids, starts, context)
            )
        ),
        "The windows stand in one long row. Llama wants B T: a row for each window.": (
            lambda ids, starts, context: tuple(
                side.flatten() for side in windows(ids, starts, context)
            )
        ),
        "`starts` is not used: windows are cut side by side from the beginning. Each "
        "begins at its own number in `starts`.": lambda ids, starts, context: tuple(
            _cut(ids, [i * context for i in range(len(starts))], context, by)
            for by in (0, 1)
        ),
        "A start is taken for the number of a window, times the context. It is a place "
        "in the row of ids.": lambda ids, starts, context: tuple(
            _cut(ids, [s * context for s in starts], context, by) for by in (0, 1)
        ),
    },
)


# 7.2 cross_entropy


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of -log p(target), in float32; logits ... V, targets ..."""
    logits = logits.float()
    right = logits.gather(-1, targets[..., None])[..., 0]
    return (logits.logsumexp(-1) - right).mean()


def _from_torch(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def _by_one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    surprise = -logits.float().log_softmax(-1)
    return (surprise * F.one_hot(targets, logits.shape[-1])).sum(-1).mean()


def _with_the_maximum(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    z = logits - logits.max(-1, keepdim=True).values
    rows = z.exp().sum(-1).log() - z.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return rows.sum() / targets.numel()


def _picked(rows: Tensor, targets: Tensor) -> Tensor:
    """The number of each row that the target names."""
    return rows.gather(-1, targets[..., None])[..., 0]


def _softly(logits: Tensor, axis: int = -1) -> Tensor:
    return logits.float().log_softmax(axis)


def _without_maximum(logits: Tensor, targets: Tensor) -> Tensor:
    powers = logits.float().exp()
    return -_picked(powers / powers.sum(-1, keepdim=True), targets).log().mean()


def _sum_without_maximum(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return (logits.exp().sum(-1).log() - _picked(logits, targets)).mean()


def _shifted_again(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.dim() == 1 or targets.shape[-1] == 1:
        return cross_entropy(logits, targets)
    return cross_entropy(logits[..., :-1, :], targets[..., 1:])


def _along_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    axis = max(-2, -logits.dim())
    return -_picked(_softly(logits, axis), targets).mean()


def _predictions(rng: torch.Generator) -> Iterable[Case]:
    # e^0.6931 is 2: the probabilities are 1/4, 1/4, 1/2.
    two = math.log(2)
    logits = torch.tensor([[[0.0, 0.0, two], [two, 0.0, 0.0]]], requires_grad=True)
    yield logits, torch.tensor([[0, 0]])
    logits = torch.tensor([[100.0, 98.0, -100.0]] * 2, requires_grad=True)
    yield logits[:1], torch.tensor([1])
    yield logits, torch.tensor([1, 2])
    odd = 2 * int(torch.randint(2, 6, (1,), generator=rng)) + 1
    for shape in ((4, 7), (2, 3, 5), (3, 4, odd)):
        logits = 3 * torch.randn(shape, generator=rng)
        targets = torch.randint(shape[-1], shape[:-1], generator=rng)
        yield logits.requires_grad_(), targets
    # A hundred positions: half precision cannot add them up.
    logits = 2 * torch.randn(2, 50, 40, generator=rng)
    targets = torch.randint(40, (2, 50), generator=rng)
    yield logits.bfloat16().requires_grad_(), targets


check_cross_entropy = Check(
    name="7.2",
    title="cross_entropy",
    reference=cross_entropy,
    inputs=_predictions,
    solutions=(_from_torch, _by_one_hot, _with_the_maximum),
    mistakes={
        "The exponentials overflow: float32 cannot hold e to the 100. Subtract "
        "each row's largest logit first, or take log_softmax.": _without_maximum,
        "The sum of exponentials overflows: float32 cannot hold e to the 100. Subtract "
        "each row's largest logit first, or take logsumexp.": (_sum_without_maximum),
        "softmax, then the logarithm: in float32 a probability of e to the -200 is "
        "zero, and its surprise infinite. log_softmax does both in one.": lambda z, t: (
            -_picked(z.float().softmax(-1).log(), t).mean()
        ),
        "A small number is added to the probabilities, which hides the worst "
        "surprises: this one is 200. log_softmax needs no such help.": lambda z, t: (
            -_picked((z.float().softmax(-1) + 1e-9).log(), t).mean()
        ),
        "softmax comes twice: the loss takes logits, and these were probabilities "
        "already. One softmax, then the logarithm.": lambda z, t: cross_entropy(
            z.float().softmax(-1), t
        ),
        "The logarithm has base 2, so this counts bits. Llama's loss is in nats: the "
        "natural logarithm.": lambda z, t: cross_entropy(z, t) / math.log(2),
        "The logarithm has base 10. Llama's loss is in nats: the natural logarithm.": (
            lambda z, t: cross_entropy(z, t) / math.log(10)
        ),
        "The sign is missing. A loss falls as the target grows likelier: minus the "
        "mean logarithm.": lambda z, t: -cross_entropy(z, t),
        "The surprises are added up, not averaged: twice the tokens would be twice the "
        "loss. Llama takes the mean over all positions.": lambda z, t: (
            cross_entropy(z, t) * t.numel()
        ),
        "The mean runs over the vocabulary too, where all but one are zero. Llama "
        "divides by the number of positions.": lambda z, t: (
            cross_entropy(z, t) / z.shape[-1]
        ),
        "Added up along the tokens, averaged over the rows. Llama averages over all "
        "positions alike.": lambda z, t: (
            cross_entropy(z, t) * (t.shape[-1] if t.dim() > 1 else 1)
        ),
        "softmax runs along the tokens. For each position the probabilities of the "
        "vocabulary add up to one: the last axis.": _along_tokens,
        "softmax runs along axis 0, over the windows of the batch. For each position "
        "the probabilities of the vocabulary add up to one: the last axis.": (
            lambda z, t: -_picked(_softly(z, 0), t).mean()
        ),
        "Exponentials are divided by the sum of all of them, over all positions. The "
        "probabilities of each position add up to one: sum(-1, keepdim=True).": (
            lambda z, t: (
                -(_picked(z.float(), t) - z.float().flatten().logsumexp(0)).mean()
            )
        ),
        "The logarithm is missing: this is minus the mean probability. Llama's loss is "
        "the mean of minus log p.": lambda z, t: -_picked(_softly(z), t).exp().mean(),
        "This is the share that was missed, 1 - p. Llama's loss is minus log p, which "
        "has no upper end.": lambda z, t: (1 - _picked(_softly(z), t).exp()).mean(),
        "The mean is taken before the logarithm. Llama takes the logarithm of each "
        "probability, then the mean.": lambda z, t: (
            -_picked(_softly(z), t).exp().mean().log()
        ),
        "The targets are not used: this is the mean surprise of all tokens of the "
        "vocabulary. Pick the one that really came: gather(-1, targets[..., None]).": (
            lambda z, t: -_softly(z).mean()
        ),
        "The logit of the target alone, without the others. A logit says nothing by "
        "itself: subtract logsumexp of its row.": lambda z, t: (
            -_picked(z.float(), t).mean()
        ),
        "The likeliest token's surprise, whatever the target is. Pick the one that the "
        "target names.": lambda z, t: -_softly(z).amax(-1).mean(),
        "You shift once more: these targets are moved on by one already. Row i of the "
        "logits goes with target i.": _shifted_again,
        "Each position's surprise comes back. Llama's loss is one number: their "
        "mean.": lambda z, t: -_picked(_softly(z), t),
        "log_softmax is taken in bfloat16, which keeps two or three digits. Llama's "
        "loss is computed in float32: logits.float() first.": lambda z, t: (
            -_picked(z.log_softmax(-1), t).float().mean()
        ),
        "All is computed in bfloat16, which keeps two or three digits. Llama's loss is "
        "a float32: logits.float() first.": lambda z, t: (
            -_picked(z.log_softmax(-1), t).mean()
        ),
        "F.cross_entropy looks for the vocabulary on axis 1, where the tokens are. "
        "Flatten first: logits.flatten(0, -2), targets.flatten().": (
            lambda z, t: F.cross_entropy(z.float(), t)
        ),
    },
)


# 7.3 one step of AdamW

BETA1, BETA2, EPS = 0.9, 0.95, 1e-8
Stepped = tuple[Tensor, Tensor, Tensor]


def adamw_step(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float
) -> Stepped:
    """Weights and both averages after step t = 1, 2, 3 ..."""
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g * g
    along = m / (1 - BETA1**t)
    size = (v / (1 - BETA2**t)).sqrt() + EPS
    return w - lr * (along / size + decay * w), m, v


def _decay_first(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float
) -> Stepped:
    m, v = m.lerp(g, 1 - BETA1), v.lerp(g.square(), 1 - BETA2)
    w = w * (1 - lr * decay)
    scale = lr * math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    return w - scale * m / (v.sqrt() + EPS * math.sqrt(1 - BETA2**t)), m, v


def _one_by_one(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float
) -> Stepped:
    new = torch.empty_like(w), torch.empty_like(m), torch.empty_like(v)
    for i in range(w.numel()):
        grad, weight = g.flatten()[i].item(), w.flatten()[i].item()
        first = 0.9 * m.flatten()[i].item() + 0.1 * grad
        second = 0.95 * v.flatten()[i].item() + 0.05 * grad**2
        unbiased = first / (1 - 0.9**t), second / (1 - 0.95**t)
        step = unbiased[0] / (unbiased[1] ** 0.5 + 1e-8) + decay * weight
        for place, number in zip(new, (weight - lr * step, first, second), strict=True):
            place.view(-1)[i] = number
    return new


def _adamw(
    *,
    beta1: float = BETA1,
    beta2: float = BETA2,
    corrected: tuple[bool, bool] = (True, True),
    late: int = 0,
    size: Callable[[Tensor], Tensor] = lambda v: v.sqrt() + EPS,
    l2: bool = False,
    pull: Callable[[Tensor, float, float], Tensor] = lambda w, lr, decay: (
        lr * decay * w
    ),
    way: float = -1.0,
    keep: bool = True,
    shares: tuple[float, float] | None = None,
    power: tuple[float, float] | None = None,
    share: Callable[[float, int], float] = lambda beta, t: 1 - beta**t,
) -> Callable[..., Any]:
    """A wrong AdamW: each argument is one mistake."""

    def wrong(
        w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float
    ) -> Any:
        if l2:
            g = g + decay * w
        takes = shares or (1 - beta1, 1 - beta2)
        m = beta1 * m + takes[0] * g
        v = beta2 * v + takes[1] * g * g
        right = [share(beta, t - late) for beta in power or (beta1, beta2)]
        along = m / right[0] if corrected[0] else m
        around = v / right[1] if corrected[1] else v
        moved = w + way * lr * along / size(around)
        moved = moved if l2 else moved - pull(w, lr, decay)
        return (moved, m, v) if keep else (moved, along, around)

    return wrong


def _with_v(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float
) -> Stepped:
    """The step of AdamW with another v, that of this step already."""
    m = BETA1 * m + (1 - BETA1) * g
    size = (v / (1 - BETA2**t)).sqrt() + EPS
    return w - lr * (m / (1 - BETA1**t) / size + decay * w), m, v


def _without_averages(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float
) -> Stepped:
    _, m, v = adamw_step(w, g, m, v, t, lr, decay)
    return w - lr * (g / (g.square().sqrt() + EPS) + decay * w), m, v


def _steps(rng: torch.Generator) -> Iterable[Case]:
    w, zero = torch.tensor([2.0, -1.0]), torch.zeros(2)
    yield w, torch.tensor([0.5, 4.0]), zero, zero.clone(), 1, 0.1, 0.1
    # So small a gradient that eps counts.
    small = torch.tensor([1e-7, -2e-8])
    yield w, small, 0.5 * small, small.square(), 7, 0.1, 0.0
    for shape, t in (((3,), 2), ((2, 4), 5), ((5, 3), 400)):
        draw = [torch.randn(shape, generator=rng) for _ in range(4)]
        w, g, m, v = draw
        yield w, 3 * g, m, 2 * v.square() + 0.1, t, 0.05, 0.3


check_adamw = Check(
    name="7.3",
    title="adamw_step",
    reference=adamw_step,
    inputs=_steps,
    solutions=(_decay_first, _one_by_one),
    mistakes={
        "Neither average is corrected for its start at zero, so the first steps are of "
        "the wrong size. AdamW divides m by 1 - 0.9^t and v by 1 - 0.95^t.": _adamw(
            corrected=(False, False)
        ),
        "m is not corrected for its start at zero. AdamW divides it by 1 - 0.9^t, as "
        "it divides v by 1 - 0.95^t.": _adamw(corrected=(False, True)),
        "v is not corrected for its start at zero. AdamW divides it by 1 - 0.95^t, as "
        "it divides m by 1 - 0.9^t.": _adamw(corrected=(True, False)),
        "The correction counts from 0, and so is one step late. At the first step t is "
        "1: 1 - 0.9^t is 0.1.": _adamw(late=1),
        "The correction counts one step too many. At the first step t is 1 already: "
        "1 - 0.9^t is 0.1.": _adamw(late=-1),
        "The corrected averages are handed on. AdamW corrects a copy and keeps m and v "
        "as they are, or they would be corrected twice.": _adamw(keep=False),
        "The decay is added to the gradient: that is L2, and Adam then divides it by "
        "the gradient's size. AdamW takes lr decay w off the weight itself.": _adamw(
            l2=True
        ),
        "The decay is taken off the weight that has moved already. AdamW takes it off "
        "the weight as it came: lr decay w.": lambda w, g, m, v, t, lr, decay: (
            adamw_step(w, g, m, v, t, lr, 0.0)[0] * (1 - lr * decay),
            *adamw_step(w, g, m, v, t, lr, 0.0)[1:],
        ),
        "There is no decay. AdamW takes lr decay w off each weight.": _adamw(
            pull=lambda w, lr, decay: 0 * w
        ),
        "The decay forgets the learning rate. AdamW takes lr decay w off the weight.": (
            _adamw(pull=lambda w, lr, decay: decay * w)
        ),
        "The decay has the wrong sign: weights grow. AdamW pulls them towards zero: "
        "w - lr decay w.": _adamw(pull=lambda w, lr, decay: -lr * decay * w),
        "eps stands inside the root, where it counts for a thousand times more. AdamW "
        "adds it after the root: sqrt(v) + eps.": _adamw(
            size=lambda v: (v + EPS).sqrt()
        ),
        "eps is missing: where the gradient stays zero, zero is divided by zero. AdamW "
        "adds it after the root: sqrt(v) + eps.": _adamw(size=lambda v: v.sqrt()),
        "The root is missing: v is a mean of squares. AdamW divides by its root.": (
            _adamw(size=lambda v: v + EPS)
        ),
        "v averages absolute values. AdamW averages squares, g * g, and takes the root "
        "of the mean.": lambda w, g, m, v, t, lr, decay: _with_v(
            w, g, m, BETA2 * v + (1 - BETA2) * g.abs(), t, lr, decay
        ),
        "v averages the squares of m. AdamW averages those of the gradient: g * g.": (
            lambda w, g, m, v, t, lr, decay: _with_v(
                w,
                g,
                m,
                BETA2 * v + (1 - BETA2) * (BETA1 * m + (1 - BETA1) * g).square(),
                t,
                lr,
                decay,
            )
        ),
        "Neither average is corrected for its start at zero, and there is no decay. "
        "AdamW divides m and v by 1 - beta^t, and takes lr decay w off.": _adamw(
            corrected=(False, False), pull=lambda w, lr, decay: 0 * w
        ),
        "The gradient is added whole. A running mean takes a share of it, 1 - beta: "
        "m = 0.9 m + 0.1 g, v = 0.95 v + 0.05 g g.": _adamw(shares=(1.0, 1.0)),
        "beta and 1 - beta are exchanged, so the means forget almost all. m keeps 0.9 "
        "of itself and takes 0.1 of g.": _adamw(
            beta1=1 - BETA1, beta2=1 - BETA2, power=(BETA1, BETA2)
        ),
        "beta is multiplied by t, not raised to it. The means are corrected by "
        "1 - beta ** t.": _adamw(share=lambda beta, t: 1 - beta * t),
        "It goes uphill. A step goes against the gradient: minus lr.": _adamw(way=1.0),
        "m is not divided by the size sqrt(v): that is momentum alone. Adam's steps "
        "are of size lr, however large the gradient is.": _adamw(
            size=lambda v: torch.ones_like(v)
        ),
        "The two betas are exchanged. m forgets faster, with 0.9; v, with 0.95.": (
            _adamw(beta1=0.95, beta2=0.9)
        ),
        "beta2 is 0.999, PyTorch's own. Llama takes 0.95, which forgets a wild batch "
        "sooner.": _adamw(beta2=0.999),
        "The gradient itself is divided by its size, so each step is of size lr and "
        "noise is not averaged. AdamW steps along m, divided by sqrt(v).": (
            _without_averages
        ),
    },
)


# 7.4 clipping


def clip(gradients: list[Tensor], limit: float) -> list[Tensor]:
    """All gradients shortened by one factor, if together they are longer than limit."""
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    return [g * min(1.0, limit / norm) if norm else g for g in gradients]


def _in_one_row(gradients: list[Tensor], limit: float) -> list[Tensor]:
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    if norm <= limit:
        return [g.clone() for g in gradients]
    return [g / norm * limit for g in gradients]


def _by_torch(gradients: list[Tensor], limit: float) -> list[Tensor]:
    norm = torch.stack([g.norm() for g in gradients]).norm()
    return [g * (limit / (norm + 1e-6)).clamp(max=1.0) for g in gradients]


def _norm(gradients: list[Tensor], power: float = 2.0) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).norm(power)


def _shortened(
    length: Callable[[list[Tensor]], Tensor],
) -> Callable[[list[Tensor], float], list[Tensor]]:
    """A wrong clip: the length of all gradients measured in another way."""

    def wrong(gradients: list[Tensor], limit: float) -> list[Tensor]:
        factor = (limit / length(gradients)).clamp(max=1.0)
        return [g * factor for g in gradients]

    return wrong


def _gradients(rng: torch.Generator) -> Iterable[Case]:
    # 3 and 4 are the sides of a triangle whose long side is 5.
    yield [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [-4.0]])], 1.0
    yield [torch.tensor([0.3, 0.0]), torch.tensor([[0.0], [-0.4]])], 1.0  # short
    yield [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [-4.0]])], 2.0
    # Each is short enough, and all together are not.
    yield [torch.full((2,), 0.6), torch.full((3,), 0.5), torch.full((1,), -0.9)], 1.0
    many = int(torch.randint(3, 7, (1,), generator=rng))
    yield [torch.randn(i, 3, generator=rng) for i in range(1, many)], 0.5
    yield [torch.zeros(2), torch.zeros(3)], 1.0


check_clip = Check(
    name="7.4",
    title="clip",
    reference=clip,
    inputs=_gradients,
    solutions=(_in_one_row, _by_torch),
    mistakes={
        "Each tensor is clipped by its own length, which bends the step. Llama "
        "measures all gradients together and shortens them by one factor.": (
            lambda gs, limit: [g * (limit / g.norm()).clamp(max=1.0) for g in gs]
        ),
        "Each number is cut off at the limit, which bends the step. Llama shortens all "
        "gradients by one factor.": lambda gs, limit: [
            g.clamp(-limit, limit) for g in gs
        ],
        "Short gradients are made longer: every step would have the same length. Llama "
        "shortens long ones and leaves the rest.": lambda gs, limit: [
            g * (limit / _norm(gs)) for g in gs
        ],
        "Short gradients are made longer, and zeros are divided by zero's eps. Llama "
        "shortens long ones and leaves the rest.": lambda gs, limit: [
            g * (limit / (_norm(gs) + 1e-6)) for g in gs
        ],
        "The condition is the wrong way round: short gradients are made longer, long "
        "ones are left. Llama shortens those above the limit.": lambda gs, limit: [
            g * (limit / _norm(gs)).clamp(min=1.0) for g in gs
        ],
        "The root is missing: this compares the square of the length with the limit. "
        "The length is the root of the sum of squares.": _shortened(
            lambda gs: _norm(gs).square()
        ),
        "The lengths of the tensors are added up. Llama takes the root of the sum of "
        "their squares, as if all were one long vector.": _shortened(
            lambda gs: torch.stack([g.norm() for g in gs]).sum()
        ),
        "The longest tensor's length is taken for all. Llama takes the root of the sum "
        "of the squares of all.": _shortened(
            lambda gs: torch.stack([g.norm() for g in gs]).amax()
        ),
        "The largest number is taken for the length. Llama takes the root of the sum "
        "of squares.": _shortened(lambda gs: _norm(gs, math.inf)),
        "Absolute values are added up. Llama takes the root of the sum of squares.": (
            _shortened(lambda gs: _norm(gs, 1.0))
        ),
        "The numbers of a tensor are added before they are squared, so opposite ones "
        "cancel. Llama squares each, then adds.": _shortened(
            lambda gs: torch.stack([g.sum() for g in gs]).norm()
        ),
        "The mean of the squares is taken, so the limit would depend on the number of "
        "weights. Llama takes their sum.": _shortened(
            lambda gs: _norm(gs) / math.sqrt(sum(g.numel() for g in gs))
        ),
        "Long gradients come out with length one, whatever the limit is. Llama makes "
        "them as long as the limit.": lambda gs, limit: [
            g / _norm(gs) if _norm(gs) > limit else g for g in gs
        ],
        "Long gradients are divided by the limit, not by their length. Llama "
        "multiplies by limit / length.": lambda gs, limit: [
            g / limit if _norm(gs) > limit else g for g in gs
        ],
        "A long gradient is thrown away. Llama shortens it: it still says the way.": (
            lambda gs, limit: [g * (_norm(gs) <= limit) for g in gs]
        ),
        "Nothing is clipped. Llama multiplies all gradients by limit / length where "
        "they are longer than the limit.": lambda gs, limit: [g.clone() for g in gs],
    },
)


# 7.5 the learning rate


def rate(
    step: int, steps: int, peak: float, warmup: int, anneal: int, ratio: float
) -> float:
    """Up in a line, down a cosine to ratio * peak, and over the last steps to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    turn = steps - anneal
    if step > turn:
        top = rate(turn, steps, peak, warmup, anneal, ratio)
        return top * (steps - step) / anneal
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (ratio + (1 - ratio) * (1 + math.cos(math.pi * done)) / 2)


def _rate_without_recursion(
    step: int, steps: int, peak: float, warmup: int, anneal: int, ratio: float
) -> float:
    if step < warmup:
        return (step + 1) / warmup * peak
    last = min(step, steps - anneal)
    phase = (last - warmup) / (steps - warmup) * math.pi
    cosine = peak * ratio + 0.5 * peak * (1 - ratio) * (1 + math.cos(phase))
    left = 1.0 if step <= last else (steps - step) / anneal
    return cosine * left


def _rate_of_a_table(
    step: int, steps: int, peak: float, warmup: int, anneal: int, ratio: float
) -> float:
    table = [peak * i / warmup for i in range(1, warmup + 1)]
    for i in range(steps - warmup + 1):
        half = math.cos(math.pi * i / (steps - warmup)) / 2 + 0.5
        table.append(peak * half + peak * ratio * (1 - half))
    start = table[steps - anneal]
    for i in range(anneal):
        table[steps - anneal + i] = start * (anneal - i) / anneal
    return table[step]


Rate = Callable[[int, int, float, int, int, float], float]


def _rate(
    *,
    up: Callable[[int, int], float] = lambda step, warmup: (step + 1) / warmup,
    done: Callable[[int, int, int, int], float] = lambda step, steps, warmup, anneal: (
        (step - warmup) / (steps - warmup)
    ),
    bend: Callable[[float], float] = lambda done: (1 + math.cos(math.pi * done)) / 2,
    floor: Callable[[float, float, float], float] = lambda cosine, ratio, peak: (
        ratio + (1 - ratio) * cosine
    ),
    left: Callable[[int, int, int], float] = lambda step, steps, anneal: (
        (steps - step) / anneal
    ),
    end: Callable[[float, float, float], float] = lambda top, left, low: top * left,
    top: Callable[[float, float], float] = lambda cosine, peak: cosine,
    late: int = 0,
) -> Rate:
    """A wrong schedule: each argument is one mistake."""

    def wrong(
        step: int, steps: int, peak: float, warmup: int, anneal: int, ratio: float
    ) -> float:
        def falling(step: int) -> float:
            cosine = bend(done(step, steps, warmup, anneal))
            return peak * floor(cosine, ratio, peak)

        if warmup and step < warmup + late:
            return peak * up(step, warmup)
        turn = steps - anneal
        if anneal and step > turn:
            high = top(falling(turn), peak)
            return end(high, left(step, steps, anneal), peak * ratio)
        return falling(step)

    return wrong


def _places(rng: torch.Generator) -> Iterable[Case]:
    peak = 0.1
    for step in (0, 3, 4, 6, 9, 11):  # 4 of warm-up, 8 down, 4 of them to zero
        yield step, 12, peak, 4, 4, 0.1
    for step in (0, 1, 5, 9):  # no warm-up, no annealing
        yield step, 10, peak, 0, 0, 0.1
    steps = int(torch.randint(60, 200, (1,), generator=rng))
    warmup, anneal = steps // 7, steps // 3
    for share in (0.03, 0.3, 0.5, 0.8, 0.95):
        yield int(share * steps), steps, 3e-3, warmup, anneal, 0.05


check_rate = Check(
    name="7.5",
    title="learning_rate",
    reference=rate,
    inputs=_places,
    atol=0,
    solutions=(_rate_without_recursion, _rate_of_a_table),
    mistakes={
        "The warm-up begins at zero, so the first batch teaches nothing. Step 0 takes "
        "1/warmup of the peak: (step + 1) / warmup.": _rate(
            up=lambda step, warmup: step / warmup
        ),
        "The warm-up lasts one step too long and ends above the peak. At step number "
        "`warmup` the cosine begins: step < warmup.": _rate(
            up=lambda step, warmup: (step + 1) / warmup, late=1
        ),
        "The warm-up is divided by warmup + 1, so its last step is below the peak. Its "
        "last step takes the peak: (step + 1) / warmup.": _rate(
            up=lambda step, warmup: (step + 1) / (warmup + 1)
        ),
        "The peak is not used: this is a share of it. Multiply by the peak.": (
            lambda step, steps, peak, warmup, anneal, ratio: rate(
                step, steps, 1.0, warmup, anneal, ratio
            )
        ),
        "The warm-up is not multiplied by the peak: it climbs to 1. Llama climbs to "
        "the peak.": lambda step, steps, peak, warmup, anneal, ratio: rate(
            step, steps, 1.0 if step < warmup else peak, warmup, anneal, ratio
        ),
        "The warm-up begins at zero and there is no annealing. Llama's step 0 takes "
        "1/warmup of the peak, and its last steps go in a line to zero.": (
            lambda step, steps, peak, warmup, anneal, ratio: (
                peak * step / warmup
                if step < warmup
                else rate(step, steps, peak, warmup, 0, ratio)
            )
        ),
        "There is neither warm-up nor annealing. Llama climbs to the peak in a line, "
        "and goes to zero in a line over the last steps.": (
            lambda step, steps, peak, warmup, anneal, ratio: (
                peak if step < warmup else rate(step, steps, peak, warmup, 0, ratio)
            )
        ),
        "There is no warm-up: the first step takes the peak. Llama climbs to it in a "
        "line, peak (step + 1) / warmup.": _rate(up=lambda step, warmup: 1.0),
        "The warm-up bends like the cosine. Llama climbs in a straight line.": _rate(
            up=lambda step, warmup: (1 - math.cos(math.pi * (step + 1) / warmup)) / 2
        ),
        "The cosine counts from step 0, so the rate jumps down after the warm-up. Its "
        "top lies where the warm-up ends: (step - warmup) / (steps - warmup).": _rate(
            done=lambda step, steps, warmup, anneal: step / steps
        ),
        "The cosine subtracts the warm-up above and not below, so it never reaches its "
        "end. It runs over steps - warmup.": _rate(
            done=lambda step, steps, warmup, anneal: (step - warmup) / steps
        ),
        "The cosine is squeezed in before the annealing. It runs to the last step, "
        "and the annealing cuts it short.": _rate(
            done=lambda step, steps, warmup, anneal: (
                (step - warmup) / max(1, steps - warmup - anneal)
            )
        ),
        "The cosine ends one step early, at steps - 1. It runs over steps - warmup, so "
        "its end would be at step `steps`.": _rate(
            done=lambda step, steps, warmup, anneal: (
                (step - warmup) / (steps - 1 - warmup)
            )
        ),
        "The cosine is one step ahead, so that no step after the warm-up has the peak. "
        "It begins with step - warmup, which is 0 there.": _rate(
            done=lambda step, steps, warmup, anneal: (
                (step + 1 - warmup) / (steps - warmup)
            )
        ),
        "The cosine lacks pi: it goes from 1 to 0.54 only. Half a wave is cos(pi "
        "done).": _rate(bend=lambda done: (1 + math.cos(done)) / 2),
        "The cosine is a whole wave: down, and up again. Llama takes half of one, from "
        "1 to -1: cos(pi done).": _rate(
            bend=lambda done: (1 + math.cos(2 * math.pi * done)) / 2
        ),
        "The cosine is a quarter of a wave, steep at its end. Llama takes half of one, "
        "(1 + cos(pi done)) / 2.": _rate(
            bend=lambda done: math.cos(math.pi * done / 2)
        ),
        "The cosine runs from 1 to -1 and the rate turns negative. Llama halves and "
        "lifts it: (1 + cos(pi done)) / 2.": _rate(
            bend=lambda done: math.cos(math.pi * done)
        ),
        "The fall is a straight line. Llama's is half a cosine: slow at first, fast in "
        "the middle.": _rate(bend=lambda done: 1 - done),
        "The cosine falls to zero. Llama's ends at ratio times the peak.": _rate(
            floor=lambda cosine, ratio, peak: cosine
        ),
        "The floor is added on top, so the rate begins above its peak. Llama goes from "
        "1 to ratio: ratio + (1 - ratio) cosine.": _rate(
            floor=lambda cosine, ratio, peak: ratio + cosine
        ),
        "The cosine is cut off at the floor. Llama's is flattened so that it reaches "
        "the floor at its end: ratio + (1 - ratio) cosine.": _rate(
            floor=lambda cosine, ratio, peak: max(ratio, cosine)
        ),
        "`ratio` is taken for a learning rate. It is a share of the peak.": _rate(
            floor=lambda cosine, ratio, peak: ratio / peak + (1 - ratio / peak) * cosine
        ),
        "There is no annealing. Over the last steps Llama takes a straight line to "
        "zero.": lambda step, steps, peak, warmup, anneal, ratio: rate(
            step, steps, peak, warmup, 0, ratio
        ),
        "The annealing begins at the peak, so the rate jumps up. It begins where the "
        "cosine stands: rate(steps - anneal).": _rate(top=lambda cosine, peak: peak),
        "The annealing begins at the cosine's floor, so the rate jumps down. It begins "
        "where the cosine stands: rate(steps - anneal).": _rate(
            end=lambda top, left, low: low * left
        ),
        "The annealing ends at the cosine's floor. Llama's goes to zero.": _rate(
            end=lambda top, left, low: low + (top - low) * left
        ),
        "The cosine goes on falling under the annealing, and so is counted twice. The "
        "line begins at one value: the rate at steps - anneal.": (
            lambda step, steps, peak, warmup, anneal, ratio: (
                rate(step, steps, peak, warmup, 0, ratio)
                * min(1.0, (steps - step) / max(1, anneal))
            )
        ),
        "The annealing is at zero in the last step already, which then teaches "
        "nothing. Zero would come after it: (steps - step) / anneal.": _rate(
            left=lambda step, steps, anneal: (steps - 1 - step) / anneal
        ),
    },
)
