"""Speculative decoding gives what the model alone gives: the tokens, or their chances.

Greedy is held against `generate` in float64, draws against the exact joint distribution
of the first tokens, computed with transformers' own filters.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loud import loud_model, make_loud, small_config
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from minillama import speculate as speculation
from minillama.cache import KVCache
from minillama.generate import generate, stream
from minillama.model import Llama
from minillama.prefix import PrefixCache
from minillama.sampling import Sampler
from minillama.speculate import (
    Acceptance,
    Dice,
    DraftModel,
    first_layers,
    prompt_lookup,
    speculate,
)
from minillama.tokenizer import train_bpe

# Where two orders of summing do not take different tokens.
pytestmark = pytest.mark.usefixtures("in_float64")

PROMPT = [3, 17, 88, 101, 5, 5, 64, 23, 9]


@pytest.fixture
def model() -> Llama:
    return loud_model()


def no_guess(ids: Sequence[int], count: int) -> list[int]:
    return []


def told(*given: Any, **options: Any) -> list[int]:
    return [step.id for step in speculate(*given, **options)]


# Greedy


def drafts(model: Llama) -> dict[str, Any]:
    return {
        "itself": model,
        "its first layers": first_layers(model, 2),
        "another": loud_model(1, n_layers=1, dim=32, n_heads=2, n_kv_heads=1),
        "lookup": prompt_lookup,
        "none": no_guess,
        "always 5": lambda ids, count: [5] * count,
    }


@pytest.mark.parametrize("draft_tokens", [1, 4, 9])
def test_greedy_tokens_are_the_models_own(model: Llama, draft_tokens: int) -> None:
    want = generate(model, PROMPT, max_new_tokens=30)
    assert len(set(want)) > 5, "a quiet model proves nothing"
    options: Any = {"draft_tokens": draft_tokens, "max_new_tokens": 30}
    for name, draft in drafts(model).items():
        assert told(model, draft, PROMPT, **options) == want, name


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_knows_each_place_by_itself(
    model: Llama, penalty: float
) -> None:
    sampler = Sampler(temperature=0, repetition_penalty=penalty)
    want = generate(model, PROMPT, max_new_tokens=20, sampler=sampler)
    assert want != generate(model, PROMPT, max_new_tokens=20)
    for draft in drafts(model).values():
        assert told(model, draft, PROMPT, max_new_tokens=20, sampler=sampler) == want


@pytest.mark.parametrize(
    "sampler",
    [
        None,
        Sampler(seed=3),
        Sampler(temperature=0.7, top_p=0.9, repetition_penalty=1.2, seed=4),
    ],
)
def test_a_model_accepts_all_that_it_drafts_itself(
    model: Llama, sampler: Sampler | None
) -> None:
    counts = Acceptance()
    options: Any = {"max_new_tokens": 41, "sampler": sampler, "counts": counts}
    assert len(told(model, model, PROMPT, draft_tokens=3, **options)) == 41
    assert counts == Acceptance(rounds=10, drafted=30, accepted=30)
    assert counts.rate == 1
    assert counts.tokens_per_round == 4


def test_counts_are_what_happened(model: Llama) -> None:
    """Guesses of which some are right, told by the answer itself."""
    want = generate(model, PROMPT, max_new_tokens=12)

    def half_right(ids: Sequence[int], count: int) -> list[int]:
        at = len(ids) - len(PROMPT)
        return [want[at], (want[at + 1] + 1) % 131, want[at + 2]][:count]

    counts, read = Acceptance(), list[int]()
    hook = model.tok_embeddings.register_forward_pre_hook(
        lambda _, given: read.append(given[0].shape[1])
    )
    options: Any = {"max_new_tokens": 12, "draft_tokens": 3, "counts": counts}
    assert told(model, half_right, PROMPT, **options) == want
    hook.remove()
    # 1 from the prompt, then 2 a round; the last has no room for a guess.
    assert read == [9, 4, 4, 4, 4, 3, 1]
    assert counts == Acceptance(rounds=6, drafted=14, accepted=5)
    assert counts.rate == pytest.approx(5 / 14)
    assert counts.tokens_per_round == pytest.approx(11 / 6)
    assert (Acceptance().rate, Acceptance().tokens_per_round) == (0, 0)


def test_without_guesses_a_seed_gives_the_tokens_of_stream(model: Llama) -> None:
    sampler = Sampler(temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=11)
    want = generate(model, PROMPT, max_new_tokens=30, sampler=sampler)
    assert told(model, no_guess, PROMPT, max_new_tokens=30, sampler=sampler) == want


def test_the_same_call_gives_the_same_tokens(model: Llama) -> None:
    draft = first_layers(model, 2)

    def run(seed: int) -> list[int]:
        return told(model, draft, PROMPT, max_new_tokens=30, sampler=Sampler(seed=seed))

    assert run(1) == run(1) != run(2)


# Draws: the joint distribution of the first tokens


class Table(Llama):
    """A model whose logits depend on the last token alone, and cost next to nothing."""

    def __init__(self, seed: int, vocab_size: int, scale: float = 1.5) -> None:
        super().__init__(small_config(n_layers=1, vocab_size=vocab_size))
        generator = torch.Generator().manual_seed(seed)
        self.table = scale * torch.randn(
            (vocab_size, vocab_size), generator=generator, dtype=torch.float64
        )
        self.output = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        self.output.weight = torch.nn.Parameter(self.table.T, requires_grad=False)

    def hidden(
        self, tokens: Tensor, caches: list[KVCache] | None = None, pad: Any = None
    ) -> Tensor:
        for cache in caches or ():
            cache.length += tokens.shape[1]
        return one_hot(tokens, len(self.table)).double()

    def forward(
        self, tokens: Tensor, caches: list[KVCache] | None = None, pad: Any = None
    ) -> Tensor:
        return self.output(self.hidden(tokens, caches, pad))


SIZE = 5
START = [2, 4]
LENGTH = 3
DRAWS = 1000


def chances(
    logits_after: Callable[[list[int]], Tensor], sampler: Sampler
) -> dict[tuple[int, ...], float]:
    """The exact probability of every beginning, with transformers' filters."""
    filters: list[Any] = [TemperatureLogitsWarper(float(sampler.temperature))]
    if sampler.repetition_penalty != 1:
        filters.insert(0, RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty))
    if sampler.top_p is not None:
        filters.append(TopPLogitsWarper(sampler.top_p))

    def next_chances(ids: list[int]) -> list[float]:
        logits = logits_after(ids)[None]
        for each in filters:
            logits = each(torch.tensor([ids]), logits)
        return logits.softmax(-1)[0].tolist()

    found: dict[tuple[int, ...], float] = {}
    for new in itertools.product(range(SIZE), repeat=LENGTH):
        whole = [*START, *new]
        found[new] = math.prod(
            next_chances(whole[: len(START) + i])[id] for i, id in enumerate(new)
        )
    return found


