"""The tokenizer on small vocabularies trained here: no pulled file is needed."""

import base64
import json
import os
import pickle
import pydoc_data.topics
import subprocess
import sys
import tracemalloc
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minillama import splitting
from minillama.splitting import Splitter, meta_cuts
from minillama.tokenizer import (
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    SMOLLM2_PATTERN,
    Tokenizer,
    train_bpe,
)
from minillama.vocabulary import LLAMA3_SPECIAL_TOKENS, Vocabulary

CORPUS = "\n".join(pydoc_data.topics.topics.values())[:60_000]
CORPUS += "  naïve café 12345 你好，世界 🙂🙃 नमस्ते \r\n\t" * 40
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|end|>", "<|end|>>"]
PATTERNS = {
    "llama3": LLAMA3_PATTERN,
    "gpt2": GPT2_PATTERN,
    "smollm2": SMOLLM2_PATTERN,
    "words only": r"\p{L}+",
}


@pytest.fixture(scope="module", params=list(PATTERNS))
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return train_bpe(
        CORPUS, 700, special_tokens=SPECIALS, pattern=PATTERNS[request.param]
    )


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_bpe(CORPUS, 700, special_tokens=SPECIALS)


def as_engine(tokenizer: Tokenizer, engine: str) -> Tokenizer:
    other = Tokenizer(tokenizer.vocabulary)
    other.engine = engine
    return other


