"""From logits to the next token: greedy, or by chance within limits.

The limits are plain functions of logits: each sets what it rules out to minus infinity
and leaves the rest as it was. `Sampler` applies them in the order that transformers
does: repetition penalty, temperature, top-k, top-p, min-p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Below this, differences of logits could overflow: it is greedy in all but name.
MIN_TEMPERATURE = 1e-6


def penalise_repeats(
    logits: Float[Tensor, "B V"], history: Sequence[Sequence[int]], penalty: float
) -> Float[Tensor, "B V"]:
    """Make every token that already stands in its row's history less likely.

    A positive logit is divided by `penalty`, a negative one multiplied by it, once
    however often the token occurred; a penalty below 1 favours repeats.
    Source: Keskar et al., arXiv 1909.05858, who divide alone; transformers' sign.
    """
    logits = logits.clone()
    for row, ids in zip(logits, history, strict=True):
        seen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=row.device)
        old = row[seen]
        row[seen] = torch.where(old > 0, old / penalty, old * penalty)
    return logits


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Keep the `k` likeliest tokens, and any that equal the last of them.

    Source: Fan et al., arXiv 1805.04833.
    """
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # B 1
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the fewest likeliest tokens that together have probability `p` or more.

    The token that crosses `p` is kept, so there is always one, and so is any that
    equals it: equals are treated alike. Source: Holtzman et al., arXiv 1904.09751.
    """
    probs = logits.softmax(-1)
    # All tokens below (1 - p) / 2V together have less than 1 - p: they need no sorting.
    contenders = int((probs > (1 - p) / (2 * probs.shape[-1])).sum(-1).amax())
    ranked = probs.topk(contenders).values
    likelier = ranked.cumsum(-1) - ranked  # the probability of all that rank before
    last = ranked.masked_fill(likelier >= p, math.inf).amin(-1, keepdim=True)  # B 1
    last = last.minimum(ranked[..., :1])  # though p be too small for float32
    return logits.masked_fill(probs < last, -math.inf)


def keep_min_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the tokens at least `p` times as likely as the likeliest one.

    Unlike top-p it keeps many where the model hesitates, few where it is sure.
    Source: Nguyen et al., arXiv 2407.01082.
    """
    probs = logits.softmax(-1)
    limit = p * probs.amax(-1, keepdim=True)
    return logits.masked_fill(probs < limit, -math.inf)


def draw(
    probs: Float[Tensor, "B V"], generators: Sequence[torch.Generator]
) -> Int[Tensor, "B"]:
    """Draw one token a row: where a dart lands on a line that the tokens share out.

    Each row throws one number in [0, 1) from its own CPU generator. So equal logits and
    seeds give equal tokens on every device, and a row does not feel its neighbours.
    """
    line = probs.cpu().double().cumsum(-1)  # B V: where each token's share ends
    dart = [
        torch.rand(1, generator=g, dtype=line.dtype, device="cpu") for g in generators
    ]
    # To the right of all that end at the dart: never a token whose share is nothing.
    ids = torch.searchsorted(line, torch.stack(dart) * line[:, -1:], right=True)
    return ids[:, 0].to(probs.device)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Choose the next token of each row of logits; the defaults change nothing.

    `temperature` divides the logits: 0 takes the likeliest token, 1 leaves the model's
    own distribution. `top_k`, `top_p`, `min_p` and `repetition_penalty` are the
    functions of this module. Row i of a batch draws from a generator of its own, seeded
    with `seed` + i: it gives the tokens that `Sampler(seed=seed + i)` gives alone.
    Called by itself a sampler draws on and on; `restart` gives one at its beginning,
    and `stream` does so: the same call gives the same tokens.

    Raises ValueError for a setting outside its range, and for logits that have no
    largest finite value (NaN, infinity).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    _generators: list[torch.Generator] = field(
        default_factory=list[torch.Generator], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        t, penalty = self.temperature, self.repetition_penalty
        _check(
            "temperature",
            t,
            t == 0 or MIN_TEMPERATURE <= t < math.inf,
            f"0 (greedy), or at least {MIN_TEMPERATURE} and finite",
        )
        _check(
            "top_k",
            self.top_k,
            self.top_k is None or self.top_k >= 1,
            "at least 1, or None for no limit",
        )
        _check(
            "top_p",
            self.top_p,
            self.top_p is None or 0 < self.top_p <= 1,
            "above 0 and at most 1, or None for no limit",
        )
        _check(
            "min_p",
            self.min_p,
            self.min_p is None or 0 <= self.min_p <= 1,
            "from 0 to 1, or None for no limit",
        )
        _check(
            "repetition_penalty",
            penalty,
            0 < penalty < math.inf,
            "above 0 and finite; 1 for none",
        )
        _check("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")

    def restart(self) -> "Sampler":
        """The same settings, with the generators at their beginning."""
        return replace(self)

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        history: Sequence[Sequence[int]] | None = None,
    ) -> Int[Tensor, "B"]:
        """One id a row; `history` has the ids of each row so far, for the penalty."""
        logits = self.limit(logits, history)
        if self.temperature == 0:
            return logits.argmax(-1)
        for row in range(len(self._generators), len(logits)):
            seed = (self.seed + row) % 2**32
            self._generators.append(torch.Generator("cpu").manual_seed(seed))
        return draw(logits.softmax(-1), self._generators[: len(logits)])

    def limit(
        self,
        logits: Float[Tensor, "B V"],
        history: Sequence[Sequence[int]] | None = None,
    ) -> Float[Tensor, "B V"]:
        """The logits that are drawn from: penalised, tempered, filtered."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.repetition_penalty != 1:
            if history is None:
                raise ValueError("a repetition penalty needs the history of each row")
            logits = penalise_repeats(logits, history, self.repetition_penalty)
        # Only now: the penalty may have pushed a huge logit over the edge.
        if not logits.amax(-1).isfinite().all():
            raise ValueError(
                "the logits of a row are NaN or infinite, so no token can be chosen: "
                "the model's weights or its dtype are broken"
            )
        if self.temperature == 0:
            return logits
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits


def _check(name: str, value: float | None, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value!r}: it must be {allowed}")
