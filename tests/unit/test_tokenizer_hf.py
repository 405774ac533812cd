"""Hugging Face's tokenizer.json: what is read, as they read it, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama.tokenizer import (
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    SMOLLM2_PATTERN,
    Tokenizer,
    train_bpe,
)

TEXT = "the llama eats the grass; the grass doesn't mind, 123 times\n" * 9


def save(folder: Path, **about: Any) -> dict[str, Any]:
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    train_bpe(TEXT, 280, special_tokens=special, **about).save_hf(folder)
    return json.loads((folder / "tokenizer.json").read_text("utf-8"))


def rewrite(folder: Path, whole: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(whole), "utf-8")


@pytest.mark.parametrize(
    "pattern", [LLAMA3_PATTERN, GPT2_PATTERN, SMOLLM2_PATTERN, r"\s?\S+|\s+"]
)
def test_a_folder_comes_back(tmp_path: Path, pattern: str) -> None:
    specials = ["<|begin_of_text|>", "<|end_of_text|>"]
    ours = train_bpe(TEXT, 280, special_tokens=specials, pattern=pattern)
    ours.save_hf(tmp_path / "new")
    assert Tokenizer.from_hf(tmp_path / "new").vocabulary == ours.vocabulary
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == ["tokenizer.json", "tokenizer_config.json"]


def test_merges_as_pairs_and_as_strings(tmp_path: Path) -> None:
    whole = save(tmp_path)
    strings = Tokenizer.from_hf(tmp_path).vocabulary
    whole["model"]["merges"] = [m.split(" ") for m in whole["model"]["merges"]]
    rewrite(tmp_path, whole)
    assert Tokenizer.from_hf(tmp_path).vocabulary == strings


def test_tokenizer_config_may_be_missing(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    read = Tokenizer.from_hf(tmp_path)
    # The post-processor still says what begins a text.
    assert (read.bos_id, read.eos_id, read.adds_bos) == (278, None, True)


@pytest.mark.parametrize(
    ("said", "bos_id", "eos_id"),
    [
        ({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, 278, 279),
        ({"bos_token": {"content": "<|end_of_text|>"}, "eos_token": None}, 279, None),
        ({}, 278, None),
    ],
)
def test_names_of_begin_and_end(
    tmp_path: Path, said: dict[str, Any], bos_id: int, eos_id: int | None
) -> None:
    save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    read = Tokenizer.from_hf(tmp_path)
    assert (read.bos_id, read.eos_id) == (bos_id, eos_id)


def test_without_a_post_processor_no_begin_token_is_wanted(tmp_path: Path) -> None:
    whole = save(tmp_path)
    whole["post_processor"] = {"type": "ByteLevel", "trim_offsets": False}
    rewrite(tmp_path, whole)
    read = Tokenizer.from_hf(tmp_path)
    assert not read.adds_bos
    assert read.bos_id == 278


@pytest.mark.parametrize("place", ["config", "list", "beside"])
def test_chat_templates(tmp_path: Path, place: str) -> None:
    save(tmp_path)
    template = "{{ 1 / 0 }} <|im_start|>é"
    config: dict[str, Any] = {"chat_template": template}
    if place == "list":
        other = {"name": "tool_use", "template": "no"}
        config["chat_template"] = [other, {"name": "default", "template": template}]
    if place == "beside":
        config = {}
        (tmp_path / "chat_template.jinja").write_text(template, "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_hf(tmp_path).chat_template == template


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t["model"].update(type="Unigram"), "type = 'Unigram'"),
        (lambda t: t["model"].update(type=None), "type = None"),
        (lambda t: t["model"].update(dropout=0.1), "dropout = 0.1"),
        (lambda t: t["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "suffix"),
        (lambda t: t["model"].update(continuing_subword_prefix="##"), "prefix"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "changes text"),
        (lambda t: t["added_tokens"][0].update(lstrip=True), "lstrip"),
        (lambda t: t["added_tokens"][0].update(single_word=True), "single_word"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "splits text"),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(
                add_prefix_space=True
            ),
            "splits text",
        ),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
            "splits text",
        ),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(
                behavior="MergedWithNext"
            ),
            "splits text",
        ),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"].insert(
                0, {"type": "Digits", "individual_digits": True}
            ),
            "splits text",
        ),
        (lambda t: t["model"]["merges"].append("a"), "no pair"),
        (lambda t: t["model"]["merges"].append("z z"), "not all tokens"),
        (lambda t: t["model"]["merges"].append(t["model"]["merges"][0]), "twice"),
        (lambda t: t["model"]["vocab"].update({"日": 999}), "not bytes"),
        (lambda t: t["model"]["vocab"].update(zz=97), "id 97"),
        (lambda t: t["model"]["vocab"].update(zz="97"), "id '97'"),
        (lambda t: t["added_tokens"][0].update(content=5), "special token"),
        (
            lambda t: t["added_tokens"].append({"content": "\ud800", "id": 300}),
            "surrogate",
        ),
        (lambda t: t["model"].pop("vocab"), "not laid out"),
        (lambda t: t.pop("model"), "not laid out"),
        (lambda t: t.update(pre_tokenizer=None), "not laid out"),
        (lambda t: t.update(added_tokens=[{"id": 5}]), "not laid out"),
        (lambda t: t.update(added_tokens=[]), "no special token"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: Change, sentence: str) -> None:
    whole = save(tmp_path)
    change(whole)
    rewrite(tmp_path, whole)
    with pytest.raises(ValueError, match=sentence) as error:
        Tokenizer.from_hf(tmp_path)
    assert "tokenizer.json" in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        Tokenizer.from_hf(tmp_path / "tokenizer.json")


def test_an_unknown_token_matters_only_where_bytes_are_missing(tmp_path: Path) -> None:
    whole = save(tmp_path)
    whole["model"]["unk_token"] = "<|end_of_text|>"
    rewrite(tmp_path, whole)
    Tokenizer.from_hf(tmp_path)
    del whole["model"]["vocab"]["Ā"]
    rewrite(tmp_path, whole)
    with pytest.raises(ValueError, match="unk_token"):
        Tokenizer.from_hf(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<html>", "web page"),
        (b'{"model": {', "not whole JSON"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe", "not whole JSON"),
        (b"version https://git-lfs", "LFS"),
    ],
)
def test_files_that_are_something_else(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        Tokenizer.from_hf(tmp_path)


@settings(max_examples=400, deadline=None)
@given(
    choices=st.lists(st.tuples(*[st.integers(0, 40)] * 2), max_size=25),
    rng=st.randoms(use_true_random=False),
    ignore_merges=st.booleans(),
    shuffle=st.booleans(),
    texts=st.lists(st.text("abc", max_size=25), min_size=1, max_size=8),
)
def test_any_merges_give_hugging_faces_ids(
    tmp_path_factory: pytest.TempPathFactory,
    choices: list[tuple[int, int]],
    rng: Any,
    ignore_merges: bool,
    shuffle: bool,
    texts: list[str],
) -> None:
    """Several merges for one token, in any order, tokens that no merge reaches."""
    tokens, merges = list("abc"), dict[tuple[str, str], None]()
    for left, right in choices:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if len("".join(pair)) < 10:
            merges[pair] = None
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
    listed = list(merges)
    if shuffle:
        rng.shuffle(listed)
        rng.shuffle(tokens)
    vocab = {token: id for id, token in enumerate(tokens)}
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=listed, ignore_merges=ignore_merges)
    )
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = tmp_path_factory.getbasetemp()
    (folder / "tokenizer.json").write_text(theirs.to_str(), "utf-8")
    ours = Tokenizer.from_hf(folder)
    whole_file = Tokenizer.from_hf(folder)
    whole_file.engine = "ours"
    for text in [*texts, *tokens]:
        expected = theirs.encode(text).ids
        assert ours.encode(text) == expected
        assert whole_file.encode(text) == expected
    one_each = len(listed) == len(tokens) - 3
    if one_each and not shuffle and not ignore_merges:
        assert ours.engine == "tiktoken"
