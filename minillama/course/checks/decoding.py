"""Checks of notebook 08: choosing a token, the cache, the loop."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from minillama.cache import KVCache
from minillama.course.check import Case, Check
from minillama.course.guard import Look
from minillama.course.values import kind
from minillama.sampling import keep_min_p, keep_top_p

# 8.1 sample


def sample(logits: Tensor, temperature: float, dart: Tensor) -> Tensor:
    """The token of each row in whose share of the line from 0 to 1 its dart lands."""
    if temperature == 0:
        return logits.argmax(-1)
    ends = (logits / temperature).softmax(-1).cumsum(-1)  # B V
    return (ends <= dart[:, None] * ends[:, -1:]).sum(-1)


def _by_search(logits: Tensor, temperature: float, dart: Tensor) -> Tensor:
    if temperature == 0:
        return logits.max(-1).indices
    ends = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    found = torch.searchsorted(ends, dart[:, None].double(), right=True)
    return found[:, 0].clamp(max=logits.shape[-1] - 1)


def _by_walk(logits: Tensor, temperature: float, dart: Tensor) -> Tensor:
    ids: list[int] = []
    for row, at in zip(logits.tolist(), dart.tolist(), strict=True):
        if temperature == 0:
            ids.append(row.index(max(row)))
            continue
        shares = [math.exp((z - max(row)) / temperature) for z in row]
        at, id = at * sum(shares), 0
        while at >= shares[id]:
            at, id = at - shares[id], id + 1
        ids.append(id)
    return torch.tensor(ids)


def _thrown(ends: Tensor, dart: Tensor) -> Tensor:
    return (ends <= dart[:, None]).sum(-1).clamp(max=ends.shape[-1] - 1)


def _greedy_or(
    draw: Callable[[Tensor, float, Tensor], Tensor],
) -> Callable[[Tensor, float, Tensor], Tensor]:
    def sampled(logits: Tensor, temperature: float, dart: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        return draw(logits, temperature, dart)

    return sampled


def _place_among_the_sorted(logits: Tensor, t: float, dart: Tensor) -> Tensor:
    ranked = (logits / t).softmax(-1).sort(descending=True).values
    return _thrown(ranked.cumsum(-1), dart)


def _divided_by_zero(logits: Tensor, temperature: float, dart: Tensor) -> Tensor:
    return _thrown((logits / temperature).softmax(-1).cumsum(-1), dart)


def _searched_among_nan(logits: Tensor, temperature: float, dart: Tensor) -> Tensor:
    ends = (logits / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(ends, dart[:, None], right=True)[:, 0]


def _sorted_line(logits: Tensor, t: float, dart: Tensor) -> Tensor:
    ranked, order = (logits / t).softmax(-1).sort(descending=True)
    return order.gather(-1, _thrown(ranked.cumsum(-1), dart)[:, None])[:, 0]


def _never_down_to_zero(logits: Tensor, temperature: float, dart: Tensor) -> Tensor:
    return sample(logits, temperature or 1.0, dart)


def _darts(rng: torch.Generator) -> Iterable[Case]:
    halves = torch.tensor([[0.0, 3.0, 0.0, 2.0, 1.0]]) * math.log(2)  # 1 8 1 4 2
    for dart in (0.03, 0.3, 0.7, 0.97):
        yield halves, 1.0, torch.tensor([dart])
    yield halves, 0.5, torch.tensor([0.7])
    yield halves, 2.0, torch.tensor([0.5])
    yield halves, 0.0, torch.tensor([0.97])
    # What a filter left: the first token has no share, and a dart may be 0.
    ruled_out = torch.tensor([[-math.inf, 0.0, 0.0]])
    yield ruled_out, 1.0, torch.tensor([0.0])
    for temperature in (0.3, 1.0, 1.7, 0.0):
        batch, vocab = torch.randint(3, 9, (2,), generator=rng).tolist()
        logits = 2 * torch.randn(batch, vocab, generator=rng)
        yield logits, temperature, torch.rand(batch, generator=rng)


check_sample = Check(
    name="8.1",
    title="sample",
    reference=sample,
    inputs=_darts,
    solutions=(_by_search, _by_walk),
    mistakes={
        "The logits are multiplied by the temperature. Llama divides them: a "
        "temperature below 1 makes the likely likelier.": _greedy_or(
            lambda z, t, dart: sample(z, 1 / t, dart)
        ),
        "The temperature is not used. Llama divides the logits by it before the "
        "softmax.": _greedy_or(lambda z, t, dart: sample(z, 1.0, dart)),
        "The likeliest token is taken whatever the dart says. Only at temperature 0 "
        "does Llama do that.": lambda z, t, dart: z.argmax(-1),
        "Temperature 0 is divided by: all numbers turn to NaN or infinity. At 0 Llama "
        "takes the likeliest token and needs no dart.": _divided_by_zero,
        "Temperature 0 is taken for 1. At 0 Llama takes the likeliest token.": (
            _never_down_to_zero
        ),
        "The softmax runs over the batch. Llama's runs over the vocabulary, the last "
        "axis: each row's shares add up to one.": _greedy_or(
            lambda z, t, dart: _thrown((z / t).softmax(0).cumsum(-1), dart)
        ),
        "There is no softmax: the dart is thrown at the logits. Llama turns them into "
        "shares that add up to one.": _greedy_or(
            lambda z, t, dart: _thrown((z / t).cumsum(-1), dart)
        ),
        "The temperature divides the shares, which then no longer add up to one. Llama "
        "divides the logits, before the softmax.": _greedy_or(
            lambda z, t, dart: _thrown((z.softmax(-1) / t).cumsum(-1), dart)
        ),
        "The dart is compared with each token's own share. Llama lays the shares end "
        "to end: compare with their running sum (cumsum).": _greedy_or(
            lambda z, t, dart: ((z / t).softmax(-1) > dart[:, None]).float().argmax(-1)
        ),
        "The token before the right one is taken. The dart lands in the first share "
        "that ends to the right of it.": _greedy_or(
            lambda z, t, dart: (sample(z, t, dart) - 1).clamp(min=0)
        ),
        "The shares were sorted, and a place among the sorted ones is handed back. "
        "What is wanted is the id, the place in the vocabulary.": _greedy_or(
            _place_among_the_sorted
        ),
        "The shares were sorted before the dart was thrown. That draws just as fairly, "
        "but here they lie in the order of the vocabulary, as in the "
        "library.": _greedy_or(_sorted_line),
        "Temperature 0 is divided by, and no piece of a line of NaN can be found. At 0 "
        "Llama takes the likeliest token.": _searched_among_nan,
        "A dart at 0 draws a token whose share is nothing. Llama takes the first whose "
        "share ends to the right of the dart: `ends > dart`, not `>=`.": _greedy_or(
            lambda z, t, dart: ((z / t).softmax(-1).cumsum(-1) < dart[:, None]).sum(-1)
        ),
        "The ids come as a column, (B, 1). One number a row is wanted, shape (B,).": (
            lambda z, t, dart: sample(z, t, dart)[:, None]
        ),
    },
)

# 8.2 top_p


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens that have probability p together."""
    return keep_top_p(logits, p)