def naive_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Merges in their order, each wherever it fits, from the left."""
    ids: list[int] = []
    for match in regex.finditer(tokenizer.pattern, text):
        parts = [bytes([byte]) for byte in match.group().encode()]
        for pair in tokenizer.merges:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == pair:
                    parts[at : at + 2] = [b"".join(pair)]
                at += 1
        ids += [tokenizer.ranks[part] for part in parts]
    return ids


# Any Unicode, and text of which pieces are made: spaces, line ends, short forms.
PARTS = ["  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\x1c", "\x85"]
PARTS += [" ", "1", "23", "4567", "٣", "½", "the", "Word", "é", "ſ", "你", "🙂"]
PARTS += ["'", "'s", "'RE", "'ll", "!", "?!\n", "-", "_", "\u0301", "\u200d", "\0", "<"]
SPELLED = ["<|end|>", "<|end|>>", "<|", "end|>"]
any_text = st.text() | st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


# -- ids -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3", "gpt2", "smollm2"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_both_engines_do_what_the_merges_say(name: str, data: st.DataObject) -> None:
    tokenizer = _cached(name)
    text = data.draw(any_text | st.sampled_from(CORPUS.split("\n")))
    text = "".join(c for c in text if ord(c) < 0x3000)  # what any Unicode version knows
    expected = naive_ids(tokenizer, text)
    assert as_engine(tokenizer, "ours").encode(text) == expected
    assert as_engine(tokenizer, "tiktoken").encode(text) == expected


_CACHE: dict[str, Tokenizer] = {}


def _cached(name: str) -> Tokenizer:
    if name not in _CACHE:
        _CACHE[name] = train_bpe(CORPUS, 600, pattern=PATTERNS[name])
    return _CACHE[name]


@settings(max_examples=400, deadline=None)
@given(text=any_text)
@pytest.mark.parametrize("name", list(PATTERNS))
def test_engines_agree_and_nothing_is_lost(name: str, text: str) -> None:
    ours, fast = _engines(name)
    ids = ours.encode(text)
    assert fast.encode(text) == ids
    assert ours.decode(ids) == text


def _engines(name: str) -> tuple[Tokenizer, Tokenizer]:
    if name + " ours" not in _CACHE:
        _CACHE[name + " ours"] = as_engine(_cached(name), "ours")
    return _CACHE[name + " ours"], _cached(name)


def test_engines_agree_on_what_a_letter_is() -> None:
    """The two libraries know different versions of Unicode; tiktoken's decides.

    Each word is a token, so whether it is one piece shows in its id.
    """
    characters = [c for c in map(chr, range(0x80, 0x110000)) if c.isprintable()]
    newer = regex.findall(r"[\p{L}\p{N}]", "".join(map(chr, _assigned_later())))
    words = [f"{before}{c}b" for c in characters[::60] + newer for before in "a1"]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {word.encode(): 256 + number for number, word in enumerate(words)}
    vocabulary = Vocabulary(ranks=ranks, merges=None, whole_pieces=True)
    text = "\n".join(words)
    ours = as_engine(Tokenizer(vocabulary), "ours").encode(text)
    assert ours == as_engine(Tokenizer(vocabulary), "tiktoken").encode(text)
    assert sum(id >= 256 for id in ours) > 1000


def _assigned_later() -> list[int]:
    """Code points that this Python does not know, and a newer library may."""
    points = (c for c in range(0x80, 0x110000) if unicodedata.category(chr(c)) == "Cn")
    return [c for c in points if c < 0x40000]


def test_a_whole_piece_comes_before_its_merges() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"bc": 257, b"abcd": 258}
    vocabulary = Vocabulary(ranks=ranks, merges=None, whole_pieces=True)
    for engine in ("ours", "tiktoken"):
        tokenizer = as_engine(Tokenizer(vocabulary), engine)
        assert tokenizer.encode("abcd") == [258]
        assert tokenizer.encode("abcde") == [256, ord("c"), ord("d"), ord("e")]
    assert tokenizer.merges == [(b"a", b"b"), (b"b", b"c")]


def test_a_token_may_rank_below_its_parts() -> None:
    """Llama 3 has 81 of these: the merge that makes them comes late, at a low rank."""
    ranks = {bytes([b]): b for b in range(256)} | {b"abc": 256, b"ab": 257}
    vocabulary = Vocabulary(ranks=ranks, merges=None, whole_pieces=True)
    for engine in ("ours", "tiktoken"):
        assert as_engine(Tokenizer(vocabulary), engine).encode("xabc") == [120, 256]
    assert Tokenizer(vocabulary).merges == [(b"ab", b"c"), (b"a", b"b")]


def test_without_whole_pieces_a_token_that_no_merge_reaches_never_comes() -> None:
    """In GPT-2's files. tiktoken alone would take it, both as a piece and within."""
    ranks = {bytes([b]): b for b in range(256)}
    merges = [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")]
    ranks |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    vocabulary = Vocabulary(ranks=ranks, merges=merges)
    for engine in ("ours", "tiktoken"):
        tokenizer = as_engine(Tokenizer(vocabulary), engine)
        assert tokenizer.encode("abc") == [97, 256]
        assert tokenizer.encode("xabc") == [120, 97, 256]
        assert tokenizer.decode([258]) == "abc"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 30)] * 2), max_size=30),
    st.text("abcd", max_size=30),
)
def test_engines_agree_on_merges_that_no_corpus_taught(
    choices: list[tuple[int, int]], text: str
) -> None:
    tokens = [bytes([b]) for b in b"abcd"]
    merges: list[tuple[bytes, bytes]] = []
    for left, right in choices:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if b"".join(pair) not in tokens and len(b"".join(pair)) < 12:
            merges.append(pair)
            tokens.append(b"".join(pair))
    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(Vocabulary(ranks=ranks, merges=merges))
    expected = as_engine(tokenizer, "ours").encode(text)
    assert as_engine(tokenizer, "tiktoken").encode(text) == expected


