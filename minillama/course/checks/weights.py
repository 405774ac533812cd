"""Checks of notebook 09: files of weights, packed numbers, row order, names, memory."""

import json
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from minillama.config import LlamaConfig
from minillama.course.check import Case, Check
from minillama.names import DIALECTS, NATIVE, from_dialect

# 9.1 a safetensors file: eight bytes, a header, the numbers

_KINDS = {"F32": torch.float32, "BF16": torch.bfloat16}


def _parsed(
    raw: bytes,
    *,
    length: Callable[[bytes], int] = lambda raw: struct.unpack("<Q", raw[:8])[0],
    header: Callable[[bytes, int], bytes] = lambda raw, size: raw[8 : 8 + size],
    start: Callable[[int], int] = lambda size: 8 + size,
    end: Callable[[int, int], int] = lambda first, last: last,
    kinds: dict[str, torch.dtype] = _KINDS,
    shape: Callable[[list[int]], list[int]] = lambda shape: shape,
    metadata: bool = False,
    first_key: str = "data_offsets",
) -> dict[str, Tensor]:
    """Read a file, with one thing done in another way if so wanted."""
    size = length(raw)
    entries = json.loads(header(raw, size))
    if not metadata:
        entries.pop("__metadata__", None)
    found: dict[str, Tensor] = {}
    for name, entry in entries.items():
        assert entry[first_key] is not None
        first, last = entry["data_offsets"]
        part = raw[start(size) + first : start(size) + end(first, last)]
        numbers = torch.frombuffer(bytearray(part), dtype=kinds[entry["dtype"]])
        found[name] = numbers.reshape(shape(entry["shape"]))
    return found


