"""A tokenizer as data, and the two files it is read from at first hand.

They are Meta's rank file and the JSON file that `Tokenizer.save` writes; GGUF and
Hugging Face's files are read in `tokenizer_files.py`. All end in one `Vocabulary`. A
file that says what this library does not do is refused, since ids that are wrong are
wrong in silence.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from minillama.bpe import Pair
from minillama.splitting import LLAMA3_PATTERN


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer as data.

    `ranks` gives the id of each token's bytes, `special_tokens` the ids that text does
    not reach by merging. `merges` are in the order in which they are tried; None means
    that any two tokens merge whose joined bytes are a token, the lowest id first, as
    in Meta's rank file. With `whole_pieces`, a piece that is a token is taken as it is
    before anything merges. `adds_bos`: the model wants `bos_id` before any text.
    `meta_cuts`: long text is cut as in Meta's encoder. Raises ValueError for a
    vocabulary that contradicts itself.
    """

    ranks: dict[bytes, int]
    merges: list[Pair] | None
    special_tokens: dict[str, int] = field(default_factory=dict[str, int])
    pattern: str = LLAMA3_PATTERN
    whole_pieces: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    adds_bos: bool = False
    chat_template: str | None = None
    meta_cuts: bool = False

    def __post_init__(self) -> None:
        names: dict[int, bytes | str] = {}
        # What a file says is of any type.
        _require_type(self.pattern, str, "pattern")
        _require_type(self.chat_template, str | None, "chat template")
        for name in self.special_tokens:
            _require_type(name, str, "special token")
            name.encode()  # A lone surrogate raises ValueError here.
        for name, id in (*self.ranks.items(), *self.special_tokens.items()):
            if not name or type(id) is not int or not 0 <= id < 1 << 31:
                raise ValueError(f"the token {name!r} cannot have the id {id!r}")
            if id in names:
                raise ValueError(f"{names[id]!r} and {name!r} both have the id {id}")
            names[id] = name
        for id in (self.bos_id, self.eos_id):
            if id is not None and id not in self.special_tokens.values():
                raise ValueError(
                    f"no special token has the id {id} of the begin or end token"
                )
        if self.merges is None and not self.whole_pieces:
            raise ValueError("a vocabulary without merges takes whole pieces")
        if self.adds_bos and self.bos_id is None:
            raise ValueError("a vocabulary that adds a begin token must name one")
        for left, right in self.merges or ():
            if not {left, right, left + right} <= self.ranks.keys():
                raise ValueError(
                    f"{left!r} and {right!r} merge, but are not all tokens"
                )


def _require_type(value: object, kind: Any, what: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} cannot be a {what}")


def _llama3_specials() -> list[str]:
    named = {
        0: "begin_of_text",
        1: "end_of_text",
        4: "finetune_right_pad_id",
        5: "step_id",
        6: "start_header_id",
        7: "end_header_id",
        8: "eom_id",
        9: "eot_id",
        10: "python_tag",
        11: "image",
    }
    reserved = (f"reserved_special_token_{number}" for number in range(256))
    return [f"<|{named.get(at) or next(reserved)}|>" for at in range(256)]


LLAMA3_SPECIAL_TOKENS = _llama3_specials()
"""Llama 3's 256 special tokens; Llama 3.1 gave some of the reserved ones a name."""

LLAMA3_RANKS = 128_000