def test_tiktoken_is_not_taken_where_it_cannot_follow() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"bc": 257}
    late_first = Vocabulary(ranks=ranks, merges=[(b"b", b"c"), (b"a", b"b")])
    tokenizer = Tokenizer(late_first)
    assert tokenizer.engine == "ours"
    assert tokenizer.encode("abc") == [97, 257]
    with pytest.raises(ValueError, match="order of ids"):
        tokenizer.engine = "tiktoken"
    # Whole pieces, but not any way to a token: tiktoken would find "abc" in "xabc".
    ranks[b"abc"] = 258
    merges = [(b"a", b"b"), (b"b", b"c")]
    some = Tokenizer(Vocabulary(ranks=ranks, merges=merges, whole_pieces=True))
    assert some.engine == "ours"
    assert some.encode("abc") == [258]
    assert some.encode("xabc") == [120, 256, 99]
    with pytest.raises(ValueError, match="'ours' or 'tiktoken'"):
        some.engine = "fast"


def without_some_bytes() -> Tokenizer:
    tokens = [bytes([b]) for b in range(256) if b not in (0, 0xF1)] + [b"ab"]
    ranks = {token: id for id, token in enumerate(tokens)}
    return Tokenizer(Vocabulary(ranks=ranks, merges=[(b"a", b"b")]))


@pytest.mark.parametrize("engine", ["ours", "tiktoken"])
def test_bytes_without_a_token_are_left_out(engine: str) -> None:
    """The rest then merges across the gap, as in Hugging Face's library."""
    tokenizer = as_engine(without_some_bytes(), engine)
    assert tokenizer.missing_bytes == b"\x00\xf1"
    assert tokenizer.decode(tokenizer.encode("xab\x00ab")) == "xabab"
    # The pattern of Llama 3 makes two pieces here, so nothing merges across.
    assert tokenizer.encode("a\x00b") == tokenizer.encode("a") + tokenizer.encode("b")
    split_as_one = replace(tokenizer.vocabulary, pattern=r".+")
    whole = as_engine(Tokenizer(split_as_one), engine)
    assert whole.encode("a\x00b") == whole.encode("ab") == [254]
    # U+40000 begins with the byte F1.
    assert whole.decode_bytes(whole.encode("a\U00040000")) == b"a\x80\x80\x80"


@pytest.mark.parametrize("run", [" " * 99_000, "\n" * 99_000, "x" * 99_000])
def test_long_runs_are_alike(small: Tokenizer, run: str) -> None:
    ids = as_engine(small, "tiktoken").encode(f"a{run}b")
    assert ids == as_engine(small, "ours").encode(f"a{run}b")
    assert small.decode(ids) == f"a{run}b"


@pytest.mark.slow
@pytest.mark.parametrize("run", [" ", "\n", " \t"])
def test_a_million_spaces_do_not_end_the_process(small: Tokenizer, run: str) -> None:
    text = f"a{run * 1_000_000}b"
    assert small.decode(as_engine(small, "tiktoken").encode(text)) == text


# -- special tokens ------------------------------------------------------------------


def test_special_spellings_are_text_unless_allowed(small: Tokenizer) -> None:
    text = "one<|end|>two<|end_of_text|>"
    end, stop = small.special_tokens["<|end|>"], small.special_tokens["<|end_of_text|>"]
    plain = small.encode(text)
    assert max(plain) < min(small.special_tokens.values())
    assert small.decode(plain) == text
    one, two = small.encode("one"), small.encode("two")
    assert small.encode(text, allowed_special="all") == [*one, end, *two, stop]
    assert small.encode(text, allowed_special={"<|end|>"}) == [
        *one,
        end,
        *small.encode("two<|end_of_text|>"),
    ]
    assert small.decode(small.encode(text, allowed_special="all")) == text


def test_special_spellings_are_refused_when_asked(small: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"spells '<\|end\|>'.*allowed_special"):
        small.encode("one<|end|>", disallowed_special="all")
    with pytest.raises(ValueError, match="spells"):
        small.encode("one<|end|>", disallowed_special=["<|end|>"])
    small.encode("one<|end|>", disallowed_special=["<|end_of_text|>"])
    allowed = small.encode(
        "one<|end|>", allowed_special="all", disallowed_special="all"
    )
    assert allowed[-1] == small.special_tokens["<|end|>"]


