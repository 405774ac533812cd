"""The configuration: three dialects, final values, nothing passed over in silence."""

import dataclasses
from typing import Any

import pytest
import torch
from loud import small_config

from minillama.config import PRESETS, LlamaConfig, RopeScaling

# params.json as Meta published them.
META_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
}
META_70B = META_8B | {
    "dim": 8192,
    "n_layers": 80,
    "n_heads": 64,
    "multiple_of": 4096,
}
META_405B = META_8B | {
    "dim": 16384,
    "n_layers": 126,
    "n_heads": 128,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.2,
    "use_scaled_rope": True,
}
META_1B = META_8B | {
    "dim": 2048,
    "n_layers": 16,
    "multiple_of": 256,
    "ffn_dim_multiplier": 1.5,
    "use_scaled_rope": True,
    "rope_scaling_factor": 32.0,
}


@pytest.mark.parametrize(
    ("params", "preset"),
    [
        (META_8B, "llama3-8b"),
        (META_70B, "llama3-70b"),
        (META_8B | {"use_scaled_rope": True}, "llama3.1-8b"),
        (META_70B | {"use_scaled_rope": True}, "llama3.1-70b"),
        (META_405B, "llama3.1-405b"),
    ],
)
def test_metas_params_become_the_preset(params: dict[str, Any], preset: str) -> None:
    assert LlamaConfig.from_meta(params) == LlamaConfig.preset(preset)


def test_metas_params_do_not_know_tied_embeddings() -> None:
    want = LlamaConfig.preset("llama3.2-1b")
    got = LlamaConfig.from_meta(META_1B)
    assert got == dataclasses.replace(want, tied_embeddings=False)


def test_eight_billion_and_its_cache() -> None:
    config = LlamaConfig.preset("llama3-8b")
    assert config.n_params() == 8_030_261_248
    assert config.n_params() == 32 * 218_112_000 + 2 * 525_336_576 + 4_096
    assert config.kv_cache_bytes(tokens=8192, dtype=torch.bfloat16) == 2**30
    assert config.n_rep == 4


@pytest.mark.parametrize("name", PRESETS)
def test_hugging_face_reads_what_to_hf_writes(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = LlamaConfig.preset(name)
    theirs = transformers.LlamaConfig(**config.to_hf())
    assert LlamaConfig.from_hf(theirs.to_dict()) == config


@pytest.mark.parametrize("name", PRESETS)
def test_either_spelling_of_rope_is_enough(name: str) -> None:
    """transformers 4 knows rope_theta and rope_scaling, 5 rope_parameters."""
    config = LlamaConfig.preset(name)
    newer, older = config.to_hf(), config.to_hf()
    for key in ("rope_theta", "rope_scaling"):
        newer.pop(key, None)
    older.pop("rope_parameters")
    assert older["rope_theta"] == config.rope_theta
    assert LlamaConfig.from_hf(newer) == LlamaConfig.from_hf(older) == config


OLD_SPELLING = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}


def test_both_hugging_face_spellings() -> None:
    want = LlamaConfig.preset("llama3.1-8b")
    assert LlamaConfig.from_hf(OLD_SPELLING) == want
    new = {k: v for k, v in OLD_SPELLING.items() if not k.startswith("rope")}
    rope = OLD_SPELLING["rope_scaling"] | {"rope_theta": 500000.0}
    assert LlamaConfig.from_hf(new | {"rope_parameters": rope}) == want
    plain = OLD_SPELLING | {"rope_scaling": None, "max_position_embeddings": 8192}
    assert LlamaConfig.from_hf(plain) == LlamaConfig.preset("llama3-8b")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sliding_window": 4096}, "does not know: sliding_window"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"model_type": "mistral"}, "another architecture"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
        ({"num_key_value_heads": 5}, "share 5 KV heads"),
        ({"vocab_size": "many"}, "vocab_size must be a positive number"),
        ({"num_hidden_layers": -1}, "n_layers must be a positive number"),
        ({"head_dim": 3}, "odd"),
    ],
)
def test_a_hugging_face_config_is_refused(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        LlamaConfig.from_hf(OLD_SPELLING | change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": -1}, "Llama 1 or 2"),
        ({"moe_args": {}}, "does not know: moe_args"),
        ({"dim": None}, "lacks dim"),
    ],
)
def test_metas_params_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LlamaConfig.from_meta(META_8B | change)


GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.vocab_size": 49152,
    "llama.rope.dimension_count": 64,
}


def test_gguf_metadata_become_the_preset() -> None:
    want = LlamaConfig.preset("smollm2-135m")
    assert LlamaConfig.from_gguf(GGUF, tied=True) == want
    words = {k: v for k, v in GGUF.items() if k != "llama.vocab_size"}
    words["tokenizer.ggml.tokens"] = ["x"] * 49152
    assert LlamaConfig.from_gguf(words, tied=True) == want


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"general.architecture": "qwen2"}, "'qwen2'"),
        ({"llama.expert_count": 8}, "does not know: expert_count"),
        ({"llama.rope.dimension_count": 32}, "turns 32 of 64"),
        ({"llama.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"llama.block_count": None}, "lacks block_count"),
    ],
)
def test_gguf_metadata_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LlamaConfig.from_gguf(GGUF | change, tied=True)


def test_a_config_is_final() -> None:
    config = small_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 1  # type: ignore[misc]


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="llama3-8b, llama3-70b"):
        LlamaConfig.preset("llama4")


def test_scaling_factors_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="must be below"):
        RopeScaling(low_freq_factor=4.0, high_freq_factor=1.0)
