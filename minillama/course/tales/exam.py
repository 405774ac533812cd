"""How good are the tales that a model tells? The judge reads some hundreds of them."""

import math
from collections import Counter
from dataclasses import dataclass

from minillama.course.tales.judge import Verdict, judge
from minillama.course.tales.world import World
from minillama.generate import generate
from minillama.model import Llama
from minillama.sampling import Sampler
from minillama.tokenizer import Tokenizer


@dataclass(frozen=True)
class Exam:
    """Tales of a model, and what the judge said of each."""

    tales: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def well_formed(self) -> int:
        """How many are in the grammar of tales."""
        return sum(v.well_formed for v in self.verdicts)

    @property
    def consistent(self) -> int:
        """How many contradict themselves nowhere, answers included."""
        return sum(v.consistent for v in self.verdicts)

    def reasons(self) -> list[tuple[str, int]]:
        """What went wrong, the most frequent first."""
        return Counter(v.reason for v in self.verdicts if v.reason).most_common()

    def __str__(self) -> str:
        lines = [f"{len(self.tales)} tales"]
        for name in ("well_formed", "consistent"):
            count = getattr(self, name)
            low, high = wilson(count, len(self.tales))
            share = 100 * count / len(self.tales)
            lines.append(
                f"{name.replace('_', '-')}: {share:.1f} in 100 "
                f"(95% interval {100 * low:.1f} to {100 * high:.1f})"
            )
        return "\n".join(lines)


def tell_tales(
    model: Llama,
    tokenizer: Tokenizer,
    number: int,
    *,
    temperature: float = 0.8,
    seed: int = 0,
    batch: int = 100,
) -> list[str]:
    """Tales that the model tells from the begin token alone, to its end token.

    A tale that does not end within the model's context is cut there, and then it is
    not well-formed.
    """
    assert tokenizer.bos_id is not None
    told: list[str] = []
    while len(told) < number:
        rows = generate(
            model,
            [[tokenizer.bos_id]] * min(batch, number - len(told)),
            max_new_tokens=model.config.max_seq_len - 1,
            # Each row draws from a generator of its own: seed + row.
            sampler=Sampler(temperature=temperature, seed=seed + len(told)),
            stop_ids=tokenizer.stop_ids,
        )
        for row in rows:
            ended = row[-1] in tokenizer.stop_ids
            told.append(tokenizer.decode(row[:-1] if ended else row))
    return told


def examine(
    model: Llama,
    tokenizer: Tokenizer,
    number: int = 500,
    *,
    world: World | None = None,
    temperature: float = 0.8,
    seed: int = 0,
) -> Exam:
    """Let the model tell tales and judge them; they are the same for the same seed."""
    world = world or World.load()
    told = tell_tales(model, tokenizer, number, temperature=temperature, seed=seed)
    return Exam(tuple(told), tuple(judge(tale, world) for tale in told))


def wilson(count: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval in which the true share lies, 95 times in 100 (Wilson, 1927).

    Unlike count/total plus or minus, it does not shrink to nothing at 0 or at all.
    """
    share, weight = count / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return middle - half / (1 + weight), middle + half / (1 + weight)