def test_the_longer_special_token_goes_first(small: Tokenizer) -> None:
    ids = small.encode("<|end|>>", allowed_special="all")
    assert ids == [small.special_tokens["<|end|>>"]]


def test_names_that_are_no_special_tokens(small: Tokenizer) -> None:
    for names in ({"<|nope|>"}, "<|end|>", ""):
        with pytest.raises(ValueError, match="special_tokens"):
            small.encode("text", allowed_special=names)
        with pytest.raises(ValueError, match="special_tokens"):
            small.encode("text", disallowed_special=names)


def test_begin_and_end(small: Tokenizer) -> None:
    ids = small.encode("hello", bos=True, eos=True)
    assert ids == [small.bos_id, *small.encode("hello"), small.eos_id]
    assert (small.bos_id, small.eos_id) == (696, 697)
    assert small.stop_ids == {697}
    assert small.adds_bos
    bare = train_bpe("text", 256)
    assert (bare.bos_id, bare.eos_id, bare.stop_ids) == (None, None, frozenset())
    with pytest.raises(ValueError, match="no begin token"):
        bare.encode("text", bos=True)
    with pytest.raises(ValueError, match="no end token"):
        bare.encode("text", eos=True)


# -- what is not text, what is not an id ---------------------------------------------


@pytest.mark.parametrize("engine", ["ours", "tiktoken"])
@pytest.mark.parametrize("text", ["a\ud83db", "\udc80", "\ud83d\ude00"])
def test_surrogates_are_refused_with_the_remedy(
    small: Tokenizer, engine: str, text: str
) -> None:
    tokenizer = as_engine(small, engine)
    with pytest.raises(ValueError, match=r"surrogate pair.*surrogatepass"):
        tokenizer.encode(text)
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(mended)) == mended


def test_a_surrogate_far_into_a_text_is_found_and_placed(small: Tokenizer) -> None:
    for at in (32_767, 32_768, 99_999):
        with pytest.raises(ValueError, match=rf"'\\ud83d', at character {at}:"):
            small.encode("é" * at + "\ud83d" + "x" * 50_000)


@pytest.mark.parametrize("text", [b"bytes", None, 7, ["a"]])
def test_only_str_is_text(small: Tokenizer, text: Any) -> None:
    with pytest.raises(ValueError, match="must be str"):
        small.encode(text)


@pytest.mark.parametrize("id", [-1, 700, 10**9, 1.0, "1", None])
def test_an_id_that_no_token_has_is_named(small: Tokenizer, id: Any) -> None:
    with pytest.raises(ValueError, match=rf"{id!r}.*0 to 699"):
        small.decode([1, id])
    with pytest.raises(ValueError, match=r"0 to 699"):
        small.stream_decoder().push(id)
    with pytest.raises(ValueError, match=r"0 to 699"):
        small.token_bytes(id)


def test_ids_out_of_arrays_are_ids(small: Tokenizer) -> None:
    import numpy as np
    import torch

    ids = small.encode("hello you")
    assert small.decode(np.array(ids)) == "hello you"
    assert small.decode(torch.tensor(ids)) == "hello you"
    with pytest.raises(ValueError, match="whole numbers"):
        small.decode(torch.tensor([ids]))


def test_token_bytes(small: Tokenizer) -> None:
    assert small.token_bytes(97) == b"a"
    assert small.token_bytes(256) == b"".join(small.merges[0])
    assert small.token_bytes(698) == b"<|end|>"


# -- streaming -----------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 699), max_size=30) | st.binary(max_size=20).map(list))
def test_a_stream_is_the_whole_in_pieces(ids: list[int]) -> None:
    """Random bytes too: what is invalid becomes U+FFFD just as in the whole."""
    small = _cached("llama3 700")
    decoder = small.stream_decoder()
    parts = [decoder.push(id) for id in ids]
    assert "".join(parts) + decoder.flush() == small.decode(ids)
    assert small.decode(ids) == small.decode_bytes(ids).decode(errors="replace")


