"""Text to token ids and back: byte-level BPE as Llama 3 has it.

One class, two engines that give the same ids: "ours" is the algorithm in `bpe.py` and
can be read, "tiktoken" is the same in Rust and is fast. Text is cut into pieces
(`splitting.py`), the bytes of a piece are merged (`bpe.py`), and what remains has an
id. Special tokens are ids that plain text never yields, unless the caller allows it.
"""

import codecs
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any

from minillama.bpe import (
    BYTES,
    Pair,
    Progress,
    apply_merges,
    by_joined_rank,
    by_order,
    learn_merges,
    recover_merges,
)
from minillama.splitting import (
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    SMOLLM2_PATTERN,
    Specials,
    Splitter,
    has_run,
    meta_blocks,
    meta_cuts,
    read_segments,
)
from minillama.tokenizer_files import read_gguf, read_hf, write_hf
from minillama.vocabulary import (
    Vocabulary,
    read_bytes,
    read_meta,
    read_saved,
    write_saved,
)

__all__ = [
    "GPT2_PATTERN",
    "LLAMA3_PATTERN",
    "SMOLLM2_PATTERN",
    "StreamDecoder",
    "Tokenizer",
    "train_bpe",
]

_BEGIN = ("<|begin_of_text|>",)
_END = ("<|end_of_text|>", "<|endoftext|>", "<|im_end|>")
_STOP = {*_END, "<|eot_id|>", "<|eom_id|>"}

_CACHED_PIECES = 1 << 16
_BLOCK = 1 << 15
# tiktoken's pattern matcher runs out of stack at about a million spaces in a row.
_TOO_MANY_SPACES = 100_000


