"""How fast a model reads a prompt and writes, beside what the memory allows.

To write one token, every weight is read once. So the memory's bandwidth over the bytes
that a token takes is a bound on tokens a second that no cleverness passes, and the
share of it that is reached says how good the code is. All times are medians.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from minillama.config import LlamaConfig
from minillama.fast import quantized
from minillama.generate import decode_step, new_caches, prefill
from minillama.model import Llama
from minillama.swap import swap_modules


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians of one benchmark; `bandwidth` is in bytes a second."""

    device: str
    dtype: str
    threads: int
    prompt: int
    prefill_seconds: float
    decode_seconds: float
    bytes_a_token: int
    bandwidth: float

    @property
    def bound(self) -> float:
        """Tokens a second if reading the weights were all there is to do."""
        return self.bandwidth / self.bytes_a_token

    @property
    def share(self) -> float:
        """The part of the bound that decoding reaches."""
        return 1 / self.decode_seconds / self.bound


def measure(
    model: Llama, *, prompt: int = 128, new: int = 32, repeats: int = 3, seed: int = 0
) -> Speed:
    """Time `repeats` prompts of random tokens, and `new` tokens after the last one.

    One untimed round goes before: the first use of a kernel, or of memory, is slow.
    """
    if prompt < 1 or new < 1 or repeats < 1:
        raise ValueError("prompt, new and repeats must be at least 1")
    if prompt + new + 1 > model.config.max_seq_len:
        raise ValueError(
            f"{prompt} tokens of prompt and {new} new ones are more than the context "
            f"of this model, {model.config.max_seq_len}"
        )
    device = model.tok_embeddings.weight.device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (1, prompt), generator=generator)
    ids, caches = ids.to(device), new_caches(model, 1, prompt + new + 1)

    def read() -> None:
        for cache in caches:
            cache.truncate(0)
        prefill(model, ids, caches, chunk=512)

    def write() -> None:
        decode_step(model, ids[:, 0], caches)

    read_seconds = _times(read, repeats, device)
    return Speed(
        device=str(device),
        dtype=str(model.tok_embeddings.weight.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        prompt=prompt,
        prefill_seconds=median(read_seconds),
        decode_seconds=median(_times(write, new, device)),
        bytes_a_token=bytes_a_token(model, prompt + new // 2),
        bandwidth=memory_bandwidth(device),
    )


def bytes_a_token(model: Llama, context: int) -> int:
    """Bytes that are read to write one token after `context` others.

    Every parameter and buffer once, whatever its dtype, and the keys and values; but of
    an embedding table only one row, unless it is the output's weight as well.
    """
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    used_whole = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    looked_up = {id(table) for table in tables} - used_whole
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(t.nbytes for t in tensors if id(t) not in looked_up)
    rows = sum(t.nbytes // len(t) for t in tables if id(t) in looked_up)
    dtype = model.tok_embeddings.weight.dtype
    return weights + rows + model.config.kv_cache_bytes(tokens=context, dtype=dtype)


def random_model(
    config: LlamaConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    seed: int = 0,
) -> Llama:
    """A model of that shape whose weights are random: as fast as a real one.

    Each Linear is quantised as soon as it is made, so that 8B in int4 never takes more.
    The numbers of one short draw are repeated, since drawing billions takes minutes.
    """
    with torch.device("meta"):
        model = Llama(config)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 22, generator=generator).to(device, dtype)

    def weight(shape: tuple[int, ...], fan_in: int) -> torch.Tensor:
        count = math.prod(shape)
        whole = torch.empty(count, dtype=dtype, device=device)
        for start in range(0, count, len(pool)):
            part = whole[start : start + len(pool)]
            torch.mul(pool[: len(part)], fan_in**-0.5, out=part)
        return whole.view(shape)

    def linear(old: nn.Module) -> nn.Module:
        assert isinstance(old, nn.Linear)
        filled = weight(tuple(old.weight.shape), old.in_features)
        if quantize:
            return quantized(filled, quantize)
        new = nn.Linear(*reversed(filled.shape), bias=False, device="meta")
        new.weight = nn.Parameter(filled, requires_grad=False)
        return new

    swap_modules(model, nn.Linear, linear, untie=True)
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if old.is_meta:
                one = torch.ones(old.shape, dtype=dtype, device=device)
                new = one if old.dim() == 1 else weight(tuple(old.shape), 1)
                setattr(module, name, nn.Parameter(new, requires_grad=False))
    if config.tied_embeddings and not quantize:
        model.output.weight = model.tok_embeddings.weight
    return model.eval()


def memory_bandwidth(
    device: torch.device | str = "cpu", size: int = 1 << 29, repeats: int = 7
) -> float:
    """Bytes a second that a sum over `size` bytes of float32 reads, by the median."""
    data = torch.ones(size // 4, device=device)
    seconds = _times(data.sum, repeats, torch.device(device))
    return data.nbytes / median(seconds)


def _times(run: Callable[[], object], count: int, device: torch.device) -> list[float]:
    seconds: list[float] = []
    run()
    for _ in range(count):
        _settle(device)
        start = time.perf_counter()
        run()
        _settle(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def _settle(device: torch.device) -> None:
    """Wait until the device has done what was asked: calls to a GPU return at once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
