"""Fill a model from a file, whatever its dialect, and write it as Hugging Face does.

The model drives: for each of its parameters one tensor is pulled from the file, brought
into our order of rows, and put in place. So a load costs one tensor more than the
weights, a learner's own part is filled like the library's, and whatever does not fit is
known, with all its names, before anything large is built.
"""

import json
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minillama.config import LlamaConfig
from minillama.fast import quantized
from minillama.formats import Entry, GgufReader, Reader, open_reader, read_config
from minillama.gguf_file import shown
from minillama.model import Llama, Parts
from minillama.names import DIALECTS, from_dialect, name_table, to_dialect
from minillama.quantize import from_blocks, joined, maker
from minillama.swap import swap_modules

if TYPE_CHECKING:
    from minillama.tokenizer import Tokenizer

__all__ = ["load_model", "load_weights", "name_table", "read_config", "save_weights"]


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parts: Parts = Parts(),  # noqa: B008 - frozen, so one for all is safe
    quantize: str | None = None,
) -> Llama:
    """Build the model that lies at `path`: a GGUF file, or a folder of weights.

    `dtype` is by default that of the file's embeddings, which is float32 where they
    are packed; `device` is by default the CPU, where weights that need no change stay
    mapped from the file. With `quantize`, "int8" or "int4", each Linear is quantised as
    soon as its weight is read, and "int4" takes the Q4_0, Q4_1 and Q8_0 of a GGUF file
    as they are; `dtype` is that of the rest, bfloat16 by default. Raises
    FileNotFoundError and ValueError, before anything large is built.
    """
    if quantize is not None:
        maker(quantize)  # raises for a kind that there is not
    reader = open_reader(path)
    with torch.device("meta"), _EmptyOnMeta():
        model = Llama(reader.config)
    _refuse_misfits(model, reader)
    if parts != Parts():
        with _EmptyOnMeta():
            model = Llama(reader.config, parts)
        _refuse_misfits(model, reader)
        _refuse_empty(model)
    dtype = dtype or (torch.bfloat16 if quantize else _own_dtype(reader))
    for native, foreign, owners in _pairs(model, reader):
        linears = [m for m, _ in owners if quantize and type(m) is nn.Linear]
        if linears and quantize:
            tied = len(owners) > len(linears)
            small = _quantised(reader, native, foreign, quantize, tied, device or "cpu")
            _put(model, linears, small)
        rest = [(module, leaf) for module, leaf in owners if module not in linears]
        if rest:
            # Moved first: rows are put in order, and numbers converted, where they
            # stay.
            weight = _pull(reader, native, foreign, device or "cpu", dtype)
            _assign(rest, weight.to(dtype))
    return model.to(device or "cpu").eval()


def load_weights(model: Llama, path: str | Path) -> None:
    """Fill a model of the same architecture from a GGUF file or a folder of weights.

    Parameters that have memory keep their dtype and device; those on the meta device
    take the file's dtype, on the CPU. Raises as `load_model` does.
    """
    reader = open_reader(path)
    _refuse_other_config(asdict(model.config), asdict(reader.config), path)
    _refuse_misfits(model, reader)
    for native, foreign, owners in _pairs(model, reader):
        old = getattr(*owners[0])
        weight = _pull(reader, native, foreign, "cpu" if old.is_meta else old.device)
        if old.is_meta:
            _assign(owners, weight.to(_own_dtype(reader)))
        else:
            with torch.no_grad():
                old.copy_(weight)


