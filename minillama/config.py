"""What defines a Llama, and nothing else: no dtype, no device, no batch size, no path.

Three dialects of configuration are read (`from_meta`, `from_hf`, `from_gguf`). All end
in the same frozen `LlamaConfig`, whose values are final: Meta's `ffn_dim_multiplier`
has become an `ffn_dim`. An unknown key is an error, since a key that is passed over in
silence is a model that is wrong in silence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol


class SizedDtype(Protocol):
    """Anything that knows its bytes an element, such as a `torch.dtype`."""

    @property
    def itemsize(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 and 3.2 stretch RoPE to a longer context than they were trained on.

    Clocks that turn more than `high_freq_factor` times within the old context are kept,
    those that turn less than `low_freq_factor` times are slowed by `factor`, and those
    between are blended. Source: The Llama 3 Herd of Models (arXiv 2407.21783) and
    Meta's released code.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        _positive(self)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below "
                f"high_freq_factor {self.high_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The architecture of one Llama, in Meta's names and with final values only.

    `dim` is the width of the residual stream, `n_kv_heads` the heads of keys and
    values that `n_heads` query heads share, `ffn_dim` the inner width of SwiGLU,
    `max_seq_len` the context in tokens, `rope_theta` the base of the RoPE frequencies.
    Raises ValueError for values that no Llama can have.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        _positive(self)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_heads} query heads cannot share {self.n_kv_heads} KV heads "
                "evenly: n_heads must be a multiple of n_kv_heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} is odd, and RoPE turns pairs: "
                "choose an even head_dim"
            )

    @property
    def n_rep(self) -> int:
        """How many query heads share one KV head."""
        return self.n_heads // self.n_kv_heads

    def n_params(self) -> int:
        """Count the parameters, tied embeddings once."""
        attention = self.dim * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tied_embeddings else 2)
        return self.n_layers * layer + embeddings + self.dim

    def kv_cache_bytes(self, *, tokens: int, dtype: SizedDtype, batch: int = 1) -> int:
        """Bytes of the keys and values of `tokens` tokens in all layers."""
        a_token = 2 * self.n_layers * self.n_kv_heads * self.head_dim * dtype.itemsize
        return a_token * tokens * batch

    @classmethod
    def preset(cls, name: str) -> "LlamaConfig":
        """The published architecture of that name, such as "llama3-8b"."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: there are {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_meta(cls, params: Mapping[str, Any]) -> "LlamaConfig":
        """Read Meta's `params.json`.

        The file holds neither the context nor the scaling factor: 8,192 tokens without
        scaled RoPE (Llama 3), 131,072 and factor 8 with it (Llama 3.1). Llama 3.2
        stretches by 32: add `"rope_scaling_factor": 32` to its params.json, or load it
        from a Hugging Face folder, which says so itself.
        """
        known = _META_KEYS | _META_IGNORED
        _refuse_unknown("params.json", params, known)
        _require("params.json", params, ("dim", "n_layers", "n_heads", "vocab_size"))
        if params["vocab_size"] <= 0:
            raise ValueError(
                f"params.json has vocab_size {params['vocab_size']}: that is Llama 1 "
                "or 2, whose vocabulary lies in a SentencePiece file; use Llama 3 on"
            )
        dim = params["dim"]
        # Two thirds of 4 x dim, since SwiGLU has three matrices where others have two;
        # then stretched and rounded up, as Meta's own code does it.
        ffn_dim = int((params.get("ffn_dim_multiplier") or 1.0) * int(2 * 4 * dim / 3))
        multiple_of = params.get("multiple_of", 256)
        scaled = bool(params.get("use_scaled_rope", False))
        scaling = RopeScaling(factor=params.get("rope_scaling_factor", 8.0))
        return cls(
            dim=dim,
            n_layers=params["n_layers"],
            n_heads=params["n_heads"],
            n_kv_heads=params.get("n_kv_heads") or params["n_heads"],
            head_dim=dim // params["n_heads"],
            ffn_dim=-(-ffn_dim // multiple_of) * multiple_of,
            vocab_size=params["vocab_size"],
            max_seq_len=131_072 if scaled else 8192,
            rope_theta=float(params.get("rope_theta", 500_000.0)),
            norm_eps=params.get("norm_eps", 1e-5),
            rope_scaling=scaling if scaled else None,
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Read a Hugging Face `config.json`, in its older and its newer spelling.

        Older files have `rope_theta` and `rope_scaling`, newer ones put both into
        `rope_parameters`. What this Llama does not do (biases, other activations,
        other RoPE types) is refused, not passed over.
        """
        name = "config.json"
        _refuse_unknown(name, config, _HF_KEYS | set(_HF_FIXED) | _HF_IGNORED)
        for key, wanted in _HF_FIXED.items():
            if config.get(key, wanted) != wanted:
                raise ValueError(
                    f"{name} has {key} = {config[key]!r}, a Llama has {wanted!r}: "
                    "this is another architecture"
                )
        _require(name, config, _HF_REQUIRED)
        rope: Mapping[str, Any] = (
            config.get("rope_parameters") or config.get("rope_scaling") or {}
        )
        dim, n_heads = config["hidden_size"], config["num_attention_heads"]
        return cls(
            dim=dim,
            n_layers=config["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=config.get("num_key_value_heads") or n_heads,
            head_dim=config.get("head_dim") or dim // n_heads,
            ffn_dim=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_seq_len=config["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            norm_eps=config["rms_norm_eps"],
            tied_embeddings=config.get("tie_word_embeddings", False),
            rope_scaling=_hf_scaling(rope),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, tied: bool) -> "LlamaConfig":
        """Read the metadata of a GGUF file.

        GGUF has no key for tied embeddings: the file then lacks the tensor
        `output.weight`, and the reader says so by `tied`. Nor has it Llama 3.1's
        scaling: such files carry a tensor `rope_freqs.weight`, which `weights.py`
        turns into a `RopeScaling`.
        """
        name = "the GGUF metadata"
        if metadata.get("general.architecture") != "llama":
            raise ValueError(
                f"{name} says architecture "
                f"{metadata.get('general.architecture')!r}, needed is 'llama'"
            )
        own = {
            k.removeprefix("llama."): v
            for k, v in metadata.items()
            if k.startswith("llama.")
        }
        _refuse_unknown(name, own, _GGUF_KEYS | _GGUF_IGNORED)
        _require(name, own, _GGUF_REQUIRED)
        dim, n_heads = own["embedding_length"], own["attention.head_count"]
        head_dim = own.get("attention.key_length", dim // n_heads)
        if own.get("rope.dimension_count", head_dim) != head_dim:
            raise ValueError(
                f"{name} turns {own['rope.dimension_count']} of {head_dim} numbers of "
                "a head: a Llama turns all"
            )
        if own.get("rope.scaling.type", "none") != "none":
            raise ValueError(
                f"{name} has rope.scaling.type {own['rope.scaling.type']!r}: a Llama "
                "3.1 file has none here, but a tensor rope_freqs.weight"
            )
        vocab_size = own.get("vocab_size") or len(
            metadata.get("tokenizer.ggml.tokens", ())
        )
        return cls(
            dim=dim,
            n_layers=own["block_count"],
            n_heads=n_heads,
            n_kv_heads=own.get("attention.head_count_kv", n_heads),
            head_dim=head_dim,
            ffn_dim=own["feed_forward_length"],
            vocab_size=vocab_size,
            max_seq_len=own["context_length"],
            rope_theta=float(own.get("rope.freq_base", 10_000.0)),
            # Stored as float32: 9.99999975e-06 was 1e-5 when it was written.
            norm_eps=float(f"{own['attention.layer_norm_rms_epsilon']:.6g}"),
            tied_embeddings=tied,
        )

    def to_hf(self) -> dict[str, Any]:
        """The Hugging Face `config.json` of this architecture.

        RoPE stands in both spellings: transformers 4 reads the older one alone, and
        would else take a base of 10,000 in silence.
        """
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            rope |= asdict(self.rope_scaling) | {"rope_type": "llama3"}
            rope["original_max_position_embeddings"] = rope.pop("original_max_seq_len")
        older: dict[str, Any] = {"rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            older["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_seq_len,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied_embeddings,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rope_parameters": rope,
            **older,
        }


def _hf_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(
            f"config.json has RoPE of type {kind!r}: this library knows 'default' "
            "and 'llama3'"
        )
    _require("rope_scaling in config.json", rope, _HF_ROPE_REQUIRED)
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_seq_len=rope["original_max_position_embeddings"],
    )


def _positive(config: Any) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in ("tied_embeddings", "rope_scaling"):
            continue
        kinds = int if field.type is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise ValueError(f"{field.name} must be a positive number, not {value!r}")


def _refuse_unknown(where: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f"{where} has keys that this library does not know: {', '.join(unknown)}; "
            "they may change what the model computes, so it is not built"
        )


def _require(where: str, given: Mapping[str, Any], names: Iterable[str]) -> None:
    missing = [name for name in names if given.get(name) is None]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")


_META_KEYS = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "use_scaled_rope",
    "rope_scaling_factor",
}
# Limits of Meta's own server, not of the model.
_META_IGNORED = {"max_batch_size", "max_seq_len"}

_HF_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)
_HF_KEYS = set(_HF_REQUIRED) | {
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
}
_HF_ROPE_REQUIRED = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_HF_FIXED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "is_encoder_decoder": False,
    "rope_interleaved": False,
}
# None of these changes what the model computes when it answers.
_HF_IGNORED = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "is_llama_config",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
}

_GGUF_REQUIRED = (
    "embedding_length",
    "block_count",
    "attention.head_count",
    "feed_forward_length",
    "context_length",
    "attention.layer_norm_rms_epsilon",
)
_GGUF_KEYS = set(_GGUF_REQUIRED) | {
    "attention.head_count_kv",
    "attention.key_length",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "vocab_size",
}
_GGUF_IGNORED = {"attention.value_length"}

_LLAMA3_8B = LlamaConfig(
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn_dim=14_336,
    vocab_size=128_256,
    max_seq_len=8192,
)


def _but(config: LlamaConfig, **changes: Any) -> LlamaConfig:
    own = {f.name: getattr(config, f.name) for f in fields(config)}
    return LlamaConfig(**(own | changes))


_LLAMA3_70B = _but(_LLAMA3_8B, dim=8192, n_layers=80, n_heads=64, ffn_dim=28_672)
_LONG: dict[str, Any] = {"max_seq_len": 131_072, "rope_scaling": RopeScaling()}
_SMALL: dict[str, Any] = {
    "max_seq_len": 131_072,
    "rope_scaling": RopeScaling(factor=32.0),
    "tied_embeddings": True,
    "ffn_dim": 8192,
}

PRESETS: dict[str, LlamaConfig] = {
    "llama3-8b": _LLAMA3_8B,
    "llama3-70b": _LLAMA3_70B,
    "llama3.1-8b": _but(_LLAMA3_8B, **_LONG),
    "llama3.1-70b": _but(_LLAMA3_70B, **_LONG),
    "llama3.1-405b": _but(
        _LLAMA3_8B, dim=16_384, n_layers=126, n_heads=128, ffn_dim=53_248, **_LONG
    ),
    "llama3.2-1b": _but(_LLAMA3_8B, dim=2048, n_layers=16, head_dim=64, **_SMALL),
    "llama3.2-3b": _but(_LLAMA3_8B, dim=3072, n_layers=28, n_heads=24, **_SMALL),
    "smollm2-135m": LlamaConfig(
        dim=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        ffn_dim=1536,
        vocab_size=49_152,
        max_seq_len=8192,
        rope_theta=100_000.0,
        tied_embeddings=True,
    ),
}
