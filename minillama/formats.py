"""Three kinds of files of weights, each opened without reading the numbers in it.

Each reader knows its config, the shape and type of every tensor (`entries`), and gives
one tensor at a time (`get`). A tensor is a view into the file, mapped into memory: its
pages are read when they are used, and dropped with the tensor. Nothing that a file says
is believed before it is held against the file, and nothing in it is run.
"""

import json
import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Packing
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minillama.config import LlamaConfig, RopeScaling
from minillama.gguf_file import read_gguf_header, shown
from minillama.rope import rope_frequencies, scale_frequencies


@dataclass(frozen=True)
class Entry:
    """Shape and type of a tensor in a file; packed tensors count as float32."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Reader(Protocol):
    """What the loader asks of a kind of file."""

    path: Path
    dialect: str
    config: LlamaConfig
    entries: dict[str, Entry]

    def get(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor of that name, in the file's own order of rows.

        What has to be unpacked comes in `dtype`; other tensors in the file's own.
        """
        ...


def open_reader(path: str | Path) -> Reader:
    """Open a GGUF file, a Hugging Face folder or a folder of Meta's."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.is_file():
        if path.suffix in (".safetensors", ".pth"):
            raise ValueError(f"{path} has no config in it: name its folder instead")
        return GgufReader(path)
    if (path / "config.json").exists():
        return HfReader(path)
    if (path / "params.json").exists():
        return MetaReader(path)
    found = ", ".join(sorted(p.name for p in path.glob("*.gguf"))[:3])
    raise FileNotFoundError(
        f"{path} holds neither config.json (Hugging Face) nor params.json (Meta)"
        + (f": name the file itself, {found}" if found else "")
    )


def read_config(path: str | Path) -> LlamaConfig:
    """The architecture of the model at `path`, a folder or a GGUF file."""
    path = Path(path)
    if (path / "config.json").exists():
        return _hf_config(path)
    return open_reader(path).config


class HfReader:
    """A Hugging Face folder: config.json and one or several safetensors files."""

    dialect = "hf"

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, _hf_config(path)
        self.files: dict[str, Path] = {}
        self.entries: dict[str, Entry] = {}
        for shard, names in _hf_shards(path).items():
            for name, entry in _safetensors_entries(shard, names).items():
                self.files[name], self.entries[name] = shard, entry

    def get(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        # Opened anew each time: the mapping then lives and dies with this one tensor.
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)


class MetaReader:
    """Meta's folder: params.json and one or several consolidated.NN.pth."""

    dialect = "meta"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = _meta_shards(path)
        params = path / "params.json"
        config = _checked(params, lambda: LlamaConfig.from_meta(_read_json(params)))
        self.opened = opened = [_load_pth(shard) for shard in self.shards]
        self.given = 0  # bytes since the shards were opened
        self.entries = _join_shards(self.shards, opened)
        embeddings = opened[0].get("tok_embeddings.weight")
        output = opened[0].get("output.weight")
        _refuse_llama_2(path, config, embeddings, len(opened))
        # params.json does not say whether the embeddings are tied: the tensors do.
        tied = output is None or (
            embeddings is not None and output.data_ptr() == embeddings.data_ptr()
        )
        self.config = replace(config, tied_embeddings=tied)

    def get(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        # Opened anew now and then, so that the pages of what was copied are dropped.
        if self.given > _MAPPED_AT_ONCE:
            self.opened, self.given = [_load_pth(shard) for shard in self.shards], 0
        pieces = [shard[name] for shard in self.opened]
        self.given += sum(piece.nbytes for piece in pieces)
        if len(pieces) == 1:
            return pieces[0]
        axis = _split_axis(name)
        # A view of one piece would keep its whole file mapped.
        return pieces[0].clone() if axis is None else torch.cat(pieces, axis)


class GgufReader:
    """A GGUF file; packed tensors come out as float32."""

    dialect = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_stray(path)
        header = read_gguf_header(path)
        self.tensors = header.tensors
        _refuse_packings(path, {t.type for t in self.tensors.values()})
        self.entries = {
            name: Entry(tensor.shape, _GGUF_FLOATS.get(tensor.type, torch.float32))
            for name, tensor in header.tensors.items()
        }
        tied = "output.weight" not in self.tensors
        config = _checked(
            path, lambda: LlamaConfig.from_gguf(header.metadata, tied=tied)
        )
        if "rope_freqs.weight" in self.tensors:
            # Its size is known before it is read, so a wrong one is not read at all.
            wrong = self.entries["rope_freqs.weight"].shape != (config.head_dim // 2,)
            factors = torch.zeros(1) if wrong else self.get("rope_freqs.weight")
            config = replace(config, rope_scaling=find_scaling(factors, config))
        self.config = config

    def blocks(self, name: str) -> np.ndarray:
        """The bytes of a tensor as they lie in the file, one row a row."""
        tensor = self.tensors[name]
        raw = np.memmap(
            self.path, mode="c", offset=tensor.offset, shape=(tensor.nbytes,)
        )
        return raw.reshape(math.prod(tensor.shape[:-1]), -1)

    def get(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        tensor, blocks = self.tensors[name], self.blocks(name)
        if not self.is_packed(name):
            own = _GGUF_FLOATS[tensor.type]
            return torch.from_numpy(blocks).view(own).reshape(tensor.shape)
        out = torch.empty(blocks.shape[0], tensor.shape[-1], dtype=dtype)
        start = 0
        for rows in self.unpacked(name):
            out[start : start + len(rows)] = rows
            start += len(rows)
        return out.reshape(tensor.shape)

    def is_packed(self, name: str) -> bool:
        """True if the tensor's numbers share scales, and have to be unpacked."""
        return self.tensors[name].type not in _GGUF_FLOATS

    def unpacked(self, name: str) -> Iterator[Tensor]:
        """A packed tensor as float32, some rows at a time."""
        tensor, blocks = self.tensors[name], self.blocks(name)
        rows = max(1, _UNPACKED_AT_ONCE // tensor.shape[-1])
        for start in range(0, blocks.shape[0], rows):
            with np.errstate(all="ignore"):  # a spoiled scale is no warning of ours
                part = gguf.dequantize(blocks[start : start + rows], tensor.type)
            yield torch.from_numpy(part)


def find_scaling(factors: Tensor, config: LlamaConfig) -> RopeScaling | None:
    """Tell which Llama 3.1 scaling a GGUF file's `rope_freqs.weight` came from.

    The tensor divides each frequency. Its largest number is the factor, if the head has
    a clock slow enough to be slowed in full; the whole of it must then be what that
    factor gives. Anything else is refused.
    """
    whole = rope_frequencies(config.head_dim, config.rope_theta)
    if factors.shape == whole.shape:
        for factor in (1.0, float(factors.max()), 8.0, 32.0):
            scaling = RopeScaling(factor=factor) if factor >= 1 else RopeScaling()
            expected = whole / scale_frequencies(whole, scaling)
            if torch.allclose(factors.double(), expected.double(), 1e-4, 0):
                return None if factor == 1 else scaling
    raise ValueError(
        f"rope_freqs.weight ({factors.numel()} numbers, up to {factors.max():.4g}) is "
        "no scaling of Llama 3.1 or 3.2: convert the model again, or load it from a "
        "Hugging Face folder"
    )


def _read_json(path: Path) -> dict[str, Any]:
    _refuse_stray(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({shown(error)}): get it again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object: get it again")
    return data


def _checked(path: Path, build: Callable[[], LlamaConfig]) -> LlamaConfig:
    """Build a config; whatever nonsense breaks it is a ValueError naming the file."""
    try:
        config = build()
    except ValueError as error:
        raise ValueError(f"{path}: {shown(error, 400)}") from None
    except (TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(
            f"{path} has a value of the wrong kind ({shown(error)}): get it again"
        ) from None
    if config.n_params() > LARGEST_MODEL or config.n_layers > MOST_LAYERS:
        raise ValueError(
            f"{path} describes {config.n_layers:,} layers and {config.n_params():,} "
            "parameters, more than any Llama has: get it again"
        )
    return config


def _hf_config(path: Path) -> LlamaConfig:
    file = path / "config.json"
    return _checked(file, lambda: LlamaConfig.from_hf(_read_json(file)))


def _hf_shards(path: Path) -> dict[Path, set[str]]:
    """The files of a Hugging Face folder, each with the tensors that it should hold."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists():
        return {whole: set()}
    if not index.exists():
        pickled = next(path.glob("pytorch_model*.bin"), None)
        raise FileNotFoundError(
            f"{path} has a config.json, but no model.safetensors and no "
            "model.safetensors.index.json: "
            + (
                f"{pickled.name} is the older pickle format; convert it with "
                "transformers' save_pretrained"
                if pickled
                else "get the weights too"
            )
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map: get it again")
    shards: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ValueError(
                f"{index} names {shown(repr(file))}, which is no safetensors file in "
                "its own folder: it is refused; get it from a source that you trust"
            )
        shards.setdefault(path / file, set()).add(name)
    missing = sorted(shard.name for shard in shards if not shard.exists())
    if missing:
        raise FileNotFoundError(
            f"{path} lacks {len(missing)} of {len(shards)} files of weights: "
            f"{shown(', '.join(missing))}; get them too"
        )
    return shards


def _safetensors_entries(path: Path, names: set[str]) -> dict[str, Entry]:
    """What a safetensors file holds; `names` are those its index promises."""
    _refuse_stray(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            entries = {
                name: Entry(tuple(part.get_shape()), _SAFETENSORS[part.get_dtype()])
                for name, part in found.items()
            }
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({shown(error)}): get it again"
        ) from None
    if lacking := sorted(names - set(entries)):
        raise ValueError(
            f"{path} lacks {shown(', '.join(lacking))}, which the index says it holds: "
            "get the folder again"
        )
    return entries


def _meta_shards(path: Path) -> list[Path]:
    shards = sorted(path.glob("consolidated.[0-9][0-9].pth"))
    last = shards[-1].name.split(".")[1] if shards else "00"
    names = [f"consolidated.{n:02}.pth" for n in range(int(last) + 1)]
    if missing := [name for name in names if not (path / name).exists()]:
        raise FileNotFoundError(f"{path} lacks {', '.join(missing)}: get it too")
    return [path / name for name in names]


def _join_shards(
    paths: list[Path], opened: list[dict[str, Tensor]]
) -> dict[str, Entry]:
    """What each tensor is once its model-parallel pieces are put together."""
    for path, tensors in zip(paths, opened, strict=True):
        if different := sorted(opened[0].keys() ^ tensors.keys()):
            raise ValueError(
                f"{path} and {paths[0].name} do not hold the same tensors, they differ "
                f"in {shown(', '.join(different))}: get both again"
            )
    entries: dict[str, Entry] = {}
    for name, first in opened[0].items():
        pieces = [shard[name].to("meta") for shard in opened]
        axis = _split_axis(name) if len(pieces) > 1 else None
        try:
            whole = torch.cat(pieces, axis) if axis is not None else pieces[0]
        except (RuntimeError, IndexError):
            shapes = ", ".join(str(tuple(piece.shape)) for piece in pieces)
            raise ValueError(
                f"the pieces of {shown(name)} in {paths[0].parent} cannot be joined, "
                f"they are {shapes}: get the folder again"
            ) from None
        entries[name] = Entry(tuple(whole.shape), first.dtype)
    return entries


def _refuse_llama_2(
    path: Path, config: LlamaConfig, embeddings: Tensor | None, shards: int
) -> None:
    cut = (config.vocab_size, config.dim // shards)
    if shards > 1 and embeddings is not None and embeddings.shape == cut:
        raise ValueError(
            f"{path} cuts tok_embeddings along dim, as Llama 2 does, and not along the "
            "vocabulary, as Llama 3 does: use a Hugging Face folder of this model"
        )


def _split_axis(name: str) -> int | None:
    """The axis along which Meta cuts a Llama 3 tensor into model-parallel shards."""
    match name.split(".")[-2:]:
        case ["wo" | "w2", "weight"]:
            return 1
        case [("wq" | "wk" | "wv" | "w1" | "w3" | "output" | "tok_embeddings"), _]:
            return 0
    return None


def _load_pth(path: Path) -> dict[str, Tensor]:
    """Map one of Meta's files into memory; a pickle that wants code run is refused."""
    _refuse_stray(path)
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        raise ValueError(
            f"{path} is a bare pickle, which can run any code when it is read: it is "
            "refused; get the weights as torch.save writes them, or as safetensors"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"the pickle in {path} asks for "
            f"{wanted[1] if wanted else 'something'}, and weights need tensors alone: "
            "it is refused and nothing was run; get it from a source that you trust"
        ) from None
    except Exception as error:  # a damaged archive breaks torch.load in many ways
        raise ValueError(
            f"{path} is truncated or damaged ({_first_line(error)}): get it again"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor)
        for name, value in tensors.items()
    ):
        raise ValueError(f"{path} holds something other than named tensors")
    return tensors


def _refuse_packings(path: Path, packings: set[Packing]) -> None:
    for packing in packings - _GGUF_FLOATS.keys():
        try:
            block = np.zeros((1, gguf.GGML_QUANT_SIZES[packing][1]), np.uint8)
            gguf.dequantize(block, packing)
        except NotImplementedError:
            raise ValueError(
                f"{path} has tensors packed as {packing.name}, which the gguf package "
                "cannot unpack: use a file of F16, Q8_0, Q4_0, Q4_1 or K-quants"
            ) from None


def _refuse_stray(path: Path) -> None:
    """Name what often lies where a file should be: nothing, a web page, a pointer."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if not start:
        raise ValueError(f"{path} is empty: get it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is a web page, not what its name says: the download was answered "
            "with a page (a login or an error); get it again"
        )
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer: run `git lfs pull` beside it")


def _first_line(error: Exception) -> str:
    return shown(str(error).strip().split("\n")[0] or type(error).__name__)


LARGEST_MODEL, MOST_LAYERS = 10**13, 10**4
# Numbers of a GGUF tensor: few enough that what they need does not count in memory.
_UNPACKED_AT_ONCE = 1 << 20
_MAPPED_AT_ONCE = 1 << 28  # bytes of Meta's files

_GGUF_FLOATS = {
    Packing.F32: torch.float32,
    Packing.F16: torch.float16,
    Packing.BF16: torch.bfloat16,
    Packing.F64: torch.float64,
}
_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
