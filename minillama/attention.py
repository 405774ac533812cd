"""Grouped-query attention: many queries, few keys and values."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillama.cache import KVCache
from minillama.config import LlamaConfig
from minillama.rope import apply_rope


def causal_mask(
    new: int,
    seen: int,
    pad: Int[Tensor, "B"] | None = None,
    device: torch.device | None = None,
) -> Bool[Tensor, "... T S"] | None:
    """Which of the `seen` keys each of the `new` queries may look at: none after it.

    The queries are the last `new` of the `seen` tokens. One query that sees everything
    needs no mask. Left padding shifts a whole row alike and RoPE knows distances alone,
    so hiding the padded keys is all that a batch of unequal prompts needs.
    """
    if new == 1 and pad is None:
        return None
    keys = torch.arange(seen, device=device)
    queries = keys[seen - new :, None]  # T 1
    visible = keys <= queries  # T S
    if pad is None:
        return visible
    # A padded query sees itself: the softmax over no key at all would be NaN.
    real = (keys >= pad[:, None, None]) | (keys == queries)  # B T S
    return (visible & real)[:, None]  # B 1 T S: the same for every head


def attend(
    q: Float[Tensor, "B H T Dh"],
    k: Float[Tensor, "B K S Dh"],
    v: Float[Tensor, "B K S Dh"],
    mask: Bool[Tensor, "... T S"] | None,
) -> Float[Tensor, "B H T Dh"]:
    """Mix the values, each by how well its key answers the query.

    softmax(q k^T / sqrt(Dh)) v; query head h uses KV head h // (H / K). The product q k
    grows with sqrt(Dh), and without the root the softmax would pick one key alone.
    Source: Vaswani et al., arXiv 1706.03762; Ainslie et al., arXiv 2305.13245.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class Attention(nn.Module):
    """Let each token gather from those before it: grouped-query self-attention.

    `n_heads` queries share `n_kv_heads` keys and values, so the cache is smaller by
    `n_rep`: 4 times in Llama 3 8B. Source: Ainslie et al., arXiv 2305.13245.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_dim, kv_dim = (
            n * config.head_dim for n in (config.n_heads, config.n_kv_heads)
        )
        self.wq = nn.Linear(config.dim, q_dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(q_dim, config.dim, bias=False)
        self.attend = attend  # replaced while something looks inside

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Float[Tensor, "T P"], Float[Tensor, "T P"]],
        mask: Bool[Tensor, "... T S"] | None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        q, k, v = (
            w(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )  # B H T Dh, B K T Dh, B K T Dh
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)  # B K S Dh
        out = self.attend(q, k, v, mask)  # B H T Dh
        return self.wo(out.transpose(1, 2).flatten(2))  # B T D
