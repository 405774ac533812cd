"""What a prompt shares with the one before is not read again, and changes nothing.

The oracle is `generate`, which reads each prompt afresh.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loud import loud_model
from torch import Tensor

from minillama.generate import generate, prefill
from minillama.model import Llama
from minillama.prefix import PrefixCache
from minillama.sampling import Sampler
from minillama.speculate import first_layers

# Where two orders of summing do not take different tokens.
pytestmark = pytest.mark.usefixtures("in_float64")

PROMPT = [3, 17, 88, 101, 5, 5, 64, 23, 9]


@pytest.fixture
def model() -> Llama:
    return loud_model()


def reads(model: Llama) -> list[int]:
    """A list that will note how many tokens each call of the model reads."""
    read: list[int] = []
    model.tok_embeddings.register_forward_pre_hook(
        lambda _, given: read.append(given[0].shape[1])
    )
    return read


def told(past: PrefixCache, ids: list[int], **options: Any) -> list[int]:
    return [step.id for step in past.stream(ids, **options)]


@pytest.mark.parametrize(
    ("ids", "new"),
    [
        ([*PROMPT, 1, 2], 2),  # it goes on
        (PROMPT, 1),  # the same once more: its last logits are wanted
        (PROMPT[:4], 1),  # a part of it
        ([*PROMPT[:3], 1, *PROMPT[4:]], 6),  # edited in the middle
        ([1, *PROMPT], 10),  # nothing in common
    ],
)
def test_only_what_is_new_is_read(model: Llama, ids: list[int], new: int) -> None:
    past, read = PrefixCache(model), reads(model)
    prefill(model, torch.tensor([past.reuse(PROMPT)]), past.caches)
    rest = past.reuse(ids)
    assert rest == ids[-new:]
    logits = prefill(model, torch.tensor([rest]), past.caches)
    assert read == [len(PROMPT), new]
    with torch.no_grad():
        want = model(torch.tensor([ids]))[:, -1]
    torch.testing.assert_close(logits, want, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.lists(st.integers(0, 130), max_size=5)),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 6),
)
def test_any_turns(turns: list[tuple[int, list[int]]], steps: int) -> None:
    """Each turn cuts what was said anywhere, says more, and may be left early."""
    model = loud_model(n_layers=2)
    past, ids = PrefixCache(model), list(PROMPT)
    for kept, more in turns:
        ids = [*ids[: kept + 1], *more]
        new = [
            s.id
            for _, s in zip(
                range(steps), past.stream(ids, max_new_tokens=9), strict=False
            )
        ]
        assert new == generate(model, ids, max_new_tokens=steps)
        ids += new


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(seed=3),
        Sampler(temperature=0.8, repetition_penalty=1.5, seed=4),
        Sampler(temperature=0, repetition_penalty=1.5),
    ],
)
def test_drawn_and_penalised_as_afresh(model: Llama, sampler: Sampler) -> None:
    """A penalty knows the ids that were not read again, too."""
    past = PrefixCache(model)
    ids = list(PROMPT)
    for _ in range(3):
        new = told(past, ids, max_new_tokens=8, sampler=sampler)
        assert new == generate(model, ids, max_new_tokens=8, sampler=sampler)
        ids += [*new, 7]


def test_a_sampler_of_ones_own_sees_all_ids(model: Llama) -> None:
    past, seen = PrefixCache(model), list[list[int]]()

    def watching(logits: Tensor, history: list[list[int]]) -> Tensor:
        seen.append(list(history[0]))
        return logits.argmax(-1)

    new = told(past, PROMPT, max_new_tokens=2, sampler=watching)
    told(past, [*PROMPT, *new], max_new_tokens=1, sampler=watching)
    assert seen == [PROMPT, [*PROMPT, new[0]], [*PROMPT, *new]]


def test_broken_off_between_two_layers(model: Llama) -> None:
    """The caches of the layers then differ in length."""
    past = PrefixCache(model)
    for times in range(1, 6):
        left = times

        def interrupt(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        with (
            model.layers[1].register_forward_pre_hook(interrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            told(past, [*PROMPT, times], max_new_tokens=9)
        assert len({cache.length for cache in past.caches}) == 2
        ids = [*past.ids, 4]
        assert told(past, ids, max_new_tokens=4) == generate(
            model, ids, max_new_tokens=4
        )


def test_caches_are_cut_to_the_shortest(model: Llama) -> None:
    past = PrefixCache(model)
    past.ids = [1, 2, 3, 4, 5, 6]
    for cache, length in zip(past.caches, (6, 5, 5), strict=True):
        cache.length = length
    assert past.reuse([1, 2, 3, 4, 5, 6, 7]) == [6, 7]
    assert past.reuse([1, 2, 9, 4, 5, 6, 7]) == [9, 4, 5, 6, 7]
    assert past.reuse([1, 2]) == [2]
    assert {cache.length for cache in past.caches} == {1}


def test_what_does_not_fit_leaves_all_as_it_was(model: Llama) -> None:
    past = PrefixCache(model, 20)
    assert past.context == 20
    told(past, PROMPT, max_new_tokens=3)
    held, lengths = list(past.ids), [cache.length for cache in past.caches]
    words = (
        "a prompt of 9 tokens and 12 new ones are 21, and the context is 20: shorten "
        "the prompt, or ask for at most 11 new tokens"
    )
    with pytest.raises(ValueError, match=words):
        past.stream(PROMPT[::-1], max_new_tokens=12)
    for wrong in ([], [131]):
        with pytest.raises(ValueError, match="the prompt"):
            past.stream(wrong)
    assert (past.ids, [cache.length for cache in past.caches]) == (held, lengths)
    assert told(past, PROMPT, max_new_tokens=None) == generate(
        model, PROMPT, max_new_tokens=11
    )
    with pytest.raises(ValueError, match="an empty prompt has no last token"):
        past.reuse([])


def test_two_pasts_share_a_model_and_not_their_caches(model: Llama) -> None:
    one, other = PrefixCache(model), PrefixCache(first_layers(model, 2))
    told(one, PROMPT, max_new_tokens=3)
    told(other, PROMPT[::-1], max_new_tokens=3)
    ids = [*one.ids, 1]
    assert told(one, ids, max_new_tokens=3) == generate(model, ids, max_new_tokens=3)