def chi_square(counts: Counter[tuple[int, ...]], want: dict[Any, float]) -> float:
    """How likely a deviation as large as this is: Pearson's test, rare cells pooled."""
    draws = counts.total()
    if any(want[cell] == 0 for cell in counts):
        return 0.0
    often = [cell for cell in want if draws * want[cell] >= 5]
    cells = [(counts[cell], draws * want[cell]) for cell in often]
    rest = draws - sum(e for _, e in cells)
    if rest > 1e-6:
        cells.append((draws - sum(n for n, _ in cells), rest))
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2])
    return float(torch.special.gammaincc(half[0], half[1]))


def drawn(
    model: Llama, draft: Any, sampler: dict[str, Any], draws: int = DRAWS
) -> Counter[tuple[int, ...]]:
    """So many beginnings, each with a seed of its own."""
    return Counter(
        tuple(
            told(
                model,
                draft,
                START,
                draft_tokens=2,
                max_new_tokens=LENGTH,
                sampler=Sampler(**sampler, seed=seed),
            )
        )
        for seed in range(draws)
    )


MODEL, DRAFT = Table(0, SIZE), Table(3, SIZE, 2.5)
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "filtered": {"temperature": 0.8, "top_p": 0.85},
    "penalised": {"temperature": 1.2, "repetition_penalty": 1.7},
}


