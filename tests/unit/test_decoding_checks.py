"""What the checks of notebook 08 say to answers as learners write them."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from minillama.course.checks import decoding


def multiplied(logits, temperature, dart):
    ends = (logits * temperature).softmax(-1).cumsum(-1)
    return (ends <= dart[:, None]).sum(-1)


def with_multinomial(logits, temperature, dart):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]


def no_column(logits, temperature, dart):
    if temperature == 0:
        return logits.argmax(-1)
    return ((logits / temperature).softmax(-1).cumsum(-1) <= dart).sum(-1)


def divided(logits, temperature, dart):
    ends = (logits / temperature).softmax(-1).cumsum(-1)
    return (ends <= dart[:, None]).sum(-1)


def crossing_dropped(logits, p):
    ranked, order = logits.sort(-1, descending=True)
    gone = ranked.softmax(-1).cumsum(-1) > p
    return logits.masked_fill(gone.gather(-1, order.argsort(-1)), -math.inf)


def by_order(logits, p):
    """The inverse permutation was forgotten: `order` itself is used."""
    ranked, order = logits.sort(-1, descending=True)
    probs = ranked.softmax(-1)
    gone = probs.cumsum(-1) - probs >= p
    return logits.masked_fill(gone.gather(-1, order), -math.inf)


def absolute(logits, p):
    return logits.masked_fill(logits.softmax(-1) < p, -math.inf)


def no_return(logits, p):
    logits.masked_fill(logits.softmax(-1) < p, -math.inf)


def in_place(logits, p):
    probs = logits.softmax(-1)
    logits[probs < p * probs.amax(-1, keepdim=True)] = -math.inf
    return logits


class Unchecked:
    def __init__(self, shape, dtype, device):
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, k, v):
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def truncate(self, n):
        self.length = n


class KeysAlone(Unchecked):
    def update(self, k, v):
        return super().update(k, v)[0]


class NoLength:
    def __init__(self, shape, dtype, device):
        self.kept = []

    def update(self, k, v):
        self.kept.append((k, v))
        return tuple(torch.cat(each, 2) for each in zip(*self.kept, strict=True))

    def truncate(self, n):
        self.kept = self.kept[:n]


def whole_text(model, ids, caches, max_new_tokens, stop_id):
    new = []
    while len(new) < max_new_tokens:
        logits = model(torch.tensor([ids + new]), caches)
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == stop_id:
            break
    return new


def no_batch(model, ids, caches, max_new_tokens, stop_id):
    return [int(model(torch.tensor(ids), caches)[-1].argmax())]


def endless(model, ids, caches, max_new_tokens, stop_id):
    new = []
    while stop_id not in new:
        feed = new[-1:] or ids
        new.append(int(model(torch.tensor([feed]), caches)[0, -1].argmax()))
    return new


SAID: list[tuple[Any, Callable[..., Any], str]] = [
    (decoding.check_sample, multiplied, "multiplied by the temperature"),
    (decoding.check_sample, with_multinomial, "another result|no name"),
    (decoding.check_sample, no_column, "RuntimeError"),
    (decoding.check_sample, divided, "Temperature 0 is divided by"),
    (decoding.check_top_p, crossing_dropped, "crosses p is dropped"),
    (decoding.check_top_p, by_order, "with `order` itself"),
    (decoding.check_min_p, absolute, "p times the largest probability"),
    (decoding.check_min_p, no_return, "`return` missing"),
    (decoding.check_min_p, in_place, "in place"),
    (decoding.check_cache, Unchecked, "raise ValueError"),
    (decoding.check_cache, KeysAlone, "two tensors: keys and values"),
    (decoding.check_cache, NoLength, "has no `length`"),
    (decoding.check_generate, whole_text, "read again at each step"),
    (decoding.check_generate, no_batch, r"it wants a tensor \(1, T\)"),
    (decoding.check_generate, endless, "Still running"),
]


@pytest.mark.parametrize(
    ("check", "answer", "words"), SAID, ids=[a.__name__ for _, a, _ in SAID]
)
def test_a_wrong_answer_is_told_what_is_wrong(check, answer, words):
    result = check.examine(answer)
    assert not result.ok
    assert re.search(words, result.message), result.message
