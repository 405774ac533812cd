"""The KV cache: keys and values of past tokens, so that no token is computed twice."""

import torch
from jaxtyping import Float
from torch import Tensor

from minillama.config import LlamaConfig


class KVCache:
    """The keys and values of one layer so far; it alone knows how many there are.

    All memory is taken at once, for `max_seq_len` tokens: nothing is allocated while
    decoding. Size: 2 x batch x n_kv_heads x max_seq_len x head_dim numbers.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # B K S Dh
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @classmethod
    def for_model(
        cls,
        config: LlamaConfig,
        *,
        batch: int = 1,
        max_seq_len: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "list[KVCache]":
        """One empty cache a layer, for `max_seq_len` tokens (the whole context)."""
        tokens = config.max_seq_len if max_seq_len is None else max_seq_len
        if not 1 <= tokens <= config.max_seq_len:
            raise ValueError(
                f"a cache for {tokens} tokens: this model's context is "
                f"{config.max_seq_len}, so ask for 1 to {config.max_seq_len}"
            )
        shape = (batch, config.n_kv_heads, tokens, config.head_dim)
        return [cls(shape, dtype, device) for _ in range(config.n_layers)]

    def update(
        self, k: Float[Tensor, "B K T Dh"], v: Float[Tensor, "B K T Dh"]
    ) -> tuple[Float[Tensor, "B K S Dh"], Float[Tensor, "B K S Dh"]]:
        """Append T tokens, and return the keys and values of all S so far."""
        start, end = self.length, self.length + k.shape[2]
        batch, room = self.keys.shape[0], self.keys.shape[2]
        if end > room or k.shape[0] != batch:
            raise ValueError(
                f"the cache has room for {room} tokens of {batch} sequences, and "
                f"{end} tokens of {k.shape[0]} are needed: make a larger one"
            )
        self.keys[:, :, start:end], self.values[:, :, start:end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens, to go back to an earlier point."""
        if not 0 <= n <= self.length:
            raise ValueError(f"cannot keep {n} of {self.length} tokens")
        self.length = n

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken, used or not."""
        return self.keys.nbytes + self.values.nbytes
