"""One compiled step: the same logits, and a clean way back where nothing compiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loud import loud_model

from minillama import Parts, native
from minillama.cache import KVCache
from minillama.compiled import _Step, compile_model, compile_step
from minillama.model import Llama
from minillama.norm import RMSNorm
from minillama.packed import PackedInt4Linear
from minillama.quantize import quantize


@pytest.fixture(autouse=True)
def uncompiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes half a minute: the step itself is what is tested here."""
    if "compiles" not in request.keywords:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def run(model: Llama, tokens: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    caches = KVCache.for_model(
        model.config, batch=len(tokens), max_seq_len=40, dtype=torch.float64
    )
    for cache in caches:  # memory as it may come: what is masked must not count
        cache.keys.fill_(float("nan"))
        cache.values.fill_(float("nan"))
    with torch.inference_mode():
        return torch.cat([model(part, caches) for part in tokens.split(pieces, 1)], 1)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 1, 5], [11, 1]])
def test_the_step_gives_the_plain_logits(pieces: list[int]) -> None:
    model = loud_model().double()
    tokens = torch.randint(131, (2, 12))
    want = model(tokens)
    compile_step(model)
    torch.testing.assert_close(run(model, tokens, pieces), want, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("uncompiled")
def test_other_calls_stay_plain() -> None:
    model = loud_model()
    tokens, pad = torch.randint(131, (2, 6)), torch.tensor([0, 2])
    want = model(tokens, None, pad)
    compile_step(model)
    assert torch.equal(model(tokens, None, pad), want)
    caches = KVCache.for_model(model.config, max_seq_len=1)
    model(tokens[:1, :1], caches)
    with pytest.raises(ValueError, match="room for 1 tokens of 1 sequences, and 2"):
        model(tokens[:1, :1], caches)
    fresh = KVCache.for_model(model.config, max_seq_len=4)
    with pytest.raises(ValueError, match="1 tokens of 2 are needed"):
        model(tokens[:, :1], fresh)
    assert fresh[0].length == 0


@pytest.mark.usefixtures("uncompiled")
def test_it_says_what_it_did() -> None:
    if native.library() is not None:
        done = compile_model(loud_model())
        assert done.done
        assert str(done).startswith("3 blocks run as compiled C (")
    # A part of a learner's own is no work for decode.c.
    own = type("Own", (RMSNorm,), {})
    model = loud_model(parts=Parts(norm=lambda c: own(c.dim, c.norm_eps)))
    done = compile_model(model)
    assert str(done).startswith("the step runs through torch.compile on cpu (")
    assert "hidden" in vars(model)


def test_a_compiler_that_fails_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(self: _Step, *_: object) -> None:
        raise RuntimeError("Failed to find a working compiler\nand a long trace")

    monkeypatch.setattr(_Step, "__call__", fails)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "why_not", lambda: "")
    model = loud_model()
    tokens = torch.randint(131, (1, 6))
    want = model(tokens)
    done = compile_model(model)
    assert not done.done
    assert str(done) == "not compiled: Failed to find a working compiler"
    assert "hidden" not in vars(model)
    assert torch.equal(model(tokens), want)


def test_without_asking_nobody_waits_for_torch_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", None)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "why_not", lambda: "there is no C compiler")
    model = loud_model(dim=64, ffn_dim=96, vocab_size=144)
    quantize(model, "int4")
    done = compile_model(model, wait=False)
    assert str(done) == "not compiled: there is no C compiler"
    assert isinstance(model.layers[0].attention.wq, PackedInt4Linear)


@pytest.mark.skipif(native.library() is None, reason="needs a compiler")
def test_torch_compile_takes_the_step_whole() -> None:
    """fullgraph=True in compile_step: a break in the graph would raise.

    In a process without the checks of shapes, which torch.compile cannot look through.
    """
    code = """
import torch
real = torch.compile  # all but the C++ compiler, which takes half a minute
torch.compile = lambda f, mode, **how: real(f, backend="aot_eager", **how)
from loud import loud_model
from minillama import KVCache
from minillama.compiled import compile_step
model = loud_model(n_layers=1)
tokens = torch.randint(131, (1, 6))
with torch.inference_mode():
    want = model(tokens)
    compile_step(model)
    caches = KVCache.for_model(model.config, max_seq_len=8)
    got = torch.cat([model(part, caches) for part in tokens.split([3, 1, 1, 1], 1)], 1)
print((got - want).abs().max().item() < 1e-4)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "True"


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_a_gpu_replays_the_step_as_a_graph(kind: str | None) -> None:
    model = loud_model(dim=64, ffn_dim=96)
    if kind:
        quantize(model, kind)
    model = model.cuda()
    tokens = torch.randint(131, (1, 12), device="cuda")
    want = model(tokens)
    assert compile_model(model).done
    caches = KVCache.for_model(model.config, max_seq_len=40, device="cuda")
    got = torch.cat([model(part, caches) for part in tokens.split([5, *[1] * 7], 1)], 1)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
