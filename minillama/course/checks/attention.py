"""Checks of notebook 04: masks, attention, grouped queries."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minillama.attention import Attention, attend
from minillama.config import LlamaConfig
from minillama.course.check import Case, Check, fill
from minillama.rope import apply_rope, rope_frequencies

# 4.1 causal_mask


def causal_mask(new: int, seen: int) -> Tensor:
    """True where one of the last `new` of `seen` tokens may look: not after itself."""
    return torch.arange(seen) <= torch.arange(seen - new, seen)[:, None]


def _mask_by_loop(new: int, seen: int) -> Tensor:
    rows = [[key <= seen - new + row for key in range(seen)] for row in range(new)]
    return torch.tensor(rows)


def _numbers_mask(new: int, seen: int) -> Tensor:
    return torch.zeros(new, seen).masked_fill(~causal_mask(new, seen), -torch.inf)


def _sizes(rng: torch.Generator) -> Iterable[Case]:
    yield from ((3, 3), (2, 4), (1, 1), (1, 5))
    new, past = torch.randint(2, 9, (2,), generator=rng).tolist()
    yield new, new + past


check_causal_mask = Check(
    name="4.1",
    title="causal_mask",
    reference=causal_mask,
    inputs=_sizes,
    solutions=(
        _mask_by_loop,
        lambda new, seen: torch.ones(new, seen, dtype=torch.bool).tril(seen - new),
        lambda new, seen: ~torch.ones(seen, seen).triu(1).bool()[seen - new :],
    ),
    mistakes={
        "The diagonal is hidden. In Llama a token sees itself too: key <= "
        "query.": lambda new, seen: torch.ones(new, seen, dtype=torch.bool).tril(
            seen - new - 1
        ),
        "Each token sees one token ahead, which is the one it shall predict. Llama's "
        "sees none after itself.": lambda new, seen: torch.ones(
            new, seen, dtype=torch.bool
        ).tril(seen - new + 1),
        "True and False are exchanged. Here, as in PyTorch's attention, True means "
        "that a key may be seen.": lambda new, seen: ~causal_mask(new, seen),
        "Each token sees itself and what comes after. Llama's sees itself and what "
        "came before.": lambda new, seen: torch.ones(new, seen, dtype=torch.bool).triu(
            seen - new
        ),
        "The new tokens are taken for the first of all. They are the last: row 0 "
        "stands at position seen - new.": lambda new, seen: torch.ones(
            new, seen, dtype=torch.bool
        ).tril(),
        "Everything is visible. In Llama no token sees a later "
        "one.": lambda new, seen: torch.ones(new, seen, dtype=torch.bool),
        "The mask lies on its side: keys down, queries across. Llama's has a row for "
        "each query.": lambda new, seen: causal_mask(new, seen).T,
        "The mask holds numbers, 0 and -inf, to be added. The one wanted here holds "
        "True (seen) and False (hidden).": _numbers_mask,
        "The mask holds 1 and 0. The one wanted here is of dtype bool.": (
            lambda new, seen: causal_mask(new, seen).float()
        ),
    },
)

# 4.2 attend, as many KV heads as query heads


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1)


def _softmax_of(
    scores: Tensor, v: Tensor, mask: Tensor | None, axis: int = -1
) -> Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(axis) @ v


def _mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _softmax_of(_scores(q, k) / q.shape[-1] ** 0.5, v, mask)


def _by_exp(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.einsum("bhtd,bhsd->bhts", q / q.shape[-1] ** 0.5, k)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    if mask is not None:
        weights = weights * mask
    return torch.einsum("bhts,bhsd->bhtd", weights, v) / weights.sum(-1, keepdim=True)


def _by_loop(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    rows = torch.empty_like(q)
    for t in range(q.shape[2]):
        seen = slice(None) if mask is None else mask[t]
        keys, values = k[:, :, seen], v[:, :, seen]
        weights = ((keys * q[:, :, t : t + 1]).sum(-1) / q.shape[-1] ** 0.5).softmax(-1)
        rows[:, :, t] = (weights[..., None] * values).sum(2)
    return rows


def _masked_later(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weights = (_scores(q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights if mask is None else weights * mask) @ v


def _filled_with_zero(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = _scores(q, k) / q.shape[-1] ** 0.5
    return (scores if mask is None else scores * mask).softmax(-1) @ v


def _no_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = _scores(q, k) / q.shape[-1] ** 0.5
    return (scores if mask is None else scores * mask) @ v


def _inverted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _mixed(q, k, v, None if mask is None else ~mask)


def _over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _softmax_of(_scores(q, k) / q.shape[-1] ** 0.5, v, mask, axis=-2)


def _heads(rng: torch.Generator) -> Iterable[Case]:
    q = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 2.0]])
    k = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 1.0, 0.0, 0.0]])
    v = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 3.0, 0.0]])
    yield q[None, None], k[None, None], v[None, None], None
    yield q[None, None], k[None, None], v[None, None], causal_mask(2, 2)
    past = int(torch.randint(1, 5, (1,), generator=rng))
    shapes = ((1, 1, 3, 3, 6), (2, 3, 5, 5, 8), (2, 2, 3, 3 + past, 4))
    for batch, heads, new, seen, head_dim in shapes:
        q = torch.randn(batch, heads, new, head_dim, generator=rng)
        k, v = torch.randn(2, batch, heads, seen, head_dim, generator=rng)
        yield q, k, v, causal_mask(new, seen)


check_attend = Check(
    name="4.2",
    title="attend",
    reference=attend,
    inputs=_heads,
    atol=1e-5,
    solutions=(_mixed, _by_exp, _by_loop),
    mistakes={
        "The scores are not scaled. Llama divides them by sqrt(Dh), else the softmax "
        "picks one key alone.": lambda q, k, v, mask: _softmax_of(
            _scores(q, k), v, mask
        ),
        "The scores are divided by Dh. Llama divides by its root, sqrt(Dh).": (
            lambda q, k, v, mask: _softmax_of(_scores(q, k) / q.shape[-1], v, mask)
        ),
        "The scores are divided by the root of the whole width, H * Dh. Llama divides "
        "by the root of one head's, sqrt(Dh).": lambda q, k, v, mask: _softmax_of(
            _scores(q, k) / (q.shape[1] * q.shape[-1]) ** 0.5, v, mask
        ),
        "The scores are multiplied by sqrt(Dh). Llama divides by it.": (
            lambda q, k, v, mask: _softmax_of(
                _scores(q, k) * q.shape[-1] ** 0.5, v, mask
            )
        ),
        "The softmax runs over the queries. Llama's runs over the keys, the last axis: "
        "each query's weights add up to one.": _over_queries,
        "The mask is not used, so tokens see the future. Llama hides every key after "
        "the query.": lambda q, k, v, mask: _mixed(q, k, v, None),
        "The mask is read the wrong way round. True means that the key may be "
        "seen: hide where it is False.": _inverted,
        "The mask comes after the softmax, so weights no longer add up to one. Llama "
        "puts -inf into the scores before it.": _masked_later,
        "Hidden scores are set to 0, and exp(0) is 1: still seen. Llama sets them "
        "to -inf.": _filled_with_zero,
        "There is no softmax. Llama turns scores into weights that are positive and "
        "add up to one.": _no_softmax,
        "The keys are mixed in place of the values. Llama weighs by the keys and adds "
        "up the values.": lambda q, k, v, mask: _mixed(q, k, k, mask),
    },
)

# 4.3 repeat_kv


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """Give each KV head to n_rep query heads: B K S Dh to B H S Dh."""
    return x.repeat_interleave(n_rep, 1)


def _expanded(x: Tensor, n_rep: int) -> Tensor:
    batch, heads, seen, head_dim = x.shape
    wide = x[:, :, None].expand(batch, heads, n_rep, seen, head_dim)
    return wide.reshape(batch, heads * n_rep, seen, head_dim)


def _kv_heads(rng: torch.Generator) -> Iterable[Case]:
    yield torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 1, 2), 2
    yield torch.arange(1.0, 9.0).reshape(1, 2, 2, 2), 3
    yield torch.randn(2, 3, 4, 4, generator=rng), 1
    n_rep = int(torch.randint(2, 5, (1,), generator=rng))
    yield torch.randn(2, 4, 5, 6, generator=rng), n_rep


check_repeat_kv = Check(
    name="4.3",
    title="repeat_kv",
    reference=repeat_kv,
    inputs=_kv_heads,
    solutions=(
        _expanded,
        lambda x, n_rep: torch.stack([x] * n_rep, 2).flatten(1, 2),
        lambda x, n_rep: x[:, torch.arange(x.shape[1] * n_rep) // n_rep],
    ),
    mistakes={
        "The heads come as 0 1 0 1. Llama's come as 0 0 1 1: query head h uses KV head "
        "h // n_rep (repeat_interleave, not repeat).": lambda x, n_rep: x.repeat(
            1, n_rep, 1, 1
        ),
        "The tokens are repeated. Llama repeats the heads, axis 1.": lambda x, n_rep: (
            x.repeat_interleave(n_rep, 2)
        ),
        "The numbers inside a head are repeated. Llama repeats the heads, axis "
        "1.": lambda x, n_rep: x.repeat_interleave(n_rep, -1),
        "The batch is repeated. Llama repeats the heads, axis 1.": lambda x, n_rep: (
            x.repeat_interleave(n_rep, 0)
        ),
        "The copies lie on an axis of their own. Llama merges it with the heads: "
        "flatten(1, 2).": lambda x, n_rep: torch.stack([x] * n_rep, 2),
        "The KV heads come back unrepeated. Llama gives each to n_rep query "
        "heads.": lambda x, n_rep: x.clone(),
        "All query heads get the first KV head: that is multi-query attention. Llama "
        "gives each KV head its own n_rep query heads.": lambda x, n_rep: x[
            :, :1
        ].repeat_interleave(n_rep * x.shape[1], 1),
        "Heads and tokens are mixed by a reshape. Llama copies whole heads: expand a "
        "new axis right after the heads.": lambda x, n_rep: (
            x.repeat(1, 1, n_rep, 1)
            .transpose(1, 2)
            .reshape(x.shape[0], -1, x.shape[2], x.shape[3])
        ),
    },
)

# 4.4 Attention, the whole module


def _tables(config: LlamaConfig, tokens: int) -> tuple[Tensor, Tensor]:
    clocks = rope_frequencies(config.head_dim, config.rope_theta)
    angles = torch.outer(torch.arange(tokens), clocks)
    return angles.cos(), angles.sin()


def _with_weights(cls: type[nn.Module]) -> Callable[..., Any]:
    def attention(
        config: LlamaConfig, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor
    ) -> Any:
        names = {"wq": wq, "wk": wk, "wv": wv, "wo": wo}
        module = fill(cls(config), {f"{n}.weight": w for n, w in names.items()})
        tokens = x.shape[1]
        return module(x, _tables(config, tokens), causal_mask(tokens, tokens))

    return attention


def _plain(
    config: LlamaConfig,
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    *,
    split: Callable[[Tensor, int], Tensor] = lambda y, width: y.unflatten(
        -1, (-1, width)
    ).transpose(1, 2),
    turn: Callable[
        [list[Tensor], tuple[Tensor, Tensor]], list[Tensor]
    ] = lambda qkv, r: [
        apply_rope(qkv[0], *r),
        apply_rope(qkv[1], *r),
        qkv[2],
    ],
    repeat: Callable[[Tensor, int], Tensor] = repeat_kv,
    mix: Callable[..., Tensor] = _mixed,
    merge: Callable[[Tensor], Tensor] = lambda y: y.transpose(1, 2).flatten(2),
) -> Tensor:
    """Grouped-query attention step by step, each of which can be replaced."""
    tokens = x.shape[1]
    qkv = [split(x @ w.T, config.head_dim) for w in (wq, wk, wv)]
    q, k, v = turn(qkv, _tables(config, tokens))
    k, v = repeat(k, config.n_rep), repeat(v, config.n_rep)
    return merge(mix(q, k, v, causal_mask(tokens, tokens))) @ wo.T


def _but(**steps: Any) -> Callable[..., Tensor]:
    return lambda *case: _plain(*case, **steps)


class _Stepwise(Attention):
    def forward(self, x: Tensor, rope: Any, mask: Any, cache: Any = None) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.wq(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        n_rep = q.shape[1] // k.shape[1]
        out = _mixed(q, repeat_kv(k, n_rep), repeat_kv(v, n_rep), mask)
        return self.wo(out.transpose(1, 2).reshape(batch, tokens, -1))


class _Grouped(Attention):
    """Queries get an axis for their group, so that nothing is repeated."""

    def forward(self, x: Tensor, rope: Any, mask: Any, cache: Any = None) -> Tensor:
        q, k, v = (
            w(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        q = q.unflatten(1, (k.shape[1], -1))  # B K n_rep T Dh
        scores = torch.einsum("bkrtd,bksd->bkrts", q, k) / self.head_dim**0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        out = torch.einsum("bkrts,bksd->btkrd", weights, v)
        return self.wo(out.flatten(2))


def _tiled(y: Tensor, n_rep: int) -> Tensor:
    return y.repeat(1, n_rep, 1, 1)


def _split_at_once(y: Tensor, width: int) -> Tensor:
    return y.reshape(y.shape[0], -1, y.shape[1], width)


def _models(rng: torch.Generator) -> Iterable[Case]:
    shapes = ((2, 2, 2, 1, 2), (4, 2, 4, 1, 3), (4, 2, 4, 2, 4), (6, 2, 4, 2, 6))
    for n_heads, n_kv_heads, head_dim, batch, tokens in shapes:
        config = LlamaConfig(
            dim=n_heads * head_dim,
            n_layers=1,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            ffn_dim=8,
            vocab_size=8,
            max_seq_len=16,
            rope_theta=100.0,
        )
        dim, kv_dim = config.dim, n_kv_heads * head_dim
        sizes = ((dim, dim), (kv_dim, dim), (kv_dim, dim), (dim, dim))
        x = torch.randn(batch, tokens, dim, generator=rng)
        weights = [torch.randn(s, generator=rng) / s[1] ** 0.5 for s in sizes]
        yield config, x, *weights


check_attention = Check(
    name="4.4",
    title="Attention",
    reference=Attention,
    adapt=_with_weights,
    inputs=_models,
    atol=1e-5,
    solutions=(_Stepwise, _Grouped),
    mistakes={
        "The KV heads are repeated as 0 1 0 1. Llama's query head h uses KV head "
        "h // n_rep: 0 0 1 1.": _but(repeat=_tiled),
        "Neither queries nor keys are turned by RoPE. Llama turns both, in every "
        "layer.": _but(turn=lambda qkv, r: qkv),
        "The keys are not turned by RoPE. Llama turns queries and keys, else their "
        "product does not know the distance.": _but(
            turn=lambda qkv, r: [apply_rope(qkv[0], *r), qkv[1], qkv[2]]
        ),
        "The queries are not turned by RoPE. Llama turns queries and keys, else their "
        "product does not know the distance.": _but(
            turn=lambda qkv, r: [qkv[0], apply_rope(qkv[1], *r), qkv[2]]
        ),
        "The values are turned by RoPE too. Llama turns queries and keys alone: values "
        "say what, not where.": _but(
            turn=lambda qkv, r: [apply_rope(y, *r) for y in qkv]
        ),
        "The mask is not used, so tokens see the future. Llama hides every key after "
        "the query.": _but(mix=lambda q, k, v, mask: _mixed(q, k, v, None)),
        "The scores are not scaled. Llama divides them by sqrt(Dh).": _but(
            mix=lambda q, k, v, mask: _softmax_of(_scores(q, k), v, mask)
        ),
        "Heads are cut with one reshape, which mixes tokens and heads. Llama splits "
        "the last axis, then exchanges the axes of tokens and heads.": _but(
            split=_split_at_once
        ),
        "Heads are joined without exchanging tokens and heads back. Llama does "
        "transpose(1, 2) before it flattens them.": _but(
            merge=lambda y: y.reshape(y.shape[0], y.shape[2], -1)
        ),
        "wo is not used. Llama sends the joined heads through it.": (
            lambda config, x, wq, wk, wv, wo: _plain(
                config, x, wq, wk, wv, torch.eye(config.dim)
            )
        ),
        "x goes straight through wo, without attention: no token hears of another. "
        "Llama sends the joined heads through wo.": (
            lambda config, x, wq, wk, wv, wo: x @ wo.T
        ),
        "The values alone go through wo: each token keeps its own. Llama mixes the "
        "values of all tokens before it, weighted by their scores.": _but(
            mix=lambda q, k, v, mask: v
        ),
        "Keys and values are exchanged: wk makes the keys, wv the values.": (
            lambda config, x, wq, wk, wv, wo: _plain(config, x, wq, wv, wk, wo)
        ),
    },
)