def save_weights(
    model: Llama,
    folder: str | Path,
    tokenizer: "Tokenizer | None" = None,
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that Hugging Face's `transformers` opens, and `load_model` too.

    Above `shard_bytes` the weights go to several files with an index. The folder
    appears when it is whole; one that this function wrote earlier is replaced then, and
    keeps its tokenizer where none is given. Raises ValueError for a folder that holds
    other things, and for a model that is no plain Llama or has no weights yet.
    """
    weights = _plain_weights(model)
    with _replacing(Path(folder).resolve()) as new:
        ids = {
            "bos_token_id": tokenizer and tokenizer.bos_id,
            "eos_token_id": tokenizer and sorted(tokenizer.stop_ids),
        }
        dtype = str(model.tok_embeddings.weight.dtype).removeprefix("torch.")
        _write_json(
            new / "config.json", {**model.config.to_hf(), "dtype": dtype, **ids}
        )
        if tokenizer:
            tokenizer.save_hf(new)
            _write_json(new / "generation_config.json", ids)
        _write_shards(model.config, weights, new, shard_bytes)


def _plain_weights(model: Llama) -> dict[str, Tensor]:
    """The parameters by name, if they are those of a plain Llama."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    different = weights.keys() ^ name_table(model.config, "hf").keys()
    if different:
        raise ValueError(
            "this is no plain Llama, its parameters differ in "
            f"{', '.join(_fold(different))}: undo quantisation and merge adapters first"
        )
    if empty := _fold(name for name, weight in weights.items() if weight.is_meta):
        raise ValueError(f"there are no weights to save yet in {', '.join(empty)}")
    return weights


def _write_shards(
    config: LlamaConfig, weights: dict[str, Tensor], folder: Path, shard_bytes: int
) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    for name, weight in weights.items():
        if shards[-1] and size + weight.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weight.nbytes
    table = name_table(config, "hf")
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        weight_map |= {table[name]: file for name in names}
        tensors = {
            table[name]: to_dialect(weights[name], name, "hf", config.head_dim)
            .contiguous()
            .cpu()
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # safetensors writes for its owner alone; config.json has the usual rights.
        (folder / file).chmod((folder / "config.json").stat().st_mode)
    if len(shards) > 1:
        total = sum(weight.nbytes for weight in weights.values())
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` once it is whole, or is gone."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    present = sorted(folder.iterdir()) if folder.exists() else []
    if strangers := [p.name for p in present if not _SAVED.fullmatch(p.name)]:
        raise ValueError(
            f"{folder} holds {', '.join(strangers[:3])}, which is no part of a saved "
            "model: choose another folder"
        )
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    old = new.with_name(new.name + ".old")
    new.mkdir(parents=True)
    try:
        yield new
        for file in present:
            if (
                _TOKENIZER.fullmatch(file.name)
                and not (new / "tokenizer.json").exists()
            ):
                shutil.copy2(file, new)
        if present:
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


class _EmptyOnMeta(TorchFunctionMode):
    """Give `torch.empty`, from which Linear and Embedding start, no memory.

    A learner's part may hold tensors of its own (a mask, a table of angles), so it
    cannot be built on the meta device as a whole. Nothing is drawn at random there:
    PyTorch would import sympy for that, 70 MB and a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs["device"] = "meta"
        if func is nn.init.normal_:
            weight = next(iter((*args, *kwargs.values())))
            if weight.is_meta:
                return weight
        return func(*args, **kwargs)


def _refuse_empty(model: Llama) -> None:
    for name, module in model.named_modules():
        for key, value in (vars(module) | module._buffers).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise ValueError(
                    f"{name}.{key} is made by torch.empty, which takes no memory while "
                    "a model is loaded: use torch.zeros for it"
                )


def _pairs(
    model: Llama, reader: Reader
) -> Iterator[tuple[str, str, list[tuple[nn.Module, str]]]]:
    """Each parameter's name here and in the file, and all modules that hold it."""
    table = name_table(model.config, reader.dialect)
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, weight in model.named_parameters(remove_duplicate=False):
        names[weight].append(name)  # two, if it is tied
    for same in names.values():
        paths = [name.rpartition(".") for name in same]
        owners = [(model.get_submodule(path), leaf) for path, _, leaf in paths]
        yield same[0], table[same[0]], owners


def _pull(
    reader: Reader,
    native: str,
    foreign: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    weight = reader.get(foreign, dtype).to(device)
    return from_dialect(weight, native, reader.dialect, reader.config.head_dim)


def _quantised(
    reader: Reader,
    native: str,
    foreign: str,
    kind: str,
    tied: bool,
    device: torch.device | str,
) -> nn.Module:
    """The Linear of that weight in few bits: the file's own where 4 are wanted."""
    if kind == "int4" and isinstance(reader, GgufReader):
        own = from_blocks(reader.blocks(foreign), reader.tensors[foreign].type)
        if own is not None:
            return own.to(device)
    if isinstance(reader, GgufReader) and reader.is_packed(foreign):
        # Never whole in float32, which is four to eight times what stays of it.
        parts = reader.unpacked(foreign)
        return joined([quantized(rows, kind, tied=tied) for rows in parts]).to(device)
    weight = _pull(reader, native, foreign, device)
    return quantized(weight, kind, tied=tied)


def _put(model: nn.Module, old: Sequence[nn.Module], new: nn.Module) -> None:
    swap_modules(model, lambda _, module: module in old, lambda _: new, untie=True)


def _own_dtype(reader: Reader) -> torch.dtype:
    return reader.entries[_EMBEDDINGS[reader.dialect][0]].dtype


def _assign(owners: list[tuple[nn.Module, str]], weight: Tensor) -> None:
    old = getattr(*owners[0])
    new = nn.Parameter(weight, requires_grad=old.requires_grad)
    for module, leaf in owners:
        setattr(module, leaf, new)


def _refuse_misfits(model: Llama, reader: Reader) -> None:
    """Name all that is missing, not expected, or of a wrong shape or type."""
    table = name_table(model.config, reader.dialect)
    wanted = {table.get(n, n): tuple(w.shape) for n, w in model.named_parameters()}
    found = {n: e for n, e in reader.entries.items() if not _IGNORED.search(n)}
    _refuse_untied_copy(reader, found)
    both = wanted.keys() & found.keys()
    problems = {
        "missing": _fold(wanted.keys() - found.keys()),
        "not expected": _fold(found.keys() - wanted.keys()),
        "wrong shape": [
            f"{shown(n)} is {found[n].shape} in the file, {wanted[n]} in the model"
            for n in sorted(both)
            if found[n].shape != wanted[n]
        ],
        "no floating-point numbers": _fold(
            n for n in both if not found[n].dtype.is_floating_point
        ),
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{kind}: {shown(', '.join(names), 2000)}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(
            f"the weights in {reader.path} do not fit the model. {listed}. Are config "
            "and weights of the same model, and do all parts bear the library's names?"
        )


def _refuse_untied_copy(reader: Reader, found: dict[str, Entry]) -> None:
    """Some writers store tied embeddings twice: fine, if they are equal."""
    embeddings, output = _EMBEDDINGS[reader.dialect]
    if reader.config.tied_embeddings and output in found and embeddings in found:
        if not torch.equal(reader.get(embeddings), reader.get(output)):
            raise ValueError(
                f"the config of {reader.path} ties the output to the embeddings, but "
                f"{output} differs from {embeddings}: set tie_word_embeddings to false"
            )
        del found[output]


def _refuse_other_config(ours: Any, theirs: Any, path: str | Path) -> None:
    different = [
        f"{key} is {theirs[key]} there, {ours[key]} here"
        for key in ours
        if key != "max_seq_len" and ours[key] != theirs[key]
    ]
    if different:
        raise ValueError(
            f"{path} is of another architecture than the model: {'; '.join(different)}"
        )


def _fold(names: Iterable[str]) -> list[str]:
    """Say layers.0.x, layers.1.x, layers.2.x as layers.0-2.x: 8B has 291 names."""
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in names:
        found = re.fullmatch(r"(.*?\.)(\d{1,6})(\..*)", name)
        head, number, tail = found.groups() if found else (name, 0, "")
        layers[head, tail].append(int(number))
    return [
        shown(head + (_ranges(numbers) if tail else "") + tail)
        for (head, tail), numbers in sorted(layers.items())
    ]


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{r[0]}-{r[-1]}" if r[1:] else str(r[0]) for r in runs)


_TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|"
    r"chat_template\.jinja|generation_config\.json"
)
_SAVED = re.compile(
    r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|"
    + _TOKENIZER.pattern
)
# Tables that older writers stored beside the weights, and GGUF's RoPE scaling.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|^rope\.freqs$|^rope_freqs\.weight$")
_EMBEDDINGS = {dialect: (names[0], names[-1]) for dialect, names in DIALECTS.items()}
