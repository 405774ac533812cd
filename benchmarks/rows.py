"""What is measured: each row, its contenders, and what it must reach."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Seconds, growth, speed_ratio

Entries = dict[str, tuple[dict[str, Any], dict[str, Any]]]

INT4, BF16 = "minillama int4", "minillama bf16"
PLAIN = "minillama bf16, not compiled"
HF_BF16, HF_F32 = "transformers bf16", "transformers float32"
F32 = "minillama float32"
LLAMA, FLASH = "llama.cpp", "llama.cpp, flash attention"
SCRATCH, UNCACHED = "llms-from-scratch", "llms-from-scratch, no cache"

# 5.0 million parameters, of which a fifth are embeddings.
FIVE_M = {
    "dim": 256,
    "n_layers": 5,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 32,
    "ffn_dim": 768,
    "vocab_size": 4096,
    "max_seq_len": 256,
    "rope_theta": 500.0,
    "tied_embeddings": True,
}
TRAIN_BATCH, TRAIN_CONTEXT = 16, 128


@dataclass(frozen=True)
class Inputs:
    """The files that contenders load, the tokens they read, and the threads they use.

    `big` has the files of the 8B model, where they were made.
    """

    gguf: Path
    folder: Path
    ids: list[int]
    threads: int
    quick: bool = False
    big: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Target:
    """A figure that is wanted; `at_least` None is published and not judged.

    `least_is_best` turns it round: the figure must then stay below `wanted`.
    """

    says: str
    figure: Callable[[Seconds], float]
    wanted: float | None = None
    least_is_best: bool = False

    def reached(self, value: float) -> bool | None:
        if self.wanted is None:
            return None
        good = value <= self.wanted if self.least_is_best else value >= self.wanted
        return bool(good)


@dataclass(frozen=True)
class Row:
    """One line of the table in docs/benchmarks.md.

    `bound` is "memory" (bytes over bandwidth), "compute" (FLOPs over FLOP/s) or None.
    """

    name: str
    title: str
    unit: str
    entries: Callable[[Inputs], Entries]
    targets: Sequence[Target]
    bound: str | None = "memory"
    flops: Callable[[Inputs], float] | None = None
    big: bool = False
    rounds: int = 9


# Contenders


def of_gguf(i: Inputs, path: Path | None = None) -> dict[str, Any]:
    """This library with the file's own 4 bits; a folder is rounded to 4 as it loads."""
    return {
        "library": "minillama",
        "model": str(path or i.gguf),
        "quantize": "int4",
        "compile": True,
        "threads": i.threads,
    }


def of_folder(i: Inputs, library: str, dtype: str = "bfloat16", **more: Any) -> Any:
    compiled = {"compile": True} if library == "minillama" else {}
    return {
        "library": library,
        "model": str(i.folder),
        "dtype": dtype,
        "threads": i.threads,
        **compiled,
        **more,
    }


def llama_cpp(i: Inputs, path: Path | None = None, flash: bool = False) -> Any:
    return {
        "library": "llama.cpp",
        "model": str(path or i.gguf),
        "threads": i.threads,
        "flash": flash,
    }


def decoding(i: Inputs, context: int = 100, new: int = 32, batch: int = 1) -> Any:
    new = min(new, 8) if i.quick else new
    ids = i.ids[:context]
    return {
        "kind": "decode",
        "ids": ids,
        "context": context,
        "new": new,
        "batch": batch,
    }


# Work, in floating-point operations


def forward_flops(config: Mapping[str, int], tokens: int, heads: int) -> float:
    """Multiplications and additions to read `tokens` tokens; logits for `heads`.

    Two a weight and token, and in attention two products of which causality needs half.
    """
    c = config
    q, kv = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
    weights = c["dim"] * (2 * q + 2 * kv) + 3 * c["dim"] * c["ffn_dim"]
    layers = c["n_layers"] * (2 * weights * tokens + 2 * tokens * tokens * q)
    return layers + 2 * c["dim"] * c["vocab_size"] * heads


def prefill_flops(i: Inputs) -> float:
    from dataclasses import asdict

    from minillama.weights import read_config

    return forward_flops(asdict(read_config(i.folder)), 512, 1) / 512


def train_flops(i: Inputs) -> float:
    """A step: the backward pass costs two forward passes."""
    one = forward_flops(FIVE_M, TRAIN_CONTEXT, TRAIN_CONTEXT)
    return 3 * TRAIN_BATCH * one


# Targets


def times(one: str, peer: str, wanted: float | None = None) -> Target:
    return Target(f"{one} : {peer}, speed", lambda s: speed_ratio(s, one, peer), wanted)


def share(one: str, wanted: float) -> Target:
    return Target(
        f"{one}, share of the bound",
        lambda s: median(s[f"{one} bound"]) / median(s[one]),
        wanted,
    )


