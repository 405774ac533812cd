"""The files of a full-size 8B in random weights: bfloat16 shards, and a GGUF file.

    python -m benchmarks.big build/8b                 # 21 GB of disk, minutes
    python -m benchmarks.big build/trial --layers 2   # a trial
    python -m benchmarks.big build/8b --only-gguf --packing Q4_1

The folder is the one that tests/big/eight_b.py writes. The GGUF file holds the same
weights, rounded to 4 bits by the gguf package, and Llama 3's tokenizer, without which
llama.cpp opens no file.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Packing
from rich.progress import track

from minillama.config import LlamaConfig
from minillama.names import name_table
from minillama.tokenizer import Tokenizer
from minillama.weights import load_model

ROOT = Path(__file__).resolve().parents[1]
GGUF = "model.gguf"
CHUNK = 1 << 24  # numbers that are packed at once


def write_folder(folder: Path, config: LlamaConfig) -> None:
    """Random weights in bfloat16, laid out as transformers does."""
    sys.path.insert(0, str(ROOT / "tests" / "big"))
    import eight_b  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    eight_b.write_folder(folder, config)


def write_gguf(
    folder: Path, path: Path, packing: Packing, tokenizer: Tokenizer | None
) -> None:
    """The weights of `folder` in one GGUF file, a piece of a tensor at a time."""
    model = load_model(folder, device="cpu")  # stays mapped from the file
    writer = gguf.GGUFWriter(path, "llama")
    add_config(writer, model.config)
    if tokenizer:
        add_tokenizer(writer, tokenizer, model.config.vocab_size)
    names = name_table(model.config, "gguf")
    weights = {
        names[native]: (weight.detach(), packing if weight.dim() > 1 else Packing.F32)
        for native, weight in model.named_parameters()
    }
    for name, (weight, kind) in weights.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (*weight.shape[:-1], weight.shape[-1] // block * size)
        dtype = np.float32 if kind == Packing.F32 else np.uint8
        if kind == Packing.F32:
            shape = tuple(weight.shape)
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(name, shape, np.dtype(dtype), nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for weight, kind in track(weights.values(), "packing"):
        writer.write_tensor_data(packed(weight, kind))
    writer.close()


def packed(weight: torch.Tensor, kind: Packing) -> np.ndarray[Any, Any]:
    """A tensor in blocks, rounded piece by piece: float32 needs four times the room."""
    rows = max(1, CHUNK // weight[0].numel()) if weight.dim() > 1 else len(weight)
    return np.concatenate(
        [gguf.quantize(part.float().numpy(), kind) for part in weight.split(rows)]
    )


def add_config(writer: gguf.GGUFWriter, c: LlamaConfig) -> None:
    writer.add_block_count(c.n_layers)
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_feed_forward_length(c.ffn_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_vocab_size(c.vocab_size)


def add_tokenizer(writer: gguf.GGUFWriter, t: Tokenizer, vocab_size: int) -> None:
    """The tokens as GGUF spells them: taken from the folder that `save_hf` writes."""
    with tempfile.TemporaryDirectory() as folder:
        t.save_hf(folder)
        saved = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))
    tokens = [f"<|unused_{id}|>" for id in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    spelled = dict(saved["model"]["vocab"])
    special = {token["content"]: token["id"] for token in saved["added_tokens"]}
    for kind, table in (
        (gguf.TokenType.NORMAL, spelled),
        (gguf.TokenType.CONTROL, special),
    ):
        for token, id in table.items():
            if id < vocab_size:
                tokens[id], types[id] = token, kind
    merges = [
        m if isinstance(m, str) else " ".join(m) for m in saved["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(special["<|begin_of_text|>"])
    writer.add_eos_token_id(special["<|end_of_text|>"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--packing", choices=["Q4_0", "Q4_1", "Q8_0"], default="Q4_0")
    parser.add_argument("--only-gguf", action="store_true", help="the shards are there")
    args = parser.parse_args()
    from dataclasses import replace

    from minillama import hub

    if not args.only_gguf:
        preset = LlamaConfig.preset("llama3-8b")
        write_folder(args.folder, replace(preset, n_layers=args.layers))
    tokenizer = Tokenizer.from_file(hub.resolve("llama3-tokenizer"))
    unfinished = args.folder / (GGUF + ".unfinished")
    write_gguf(args.folder, unfinished, Packing[args.packing], tokenizer)
    unfinished.replace(args.folder / GGUF)


if __name__ == "__main__":
    main()
