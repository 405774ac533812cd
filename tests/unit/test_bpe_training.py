"""The trainer against a naive one, and against Hugging Face's where nothing ties."""

import pydoc_data.topics
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import bpe, splitting
from minillama.bpe import Pair, apply_merges, by_order, last_split, learn_merges
from minillama.tokenizer import (
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    SMOLLM2_PATTERN,
    train_bpe,
)


@pytest.fixture(scope="module")
def corpus() -> str:
    """133,000 characters of English prose about Python."""
    return "\n".join(pydoc_data.topics.topics.values())[:133_000]


def naive_merges(pieces: dict[bytes, int], n_merges: int) -> list[Pair]:
    """Count every pair anew for each merge."""
    words = {tuple(bytes([b]) for b in piece): n for piece, n in pieces.items()}
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts: Counter[Pair] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                counts[pair] += n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        merged: dict[tuple[bytes, ...], int] = {}
        for word, n in words.items():
            new: list[bytes] = []
            at = 0
            while at < len(word):
                if word[at : at + 2] == best:
                    new.append(word[at] + word[at + 1])
                    at += 2
                else:
                    new.append(word[at])
                    at += 1
            merged[tuple(new)] = n
        words = merged
    return merges


few_letters = st.lists(st.sampled_from(b"abc \xff"), max_size=8).map(bytes)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(few_letters, st.integers(1, 9), max_size=12), st.integers(0, 40))
def test_merges_are_the_naive_trainers(pieces: dict[bytes, int], n: int) -> None:
    assert learn_merges(pieces, n) == naive_merges(pieces, n)


def test_merges_of_a_real_text_are_the_naive_trainers(corpus: str) -> None:
    text = corpus[:20_000]
    pieces = Counter(p.encode() for p in regex.findall(LLAMA3_PATTERN, text))
    assert learn_merges(pieces, 200) == naive_merges(pieces, 200)


def test_ties_go_to_the_greater_pair() -> None:
    # Each pair occurs once; of pairs with the same first byte the second decides.
    pieces = {b"ab": 1, b"ba": 1, b"bc": 1, b"a\xff": 1}
    assert learn_merges(pieces, 4) == [
        (b"b", b"c"),
        (b"b", b"a"),
        (b"a", b"\xff"),
        (b"a", b"b"),
    ]
    # Bytes are compared, not ids: the token "th" is younger than the byte "z".
    pieces = {b"th": 9, b"the": 2, b"zo": 2}
    assert learn_merges(pieces, 3) == [(b"t", b"h"), (b"z", b"o"), (b"th", b"e")]


def test_a_run_of_one_byte_merges_from_the_left() -> None:
    assert learn_merges({b"aaaaa": 1}, 3) == [
        (b"a", b"a"),
        (b"aa", b"aa"),
        (b"aaaa", b"a"),
    ]


def test_merges_without_ties_are_those_of_hugging_face() -> None:
    rng = random.Random(0)
    letters = "abcdefghij"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(25)]
    text = " ".join(word for word in words for _ in range(rng.randint(50, 2000)))
    pieces = Counter(p.encode() for p in regex.findall(GPT2_PATTERN, text))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 40,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([text], trainer)
    ours = train_bpe(text, 256 + 40, pattern=GPT2_PATTERN)
    assert len(ours.merges) == 40
    assert ours.merges == naive_merges(pieces, 40)
    assert ours.encode(text) != list(text.encode())
    assert theirs.encode(text).tokens == [
        ours.token_bytes(id).decode().replace(" ", "Ġ") for id in ours.encode(text)
    ]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(few_letters, st.integers(1, 9), max_size=12))
def test_each_learnt_token_is_made_by_one_pair(pieces: dict[bytes, int]) -> None:
    merges = learn_merges(pieces, 30)
    assert len({left + right for left, right in merges}) == len(merges)
    rank_of = by_order(merges)
    for pair in merges:
        token = b"".join(pair)
        assert apply_merges(token, rank_of) == [token]
        assert last_split(token, rank_of) == list(pair)


