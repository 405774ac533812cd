"""Sampling against transformers' processors, against exact inversion, against luck."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillama.sampling import (
    Sampler,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repeats,
)

INF = math.inf


def logits_like(seed: int, rows: int = 3, vocab: int = 300) -> Tensor:
    """Logits as spread as a model's own, and in float64: no two alike."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# Each limit against transformers


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *((lambda x, k=k: keep_top_k(x, k), TopKLogitsWarper(k)) for k in (1, 7, 999)),
        *(
            (lambda x, p=p: keep_top_p(x, p), TopPLogitsWarper(p))
            for p in (1e-9, 0.1, 0.5, 0.9, 0.999)
        ),
        *(
            (lambda x, p=p: keep_min_p(x, p), MinPLogitsWarper(p))
            for p in (0.0, 0.01, 0.2, 1.0)
        ),
    ],
)
def test_limits_equal_transformers(
    ours: Callable[[Tensor], Tensor], theirs: LogitsProcessor
) -> None:
    for seed in range(20):
        logits = logits_like(seed)
        before = logits.clone()
        assert torch.equal(ours(logits), theirs(torch.empty(0), logits))
        assert torch.equal(logits, before), "the logits given were changed"


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_penalty_equals_transformers(penalty: float) -> None:
    for seed in range(10):
        logits = logits_like(seed)
        before = logits.clone()
        # Repeated ids: each is penalised once.
        history = torch.randint(0, 300, (3, 40)) % 50
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone())
        assert torch.equal(penalise_repeats(logits, history.tolist(), penalty), theirs)
        assert torch.equal(logits, before)


def test_penalty_has_a_history_a_row() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]] * 3)
    got = penalise_repeats(logits, [[0, 0, 1], [], [2]], 2.0)
    want = torch.tensor([[1.0, -4.0, 1.0], [2.0, -2.0, 1.0], [2.0, -2.0, 0.5]])
    assert torch.equal(got, want)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 20])
@pytest.mark.parametrize("top_p", [None, 0.6, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.1])
@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_all_limits_in_transformers_order(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
) -> None:
    chain: list[LogitsProcessor] = [
        RepetitionPenaltyLogitsProcessor(penalty),
        TemperatureLogitsWarper(temperature),
    ]
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    chain += [TopPLogitsWarper(top_p)] if top_p not in (None, 1.0) else []
    chain += [MinPLogitsWarper(min_p)] if min_p else []
    sampler = Sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
    )
    logits = logits_like(5)
    history = logits.topk(30).indices[:, ::2]
    want = LogitsProcessorList(chain)(history, logits.clone()).softmax(-1)
    got = sampler.limit(logits, history.tolist()).softmax(-1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def kept(logits: Tensor) -> list[int]:
    [row] = logits.isfinite()
    return row.nonzero().flatten().tolist()


def test_top_p_keeps_the_token_that_crosses() -> None:
    # Halves and quarters: these probabilities and their sums are exact.
    logits = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()
    assert kept(keep_top_p(logits, 0.25)) == [1]
    assert kept(keep_top_p(logits, 0.5001)) == [1, 3]
    assert kept(keep_top_p(logits, 0.74)) == [1, 3]
    # The last of them is as likely as another: both stay, or chance would decide.
    assert kept(keep_top_p(logits, 0.76)) == [0, 1, 2, 3]


@settings(deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=30), st.floats(0.01, 1))
def test_top_p_is_the_smallest_set_and_blind_to_order(
    values: list[int], p: float
) -> None:
    logits = torch.tensor([values], dtype=torch.float64) / 2
    probs = logits.softmax(-1)[0]
    ids = kept(keep_top_p(logits, p))
    assert float(probs[ids].sum()) >= p - 1e-9
    likelier = probs[probs > probs[ids].min()]
    assert float(likelier.sum()) < p + 1e-9, "a smaller set would have done"
    turned = kept(keep_top_p(logits.flip(-1), p))
    assert ids == sorted(len(values) - 1 - id for id in turned)


# Drawing


