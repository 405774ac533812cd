"""Checks of notebook 00: the one choice that a language model leaves to others."""

from collections.abc import Iterable

import torch
from torch import Tensor

from minillama.course.check import Case, Check


def likeliest(logits: Tensor) -> int:
    """The id of the largest logit after the last token; logits is 1, T, V."""
    return int(logits[0, -1].argmax())


def _by_sorting(logits: Tensor) -> int:
    return logits[0, -1].topk(1).indices.item()  # type: ignore[return-value]


def _with_a_loop(logits: Tensor) -> int:
    row = logits[0, -1].tolist()
    best = 0
    for i, value in enumerate(row):
        if value > row[best]:
            best = i
    return best


def _through_softmax(logits: Tensor) -> int:
    return int(logits.softmax(-1).argmax(-1)[0, -1])


def _inputs(rng: torch.Generator) -> Iterable[Case]:
    # Two tokens, four possible next ones: the first row is largest at 3, the last at 1.
    yield (torch.tensor([[[0.0, 1.0, 2.0, 6.0], [1.0, 5.0, 0.0, 2.0]]]),)
    for tokens, vocabulary in ((1, 7), (3, 11), (9, 50)):
        yield (torch.randn(1, tokens, vocabulary, generator=rng),)


check_likeliest = Check(
    name="0.1",
    title="likeliest",
    reference=likeliest,
    inputs=_inputs,
    solutions=(_by_sorting, _with_a_loop, _through_softmax),
    mistakes={
        "You look at the first token's row. What comes next is in the last one, "
        "logits[0, -1].": lambda z: int(z[0, 0].argmax()),
        "This is the largest of all rows at once. Only the last row is about the next "
        "token.": lambda z: int(z[0].amax(0).argmax()),
        "argmax without a row counts through the whole tensor. Take logits[0, -1] "
        "first.": lambda z: int(z.argmax()),
        "This is the least likely token: min where max belongs.": lambda z: int(
            z[0, -1].argmin()
        ),
        "This is the largest logit itself. Llama needs its place, the id: argmax, not "
        "max.": lambda z: float(z[0, -1].max()),
        "This is the probability of the likeliest token. Llama needs its place, the "
        "id.": lambda z: float(z[0, -1].softmax(-1).max()),
        "This gives an id for every token. Only the last row is about the next "
        "one.": lambda z: z[0].argmax(-1),
        "You went along the tokens, not along the vocabulary: the wrong axis.": (
            lambda z: z[0].argmax(0)
        ),
        "The id is right, and still a tensor. Make it an int: .item() or int(...).": (
            lambda z: z[0, -1].argmax()
        ),
    },
)