def naive_apply(piece: bytes, merges: list[Pair]) -> list[bytes]:
    """The loop of the lesson: find the lowest pair, merge its first place, again."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    parts = [bytes([byte]) for byte in piece]
    while True:
        places = [
            (ranks[pair], at)
            for at, pair in enumerate(pairwise(parts))
            if pair in ranks
        ]
        if not places:
            return parts
        _, at = min(places)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(few_letters, st.integers(1, 9), max_size=12),
    st.lists(st.sampled_from(b"abc \xff"), max_size=40).map(bytes),
    st.randoms(use_true_random=False),
)
def test_the_queue_merges_as_the_plain_loop(
    pieces: dict[bytes, int], piece: bytes, rng: random.Random
) -> None:
    merges = learn_merges(pieces, 30)
    assert apply_merges(piece, by_order(merges)) == naive_apply(piece, merges)
    # In any order: a merge may then make room for one that ranks before it.
    rng.shuffle(merges)
    assert apply_merges(piece, by_order(merges)) == naive_apply(piece, merges)


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, GPT2_PATTERN, SMOLLM2_PATTERN])
def test_training_gives_a_whole_tokenizer(corpus: str, pattern: str) -> None:
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    trained = train_bpe(corpus, 500, special_tokens=specials, pattern=pattern)
    assert trained.vocab_size == 500
    assert trained.ranks[b"a"] == 97
    assert [trained.ranks[a + b] for a, b in trained.merges] == list(range(256, 497))
    assert trained.special_tokens == dict(zip(specials, (497, 498, 499), strict=True))
    assert (trained.bos_id, trained.eos_id) == (497, 498)
    assert trained.pattern == pattern
    ids = trained.encode(corpus)
    assert trained.decode(ids) == corpus
    assert len(ids) < 0.62 * len(corpus)


def test_no_merge_crosses_a_piece_or_a_special_token() -> None:
    text = "aXb<|end|>aXb<|end|>" * 50
    trained = train_bpe(text, 300, special_tokens=["<|end|>"])
    assert trained.merges == [(b"a", b"X"), (b"aX", b"b")]
    digits = train_bpe("1234 " * 50, 300, pattern=SMOLLM2_PATTERN)
    assert digits.merges == []


def test_the_vocabulary_ends_where_the_pairs_end() -> None:
    assert train_bpe("abab", 1000).merges == [(b"a", b"b"), (b"ab", b"ab")]
    assert train_bpe("", 1000).vocab_size == 256
    assert train_bpe("abab", 1000, special_tokens=["<s>"]).special_tokens == {
        "<s>": 258
    }


@pytest.mark.parametrize("chunk", [7, 64, 1000, 1 << 18])
def test_a_file_trains_as_its_text(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    text = corpus[:6000].replace("the", "<|s|>ün\r\n  ")
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr(splitting, "CHUNK", chunk)
    monkeypatch.setattr(splitting, "MARGIN", 0)
    from_file = train_bpe(path, 400, special_tokens=["<|s|>"])
    from_text = train_bpe(text, 400, special_tokens=["<|s|>"])
    assert from_file.vocabulary == from_text.vocabulary
    assert len(from_text.merges) == 143


def test_progress_is_silent_when_training_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []
    train_bpe("to be or not to be", 260, progress=lambda *now: seen.append(now))
    assert seen == []
    clock = iter(range(1000))
    monkeypatch.setattr(bpe.time, "monotonic", lambda: next(clock))
    train_bpe("to be or not to be", 260, progress=lambda *now: seen.append(now))
    assert seen[-1] == (4, 4)
    assert seen[0][0] > 1


def test_bad_calls_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose at least 257"):
        train_bpe("text", 256, special_tokens=["<s>"])
    with pytest.raises(ValueError, match="each once"):
        train_bpe("text", 300, special_tokens=["<s>", "<s>"])
    with pytest.raises(ValueError, match="list of names"):
        train_bpe("text", 300, special_tokens="<s>")
    with pytest.raises(ValueError, match="cannot have the id"):
        train_bpe("text", 300, special_tokens=[""])
    with pytest.raises(ValueError, match="surrogate"):
        train_bpe("text \ud800", 300)
    with pytest.raises(ValueError, match="not valid"):
        train_bpe("text", 300, pattern="(")
    with pytest.raises(ValueError, match="empty text"):
        train_bpe("text", 300, pattern=r"\w*")
    with pytest.raises(ValueError, match="not a file"):
        train_bpe(tmp_path / "missing.txt", 300)
    with pytest.raises(ValueError, match="not a file"):
        train_bpe(tmp_path, 300)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        train_bpe(latin, 300)
    with pytest.raises(ValueError, match="give Path"):
        train_bpe(str(latin), 300)
    with pytest.raises(ValueError, match="str"):
        train_bpe(b"text", 300)  # type: ignore[arg-type]
