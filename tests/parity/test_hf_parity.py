"""Llama through the real loader, against transformers, in float32.

transformers writes a random model with loud weights, the library loads the folder; and
the other way round. Logits have a standard deviation of one or more.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Packing
from loud import loud_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from weight_files import write_gguf

from minillama.cache import KVCache
from minillama.config import RopeScaling
from minillama.weights import load_model, save_weights

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

OLD_CONTEXT = 32
TOKENS = 96
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": OLD_CONTEXT,
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "a KV head for each query": {"num_key_value_heads": 6},
    "one KV head": {"num_key_value_heads": 1},
    "Llama 3.1 scaling": {"rope_parameters": SCALED},
    "tied": {"tie_word_embeddings": True},
    "tied and scaled": {"tie_word_embeddings": True, "rope_parameters": SCALED},
    "heads wider than dim / n_heads": {"head_dim": 32},
    "heads narrower": {"hidden_size": 192, "head_dim": 16},
    "another theta and eps": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "rms_norm_eps": 1e-2,
    },
}


def loud_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random model of transformers' own on which mistakes show."""
    values = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 131,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**(values | changes))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
    return model


def some_tokens(vocab_size: int = 131) -> torch.Tensor:
    return torch.randint(vocab_size, (2, TOKENS), generator=torch.manual_seed(7))


def assert_same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.9
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_a_folder_of_transformers_gives_its_logits(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    theirs = loud_llama(**shape)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens = some_tokens()
    wanted = theirs(tokens).logits
    assert_same_logits(ours(tokens), wanted)
    # In pieces, through the caches, and the last token by itself.
    caches = KVCache.for_model(ours.config, batch=2)
    pieces = [ours(part, caches) for part in tokens.split([40, TOKENS - 41, 1], 1)]
    assert_same_logits(torch.cat(pieces, 1), wanted)


@torch.inference_mode()
def test_a_sharded_folder_of_transformers_gives_its_logits(tmp_path: Path) -> None:
    theirs = loud_llama()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    tokens = some_tokens()
    assert_same_logits(load_model(tmp_path)(tokens), theirs(tokens).logits)


@torch.inference_mode()
def test_the_older_spelling_of_the_config_is_read_alike(tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta and rope_scaling beside each other."""

    theirs = loud_llama(rope_parameters=SCALED)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    file.write_text(json.dumps(config))
    tokens = some_tokens()
    assert_same_logits(load_model(tmp_path)(tokens), theirs(tokens).logits)


SCALING = RopeScaling(original_max_seq_len=OLD_CONTEXT)
OURS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "scaled": {"rope_scaling": SCALING},
    "tied": {"tied_embeddings": True},
    "tied and scaled": {"tied_embeddings": True, "rope_scaling": SCALING},
    "wide heads": {"head_dim": 32},
}


@pytest.mark.parametrize("shape", OURS.values(), ids=OURS)
@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
@torch.inference_mode()
def test_transformers_opens_what_we_save(
    shape: dict[str, Any], shard_bytes: int, tmp_path: Path
) -> None:
    ours = loud_model(**shape)
    save_weights(ours, tmp_path, shard_bytes=shard_bytes)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.dtype == torch.float32
    tokens = some_tokens()
    wanted = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), wanted, rtol=0, atol=1e-5)
    assert wanted.std() > 0.9


@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_a_gguf_file_means_the_same_to_transformers(tied: bool, tmp_path: Path) -> None:
    """The order of the query and key rows in such a file is Meta's, not their own."""
    pytest.importorskip("accelerate", reason="transformers wants it to read GGUF files")
    model = loud_model(dim=96, ffn_dim=64, tied_embeddings=tied)
    write_gguf(tmp_path / "model.gguf", model, Packing.Q8_0)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    tokens = some_tokens()
    ours = load_model(tmp_path / "model.gguf")
    assert_same_logits(ours(tokens), theirs(tokens).logits)


def test_transformers_opens_bfloat16_as_bfloat16(tmp_path: Path) -> None:
    save_weights(loud_model().bfloat16(), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