def exact(sampler: dict[str, Any]) -> dict[tuple[int, ...], float]:
    return chances(lambda ids: MODEL.table[ids[-1]], Sampler(**sampler))


def cycle(ids: Sequence[int], count: int) -> list[int]:
    """A function's guesses: each token is followed by the next."""
    return [(ids[-1] + 1 + i) % SIZE for i in range(count)]


@pytest.mark.parametrize("sampler", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("draft", [DRAFT, cycle], ids=["model", "function"])
def test_draws_have_the_models_distribution(
    draft: Any, sampler: dict[str, Any]
) -> None:
    want = exact(sampler)
    assert sum(want.values()) == pytest.approx(1)
    assert chi_square(drawn(MODEL, draft, sampler), want) > 0.01


def test_the_drafts_own_distribution_is_another() -> None:
    """Else the test above would prove nothing."""
    assert chi_square(drawn(DRAFT, no_guess, {}, 200), exact({})) < 1e-9
    assert chi_square(drawn(MODEL, no_guess, {}), exact({})) > 0.01


def everything_accepted(self: Dice, probability: float) -> bool:
    return True


def nothing_accepted(self: Dice, probability: float) -> bool:
    return False


def not_subtracted(p: Tensor, q: Tensor) -> Tensor:
    return p


def subtracted_the_wrong_way(p: Tensor, q: Tensor) -> Tensor:
    return (q - p).clamp(min=0)


def one_row_late(
    p: Tensor, q: list[Tensor], drafted: list[int], dice: Dice
) -> list[int]:
    return JUDGE(p.roll(1, 0), q, drafted, dice)


JUDGE = speculation.judge
MUTANTS: list[tuple[Any, str, Any]] = [
    (Dice, "happens", everything_accepted),
    (Dice, "happens", nothing_accepted),
    (speculation, "residual", not_subtracted),
    (speculation, "residual", subtracted_the_wrong_way),
    (speculation, "judge", one_row_late),
]


@pytest.mark.parametrize(
    ("where", "name", "mutant"), MUTANTS, ids=[m.__name__ for *_, m in MUTANTS]
)
def test_mistakes_give_another_distribution(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, mutant: Any
) -> None:
    monkeypatch.setattr(where, name, mutant)
    assert chi_square(drawn(MODEL, DRAFT, {}, 800), exact({})) < 1e-6


def test_draws_of_real_layers_and_caches() -> None:
    """As above, with a past that matters: two Llamas, each with caches of its own."""
    shape: Any = {"dim": 32, "n_heads": 2, "n_kv_heads": 1, "vocab_size": SIZE}
    model, draft = (
        loud_model(0, n_layers=2, **shape),
        loud_model(1, n_layers=1, **shape),
    )

    def logits_after(ids: list[int]) -> Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids]))[0, -1]

    sampler = {"temperature": 1.4}
    want = chances(logits_after, Sampler(**sampler))
    assert chi_square(drawn(model, draft, sampler, 300), want) > 0.01
    assert chi_square(drawn(draft, no_guess, sampler, 200), want) < 1e-4


def test_what_is_left_of_p() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    close = torch.testing.assert_close
    close(speculation.residual(p, q), torch.tensor([0.3, 0.0, 0.0]))
    close(speculation.residual(p, p), p)  # rounding alone: nothing would be left


# Where it ends, and the text


WORDS = train_bpe("ab", vocab_size=256)


def same_steps(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a.id, a.text) == (b.id, b.text)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-9)
        assert [id for id, _ in a.top] == [id for id, _ in b.top]
        assert [p for _, p in a.top] == pytest.approx([p for _, p in b.top], abs=1e-9)


@pytest.mark.parametrize("layers", [2, 3])
def test_steps_are_those_of_stream(layers: int) -> None:
    """Ids, texts, log-probabilities; for stops wherever in a round they come."""
    model = loud_model(vocab_size=256)
    draft = first_layers(model, layers)
    options: Any = {"max_new_tokens": 24, "tokenizer": WORDS, "top": 3}
    whole = list(stream(model, PROMPT, **options))
    same_steps(speculate(model, draft, PROMPT, **options), whole)
    text = "".join(step.text for step in whole)
    ends = [{"stop_strings": [text[i : i + 3], "never"]} for i in range(0, 12, 2)]
    ends += [{"stop_ids": {whole[i].id, 300}} for i in range(1, 12, 2)]
    for end in ends:
        want = list(stream(model, PROMPT, **options, **end))
        assert len(want) < 24
        same_steps(speculate(model, draft, PROMPT, **options, **end), want)


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 11])
def test_it_ends_at_max_new_tokens(model: Llama, new: int) -> None:
    want = generate(model, PROMPT, max_new_tokens=new)
    assert told(model, model, PROMPT, max_new_tokens=new) == want


