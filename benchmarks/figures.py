"""Medians, ratios, and how sure they are: the arithmetic of a row.

The rounds of a row are interleaved, so the times of one round belong together: what
slowed one contender slowed the next as well. A ratio's interval therefore resamples
whole rounds.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# The seconds of each contender, round by round; all have the same number of rounds.
Seconds = Mapping[str, Sequence[float]]
RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A number with the interval that holds it 95 times in 100."""

    value: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, with a line drawn between neighbours."""
    ordered = sorted(values)
    return tuple(_quantile(ordered, q) for q in (0.25, 0.5, 0.75))  # type: ignore[return-value]


def _quantile(ordered: Sequence[float], q: float) -> float:
    if not ordered:
        raise ValueError("there is no quantile of no values")
    at = q * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def bootstrap(
    seconds: Seconds, figure: Callable[[Seconds], float], seed: int = 0
) -> Figure:
    """A figure of the rounds, and its percentile interval over resampled rounds."""
    rounds = {len(values) for values in seconds.values()}
    if len(rounds) != 1 or 0 in rounds:
        raise ValueError(f"all contenders need the same number of rounds, not {rounds}")
    (count,) = rounds
    chance = random.Random(seed)
    found: list[float] = []
    for _ in range(RESAMPLES):
        picked = chance.choices(range(count), k=count)
        found.append(figure({k: [v[i] for i in picked] for k, v in seconds.items()}))
    found.sort()
    return Figure(figure(seconds), _quantile(found, 0.025), _quantile(found, 0.975))


def speed_ratio(seconds: Seconds, ours: str, peer: str) -> float:
    """How many times as fast `ours` is: above 1 is faster."""
    return median(seconds[peer]) / median(seconds[ours])


def growth(seconds: Seconds, short: str, long: str) -> float:
    """Seconds that a longer context adds, by medians."""
    return median(seconds[long]) - median(seconds[short])
