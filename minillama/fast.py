"""The same model, faster on a CPU: a whole block in one call to C.

Decoding reads weights, and nearly all else is waiting: for small operations to be
started, for threads to meet. So all that a block does for one new token is one call,
`block_step` of native/decode.c. The core stays as it is:
`accelerate` swaps finished blocks for faster ones that compute the same.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillama import native
from minillama.attention import Attention, attend
from minillama.cache import KVCache
from minillama.feed_forward import FeedForward
from minillama.model import Block, Llama
from minillama.norm import RMSNorm
from minillama.quantize import GROUP, KINDS, Int4Linear, Int8Linear, Small, maker
from minillama.swap import swap_modules

ROWS = 8
"""Rows of a packed weight that are computed side by side, one a lane of a register."""

FEW = 24
"""Up to so many rows of input the packed weights are used as they are; for more it is
faster to unpack them, a panel at a time, for a product of large matrices."""

PANEL = 1 << 22
"""Numbers that are unpacked at once: 16 MB stay in a processor's cache."""

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_INT8, _INT4 = 2, 3
_kept = threading.local()
_HEADS = ("wq", "wk", "wv", "wo")
_GATES = ("w_gate", "w_up", "w_down")


class FastLinear(nn.Module):
    """A weight of any kind, in the order in which decode.c reads it."""

    data: Tensor
    scale: Tensor | None
    zero: Tensor | None

    def __init__(
        self,
        kind: int,
        size: tuple[int, int],
        data: Tensor,
        scale: Tensor | None = None,
        zero: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.out_features, self.in_features = size
        self.register_buffer("data", data)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)

    @classmethod
    def of(cls, linear: Any) -> "FastLinear":
        """The same product. A plain weight stays where it lies, packed ones are tiled.

        Raises ValueError where `is_known` is False.
        """
        if not is_known(linear):
            raise ValueError(f"decode.c knows no {linear}: see is_known")
        size = linear.out_features, linear.in_features
        if isinstance(linear, Int8Linear):
            return cls(_INT8, size, _tiles(linear.q, 8), _scales(linear.scale))
        if isinstance(linear, Int4Linear):
            symmetric = torch.equal(linear.zero, -8 * linear.scale)  # Q4_0: not read
            zero = None if symmetric else _scales(linear.zero)
            tiles = _tiles(linear.packed, 4)
            return cls(_INT4, size, tiles, _scales(linear.scale), zero)
        weight = linear.weight.detach()
        return cls(_KINDS[weight.dtype], size, weight)

    def matrix(self) -> native.Matrix:
        """What decode.c is told. It points to this module's memory."""
        scale = self.scale.data_ptr() if self.scale is not None else None
        zero = self.zero.data_ptr() if self.zero is not None else None
        one_a_row = self.scale is not None and self.scale.shape[1] == 1
        return native.Matrix(
            data=self.data.data_ptr(),
            scale=scale,
            zero=zero,
            n=self.out_features,
            k=self.in_features,
            kind=self.kind,
            scale_step=0 if one_a_row else ROWS,
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().float().reshape(-1, self.in_features).contiguous()
        y = rows.new_empty(len(rows), self.out_features)
        if len(rows) <= FEW:
            scratch = rows.new_empty(len(rows) * (self.in_features + 8))
            _library().linear(
                ctypes.byref(self.matrix()),
                rows.data_ptr(),
                len(rows),
                y.data_ptr(),
                scratch.data_ptr(),
                torch.get_num_threads(),
            )
        else:
            step = max(ROWS, PANEL // self.in_features)
            for start in range(0, self.out_features, step):
                weight = self.weight(start, start + step, _panel)
                torch.mm(rows, weight.T, out=y[:, start : start + step])
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def weight(
        self,
        start: int = 0,
        end: int | None = None,
        room: Callable[[int, int], Tensor] = torch.empty,
    ) -> Tensor:
        """Rows `start` to `end` - 1 as float32; packed ones in what `room` gives."""
        end = min(self.out_features, self.out_features if end is None else end)
        if self.kind not in (_INT8, _INT4):
            return self.data[start:end].float()
        rows = room(end - start, self.in_features)
        threads = torch.get_num_threads()
        matrix = ctypes.byref(self.matrix())
        _library().unpack(matrix, start, end - start, rows.data_ptr(), threads)
        return rows


class FastBlock(nn.Module):
    """A block of a Llama whose step for one new token is one call.

    Prompts, padded batches and caches of other kinds go through PyTorch's operations.
    The residual stream is in float32, whatever the weights are in.
    """

    wq: FastLinear
    wk: FastLinear
    wv: FastLinear
    wo: FastLinear
    w_gate: FastLinear
    w_up: FastLinear
    w_down: FastLinear
    attention_norm: Tensor
    ffn_norm: Tensor

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention: Any = block.attention
        feed_forward: Any = block.feed_forward
        norm: Any = block.attention_norm
        self.head_dim: int = attention.head_dim
        self.norm_eps: float = norm.eps
        self.heads: list[int] = [
            x.out_features // self.head_dim
            for x in (attention.wq, attention.wk, attention.wv)
        ]
        for owner, names in ((attention, _HEADS), (feed_forward, _GATES)):
            for name in names:
                setattr(self, name, FastLinear.of(getattr(owner, name)))
        for name in ("attention_norm", "ffn_norm"):
            weight = getattr(block, name).weight.detach().float().clone()
            self.register_buffer(name, weight)
        self._c: native.Block | None = None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        one = x.shape[1] == 1 and mask is None
        if one and cache is not None and self._knows(cache, len(x)):
            return self.step(x, rope, cache)
        x = x.detach().to(torch.float32, copy=True).contiguous()
        x += self._attention(
            self._normalised(x, self.attention_norm), rope, mask, cache
        )
        h = self._normalised(x, self.ffn_norm)
        return x.add_(self.w_down(self._gated(self.w_gate(h), self.w_up(h))))

    def _attention(
        self,
        h: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor:
        q, k, v = (
            w(h).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv)
        )  # B T H Dh, B T K Dh, B T K Dh
        self._turn(q, rope)
        self._turn(k, rope)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        whole = cache is None or cache.length == 0
        if cache is not None:
            k, v = (part.to(q.dtype) for part in cache.update(k, v))
        if whole and mask is not None and mask.dim() == 2:
            # The same mask in a form that lets half of the work be left out.
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )
        else:
            out = attend(q, k, v, mask)
        return self.wo(out.transpose(1, 2).flatten(2))

    def _normalised(self, x: Tensor, weight: Tensor) -> Tensor:
        y = torch.empty_like(x)
        rows, dim = x.numel() // x.shape[-1], x.shape[-1]
        _library().norm_rows(
            x.data_ptr(),
            weight.data_ptr(),
            self.norm_eps,
            rows,
            dim,
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def _turn(self, heads: Tensor, rope: tuple[Tensor, Tensor]) -> None:
        """Turn B T H Dh in place."""
        cos, sin = (part.float().contiguous() for part in rope)
        batch, tokens, count, width = heads.shape
        _library().rope_rows(
            heads.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            batch,
            tokens,
            count * width,
            count,
            width,
            torch.get_num_threads(),
        )

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up."""
        y = torch.empty_like(gate)
        ffn = gate.shape[-1]
        _library().swiglu_rows(
            gate.data_ptr(),
            up.data_ptr(),
            gate.numel() // ffn,
            ffn,
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def step(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache) -> Tensor:
        """One new token a row, through decode.c."""
        batch, room = x.shape[0], cache.keys.shape[2]
        x = x.detach().to(torch.float32, copy=True).contiguous()
        cos, sin = (part.contiguous() for part in rope)
        block = self._as_c()
        past = native.Cache(
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            kind=_KINDS[cache.keys.dtype],
            room=room,
            length=cache.length,
        )
        library, threads = _library(), torch.get_num_threads()
        size = library.scratch_size(ctypes.byref(block), batch, cache.length, threads)
        scratch = torch.empty(size)
        library.block_step(
            ctypes.byref(block),
            x.data_ptr(),
            batch,
            cos.data_ptr(),
            sin.data_ptr(),
            ctypes.byref(past),
            scratch.data_ptr(),
            threads,
        )
        cache.length += 1
        return x

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "FastBlock":
        self._c = None  # memory moves: `.to()` and its like come through here
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_c": None}  # a copy has memory of its own

    def _as_c(self) -> native.Block:
        if self._c is None:
            self._c = self._described()
        return self._c

    def _described(self) -> native.Block:
        names = (*_HEADS, *_GATES)
        return native.Block(
            **{name: getattr(self, name).matrix() for name in names},
            attention_norm=self.attention_norm.data_ptr(),
            ffn_norm=self.ffn_norm.data_ptr(),
            norm_eps=self.norm_eps,
            dim=self.wq.in_features,
            ffn_dim=self.w_down.in_features,
            n_heads=self.heads[0],
            n_kv_heads=self.heads[1],
            head_dim=self.head_dim,
        )

    def _knows(self, cache: KVCache, batch: int) -> bool:
        """True for a cache that decode.c can write to; others raise or work as ever."""
        return (
            type(cache) is KVCache
            and cache.keys.dtype in _KINDS
            and cache.keys.device.type == "cpu"
            and cache.keys.is_contiguous()
            and cache.keys.shape[0] == batch
            and cache.length < cache.keys.shape[2]
        )


def accelerate(model: Llama) -> list[str]:
    """Swap what can be faster on this CPU, in place, and return the names.

    Blocks of the library's own parts, and quantised or plain outputs. What is of a
    learner's making, or of a kind that decode.c does not know, stays as it is. Raises
    ValueError, saying why, where there is no compiled decode.c.
    """
    _library()

    def fast(block: Block) -> FastBlock:
        native.give_back()  # what the block before this one left
        return FastBlock(block)

    names = _swap_if_any(model, lambda _, module: _can_be_fast(module), fast)

    def alone(name: str, module: nn.Module) -> bool:
        packed = isinstance(module, (Int8Linear, Int4Linear))
        plain = name == "output" and type(module) is nn.Linear
        return (packed or plain) and is_known(module)

    names += _swap_if_any(model, alone, FastLinear.of)
    native.give_back()
    return names


def quantized(weight: Tensor, kind: str, *, tied: bool = False) -> Small:
    """What `quantize.maker(kind)` makes of a weight, to the last bit, in one pass.

    In PyTorch's operations it is ten passes over memory, and 8B parameters take
    minutes.
    """
    library = native.library()
    kind = "int8" if tied else kind
    known = weight.device.type == "cpu" and weight.dtype in _KINDS
    if library is None or not known or weight.shape[1] % GROUP or kind not in KINDS:
        return maker(kind)(weight)
    weight = weight.detach().contiguous()
    n, k = weight.shape
    groups = 1 if kind == "int8" else k // GROUP
    scale, zero = torch.empty(2, n, groups, dtype=torch.float16)
    packed = torch.empty(n, k if kind == "int8" else k // 2, dtype=torch.uint8)
    library.quantize(
        weight.data_ptr(),
        _KINDS[weight.dtype],
        {"int8": _INT8, "int4": _INT4}[kind],
        n,
        k,
        packed.data_ptr(),
        scale.data_ptr(),
        zero.data_ptr(),
        torch.get_num_threads(),
    )
    if kind == "int8":
        return Int8Linear(packed.view(torch.int8), scale)
    return Int4Linear(packed, scale, zero)


def is_known(linear: Any) -> bool:
    """True if decode.c can compute this Linear: its kind, its size, on the CPU."""
    if type(linear) is nn.Linear:
        weight = linear.weight
        plain = linear.bias is None and weight.is_contiguous()
        return plain and weight.device.type == "cpu" and weight.dtype in _KINDS
    if type(linear) not in (Int8Linear, Int4Linear):
        return False
    whole = linear.out_features % ROWS == linear.in_features % GROUP == 0
    groups = linear.scale.shape[1]
    known = groups == linear.in_features // GROUP
    known |= groups == 1 and type(linear) is Int8Linear
    return whole and known and linear.scale.device.type == "cpu"


def _can_be_fast(module: nn.Module) -> bool:
    if type(module) is not Block:
        return False
    attention: Any = module.attention
    feed_forward: Any = module.feed_forward
    norms = (module.attention_norm, module.ffn_norm)
    return (
        type(attention) is Attention
        and type(feed_forward) is FeedForward
        and all(type(norm) is RMSNorm for norm in norms)
        and attention.attend is attend
        and all(is_known(getattr(attention, name)) for name in _HEADS)
        and all(is_known(getattr(feed_forward, name)) for name in _GATES)
        # These meet the same integers, whose order depends on the kind.
        and len({type(getattr(attention, name)) for name in _HEADS[:3]}) == 1
        and len({type(getattr(feed_forward, name)) for name in _GATES[:2]}) == 1
    )


def _swap_if_any(
    model: Llama, match: Callable[[str, nn.Module], bool], make: Callable[[Any], Any]
) -> list[str]:
    if not any(match(name, module) for name, module in model.named_modules()):
        return []
    return swap_modules(model, match, make, untie=True)


def _tiles(packed: Tensor, words: int) -> Tensor:
    """Packed rows as tiles of 8 rows and 32 columns: N/8 G C 8, 32-bit words.

    C words hold a group of 32 weights. The same word of 8 rows lies side by side, so
    that one register takes them all.
    """
    whole = packed.contiguous().view(torch.int32)
    rows, width = whole.shape
    tiles = torch.empty(rows // ROWS, width // words, words, ROWS, dtype=torch.int32)
    _library().to_tiles(
        whole.data_ptr(),
        rows,
        width // words,
        words,
        tiles.data_ptr(),
        torch.get_num_threads(),
    )
    return tiles


def _scales(scale: Tensor) -> Tensor:
    """Scales in the order of the tiles: N/8 G 8."""
    return scale.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def _panel(rows: int, columns: int) -> Tensor:
    """Room for unpacked rows: one for all products of a thread, as each is used up
    before the next. Made anew each time, it would leave holes in memory."""
    size = rows * columns
    kept: Tensor | None = getattr(_kept, "panel", None)
    if kept is None or kept.numel() < size:
        kept = _kept.panel = torch.empty(size)
    return kept[:size].view(rows, columns)


def _library() -> ctypes.CDLL:
    library = native.library()
    if library is None:
        raise ValueError(f"there is no fast path here: {native.why_not()}")
    return library