@pytest.mark.parametrize("vocab", [50, 128_256])
def test_a_draw_inverts_the_distribution(vocab: int) -> None:
    probs = logits_like(1, rows=4, vocab=vocab).float().softmax(-1)
    throws = generators(3, 4, 5, 6)
    ours = [draw(probs, throws).tolist() for _ in range(20)]
    for row, generator in enumerate(generators(3, 4, 5, 6)):
        line = np.cumsum(probs[row].numpy(), dtype=np.float64)
        for ids in ours:
            dart = torch.rand(1, generator=generator, dtype=torch.float64).item()
            assert ids[row] == (line <= dart * line[-1]).sum()


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    want = probs * counts.sum()
    return float(((counts - want) ** 2 / want).sum())


# Of 7 - 1 degrees of freedom, exceeded by chance once in a thousand times.
CRITICAL = 22.46


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_should(temperature: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.5, -1.0, 1.5, 0.0]])
    probs = (logits / temperature).softmax(-1)[0].numpy()
    sampler = Sampler(temperature=temperature, seed=1)
    drawn = [int(sampler(logits)) for _ in range(4000)]
    counts = np.bincount(drawn, minlength=7)
    assert chi_square(counts, probs) < CRITICAL
    # The same numbers are far from any other temperature.
    other = logits.mul(1.3).div(temperature).softmax(-1)[0].numpy()
    assert chi_square(counts, other) > 2 * CRITICAL


def test_neighbouring_rows_are_independent() -> None:
    """The first draws of 4000 rows, whose seeds follow each other."""
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.5, -1.0, 1.5, 0.0]])
    ids = Sampler(seed=7)(logits.expand(4000, 7)).numpy()
    probs = logits.softmax(-1)[0].numpy()
    assert chi_square(np.bincount(ids, minlength=7), probs) < CRITICAL
    agree = float((ids[1:] == ids[:-1]).mean())
    expected = float((probs**2).sum())
    assert abs(agree - expected) < 4 * math.sqrt(expected / 4000)