def at_most(one: str, quantity: str, wanted: float, says: str, unit: float) -> Target:
    return Target(
        f"{one}, {says}",
        lambda s: median(s[f"{one} {quantity}"]) / unit,
        wanted,
        least_is_best=True,
    )


# Rows


def _decode_4bit(i: Inputs) -> Entries:
    case = decoding(i)
    return {
        INT4: (of_gguf(i), case),
        LLAMA: (llama_cpp(i), case),
        FLASH: (llama_cpp(i, flash=True), case),
    }


def _decode_bf16(i: Inputs) -> Entries:
    case = decoding(i)
    return {
        BF16: (of_folder(i, "minillama"), case),
        PLAIN: (of_folder(i, "minillama", compile=False), case),
        HF_BF16: (of_folder(i, "transformers"), case),
        HF_F32: (of_folder(i, "transformers", "float32"), case),
    }


def _scratch(i: Inputs) -> Entries:
    case = decoding(i, new=16)
    return {
        BF16: (of_folder(i, "minillama"), case),
        SCRATCH: (of_folder(i, "llms-from-scratch", cache=True), case),
        # Each token reads the whole text again: one is enough to see it.
        UNCACHED: (
            of_folder(i, "llms-from-scratch", cache=False),
            decoding(i, new=1) | {"warm": 0},
        ),
    }


def _prefill(i: Inputs) -> Entries:
    case = {"kind": "prefill", "ids": i.ids[:512], "tokens": 512}
    return {
        BF16: (of_folder(i, "minillama"), case),
        INT4: (of_gguf(i), case),
        HF_BF16: (of_folder(i, "transformers"), case),
        HF_F32: (of_folder(i, "transformers", "float32"), case),
        LLAMA: (llama_cpp(i), case),
        FLASH: (llama_cpp(i, flash=True), case),
    }


def _batch(i: Inputs) -> Entries:
    kinds = {
        INT4: of_gguf(i),
        BF16: of_folder(i, "minillama"),
        F32: of_folder(i, "minillama", "float32"),
    }
    return {
        f"{name}, batch of {b}": (spec, decoding(i, new=16, batch=b))
        for name, spec in kinds.items()
        for b in (1, 8)
    }


SHORT, LONG = 100, 2000


def _context(i: Inputs) -> Entries:
    kinds = {INT4: of_gguf(i), LLAMA: llama_cpp(i), FLASH: llama_cpp(i, flash=True)}
    return {
        f"{name} at {context}": (spec, decoding(i, context, 16))
        for name, spec in kinds.items()
        for context in (SHORT, LONG)
    }


def _slope(peer: str, wanted: float | None) -> Target:
    def figure(s: Seconds) -> float:
        mine = growth(s, f"{INT4} at {SHORT}", f"{INT4} at {LONG}")
        return mine / growth(s, f"{peer} at {SHORT}", f"{peer} at {LONG}")

    says = f"{INT4} : {peer}, seconds that {LONG - SHORT:,} tokens of context add"
    return Target(says, figure, wanted, least_is_best=True)


def _train(i: Inputs) -> Entries:
    case = {"kind": "train", "steps": 1 if i.quick else 3}
    shape = {"config": FIVE_M, "batch": TRAIN_BATCH, "context": TRAIN_CONTEXT}
    return {
        name: ({"library": name, "threads": i.threads, **shape}, case)
        for name in ("minillama", "transformers")
    }


OURS, THREADS = "minillama", f"{os.cpu_count()} threads"
ENCODERS = ("tiktoken", "tokenizers", "tokenizers, with places")
ENCODERS += (f"tiktoken, {THREADS}", f"tokenizers, {THREADS}")
NAIVE = ("naive", "naive, pieces counted once")
SHORT_TEXT = 100_000


def _of_tokenizers(
    i: Inputs, row: str, contenders: Sequence[str], size: int | None = None
) -> Entries:
    """Cases of benchmarks/tokenizers_speed.py; they share a process and its text."""
    whole = 1_000_000 if i.quick else 10_000_000
    size = size or whole
    spec = {"library": "tokenizers_speed", "bytes": whole}
    case = {
        "kind": "call",
        "bytes": whole,
        "size": size,
        "row": f"{row} {size / 1e6:g} MB",
    }
    return {name: (spec, {**case, "contender": name}) for name in contenders}


def _encode(i: Inputs) -> Entries:
    return _of_tokenizers(i, "encode", (OURS, *ENCODERS))


def _train_bpe(i: Inputs) -> Entries:
    names = (OURS, "tokenizers", f"tokenizers, {THREADS}")
    return _of_tokenizers(i, "train", names)


def _train_bpe_short(i: Inputs) -> Entries:
    return _of_tokenizers(i, "train", (OURS, "tokenizers", *NAIVE), SHORT_TEXT)


