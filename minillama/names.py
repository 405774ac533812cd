"""What each parameter is called here, by Meta, by Hugging Face and in GGUF files.

A dialect is twelve names in the order of `NATIVE`, and the order of the rows of the
query and key matrices. Everything else is computed: the table of a whole model, its
inverse, and both directions of the row order.
"""

from torch import Tensor

from minillama.config import LlamaConfig

# `{}` is the number of the layer.
NATIVE = (
    "tok_embeddings.weight",
    "layers.{}.attention_norm.weight",
    "layers.{}.attention.wq.weight",
    "layers.{}.attention.wk.weight",
    "layers.{}.attention.wv.weight",
    "layers.{}.attention.wo.weight",
    "layers.{}.ffn_norm.weight",
    "layers.{}.feed_forward.w_gate.weight",
    "layers.{}.feed_forward.w_up.weight",
    "layers.{}.feed_forward.w_down.weight",
    "norm.weight",
    "output.weight",
)

META = (
    "tok_embeddings.weight",
    "layers.{}.attention_norm.weight",
    "layers.{}.attention.wq.weight",
    "layers.{}.attention.wk.weight",
    "layers.{}.attention.wv.weight",
    "layers.{}.attention.wo.weight",
    "layers.{}.ffn_norm.weight",
    "layers.{}.feed_forward.w1.weight",
    "layers.{}.feed_forward.w3.weight",
    "layers.{}.feed_forward.w2.weight",
    "norm.weight",
    "output.weight",
)

HF = (
    "model.embed_tokens.weight",
    "model.layers.{}.input_layernorm.weight",
    "model.layers.{}.self_attn.q_proj.weight",
    "model.layers.{}.self_attn.k_proj.weight",
    "model.layers.{}.self_attn.v_proj.weight",
    "model.layers.{}.self_attn.o_proj.weight",
    "model.layers.{}.post_attention_layernorm.weight",
    "model.layers.{}.mlp.gate_proj.weight",
    "model.layers.{}.mlp.up_proj.weight",
    "model.layers.{}.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)

GGUF = (
    "token_embd.weight",
    "blk.{}.attn_norm.weight",
    "blk.{}.attn_q.weight",
    "blk.{}.attn_k.weight",
    "blk.{}.attn_v.weight",
    "blk.{}.attn_output.weight",
    "blk.{}.ffn_norm.weight",
    "blk.{}.ffn_gate.weight",
    "blk.{}.ffn_up.weight",
    "blk.{}.ffn_down.weight",
    "output_norm.weight",
    "output.weight",
)

DIALECTS = {"meta": META, "hf": HF, "gguf": GGUF}


def name_table(config: LlamaConfig, dialect: str) -> dict[str, str]:
    """Every parameter's name here, and what the dialect "meta", "hf" or "gguf" says.

    Tied embeddings are one parameter, so such a model has no `output.weight`.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"no dialect {dialect!r}: there are {', '.join(DIALECTS)}")
    table: dict[str, str] = {}
    for native, foreign in zip(NATIVE, DIALECTS[dialect], strict=True):
        for layer in range(config.n_layers if "{}" in native else 1):
            table[native.format(layer)] = foreign.format(layer)
    if config.tied_embeddings:
        del table["output.weight"]
    return table


def from_dialect(weight: Tensor, native: str, dialect: str, head_dim: int) -> Tensor:
    """Bring the weight called `native` here from a dialect's order of rows to ours.

    RoPE turns pairs of rows of the query and key matrices. Meta, GGUF and we hold the
    two of a pair side by side, (heads, Dh/2, 2, D); Hugging Face holds all first halves
    and then all second ones, (heads, 2, Dh/2, D). Other weights come back as they are.
    """
    if not _is_turned(native, dialect):
        return weight
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def to_dialect(weight: Tensor, native: str, dialect: str, head_dim: int) -> Tensor:
    """Undo `from_dialect`."""
    if not _is_turned(native, dialect):
        return weight
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _is_turned(native: str, dialect: str) -> bool:
    return dialect == "hf" and native.endswith(("wq.weight", "wk.weight"))
