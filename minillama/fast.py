"""The same model, faster on a CPU: fused projections, and a block in one call to C.

Decoding reads weights, and nearly all else is waiting: for small operations to be
started, for threads to meet. So a block's seven products become four, and its one step
for one new token is `block_step` of native/decode.c. The core stays as it is:
`accelerate` swaps finished blocks for faster ones that compute the same.
"""

import ctypes
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
    def joined(cls, linears: list[Any]) -> "FastLinear":
        """One product for several Linears of one kind with one input: rows on rows.

        Raises ValueError where `can_join` is False.
        """
        if not can_join(linears):
            raise ValueError("these Linears are of different kinds, or of odd sizes")
        size = sum(x.out_features for x in linears), linears[0].in_features

        def rows(name: str) -> Tensor:
            return torch.cat([getattr(linear, name).detach() for linear in linears])

        if isinstance(linears[0], Int8Linear):
            data = _tiles(rows("q"), 8)
            return cls(_INT8, size, data, _scales(rows("scale")))
        if isinstance(linears[0], Int4Linear):
            data = _tiles(rows("packed"), 4)
            scale, zero = rows("scale"), rows("zero")
            symmetric = torch.equal(zero, -8 * scale)  # Q4_0: nothing to be read
            kept = None if symmetric else _scales(zero)
            return cls(_INT4, size, data, _scales(scale), kept)
        weight = rows("weight")
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
                weight = self.weight(start, start + step)
                torch.mm(rows, weight.T, out=y[:, start : start + step])
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def weight(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows `start` to `end` - 1 as float32."""
        end = min(self.out_features, self.out_features if end is None else end)
        if self.kind not in (_INT8, _INT4):
            return self.data[start:end].float()
        rows = torch.empty(end - start, self.in_features)
        threads = torch.get_num_threads()
        matrix = ctypes.byref(self.matrix())
        _library().unpack(matrix, start, end - start, rows.data_ptr(), threads)
        return rows


class FastBlock(nn.Module):
    """A block of a Llama whose step for one new token is one call.

    Prompts, padded batches and caches of other kinds go through PyTorch's operations.
    The residual stream is in float32, whatever the weights are in.
    """

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
        self.wqkv = FastLinear.joined([attention.wq, attention.wk, attention.wv])
        self.wo = FastLinear.joined([attention.wo])
        self.w_gate_up = FastLinear.joined([feed_forward.w_gate, feed_forward.w_up])
        self.w_down = FastLinear.joined([feed_forward.w_down])
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
        h = self._normalised(x, self.attention_norm)
        q, k, v = self._turned(self.wqkv(h), rope).split(self.heads, 1)
        whole = cache is None or cache.length == 0
        if cache is not None:
            k, v = (part.to(x.dtype) for part in cache.update(k, v))
        if whole and mask is not None and mask.dim() == 2:
            # The same mask in a form that lets half of the work be left out.
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )
        else:
            out = attend(q, k, v, mask)
        x += self.wo(out.transpose(1, 2).flatten(2))
        h = self._normalised(x, self.ffn_norm)
        return x.add_(self.w_down(self._gated(self.w_gate_up(h))))

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

    def _turned(self, qkv: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys and values, B (H + 2 K) T Dh, the first two turned in place."""
        cos, sin = (part.float().contiguous() for part in rope)
        batch, tokens, width = qkv.shape
        _library().rope_rows(
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            batch,
            tokens,
            width,
            sum(self.heads[:2]),
            self.head_dim,
            torch.get_num_threads(),
        )
        return qkv.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up."""
        rows, ffn = gate_up.shape[0] * gate_up.shape[1], self.w_down.in_features
        y = gate_up.new_empty(*gate_up.shape[:2], ffn)
        _library().swiglu_rows(
            gate_up.data_ptr(), rows, ffn, y.data_ptr(), torch.get_num_threads()
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
        return native.Block(
            wqkv=self.wqkv.matrix(),
            wo=self.wo.matrix(),
            w_gate_up=self.w_gate_up.matrix(),
            w_down=self.w_down.matrix(),
            attention_norm=self.attention_norm.data_ptr(),
            ffn_norm=self.ffn_norm.data_ptr(),
            norm_eps=self.norm_eps,
            dim=self.wqkv.in_features,
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
    names = _swap_if_any(model, lambda _, module: _can_be_fast(module), FastBlock)

    def alone(name: str, module: nn.Module) -> bool:
        packed = isinstance(module, (Int8Linear, Int4Linear))
        plain = name == "output" and type(module) is nn.Linear
        return (packed or plain) and can_join([module])

    return names + _swap_if_any(model, alone, lambda x: FastLinear.joined([x]))


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


def can_join(linears: list[Any]) -> bool:
    """True if decode.c can compute these Linears as one."""
    kinds = {type(linear) for linear in linears}
    if kinds == {nn.Linear}:
        dtypes = {linear.weight.dtype for linear in linears}
        on_cpu = all(linear.weight.device.type == "cpu" for linear in linears)
        bare = all(linear.bias is None for linear in linears)
        return bare and on_cpu and len(dtypes) == 1 and dtypes <= set(_KINDS)
    if kinds not in ({Int8Linear}, {Int4Linear}):
        return False
    shapes = {linear.scale.shape[1] for linear in linears}
    fits = all(x.out_features % ROWS == x.in_features % GROUP == 0 for x in linears)
    on_cpu = all(linear.scale.device.type == "cpu" for linear in linears)
    known = shapes <= {1, linears[0].in_features // GROUP}
    return fits and on_cpu and known and len(shapes) == 1


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
        and can_join([attention.wq, attention.wk, attention.wv])
        and can_join([feed_forward.w_gate, feed_forward.w_up])
        and can_join([attention.wo])
        and can_join([feed_forward.w_down])
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
    return (
        whole.view(-1, ROWS, whole.shape[1] // words, words)
        .permute(0, 2, 3, 1)
        .contiguous()
    )


def _scales(scale: Tensor) -> Tensor:
    """Scales in the order of the tiles: N/8 G 8."""
    return scale.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def _library() -> ctypes.CDLL:
    library = native.library()
    if library is None:
        raise ValueError(f"there is no fast path here: {native.why_not()}")
    return library