@pytest.mark.parametrize("left", [1, 2, 3, 7])
def test_it_ends_at_the_end_of_the_context(left: int) -> None:
    model = loud_model(max_seq_len=30)
    prompt = [*PROMPT, *PROMPT, *PROMPT, *PROMPT][: 30 - left]
    want = generate(model, prompt, max_new_tokens=None)
    assert len(want) == left
    for draft in (model, first_layers(model, 1), prompt_lookup):
        assert told(model, draft, prompt, max_new_tokens=None) == want
        past = PrefixCache(model, 30)
        assert told(model, draft, prompt, max_new_tokens=None, past=past) == want


@pytest.mark.parametrize("context", [9, 10, 11, 12, 20])
def test_a_draft_with_a_shorter_context_falls_silent(
    model: Llama, context: int
) -> None:
    draft = loud_model(max_seq_len=context)  # the same weights
    counts = Acceptance()
    want = generate(model, PROMPT, max_new_tokens=30)
    options: Any = {"max_new_tokens": 30, "counts": counts}
    assert told(model, draft, PROMPT, **options) == want
    # The last token that it can read is the context's last, and one more it can guess.
    assert counts.accepted == counts.drafted <= context + 1 - len(PROMPT)
    assert counts.drafted > 0 or context == len(PROMPT)


# The past of earlier calls


def test_the_next_turn_reads_what_is_new(model: Llama) -> None:
    past, draft = PrefixCache(model), DraftModel(loud_model())
    first, second = model.tok_embeddings, draft.model.tok_embeddings
    read: dict[Any, list[int]] = {first: [], second: []}

    def note(which: Any, given: Any) -> None:
        read[which].append(given[0].shape[1])

    ids = list(PROMPT)
    with (
        first.register_forward_pre_hook(note),
        second.register_forward_pre_hook(note),
    ):
        for more in ([], [7, 8, 9], [1]):
            ids += more
            for calls in read.values():
                calls.clear()
            new = told(model, draft, ids, max_new_tokens=8, past=past)
            # The last token of the answer, which no cache holds, and what is new.
            rest = 1 + len(more) if more else len(PROMPT)
            assert read[first][0] == rest
            assert read[second][0] <= rest + 2
            assert new == generate(loud_model(), ids, max_new_tokens=8)
            ids += new


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 12), st.integers(0, 14), st.lists(st.integers(0, 130)))
def test_left_early_or_edited(steps: int, kept: int, more: list[int]) -> None:
    """Wherever one leaves, in the middle of what was accepted too, all goes on."""
    model = loud_model(n_layers=2)
    past, draft = PrefixCache(model), DraftModel(first_layers(model, 1))
    running = speculate(model, draft, PROMPT, max_new_tokens=20, past=past)
    new = [next(running).id for _ in range(steps)]
    ids = [*PROMPT, *new][: len(PROMPT) + kept] + more
    got = told(model, draft, ids, max_new_tokens=10, past=past)
    assert got == generate(model, ids, max_new_tokens=10)


