"""One compiled step for decoding, on whatever device the model is.

On a CPU that is `accelerate`: blocks in C. Elsewhere, or for parts of a learner's own,
torch.compile makes it. That wants shapes that never change, so each step attends over
all the room of a cache and hides with a mask what is not filled yet; on CUDA the whole
step is then replayed as one graph.
"""

import time
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillama import native
from minillama.cache import KVCache
from minillama.fast import accelerate
from minillama.model import Llama
from minillama.packed import use_packed_products


@dataclass(frozen=True)
class Compiled:
    """What was compiled: in words, whether it is in use, and the seconds it took."""

    how: str
    done: bool
    seconds: float

    def __str__(self) -> str:
        return f"{self.how} ({self.seconds:.1f} s)" if self.done else self.how


def compile_model(model: Llama, *, wait: bool = True) -> Compiled:
    """Make decoding faster, in place, and say how; without a compiler, say why not.

    With `wait=False` only what takes seconds is done: torch.compile takes a minute and
    more. The logits stay those of the plain path, within what `minillama.fast` states.
    What cannot be compiled runs as before.
    """
    start = time.perf_counter()
    device = model.tok_embeddings.weight.device
    if device.type == "cpu" and native.library() is not None:
        names = [n for n in accelerate(model) if n.startswith("layers.")]
        if len(names) == len(model.layers):
            taken = time.perf_counter() - start
            return Compiled(f"{len(names)} blocks run as compiled C", True, taken)
    use_packed_products(model)  # at least PyTorch's own, which need no compiler
    if not wait:
        why = (
            native.why_not() if device.type == "cpu" else "torch.compile takes minutes"
        )
        return Compiled(f"not compiled: {why}", False, time.perf_counter() - start)
    try:
        compile_step(model)
    except Exception as error:  # a missing compiler has many names
        model.__dict__.pop("hidden", None)
        why = str(error).strip().split("\n")[0] or type(error).__name__
        if device.type == "cpu":
            why = native.why_not() or why
        return Compiled(f"not compiled: {why}", False, time.perf_counter() - start)
    taken = time.perf_counter() - start
    return Compiled(f"the step runs through torch.compile on {device}", True, taken)


def compile_step(model: Llama) -> None:
    """Let torch.compile make the step of one new token a row, and try it once.

    `model.hidden` is then a function that knows when it applies: caches of the usual
    kind, no padding. Raises what torch.compile raises.
    """
    plain, step = model.hidden, _Step(model)

    def hidden(
        tokens: Int[Tensor, "B T"],
        caches: list[KVCache] | None = None,
        pad: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        usual = caches and all(type(cache) is KVCache for cache in caches)
        if caches and usual and tokens.shape[1] == 1 and pad is None:
            return step(tokens, caches)
        return plain(tokens, caches, pad)

    weight = model.tok_embeddings.weight
    caches = KVCache.for_model(
        model.config, max_seq_len=2, dtype=weight.dtype, device=weight.device
    )
    with torch.inference_mode():
        step(torch.zeros(1, 1, dtype=torch.int64, device=weight.device), caches)
    model.hidden = hidden


class _Step:
    """The compiled function, and the caches that it has met."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        on_cuda = model.tok_embeddings.weight.device.type == "cuda"
        mode = "reduce-overhead" if on_cuda else "default"
        self.compiled: Any = torch.compile(self.run, mode=mode, fullgraph=True)
        self.known: WeakSet[KVCache] = WeakSet()

    def __call__(self, tokens: Tensor, caches: list[KVCache]) -> Tensor:
        first = caches[0]
        length = first.length
        if length >= first.keys.shape[2] or first.keys.shape[0] != len(tokens):
            one = first.keys.new_empty(len(tokens), *first.keys[0, :, :1].shape)
            first.update(one, one)  # raises, and says what is wrong
        for cache in caches:
            self._prepare(cache)
        position = torch.tensor([length], device=tokens.device)
        x = self.compiled(
            tokens,
            position,
            [cache.keys for cache in caches],
            [cache.values for cache in caches],
        )
        for cache in caches:
            cache.length = length + 1
        return x.clone()  # the next replay of a graph writes to the same memory

    def run(
        self,
        tokens: Int[Tensor, "B 1"],
        position: Int[Tensor, "1"],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Float[Tensor, "B 1 D"]:
        """`Llama.hidden` for one token, with a position that is a tensor."""
        model, room = self.model, keys[0].shape[2]
        cos, sin = model.rope_tables(0, room, tokens.device)
        rope = cos.index_select(0, position), sin.index_select(0, position)
        mask = (torch.arange(room, device=tokens.device) <= position)[None]
        x = model.tok_embeddings(tokens)
        for layer, k, v in zip(model.layers, keys, values, strict=True):
            x = layer(x, rope, mask, _Whole(k, v, position))
        return model.norm(x)

    def _prepare(self, cache: KVCache) -> None:
        """Memory that was never written may hold NaN, and 0 times NaN is NaN."""
        if cache in self.known:
            return
        for tensor in (cache.keys, cache.values):
            tensor[:, :, cache.length :] = 0
            torch._dynamo.mark_static_address(tensor)
        self.known.add(cache)


class _Whole(KVCache):
    """A cache that writes at a position on the device and gives all its room."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        self.keys, self.values, self.position = keys, values, position

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token where `position` says; the mask hides what is not filled."""
        self.keys.index_copy_(2, self.position, k.to(self.keys.dtype))
        self.values.index_copy_(2, self.position, v.to(self.values.dtype))
        return self.keys, self.values