def _big_int4(i: Inputs) -> Entries:
    path = Path(i.big["gguf"])
    case = decoding(i, 32, 16) | {"ids": i.big["ids"][:32]}
    folder = of_gguf(i, Path(i.big["folder"]))
    return {
        INT4: (of_gguf(i, path), case),
        f"{INT4}, from safetensors": (folder, case),
        LLAMA: (llama_cpp(i, path), case),
    }


def _big_bf16(i: Inputs) -> Entries:
    case = decoding(i, 32, 6) | {"ids": i.big["ids"][:32]}
    return {
        name: (of_folder(i, library) | {"model": str(i.big["folder"])}, case)
        for name, library in ((BF16, "minillama"), (HF_BF16, "transformers"))
    }


def _loads(one: str, peer: str) -> Target:
    return Target(
        f"{one} : {peer}, load and first {32} tokens, speed",
        lambda s: median(s[f"{peer} ready"]) / median(s[f"{one} ready"]),
        1.0,
    )


ROWS = [
    Row(
        "decode-4bit",
        "Decode, SmolLM2, one sequence, the file's own 4 bits",
        "token",
        _decode_4bit,
        [times(INT4, LLAMA, 1.0), times(INT4, FLASH)],
    ),
    Row(
        "decode-bf16",
        "Decode, SmolLM2, one sequence, bf16",
        "token",
        _decode_bf16,
        [
            times(BF16, HF_BF16, 2.0),
            times(BF16, HF_F32),
        ],
    ),
    Row(
        "decode-scratch",
        "The same decode from the Llama classes of llms-from-scratch",
        "token",
        _scratch,
        [times(BF16, SCRATCH), times(BF16, UNCACHED)],
    ),
    Row(
        "prefill",
        "Prefill, SmolLM2, 512 tokens",
        "token",
        _prefill,
        [
            times(BF16, HF_BF16, 1.2),
            times(INT4, LLAMA, 1.5),
            times(BF16, HF_F32),
            times(INT4, FLASH),
        ],
        bound="compute",
        flops=prefill_flops,
    ),
    Row(
        "batch",
        "A batch of 8 against 1, SmolLM2",
        "token",
        _batch,
        [
            times(f"{INT4}, batch of 8", f"{INT4}, batch of 1", 4.0),
            times(f"{BF16}, batch of 8", f"{BF16}, batch of 1", 4.0),
            times(f"{F32}, batch of 8", f"{F32}, batch of 1", 4.0),
        ],
    ),
    Row(
        "context",
        "A token at context 2,000 against 100, SmolLM2",
        "token",
        _context,
        [_slope(LLAMA, 1.0), _slope(FLASH, None)],
    ),
    Row(
        "encode",
        "Encode 10 MB of text, the Llama 3 vocabulary",
        "megabyte",
        _encode,
        [
            times(OURS, "tiktoken", 0.95),
            times(OURS, "tokenizers", 2.0),
            *(times(OURS, name) for name in ENCODERS[2:]),
        ],
        bound=None,
        rounds=7,
    ),
    Row(
        "train-bpe",
        "BPE training, 10 MB, vocabulary 4,096",
        "megabyte",
        _train_bpe,
        [times(OURS, "tokenizers"), times(OURS, f"tokenizers, {THREADS}")],
        bound=None,
        rounds=5,
    ),
    Row(
        "train-bpe-naive",
        "BPE training, 0.1 MB, vocabulary 1,024, beside plain Python",
        "megabyte",
        _train_bpe_short,
        [
            times(OURS, NAIVE[0], 20.0),
            times(OURS, NAIVE[1]),
            times(OURS, "tokenizers"),
        ],
        bound=None,
        rounds=3,
    ),
    Row(
        "train",
        "A training step, 5M parameters, 16 x 128 tokens, float32",
        "step",
        _train,
        [times("minillama", "transformers", 1.2)],
        bound="compute",
        flops=train_flops,
    ),
    Row(
        "8b-int4",
        "Decode, full-size 8B (random weights), int4",
        "token",
        _big_int4,
        [
            times(INT4, LLAMA, 0.9),
            share(INT4, 0.6),
            at_most(INT4, "resident", 7.0, "resident memory, GB", 1e9),
            at_most(INT4, "load", 20.0, "load from GGUF, seconds", 1.0),
            at_most(f"{INT4}, from safetensors", "resident", 7.0, "resident, GB", 1e9),
            at_most(f"{INT4}, from safetensors", "load", 20.0, "load, seconds", 1.0),
        ],
        big=True,
        rounds=3,
    ),
    Row(
        "8b-bf16",
        "Decode and load, full-size 8B (random weights), bf16",
        "token",
        _big_bf16,
        [
            times(BF16, HF_BF16, 1.0),
            _loads(BF16, HF_BF16),
            at_most(BF16, "peak", 1.05, "peak memory over the weights", 16_060_522_496),
        ],
        big=True,
        rounds=3,
    ),
]
