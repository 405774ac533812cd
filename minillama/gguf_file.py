"""The table of contents of a GGUF file: its metadata, and where each tensor lies.

Nothing of the tensors is read, nothing is allocated on the word of the file: every
count and size is first held against the bytes that are there. No torch is needed.
Source: the GGUF specification in the documentation of ggml.
"""

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

Cell = int | float | bool | str

# Llama 3's is 8 MB, nearly all of it vocabulary.
LARGEST_HEADER = 1 << 26

_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its shape as PyTorch has it, how it is packed, and where it lies."""

    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its numbers begin."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check everything in a GGUF file but the numbers.

    Raises ValueError for a file that is truncated, or whose header claims what cannot
    be.
    """
    with path.open("rb") as file:
        if path.stat().st_size < 24 or file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: get it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(path, data).header()


def shown(text: object, most: int = 120) -> str:
    """Text out of a file, fit for a sentence: one line, and no terminal's command."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[:most])
    return line + "..." * (len(str(text)) > most)


class _Parser:
    """A cursor that never leaves the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4
        self.end = min(len(data), LARGEST_HEADER)

    def header(self) -> GgufHeader:
        (version,) = self.unpack("I")
        if version not in (2, 3):
            raise self.error(f"has GGUF version {version}, known are 2 and 3")
        n_tensors, n_metadata = self.unpack("QQ")
        metadata = self.table("metadata key", n_metadata, 13, self.value)
        parts = metadata.get("split.count", 1)
        if parts != 1:
            raise ValueError(
                f"{self.path} is one of {shown(parts)} parts: join them "
                "with `llama-gguf-split --merge` first"
            )
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
            raise self.error(f"has general.alignment {shown(alignment)}")
        rows = self.table("tensor", n_tensors, 24, self.tensor_row)
        start = -(-self.at // alignment) * alignment
        tensors = {name: self.place(name, start, *row) for name, row in rows.items()}
        return GgufHeader(metadata, tensors)

    def table(
        self, what: str, count: int, at_least: int, read: Callable[[], Any]
    ) -> dict[str, Any]:
        """Read `count` named things of at least so many bytes each."""
        self.room(count * at_least, f"{count} {what}s")
        table: dict[str, Any] = {}
        for _ in range(count):
            name = self.string()
            if name in table:
                raise self.error(f"has two {what}s {shown(name)}")
            table[name] = read()
        return table

    def value(self) -> Cell | list[Cell]:
        (kind,) = self.unpack("I")
        return self.array() if kind == _ARRAY else self.scalar(kind)

    def array(self) -> list[Cell]:
        kind, count = self.unpack("IQ")
        if kind in _SCALARS:
            self.room(count * struct.calcsize("<" + _SCALARS[kind]), f"{count} numbers")
            return list(self.unpack(f"{count}{_SCALARS[kind]}"))
        if kind != _STRING:
            raise self.error(f"has an array of elements of type {kind}")
        self.room(count * 8, f"{count} strings")
        return [self.string() for _ in range(count)]

    def scalar(self, kind: int) -> Cell:
        if kind == _STRING:
            return self.string()
        if kind not in _SCALARS:
            raise self.error(f"has a metadata value of type {kind}")
        return self.unpack(_SCALARS[kind])[0]

    def tensor_row(self) -> tuple[tuple[int, ...], int, int]:
        (n_dims,) = self.unpack("I")
        if n_dims > 4:
            raise self.error(f"has a tensor of {n_dims} dimensions")
        # GGUF names the fastest axis first.
        shape = tuple(reversed(self.unpack(f"{n_dims}Q")))
        kind, offset = self.unpack("IQ")
        return shape, kind, offset

    def place(
        self, name: str, start: int, shape: tuple[int, ...], kind: int, offset: int
    ) -> GgufTensor:
        try:
            packing = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise self.error(
                f"packs {shown(name)} in a way ({kind}) not known here"
            ) from None
        block, block_bytes = gguf.GGML_QUANT_SIZES[packing]
        if not shape or 0 in shape or shape[-1] % block:
            raise self.error(
                f"has rows of {shape} in {shown(name)}, in blocks of {block}"
            )
        nbytes = math.prod(shape) // block * block_bytes
        if start + offset + nbytes > len(self.data):
            raise self.error(
                f"has {len(self.data):,} bytes, and {shown(name)} would end at "
                f"{start + offset + nbytes:,}"
            )
        return GgufTensor(shape, packing, start + offset, nbytes)

    def string(self) -> str:
        (length,) = self.unpack("Q")
        self.room(length, f"a string of {length} bytes")
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error("has a string that is not UTF-8") from None

    def unpack(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + layout)
        self.room(size, "more")
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += size
        return values

    def room(self, size: int, what: str) -> None:
        if size > self.end - self.at:
            raise self.error(
                f"claims {what} in its header, with {self.end - self.at:,} bytes left"
            )

    def error(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path} {what}: it is truncated or damaged, get it again"
        )


_ALIGNMENTS = {2**power for power in range(21)}
