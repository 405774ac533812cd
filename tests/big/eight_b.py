"""Llama 3 8B at full size, in random weights: what it takes here and in transformers.

    python tests/big/eight_b.py                 # 16 GB of disk, 24 GB of memory
    python tests/big/eight_b.py --layers 2      # 3 GB of disk, a trial

The folder is laid out as the real one: bfloat16, four shards of at most 5 GB in the
order in which transformers writes them, 16,060,522,496 bytes of numbers. Each library
then loads it in a process of its own, reads 32 tokens at once and 8 one by one, and
writes down its peak memory, its times and its logits. A third process computes the
logits of the same weights in float32, a layer at a time: that is the yardstick for what
bfloat16 does to either.
"""

import argparse
import copy
import datetime
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from minillama.cache import KVCache
from minillama.config import LlamaConfig
from minillama.names import HF
from minillama.weights import load_model

LIBRARIES = ("minillama", "transformers")
SHARD_BYTES = 5 * 10**9
PREFILL, DECODE = 32, 8
MOST_MEMORY = 1.05  # peak resident memory over bytes of weights
# A bfloat16 number has 8 bits, so each operation errs by up to 1/512. Some ten of them
# lie one behind the other in a layer, and their errors add up like a random walk:
# sqrt(10 x 32) / 512 is 3.5 %.
MOST_ERROR = 0.05
# The order of a layer's parameters in transformers' own modules: q k v o, gate up down,
# then the norms. It decides where one shard ends and the next begins.
ORDER = (2, 3, 4, 5, 7, 8, 9, 1, 6)


@dataclass(frozen=True)
class Measured:
    """One library's run."""

    library: str
    peak_loaded: int
    peak: int
    load_seconds: float
    prefill_seconds: float
    decode_seconds: list[float]


def config_of(layers: int) -> LlamaConfig:
    return replace(LlamaConfig.preset("llama3-8b"), n_layers=layers)


def weight_bytes(config: LlamaConfig) -> int:
    return config.n_params() * torch.bfloat16.itemsize


# Writing the folder


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the order of transformers' modules."""
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    embeddings = (c.vocab_size, c.dim)
    a_row: list[tuple[int, ...]] = [embeddings, (c.dim,), (q, c.dim), (kv, c.dim)]
    a_row += [(kv, c.dim), (c.dim, q), (c.dim,), (c.ffn_dim, c.dim)]
    a_row += [(c.ffn_dim, c.dim), (c.dim, c.ffn_dim), (c.dim,), embeddings]
    found = {HF[0]: a_row[0]}
    for layer in range(c.n_layers):
        found |= {HF[row].format(layer): a_row[row] for row in ORDER}
    return found | {HF[10]: a_row[10], HF[11]: a_row[11]}


def shards_of(sizes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names by file: each file is filled as long as it stays below its limit."""
    total = sum(map(math.prod, sizes.values())) * torch.bfloat16.itemsize
    limit = min(SHARD_BYTES, total // 2)  # a trial has shards too
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in sizes.items():
        nbytes = math.prod(shape) * torch.bfloat16.itemsize
        if held + nbytes > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += nbytes
    return shards


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers of a size at which the logits are about one, whatever the depth."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return weight.uniform_(0.5, 1.5, generator=generator)
    fan_in = 1 if name == HF[0] else shape[1]
    return weight.normal_(0, fan_in**-0.5, generator=generator)


def write_folder(folder: Path, config: LlamaConfig) -> None:
    """Write the model, with never more than one shard in memory."""
    total = weight_bytes(config)
    free = shutil.disk_usage(folder).free
    if free < total + 10**9:
        raise SystemExit(
            f"{folder} has {free:,} bytes free and {total:,} are needed: name another "
            "folder with --folder"
        )
    sizes = shapes(config)
    shards = shards_of(sizes)
    weight_map: dict[str, str] = {}
    with Progress() as progress:
        task = progress.add_task("writing", total=total)
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors: dict[str, Tensor] = {}
            for name in names:
                seed = len(weight_map)
                tensors[name] = random_weight(name, sizes[name], seed)
                weight_map[name] = file
                progress.advance(task, tensors[name].nbytes)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            del tensors
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config_json = {**config.to_hf(), "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config_json))


# One library in one process


def peak_memory() -> int:
    """The most memory that this process ever had resident, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("peak memory is read from /proc/self/status: run this on Linux")


def tokens_of(config: LlamaConfig) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    shape = (1, PREFILL + DECODE)
    return torch.randint(config.vocab_size, shape, generator=generator)


class OfMinillama:
    """The library, as its users call it."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(folder)
        self.caches = KVCache.for_model(
            self.model.config, max_seq_len=PREFILL + DECODE, dtype=torch.bfloat16
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, self.caches)


class OfTransformers:
    """Hugging Face's library, as its users call it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, DynamicCache

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.cache = DynamicCache(config=self.model.config)

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, past_key_values=self.cache, use_cache=True).logits


