"""The core against the formulas, against torch, and against ten mistakes.

A mutant is the library's own source with one line changed. Each must be caught by one
of the checks that the unchanged source passes.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import core_checks
import pytest
import torch
from loud import loud_model, small_config

import minillama
from minillama.cache import KVCache
from minillama.model import Llama, Parts
from minillama.norm import RMSNorm

pytestmark = pytest.mark.usefixtures("in_float64")


@pytest.mark.parametrize("check", core_checks.ALL, ids=lambda c: c.__name__)
def test_core(check: Callable[[], None]) -> None:
    check()


HALVES = "even, odd = x.chunk(2, -1)"
# The name of the mistake: module, the line as it is, the line as somebody wrote it.
MUTANTS = {
    "no RoPE": (
        "attention",
        "q, k = apply_rope(q, *rope), apply_rope(k, *rope)",
        "q, k = q, k",
    ),
    "half-split RoPE": (
        "rope",
        "even, odd = x[..., 0::2], x[..., 1::2]",
        HALVES,
    ),
    "no scaling": (
        "rope",
        "return scale_frequencies(frequencies, scaling) if scaling else frequencies",
        "return frequencies",
    ),
    "eps": ("norm", "+ self.eps)", "+ 1e-6)"),
    "norm weight ignored": (
        "norm",
        "(wide * scale).type_as(x) * self.weight",
        "(wide * scale).type_as(x)",
    ),
    "gate and up swapped": (
        "feed_forward",
        "F.silu(self.w_gate(x)) * self.w_up(x)",
        "F.silu(self.w_up(x)) * self.w_gate(x)",
    ),
    "repeat instead of repeat_interleave": (
        "attention",
        "return F.scaled_dot_product_attention(q, k, v,",
        "n = q.shape[1] // k.shape[1]\n"
        "    k, v = k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1)\n"
        "    return F.scaled_dot_product_attention(q, k, v,",
    ),
    "mask off by one": (
        "attention",
        "visible = keys <= queries",
        "visible = keys <= queries + 1",
    ),
    "cache position off by one": (
        "model",
        "rope = self.rope_tables(start, seen,",
        "late = int(start > 0)\n"
        "        rope = self.rope_tables(start - late, seen - late,",
    ),
    "scale missing": (
        "attention",
        "attn_mask=mask, enable_gqa=True",
        "attn_mask=mask, enable_gqa=True, scale=1.0",
    ),
}


@contextlib.contextmanager
def mutated(module: str, old: str, new: str) -> Iterator[None]:
    """Put the changed source in the place of `minillama.<module>`.

    The core is imported afresh without the shape checks of jaxtyping: the formulas are
    to catch the mutant, not a type checker.
    """
    path = Path(minillama.__file__).with_name(f"{module}.py")
    source = path.read_text()
    assert source.count(old) == 1, f"the line of this mutant is gone: {old}"
    before = {k: v for k, v in sys.modules.items() if k.startswith("minillama.")}
    names = dict(vars(minillama))  # importing a module also binds it in its package
    config = sys.modules["minillama.config"]
    for name in before:
        del sys.modules[name]
    sys.modules["minillama.config"] = config
    finders = sys.meta_path[:]
    sys.meta_path[:] = [
        f for f in finders if not type(f).__module__.startswith("jaxtyping")
    ]
    try:
        spec = importlib.util.spec_from_file_location(f"minillama.{module}", path)
        assert spec is not None
        mutant = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = mutant
        exec(compile(source.replace(old, new), str(path), "exec"), mutant.__dict__)
        yield
    finally:
        sys.meta_path[:] = finders
        for name in [k for k in sys.modules if k.startswith("minillama.")]:
            del sys.modules[name]
        sys.modules.update(before)
        for name in vars(minillama).keys() - names.keys():
            delattr(minillama, name)
        vars(minillama).update(names)


def caught_by(checks: list[Callable[[], None]]) -> list[str]:
    """The names of the checks that fail."""
    names: list[str] = []
    for check in checks:
        try:
            check()
        except AssertionError:
            names.append(check.__name__)
    return names


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name: str) -> None:
    with mutated(*MUTANTS[name]):
        assert caught_by(core_checks.ALL), f"nobody noticed: {name}"


def test_the_unchanged_source_passes_the_same_way() -> None:
    line = "return self.norm(x)"
    with mutated("model", line, line):
        assert not caught_by(core_checks.ALL)


def test_a_mutant_is_gone_afterwards() -> None:
    before = sys.modules["minillama.norm"]
    with mutated(*MUTANTS["eps"]):
        assert sys.modules["minillama.norm"] is not before
    assert sys.modules["minillama.norm"] is before
    assert minillama.norm is before  # type: ignore[attr-defined]


def test_bfloat16_norm_takes_its_mean_in_float32() -> None:
    x = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    x[::2] = 3.0  # a running bfloat16 sum of these squares would stall at 512
    norm = RMSNorm(4096, 1e-5).bfloat16()
    want = (x.float() / 5.0**0.5).bfloat16()
    assert torch.equal(norm(x), want)
    assert norm(x).dtype == torch.bfloat16


def test_a_model_on_the_meta_device_comes_alive_with_its_weights_alone() -> None:
    model = loud_model()
    with torch.device("meta"):
        empty = Llama(model.config)
    assert not list(empty.buffers())
    empty.load_state_dict(model.state_dict(), assign=True)
    tokens = torch.arange(20)[None]
    assert torch.equal(empty(tokens), model(tokens))


def test_eight_billion_to_the_last_one() -> None:
    from minillama.config import LlamaConfig

    known = {
        "llama3-8b": 8_030_261_248,
        "llama3.2-1b": 1_235_814_400,
        "llama3.2-3b": 3_212_749_824,
    }
    for name, want in known.items():
        config = LlamaConfig.preset(name)
        with torch.device("meta"):
            built = sum(p.numel() for p in Llama(config).parameters())
        assert config.n_params() == built == want


def test_a_learners_part_is_used_in_every_place() -> None:
    made: list[str] = []

    def norm(config: object) -> RMSNorm:
        made.append("norm")
        return RMSNorm(48, 1e-5)

    Llama(small_config(), Parts(norm=norm))
    assert len(made) == 2 * 3 + 1


def test_tied_embeddings_are_one_tensor() -> None:
    model = Llama(small_config(tied_embeddings=True))
    assert model.output.weight is model.tok_embeddings.weight
    assert sum(p.numel() for p in model.parameters()) == model.config.n_params()


def test_the_cache_says_what_does_not_fit() -> None:
    config = small_config()
    model = loud_model().double()
    caches = KVCache.for_model(config, max_seq_len=8, dtype=torch.float64)
    model(torch.zeros(1, 8, dtype=torch.long), caches)
    with pytest.raises(ValueError, match="room for 8 tokens"):
        model(torch.zeros(1, 1, dtype=torch.long), caches)
    for tokens in (257, 0, -1):
        with pytest.raises(ValueError, match=f"for {tokens} tokens.* 1 to 256"):
            KVCache.for_model(config, max_seq_len=tokens)
    two = KVCache.for_model(config, batch=2, dtype=torch.float64)
    with pytest.raises(ValueError, match="of 2 sequences"):
        model(torch.zeros(1, 1, dtype=torch.long), two)


def test_a_truncated_cache_goes_on_from_there() -> None:
    model = loud_model().double()
    tokens = torch.arange(12)[None]
    caches = KVCache.for_model(model.config, max_seq_len=16, dtype=torch.float64)
    model(tokens, caches)
    model(torch.tensor([[99, 98, 97]]), caches)
    for cache in caches:
        cache.truncate(7)
    torch.testing.assert_close(model(tokens[:, 7:], caches), model(tokens)[:, 7:])
    with pytest.raises(ValueError, match="cannot keep 13 of 12"):
        caches[0].truncate(13)


def test_cache_bytes_are_what_the_config_says() -> None:
    config = small_config()
    caches = KVCache.for_model(config, batch=3, max_seq_len=50, dtype=torch.bfloat16)
    want = config.kv_cache_bytes(tokens=50, dtype=torch.bfloat16, batch=3)
    assert sum(cache.nbytes for cache in caches) == want
    eight = replace(config, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128)
    assert eight.kv_cache_bytes(tokens=1, dtype=torch.bfloat16) == 131_072


def test_fewer_caches_than_layers_is_an_error() -> None:
    model = loud_model()
    caches = KVCache.for_model(model.config, dtype=torch.float64)[:2]
    with pytest.raises(ValueError, match="zip"):
        model(torch.zeros(1, 1, dtype=torch.long), caches)
