"""The files and tokens that all contenders of a run share."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.rows import Inputs

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "benchmarks"
TOKENS = 2048


def smollm2(threads: int, quick: bool = False) -> Inputs:
    """SmolLM2's own file, and the same weights as a folder in bfloat16."""
    from minillama import api, hub
    from minillama.weights import save_weights

    gguf = hub.resolve("smollm2-135m")
    folder = BUILD / "smollm2-bf16"
    tokenizer = api.load_tokenizer(gguf)
    if not (folder / "config.json").exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        model = api.load_model(gguf, dtype=torch.bfloat16, device="cpu")
        save_weights(model, folder, tokenizer)
    return Inputs(gguf, folder, tokenizer.encode(text())[:TOKENS], threads, quick)


def text() -> str:
    """Stories that the course's own teller tells: the same on every machine."""
    from minillama.course.tales import World, tales

    return "\n\n".join(tales(World.load(ROOT / "data" / "tales.toml"), 1, 60))


def with_big(inputs: Inputs, folder: Path) -> Inputs:
    """The same with the files of the 8B model in `folder`, which must be there."""
    from benchmarks.big import GGUF

    if not (folder / GGUF).exists():
        raise SystemExit(
            f"{folder} has no {GGUF}: make it with python -m benchmarks.big {folder}"
        )
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(vocab_size, (64,), generator=generator)
    files = {"gguf": folder / GGUF, "folder": folder, "ids": ids.tolist()}
    return replace(inputs, big=files)
