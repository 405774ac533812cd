"""Training data: texts as one long row of token ids, and windows cut out of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from minillama.tokenizer import Tokenizer

Ids: TypeAlias = npt.NDArray[np.integer[Any]]
Pair: TypeAlias = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer) -> Ids:
    """One row of ids: every text between a begin and an end token.

    The begin token tells the model that nothing before it matters; the end token is
    how it learns to stop. Two bytes an id, if the vocabulary allows it.
    """
    small = tokenizer.vocab_size <= 1 << 16
    ids = (i for text in texts for i in tokenizer.encode(text, bos=True, eos=True))
    return np.fromiter(ids, np.uint16 if small else np.uint32)


def split(ids: Ids, held_out: float, begin_id: int | None = None) -> tuple[Ids, Ids]:
    """Keep the last part of the row away from training, to measure on.

    With `begin_id` the cut is made where a text begins, so that no text lies on both
    sides. `held_out` is a share: 0.1 is a tenth.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out {held_out} must be between 0 and 1")
    cut = len(ids) - max(1, int(len(ids) * held_out))
    if begin_id is not None:
        begins = np.flatnonzero(ids == begin_id)
        if not (begins > 0).any():
            raise ValueError("one text alone cannot be split: give more texts")
        later = begins[begins >= max(cut, 1)]
        cut = int(later[0] if len(later) else begins[-1])
    return ids[:cut], ids[cut:]


@dataclass(frozen=True)
class Batches:
    """Random windows of a row of ids: batch number `step` is always the same one.

    There is no epoch and no iterator: a batch follows from the seed and its number, so
    the whole state of the data is one integer, and a run resumes where it stopped. With
    `begin_id`, windows begin where texts begin. `ids` may be a memory-mapped file.
    """

    ids: Ids
    batch_size: int
    context: int
    seed: int = 0
    begin_id: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.context < 1:
            raise ValueError(
                f"batch_size {self.batch_size} and context {self.context} must be "
                "at least 1"
            )
        if len(self.starts) == 0:
            raise ValueError(
                f"{len(self.ids)} tokens hold no window of {self.context + 1}: "
                "give more text, or choose a shorter context"
            )

    @cached_property
    def starts(self) -> Ids:
        """The places at which a window can begin."""
        if self.begin_id is None:
            return np.arange(max(0, len(self.ids) - self.context))
        return text_starts(self.ids, self.context, self.begin_id)

    def at(self, step: int) -> Pair:
        """Batch number `step`: windows of ids, and the same moved on by one token."""
        random = np.random.default_rng((self.seed, step))
        starts = random.choice(self.starts, self.batch_size)
        return cut_windows(self.ids, starts, self.context)


def cut_windows(ids: Ids, starts: Ids, context: int) -> Pair:
    """The windows that begin at `starts`: what the model reads, what it predicts."""
    windows = np.stack([ids[start : start + context + 1] for start in starts])
    tokens = torch.tensor(windows.astype(np.int64))  # B T+1
    return tokens[:, :-1], tokens[:, 1:]


def all_windows(
    ids: Ids, batch_size: int, context: int, begin_id: int | None = None
) -> Iterator[Pair]:
    """Windows side by side over the whole row: each token is predicted once.

    What is left at the end, too short for a window, is dropped. With `begin_id` there
    is one window for each text, and it begins there, as `Batches` cuts them.
    """
    starts: Ids = np.arange(0, max(0, len(ids) - context), context)
    if begin_id is not None:
        starts = text_starts(ids, context, begin_id)
    if len(starts) == 0:
        raise ValueError(
            f"{len(ids)} held-out tokens hold no window of {context + 1}: "
            "hold out more, or choose a shorter context"
        )
    for i in range(0, len(starts), batch_size):
        yield cut_windows(ids, starts[i : i + batch_size], context)


def text_starts(ids: Ids, context: int, begin_id: int) -> Ids:
    """Where texts begin that have a whole window before the end of the row."""
    return np.flatnonzero(ids[: max(0, len(ids) - context)] == begin_id)
