"""Text into pieces, within which bytes are merged and across which they never are.

A pattern says what a piece is. Beside it stand the cuts that a pattern does not make:
at special tokens, at the end of a chunk of a file, and in Meta's encoder every 400,000
characters.
"""

import re
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

import regex

LLAMA3_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English short forms
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with the space or sign before it
        r"\p{N}{1,3}",  # up to three digits
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # signs, with the line ends after them
        r"\s*[\r\n]+",  # line ends
        r"\s+(?!\S)",  # spaces, but the last one before a word
        r"\s+",
    )
)
"""What Llama 3 takes for a piece of text."""

GPT2_PATTERN = "|".join(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d",
        r" ?\p{L}+",
        r" ?\p{N}+",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""What GPT-2 takes for a piece of text."""

SMOLLM2_PATTERN = "|".join(
    (
        r"\p{N}",
        r"'s|'t|'re|'ve|'m|'ll|'d",
        r" ?\p{L}+",
        r" ?[^\s\p{L}\p{N}]+",
        # Text ends for GPT-2's pattern where a digit was taken out of it, so that
        # spaces before a digit stay together.
        r"\s+(?![^\s\p{N}])",
        r"\s+",
    )
)
"""GPT-2's pattern after each digit was split off: two steps in one pattern."""

CHUNK = 1 << 18
"""Characters of a file that are read at a time."""
MARGIN = 1000
"""Characters at the end of a chunk that wait for the next one."""

META_BLOCK, META_RUN = 400_000, 25_000


class Splitter:
    """Splits text by a pattern; joined again, the pieces are the text.

    What the pattern passes over becomes a piece of its own; `complete` is the pattern
    with that said. A pattern of your own should ask for Unicode's letters and numbers,
    not for word characters: libraries differ on those. Raises ValueError for a pattern
    that is not valid, or that matches the empty text.
    """

    def __init__(self, pattern: str) -> None:
        self.complete = pattern
        if pattern not in (LLAMA3_PATTERN, GPT2_PATTERN, SMOLLM2_PATTERN):
            self.complete = rf"{pattern}|(?:(?!{pattern})[\s\S])+"
        try:
            self._pattern = regex.compile(self.complete)
            empty = regex.fullmatch(pattern, "") is not None
        except regex.error as error:
            raise ValueError(f"the pattern {pattern!r} is not valid: {error}") from None
        if empty:
            raise ValueError(f"the pattern {pattern!r} matches the empty text")

    def split(self, text: str) -> list[str]:
        """The pieces of `text`, in order."""
        seen = _as_tiktoken_sees(text)
        if seen is text and not self._pattern.groups:
            pieces: list[str] = self._pattern.findall(text)
        else:
            found = self._pattern.finditer(seen)
            pieces = [text[match.start() : match.end()] for match in found]
        if sum(map(len, pieces)) != len(text):
            raise ValueError(f"the pattern {self.complete!r} leaves out some text")
        return pieces

    def settled(self, text: str, specials: "Specials | None" = None) -> int:
        """How many characters of `text` split the same whatever text follows.

        White space at the end makes two pieces at most, and all else depends on one
        character more. So the last two pieces wait, and everything that a special
        token, begun at the end, could still change.
        """
        longest = specials.longest if specials else 0
        start = specials.last_end(text) if specials else 0
        limit = len(text) - MARGIN - 2 * (longest + 1)
        pieces = self.split(text[start:])
        ends = list(accumulate(map(len, pieces), initial=start))
        count = max(0, len(pieces) - 2)
        while ends[count] > limit or not self._may_end(
            pieces[max(0, count - 3) : count]
        ):
            count -= 1
            if count <= 0:
                return start
        return ends[count]

    def _may_end(self, pieces: list[str]) -> bool:
        """Whether a text that ends after these pieces still has these pieces.

        Two spaces and one before a digit do not: at the end of a text they are three.
        """
        return self.split("".join(pieces)) == pieces


class Specials:
    """Finds the spellings of special tokens in text, the longer before the shorter."""

    def __init__(self, names: Collection[str]) -> None:
        self.longest = max(map(len, names))
        by_length = sorted(names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, by_length)))

    def refuse(self, text: str) -> None:
        """Raise ValueError if `text` spells one of the special tokens."""
        found = self._pattern.search(text)
        if found:
            around = text[max(0, found.start() - 20) : found.end() + 20]
            raise ValueError(
                f"the text spells {found.group()!r}, in {around!r}: name it in "
                "allowed_special to make it a special token, or leave it out of "
                "disallowed_special to read it as plain text"
            )

    def last_end(self, text: str) -> int:
        """Where the last special token ends that no text to come could make longer."""
        ends = (match.end() for match in self._pattern.finditer(text))
        return max((end for end in ends if end <= len(text) - self.longest), default=0)

    def split(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Pairs of plain text and the special token that ends it."""
        start = 0
        for match in self._pattern.finditer(text):
            yield text[start : match.start()], match.group()
            start = match.end()
        yield text[start:], None


def read_segments(path: Path, settled: Callable[[str], int]) -> Iterator[str]:
    """Read a UTF-8 file in segments that may be tokenized one by one.

    `settled(text)` says how much of `text` no longer depends on what follows. Line
    ends stay as they are in the file. A long wait doubles what is read next, so that a
    piece of any length costs time in proportion.
    """
    waiting = ""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while more := file.read(max(CHUNK, len(waiting))):
                waiting += more
                end = settled(waiting)
                if end:
                    yield waiting[:end]
                    waiting = waiting[end:]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{path} is not a file that can be read") from None
    if waiting:
        yield waiting


def meta_blocks(text: str) -> int:
    """How many characters of `text` fill whole blocks of Meta's encoder."""
    return len(text) - len(text) % META_BLOCK


def meta_cuts(text: str) -> Iterator[str]:
    """Cut text as Meta's encoder does before it looks at the pattern.

    It guards a library against very long input: a cut every 400,000 characters, and
    after every 25,000 in a run of white space or of anything but white space. The ids
    around a cut depend on it, so ids equal to Meta's need the same cuts.
    """
    for start in range(0, len(text), META_BLOCK):
        block = text[start : start + META_BLOCK]
        if has_run(block, META_RUN // 2, _uniform):
            yield from _cut_runs(block)
        else:
            yield block


def has_run(text: str, width: int, uniform: Callable[[str], bool]) -> bool:
    """Whether one of the blocks of `width` characters is `uniform`.

    A run of at least twice the width fills such a block, wherever it begins.
    """
    starts = range(0, len(text) - width + 1, width)
    return any(uniform(text[start : start + width]) for start in starts)


def _uniform(text: str) -> bool:
    return text.isspace() or len(text.split(None, 1)[0]) == len(text)


def _cut_runs(block: str) -> Iterator[str]:
    start = 0
    # U+001C to U+001F are white space for Python, which Meta's encoder asks, and not
    # for Unicode.
    for run in regex.finditer(r"[\s\x1c-\x1f]+|[^\s\x1c-\x1f]+", block):
        for cut in range(run.start() + META_RUN, run.end(), META_RUN):
            yield block[start:cut]
            start = cut
    yield block[start:]


# What stands in for a character about which the two libraries disagree: a letter, a
# number, and a sign that is neither.
_STAND_INS = {r"\p{L}": "\u4e00", r"\p{N}": "\u0660"}
_NEITHER = "\ue000"
_seen: set[str] = set()
_disputed: dict[str, str] = {}


def _as_tiktoken_sees(text: str) -> str:
    """`text`, or a copy in which `regex` finds the pieces that tiktoken would find.

    `regex` and tiktoken each know one version of Unicode, and what is a letter to the
    newer may be unassigned to the older. tiktoken decides, since Meta's encoder is
    built on it. Such characters are rare: each is looked up when it is first met.
    """
    if text.isascii():
        return text
    characters = set(text)
    if new := characters - _seen:
        for kind, stand_in in _STAND_INS.items():
            theirs = _tiktoken_class(kind)("".join(new))
            ours = set(regex.findall(kind, "".join(new)))
            for character in ours - theirs:
                _disputed.setdefault(character, _NEITHER)
            for character in theirs - ours:
                _disputed[character] = stand_in
        _seen.update(new)
    if characters.isdisjoint(_disputed):
        return text
    return text.translate({ord(c): s for c, s in _disputed.items()})


@cache
def _tiktoken_class(kind: str) -> Callable[[str], set[str]]:
    import tiktoken

    single_bytes = {bytes([byte]): byte for byte in range(256)}
    # An encoding that knows one kind of character drops all others.
    encoding = tiktoken.Encoding(
        kind, pat_str=kind, mergeable_ranks=single_bytes, special_tokens={}
    )
    return lambda text: set(encoding.decode(encoding.encode_ordinary(text)))
