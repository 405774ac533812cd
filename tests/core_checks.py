"""What must hold of the core, as functions: run as tests, and against the mutants.

They import the core when called, so that a mutated core can be put in its place.
"""

import numpy as np
import oracle
import torch

from minillama.config import RopeScaling

# The old context is 24 tokens and the sequence 40: beyond it, as real prompts will be.
STRETCHED = RopeScaling(factor=4.0, original_max_seq_len=24)
LOUD_EPS = 0.02


def _model(**changes: object):  # its class is another one under a mutant
    from loud import make_loud, small_config

    from minillama.model import Llama

    return make_loud(Llama(small_config(**changes))).double()


def _tokens(n: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 131, (batch, n), generator=generator)


def _close(got: torch.Tensor, want: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        got, torch.as_tensor(want), rtol=tolerance, atol=tolerance
    )


@torch.inference_mode()
def logits_follow_the_formulas() -> None:
    """The whole model against the loops of oracle.py, float64, 1e-9."""
    shapes: list[dict[str, object]] = [
        {},
        {"n_kv_heads": 6, "tied_embeddings": True},
        {"n_kv_heads": 1, "norm_eps": LOUD_EPS},
        {"head_dim": 20, "rope_scaling": STRETCHED},
    ]
    for changes in shapes:
        model = _model(n_layers=2, **changes)
        weights = {k: v.numpy() for k, v in model.state_dict().items()}
        tokens = _tokens(40)
        want = oracle.logits(weights, model.config, tokens[0].tolist())
        _close(model(tokens)[0], want)


@torch.inference_mode()
def cached_equals_uncached() -> None:
    """Every split of a prompt in two, and token by token, float64."""
    from minillama.cache import KVCache

    model = _model(rope_scaling=STRETCHED)
    tokens = _tokens(30, batch=2)
    want = model(tokens)
    splits = [[n, 30 - n] for n in range(1, 30)] + [[1] * 30, [7, 1, 9, 13]]
    for sizes in splits:
        caches = KVCache.for_model(
            model.config, batch=2, max_seq_len=30, dtype=torch.float64
        )
        pieces = [model(piece, caches) for piece in tokens.split(sizes, dim=1)]
        _close(torch.cat(pieces, 1), want)
        assert [c.length for c in caches] == [30, 30, 30]


@torch.inference_mode()
def padded_rows_equal_single_rows() -> None:
    """A batch of unequal prompts, padded on the left, whole and cached, float64."""
    from minillama.cache import KVCache

    model = _model()
    rows = [_tokens(n)[0] for n in (25, 17, 1)]
    more = _tokens(4, batch=3)
    pad = torch.tensor([25 - len(row) for row in rows])
    batch = torch.stack(
        [
            torch.cat([torch.zeros(int(p), dtype=torch.long), row])
            for p, row in zip(pad, rows, strict=True)
        ]
    )
    caches = KVCache.for_model(
        model.config, batch=3, max_seq_len=29, dtype=torch.float64
    )
    first = model(batch, caches, pad)
    second = torch.cat([model(t, caches, pad) for t in more.split(1, dim=1)], 1)
    assert not first.isnan().any()
    for i, row in enumerate(rows):
        want = model(torch.cat([row, more[i]])[None])[0]
        _close(first[i, int(pad[i]) :], want[: len(row)])
        _close(second[i], want[len(row) :])


@torch.inference_mode()
def parts_equal_torch() -> None:
    """Each part against what torch itself has, float64."""
    from minillama.attention import attend, causal_mask
    from minillama.norm import RMSNorm
    from minillama.rope import apply_rope, rope_frequencies

    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 6, 9, 16, generator=generator, dtype=torch.float64)
    norm = RMSNorm(16, LOUD_EPS).double()
    norm.weight.uniform_(0.5, 1.5, generator=generator)
    theirs = torch.nn.RMSNorm(16, LOUD_EPS, dtype=torch.float64)
    theirs.weight.copy_(norm.weight)
    _close(norm(x), theirs(x))

    angles = torch.outer(torch.arange(9), rope_frequencies(16, 100.0))
    turned = torch.view_as_complex(x.unflatten(-1, (8, 2))) * torch.polar(
        torch.ones_like(angles), angles
    )
    cos, sin = angles.cos(), angles.sin()
    _close(apply_rope(x, cos, sin), torch.view_as_real(turned).flatten(-2))

    q, k, v = x, x[:, :2].flip(-1), x[:, 2:4].roll(1, -1)
    heads = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), is_causal=True
    )
    _close(attend(q, k, v, causal_mask(9, 9)), heads)


def frequencies_are_metas() -> None:
    """The figures of Llama 3 and 3.1, worked out by hand from the rule."""
    from minillama.rope import rope_frequencies

    f = rope_frequencies(128, 500_000.0)
    known = {0: 1.0, 1: 0.81461723, 32: 1.41421356e-3, 63: 2.45514079e-6}
    for i, want in known.items():
        np.testing.assert_allclose(f[i], want, rtol=1e-8)
    ratio = rope_frequencies(128, 500_000.0, RopeScaling()) / f
    blended = [0.8282, 0.6437, 0.4935, 0.3711, 0.2714, 0.1902]
    assert torch.equal(ratio[:29], torch.ones(29))
    np.testing.assert_allclose(ratio[29:35], blended, atol=5e-5)
    np.testing.assert_allclose(ratio[35:], 1 / 8, rtol=1e-15)
    small = rope_frequencies(64, 500_000.0, RopeScaling(factor=32.0))
    ratio = small / rope_frequencies(64, 500_000.0)
    assert torch.equal(ratio[:15], torch.ones(15))
    assert ratio[15] < 1
    np.testing.assert_allclose(ratio[18:], 1 / 32, rtol=1e-15)
    assert ratio[17] > 1 / 32 * 1.001


ALL = [
    logits_follow_the_formulas,
    cached_equals_uncached,
    padded_rows_equal_single_rows,
    parts_equal_torch,
    frequencies_are_metas,
]
