"""What a model will take, and whether this machine has it, before anything is loaded.

Everything is computed from the config; no file is opened but the config's own.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from minillama import hub
from minillama.config import PRESETS, LlamaConfig

CHUNK = 512
"""Tokens of a prompt that `stream` reads at once."""

PANEL = 1 << 24
"""Bytes of unpacked weights at a time, where quantised ones meet a prompt on a CPU."""

HEAP = 20 << 20
"""Bytes that no tensor holds, on a CPU: holes that freed tensors leave in the heap of
the C library, and the products' own buffers. No theory gives them: SmolLM2 showed 12 to
37 MB in four dtypes, and this lies between."""

DTYPES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "int8": 1.0,
    "int4": 0.5,
}
"""Bytes of one weight, without the scales of the integers."""

_ALIASES = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16"}
_ALIASES |= {"fp16": "float16", "f16": "float16", "half": "float16"}


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a model takes: for good, and at the widest point of its work."""

    weights: int
    cache: int
    activations: int
    loading: int

    @property
    def total(self) -> int:
        """The peak: loading is over before anything is computed."""
        return self.weights + max(self.cache + self.activations, self.loading)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the model would run: bytes of memory there, and those that are free."""

    device: str
    name: str
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Another way to run: what to type, what it takes, whether it fits."""

    what: str
    need: Need
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for, what it takes, what there is, and what else would go."""

    name: str
    config: LlamaConfig
    dtype: str
    context: int
    batch: int
    need: Need
    machine: Machine
    choices: tuple[Choice, ...]

    @property
    def fits(self) -> bool:
        """True if the peak is within what is free."""
        return self.need.total <= self.machine.free


@dataclass(frozen=True)
class _Element:
    itemsize: int


def dtype_name(name: str) -> str:
    """The full name of a dtype: "bf16" is "bfloat16". ValueError lists them all."""
    full = _ALIASES.get(name.lower(), name.lower())
    if full not in DTYPES:
        raise ValueError(f"no dtype is called {name!r}: choose {', '.join(DTYPES)}")
    return full


def weight_bytes(config: LlamaConfig, dtype: str) -> int:
    """Bytes of all weights.

    A floating-point model has its parameters times its itemsize. int8 has one byte for
    each weight of a Linear and a float16 scale for each of its rows; int4 has half a
    byte, and a float16 scale and zero for each 32 weights, 0.625 bytes in all. Token
    embeddings and norms stay in bfloat16. An output that is tied to the embeddings
    becomes a matrix of its own, in int8.
    """
    dtype = dtype_name(dtype)
    if not dtype.startswith("int"):
        return config.n_params() * int(DTYPES[dtype])
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    # rows (outputs) and columns (inputs) of the Linears of one layer
    shapes = [(q, c.dim), (kv, c.dim), (kv, c.dim), (c.dim, q)]
    shapes += [(c.ffn_dim, c.dim), (c.ffn_dim, c.dim), (c.dim, c.ffn_dim)]
    shapes *= c.n_layers
    linear, rows = sum(n * k for n, k in shapes), sum(n for n, _ in shapes)
    output = c.vocab_size * c.dim
    rest = 2 * (config.n_params() - linear - (0 if c.tied_embeddings else output))
    in_int8 = output + 2 * c.vocab_size
    if dtype == "int8":
        return rest + linear + 2 * rows + in_int8
    return rest + linear * 5 // 8 + (in_int8 if c.tied_embeddings else output * 5 // 8)


def activation_bytes(
    config: LlamaConfig,
    *,
    dtype: str,
    context: int,
    batch: int = 1,
    chunk: int = CHUNK,
    device: str = "cpu",
) -> int:
    """Bytes alive at the widest point of reading a prompt, beside weights and cache.

    With T = min(chunk, context) new tokens in each of B rows, S = context keys, and b
    bytes an element, there are always the residual stream and its normalised copy
    (2 B T D b), the mask (B T S) and the tables of RoPE (4 T Dh); and of these four,
    one at a time:

        RoPE           B T ((H + 2 K) Dh b + 8 H Dh)   q, k, v; it turns in float32
        attention      2 B T H Dh b          q and what it gives; and its insides
        feed-forward   B T (D + 3 F) b       gate, up, their product; the block's input
        logits         B V b                 of the last token

    On a CPU attention works in tiles, with the mask as numbers (B T S b inside). On
    other devices PyTorch has no such kernel for every mask with grouped queries, and
    the plain one is counted: scores twice, keys and values for every head, queries and
    the result, all in float32 (8 B H (S T + S Dh + T Dh)).

    Quantised on a CPU, activations are in float32; attention has a layer's keys and
    values in it, too (8 B K S Dh), and prompts are multiplied by panels of weights that
    are unpacked, 16 MB at a time.
    """
    c, new = config, min(chunk, context)
    rows, on_cpu = batch * new, device.startswith("cpu")
    small = dtype_name(dtype).startswith("int") and on_cpu
    b = 4 if dtype_name(dtype) == "float32" or small else 2
    heads = c.n_heads + 2 * c.n_kv_heads
    rope = rows * c.head_dim * (heads * b + 8 * c.n_heads)
    attention = 2 * rows * c.n_heads * c.head_dim * b
    if on_cpu:
        attention += rows * context * b
    else:
        numbers = context * (new + c.head_dim) + new * c.head_dim
        attention += 8 * batch * c.n_heads * numbers
    if small:
        attention += 8 * batch * c.n_kv_heads * context * c.head_dim
    feed_forward = rows * (c.dim + 3 * c.ffn_dim) * b
    logits = batch * c.vocab_size * b
    always = rows * (2 * c.dim * b + context) + 4 * new * c.head_dim
    panel = min(PANEL, 4 * c.dim * max(c.ffn_dim, c.dim)) if small else 0
    return always + max(rope, attention, feed_forward, logits) + panel


def loading_bytes(config: LlamaConfig, *, dtype: str, device: str = "cpu") -> int:
    """Bytes beside the weights while these are loaded.

    On a CPU weights stay where they are read to, but for the queries' matrix, which is
    put in order. Quantised ones are put in order last, the output at once. Pages of the
    files do not count: they are given back when memory is wanted. On other devices a
    weight may be there twice, as it lies in the file and as it will be.
    """
    c, kind = config, dtype_name(dtype)
    itemsize = 4 if kind == "float32" else 2
    output = c.vocab_size * c.dim
    if not device.startswith("cpu"):
        return max(output, c.ffn_dim * c.dim) * itemsize
    if kind == "int4" and not c.tied_embeddings:
        return output * 5 // 8
    if kind.startswith("int"):
        return output
    return c.n_heads * c.head_dim * c.dim * itemsize


def need(
    config: LlamaConfig,
    *,
    dtype: str = "bfloat16",
    context: int,
    batch: int = 1,
    device: str = "cpu",
) -> Need:
    """What a model takes in `dtype` with `batch` rows of `context` tokens."""
    if batch < 1 or context < 1:
        raise ValueError(f"batch {batch} and context {context} must be at least 1")
    if context > config.max_seq_len:
        raise ValueError(
            f"a context of {context} is more than this model's {config.max_seq_len}: "
            "ask for fewer tokens"
        )
    element = _Element(4 if dtype_name(dtype) == "float32" else 2)
    return Need(
        weights=weight_bytes(config, dtype),
        cache=config.kv_cache_bytes(tokens=context, dtype=element, batch=batch),
        activations=activation_bytes(
            config, dtype=dtype, context=context, batch=batch, device=device
        )
        + (HEAP if device.startswith("cpu") else 0),
        loading=loading_bytes(config, dtype=dtype, device=device),
    )


def config_of(name_or_path: str | Path) -> LlamaConfig:
    """The architecture of a preset, of a named model (here or not), or of a path."""
    name = str(name_or_path)
    entry = hub.MODELS.get(name)
    if not Path(name).expanduser().exists():
        if name in PRESETS:
            return PRESETS[name]
        if entry and entry.preset and hub.find(name) is None:
            return PRESETS[entry.preset]
        if entry is None:
            near = difflib.get_close_matches(
                name, {**PRESETS, **hub.MODELS}, cutoff=0.5
            )
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"{name} is no model, no folder and no file{hint}")
    from minillama.weights import read_config

    path = hub.resolve(name)
    if path.name == "tokenizer.model":
        raise ValueError(f"{name} is a tokenizer: it has no config and no weights")
    return read_config(path)


def this_machine(device: str | None = None) -> Machine:
    """The memory of `device`, or of the best device that is here."""
    import torch

    from minillama.api import best_device

    device = device or best_device()
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError("there is no CUDA device here: use --device cpu")
        free, total = torch.cuda.mem_get_info(torch.device(device))
        name = torch.cuda.get_device_name(torch.device(device))
        return Machine(device=device, name=name, total=total, free=free)
    if device not in ("cpu", "mps"):
        raise ValueError(f"no device is called {device!r}: choose cpu, cuda or mps")
    total, free = memory()
    return Machine(device=device, name="main memory", total=total, free=free)


def memory() -> tuple[int, int]:
    """Bytes of main memory, all and free, within the limit of a container."""
    import psutil

    now = psutil.virtual_memory()
    limit, used = _container()
    if limit is None or limit >= now.total:
        return now.total, now.available
    return limit, max(0, min(now.available, limit - used))


def _container(folder: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """The memory limit of this container (Linux, cgroup 2), and what it holds now."""
    try:
        limit = int((folder / "memory.max").read_text())
        held = int((folder / "memory.current").read_text())
        pairs = (x.split() for x in (folder / "memory.stat").read_text().splitlines())
        facts = {key: int(value) for key, value in pairs}
    except (OSError, ValueError):  # no cgroup 2, or "max": no limit
        return None, 0
    # Pages of files are given back when memory is wanted.
    return limit, held - facts.get("inactive_file", 0) - facts.get("active_file", 0)


def make_plan(
    name: str,
    *,
    dtype: str = "bfloat16",
    context: int | None = None,
    batch: int = 1,
    device: str | None = None,
) -> Plan:
    """Plan a run of a named model; `context` is by default all of it, up to 8,192."""
    config, dtype = config_of(name), dtype_name(dtype)
    context = min(8192, config.max_seq_len) if context is None else context
    machine = this_machine(device)
    at = machine.device
    asked = need(config, dtype=dtype, context=context, batch=batch, device=at)
    return Plan(
        name=name,
        config=config,
        dtype=dtype,
        context=context,
        batch=batch,
        need=asked,
        machine=machine,
        choices=tuple(_choices(name, config, dtype, context, batch, machine)),
    )


def _choices(
    name: str, config: LlamaConfig, dtype: str, context: int, batch: int, at: Machine
) -> list[Choice]:
    """Other dtypes, then the longest shorter context that fits, then smaller models."""

    def choice(what: str, which: LlamaConfig, dtype: str, context: int) -> Choice:
        taken = need(which, dtype=dtype, context=context, batch=batch, device=at.device)
        return Choice(what=what, need=taken, fits=taken.total <= at.free)

    found = [
        choice(f"--dtype {d}", config, d, context)
        for d in ("float32", "bfloat16", "int8", "int4")
        if d != dtype
    ]
    shorter = context // 2
    while shorter > 256 and not choice("", config, dtype, shorter).fits:
        shorter //= 2
    if shorter:
        found.append(choice(f"--context {shorter}", config, dtype, shorter))
    smaller = {
        other: preset
        for other, preset in PRESETS.items()
        if preset.n_params() < config.n_params() and other != name
    }
    for other, preset in sorted(
        smaller.items(), key=lambda item: item[1].n_params(), reverse=True
    ):
        tokens = min(context, preset.max_seq_len)
        found.append(choice(other, preset, dtype, tokens))
    return found