_CACHE["llama3 700"] = train_bpe(CORPUS, 700, special_tokens=SPECIALS)


@settings(max_examples=200, deadline=None)
@given(any_text)
def test_a_stream_never_gives_half_a_character(text: str) -> None:
    small = _cached("llama3 700")
    decoder = small.stream_decoder()
    seen, given_bytes = "", b""
    for id in small.encode(text):
        given_bytes += small.token_bytes(id)
        seen += decoder.push(id)
        # All that is complete, and nothing more.
        assert seen == given_bytes.decode(errors="ignore")
    assert decoder.flush() == ""
    assert seen == text


def test_flush_ends_a_stream(small: Tokenizer) -> None:
    decoder = small.stream_decoder()
    assert decoder.push(0xF0) == ""
    assert decoder.push(0x9F) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert decoder.push(97) == "a"


# -- files of text -------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(PARTS + SPELLED) | st.text(max_size=3),
        max_size=40,
    ).map("".join),
    chunk=st.integers(1, 20),
)
@example(text="  <|end|>     \t", chunk=1)
@pytest.mark.parametrize("name", ["llama3", "gpt2", "smollm2"])
def test_a_file_has_the_ids_of_its_text(
    tmp_path_factory: pytest.TempPathFactory, name: str, text: str, chunk: int
) -> None:
    """Wherever a chunk ends: in a run, a special token, a character."""
    if name + " specials" not in _CACHE:
        _CACHE[name + " specials"] = train_bpe(
            CORPUS, 600, special_tokens=SPECIALS, pattern=PATTERNS[name]
        )
    tokenizer = _CACHE[name + " specials"]
    path = tmp_path_factory.getbasetemp() / f"{name}.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "CHUNK", chunk)
        patch.setattr(splitting, "MARGIN", 0)
        for allowed in ((), "all", {"<|end|>"}):
            whole = tokenizer.encode(text, allowed_special=allowed)
            assert list(tokenizer.encode_file(path, allowed)) == whole