def test_interrupted_between_two_layers(model: Llama) -> None:
    past, draft = PrefixCache(model), DraftModel(first_layers(model, 2))
    for times in range(1, 12):
        layer = model.layers[1]
        left = times

        def interrupt(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        with (
            layer.register_forward_pre_hook(interrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            told(model, draft, [*PROMPT, times], max_new_tokens=20, past=past)
        ids = [*past.ids, 4]
        got = told(model, draft, ids, max_new_tokens=5, past=past)
        assert got == generate(model, ids, max_new_tokens=5)


# Drafts


def test_first_layers_share_the_weights(model: Llama) -> None:
    draft = first_layers(model, 2)
    alone = make_loud(Llama(small_config(n_layers=2)))
    alone.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "layers.2" not in k}
    )
    tokens = torch.tensor([PROMPT])
    torch.testing.assert_close(draft(tokens), alone(tokens))
    shared = {weight.data_ptr() for weight in model.parameters()}
    assert {weight.data_ptr() for weight in draft.parameters()} < shared
    assert (len(draft.layers), len(model.layers)) == (2, 3)
    torch.testing.assert_close(first_layers(model, 3)(tokens), model(tokens))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_lookup_finds_what_transformers_finds(
    ids: list[int], count: int, longest: int
) -> None:
    theirs = PromptLookupCandidateGenerator(
        num_output_tokens=count, max_matching_ngram_size=longest, max_length=1000
    )
    found, _ = theirs.get_candidates(torch.tensor([ids]))
    got = prompt_lookup(ids, count, longest=longest)
    assert got == found[0, len(ids) :].tolist()


# What is refused, before any work


def refused(words: str, *given: Any, **options: Any) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked
        speculate(*given, **options)
    assert words in str(error.value)


def test_refused_at_the_call(model: Llama) -> None:
    other = loud_model(vocab_size=97)
    for draft in (other, DraftModel(other)):
        words = (
            "the draft has a vocabulary of 97 tokens and the model one of 131: take a "
            "draft with the model's own tokenizer"
        )
        refused(words, model, draft, PROMPT, max_new_tokens=2)
    for words, options in (
        ("draft_tokens is 0", {"draft_tokens": 0}),
        ("max_new_tokens is 0", {"max_new_tokens": 0}),
        ("top is 132", {"top": 132}),
        ("chunk is 0", {"chunk": 0}),
        ("give the tokenizer as well", {"stop_strings": ["x"]}),
        (
            "a prompt of 9 tokens and 256 new ones are 265, and the context is 256",
            {"max_new_tokens": 256},
        ),
        (
            "a prompt of 9 tokens and 20 new ones are 29, and the context is 28",
            {"max_new_tokens": 20, "past": PrefixCache(model, 28)},
        ),
        ("past was filled by another model", {"past": PrefixCache(other)}),
        (
            "sampler is a function, which does not say what it draws from",
            {"sampler": lambda logits, history: logits.argmax(-1)},
        ),
    ):
        refused(words, model, model, PROMPT, **({"max_new_tokens": 2} | options))
    refused("the prompt is empty", model, model, [])
    refused("id 131, and the vocabulary", model, model, [131])


def test_a_function_that_guesses_what_is_no_token(model: Llama) -> None:
    for id in (131, -1):
        with pytest.raises(ValueError, match=f"guessed id {id}, and the vocabulary"):
            told(model, lambda ids, count, id=id: [4, id], PROMPT, max_new_tokens=5)


def test_first_layers_of_too_many(model: Llama) -> None:
    for number in (0, 4):
        with pytest.raises(ValueError, match="has 3 layers, so take 1 to 3"):
            first_layers(model, number)


def test_logits_that_are_nan(model: Llama) -> None:
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        told(model, prompt_lookup, PROMPT, max_new_tokens=3)


# Real weights


@pytest.mark.model
def test_smollm2_says_the_same(smollm2_path: Path) -> None:
    """Up to rounding: float32 sums five rows in another order than one."""
    from minillama import ChatFormat, load

    torch.set_default_dtype(torch.float32)
    model, tokenizer = load(smollm2_path, dtype=torch.float32, device="cpu")
    text = "Repeat this: the dog saw the cat and it ran."
    ids = ChatFormat(tokenizer).encode([{"role": "user", "content": text}])
    options: Any = {"max_new_tokens": 12, "stop_ids": tokenizer.stop_ids}
    want = list(stream(model, ids, **options, top=2))
    for draft in (prompt_lookup, first_layers(model, 24)):
        counts = Acceptance()
        got = told(model, draft, ids, **options, counts=counts)
        assert counts.accepted > 0
        for a, step in zip(got, want, strict=False):
            if a != step.id:
                assert step.top[0][1] - step.top[1][1] < 1e-3, "no near tie"
                break
        else:
            assert len(got) == len(want)
