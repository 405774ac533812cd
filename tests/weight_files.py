"""Write small models in the formats of others, with others' writers where there are."""

import json
import math
import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Packing
from torch import Tensor

from benchmarks.big import add_config
from minillama.config import LlamaConfig
from minillama.model import Llama

# Meta cuts these along the outputs, those along the inputs, and copies the rest.
META_AXIS = {"wq": 0, "wk": 0, "wv": 0, "w_gate": 0, "w_up": 0, "wo": 1, "w_down": 1}
META_AXIS |= {"tok_embeddings": 0, "output": 0}
META_FEED_FORWARD = {"w_gate": "w1", "w_up": "w3", "w_down": "w2"}

GGUF_PARTS = {
    "attention_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w_gate": "ffn_gate",
    "w_up": "ffn_up",
    "w_down": "ffn_down",
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
}


def weights_of(model: Llama) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def write_meta(folder: Path, model: Llama, shards: int = 1, **params: object) -> Path:
    """Meta's folder, cut as Llama 3's model-parallel shards are."""
    c = model.config
    folder.mkdir(parents=True)
    content = {
        "dim": c.dim,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "vocab_size": c.vocab_size,
        "multiple_of": 1,
        "ffn_dim_multiplier": (c.ffn_dim + 0.5) / int(8 * c.dim / 3),
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
    } | params
    if c.rope_scaling:
        content["use_scaled_rope"] = True
        if c.rope_scaling.factor != 8:
            content["rope_scaling_factor"] = c.rope_scaling.factor
    (folder / "params.json").write_text(json.dumps(content))
    for shard in range(shards):
        tensors = {}
        for name, weight in weights_of(model).items():
            part = name.split(".")[-2]
            if part in META_AXIS and shards > 1:
                weight = weight.chunk(shards, META_AXIS[part])[shard].clone()
            foreign = name.replace(part, META_FEED_FORWARD.get(part, part))
            tensors[foreign] = weight.clone()
        torch.save(tensors, folder / f"consolidated.{shard:02}.pth")
    return folder


def llama_cpp_factors(config: LlamaConfig) -> np.ndarray:
    """What a GGUF file's rope_freqs.weight holds, after the words of arXiv 2407.21783:
    1 for fast pairs, the factor for slow ones, a blend of the frequencies between."""
    s = config.rope_scaling
    assert s is not None
    factors = []
    for i in range(config.head_dim // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * i / config.head_dim)
        if wavelength < s.original_max_seq_len / s.high_freq_factor:
            factors.append(1.0)
        elif wavelength > s.original_max_seq_len / s.low_freq_factor:
            factors.append(s.factor)
        else:
            turns = s.original_max_seq_len / wavelength
            kept = (turns - s.low_freq_factor) / (
                s.high_freq_factor - s.low_freq_factor
            )
            factors.append(1 / ((1 - kept) / s.factor + kept))
    return np.array(factors, np.float32)


def write_gguf(
    path: Path, model: Llama, packing: Packing, **extra: np.ndarray
) -> dict[str, Tensor]:
    """A GGUF file by the gguf package; returns what each native tensor now is worth."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    add_config(writer, c)
    if c.rope_scaling:
        extra = {"rope_freqs.weight": llama_cpp_factors(c)} | extra
    for name, array in extra.items():
        writer.add_tensor(name, array)
    worth = {}
    for native, weight in weights_of(model).items():
        part = native.split(".")[-2]
        foreign = native.replace("layers.", "blk.").replace(".attention.", ".")
        foreign = foreign.replace(".feed_forward.", ".").replace(part, GGUF_PARTS[part])
        array = weight.float().numpy()
        kind = Packing.F32 if array.ndim == 1 else packing
        blocks = pack(array, kind)
        writer.add_tensor(foreign, blocks, raw_dtype=kind)
        # Blocks come back as the gguf package itself unpacks them.
        worth[native] = torch.from_numpy(gguf.dequantize(blocks, kind).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return worth


def pack(array: np.ndarray, kind: Packing) -> np.ndarray:
    """Quantise; the gguf package cannot write K-quants, so theirs are random blocks."""
    try:
        return gguf.quantize(array, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (array.shape[0], array.shape[1] // block, size)
        random = np.random.default_rng(array.size)
        blocks = random.integers(0, 256, shape, np.uint8)
        # Each block has its scales as half floats somewhere; these stay finite.
        halves = blocks.view(np.float16)
        halves[~(np.abs(halves) < 100)] = 0.01
        return blocks.reshape(array.shape[0], -1)


def gguf_header(n_tensors: int, n_metadata: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_metadata) + rest