def read_bytes(path: Path) -> bytes:
    """Read a file that may not be there, or be a page or a pointer in its stead."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: Tokenizer.from_hf reads folders")
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist") from None
    if data.lstrip()[:1] == b"<":
        raise ValueError(f"{path} is a web page, not a tokenizer: get the file again")
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer: get the file itself")
    if data.startswith(b"GGUF"):
        raise ValueError(f"{path} is a GGUF file: Tokenizer.from_gguf reads it")
    return data


# -- Meta's rank file ----------------------------------------------------------------


def read_meta(path: Path) -> Vocabulary:
    """Read Meta's `tokenizer.model`: a token in base64 and its rank in each line.

    The file holds ordinary tokens alone; the pattern and the special tokens are part
    of Meta's code. Raises ValueError, with the line, for a damaged file.
    """
    ranks: dict[bytes, int] = {}
    lines: dict[int, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        try:
            word, digits = line.split()
            token, rank = base64.b64decode(word, validate=True), int(digits)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: {line[:40]!r} is not a token in base64 and "
                "its rank; get the file again (Llama 2's tokenizer.model has another "
                "format and is not read here)"
            ) from None
        if rank in lines or token in ranks:
            raise ValueError(
                f"{path}, line {number}: the token {token!r} or its rank {rank} was "
                "there before; get the file again"
            )
        ranks[token], lines[rank] = rank, number
    gap = next((rank for rank in range(len(ranks)) if rank not in lines), None)
    if gap is not None:
        raise ValueError(f"{path} has no token of rank {gap}: get the file again")
    if len(ranks) != LLAMA3_RANKS:
        raise ValueError(
            f"{path} has {len(ranks):,} ranks, Llama 3's has {LLAMA3_RANKS:,}: it is "
            "truncated, or the file of another model"
        )
    _require_bytes(path, ranks)
    special = {n: LLAMA3_RANKS + i for i, n in enumerate(LLAMA3_SPECIAL_TOKENS)}
    return Vocabulary(
        ranks=ranks,
        merges=None,
        special_tokens=special,
        whole_pieces=True,
        bos_id=special["<|begin_of_text|>"],
        eos_id=special["<|end_of_text|>"],
        adds_bos=True,
        meta_cuts=True,
    )


def _require_bytes(path: Path, ranks: Mapping[bytes, int]) -> None:
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{path} has no token for the byte {missing[0]}")


# -- The file of Tokenizer.save ------------------------------------------------------

_FORMAT = "minillama tokenizer 1"


def write_saved(vocabulary: Vocabulary, path: Path) -> None:
    """Write a vocabulary as one JSON file, tokens in base64, merges as pairs of ids."""
    ranks, merges = vocabulary.ranks, vocabulary.merges
    pairs = None if merges is None else [[ranks[a], ranks[b]] for a, b in merges]
    whole = {name: getattr(vocabulary, name) for name in _PLAIN_FIELDS}
    tokens = {base64.b64encode(token).decode(): id for token, id in ranks.items()}
    write_json(path, {"format": _FORMAT, **whole, "ranks": tokens, "merges": pairs})


_PLAIN_FIELDS = {
    "special_tokens": dict,
    "pattern": str,
    "whole_pieces": bool,
    "bos_id": int | None,
    "eos_id": int | None,
    "adds_bos": bool,
    "chat_template": str | None,
    "meta_cuts": bool,
}


def read_saved(path: Path) -> Vocabulary:
    """Read what `write_saved` wrote."""
    said = read_json(path)
    if said.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is JSON, but was not written by Tokenizer.save: "
            "Tokenizer.from_hf(folder) reads a tokenizer.json"
        )
    for name, kind in _PLAIN_FIELDS.items():
        if name not in said or not isinstance(said[name], kind):
            raise ValueError(f"{path} has no valid {name}: it is damaged")
    try:
        ranks = {
            base64.b64decode(t, validate=True): i for t, i in said["ranks"].items()
        }
        tokens = {id: token for token, id in ranks.items()}
        pairs = said["merges"]
        merges = None if pairs is None else [(tokens[a], tokens[b]) for a, b in pairs]
        plain = {name: said[name] for name in _PLAIN_FIELDS}
        return Vocabulary(ranks=ranks, merges=merges, **plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


# -- JSON ----------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError for a file that is none, or not whole."""
    content = read_bytes(path)
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no JSON object")
    return cast(dict[str, Any], said)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write all of a file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