def _cut(logits: Tensor, keep: Tensor, out: float = -math.inf) -> Tensor:
    return logits.masked_fill(~keep, out)


def _before(logits: Tensor) -> Tensor:
    """The probability of all that are likelier, for each token in its place."""
    ranked, order = logits.softmax(-1).sort(-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    return torch.zeros_like(before).scatter(-1, order, before)


def _sorted_away(logits: Tensor, p: float) -> Tensor:
    ranked, order = logits.sort(-1, descending=True)
    probs = ranked.softmax(-1)
    gone = (probs.cumsum(-1) - probs) >= p
    return logits.masked_fill(gone.gather(-1, order.argsort(-1)), -math.inf)


def _top_p_by_loop(logits: Tensor, p: float) -> Tensor:
    out = torch.full_like(logits, -math.inf)
    for row, probs in enumerate(logits.softmax(-1).tolist()):
        total = 0.0
        for id in sorted(range(len(probs)), key=lambda i: -probs[i]):
            out[row, id] = logits[row, id]
            total += probs[id]
            if total >= p:
                break
    return out


def _unlikely_first(logits: Tensor, p: float) -> Tensor:
    return _cut(logits, _before(-logits) < p)


def _ascending(logits: Tensor, p: float) -> Tensor:
    ranked, order = logits.softmax(-1).sort(-1)
    before = ranked.cumsum(-1) - ranked
    keep = torch.zeros_like(before).scatter(-1, order, before) < p
    return _cut(logits, keep)


def _sorted_mask(logits: Tensor, p: float) -> Tensor:
    ranked = logits.softmax(-1).sort(-1, descending=True).values
    return _cut(logits, ranked.cumsum(-1) - ranked < p)


def _sorted_result(logits: Tensor, p: float) -> Tensor:
    return top_p(logits, p).sort(-1, descending=True).values


def _unsorted(logits: Tensor, p: float) -> Tensor:
    probs = logits.softmax(-1)
    return _cut(logits, probs.cumsum(-1) - probs < p)


def _crossing_dropped(logits: Tensor, p: float) -> Tensor:
    return _cut(logits, _before(logits) + logits.softmax(-1) <= p)


def _sorted_and_dropped(logits: Tensor, p: float) -> Tensor:
    ranked = logits.softmax(-1).sort(-1, descending=True).values
    return _cut(logits, ranked.cumsum(-1) <= p)


def _moved_on(logits: Tensor, p: float) -> Tensor:
    ranked, order = logits.softmax(-1).sort(-1, descending=True)
    return _cut(logits, (ranked.cumsum(-1) - ranked < p).gather(-1, order))


def _one_more(logits: Tensor, p: float) -> Tensor:
    """Whatever stands right after the crossing token is kept too."""
    count = top_p(logits, p).isfinite().sum(-1, keepdim=True)
    rank = logits.argsort(-1, descending=True).argsort(-1)
    return _cut(logits, rank <= count)


def _logits(rng: torch.Generator) -> Iterable[Case]:
    # The exponentials are 1, 8, 3, 4: shares of 16.
    yield torch.tensor([[1.0, 8.0, 3.0, 4.0]]).log(), 0.7
    yield torch.tensor([[1.0, 8.0, 3.0, 4.0], [10.0, 1.0, 3.0, 2.0]]).log(), 0.9
    yield torch.tensor([[1.0, 8.0, 3.0, 4.0]]).log(), 0.3
    for p in (0.2, 0.6, 0.95):
        batch, vocab = torch.randint(4, 12, (2,), generator=rng).tolist()
        # Shares that hold their distance: no two alike, no sum near p by chance.
        steps = torch.rand(batch, vocab, generator=rng).argsort(-1).float()
        yield 0.7 * steps - 1.3, p


check_top_p = Check(
    name="8.2",
    title="top_p",
    reference=top_p,
    inputs=_logits,
    atol=1e-5,
    solutions=(_sorted_away, _top_p_by_loop, lambda z, p: _cut(z, _before(z) < p)),
    mistakes={
        "The token that crosses p is dropped, so less than p is left, and sometimes "
        "nothing. Llama keeps it.": _crossing_dropped,
        "One token too many is kept, the one after p was reached. Llama stops at the "
        "token that crosses it.": _one_more,
        "The sorting is ascending, so the unlikely are kept. Llama begins with the "
        "likeliest.": _ascending,
        "The cut was found among the sorted tokens and laid on the unsorted. Bring the "
        "mask back into the order of the vocabulary.": _sorted_mask,
        "The mask was gathered with `order` itself, which moves it in the wrong "
        "direction. Its inverse brings it back: order.argsort(-1).": _moved_on,
        "The cut was laid on the unsorted tokens, and the token that crosses p is "
        "dropped. Bring the mask back into the order of the vocabulary, and keep that "
        "token.": _sorted_and_dropped,
        "Probabilities come back, and they no longer add up to one. Logits are wanted: "
        "what is kept unchanged, the rest -inf.": lambda z, p: (
            z.softmax(-1) * (_before(z) < p)
        ),
        "The logits come back sorted. Place i must stay token i.": _sorted_result,
        "The probabilities are added up unsorted. Llama adds them up from the "
        "likeliest down.": _unsorted,
        "Probabilities come back. Logits are wanted: what is kept unchanged, the rest "
        "-inf. The softmax comes later.": lambda z, p: top_p(z, p).softmax(-1),
        "What is ruled out gets logit 0, and exp(0) is 1: it can still be drawn. Llama "
        "sets it to -inf.": lambda z, p: _cut(z, _before(z) < p, 0.0),
        "Tokens with a probability of p and more are kept: p is meant for their "
        "sum.": lambda z, p: _cut(z, z.softmax(-1) >= p),
        "Tokens at least p times as likely as the likeliest are kept. That is min-p; "
        "top-p looks at the sum.": lambda z, p: keep_min_p(z, p),
        "A share p of the number of tokens is kept. Llama counts their probability, "
        "not their number.": lambda z, p: _cut(
            z,
            z.argsort(-1, descending=True).argsort(-1) < max(1, int(p * z.shape[-1])),
        ),
        "The logits themselves are added up. Llama adds up probabilities: the softmax "
        "comes first.": lambda z, p: _cut(
            z,
            torch.zeros_like(z).scatter(
                -1,
                z.argsort(-1, descending=True),
                z.sort(-1, descending=True).values.cumsum(-1)
                - z.sort(-1, descending=True).values,
            )
            < p,
        ),
        "The softmax runs over the batch. Llama's runs over the vocabulary, the last "
        "axis.": lambda z, p: _cut(z, _before(z.softmax(0).log()) < p),
        "The logits come back as they were. Llama sets what is ruled out to "
        "-inf.": lambda z, p: z.clone(),
    },
)

# 8.3 min_p


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least p times as likely as the likeliest."""
    return keep_min_p(logits, p)


def _min_p_by_loop(logits: Tensor, p: float) -> Tensor:
    rows = [
        [z if math.exp(z - max(row)) >= p else -math.inf for z in row]
        for row in logits.tolist()
    ]
    return torch.tensor(rows, dtype=logits.dtype)


def _shares(rng: torch.Generator) -> Iterable[Case]:
    yield torch.tensor([[1.0, 8.0, 3.0, 4.0]]).log(), 0.4
    yield torch.tensor([[1.0, 8.0, 3.0, 4.0]]).log(), 0.2
    yield torch.tensor([[1.0, 8.0, 3.0, 4.0], [10.0, 1.0, 3.0, 12.0]]).log(), 0.35
    yield torch.tensor([[3.0, 1.0, 2.0]]), 1.0  # the likeliest alone
    for p in (0.03, 0.15, 0.6):
        batch, vocab = torch.randint(4, 12, (2,), generator=rng).tolist()
        steps = torch.rand(batch, vocab, generator=rng).argsort(-1).float()
        scale = 0.6 + 0.8 * torch.rand(batch, 1, generator=rng)
        yield scale * steps - 1.3, p


check_min_p = Check(
    name="8.3",
    title="min_p",
    reference=min_p,
    inputs=_shares,
    atol=1e-5,
    solutions=(
        _min_p_by_loop,
        lambda z, p: _cut(z, z >= z.amax(-1, keepdim=True) + math.log(p) - 1e-6),
        lambda z, p: torch.where(
            z.softmax(-1) / z.softmax(-1).amax(-1, keepdim=True) >= p, z, -math.inf
        ),
    ),
    mistakes={
        "Each probability is compared with p itself. Llama's limit moves with the "
        "model's certainty: p times the largest probability.": lambda z, p: _cut(
            z, z.softmax(-1) >= p
        ),
        "The logits are compared with p times the largest logit. The limit holds for "
        "probabilities: the softmax comes first.": lambda z, p: _cut(
            z, z >= p * z.amax(-1, keepdim=True)
        ),
        "The limit is p times the mean. Llama's is p times the largest "
        "probability.": lambda z, p: _cut(
            z, z.softmax(-1) >= p * z.softmax(-1).mean(-1, keepdim=True)
        ),
        "The largest of the whole batch sets one limit for all. Llama's rows each have "
        "their own.": lambda z, p: _cut(z, z.softmax(-1) >= p * z.softmax(-1).max()),
        "A token exactly at the limit is dropped; at p = 1 nothing is left. Llama "
        "keeps it: only what is below goes.": lambda z, p: _cut(
            z, z.softmax(-1) > p * z.softmax(-1).amax(-1, keepdim=True)
        ),
        "The limit is the largest probability minus p. Llama's is p times the "
        "largest.": lambda z, p: _cut(
            z, z.softmax(-1) >= z.softmax(-1).amax(-1, keepdim=True) - p
        ),
        "The likely are ruled out and the unlikely kept. Llama keeps what reaches the "
        "limit.": lambda z, p: _cut(
            z, z.softmax(-1) < p * z.softmax(-1).amax(-1, keepdim=True)
        ),
        "Probabilities come back. Logits are wanted: what is kept unchanged, the rest "
        "-inf.": lambda z, p: min_p(z, p).softmax(-1),
        "What is ruled out gets logit 0, and exp(0) is 1: it can still be drawn. Llama "
        "sets it to -inf.": lambda z, p: min_p(z, p).nan_to_num(neginf=0.0),
        "The likeliest tokens that together have p are kept. That is top-p; min-p "
        "compares each with the likeliest.": keep_top_p,
    },
)

# 8.4 KVCache


def _driven(cls: Any) -> Callable[..., Any]:
    def cache(
        shape: tuple[int, ...], pieces: Sequence[tuple[Tensor, Tensor]], keep: int
    ) -> dict[str, Any]:
        """Add the pieces, go back to `keep` tokens, and add the last piece again."""
        kept = cls(shape, torch.float32, "cpu")
        for name in ("update", "truncate"):
            if not callable(getattr(kept, name, None)):
                raise Look("type", f"The cache has no method `{name}`.")
        told: dict[str, Any] = {"length at first": _length(kept)}
        for number, piece in enumerate(pieces, 1):
            told[f"update {number}"] = _added(kept, *piece)
        kept.truncate(keep)
        told["length after truncate"] = _length(kept)
        told["update after truncate"] = _added(kept, *pieces[-1])
        return told

    return cache


def _length(kept: Any) -> Any:
    if not hasattr(kept, "length"):
        raise Look("type", "The cache has no `length`: Llama asks it where it stands.")
    return kept.length


def _added(kept: Any, k: Tensor, v: Tensor) -> Any:
    try:
        given = kept.update(k, v)
    except ValueError:
        return "ValueError"
    except (RuntimeError, IndexError, AssertionError):
        return "another error"
    if given is None:
        raise Look("none", "`update` gives None. Is the `return` missing?")
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise Look(
            "type",
            f"`update` gives {kind(given)}. Llama wants two tensors: keys and values.",
        )
    keys, values = (x.clone() if isinstance(x, Tensor) else x for x in given)
    return {"keys": keys, "values": values, "length": _length(kept)}


class _Listed:
    """Keeps the pieces as they come, and joins them when asked."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
        self.room, self.past = shape[2], [torch.zeros(2, *shape[:2], 0, shape[3])]

    @property
    def length(self) -> int:
        return sum(piece.shape[3] for piece in self.past)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.length + k.shape[2] > self.room:
            raise ValueError("full")
        self.past.append(torch.stack((k, v)))
        keys, values = torch.cat(self.past, 3)
        return keys, values

    def truncate(self, n: int) -> None:
        self.past = [torch.cat(self.past, 3)[:, :, :, :n]]


class _Grown:
    """Joined anew with each piece."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
        batch, heads, self.room, width = shape
        self.keys = torch.zeros(batch, heads, 0, width, dtype=dtype, device=device)
        self.values, self.length = self.keys, 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if k.shape[2] > self.room - self.length:
            raise ValueError("full")
        self.keys = torch.cat((self.keys, k), 2)
        self.values = torch.cat((self.values, v), 2)
        self.length = self.keys.shape[2]
        return self.keys, self.values

    def truncate(self, n: int) -> None:
        self.keys, self.values = self.keys[:, :, :n], self.values[:, :, :n]
        self.length = n


class _Plain:
    """The cache without refusals; each mistake changes one of its steps."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.length, self.length + k.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError("full")
        return self.put(k, v, start, end)

    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        self.keys[:, :, start:end], self.values[:, :, start:end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def truncate(self, n: int) -> None:
        self.length = n


class _FromZero(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        self.keys[:, :, : end - start], self.values[:, :, : end - start] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class _NewAlone(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        super().put(k, v, start, end)
        return k, v


class _NewMissing(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        super().put(k, v, start, end)
        return self.keys[:, :, :start], self.values[:, :, :start]


class _Whole(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        super().put(k, v, start, end)
        return self.keys, self.values


class _StandsStill(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        seen = super().put(k, v, start, end)
        self.length = 0
        return seen


class _LengthOfPiece(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        seen = super().put(k, v, start, end)
        self.length = k.shape[2]
        return seen


class _CountsCalls(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        seen = super().put(k, v, start, end)
        self.length = start + 1
        return seen


class _Exchanged(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        return super().put(v, k, start, end)


class _KeysTwice(_Plain):
    def put(self, k: Tensor, v: Tensor, start: int, end: int) -> Any:
        return super().put(k, k, start, end)


class _NewFirst(_Grown):
    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if k.shape[2] > self.room - self.length:
            raise ValueError("full")
        self.keys = torch.cat((k, self.keys), 2)
        self.values = torch.cat((v, self.values), 2)
        self.length = self.keys.shape[2]
        return self.keys, self.values


class _Silent(_Plain):
    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.put(k, v, self.length, self.length + k.shape[2])


class _Asserts(_Plain):
    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert self.length + k.shape[2] <= self.keys.shape[2]
        return super().update(k, v)


class _HalfBack(_Grown):
    def truncate(self, n: int) -> None:
        self.length = n


class _Unlimited(_Grown):
    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
        super().__init__(shape, dtype, device)
        self.room = 1_000_000


class _DropsN(_Plain):
    def truncate(self, n: int) -> None:
        self.length -= n


class _NeverBack(_Plain):
    def truncate(self, n: int) -> None:
        self.keys = self.keys[:, :, :]


class _KeepsLast(_Plain):
    def truncate(self, n: int) -> None:
        last = slice(self.length - n, self.length)
        self.keys[:, :, :n] = self.keys[:, :, last].clone()
        self.values[:, :, :n] = self.values[:, :, last].clone()
        self.length = n


class _AlongHeads(_Grown):
    """Joined along the heads."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
        super().__init__(shape, dtype, device)
        self.past: list[tuple[Tensor, Tensor]] = []

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if k.shape[2] > self.room - self.length:
            raise ValueError("full")
        self.past.append((k, v))
        self.length += k.shape[2]
        keys, values = zip(*self.past, strict=True)
        return torch.cat(keys, 1), torch.cat(values, 1)

    def truncate(self, n: int) -> None:
        self.past, self.length = self.past[:n], n


def _pieces(rng: torch.Generator) -> Iterable[Case]:
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    second = torch.tensor([[5.0, 6.0]])[None, None]
    pieces = [(first, -first), (second, -second)]
    yield (1, 1, 4, 2), pieces, 2
    yield (1, 1, 4, 2), [*pieces, (first, -first)], 1  # the third does not fit
    yield (1, 1, 3, 2), [*pieces, (second, -second)], 3  # nor does one more token
    yield (1, 1, 8, 2), [(second * n, second + n) for n in range(1, 5)], 1
    for sizes in ((4, 1, 1), (2, 3, 1, 2)):
        batch, heads, width = torch.randint(1, 4, (3,), generator=rng).tolist()
        rows = [
            tuple(torch.randn(2, batch, heads + 1, size, 2 * width, generator=rng))
            for size in sizes
        ]
        keep = int(torch.randint(1, sizes[0] + 1, (1,), generator=rng))
        yield (batch, heads + 1, 12, 2 * width), rows, keep


check_cache = Check(
    name="8.4",
    title="KVCache",
    reference=KVCache,
    adapt=_driven,
    inputs=_pieces,
    solutions=(_Plain, _Listed, _Grown),
    mistakes={
        "Each piece is written to the beginning, over the first ones. It belongs after "
        "the `length` tokens that are there.": _FromZero,
        "Only the new keys and values come back. The new token asks all keys so far: "
        "hand back those as well.": _NewAlone,
        "What comes back lacks the new tokens. Each token sees itself too.": (
            _NewMissing
        ),
        "All of the memory comes back, filled or not. Hand back the first `length` "
        "tokens alone.": _Whole,
        "`length` stays 0, so the model takes each new token for the first of "
        "all.": _StandsStill,
        "`length` is that of the last piece. It counts all tokens so far: add to "
        "it.": _LengthOfPiece,
        "`length` counts the calls. It counts tokens: a prompt brings many at "
        "once.": _CountsCalls,
        "Keys and values are exchanged.": _Exchanged,
        "The keys are kept twice, once in the place of the values.": _KeysTwice,
        "The new tokens are put before the old ones. They come last: the mask says "
        "which token a key belongs to by its place.": _NewFirst,
        "A piece that does not fit goes unnoticed, or ends in an error of PyTorch's. "
        "Refuse it: raise ValueError.": _Silent,
        "A piece that does not fit ends in another error than ValueError. Refuse it by "
        "raising that.": _Asserts,
        "truncate sets `length` and leaves the kept tensors as long as they were, so "
        "the next piece is joined behind tokens that should be gone.": _HalfBack,
        "The cache grows beyond the room that it was given. Refuse what does not fit: "
        "raise ValueError.": _Unlimited,
        "truncate(n) drops n tokens. It keeps the first n.": _DropsN,
        "truncate changes nothing. It sets `length` back to n, and the next piece is "
        "written from there.": _NeverBack,
        "truncate(n) keeps the last n tokens. It keeps the first n, to go back to an "
        "earlier point.": _KeepsLast,
        "The tokens are joined along the heads. Their axis is 2: B K S Dh.": (
            _AlongHeads
        ),
    },
)

# 8.5 generate


class _Past:
    """What the toy model keeps in place of keys and values: the tokens themselves."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)


class _Toy:
    """Next is `after[sum of all tokens so far, modulo the vocabulary]`."""

    def __init__(self, after: Sequence[int]) -> None:
        self.after, self.fed = after, list[int]()

    def __call__(self, tokens: Any, caches: Any = None, pad: Any = None) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.ndim != 2:
            shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else None
            text = f"shape {shape}" if shape is not None else type(tokens).__name__
            raise Look("shape", f"The model gets {text}; it wants a tensor (1, T).")
        past = caches[0] if caches else _Past()
        self.fed.append(tokens.shape[1])
        logits = torch.zeros(1, tokens.shape[1], len(self.after))
        for t, id in enumerate(tokens[0].tolist()):
            past.tokens.append(id)
            likeliest = self.after[sum(past.tokens) % len(self.after)]
            logits[0, t, likeliest] = 5.0 + t
        return logits


def _looped(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def loop(
        after: Sequence[int], ids: list[int], max_new_tokens: int, stop_id: int
    ) -> Any:
        model = _Toy(after)
        new = theirs(model, list(ids), [_Past()], max_new_tokens, stop_id)
        if not isinstance(new, list):
            return new
        new = [
            int(id) if isinstance(id, Tensor) and id.numel() == 1 else id for id in new
        ]
        # One call more, for a token that nobody wants, is a waste and no mistake.
        return {"new ids": new, "tokens read in each call": model.fed[: len(new)]}

    return loop


def generate(
    model: Any, ids: list[int], caches: Any, max_new_tokens: int, stop_id: int
) -> list[int]:
    """Greedy: the new ids, the stop id as the last of them if it came."""
    logits, new = model(torch.tensor([ids]), caches), list[int]()
    while True:
        new.append(int(logits[0, -1].argmax()))
        if len(new) == max_new_tokens or new[-1] == stop_id:
            return new
        logits = model(torch.tensor([new[-1:]]), caches)


def _with_prompt(
    model: Any, ids: list[int], caches: Any, max_new_tokens: int, stop_id: int
) -> list[int]:
    new = generate(model, ids, caches, max_new_tokens, stop_id)
    if new[-1] != stop_id:
        model(torch.tensor([new[-1:]]), caches)
    return ids + new


def _one_loop(
    model: Any, ids: list[int], caches: Any, max_new_tokens: int, stop_id: int
) -> list[int]:
    feed, new = list(ids), list[int]()
    for _ in range(max_new_tokens):
        feed = [model(torch.tensor([feed]), caches)[0, -1].argmax().item()]
        new += feed
        if feed[0] == stop_id:
            break
    return new


def _by_recursion(
    model: Any, ids: list[int], caches: Any, max_new_tokens: int, stop_id: int
) -> list[int]:
    if max_new_tokens == 0 or (stop_id in ids[-1:] and caches[0].length):
        return []
    id = int(model(torch.tensor([ids]), caches)[:, -1].argmax(-1))
    rest = _by_recursion(model, [id], caches, max_new_tokens - 1, stop_id)
    return [id, *rest]


def _loop(
    feed: Callable[[list[int], list[int]], list[int]],
    pick: Callable[[Tensor], Tensor] = lambda logits: logits[0, -1],
    cached: bool = True,
    stops: bool = True,
) -> Callable[..., list[int]]:
    def loop(
        model: Any, ids: list[int], caches: Any, max_new_tokens: int, stop_id: int
    ) -> list[int]:
        tokens, new = list(ids), list[int]()
        for _ in range(max_new_tokens):
            logits = model(torch.tensor([tokens]), caches if cached else None)
            new.append(int(pick(logits).argmax()))
            if stops and new[-1] == stop_id:
                break
            tokens = feed(ids, new)
        return new

    return loop


def _last(ids: list[int], new: list[int]) -> list[int]:
    return new[-1:]


def _first_logits_lost(
    model: Any, ids: list[int], caches: Any, max_new_tokens: int, stop_id: int
) -> list[int]:
    model(torch.tensor([ids]), caches)
    return generate(model, ids[-1:], caches, max_new_tokens, stop_id)


def _prompts(rng: torch.Generator) -> Iterable[Case]:
    yield [3, 1, 4, 0, 2], [1, 2], 4, 9
    yield [3, 1, 4, 0, 2], [1, 2, 2], 1, 9
    yield [1, 2, 3, 4, 0, 6, 5], [4, 6, 3], 8, 5
    for count in (6, 9, 12):
        vocab, length = torch.randint(7, 12, (2,), generator=rng).tolist()
        after = torch.randperm(vocab, generator=rng).tolist()
        ids = torch.randint(1, vocab, (length,), generator=rng).tolist()
        new = generate(_Toy(after), ids, [_Past()], count, -1)
        yield after, ids, count, -1
        yield after, ids, count, new[count // 2]


check_generate = Check(
    name="8.5",
    title="generate",
    reference=generate,
    adapt=_looped,
    inputs=_prompts,
    solutions=(_one_loop, _by_recursion),
    mistakes={
        "The whole text is read again at each step, on top of what the caches hold. "
        "With caches, read the prompt once, then each new token alone.": _loop(
            lambda ids, new: ids + new
        ),
        "The caches are not handed to the model, so it reads the whole text again for "
        "each token. The words are right and the work is in vain.": _loop(
            lambda ids, new: ids + new, cached=False
        ),
        "The caches are not handed to the model, so it sees the new token alone and "
        "has forgotten the prompt.": _loop(_last, cached=False),
        "The prompt's last token is read twice. The logits after the prompt already "
        "choose the first new token.": _first_logits_lost,
        "Only the last token of the prompt is read. The caches are empty at first: "
        "read all of the prompt.": lambda m, ids, c, n, stop: generate(
            m, ids[-1:], c, n, stop
        ),
        "The logits of the first position are used. What comes next stands in the "
        "last one: logits[0, -1].": _loop(_last, pick=lambda logits: logits[0, 0]),
        "The new token is never read: the model is asked again after the prompt's last "
        "one.": _loop(lambda ids, new: ids[-1:]),
        "It goes on after the stop id. Llama ends there.": _loop(_last, stops=False),
        "The stop id is left out. It is the last of the new ids; that it has no text "
        "is the decoder's business.": lambda m, ids, c, n, stop: [
            id for id in generate(m, ids, c, n, stop) if id != stop
        ],
        "The prompt comes back as well. The new ids alone are wanted.": (
            lambda m, ids, c, n, stop: ids + generate(m, ids, c, n, stop)
        ),
        "The prompt comes back as well, and the last new token is read for nothing. "
        "The new ids alone are wanted.": _with_prompt,
        "One token too many comes back. `max_new_tokens` counts the first new one "
        "too.": lambda m, ids, c, n, stop: generate(m, ids, c, n + 1, stop),
        "The first new token is missing: it comes from the logits after the prompt.": (
            lambda m, ids, c, n, stop: generate(m, ids, c, n, stop)[1:]
        ),
        "argmax runs over all positions at once. It is wanted at the last position: "
        "logits[0, -1].argmax().": _loop(_last, pick=lambda logits: logits.flatten()),
        "The likeliest token's logit is kept, not its id: argmax, not "
        "max.": lambda m, ids, c, n, stop: [
            int(m(torch.tensor([ids]), c)[0, -1].max()) for _ in range(n)
        ],
    },
)
