"""Checks of notebook 11: scores of heads, a head taken away, the logit lens."""

from collections.abc import Iterable

import torch
from torch import Tensor

from minillama.course.check import Case, Check


def _shares(*shape: int, rng: torch.Generator) -> Tensor:
    """Attention as a causal model has it: each row adds up to one."""
    scores = 2 * torch.randn(*shape, shape[-1], generator=rng)
    hidden = torch.ones(shape[-1], shape[-1], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def _by_hand() -> Tensor:
    """The table that the notebook works out by hand, in quarters: period 3."""
    rows = [
        [4, 0, 0, 0, 0, 0],
        [2, 2, 0, 0, 0, 0],
        [2, 1, 1, 0, 0, 0],
        [1, 3, 0, 0, 0, 0],
        [1, 1, 2, 0, 0, 0],
        [1, 0, 1, 1, 0, 1],
    ]
    return torch.tensor(rows) / 4


# 11.1 previous_token_score


def previous_token_score(attention: Tensor) -> Tensor:
    """The mean share of the token just before, over all queries that have one."""
    return attention.diagonal(-1, -2, -1).mean(-1)


def _previous_by_loop(attention: Tensor) -> Tensor:
    tokens = attention.shape[-1]
    total = torch.zeros(attention.shape[:-2])
    for t in range(1, tokens):
        total = total + attention[..., t, t - 1]
    return total / (tokens - 1)


def _previous_by_index(attention: Tensor) -> Tensor:
    t = torch.arange(1, attention.shape[-1])
    return attention[..., t, t - 1].mean(-1)


def _heads(rng: torch.Generator) -> Iterable[Case]:
    yield (_by_hand()[:3, :3],)
    yield (_by_hand(),)
    tokens = int(torch.randint(5, 9, (1,), generator=rng))
    for shape in ((3, 4), (2, 3, tokens), (2, 2, 3, 7)):
        yield (_shares(*shape, rng=rng),)


check_previous_token_score = Check(
    name="11.1",
    title="previous_token_score",
    reference=previous_token_score,
    inputs=_heads,
    solutions=(_previous_by_loop, _previous_by_index),
    mistakes={
        "The main diagonal is read: each token's share for itself. The token before "
        "stands one column to the left, at attention[..., t, t - 1].": lambda a: (
            a.diagonal(0, -2, -1).mean(-1)
        ),
        "The entry above the diagonal is read, attention[..., t, t + 1]: the next "
        "token, which a Llama never sees. Queries are rows, keys are columns.": (
            lambda a: a.diagonal(1, -2, -1).mean(-1)
        ),
        "Row 0 is counted too: the sum is divided by T. The first token has none "
        "before it, so T - 1 queries are left.": lambda a: (
            a.diagonal(-1, -2, -1).sum(-1) / a.shape[-1]
        ),
        "The main diagonal is read without its first entry: each token's share for "
        "itself. The token before stands one column to the left.": lambda a: a.diagonal(
            0, -2, -1
        )[..., 1:].mean(-1),
        "The shares are added up, not averaged: a longer text would score more. Divide "
        "by the number of queries, T - 1.": lambda a: a.diagonal(-1, -2, -1).sum(-1),
        "One number for all heads. Each head gets its own: the axes before the last "
        "two stay.": lambda a: a.diagonal(-1, -2, -1).mean(),
        "The shares come back one for each token. The score is their mean, one number "
        "a head.": lambda a: a.diagonal(-1, -2, -1).clone(),
        "The first token's column is read: that is the sink. The previous token moves "
        "along with the query: column t - 1.": lambda a: a[..., 1:, 0].mean(-1),
        "The token two places before is read. The one just before stands at column "
        "t - 1.": lambda a: a.diagonal(-2, -2, -1).mean(-1),
        "The largest share is taken. The score is the mean over the queries: one lucky "
        "row makes no previous-token head.": lambda a: a.diagonal(-1, -2, -1).amax(-1),
        "The mean runs over the first axis, of layers or heads. Average over the "
        "queries, the last axis of what was read.": lambda a: a.diagonal(
            -1, -2, -1
        ).mean(0),
        "The queries are counted whose largest share is the token before. The score is "
        "the mean of the shares themselves.": lambda a: (
            (a.argmax(-1)[..., 1:] == torch.arange(a.shape[-1] - 1)).float().mean(-1)
        ),
        "The diagonal runs through the first two axes, of layers or heads. Queries and "
        "keys are the last two: diagonal(-1, -2, -1).": lambda a: a.diagonal(-1).mean(
            -1
        ),
        "All entries are averaged, and as rows add up to one, that is 1/T for every "
        "head. Read those one column left of the diagonal alone.": lambda a: a.mean(
            (-1, -2)
        ),
    },
)

# 11.2 induction_score


def induction_score(attention: Tensor, period: int) -> Tensor:
    """The mean share of the token after the first occurrence, in the second half."""
    t = torch.arange(period, attention.shape[-1])
    return attention[..., t, t - period + 1].mean(-1)


def _induction_by_loop(attention: Tensor, period: int) -> Tensor:
    found = [
        attention[..., t, t - period + 1] for t in range(period, attention.shape[-1])
    ]
    return sum(found) / len(found)  # type: ignore[return-value]


def _induction_by_diagonal(attention: Tensor, period: int) -> Tensor:
    # The first entry is the last query of the first half: it has seen no repetition.
    return attention.diagonal(1 - period, -2, -1)[..., 1:].mean(-1)


def _repeated(rng: torch.Generator) -> Iterable[Case]:
    yield _by_hand(), 3
    yield _shares(8, rng=rng), 4
    period = int(torch.randint(3, 7, (1,), generator=rng))
    yield _shares(2, 3, 2 * period, rng=rng), period
    yield _shares(2, 2, 2, 10, rng=rng), 5


def _at(a: Tensor, period: int, offset: int) -> Tensor:
    t = torch.arange(period, a.shape[-1])
    return a[..., t, t - period + offset]


check_induction_score = Check(
    name="11.2",
    title="induction_score",
    reference=induction_score,
    inputs=_repeated,
    solutions=(_induction_by_loop, _induction_by_diagonal),
    mistakes={
        "The first occurrence itself is read, key t - period: that finds "
        "duplicate-token heads. Induction looks at the token after it, t - period + "
        "1.": lambda a, p: _at(a, p, 0).mean(-1),
        "The token before the first occurrence is read, t - period - 1. Induction "
        "looks at the one after it, t - period + 1.": lambda a, p: a.diagonal(
            -p - 1, -2, -1
        ).mean(-1),
        "The whole diagonal is averaged. Its first entry is the sink's share: it "
        "belongs to query period - 1, which has seen no repetition. Begin at query "
        "period.": lambda a, p: a.diagonal(1 - p, -2, -1).mean(-1),
        "The sum is divided by all T queries. The first half has seen no repetition: "
        "divide by the queries of the second.": lambda a, p: (
            _at(a, p, 1).sum(-1) / a.shape[-1]
        ),
        "The first half is averaged in, where t - period + 1 is negative and Python "
        "counts from the end. Begin at query period.": lambda a, p: torch.stack(
            [a[..., t, t - p + 1] for t in range(a.shape[-1])]
        ).mean(0),
        "The token two after the first occurrence is read. The one that came next "
        "stands at t - period + 1.": lambda a, p: _at(a, p, 2).mean(-1),
        "The first occurrence itself is read, t - period, and over all queries. "
        "Induction looks at t - period + 1, and begins at query period.": lambda a, p: (
            torch.stack([a[..., t, t - p] for t in range(a.shape[-1])]).mean(0)
        ),
        "One query is read, the first of the second half. Average over all queries "
        "from period to T - 1.": lambda a, p: a[..., p, 1].clone(),
        "The last query is left out: its place, period, lies in the second half. "
        "Average over all queries from period to T - 1.": lambda a, p: _at(a, p, 1)[
            ..., :-1
        ].mean(-1),
        "All shares that the second half gives to the first are averaged. For each "
        "query one key counts, t - period + 1.": lambda a, p: a[..., p:, :p].mean(
            (-1, -2)
        ),
        "Rows and columns are exchanged, and a Llama's key never asks a later query: "
        "queries are rows, attention[..., t, t - period + 1].": lambda a, p: a.diagonal(
            p - 1, -2, -1
        )[..., 1:].mean(-1),
        "One number for all heads. Each head gets its own: the axes before the last "
        "two stay.": lambda a, p: _at(a, p, 1).mean(),
        "The shares are added up, not averaged: a longer text would score "
        "more. Divide by the number of queries.": lambda a, p: _at(a, p, 1).sum(-1),
        "The shares come back one for each token. The score is their mean, one number "
        "a head.": lambda a, p: _at(a, p, 1),
        "The token just before is read: that is the previous-token score. The one "
        "after the first occurrence stands at t - period + 1.": lambda a, p: a.diagonal(
            -1, -2, -1
        )[..., p - 1 :].mean(-1),
    },
)

# 11.3 mean_ablate


def mean_ablate(joined: Tensor, head: int, head_dim: int) -> Tensor:
    """A head's numbers replaced by their means over texts and tokens, a copy."""
    own = slice(head * head_dim, (head + 1) * head_dim)
    out = joined.clone()
    out[..., own] = joined[..., own].mean((0, 1))
    return out


def _ablate_by_axes(joined: Tensor, head: int, head_dim: int) -> Tensor:
    heads = joined.unflatten(-1, (-1, head_dim))
    chosen = torch.arange(heads.shape[2])[:, None] == head
    means = heads.mean((0, 1), keepdim=True).expand_as(heads)
    return torch.where(chosen, means, heads).flatten(2)


def _ablate_by_pieces(joined: Tensor, head: int, head_dim: int) -> Tensor:
    pieces = list(joined.split(head_dim, dim=-1))
    flat = pieces[head].reshape(-1, head_dim)
    pieces[head] = (flat.sum(0) / len(flat)).expand(pieces[head].shape)
    return torch.cat(pieces, -1)


def _put(joined: Tensor, own: slice, value: Tensor | float) -> Tensor:
    out = joined.clone()
    out[..., own] = value
    return out


def _joined(rng: torch.Generator) -> Iterable[Case]:
    yield torch.tensor([[[1.0, 2, 3, 4], [3, 0, 5, 6]]]), 0, 2
    yield torch.arange(16.0).reshape(2, 2, 4).square(), 1, 2
    texts, head = torch.randint(2, 4, (2,), generator=rng).tolist()
    yield torch.randn(texts, 5, 20, generator=rng), head, 4
    yield torch.randn(2, 3, 18, generator=rng), 1, 3
    yield torch.randn(3, 4, 12, generator=rng), 2, 3


def _own(head: int, head_dim: int) -> slice:
    return slice(head * head_dim, (head + 1) * head_dim)


def _others(joined: Tensor, head: int, head_dim: int) -> Tensor:
    out = joined.mean((0, 1), keepdim=True).expand_as(joined).clone()
    own = _own(head, head_dim)
    out[..., own] = joined[..., own]
    return out


check_mean_ablate = Check(
    name="11.3",
    title="mean_ablate",
    reference=mean_ablate,
    inputs=_joined,
    solutions=(_ablate_by_axes, _ablate_by_pieces),
    mistakes={
        "Zeros are written: that is zero ablation. Here the head's numbers become "
        "their means over all texts and tokens.": lambda j, h, d: _put(
            j, _own(h, d), 0.0
        ),
        "The mean of all heads' numbers is written. Each number of the head has a mean "
        "of its own, over texts and tokens.": lambda j, h, d: _put(
            j, _own(h, d), j.mean()
        ),
        "Every H-th number is set to zero. A head's numbers lie side by side, and they "
        "become their means, not zero.": lambda j, h, d: _put(
            j, slice(h, None, j.shape[-1] // d), 0.0
        ),
        "Every H-th number is replaced. In Llama a head's numbers lie side by side: "
        "from head * head_dim to (head + 1) * head_dim.": lambda j, h, d: _put(
            j,
            slice(h, None, j.shape[-1] // d),
            j[..., h :: j.shape[-1] // d].mean((0, 1)),
        ),
        "Each text gets its own mean. Average over texts and tokens, mean((0, 1)), "
        "so that nothing of the text is left in the head.": lambda j, h, d: _put(
            j, _own(h, d), j[..., _own(h, d)].mean(1, keepdim=True)
        ),
        "Each token's place gets its own mean, over the texts alone. Average over "
        "texts and tokens, mean((0, 1)).": lambda j, h, d: _put(
            j, _own(h, d), j[..., _own(h, d)].mean(0, keepdim=True)
        ),
        "The whole head becomes one number. Each of its head_dim numbers has a mean of "
        "its own: mean((0, 1)), not over the last axis.": lambda j, h, d: _put(
            j, _own(h, d), j[..., _own(h, d)].mean()
        ),
        "Each token gets the mean of its own head_dim numbers. Average over texts and "
        "tokens, mean((0, 1)), not over the last axis.": lambda j, h, d: _put(
            j, _own(h, d), j[..., _own(h, d)].mean(-1, keepdim=True)
        ),
        "All heads are replaced. The others stay as they are.": lambda j, h, d: (
            j.mean((0, 1), keepdim=True).expand_as(j).clone()
        ),
        "The chosen head stays and the others are replaced. It is the other way "
        "round.": _others,
        "One number is replaced, number `head`. A head has head_dim of them, beginning "
        "at head * head_dim.": lambda j, h, d: _put(
            j, slice(h, h + 1), j[..., h : h + 1].mean((0, 1))
        ),
        "The slice begins at `head`. Heads before it take head_dim numbers each: begin "
        "at head * head_dim.": lambda j, h, d: _put(
            j, slice(h, h + d), j[..., h : h + d].mean((0, 1))
        ),
        "The slice runs to the end, so the heads after it are gone as well. Stop at "
        "(head + 1) * head_dim.": lambda j, h, d: _put(
            j, slice(h * d, None), j[..., h * d :].mean((0, 1))
        ),
        "Heads are counted from 1. The first is head 0.": lambda j, h, d: mean_ablate(
            j, (h - 1) % (j.shape[-1] // d), d
        ),
        "The head comes back alone. All H heads come back, side by "
        "side.": lambda j, h, d: mean_ablate(j, h, d)[..., _own(h, d)],
        "Nothing is changed. The head's numbers become their means over all texts and "
        "tokens.": lambda j, h, d: j.clone(),
    },
)

# 11.4 logit_lens


def logit_lens(residual: Tensor, weight: Tensor, output: Tensor, eps: float) -> Tensor:
    """The logits that the last norm and the output make of any residual stream."""
    scale = torch.rsqrt(residual.square().mean(-1, keepdim=True) + eps)
    return (residual * scale * weight) @ output.T


def _lens_by_torch(
    residual: Tensor, weight: Tensor, output: Tensor, eps: float
) -> Tensor:
    normed = torch.nn.functional.rms_norm(residual, residual.shape[-1:], weight, eps)
    return torch.nn.functional.linear(normed, output)


def _lens_folded(
    residual: Tensor, weight: Tensor, output: Tensor, eps: float
) -> Tensor:
    size = (residual.pow(2).sum(-1) / residual.shape[-1] + eps).sqrt()
    return torch.einsum("...d,vd->...v", residual, output * weight) / size[..., None]


def _streams(rng: torch.Generator) -> Iterable[Case]:
    output = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    stream = torch.tensor([[4.0, 2, 1, 2], [0, 8, 0, -6]])
    yield stream, torch.tensor([2.0, 1.0, 1.0, 0.5]), output, 1e-5
    small = torch.tensor([[0.004, 0.002, 0.001, 0.002]])
    yield small, torch.ones(4), output, 1e-5  # eps decides
    words = int(torch.randint(7, 12, (1,), generator=rng))
    for shape in ((6,), (3, 6), (4, 3, 6), (2, 4, 3, 6), (6, 5, 6)):
        stream = torch.randn(shape, generator=rng) * 3 + 1
        weight = torch.rand(6, generator=rng) + 0.5
        yield stream, weight, torch.randn(words, 6, generator=rng), 1e-2


check_logit_lens = Check(
    name="11.4",
    title="logit_lens",
    reference=logit_lens,
    inputs=_streams,
    atol=1e-5,
    solutions=(_lens_by_torch, _lens_folded),
    mistakes={
        "The norm is missing. Llama norms the stream before its output matrix, and the "
        "lens must read it as the output does.": lambda r, w, o, e: r @ o.T,
        "The norm is missing, though its weight is used. Divide by the root mean "
        "square first.": lambda r, w, o, e: (r * w) @ o.T,
        "The norm's weight is not used. Llama's last norm multiplies by a learned "
        "number for each dimension.": lambda r, w, o, e: logit_lens(
            r, torch.ones_like(w), o, e
        ),
        "The weight is applied before the norm, so the root mean square is another. "
        "Norm first, then the weight.": lambda r, w, o, e: logit_lens(
            r * w, torch.ones_like(w), o, e
        ),
        "The mean is subtracted: that is LayerNorm. Llama's RMSNorm divides by the "
        "root mean square alone.": lambda r, w, o, e: logit_lens(
            r - r.mean(-1, keepdim=True), w, o, e
        ),
        "The stream is divided by its length, not by its root mean square: all logits "
        "are sqrt(D) times too small.": lambda r, w, o, e: (
            (r / (r.square().sum(-1, keepdim=True) + e).sqrt() * w) @ o.T
        ),
        "The stream is divided by its length, and the norm's weight is not used. Llama "
        "divides by the root mean square, then multiplies by the weight.": (
            lambda r, w, o, e: r / r.norm(dim=-1, keepdim=True) @ o.T
        ),
        "The root is missing. Llama divides by the root of the mean square.": (
            lambda r, w, o, e: (r / (r.square().mean(-1, keepdim=True) + e) * w) @ o.T
        ),
        "The stream is multiplied by its root mean square. Llama divides by it.": (
            lambda r, w, o, e: (
                (r * (r.square().mean(-1, keepdim=True) + e).sqrt() * w) @ o.T
            )
        ),
        "One is added to the weight, as Gemma does. Llama multiplies by the weight "
        "itself.": lambda r, w, o, e: logit_lens(r, 1 + w, o, e),
        "eps is added to the root. Llama adds it to the mean square, under the "
        "root.": lambda r, w, o, e: (
            (r / (r.square().mean(-1, keepdim=True).sqrt() + e) * w) @ o.T
        ),
        "One scale for all positions. Each position is normed by its own root mean "
        "square: mean(-1, keepdim=True).": lambda r, w, o, e: (
            (r * torch.rsqrt(r.square().mean() + e) * w) @ o.T
        ),
        "eps is missing. Llama adds it to the mean of the squares.": (
            lambda r, w, o, e: logit_lens(r, w, o, 0.0)
        ),
        "Probabilities come back. The lens gives logits: leave the softmax to whoever "
        "wants it.": lambda r, w, o, e: logit_lens(r, w, o, e).softmax(-1),
        "The likeliest ids come back. The lens gives all logits: ... V.": (
            lambda r, w, o, e: logit_lens(r, w, o, e).argmax(-1)
        ),
        "The last entry of the first axis is read alone. The lens reads every layer "
        "and every position.": lambda r, w, o, e: logit_lens(r[-1], w, o, e),
        "The logits lie on their side: V before the positions. Llama's vocabulary is "
        "the last axis.": lambda r, w, o, e: logit_lens(r, w, o, e).movedim(-1, 0),
        "The output matrix is not turned. It is V x D, a row for each word: multiply "
        "by output.T.": lambda r, w, o, e: logit_lens(r, w, o.T, e),
        "The norm comes after the output matrix. Llama norms the stream, then "
        "multiplies.": lambda r, w, o, e: (
            (r * w) @ o.T * torch.rsqrt((r @ o.T).square().mean(-1, keepdim=True) + e)
        ),
        "The plain normed stream comes back. The output matrix makes logits of it, one "
        "for each word of the vocabulary.": lambda r, w, o, e: (
            r * torch.rsqrt(r.square().mean(-1, keepdim=True) + e) * w
        ),
    },
)
