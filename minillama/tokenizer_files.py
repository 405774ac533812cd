"""Tokenizers in GPT-2's spelling: out of a GGUF file, from and to Hugging Face's files.

Both write a byte as a printable letter and list merges, the first to try first. All
text here is data: a chat template is read and handed on, never run.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from minillama.bpe import Pair
from minillama.splitting import GPT2_PATTERN, LLAMA3_PATTERN, SMOLLM2_PATTERN
from minillama.vocabulary import Vocabulary, read_json, write_json


@cache
def byte_letters() -> dict[int, str]:
    """A printable letter for each byte, as GPT-2's files write tokens.

    A byte that is a visible Latin-1 letter stands for itself, the other 68 take the
    letters from U+0100 on, in order: a space is `Ġ`.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return {b: chr(b if b in visible else next(spare)) for b in range(256)}


def _to_bytes(path: Path, letters: str) -> bytes:
    try:
        return bytes(map(_letter_bytes().__getitem__, letters))
    except KeyError:
        raise ValueError(f"{path} has a token that is not bytes: {letters!r}") from None


@cache
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in byte_letters().items()}


def _to_letters(token: bytes) -> str:
    return "".join(map(byte_letters().__getitem__, token))


def _from_letters(
    path: Path, vocab: Mapping[str, int], merges: Iterable[Any], **rest: Any
) -> Vocabulary:
    """A vocabulary whose tokens and merges are spelled in byte letters."""
    ranks = {_to_bytes(path, token): id for token, id in vocab.items()}
    pairs: list[Pair] = []
    for merge in merges:
        both = merge.split(" ") if isinstance(merge, str) else list(merge)
        if len(both) != 2:
            raise ValueError(f"{path} has a merge that is no pair: {merge!r}")
        pairs.append((_to_bytes(path, both[0]), _to_bytes(path, both[1])))
    try:
        whole = Vocabulary(ranks=ranks, merges=pairs, **rest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(set(pairs)) != len(pairs):
        raise ValueError(f"{path} lists a merge twice")
    if whole.whole_pieces and pairs == _every_split(ranks):
        return replace(whole, merges=None)
    return whole


def _every_split(ranks: Mapping[bytes, int]) -> list[Pair]:
    """A rank file as a list of merges: each split of each token into two tokens."""
    return [
        (token[:at], token[at:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for at in _splits(token, ranks)
    ]


def _splits(token: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    places = range(1, len(token))
    known = [at for at in places if token[:at] in ranks and token[at:] in ranks]
    return sorted(known, key=lambda at: (ranks[token[:at]], ranks[token[at:]]))


# -- GGUF ----------------------------------------------------------------------------

_GGUF_PATTERNS = {
    "llama-bpe": LLAMA3_PATTERN,
    "smollm": SMOLLM2_PATTERN,
    "gpt-2": GPT2_PATTERN,
}
_GGUF_NORMAL, _GGUF_BYTE = 1, 6


def read_gguf(path: Path) -> Vocabulary:
    """Read the vocabulary out of a GGUF file; the weights are not touched.

    Raises ValueError for a file without a byte-level BPE vocabulary, and for a way to
    split text (`tokenizer.ggml.pre`) that is not known here.
    """
    # Here, not above: it imports numpy, which no other format needs.
    from minillama.gguf_file import read_gguf_header

    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    said = read_gguf_header(path).metadata
    kind, pre = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ValueError(
            f"{path} has a tokenizer of type {kind!r}: only byte-level BPE ('gpt2') "
            "is read here"
        )
    if pre not in _GGUF_PATTERNS:
        raise ValueError(
            f"{path} splits text by the rule {pre!r} (tokenizer.ggml.pre); known here "
            f"are {', '.join(_GGUF_PATTERNS)}, and another rule gives other ids"
        )
    try:
        return _from_gguf(path, said, pre)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a damaged vocabulary: {error}") from None


def _from_gguf(path: Path, said: dict[str, Any], pre: str) -> Vocabulary:
    tokens: list[str] = said.get("tokenizer.ggml.tokens", [])
    types: list[int] = said.get(
        "tokenizer.ggml.token_type", [_GGUF_NORMAL] * len(tokens)
    )
    if not tokens or len(types) != len(tokens) or _GGUF_BYTE in types:
        raise ValueError(f"{path} has no list of byte-level tokens")
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"{path} lists a token twice")
    ids = range(len(tokens))
    return _from_letters(
        path,
        {tokens[id]: id for id in ids if types[id] == _GGUF_NORMAL},
        said.get("tokenizer.ggml.merges", []),
        special_tokens={tokens[id]: id for id in ids if types[id] != _GGUF_NORMAL},
        pattern=_GGUF_PATTERNS[pre],
        whole_pieces=pre == "llama-bpe",
        bos_id=said.get("tokenizer.ggml.bos_token_id"),
        eos_id=said.get("tokenizer.ggml.eos_token_id"),
        adds_bos=bool(said.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")),
        chat_template=said.get("tokenizer.chat_template"),
    )


# -- Hugging Face --------------------------------------------------------------------


def read_hf(folder: Path) -> Vocabulary:
    """Read `tokenizer.json`, and what `tokenizer_config.json` adds to it.

    Raises ValueError for a tokenizer that is no byte-level BPE, or that changes or
    splits text in a way this library does not.
    """
    path = folder / "tokenizer.json"
    whole = read_json(path)
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    try:
        return _from_hf(path, whole, config)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} is not laid out as a tokenizer.json: {error!r}"
        ) from None


def _from_hf(path: Path, whole: dict[str, Any], config: dict[str, Any]) -> Vocabulary:
    model = whole["model"]
    added = {token["content"]: token["id"] for token in whole.get("added_tokens") or ()}
    vocab = {token: id for token, id in model["vocab"].items() if token not in added}
    _refuse_hf(path, whole, lossless=len({t for t in vocab if len(t) == 1}) == 256)
    bos, eos = _hf_name(config.get("bos_token")), _hf_name(config.get("eos_token"))
    first = _hf_first_token(whole.get("post_processor"))
    for name in filter(None, (bos, eos, first)):
        if name not in added:
            raise ValueError(f"{path} has no special token {name!r}")
    return _from_letters(
        path,
        vocab,
        model["merges"],
        special_tokens=dict(sorted(added.items(), key=lambda item: item[1])),
        pattern=_hf_pattern(path, whole["pre_tokenizer"]),
        whole_pieces=bool(model.get("ignore_merges")),
        bos_id=added.get(bos or first),
        eos_id=added.get(eos),
        adds_bos=first is not None,
        chat_template=_hf_template(path.parent, config),
    )


def _refuse_hf(path: Path, whole: dict[str, Any], *, lossless: bool) -> None:
    model = whole["model"]
    wanted: dict[str, tuple[Any, ...]] = {
        "type": ("BPE",),
        "dropout": (None, 0.0),
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "byte_fallback": (None, False),
        # With a token for every byte, nothing is unknown.
        "unk_token": (model.get("unk_token"),) if lossless else (None,),
    }
    for key, values in wanted.items():
        if model.get(key) not in values:
            raise ValueError(
                f"{path} has {key} = {model.get(key)!r}, known here is {values[-1]!r}"
            )
    if whole.get("normalizer") is not None:
        raise ValueError(f"{path} changes text before it splits it: not known here")
    for token in whole.get("added_tokens") or ():
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise ValueError(
                    f"{path} has {key} for {token['content']!r}, which changes the "
                    "text around it: not known here"
                )


def _hf_pattern(path: Path, pre_tokenizer: dict[str, Any]) -> str:
    """The one pattern that says the same as a chain of pre-tokenizers."""
    steps: list[dict[str, Any]] = (
        pre_tokenizer["pretokenizers"]
        if pre_tokenizer["type"] == "Sequence"
        else [pre_tokenizer]
    )
    *first, last = steps
    if last["type"] == "ByteLevel" and not last.get("add_prefix_space", True):
        if last.get("use_regex", True):
            if not first:
                return GPT2_PATTERN
            if first == [{"type": "Digits", "individual_digits": True}]:
                return SMOLLM2_PATTERN
        elif len(first) == 1 and "Regex" in first[0].get("pattern", {}):
            pattern: str = first[0]["pattern"]["Regex"]
            if first[0] == _hf_split(pattern):
                return pattern
    raise ValueError(
        f"{path} splits text in a way that is not known here: "
        f"{json.dumps(pre_tokenizer)[:200]}"
    )


def _hf_split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _hf_name(token: Any) -> str | None:
    return cast(Any, token)["content"] if isinstance(token, dict) else token


def _hf_first_token(processor: dict[str, Any] | None) -> str | None:
    """The special token that the file puts before every text, if any."""
    for step in (processor or {}).get("processors", [processor or {"type": None}]):
        if step["type"] == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
            return step["single"][0]["SpecialToken"]["id"]
    return None


def _hf_template(folder: Path, config: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text("utf-8")
    said = config.get("chat_template")
    if isinstance(said, list):
        several = cast(list[dict[str, str]], said)
        return {one["name"]: one["template"] for one in several}.get("default")
    return said


def write_hf(vocabulary: Vocabulary, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for Hugging Face's library."""
    names = {id: name for name, id in vocabulary.special_tokens.items()}
    bos = None if vocabulary.bos_id is None else names[vocabulary.bos_id]
    eos = None if vocabulary.eos_id is None else names[vocabulary.eos_id]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
    }
    if vocabulary.chat_template is not None:
        config["chat_template"] = vocabulary.chat_template
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_hf_added(name, id) for id, name in sorted(names.items())],
        "normalizer": None,
        "pre_tokenizer": _hf_pre_tokenizer(vocabulary.pattern),
        "post_processor": _hf_begin(bos, vocabulary.bos_id)
        if vocabulary.adds_bos
        else None,
        "decoder": _hf_byte_level(use_regex=True),
        "model": _hf_model(vocabulary),
    }
    write_json(folder / "tokenizer.json", whole)
    write_json(folder / "tokenizer_config.json", config)


def _hf_model(vocabulary: Vocabulary) -> dict[str, Any]:
    ranks, special = vocabulary.ranks, vocabulary.special_tokens
    vocab = {_to_letters(token): id for token, id in ranks.items()}
    # Special tokens outside of the vocabulary are numbered on from its size.
    if [*vocab.values(), *special.values()] != [*range(len(vocab) + len(special))]:
        vocab |= special
    merges = vocabulary.merges
    pairs = _every_split(ranks) if merges is None else merges
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": vocabulary.whole_pieces,
        "vocab": vocab,
        "merges": [f"{_to_letters(a)} {_to_letters(b)}" for a, b in pairs],
    }


def _hf_added(name: str, id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": name, **flags, "special": True}


def _hf_byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _hf_pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern == GPT2_PATTERN:
        return _hf_byte_level(use_regex=True)
    if pattern == SMOLLM2_PATTERN:
        digits = {"type": "Digits", "individual_digits": True}
        steps = [digits, _hf_byte_level(use_regex=True)]
    else:
        steps = [_hf_split(pattern), _hf_byte_level(use_regex=False)]
    return {"type": "Sequence", "pretokenizers": steps}


def _hf_begin(bos: str | None, bos_id: int | None) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