@torch.inference_mode()
def measure(library: str, folder: Path, out: Path, layers: int) -> None:
    start = time.perf_counter()
    run = OfMinillama(folder) if library == "minillama" else OfTransformers(folder)
    load_seconds, peak_loaded = time.perf_counter() - start, peak_memory()
    pieces = tokens_of(config_of(layers)).split([PREFILL] + [1] * DECODE, 1)
    logits, seconds = [], []
    for piece in pieces:
        start = time.perf_counter()
        logits.append(run(piece).float())
        seconds.append(time.perf_counter() - start)
    result = {
        "library": library,
        "peak_loaded": peak_loaded,
        "peak": peak_memory(),
        "load_seconds": load_seconds,
        "prefill_seconds": seconds[0],
        "decode_seconds": seconds[1:],
    }
    torch.save(torch.cat(logits, 1)[0], out / f"{library}.pt")
    (out / f"{library}.json").write_text(json.dumps(result))


@torch.inference_mode()
def reference(folder: Path, out: Path) -> None:
    """The logits in float32, with one layer at a time in float32."""
    model = load_model(folder)
    tokens = tokens_of(model.config)
    n = tokens.shape[1]
    rope = model.rope_tables(0, n, tokens.device)
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    x = model.tok_embeddings(tokens).float()
    for layer in model.layers:
        x = copy.deepcopy(layer).float()(x, rope, mask)
    x = copy.deepcopy(model.norm).float()(x)
    rows = model.output.weight.split(8192)
    torch.save(
        torch.cat([x @ part.float().T for part in rows], -1)[0], out / "exact.pt"
    )


def in_own_process(*arguments: object) -> None:
    subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


# Comparing and telling


@dataclass(frozen=True)
class Errors:
    """How far logits are from the float32 ones, in their standard deviations."""

    mean: float  # root mean square
    most: float
    same_top: int  # positions with the same first token
    clear: int  # of those where float32 is certain enough to decide
    clear_same: int


def errors(logits: Tensor, exact: Tensor) -> Errors:
    std = exact.std()
    off = (logits - exact) / std
    best = exact.topk(2, -1)
    margin = (best.values[:, 0] - best.values[:, 1]) / std
    # A difference of two logits errs by sqrt(2) times what one errs by: four deviations
    # of that are not reached by chance.
    clear = margin > 4 * math.sqrt(2) * off.square().mean().sqrt()
    same = logits.argmax(-1) == best.indices[:, 0]
    return Errors(
        float(off.square().mean().sqrt()),
        float(off.abs().max()),
        int(same.sum()),
        int(clear.sum()),
        int((clear & same).sum()),
    )


def table(
    config: LlamaConfig, runs: dict[str, Measured], off: dict[str, Errors]
) -> str:
    size = weight_bytes(config)
    rows = {
        "peak memory once loaded": lambda r: f"{r.peak_loaded / 1e9:.2f} GB",
        "peak memory at the end": lambda r: f"{r.peak / 1e9:.2f} GB",
        "the same over the weights": lambda r: f"{r.peak / size:.3f}",
        "load": lambda r: f"{r.load_seconds:.2f} s",
        f"first {PREFILL} tokens (reads the file)": lambda r: (
            f"{r.prefill_seconds:.2f} s"
        ),
        "first token after them": lambda r: f"{r.decode_seconds[0]:.2f} s",
        f"median of {DECODE} tokens": lambda r: (
            f"{sorted(r.decode_seconds)[DECODE // 2]:.2f} s"
        ),
        "error against float32, mean": lambda r: f"{off[r.library].mean:.4f} std",
        "error against float32, largest": lambda r: f"{off[r.library].most:.4f} std",
        "same first token as float32": lambda r: (
            f"{off[r.library].same_top} of {PREFILL + DECODE}"
        ),
        "the same where float32 is certain": lambda r: (
            f"{off[r.library].clear_same} of {off[r.library].clear}"
        ),
    }
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for name, cell in rows.items():
        lines.append(f"| {name} | " + " | ".join(map(cell, runs.values())) + " |")
    return "\n".join(lines)


