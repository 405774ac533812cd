"""Small models that are loud.

A quiet model (weights of std 0.02, five tokens) passes most tests with no RoPE at all.
So weights here have std 1 / sqrt(fan_in), norm weights are random, query and KV heads
differ in number, heads are 16 wide or more, and sequences are long.
"""

import torch

from minillama.config import LlamaConfig
from minillama.model import Llama, Parts


def make_loud(model: Llama, seed: int = 0) -> Llama:
    """Give every weight a size at which each mistake in the code shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                fan_in = 1 if name.startswith("tok_embeddings") else weight.shape[1]
                if model.config.tied_embeddings:
                    fan_in = weight.shape[1]
                weight.normal_(0, fan_in**-0.5, generator=generator)
    return model.eval()


def small_config(**changes: object) -> LlamaConfig:
    """A Llama of a few thousand numbers, with grouped queries."""
    values: dict[str, object] = {
        "dim": 48,
        "n_layers": 3,
        "n_heads": 6,
        "n_kv_heads": 2,
        "head_dim": 16,
        "ffn_dim": 80,
        "vocab_size": 131,
        "max_seq_len": 256,
        "rope_theta": 10_000.0,
    }
    return LlamaConfig(**(values | changes))  # type: ignore[arg-type]


def loud_model(seed: int = 0, parts: Parts | None = None, **changes: object) -> Llama:
    """A small random Llama on which mistakes show."""
    return make_loud(Llama(small_config(**changes), parts or Parts()), seed)