def read_safetensors(raw: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file that holds F32 and BF16, by name."""
    return _parsed(raw)


def _with_numpy(raw: bytes) -> dict[str, Tensor]:
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:][:size].decode()), raw[8 + size :]
    found: dict[str, Tensor] = {}
    for name in header.keys() - {"__metadata__"}:
        entry = header[name]
        part = data[slice(*entry["data_offsets"])]
        if entry["dtype"] == "F32":
            numbers = torch.from_numpy(np.frombuffer(part, "<f4").copy())
        else:  # the upper half of a float32
            wide = np.frombuffer(part, "<u2").astype(np.uint32) << 16
            numbers = torch.from_numpy(wide.view(np.float32)).bfloat16()
        found[name] = numbers.view(entry["shape"])
    return found


def _saved(metadata: dict[str, str] | None = None, **tensors: Tensor) -> Case:
    return (safetensors.torch.save(tensors, metadata=metadata),)


def _files(rng: torch.Generator) -> Iterable[Case]:
    rows = int(torch.randint(2, 6, (1,), generator=rng))
    yield _saved(v=torch.tensor([4.0, 2.0, 1.0, 2.0]))
    yield _saved(a=torch.tensor([1.0, 2.0]), b=torch.tensor([3.0, 4.0, 5.0]))
    yield _saved(w=torch.randn(rows, 7, generator=rng))
    yield _saved(w=torch.randn(3, rows, generator=rng).bfloat16())
    yield _saved(
        {"format": "pt"},
        norm=torch.rand(6, generator=rng),
        wq=torch.randn(rows, 6, generator=rng).bfloat16(),
        wk=torch.randn(2, 6, generator=rng),
    )


def _wrongly(**changed: Any) -> Callable[[bytes], dict[str, Tensor]]:
    return lambda raw: _parsed(raw, **changed)


def _widened(raw: bytes) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in _parsed(raw).items()}


check_safetensors = Check(
    name="9.1",
    title="read a safetensors file",
    reference=read_safetensors,
    inputs=_files,
    solutions=(_with_numpy, safetensors.torch.load),
    mistakes={
        "The offsets are counted from the start of the file. In safetensors they begin "
        "where the header ends: add 8 and the header's length.": _wrongly(
            start=lambda size: 0
        ),
        "The numbers are taken from 8 bytes too early. The header's length does not "
        "count the 8 bytes in front of it: the numbers begin at 8 + length.": _wrongly(
            start=lambda size: size
        ),
        "The numbers are taken from right behind the first 8 bytes, where the header "
        "lies. They begin at 8 + length.": _wrongly(start=lambda size: 8),
        "The length is read with its bytes in the wrong order (big-endian). "
        "Safetensors writes the smallest byte first: '<Q', or 'little'.": _wrongly(
            length=lambda raw: struct.unpack(">Q", raw[:8])[0]
        ),
        "The header is read from byte 0 on. The first 8 bytes are its length, and it "
        "begins behind them.": _wrongly(header=lambda raw, size: raw[:size]),
        "The header is read up to byte `length`. It begins at byte 8, so it ends at "
        "8 + length.": _wrongly(header=lambda raw, size: raw[8:size]),
        "The length is taken for 4 bytes, and the header for what follows them. "
        "Safetensors gives the length 8 bytes.": _wrongly(
            length=lambda raw: struct.unpack("<I", raw[:4])[0],
            header=lambda raw, size: raw[4 : 4 + size],
        ),
        "The second offset is taken for a length. Both are places: a tensor goes from "
        "the first to the second.": _wrongly(end=lambda first, last: first + last),
        "BF16 is read as float16. Both have two bytes, but bfloat16 has eight bits of "
        "exponent, like float32, and float16 has five.": _wrongly(
            kinds=_KINDS | {"BF16": torch.float16}
        ),
        "BF16 is read as float32, so there are half as many numbers as the shape asks "
        "for. A BF16 has two bytes.": _wrongly(kinds=_KINDS | {"BF16": torch.float32}),
        "BF16 comes out as float32. The numbers are right; but the loader keeps the "
        "type that the file has, and converts later if it is asked to.": _widened,
        "The shape is not used: every tensor comes out flat. The file keeps numbers "
        "row by row; reshape them.": _wrongly(shape=lambda shape: [-1]),
        "The shape is turned round. GGUF names the fastest axis first; safetensors "
        "names it last, as PyTorch does.": _wrongly(shape=lambda shape: shape[::-1]),
        "The entry `__metadata__` is taken for a tensor, and has no offsets. It holds "
        "remarks of the writer: skip it.": _wrongly(metadata=True),
        "The entry `__metadata__` is taken for a tensor, and has no dtype. It holds "
        "remarks of the writer: skip it.": _wrongly(metadata=True, first_key="dtype"),
        "The entry `__metadata__` is taken for a tensor, and has no shape. It holds "
        "remarks of the writer: skip it.": _wrongly(metadata=True, first_key="shape"),
    },
)


# 9.2 the row order of query and key matrices


def permute(w: Tensor, n_heads: int) -> Tensor:
    """Rows from halves, as Hugging Face has them, to neighbours, as Llama has them."""
    return w.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _by_index(w: Tensor, n_heads: int) -> Tensor:
    half = len(w) // n_heads // 2
    rows = []
    for head in range(n_heads):
        for i in range(half):
            rows += [2 * half * head + i, 2 * half * head + half + i]
    return w[rows]


def _by_stack(w: Tensor, n_heads: int) -> Tensor:
    heads = w.reshape(n_heads, -1, w.shape[1])
    first, second = heads.chunk(2, dim=1)
    return torch.stack((first, second), 2).reshape(w.shape)


def _matrices(rng: torch.Generator) -> Iterable[Case]:
    # Six rows a head: with four, the order would be its own inverse.
    yield torch.tensor([[0.0, 10], [1, 11], [2, 12], [3, 13], [4, 14], [5, 15]]), 1
    half = int(torch.randint(4, 7, (1,), generator=rng))
    for n_heads, head_dim in ((2, 6), (3, 8), (2, 2 * half)):
        columns = 2 * n_heads * 3
        yield torch.randn(n_heads * head_dim, columns, generator=rng), n_heads


check_permute = Check(
    name="9.2",
    title="permute",
    reference=permute,
    inputs=_matrices,
    solutions=(_by_index, _by_stack),
    mistakes={
        "That is the way back, from neighbours to halves. Hugging Face's row i of a "
        "head becomes row 2i here, and row i + Dh/2 becomes row 2i + 1.": (
            lambda w, n: w.unflatten(0, (n, -1, 2)).transpose(1, 2).flatten(0, 2)
        ),
        "The whole matrix is shuffled as one head. RoPE pairs rows within a head: "
        "split into n_heads first.": lambda w, n: permute(w, 1),
        "Nothing has moved: a view gives new axes to the same order. Exchange the two "
        "axes before you flatten: transpose(1, 2).": lambda w, n: w.clone(),
        "The columns are shuffled. RoPE turns what comes out of the matrix, a number "
        "for each row: the rows have to move.": lambda w, n: permute(w.T, n).T,
        "The second of each pair stands first. Llama's row 2i is Hugging Face's row i, "
        "and 2i + 1 is i + Dh/2.": lambda w, n: (
            w.unflatten(0, (n, 2, -1)).flip(1).transpose(1, 2).flatten(0, 2)
        ),
        "The two halves of each head have changed places. Llama weaves them: first, "
        "second, first, second.": lambda w, n: (
            w.unflatten(0, (n, 2, -1)).flip(1).flatten(0, 2)
        ),
        "n_heads is taken for Dh/2, half the rows of a head. The rows lie as "
        "(n_heads, 2, Dh/2).": lambda w, n: (
            w.unflatten(0, (-1, 2, n)).transpose(1, 2).flatten(0, 2)
        ),
        "The rows of a head are in their places, but the heads are woven into one "
        "another. Keep n_heads the outermost axis.": lambda w, n: (
            w.unflatten(0, (n, 2, -1)).permute(2, 0, 1, 3).flatten(0, 2)
        ),
    },
)


# 9.3 a name and a tensor of Hugging Face's


def convert(
    name: str, weight: Tensor, n_heads: int, n_kv_heads: int
) -> tuple[str, Tensor]:
    """Our name for a tensor of Hugging Face's, and its rows in our order."""
    layer = re.search(r"\d+", name)
    number = layer[0] if layer else ""
    foreign = name.replace(f".{number}.", ".{}.", 1) if layer else name
    native = NATIVE[DIALECTS["hf"].index(foreign)].format(number)
    for part, heads in (("wq", n_heads), ("wk", n_kv_heads)):
        if f".{part}." in native:
            weight = permute(weight, heads)
    return native, weight


_RENAMED = (
    ("model.", ""),
    ("embed_tokens", "tok_embeddings"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.", "attention."),
    ("q_proj", "wq"),
    ("k_proj", "wk"),
    ("v_proj", "wv"),
    ("o_proj", "wo"),
    ("mlp.", "feed_forward."),
    ("gate_proj", "w_gate"),
    ("up_proj", "w_up"),
    ("down_proj", "w_down"),
    ("lm_head", "output"),
)


def _by_replacing(
    name: str, weight: Tensor, n_heads: int, n_kv_heads: int
) -> tuple[str, Tensor]:
    for old, new in _RENAMED:
        name = name.replace(old, new)
    if name.endswith("wq.weight"):
        weight = _by_index(weight, n_heads)
    elif name.endswith("wk.weight"):
        weight = _by_index(weight, n_kv_heads)
    return name, weight


def _by_parts(
    name: str, weight: Tensor, n_heads: int, n_kv_heads: int
) -> tuple[str, Tensor]:
    table = dict(_RENAMED[1:]) | {"self_attn": "attention", "mlp": "feed_forward"}
    parts = [p for p in name.split(".") if p != "model"]
    native = ".".join(table.get(part, part) for part in parts)
    heads = {"wq": n_heads, "wk": n_kv_heads}.get(native.split(".")[-2])
    head_dim = len(weight) // heads if heads else 2
    return native, from_dialect(weight, native, "hf", head_dim)


def _named(change: Callable[[str], str]) -> Callable[..., tuple[str, Tensor]]:
    def wrong(name: str, w: Tensor, h: int, k: int) -> tuple[str, Tensor]:
        native, weight = convert(name, w, h, k)
        return change(native), weight

    return wrong


def _with_model(name: str, w: Tensor, h: int, k: int) -> tuple[str, Tensor]:
    native, weight = convert(name, w, h, k)
    return ("model." if name.startswith("model.") else "") + native, weight


def _swap(one: str, other: str) -> Callable[[str], str]:
    both = {one: other, other: one}
    return lambda name: re.sub(f"{one}|{other}", lambda found: both[found[0]], name)


Turn = Callable[[Tensor, int, int], Tensor]


def _turned(**parts: Turn) -> Callable[..., tuple[str, Tensor]]:
    """A wrong version that treats the rows of some matrices in another way."""

    def wrong(name: str, w: Tensor, h: int, k: int) -> tuple[str, Tensor]:
        native, weight = convert(name, w, h, k)
        turn = parts.get(native.split(".")[-2])
        return native, turn(w, h, k) if turn else weight

    return wrong


def _as_they_are(w: Tensor, h: int, k: int) -> Tensor:
    return w


def _back(heads: Callable[[int, int], int]) -> Turn:
    return lambda w, h, k: (
        w.unflatten(0, (heads(h, k), -1, 2)).transpose(1, 2).flatten(0, 2)
    )


def _tensors(rng: torch.Generator) -> Iterable[Case]:
    heads, kv_heads, head_dim, dim = 4, 2, 8, 32
    norm = torch.arange(6.0)
    yield "model.layers.0.input_layernorm.weight", norm, heads, kv_heads
    yield "model.layers.3.post_attention_layernorm.weight", norm, heads, kv_heads
    yield "model.norm.weight", norm, heads, kv_heads
    layer = 10 + int(torch.randint(20, (1,), generator=rng))
    rows = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    for part, n in rows.items():
        w = torch.randn(n, dim, generator=rng)
        yield f"model.layers.{layer}.self_attn.{part}_proj.weight", w, heads, kv_heads
    w = torch.randn(dim, heads * head_dim, generator=rng)
    yield "model.layers.0.self_attn.o_proj.weight", w, heads, kv_heads
    for part in ("gate", "up", "down"):
        w = torch.randn(4, 6, generator=rng)
        yield f"model.layers.{layer}.mlp.{part}_proj.weight", w, heads, kv_heads
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield name, torch.randn(16, dim, generator=rng), heads, kv_heads


check_convert = Check(
    name="9.3",
    title="convert",
    reference=convert,
    inputs=_tensors,
    solutions=(_by_replacing, _by_parts),
    mistakes={
        "The two norms of a layer are exchanged. Hugging Face's input_layernorm stands "
        "before attention (attention_norm), post_attention_layernorm before the "
        "feed-forward (ffn_norm).": _named(_swap("attention_norm", "ffn_norm")),
        "gate_proj and up_proj are exchanged. They have one shape, so nothing would "
        "complain: gate_proj is w_gate, up_proj is w_up.": _named(
            _swap("w_gate", "w_up")
        ),
        "up_proj and down_proj are exchanged. up_proj widens (w_up), down_proj narrows "
        "(w_down).": _named(_swap("w_up", "w_down")),
        "The leading `model.` is still there. Our names have none.": _with_model,
        "Of the layer's number only the first digit is left. Layers go up to 31 in "
        "Llama 3 8B.": _named(lambda name: re.sub(r"\.(\d)\d+\.", r".\1.", name)),
        "The feed-forward has Meta's names w1, w3, w2. Here they are w_gate, w_up and "
        "w_down.": _named(
            lambda name: (
                name.replace("w_gate", "w1")
                .replace("w_up", "w3")
                .replace("w_down", "w2")
            )
        ),
        "lm_head keeps its name. Here it is `output`.": _named(
            lambda name: name.replace("output", "lm_head")
        ),
        "The rows of q and k are as they were: halves. Llama's RoPE turns neighbours: "
        "permute both.": _turned(wq=_as_they_are, wk=_as_they_are),
        "The rows of q are permuted and those of k are not. RoPE turns both: permute "
        "both.": _turned(wk=_as_they_are),
        "The rows of k are permuted and those of q are not. RoPE turns both: permute "
        "both.": _turned(wq=_as_they_are),
        "k is permuted in n_heads heads. Keys have n_kv_heads, and more rows a head "
        "than that.": _turned(wk=lambda w, h, k: permute(w, h)),
        "v is permuted, too. RoPE never turns values: only q and k move.": _turned(
            wv=lambda w, h, k: permute(w, k)
        ),
        "o is permuted, too. RoPE never turns what attention gives: only q and k "
        "move.": _turned(wo=lambda w, h, k: permute(w, h)),
        "q and k are permuted the other way, from neighbours to halves. Hugging Face's "
        "row i of a head becomes row 2i here.": _turned(
            wq=_back(lambda h, k: h), wk=_back(lambda h, k: k)
        ),
        "q is permuted in n_kv_heads heads. Queries have n_heads.": _turned(
            wq=lambda w, h, k: permute(w, k)
        ),
    },
)


# 9.4 blocks of Q4_1


def dequantise(blocks: Tensor) -> Tensor:
    """N blocks of 20 bytes to N rows of 32 numbers: scale x q + minimum."""
    scale, low = _halves(blocks)
    return scale * _quants(blocks) + low


def _halves(blocks: Tensor) -> tuple[Tensor, Tensor]:
    pair = blocks[:, :4].contiguous().view(torch.float16).float()
    return pair[:, :1], pair[:, 1:]


def _quants(blocks: Tensor) -> Tensor:
    return torch.cat((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), 1)


def _by_struct(blocks: Tensor) -> Tensor:
    rows = []
    for block in blocks.tolist():
        scale, low, *packed = struct.unpack("<ee16B", bytes(block))
        quants = [byte % 16 for byte in packed] + [byte // 16 for byte in packed]
        rows.append([scale * q + low for q in quants])
    return torch.tensor(rows)


def _by_numpy(blocks: Tensor) -> Tensor:
    raw = blocks.numpy()
    pair = raw[:, :4].copy().view(np.float16).astype(np.float32)
    quants = raw[:, None, 4:] >> np.array([0, 4], np.uint8)[:, None] & 15
    scaled = pair[:, :1] * quants.reshape(len(raw), 32).astype(np.float32)
    return torch.from_numpy(scaled + pair[:, 1:])


def _packed(scale: Tensor, low: Tensor, quants: Tensor) -> Tensor:
    pair = torch.stack((scale, low), 1).half().view(torch.uint8)
    quants = quants.to(torch.uint8)
    return torch.cat((pair, quants[:, :16] | quants[:, 16:] << 4), 1)


def _blocks(rng: torch.Generator) -> Iterable[Case]:
    up = torch.arange(16)
    quants = torch.cat((up, up.flip(0)))[None]
    yield (_packed(torch.tensor([0.5]), torch.tensor([-3.0]), quants),)
    more = int(torch.randint(5, 9, (1,), generator=rng))
    for n in (2, 3, more):
        scale = 0.1 + torch.rand(n, generator=rng)
        low = -3 * torch.rand(n, generator=rng) - 0.5
        yield (_packed(scale, low, torch.randint(16, (n, 32), generator=rng)),)


def _other_quants(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def wrong(blocks: Tensor) -> Tensor:
        scale, low = _halves(blocks)
        return scale * change(blocks[:, 4:]) + low

    return wrong


def _otherwise(
    join: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[Tensor], Tensor]:
    return lambda blocks: join(*_halves(blocks), _quants(blocks))


def _pair_of(dtype: torch.dtype, start: int = 0) -> Callable[[Tensor], Tensor]:
    def wrong(blocks: Tensor) -> Tensor:
        pair = blocks[:, start : start + 4].contiguous().view(dtype).float()
        quants = blocks[:, 4:] if start == 0 else blocks[:, :16]
        return pair[:, :1] * torch.cat((quants & 15, quants >> 4), 1) + pair[:, 1:]

    return wrong


def _first_ruler(blocks: Tensor) -> Tensor:
    scale, low = _halves(blocks[:1])
    return scale * _quants(blocks) + low


def _kept_half(blocks: Tensor) -> Tensor:
    return _in_half(blocks).half()


def _in_half(blocks: Tensor) -> Tensor:
    scale, low = blocks[:, :4].contiguous().view(torch.float16).split(1, 1)
    return (scale * _quants(blocks) + low).float()


check_dequantise = Check(
    name="9.4",
    title="dequantise Q4_1",
    reference=dequantise,
    inputs=_blocks,
    solutions=(_by_struct, _by_numpy),
    mistakes={
        "The two halves of a byte come out side by side. In GGUF the low halves of the "
        "16 bytes are numbers 0 to 15, and the high halves are 16 to 31.": (
            _other_quants(lambda b: torch.stack((b & 15, b >> 4), 2).flatten(1))
        ),
        "The high halves stand first. In GGUF the low halves of the bytes are numbers "
        "0 to 15, and the high halves are 16 to 31.": _other_quants(
            lambda b: torch.cat((b >> 4, b & 15), 1)
        ),
        "8 is taken off every q, as Q4_0 does. Q4_1 has a minimum instead, and its q "
        "goes from 0 to 15.": _other_quants(
            lambda b: torch.cat((b & 15, b >> 4), 1).float() - 8
        ),
        "The minimum is taken off. It is the smallest number of the block itself, and "
        "is added: scale x q + minimum.": _otherwise(lambda s, m, q: s * q - m),
        "Scale and minimum are exchanged. The block begins with the scale, and the "
        "minimum follows.": _otherwise(lambda s, m, q: m * q + s),
        "The minimum is added before the scaling. Q4_1 scales q alone: scale x q + "
        "minimum.": _otherwise(lambda s, m, q: s * (q + m)),
        "The minimum is left out. Q4_1 adds it to scale x q.": _otherwise(
            lambda s, m, q: s * q
        ),
        "The scale is left out. Q4_1 multiplies q by it and adds the minimum.": (
            _otherwise(lambda s, m, q: q + m)
        ),
        "The high halves are not shifted down, so they are 16 times too large. Shift "
        "them by four bits: byte >> 4.": _other_quants(
            lambda b: torch.cat((b & 15, b & 240), 1)
        ),
        "The low halves still have the high ones on top. Keep the last four bits "
        "alone: byte & 15.": _other_quants(lambda b: torch.cat((b, b >> 4), 1)),
        "Scale and minimum are read as bfloat16. They are float16 (half).": _pair_of(
            torch.bfloat16
        ),
        "Scale and minimum are looked for at the end. A block of Q4_1 begins with "
        "them, and 16 bytes follow.": _pair_of(torch.float16, 16),
        "Every block is measured with the ruler of the first. Each has a scale and a "
        "minimum of its own.": _first_ruler,
        "It is computed in float16, and comes out so. Make scale and minimum float32 "
        "first.": _kept_half,
        "It is computed in float16, and rounds on the way. Make scale and minimum "
        "float32 first.": _in_half,
    },
)


# 9.5 what a model takes


def memory(config: LlamaConfig, itemsize: int, context: int) -> int:
    """Bytes of the weights and of the cache of so many tokens."""
    c = config
    numbers = 2 * c.n_layers * c.n_kv_heads * c.head_dim * context
    return (c.n_params() + numbers) * itemsize


def _layer_by_layer(config: LlamaConfig, itemsize: int, context: int) -> int:
    total = config.n_params() * itemsize
    for _ in range(config.n_layers):
        for _ in ("keys", "values"):
            total += context * config.n_kv_heads * config.head_dim * itemsize
    return total


class _Element:
    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize


def _asking_the_config(config: LlamaConfig, itemsize: int, context: int) -> int:
    cache = config.kv_cache_bytes(tokens=context, dtype=_Element(itemsize))
    return itemsize * config.n_params() + cache


def _models(rng: torch.Generator) -> Iterable[tuple[LlamaConfig, int, int]]:
    yield _small(layers=3, heads=5, kv_heads=1, head_dim=2), 4, 100
    yield LlamaConfig.preset("llama3-8b"), 2, 8192
    context = int(torch.randint(1000, 8000, (1,), generator=rng))
    yield LlamaConfig.preset("llama3.2-1b"), 2, context
    yield _small(layers=2, heads=6, kv_heads=3, head_dim=4), 1, 7 * context
    yield _small(layers=5, heads=4, kv_heads=2, head_dim=6), 2, context


def _small(*, layers: int, heads: int, kv_heads: int, head_dim: int) -> LlamaConfig:
    return LlamaConfig(
        dim=heads * head_dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=30,
        vocab_size=50,
        max_seq_len=100_000,
    )


def _cache(
    change: Callable[[int, LlamaConfig, int, int], int],
) -> Callable[[LlamaConfig, int, int], int]:
    """A wrong total: the bytes of the cache are changed."""

    def wrong(c: LlamaConfig, itemsize: int, context: int) -> int:
        weights = c.n_params() * itemsize
        right = memory(c, itemsize, context) - weights
        return weights + change(right, c, itemsize, context)

    return wrong


check_memory = Check(
    name="9.5",
    title="memory",
    reference=memory,
    inputs=_models,
    solutions=(_layer_by_layer, _asking_the_config),
    mistakes={
        "The cache is left out. Decoding keeps the keys and values of all tokens, in "
        "all layers.": _cache(lambda right, c, b, n: 0),
        "The weights are left out. Every parameter takes itemsize bytes.": (
            lambda c, b, n: memory(c, b, n) - c.n_params() * b
        ),
        "The cache has keys or values, not both. Llama keeps both: twice as much.": (
            _cache(lambda right, c, b, n: right // 2)
        ),
        "The cache is counted for one layer. Each layer has its own.": _cache(
            lambda right, c, b, n: right // c.n_layers
        ),
        "The cache is counted for n_heads heads. With grouped queries only n_kv_heads "
        "are kept.": _cache(lambda right, c, b, n: right * c.n_rep),
        "The cache is counted for one head. There are n_kv_heads.": _cache(
            lambda right, c, b, n: right // c.n_kv_heads
        ),
        "The cache is counted for one token. It keeps `context` of them.": _cache(
            lambda right, c, b, n: right // n
        ),
        "The cache counts numbers, not bytes. Each takes itemsize bytes.": _cache(
            lambda right, c, b, n: right // b
        ),
        "The weights count numbers, not bytes. Each takes itemsize bytes.": (
            lambda c, b, n: memory(c, b, n) - c.n_params() * (b - 1)
        ),
        "The cache has dim numbers for each KV head. A head has head_dim.": _cache(
            lambda right, c, b, n: right // c.head_dim * c.dim
        ),
        "Every number is given four bytes, whatever itemsize says.": (
            lambda c, b, n: memory(c, 4, n)
        ),
        "Every number is given two bytes, whatever itemsize says.": (
            lambda c, b, n: memory(c, 2, n)
        ),
        "These are bits. itemsize is in bytes already: no factor of 8.": (
            lambda c, b, n: 8 * memory(c, b, n)
        ),
        "These are GiB. Give bytes: no division by 1024.": (
            lambda c, b, n: memory(c, b, n) / 2**30
        ),
        "These are GB. Give bytes: no division by 1000.": (
            lambda c, b, n: memory(c, b, n) / 10**9
        ),
    },
)