@pytest.mark.parametrize("pattern", list(PATTERNS.values()))
def test_what_is_settled_splits_the_same_whatever_follows(
    monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """Every short text. Pieces are compared: most have the same ids cut or whole."""
    monkeypatch.setattr(splitting, "MARGIN", 0)
    splitter = Splitter(pattern)
    for letters in product(" \n1s'!", repeat=5):
        text = "".join(letters)
        whole = splitter.split(text)
        for seen in range(3, 5):
            end = splitter.settled(text[:seen])
            assert splitter.split(text[:end]) + splitter.split(text[end:]) == whole


def test_brackets_in_a_pattern_do_not_change_the_pieces() -> None:
    """`regex.findall` gives what the brackets hold, and not the whole piece."""
    text = "One llama, two llamas: 你好"
    for pattern in (r"( ?)(\p{L}+)", r" ?((\p{L})+|,)"):
        plain = pattern.replace("(", "(?:")
        assert Splitter(pattern).split(text) == Splitter(plain).split(text)
        assert "".join(Splitter(pattern).split(text)) == text


def test_settled_does_not_wait_for_ever() -> None:
    text = "One llama, two llamas.  \n\n 1234 " * 100
    for pattern in PATTERNS.values():
        assert len(text) - Splitter(pattern).settled(text) < splitting.MARGIN + 20


@pytest.mark.parametrize("chunk", range(1500, 1524))
def test_spaces_before_a_digit_at_the_end_of_a_chunk(
    small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """They are two pieces there, and would be one at the end of a text."""
    monkeypatch.setattr(splitting, "CHUNK", chunk)
    text = "word   1   ½ \n 3  x" * 200
    path = tmp_path / "digits.txt"
    path.write_text(text, "utf-8")
    assert list(small.encode_file(path)) == small.encode(text)


def test_a_character_across_the_buffer_of_a_file(
    small: Tokenizer, tmp_path: Path
) -> None:
    """Python decodes files in blocks of 8 KiB; a euro sign lies across each end."""
    text = "x" + "€" * 40_000
    path = tmp_path / "euro.txt"
    path.write_text(text, "utf-8")
    assert list(small.encode_file(path)) == small.encode(text)


def test_line_ends_stay_as_they_are(small: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "dos.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n")
    assert small.decode(small.encode_file(path)) == "one\r\ntwo\rthree\n"


def test_a_refused_special_token_in_a_file(
    small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "special.txt"
    path.write_text("some words <|end|> and on and on and on")
    monkeypatch.setattr(splitting, "MARGIN", 0)
    for chunk in range(1, 20):
        monkeypatch.setattr(splitting, "CHUNK", chunk)
        with pytest.raises(ValueError, match="spells"):
            list(small.encode_file(path, disallowed_special="all"))


def test_files_that_cannot_be_read(small: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file"):
        list(small.encode_file(tmp_path / "missing"))
    with pytest.raises(ValueError, match="not a file"):
        list(small.encode_file(tmp_path))
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="UTF-8"):
        list(small.encode_file(path))
    path.write_bytes(b"")
    assert list(small.encode_file(path)) == []


@pytest.mark.parametrize("engine", ["ours", "tiktoken"])
def test_a_file_takes_constant_memory(
    small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(splitting, "CHUNK", 1 << 15)
    tokenizer = as_engine(small, engine)
    peaks: list[int] = []
    tokenizer.encode(CORPUS)  # The cache of pieces is full of these from here on.
    for copies in (2, 20):
        path = tmp_path / f"{copies}.txt"
        path.write_text(CORPUS * copies, "utf-8")
        tracemalloc.start()
        count = sum(1 for _ in tokenizer.encode_file(path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count > 20_000 * copies
    assert peaks[1] < 1.2 * peaks[0] < 3_000_000


# -- Meta's cuts ---------------------------------------------------------------------


def metas_loop(text: str, block: int, limit: int) -> list[str]:
    """Character by character, from the description of Meta's encoder."""
    cuts: list[str] = []
    for start in range(0, len(text), block):
        run, current = 0, ""
        for character in text[start : start + block]:
            same = current != "" and current[-1].isspace() == character.isspace()
            run = run + 1 if same else 1
            if run > limit:
                cuts.append(current)
                current, run = "", 1
            current += character
        cuts.append(current)
    return cuts


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab \n\x1c\u3000\x85", max_size=25).map(lambda s: s * 2)).map(
        "".join
    )
)
def test_meta_cuts(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "META_BLOCK", 40)
        patch.setattr(splitting, "META_RUN", 6)
        assert list(meta_cuts(text)) == metas_loop(text, 40, 6)


# -- our own file --------------------------------------------------------------------


def test_save_keeps_everything(trained: Tokenizer, tmp_path: Path) -> None:
    whole = replace(trained.vocabulary, chat_template="{{ '🙂' }}")
    path = tmp_path / "new folder" / "tokenizer.json"
    Tokenizer(whole).save(path)
    assert Tokenizer.from_file(path).vocabulary == whole
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]


def test_a_failed_save_leaves_the_old_file(
    small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    small.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        train_bpe("text", 256).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.pop("ranks"),
        lambda said: said.update(pattern=3),
        lambda said: said.update(ranks=[]),
        lambda said: said["ranks"].update({"%%": 5}),
        lambda said: said["ranks"].update({"YQ==": "97"}),
        lambda said: said["merges"].append([1]),
        lambda said: said["merges"].append([97, 10**6]),
        lambda said: said["merges"].append([255, 255]),
        lambda said: said.update(merges=None),
        lambda said: said.update(bos_id=97),
        lambda said: said["special_tokens"].update(twice=97),
        lambda said: said["special_tokens"].update(word="97"),
        lambda said: said["special_tokens"].update({"\ud800": 5000}),
        lambda said: said["special_tokens"].update(far=1 << 40),
    ],
)
def test_a_damaged_saved_file(small: Tokenizer, tmp_path: Path, change: Change) -> None:
    path = tmp_path / "tokenizer.json"
    small.save(path)
    said = json.loads(path.read_text("utf-8"))
    change(said)
    path.write_text(json.dumps(said), "utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"  \n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "LFS pointer"),
        (b"GGUF\x03\x00", "from_gguf"),
        (b'{"format": "minillama', "not whole JSON"),
        (b'{"version": "1.0"}', "from_hf"),
        (b'{"format": 1} \xff', "not whole JSON"),
        (b"{" * 100_000, "not whole JSON"),
        (b'{"a":' * 100_000, "not whole JSON"),
        (b"\n\x0e\n\x05<unk>\x15\x00\x00", "Llama 2"),
    ],
)
def test_files_that_are_something_else(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        Tokenizer.from_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Tokenizer.from_file(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match="from_hf"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        Tokenizer.from_hf(tmp_path)
    with pytest.raises(ValueError, match="not a file"):
        Tokenizer.from_gguf(tmp_path / "missing.gguf")


# -- Meta's rank file ----------------------------------------------------------------


def rank_lines() -> list[bytes]:
    """A file of Llama 3's size: the bytes, all pairs, and some threes."""
    single = [bytes([b]) for b in range(256)]
    double = [a + b for a in single for b in single]
    triple = [pair + b"x" for pair in double][: 128_000 - 256 - 65_536]
    tokens = single + double + triple
    return [b"%s %d" % (base64.b64encode(t), i) for i, t in enumerate(tokens)]


@pytest.fixture(scope="module")
def ranked() -> list[bytes]:
    return rank_lines()


def test_a_rank_file(ranked: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(ranked) + b"\n")
    tokenizer = Tokenizer.from_file(str(path))
    assert tokenizer.vocab_size == 128_256
    assert tokenizer.pattern == LLAMA3_PATTERN
    assert (tokenizer.bos_id, tokenizer.eos_id) == (128_000, 128_001)
    assert tokenizer.stop_ids == {128_001, 128_008, 128_009}
    assert tokenizer.special_tokens["<|reserved_special_token_245|>"] == 128_255
    assert len(set(LLAMA3_SPECIAL_TOKENS)) == 256


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines.__setitem__(700, lines[700][:-9]), "line 701"),
        (lambda lines: lines.__setitem__(700, b"YWI"), "line 701"),
        (lambda lines: lines.__setitem__(700, b"YW! 700"), "line 701"),
        (lambda lines: lines.__setitem__(700, b"YWI= seven"), "line 701"),
        (lambda lines: lines.insert(700, b""), "line 701"),
        (lambda lines: lines.__setitem__(700, b"cXFxcQ== 699"), "line 701.*before"),
        (lambda lines: lines.__setitem__(700, b"YQ== 700"), "line 701.*before"),
        (
            lambda lines: lines.__setitem__(700, b"cXFxcQ== 128000"),
            "no token of rank 700",
        ),
        (lambda lines: lines.__setitem__(700, b"cXFxcQ== -1"), "no token of rank 700"),
        (lambda lines: lines.pop(), "127,999 ranks"),
        (lambda lines: lines.clear(), "has 0 ranks"),
        (lambda lines: lines.__setitem__(65, b"cXFxcQ== 65"), "byte 65"),
    ],
)
def test_a_damaged_rank_file(
    ranked: list[bytes],
    tmp_path: Path,
    change: Callable[[list[bytes]], object],
    sentence: str,
) -> None:
    lines = list(ranked)
    change(lines)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=sentence):
        Tokenizer.from_file(path)


