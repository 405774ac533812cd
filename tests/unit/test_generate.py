"""Decoding: the cache contract, batches, streams and where they end.

The oracle is the model without any cache, run on one whole row.
"""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loud import loud_model, small_config
from torch import Tensor

from minillama.cache import KVCache
from minillama.config import RopeScaling
from minillama.generate import (
    Step,
    decode_step,
    generate,
    left_pad,
    new_caches,
    prefill,
    stream,
    stream_batch,
)
from minillama.model import Llama
from minillama.sampling import Sampler
from minillama.tokenizer import train_bpe

SCALED = RopeScaling(factor=4.0, original_max_seq_len=24)
PROMPT = 37  # beyond the old context, as real prompts will be


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 131, (length,), generator=generator).tolist()


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    """RoPE's angles too: then nothing but a mistake makes a difference."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # on models this small a second one only waits
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> Llama:
    return loud_model(rope_scaling=SCALED)


def uncached(model: Llama, ids: Sequence[int]) -> Tensor:
    """Logits after each token of one row, computed whole."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]))[0]


def close(got: Tensor, want: Tensor) -> None:
    tolerance = 1e-9 if want.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# The cache contract


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_split_of_a_prompt(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    model = loud_model(rope_scaling=SCALED)
    ids = prompt_of(PROMPT)
    want = uncached(model, ids)
    tokens = torch.tensor([ids])
    for split in range(1, PROMPT):
        caches = new_caches(model, tokens=PROMPT)
        close(prefill(model, tokens[:, :split], caches)[0], want[split - 1])
        close(prefill(model, tokens[:, split:], caches)[0], want[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_size_of_chunk(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    model = loud_model(rope_scaling=SCALED)
    ids = prompt_of(PROMPT)
    want = uncached(model, [*ids, 5])
    for chunk in [*range(1, PROMPT + 2), None]:
        caches = new_caches(model, tokens=PROMPT + 1)
        got = prefill(model, torch.tensor([ids]), caches, chunk=chunk)
        assert [cache.length for cache in caches] == [PROMPT] * len(caches)
        close(got[0], want[-2])
        close(decode_step(model, torch.tensor([5]), caches)[0], want[-1])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_any_pieces_and_ways_back(pieces: list[int], data: st.DataObject) -> None:
    """Pieces of any size; after each, perhaps back to an earlier point."""
    model = loud_model(rope_scaling=SCALED, n_layers=2)
    ids = prompt_of(sum(pieces))
    want = uncached(model, ids)
    caches = new_caches(model, tokens=len(ids))
    for piece in pieces:
        start = data.draw(st.integers(0, caches[0].length))
        for cache in caches:
            cache.truncate(start)
        tokens = torch.tensor([ids[start : start + piece]])
        close(prefill(model, tokens, caches)[0], want[start + piece - 1])


def test_chunks_bound_what_the_model_is_asked_for(model: Llama) -> None:
    asked: list[int] = []

    def watched(tokens: Tensor, caches: list[KVCache], pad: Tensor | None) -> Tensor:
        asked.append(tokens.shape[1])
        return model(tokens, caches, pad)

    prefill(
        watched, torch.tensor([prompt_of(21)]), new_caches(model, tokens=21), chunk=8
    )
    assert asked == [8, 8, 5]


def test_what_comes_back_is_an_ordinary_tensor(model: Llama) -> None:
    caches = new_caches(model, tokens=8)
    for logits in (
        prefill(model, torch.tensor([[1, 2]]), caches),
        decode_step(model, torch.tensor([3]), caches),
    ):
        assert not logits.is_inference()
        assert not logits.requires_grad
        logits[0, 0] = -math.inf  # refused for an inference tensor
        assert logits.untyped_storage().nbytes() == logits.nbytes, (
            "the whole prompt's logits are held for one row"
        )


def test_a_training_step_after_decoding() -> None:
    model = loud_model()
    generate(model, [1, 2, 3], max_new_tokens=3)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_caches_have_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = loud_model().to(dtype)
    assert new_caches(model, tokens=3)[0].keys.dtype == dtype
    assert len(generate(model, [1, 2, 3], max_new_tokens=3)) == 3


# One row


def naive(model: Llama, ids: Sequence[int], count: int) -> list[int]:
    """Greedy decoding as anybody would write it first."""
    row = list(ids)
    for _ in range(count):
        row.append(int(uncached(model, row)[-1].argmax()))
    return row[len(ids) :]


@pytest.mark.parametrize("length", [1, 2, PROMPT])
def test_greedy_equals_the_naive_loop(model: Llama, length: int) -> None:
    ids = prompt_of(length)
    want = naive(model, ids, 30)
    assert len(set(want)) > 5, "a quiet model proves nothing"
    assert generate(model, ids, max_new_tokens=30) == want
    assert generate(model, torch.tensor(ids), max_new_tokens=30, chunk=4) == want
    assert [s.id for s in stream(model, ids, max_new_tokens=30)] == want


def test_logprobs_are_the_models_own(model: Llama) -> None:
    """Before temperature and filters, whatever was drawn."""
    ids = prompt_of(9)
    sampler = Sampler(temperature=3.0, top_k=40, repetition_penalty=1.5, seed=2)
    steps = list(stream(model, ids, max_new_tokens=20, sampler=sampler, top=4))
    new = [step.id for step in steps]
    want = uncached(model, ids + new[:-1])[len(ids) - 1 :].log_softmax(-1)
    for step, row in zip(steps, want, strict=True):
        assert step.logprob == pytest.approx(float(row[step.id]), abs=1e-9)
        best = row.topk(4)
        assert [id for id, _ in step.top] == best.indices.tolist()
        assert [p for _, p in step.top] == pytest.approx(best.values.tolist(), abs=1e-9)
    assert new != [step.top[0][0] for step in steps]


def test_the_sampler_sees_the_history(model: Llama) -> None:
    seen: list[list[int]] = []

    def watching(logits: Tensor, history: list[list[int]]) -> Tensor:
        seen.append(list(history[0]))
        return logits.argmax(-1)

    new = generate(model, [4, 5], max_new_tokens=3, sampler=watching)
    assert seen == [[4, 5], [4, 5, *new[:1]], [4, 5, *new[:2]]]


def test_a_repetition_penalty_ends_repetition(model: Llama) -> None:
    sampler = Sampler(temperature=0, repetition_penalty=1e6)
    new = generate(model, [4, 5], max_new_tokens=60, sampler=sampler)
    assert len({4, 5, *new}) == 62


def test_the_same_call_gives_the_same_tokens(model: Llama) -> None:
    sampler = Sampler(temperature=1.0, seed=3)

    def run(sampler: Sampler) -> list[int]:
        return generate(model, [1, 2], max_new_tokens=20, sampler=sampler)

    assert run(sampler) == run(sampler) == run(Sampler(temperature=1.0, seed=3))
    assert run(sampler) != run(Sampler(temperature=1.0, seed=4))


def test_a_step_comes_before_the_next_is_computed(model: Llama) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = model.tok_embeddings.register_forward_hook(count)
    try:
        steps = stream(model, [1, 2], max_new_tokens=4)
        assert calls == 0
        for number, _ in enumerate(steps, 1):
            assert calls == number
    finally:
        hook.remove()


def test_a_step_says_what_it_is() -> None:
    step = Step(5, "five", -0.5)
    assert repr(step) == "Step(id=5, text='five', logprob=-0.5, top=[])"


# Several rows


def test_left_padding() -> None:
    tokens, pad = left_pad([[1, 2, 3], [4], [5, 6]])
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4], [0, 5, 6]]
    assert pad is not None
    assert pad.tolist() == [0, 2, 1]
    assert left_pad([[1, 2], [3, 4]])[1] is None


LENGTHS = [5, PROMPT, 1, 12]


@pytest.mark.parametrize("chunk", [3, 512])
def test_a_batch_equals_its_rows(model: Llama, chunk: int) -> None:
    prompts = [prompt_of(n, seed=n) for n in LENGTHS]
    for sampler in (None, Sampler(temperature=0.8, top_p=0.95, seed=20)):
        turns = list(
            stream_batch(
                model, prompts, max_new_tokens=15, sampler=sampler, top=2, chunk=chunk
            )
        )
        for row, ids in enumerate(prompts):
            own = sampler and Sampler(temperature=0.8, top_p=0.95, seed=20 + row)
            alone = list(stream(model, ids, max_new_tokens=15, sampler=own, top=2))
            for turn, step in zip(turns, alone, strict=True):
                other = turn[row]
                assert other is not None
                assert other.id == step.id
                assert other.logprob == pytest.approx(step.logprob, abs=1e-9)
                assert [i for i, _ in other.top] == [i for i, _ in step.top]


def test_a_batch_in_float32() -> None:
    torch.set_default_dtype(torch.float32)
    model = loud_model(rope_scaling=SCALED)
    prompts = [prompt_of(n, seed=n) for n in LENGTHS]
    tokens, pad = left_pad(prompts)
    caches = new_caches(model, len(prompts), PROMPT + 1)
    first = prefill(model, tokens, caches, pad)
    second = decode_step(model, torch.tensor([7, 8, 9, 10]), caches, pad)
    for row, ids in enumerate(prompts):
        want = uncached(model, [*ids, 7 + row])
        close(first[row], want[-2])
        close(second[row], want[-1])


def test_generate_takes_one_prompt_or_many(model: Llama) -> None:
    prompts = [prompt_of(4), prompt_of(9)]
    both = generate(model, prompts, max_new_tokens=6)
    assert both == [generate(model, ids, max_new_tokens=6) for ids in prompts]


def test_rows_end_by_themselves(model: Llama) -> None:
    prompts = [prompt_of(n, seed=n) for n in (3, 8, 6)]
    whole = generate(model, prompts, max_new_tokens=12)
    # A token that one row reaches soon and another later.
    stops = {whole[0][2], whole[1][7]}
    cut = [min((row.index(s) for s in stops if s in row), default=11) for row in whole]
    turns = list(stream_batch(model, prompts, max_new_tokens=12, stop_ids=stops))
    assert len(turns) == max(cut) + 1
    for row, last in enumerate(cut):
        ids = [turn[row].id if turn[row] else None for turn in turns]
        assert ids[: last + 1] == whole[row][: last + 1]
        assert ids[last + 1 :] == [None] * (max(cut) - last)
    assert generate(model, prompts, max_new_tokens=12, stop_ids=stops) == [
        row[: last + 1] for row, last in zip(whole, cut, strict=True)
    ]


# Caches that hold a beginning


def test_a_stream_continues_what_the_caches_hold(model: Llama) -> None:
    ids = prompt_of(20)
    want = generate(model, ids, max_new_tokens=10)
    for held in range(1, 20):
        caches = new_caches(model, tokens=40)
        prefill(model, torch.tensor([ids[:held]]), caches)
        assert generate(model, ids[held:], max_new_tokens=10, caches=caches) == want


def test_what_the_caches_hold_afterwards(model: Llama) -> None:
    """The prompt and every token yielded but the last, also when one leaves early."""
    ids = prompt_of(6)
    caches = new_caches(model, tokens=60)
    new: list[int] = []
    for step in stream(model, ids, max_new_tokens=10, caches=caches):
        new.append(step.id)
        assert caches[0].length == len(ids) + len(new) - 1
        if len(new) == 4:
            break
    # A conversation goes on with the last token and whatever comes next.
    more = [*new[-1:], 9, 8, 7]
    got = generate(model, more, max_new_tokens=5, caches=caches)
    assert got == naive(model, [*ids, *new[:-1], *more], 5)


def test_a_batch_shares_a_beginning(model: Llama) -> None:
    begin, ends = prompt_of(7), [[1, 2], [3, 4]]
    caches = new_caches(model, 2, 30)
    prefill(model, torch.tensor([begin, begin]), caches)
    got = generate(model, ends, max_new_tokens=5, caches=caches)
    assert got == [naive(model, begin + end, 5) for end in ends]


# Where it ends


def test_it_ends_at_max_new_tokens_or_the_context(model: Llama) -> None:
    context = model.config.max_seq_len
    assert len(generate(model, [1], max_new_tokens=1)) == 1
    ids = prompt_of(context - 3)
    assert len(generate(model, ids, max_new_tokens=3)) == 3
    assert len(generate(model, ids, max_new_tokens=None)) == 3
    caches = new_caches(model, tokens=12)
    assert len(generate(model, [1, 2], max_new_tokens=None, caches=caches)) == 10


def test_a_stop_id_is_the_last_step(model: Llama) -> None:
    whole = generate(model, [1, 2], max_new_tokens=10)
    stop = whole[4]
    first = whole.index(stop)
    steps = list(stream(model, [1, 2], max_new_tokens=10, stop_ids=[stop]))
    assert [step.id for step in steps] == whole[: first + 1]


class Script:
    """A model that says what it was told to, whatever it is asked."""

    def __init__(self, says: Sequence[int], vocab_size: int) -> None:
        self.config = small_config(vocab_size=vocab_size, n_layers=1, max_seq_len=4096)
        self.says = says
        self.place = 0

    def parameters(self) -> Iterator[Tensor]:
        yield torch.zeros(1)

    def __call__(
        self, tokens: Tensor, caches: list[KVCache], pad: Tensor | None
    ) -> Tensor:
        logits = torch.zeros(*tokens.shape, self.config.vocab_size)
        logits[:, -1, self.says[self.place]] = 9.0
        self.place += 1
        return logits


class Spelling:
    """A tokenizer whose token i is the i-th of some strings."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = pieces

    def stream_decoder(self) -> Any:
        return SimpleNamespace(push=lambda id: self.pieces[id], flush=lambda: "")


def tell(pieces: Sequence[str], stops: Sequence[str], **options: Any) -> list[str]:
    """The texts of the steps when a model says these pieces one by one."""
    script: Any = Script(range(len(pieces)), len(pieces))
    steps = stream(
        script,
        [0],
        max_new_tokens=len(pieces),
        stop_strings=stops,
        tokenizer=Spelling(pieces),
        **options,
    )
    return [step.text for step in steps]


@pytest.mark.parametrize(
    ("pieces", "stops", "texts"),
    [
        (["a", "b", "c"], [], ["a", "b", "c"]),
        (["a", "b", "c"], ["x"], ["a", "b", "c"]),
        # The stop string lies in one token, across two, across three.
        (["one", " STOP two", "no"], ["STOP"], ["one", " "]),
        (["one ST", "OP two", "no"], ["STOP"], ["one ", ""]),
        (["one S", "TO", "P", "no"], ["STOP"], ["one ", "", ""]),
        # What was held back comes once it cannot be the beginning any more.
        (["one S", "TO", "X", "yes"], ["STOP"], ["one ", "", "STOX", "yes"]),
        (["S", "S", "T", "S", "T"], ["STOP"], ["", "S", "", "ST", "ST"]),
        # And at the end, if nothing more comes.
        (["one ST"], ["STOP"], ["one ST"]),
        # The one that is complete first ends it, though another began before.
        (["ab", "c", "d", "no"], ["abcd", "bc"], ["", "a"]),
        (["abcd", "no"], ["abcd", "bc"], ["a"]),
        (["xab", "no"], ["ab", "b"], ["x"]),
        (["", "\n", "\n", "no"], ["\n\n"], ["", "", ""]),
    ],
)
def test_stop_strings(pieces: list[str], stops: list[str], texts: list[str]) -> None:
    assert tell(pieces, stops) == texts


def until(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string, one character at a time."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("ab", max_size=4), min_size=1, max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_stop_strings_do_not_feel_token_borders(
    pieces: list[str], stops: list[str]
) -> None:
    want = until("".join(pieces), stops)
    so_far = ""
    for text in tell(pieces, stops):
        so_far += text
        assert want.startswith(so_far), "it told what it had to take back"
    assert so_far == want


def test_no_text_without_a_tokenizer(model: Llama) -> None:
    assert {step.text for step in stream(model, [1], max_new_tokens=5)} == {""}


def test_a_stop_id_shows_nothing_but_lets_go_what_was_held() -> None:
    assert tell(["one", " S", "<end>", "no"], ["STOP"], stop_ids=[2]) == [
        "one",
        " ",
        "S",
    ]


BYTES = train_bpe("ab", vocab_size=256)


def spelled(data: bytes, **options: Any) -> list[str]:
    """The texts of the steps when a model says these bytes one by one."""
    by_bytes = {BYTES.token_bytes(id): id for id in range(256)}
    script: Any = Script([by_bytes[bytes([byte])] for byte in data], 256)
    options = {"max_new_tokens": len(data)} | options
    return [step.text for step in stream(script, [0], tokenizer=BYTES, **options)]


def test_never_half_a_character() -> None:
    said = "né 🙂 ữ\n"
    texts = spelled(said.encode())
    assert "".join(texts) == said
    assert len(texts) == len(said.encode())
    assert [text for text in texts if text] == list(said)


def test_a_stop_string_of_several_bytes() -> None:
    assert "".join(spelled("yes 🙂 no".encode(), stop_strings=["🙂"])) == "yes "


def test_bytes_that_stay_half_a_character() -> None:
    texts = spelled("a🙂".encode(), max_new_tokens=3)
    assert texts[:2] == ["a", ""]
    assert "".join(texts) == b"a\xf0\x9f".decode("utf-8", "replace")


# What is refused, before any work


class Idle(Script):
    def __call__(self, *_: Any, **__: Any) -> Tensor:
        raise AssertionError("the model was run")


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        ([], {}, "the prompt is empty: give at least one token"),
        ([3, 131], {}, "id 131, and the vocabulary of this model is 0 to 130"),
        ([3, -1], {}, "id -1, and the vocabulary of this model is 0 to 130"),
        ([3], {"max_new_tokens": 0}, "max_new_tokens is 0: it must be at least 1"),
        ([3], {"max_new_tokens": -2}, "max_new_tokens is -2: it must be at least 1"),
        (
            [3] * 4000,
            {"max_new_tokens": 100},
            "a prompt of 4000 tokens and 100 new ones are 4100, and the context is "
            "4096: shorten the prompt, or ask for at most 96 new tokens",
        ),
        (
            [3] * 4096,
            {"max_new_tokens": None},
            "4096 tokens and 1 new ones are 4097, and the context is 4096: shorten the "
            "prompt",
        ),
        ([3] * 5000, {}, "5000 tokens"),
        ([3], {"top": 132}, "top is 132: it must be from 0 to 131"),
        ([3], {"top": -1}, "top is -1"),
        ([3], {"stop_strings": ["x"]}, "give the tokenizer as well"),
        ([3], {"stop_strings": "xy", "tokenizer": BYTES}, "must be a list of strings"),
        ([3], {"stop_strings": [""], "tokenizer": BYTES}, "none empty"),
        ([3], {"chunk": 0}, "chunk is 0: it must be at least 1, or None"),
    ],
)
def test_refused_at_the_call(
    ids: list[int], options: dict[str, Any], words: str
) -> None:
    idle: Any = Idle([], 131)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked
        stream(idle, ids, **options)
    assert words in str(error.value)


def test_a_batch_names_the_prompt(model: Llama) -> None:
    for prompts, words in [
        ([], "there are no prompts"),
        ([[1], []], "prompt 1 is empty"),
        ([[1], [2, 500]], "prompt 1 has id 500"),
    ]:
        with pytest.raises(ValueError, match=words):
            stream_batch(model, prompts)


def test_caches_without_room(model: Llama) -> None:
    caches = new_caches(model, tokens=10)
    prefill(model, torch.tensor([[1, 2, 3]]), caches)
    words = (
        "a prompt of 2 tokens after 3 in the caches and 6 new ones are 11, and the "
        "context is 10: shorten the prompt, or ask for at most 5 new tokens"
    )
    with pytest.raises(ValueError, match=words):
        stream(model, [1, 2], max_new_tokens=6, caches=caches)
    assert caches[0].length == 3
    assert len(generate(model, [1, 2], max_new_tokens=5, caches=caches)) == 5


def test_unequal_prompts_after_a_beginning(model: Llama) -> None:
    caches = new_caches(model, 2, 30)
    prefill(model, torch.tensor([[1], [1]]), caches)
    with pytest.raises(ValueError, match="padding cannot stand in the middle of a row"):
        stream_batch(model, [[1, 2], [3]], max_new_tokens=2, caches=caches)


def test_an_empty_prefill(model: Llama) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        prefill(model, torch.empty(1, 0, dtype=torch.long), new_caches(model))


def test_a_sampler_that_returns_something_else(model: Llama) -> None:
    def wrong(logits: Tensor, history: list[list[int]]) -> Tensor:
        return logits.argmax(-1, keepdim=True)

    with pytest.raises(ValueError, match=r"returned shape \(1, 1\): it must be \(1,\)"):
        generate(model, [1], max_new_tokens=2, sampler=wrong)


def test_a_model_whose_logits_are_nan() -> None:
    model = loud_model()
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        generate(model, [1], max_new_tokens=2)
