"""The whole Llama: embeddings, a stack of blocks, and logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillama.attention import Attention, causal_mask
from minillama.cache import KVCache
from minillama.config import LlamaConfig
from minillama.feed_forward import FeedForward
from minillama.norm import RMSNorm
from minillama.rope import rope_frequencies


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a Llama is made of: put a part of your own in any place.

    Each is called with the config and returns a module with the parameter names and
    the `forward` of the part that it replaces.
    """

    norm: Callable[[LlamaConfig], nn.Module] = lambda c: RMSNorm(c.dim, c.norm_eps)
    attention: Callable[[LlamaConfig], nn.Module] = Attention
    feed_forward: Callable[[LlamaConfig], nn.Module] = lambda c: FeedForward(
        c.dim, c.ffn_dim
    )


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream.

    Each part reads a normalised copy of the stream ("pre-norm") and adds what it found,
    so the stream itself runs from the embeddings to the logits without a break.
    """

    def __init__(self, config: LlamaConfig, parts: Parts) -> None:
        super().__init__()
        self.attention_norm = parts.norm(config)
        self.attention = parts.attention(config)
        self.ffn_norm = parts.norm(config)
        self.feed_forward = parts.feed_forward(config)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Float[Tensor, "T P"], Float[Tensor, "T P"]],
        mask: Bool[Tensor, "... T S"] | None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Tokens in, logits out, and no state: the past lies in the caller's caches.

    One class for every size, from a toy to 405B. Source: Touvron et al., arXiv
    2302.13971; The Llama 3 Herd of Models, arXiv 2407.21783, section 3.2.
    """

    def __init__(self, config: LlamaConfig, parts: Parts = Parts()) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        blocks = (Block(config, parts) for _ in range(config.n_layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = parts.norm(config)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        caches: list[KVCache] | None = None,
        pad: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each given one.

        With `caches` the tokens follow those that the caches hold, and are added to
        them. `pad` says how many tokens of left padding each row began with.
        """
        return self.output(self.hidden(tokens, caches, pad))  # B T V

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        caches: list[KVCache] | None = None,
        pad: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The vectors that the output turns into logits.

        Of a prompt only the last one need be, and the output is the widest matrix.
        """
        start = caches[0].length if caches else 0
        seen = start + tokens.shape[1]
        rope = self.rope_tables(start, seen, tokens.device)
        mask = causal_mask(tokens.shape[1], seen, pad, tokens.device)
        x = self.tok_embeddings(tokens)  # B T D
        for layer, cache in zip(
            self.layers, caches or [None] * len(self.layers), strict=True
        ):
            x = layer(x, rope, mask, cache)
        return self.norm(x)

    def rope_tables(
        self, start: int, end: int, device: torch.device
    ) -> tuple[Float[Tensor, "T P"], Float[Tensor, "T P"]]:
        """Cosines and sines of the angles at positions `start` to `end` - 1."""
        c = self.config
        freqs = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling, device)
        angles = torch.outer(torch.arange(start, end, device=device), freqs)
        return angles.cos(), angles.sin()