# -- GGUF ----------------------------------------------------------------------------


def write_gguf(path: Path, **changes: Any) -> Path:
    letters = _letters()
    merges = ["a b", f"{letters[0xC3]} {letters[0xA9]}"]
    tokens = ["<s>", *letters.values(), "ab", "".join(merges[1].split()), "</s>"]
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3, *[1] * 258, 3],
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 259,
    }
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (fields | changes).items():
        if value is None:
            continue
        key = f"tokenizer.ggml.{key}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _letters() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def test_a_gguf_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(write_gguf(tmp_path / "a.gguf"))
    assert tokenizer.pattern == GPT2_PATTERN
    assert tokenizer.merges == [(b"a", b"b"), (b"\xc3", b"\xa9")]
    assert tokenizer.decode(tokenizer.encode("ab é")) == "ab é"
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("abé")] == [
        b"ab",
        b"\xc3\xa9",
    ]
    assert tokenizer.special_tokens == {"<s>": 0, "</s>": 259}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (0, 259, False)
    assert tokenizer.stop_ids == {259}
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("pre", "pattern", "whole_pieces"),
    [
        ("llama-bpe", LLAMA3_PATTERN, True),
        ("smollm", SMOLLM2_PATTERN, False),
        ("gpt-2", GPT2_PATTERN, False),
    ],
)
def test_gguf_split_rules(
    tmp_path: Path, pre: str, pattern: str, whole_pieces: bool
) -> None:
    vocabulary = Tokenizer.from_gguf(
        write_gguf(tmp_path / "a.gguf", pre=pre)
    ).vocabulary
    assert (vocabulary.pattern, vocabulary.whole_pieces) == (pattern, whole_pieces)
    assert vocabulary.adds_bos == (pre == "llama-bpe")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pre": "deepseek-llm"}, r"'deepseek-llm'.*llama-bpe, smollm, gpt-2"),
        ({"pre": None}, "rule None"),
        ({"model": "llama"}, "type 'llama'"),
        ({"model": None}, "type None"),
        ({"tokens": None}, "no list"),
        ({"token_type": [1, 2]}, "no list"),
        ({"tokens": ["a"] * 260}, "twice"),
        ({"merges": ["a b c"]}, "no pair"),
        ({"merges": ["a"]}, "no pair"),
        ({"merges": ["a b", "a b"]}, "twice"),
        ({"merges": ["b a"]}, "not all tokens"),
        ({"merges": ["a 你"]}, "not bytes"),
        ({"tokens": list(range(260))}, "damaged vocabulary"),
        ({"merges": [1, 2]}, "damaged vocabulary"),
        ({"bos_token_id": "one"}, "id one"),
        ({"bos_token_id": 5000}, "5000"),
        ({"eos_token_id": 65}, "65"),
        ({"bos_token_id": None, "add_bos_token": True}, "begin token"),
    ],
)
def test_a_gguf_vocabulary_that_cannot_be_read(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    path = write_gguf(tmp_path / "bad.gguf", **changes)
    with pytest.raises(ValueError, match=sentence) as error:
        Tokenizer.from_gguf(path)
    assert "bad.gguf" in str(error.value)


# -- the object ----------------------------------------------------------------------


def test_a_tokenizer_can_be_pickled(small: Tokenizer) -> None:
    small.encode("warm")
    other = pickle.loads(pickle.dumps(small))
    assert other.encode("some text") == small.encode("some text")
    assert repr(other) == "Tokenizer(696 + 4 special, tiktoken)"


def test_the_cache_of_pieces_does_not_grow_for_ever(
    small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minillama.tokenizer._CACHED_PIECES", 10)
    ours = as_engine(small, "ours")
    words = " ".join(f"word{'x' * n}" for n in range(50))
    assert ours.encode(words) == ours.encode(words) == small.encode(words)
    assert len(ours._pieces) <= 10


def test_no_torch_no_gguf_before_they_are_needed() -> None:
    code = (
        "import sys; from minillama.tokenizer import train_bpe; "
        "from minillama.chat import ChatFormat; train_bpe('text', 256).encode('é'); "
        "print([m for m in ('torch', 'gguf', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout.strip() == "[]"
