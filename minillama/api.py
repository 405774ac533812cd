"""A name, a folder or a file becomes a model and its tokenizer."""

import warnings
from pathlib import Path

import torch

from minillama import hub, weights
from minillama.compiled import compile_model
from minillama.model import Llama, Parts
from minillama.tokenizer import Tokenizer


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parts: Parts = Parts(),  # noqa: B008 - frozen, so one for all is safe
    quantize: str | None = None,
    compile: bool | None = None,
) -> tuple[Llama, Tokenizer]:
    """Load a model and its tokenizer: a pulled name, a folder, or a GGUF file.

    `dtype` is by default the one that the file's weights are in, float32 where they are
    packed; `device` the GPU if there is one. `parts` puts a learner's code in.

    `quantize` "int8" or "int4" makes each weight small as it is read; the rest is then
    in bfloat16 by default. `compile` makes decoding faster where a compiler is at hand:
    by default if the weights are quantised. Where there is none, the model runs as it
    is; `compile=True` then warns.

    Raises ValueError for what is not here, saying how to get it, before anything is
    built.
    """
    path = hub.resolve(name_or_path)
    tokenizer = load_tokenizer(path)
    model = load_model(
        path,
        dtype=dtype,
        device=device,
        parts=parts,
        quantize=quantize,
        compile=compile,
    )
    return model, tokenizer


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parts: Parts = Parts(),  # noqa: B008 - frozen, so one for all is safe
    quantize: str | None = None,
    compile: bool | None = None,
) -> Llama:
    """Load the weights alone: a folder without a tokenizer is fine."""
    path = hub.resolve(name_or_path)
    model = weights.load_model(
        path,
        dtype=dtype,
        device=device or best_device(),
        parts=parts,
        quantize=quantize,
    )
    if compile or (compile is None and quantize):
        compiled = compile_model(model, wait=bool(compile))
        if compile and not compiled.done:
            warnings.warn(f"{compiled}; the model runs as it is", stacklevel=2)
    return model


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer that lies in a GGUF file, in a folder, or is a file itself."""
    path = hub.resolve(name_or_path)
    if path.suffix == ".gguf":
        return Tokenizer.from_gguf(path)
    if path.is_file():
        return Tokenizer.from_file(path)
    if (path / "tokenizer.json").exists():
        return Tokenizer.from_hf(path)
    if (path / "tokenizer.model").exists():
        return Tokenizer.from_file(path / "tokenizer.model")
    raise ValueError(
        f"{path} has no tokenizer (tokenizer.json or tokenizer.model): copy it there, "
        "or load the weights alone with load_model"
    )


def best_device() -> str:
    """ "cuda" where there is one, else "mps" (Apple), else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
