"""A name, a folder or a file becomes a model and its tokenizer."""

from pathlib import Path

import torch

from minillama import hub, weights
from minillama.model import Llama, Parts
from minillama.tokenizer import Tokenizer


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parts: Parts = Parts(),  # noqa: B008 - frozen, so one for all is safe
    quantize: str | None = None,
) -> tuple[Llama, Tokenizer]:
    """Load a model and its tokenizer: a pulled name, a folder, or a GGUF file.

    `dtype` is by default the one that the file's weights are in, float32 where they are
    packed; `device` the GPU if there is one. `parts` puts a learner's code in. Raises
    ValueError for what is not here, saying how to get it, before anything is built.
    """
    if quantize is not None:
        raise ValueError(
            f"quantize is {quantize!r}: None is the only value until minillama.quantize"
        )
    path = hub.resolve(name_or_path)
    tokenizer = load_tokenizer(path)
    return load_model(path, dtype=dtype, device=device, parts=parts), tokenizer


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parts: Parts = Parts(),  # noqa: B008 - frozen, so one for all is safe
) -> Llama:
    """Load the weights alone: a folder without a tokenizer is fine."""
    path = hub.resolve(name_or_path)
    return weights.load_model(
        path, dtype=dtype, device=device or best_device(), parts=parts
    )


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