def machine() -> str:
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"{memory / 2**30:.0f} GiB of memory, {platform.system()}"
    )


def page(config: LlamaConfig, body: str, apart: str) -> str:
    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("minillama", "torch", "transformers", "safetensors")
    )
    trial = "" if config.n_layers == 32 else f" (a trial with {config.n_layers} layers)"
    return f"""# Llama 3 8B at full size{trial}

Made by `make test-8b` on {datetime.date.today()}.
Machine: {machine()}.
Versions: Python {platform.python_version()}, {versions}.

{config.n_params():,} random parameters in bfloat16, {weight_bytes(config):,} bytes, in
Hugging Face's layout. Each library ran once, in a process of its own, one after the
other, on the CPU, with the file in the page cache or not as it happened. Memory is the
kernel's count of resident pages at its highest (`VmHWM`), Python and all libraries
included; pages that are mapped from the file count.

{body}

{apart}

The yardstick is the same weights computed in float32, a layer at a time. Errors are in
standard deviations of its logits. Each operation in bfloat16 errs by up to 1/512, and
some ten of them lie one behind the other in each of 32 layers: like a random walk that
makes sqrt(320) / 512, 3.5 %. "Certain" are the positions where the first token leads by
more than four times what the difference of two logits errs by. In float32, on small
models, the two libraries agree within 1e-5 (`tests/parity/test_hf_parity.py`).
"""


def judge(
    config: LlamaConfig, runs: dict[str, Measured], off: dict[str, Errors]
) -> None:
    ours, theirs = off["minillama"], off["transformers"]
    ratio = runs["minillama"].peak / weight_bytes(config)
    # Python and torch alone take 0.3 GB, which is much beside a few layers.
    if config.n_layers == 32:
        assert ratio <= MOST_MEMORY, f"peak memory is {ratio:.3f} times the weights"
    assert ours.mean <= MOST_ERROR, f"logits are off by {ours.mean:.3f} deviations"
    assert ours.mean <= 1.1 * theirs.mean, (ours, theirs)
    for one in (ours, theirs):
        assert one.clear_same == one.clear, one


def compare(layers: int, folder: Path | None, report: Path, keep: bool) -> None:
    """Write the folder, measure both libraries on it, and write the report."""
    config = config_of(layers)
    root = folder or Path(__file__).parents[2] / "build"
    root.mkdir(parents=True, exist_ok=True)
    out = Path(tempfile.mkdtemp(prefix="8b-", dir=root))
    try:
        model = out / "model"
        model.mkdir()
        write_folder(model, config)
        for library in LIBRARIES:
            in_own_process("--measure", library, model, out, layers)
        in_own_process("--reference", model, out)
        runs = {
            name: Measured(**json.loads((out / f"{name}.json").read_text()))
            for name in LIBRARIES
        }
        exact = torch.load(out / "exact.pt")
        logits = {name: torch.load(out / f"{name}.pt") for name in LIBRARIES}
    finally:
        if not keep:
            shutil.rmtree(out)
    off = {name: errors(values, exact) for name, values in logits.items()}
    apart = (logits["minillama"] - logits["transformers"]) / exact.std()
    said = (
        f"The two differ from each other by {apart.square().mean().sqrt():.4f} of a "
        f"standard deviation in the mean (root of squares), {apart.abs().max():.4f} "
        "at most."
    )
    text = page(config, table(config, runs, off), said)
    print(text)
    judge(config, runs, off)
    report.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where there are 16 GB of disk")
    parser.add_argument("--report", type=Path, default=Path("docs/8b.md"))
    parser.add_argument("--keep", action="store_true", help="leave the weights there")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        library, folder, out, layers = args.measure
        measure(library, Path(folder), Path(out), int(layers))
    elif args.reference:
        reference(*map(Path, args.reference))
    else:
        folder = args.folder or os.environ.get("MINILLAMA_8B_FOLDER")
        compare(args.layers, folder and Path(folder), args.report, args.keep)


if __name__ == "__main__":
    main()