@pytest.mark.parametrize("dart", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("scale", [1.0, 0.7, 1e-30])
def test_the_ends_of_the_line(
    dart: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    throw = torch.tensor([dart], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_args, **_options: throw)
    probs = torch.tensor([[0.0, 0.25, 0.25, 0.0, 0.5, 0.0]]) * scale
    want = {0.0: 1, 0.5: 4}.get(dart, 4)
    assert draw(probs, generators(0)).tolist() == [want]


def test_shares_that_float32_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a thousand tokens is less likely than the rounding of 1 in float32."""
    probs = torch.tensor([[1.0] + [2.0**-30] * 1000])
    dart = (1 + 499.5 * 2**-30) / (1 + 1000 * 2**-30)
    throw = torch.tensor([dart], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_args, **_options: throw)
    assert draw(probs, generators(0)).tolist() == [500]


# 1e37: ten times as much, the most that a penalty here makes of it, is still finite.
LOGIT = st.one_of(
    st.floats(-1e4, 1e4), st.floats(-3, 3), st.sampled_from([-INF, 0.0, 1e37, -1e37])
)
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.just(0), st.floats(1e-6, 1e6)),
        "top_k": st.none() | st.integers(1, 20),
        "top_p": st.none() | st.floats(0, 1, exclude_min=True),
        "min_p": st.none() | st.floats(0, 1),
        "repetition_penalty": st.just(1.0) | st.floats(0.1, 10),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(LOGIT, min_size=9, max_size=9), min_size=1, max_size=3),
    SETTINGS,
    st.lists(st.integers(0, 8), max_size=6),
)
def test_never_a_token_that_was_ruled_out(
    values: list[list[float]], options: dict[str, Any], history: list[int]
) -> None:
    sampler = Sampler(**options)
    logits = torch.tensor(values)
    histories = [history] * len(values)
    if not logits.amax(-1).isfinite().all():
        with pytest.raises(ValueError, match="NaN or infinite"):
            sampler(logits, histories)
        return
    limited = sampler.limit(logits, histories)
    for _ in range(3):
        for row, id in enumerate(sampler(logits, histories).tolist()):
            assert limited[row, id] > -INF
            assert logits[row, id] > -INF


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_penalty_that_makes_a_logit_infinite_is_refused(temperature: float) -> None:
    sampler = Sampler(temperature=temperature, repetition_penalty=0.25)
    logits = torch.tensor([[0.0, 1e38, 0.0]])  # 4e38 is more than float32 holds
    with pytest.raises(ValueError, match="NaN or infinite"):
        sampler(logits, [[1]])
    assert sampler(logits, [[0]]).item() == 1


# The sampler


def test_defaults_leave_the_distribution_alone() -> None:
    logits = logits_like(0)
    got = Sampler().limit(logits).softmax(-1)
    torch.testing.assert_close(got, logits.softmax(-1), rtol=1e-12, atol=0)


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, -2.0]])
    greedy = Sampler(temperature=0)
    assert greedy(logits).tolist() == [1, 0]
    penalised = Sampler(temperature=0, repetition_penalty=2.0)
    assert penalised(logits, [[1], []]).tolist() == [2, 0]


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 5e-324}, {"min_p": 1.0}])
def test_the_narrowest_limits_are_greedy(limit: dict[str, Any]) -> None:
    logits = logits_like(2, rows=50)
    got = Sampler(temperature=5.0, **limit)(logits)
    assert torch.equal(got, logits.argmax(-1))


def test_a_row_does_not_feel_its_neighbours() -> None:
    logits = logits_like(3, rows=4)
    together = Sampler(temperature=1.5, seed=11)
    alone = [Sampler(temperature=1.5, seed=11 + row) for row in range(4)]
    for _ in range(20):
        ids = together(logits).tolist()
        assert ids == [int(one(logits[row : row + 1])) for row, one in enumerate(alone)]


def test_seeds_repeat_and_differ() -> None:
    logits = logits_like(4, rows=1)
    sampler = Sampler(seed=5)
    first = [int(sampler(logits)) for _ in range(20)]
    assert [int(sampler(logits)) for _ in range(20)] != first, "it draws on"
    again = sampler.restart()
    assert again == sampler
    assert [int(again(logits)) for _ in range(20)] == first
    other = Sampler(seed=6)
    assert [int(other(logits)) for _ in range(20)] != first


def test_the_last_seed_wraps_around_in_a_batch() -> None:
    logits = logits_like(4, rows=2)
    ids = Sampler(seed=2**32 - 1)(logits).tolist()
    assert ids[1] == int(Sampler(seed=0)(logits[1:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_logits_are_widened(dtype: torch.dtype) -> None:
    logits = logits_like(6).to(dtype)
    sampler = Sampler(temperature=0.9, top_p=0.9)
    assert sampler.limit(logits).dtype == torch.float32
    assert torch.equal(sampler(logits), sampler.restart()(logits.float()))


def test_a_difference_of_logits_that_would_overflow() -> None:
    logits = torch.tensor([[-3e38, 3e38, 3e38, 0.0]])
    ids = {int(Sampler(temperature=1e-6, seed=seed)(logits)) for seed in range(20)}
    assert ids == {1, 2}


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [[math.nan, 0.0], [INF, 0.0], [-INF, -INF]])
def test_logits_that_nothing_can_be_drawn_from(
    bad: list[float], temperature: float
) -> None:
    with pytest.raises(ValueError, match="logits of a row are NaN or infinite"):
        Sampler(temperature=temperature)(torch.tensor([[0.0, 1.0], bad]))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "0 (greedy), or at least 1e-06"),
        ("temperature", 1e-9, "0 (greedy), or at least 1e-06"),
        ("temperature", INF, "finite"),
        ("temperature", math.nan, "finite"),
        ("top_k", 0, "at least 1, or None"),
        ("top_k", -1, "at least 1, or None"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("top_p", math.nan, "above 0 and at most 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("min_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0, "above 0 and finite"),
        ("repetition_penalty", INF, "above 0 and finite"),
        ("seed", -1, "from 0 to 2**32 - 1"),
        ("seed", 2**32, "from 0 to 2**32 - 1"),
    ],
)
def test_settings_out_of_range(name: str, value: float, allowed: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked
        Sampler(**{name: value})
    assert str(error.value).startswith(f"{name} is {value!r}: it must be ")
    assert allowed in str(error.value)


def test_a_penalty_without_a_history() -> None:
    with pytest.raises(ValueError, match="needs the history"):
        Sampler(repetition_penalty=1.1)(torch.zeros(1, 5))


def test_a_sampler_is_frozen_and_says_what_it_is() -> None:
    sampler = Sampler(temperature=0.7, top_p=0.9)
    with pytest.raises(FrozenInstanceError):
        sampler.temperature = 1.0  # type: ignore[misc]
    assert "temperature=0.7" in repr(sampler)
    assert "generator" not in repr(sampler)