class Tokenizer:
    """Text to ids and back, with the ids that the model was trained on.

    `engine` is "tiktoken" where tiktoken can do what the vocabulary asks, and can be
    set to "ours" at any time. `merges` are in the order in which they apply. A byte
    that no token has (SmolLM2 lacks 21, of control characters and unassigned planes)
    is left out when text is encoded, as in the model's own tokenizer: `missing_bytes`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ranks = vocabulary.ranks
        self.special_tokens = vocabulary.special_tokens
        self.pattern = vocabulary.pattern
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.adds_bos = vocabulary.adds_bos
        self.chat_template = vocabulary.chat_template
        self.missing_bytes = b"".join(byte for byte in BYTES if byte not in self.ranks)
        self._token_bytes = {id: token for token, id in self.ranks.items()}
        self._token_bytes |= {id: n.encode() for n, id in self.special_tokens.items()}
        self.vocab_size = max(self._token_bytes, default=-1) + 1
        stops = [id for name, id in self.special_tokens.items() if name in _STOP]
        self.stop_ids = frozenset(
            stops if self.eos_id is None else [*stops, self.eos_id]
        )
        self._splitter = Splitter(self.pattern)
        if vocabulary.merges is None:
            self._rank_of = by_joined_rank(self.ranks)
        else:
            self._rank_of = by_order(vocabulary.merges)
        self._pieces: dict[bytes, list[int]] = {}
        self._engine = "tiktoken" if _tiktoken_can(vocabulary) else "ours"

    def __repr__(self) -> str:
        special = len(self.special_tokens)
        return f"Tokenizer({len(self.ranks):,} + {special} special, {self.engine})"

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[Vocabulary]]:
        return Tokenizer, (self.vocabulary,)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read Meta's `tokenizer.model`, or the file that `save` wrote.

        Meta's file lists the 128,000 ordinary tokens; its 256 special tokens are added.
        """
        path = Path(path)
        saved = read_bytes(path).lstrip()[:1] == b"{"
        return cls(read_saved(path) if saved else read_meta(path))

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read vocabulary, merges, special tokens, chat template from a GGUF file."""
        return cls(read_gguf(Path(path)))

    @classmethod
    def from_hf(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """Read a folder with `tokenizer.json` and `tokenizer_config.json`.

        Added tokens count as special tokens, also those that Hugging Face finds in any
        text: here text becomes a special token only where the caller allows it.
        """
        return cls(read_hf(Path(folder)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one JSON file, for `from_file`."""
        write_saved(self.vocabulary, Path(path))

    def save_hf(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that Hugging Face's `AutoTokenizer` opens, with equal ids.

        What Hugging Face has no word for stays behind: Meta's cuts in text of more
        than 400,000 characters, or with more than 25,000 in one run.
        """
        write_hf(self.vocabulary, Path(folder))

    @property
    def engine(self) -> str:
        """What merges: "tiktoken" or "ours"."""
        return self._engine

    @engine.setter
    def engine(self, name: str) -> None:
        if name not in ("ours", "tiktoken"):
            raise ValueError(f"engine is 'ours' or 'tiktoken', not {name!r}")
        if name == "tiktoken" and not _tiktoken_can(self.vocabulary):
            raise ValueError(
                "tiktoken merges in the order of ids, and this vocabulary has another "
                "order: keep the engine 'ours'"
            )
        self._engine = name

    @cached_property
    def merges(self) -> list[Pair]:
        """The merges in the order in which they apply; found again for a rank file."""
        merges = self.vocabulary.merges
        return recover_merges(self.ranks) if merges is None else merges

    def encode(
        self,
        text: str,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Collection[str] = (),
        disallowed_special: Collection[str] = (),
    ) -> list[int]:
        """Turn text into ids; `bos` and `eos` put the begin and end token around it.

        The spelling of a special token is plain text, unless `allowed_special` names
        it: then it becomes its id. One that `disallowed_special` names, and that is not
        allowed, raises ValueError. "all" means every special token of this vocabulary.
        Raises ValueError also for what is not text, lone surrogates among it.
        """
        _require_text(text)
        allowed, refused = self._specials(allowed_special, disallowed_special)
        ids = [self._need("begin", self.bos_id)] if bos else []
        for part in meta_cuts(text) if self.vocabulary.meta_cuts else (text,):
            if refused:
                refused.refuse(part)
            for plain, special in allowed.split(part) if allowed else ((part, None),):
                ids += self._encode_plain(plain)
                if special is not None:
                    ids.append(self.special_tokens[special])
        return [*ids, self._need("end", self.eos_id)] if eos else ids

    def encode_file(
        self,
        path: str | os.PathLike[str],
        allowed_special: Collection[str] = (),
        disallowed_special: Collection[str] = (),
    ) -> Iterator[int]:
        """The ids of a UTF-8 file, as of its whole text, in constant memory.

        The text is the file's, line ends included (`open(path, newline="")`). Only a
        single piece that is longer than a chunk takes more memory: its own length.
        """
        watched = self._names(allowed_special) | self._names(disallowed_special)
        specials = Specials(watched) if watched else None
        settled = partial(self._splitter.settled, specials=specials)
        if self.vocabulary.meta_cuts:
            settled = meta_blocks
        for segment in read_segments(Path(path), settled):
            yield from self.encode(
                segment,
                allowed_special=allowed_special,
                disallowed_special=disallowed_special,
            )

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Turn ids into bytes, exactly."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token; raises ValueError for an id that no token has."""
        try:
            return self._token_bytes[index(id)]
        except (KeyError, TypeError):
            raise ValueError(
                f"no token has the id {id!r}: ids are whole numbers from 0 to "
                f"{self.vocab_size - 1}"
            ) from None

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder that takes ids one at a time."""
        return StreamDecoder(self)

    def _specials(
        self, allowed: Collection[str], refused: Collection[str]
    ) -> tuple[Specials | None, Specials | None]:
        names = self._names(allowed)
        others = self._names(refused) - names
        return Specials(names) if names else None, Specials(others) if others else None

    def _names(self, names: Collection[str]) -> set[str]:
        if names == "all":
            return set(self.special_tokens)
        known = all(name in self.special_tokens for name in names)
        if isinstance(names, str) or not known:
            raise ValueError(
                f"{names!r} does not name special tokens of this vocabulary: give "
                '"all" or a set of names from special_tokens'
            )
        return set(names)

    def _need(self, which: str, id: int | None) -> int:
        if id is None:
            raise ValueError(f"this vocabulary has no {which} token: encode without it")
        return id

    def _encode_plain(self, text: str) -> list[int]:
        if self._engine == "tiktoken" and self._suits_tiktoken(text):
            return self._tiktoken.encode_ordinary(text)
        ids: list[int] = []
        for piece in self._splitter.split(text):
            ids += self._encode_piece(piece.encode())
        return ids

    def _encode_piece(self, piece: bytes) -> list[int]:
        known = self._pieces.get(piece)
        if known is not None:
            return known
        if self.vocabulary.whole_pieces and piece in self.ranks:
            ids = [self.ranks[piece]]
        else:
            present = piece.translate(None, self.missing_bytes)
            ids = [self.ranks[t] for t in apply_merges(present, self._rank_of)]
        if len(self._pieces) >= _CACHED_PIECES:
            self._pieces.clear()
        self._pieces[piece] = ids
        return ids

    def _suits_tiktoken(self, text: str) -> bool:
        if has_run(text, _TOO_MANY_SPACES, str.isspace):
            return False
        raw = text.encode() if self.missing_bytes else b""
        return len(raw.translate(None, self.missing_bytes)) == len(raw)

    @cached_property
    def _tiktoken(self) -> Any:
        import tiktoken

        ranks = self.ranks
        if not self.vocabulary.whole_pieces:
            # tiktoken takes any path to a token, and whole pieces at once. A token
            # that merges do reach is reached either way; one that they do not must go.
            reached = (t for t in ranks if apply_merges(t, self._rank_of) == [t])
            ranks = {token: ranks[token] for token in reached}
        # It wants an id for every byte; text with these does not get there.
        spare = range(self.vocab_size, self.vocab_size + 256)
        missing = (bytes([byte]) for byte in self.missing_bytes)
        return tiktoken.Encoding(
            "minillama",
            pat_str=self._splitter.complete,
            mergeable_ranks=ranks | dict(zip(missing, spare, strict=False)),
            special_tokens={},
        )


class StreamDecoder:
    """Turns ids into text one at a time, and never gives out half a character.

    The texts of all `push` calls and of `flush`, joined, are `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The characters that are complete now; often none within an emoji."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character was never completed."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def train_bpe(
    text_or_path: str | os.PathLike[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    pattern: str = LLAMA3_PATTERN,
    progress: Progress | None = None,
) -> Tokenizer:
    """Learn a byte-level BPE vocabulary from text, or from a file given as a Path.

    Ids: the 256 bytes, then a token for each merge, then the special tokens, as in
    Llama 3. Special tokens cut the text and are not learnt from. A file is read in
    constant memory. Fewer than `vocab_size` tokens come out when the text has no more
    pairs to merge. `progress(done, wanted)` is called when it takes over two seconds.
    """
    specials = list(special_tokens)
    if isinstance(special_tokens, str) or len(set(specials)) != len(specials):
        raise ValueError(f"special_tokens is a list of names, each once: {specials}")
    n_merges = vocab_size - 256 - len(specials)
    if n_merges < 0:
        raise ValueError(
            f"vocab_size {vocab_size} is less than 256 bytes and {len(specials)} "
            f"special tokens: choose at least {256 + len(specials)}"
        )
    pieces = _count_pieces(text_or_path, specials, Splitter(pattern))
    merges = learn_merges(pieces, n_merges, progress)
    tokens = [*BYTES, *(left + right for left, right in merges)]
    ids = {name: len(tokens) + number for number, name in enumerate(specials)}
    bos_id = next((ids[name] for name in _BEGIN if name in ids), None)
    vocabulary = Vocabulary(
        ranks={token: id for id, token in enumerate(tokens)},
        merges=merges,
        special_tokens=ids,
        pattern=pattern,
        bos_id=bos_id,
        eos_id=next((ids[name] for name in _END if name in ids), None),
        adds_bos=bos_id is not None,
    )
    return Tokenizer(vocabulary)


def _count_pieces(
    text_or_path: str | os.PathLike[str], names: list[str], splitter: Splitter
) -> Counter[bytes]:
    specials = Specials(names) if names else None
    if isinstance(text_or_path, os.PathLike):
        settled = partial(splitter.settled, specials=specials)
        segments = read_segments(Path(text_or_path), settled)
    else:
        _require_text(text_or_path)
        if len(text_or_path) < 256 and Path(text_or_path).is_file():
            raise ValueError(
                f"{text_or_path!r} is the name of a file: give Path({text_or_path!r}) "
                "to learn from what is in it"
            )
        segments = iter((text_or_path,))
    counts: Counter[str] = Counter()
    for segment in segments:
        for plain, _ in specials.split(segment) if specials else ((segment, None),):
            counts.update(splitter.split(plain))
    return Counter({piece.encode(): count for piece, count in counts.items()})


def _tiktoken_can(vocabulary: Vocabulary) -> bool:
    """Whether merging the lowest id first is what the vocabulary asks for."""
    if vocabulary.merges is None:
        return True
    made = [vocabulary.ranks[left + right] for left, right in vocabulary.merges]
    rising = all(low < high for low, high in pairwise(made))
    return rising and not vocabulary.whole_pieces


def _require_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text must be str, not {type(text).__name__}")
    start = 0
    try:
        # In blocks that stay in the processor's cache: half the time for a long text.
        for start in range(0, len(text), _BLOCK):
            text[start : start + _BLOCK].encode()
    except UnicodeEncodeError as error:
        at = start + error.start
        raise ValueError(
            f"the text has half of a surrogate pair, {text[at]!r}, at "
            f"character {at}: that is not Unicode text; "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") '
            "mends it"
        ) from None
