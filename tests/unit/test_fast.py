"""The fast path on a CPU against the plain one, and against float64."""

import copy
import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Packing
from loud import loud_model
from torch import Tensor, nn

from minillama import Parts, capture, native
from minillama.cache import KVCache
from minillama.fast import FastBlock, FastLinear, accelerate, is_known, quantized
from minillama.model import Llama
from minillama.norm import RMSNorm
from minillama.quantize import Int4Linear, Int8Linear, from_blocks, maker, quantize

pytestmark = pytest.mark.skipif(
    native.library() is None, reason=f"no fast path here: {native.why_not()}"
)
KINDS = ["float32", "bfloat16", "int8", "int4", "Q8_0", "Q4_0", "Q4_1"]


def linear(kind: str, rows: int, columns: int) -> nn.Module:
    generator = torch.Generator().manual_seed(rows + columns)
    w = torch.randn(rows, columns, generator=generator)
    w *= torch.logspace(-2, 1, rows)[torch.randperm(rows, generator=generator), None]
    if kind == "int8":
        return Int8Linear.from_weight(w)
    if kind == "int4":
        return Int4Linear.from_weight(w)
    if kind in Packing.__members__:
        packing = Packing[kind]
        small = from_blocks(gguf.quantize(w.numpy(), packing), packing)
        assert small is not None
        return small
    plain = nn.Linear(columns, rows, bias=False, dtype=getattr(torch, kind))
    with torch.no_grad():
        plain.weight.copy_(w)
    return plain


def wide(module: nn.Module) -> Tensor:
    """The weight in float64, by the plain class."""
    plain = type(module) is nn.Linear
    return (module.weight if plain else module.weight()).detach().double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 32), (40, 96), (136, 320)])
def test_products_equal_dequantise_then_multiply(
    kind: str, size: tuple[int, int]
) -> None:
    """Within 1e-4 of the row's size: 16-bit activations err by 1.5e-5 of 32 at most."""
    old = linear(kind, *size)
    fast = FastLinear.of(old)
    assert torch.equal(fast.weight().double(), wide(old))
    for count in [*range(1, 10), 24, 25, 40]:
        x = torch.randn(count, size[1]) * torch.logspace(-3, 1, size[1])
        want = x.double() @ wide(old).T
        bound = x.double().norm(dim=1)[:, None] * wide(old).norm(dim=1)
        error = ((fast(x) - want).abs() / bound).max().item()
        assert error < (1e-6 if kind in ("float32", "bfloat16") else 1e-4), (
            count,
            error,
        )


def test_float_weights_may_have_any_size() -> None:
    for rows, columns in [(1, 1), (7, 31), (9, 50), (131, 48)]:
        old = linear("bfloat16", rows, columns)
        fast = FastLinear.of(old)
        for count in (1, 2, 3, 4, 5):
            x = torch.randn(count, columns)
            torch.testing.assert_close(
                fast(x).double(), x.double() @ wide(old).T, rtol=1e-5, atol=1e-5
            )


def test_what_decode_c_does_not_know() -> None:
    assert is_known(linear("int8", 8, 64))
    assert not is_known(linear("int8", 12, 64))
    assert not is_known(nn.Linear(8, 8, bias=True))
    assert not is_known(nn.Linear(8, 8, bias=False, dtype=torch.float16))
    with pytest.raises(ValueError, match="knows no Linear"):
        FastLinear.of(nn.Linear(8, 8, bias=True))


def test_a_plain_weight_is_not_copied() -> None:
    plain = nn.Linear(64, 16, bias=False)
    assert FastLinear.of(plain).data.data_ptr() == plain.weight.data_ptr()


def test_kinds_may_differ_from_product_to_product() -> None:
    model = loud_model(dim=64, ffn_dim=96, vocab_size=136)
    quantize(model, "int4")
    mixed = model.layers[1].attention
    mixed.wo = Int8Linear.from_weight(mixed.wo.weight())
    model.layers[2].attention.wv = Int8Linear.from_weight(mixed.wv.weight())
    fast = copy.deepcopy(model)
    assert accelerate(fast)[:2] == ["layers.0", "layers.1"]
    assert not isinstance(fast.layers[2], FastBlock)
    tokens = torch.randint(136, (1, 6))
    want = model(tokens)
    caches = KVCache.for_model(fast.config, max_seq_len=6)
    with torch.inference_mode():
        got = torch.cat([fast(part, caches) for part in tokens.split(1, 1)], 1)
    assert ((got - want).abs().max() / want.std()).item() < 2e-3


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
def test_nan_and_infinity_are_not_lost(kind: str) -> None:
    fast = FastLinear.of(linear(kind, 16, 64))
    for strange in (float("nan"), float("inf")):
        x = torch.randn(2, 64)
        x[1, 40] = strange
        y = fast(x)
        assert y[0].isfinite().all()
        assert not y[1].isfinite().any()
    assert torch.equal(fast(torch.zeros(1, 64)), torch.zeros(1, 16))


SHAPES = [
    {"dim": 64, "ffn_dim": 96, "vocab_size": 136},
    {
        "dim": 64,
        "ffn_dim": 96,
        "vocab_size": 136,
        "n_heads": 6,
        "n_kv_heads": 1,
    },  # more than 4 a KV head
    {
        "dim": 64,
        "ffn_dim": 96,
        "vocab_size": 136,
        "n_heads": 4,
        "n_kv_heads": 4,
        "head_dim": 24,
    },
    {
        "dim": 40,
        "ffn_dim": 56,
        "vocab_size": 131,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 12,
    },
]


def fast_and_plain(kind: str | None, shape: dict[str, int]) -> tuple[Llama, Llama]:
    plain = loud_model(**shape)
    if kind == "bfloat16":
        plain = plain.bfloat16()
    elif kind:
        quantize(plain, kind)
    fast = copy.deepcopy(plain)
    names = accelerate(fast)
    assert names == ["layers.0", "layers.1", "layers.2", "output"]
    if kind == "bfloat16":  # the fast one computes in float32 between its weights
        plain = plain.float()
    return fast, plain


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [None, "bfloat16", "int8", "int4"])
@torch.inference_mode()
def test_logits_are_those_of_the_plain_path(
    kind: str | None, shape: dict[str, int]
) -> None:
    """Token by token, in pieces, whole: 1e-5, or 2e-3 with integers, of their std."""
    if shape["dim"] % 32 and kind in ("int8", "int4"):
        pytest.skip("such rows cannot be packed")
    fast, plain = fast_and_plain(kind, shape)
    fast.tok_embeddings.float()
    tokens = torch.randint(131, (2, 30), generator=torch.Generator().manual_seed(1))
    want = plain(tokens)
    bound = 2e-3 if kind in ("int8", "int4") else 1e-5
    for pieces in ([30], [1] * 30, [7, 1, 1, 21], [29, 1]):
        caches = KVCache.for_model(fast.config, batch=2, max_seq_len=30)
        got = torch.cat([fast(part, caches) for part in tokens.split(pieces, 1)], 1)
        error = ((got - want).abs().max() / want.std()).item()
        assert error < bound, (pieces, error)
        assert [cache.length for cache in caches] == [30] * 3


@torch.inference_mode()
def test_what_enters_the_cache_is_the_plain_path_s() -> None:
    fast, plain = fast_and_plain(None, SHAPES[0])
    tokens = torch.randint(131, (1, 12))
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        ours, theirs = (
            KVCache.for_model(plain.config, max_seq_len=12, dtype=dtype) for _ in "ab"
        )
        for token in tokens.split(1, 1):
            fast(token, ours)
        plain(tokens, theirs) if dtype == torch.float32 else _in_float(
            plain, tokens, theirs
        )
        for a, b in zip(ours, theirs, strict=True):
            for one, other in ((a.keys, b.keys), (a.values, b.values)):
                torch.testing.assert_close(one, other, rtol=bound, atol=bound)


def _in_float(model: Llama, tokens: Tensor, caches: list[KVCache]) -> None:
    """The caches that a float32 run would leave, rounded."""
    wide = KVCache.for_model(model.config, max_seq_len=tokens.shape[1])
    model(tokens, wide)
    for narrow, whole in zip(caches, wide, strict=True):
        narrow.keys.copy_(whole.keys)
        narrow.values.copy_(whole.values)


@torch.inference_mode()
def test_padded_batches_take_the_plain_operations() -> None:
    fast, plain = fast_and_plain(None, SHAPES[0])
    tokens, pad = torch.randint(131, (2, 9)), torch.tensor([0, 4])
    ours, theirs = (
        KVCache.for_model(plain.config, batch=2, max_seq_len=9) for _ in "ab"
    )
    for part in tokens.split([6, 1, 1, 1], 1):
        torch.testing.assert_close(
            fast(part, ours, pad)[1, -1],
            plain(part, theirs, pad)[1, -1],
            rtol=1e-4,
            atol=1e-4,
        )


def test_a_full_cache_is_refused_as_ever() -> None:
    fast, _ = fast_and_plain(None, SHAPES[0])
    caches = KVCache.for_model(fast.config, max_seq_len=2)
    with torch.inference_mode():
        fast(torch.zeros(1, 2, dtype=torch.int64), caches)
        with pytest.raises(ValueError, match="room for 2 tokens of 1 sequences, and 3"):
            fast(torch.zeros(1, 1, dtype=torch.int64), caches)
        fresh = KVCache.for_model(fast.config, max_seq_len=2)
        with pytest.raises(ValueError, match="1 tokens of 3 are needed"):
            fast(torch.zeros(3, 1, dtype=torch.int64), fresh)


@torch.inference_mode()
def test_copies_and_moves_have_memory_of_their_own() -> None:
    fast, _ = fast_and_plain("int4", SHAPES[0])
    token = torch.zeros(1, 1, dtype=torch.int64)

    def run(model: Llama) -> Tensor:
        return model(token, KVCache.for_model(model.config, max_seq_len=2))

    want = run(fast)
    twin = copy.deepcopy(fast)
    for buffer in fast.buffers():
        buffer.zero_()
    assert torch.equal(run(twin), want)
    # As `.to()` does between devices: new memory, and the old one is gone.
    assert torch.equal(run(twin._apply(torch.clone)), want)


def test_a_learner_s_parts_stay() -> None:
    class Own(RMSNorm):
        pass

    model = loud_model(parts=Parts(norm=lambda c: Own(c.dim, c.norm_eps)))
    assert accelerate(model) == ["output"]
    assert not any(isinstance(layer, FastBlock) for layer in model.layers)


def test_capture_says_that_a_fused_block_cannot_be_looked_into() -> None:
    fast, _ = fast_and_plain(None, SHAPES[0])
    with (
        pytest.raises(ValueError, match="layer 0 is one fused step"),
        capture(fast, "attention"),
    ):
        pass


@pytest.fixture
def fresh_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Compile anew, in a cache of its own."""
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path))
    native._build.cache_clear()
    native.library.cache_clear()
    yield
    native._build.cache_clear()
    native.library.cache_clear()


@pytest.mark.usefixtures("fresh_build")
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MINILLAMA_NATIVE", "0", "MINILLAMA_NATIVE is 0"),
        ("CC", "false", "false could not compile decode.c"),
        ("PATH", "/nowhere", "there is no C compiler"),
    ],
)
def test_without_a_compiler_one_sentence_says_why(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(name, value)
    assert native.library() is None
    assert reason in native.why_not()
    with pytest.raises(ValueError, match=f"no fast path here: {reason}"):
        accelerate(loud_model())


@pytest.mark.usefixtures("fresh_build")
def test_it_is_compiled_once(tmp_path: Path) -> None:
    assert native.library() is not None
    [made] = (tmp_path / "native").iterdir()
    before = made.stat().st_mtime_ns
    native._build.cache_clear()
    native.library.cache_clear()
    assert native.library() is not None
    assert made.stat().st_mtime_ns == before


@pytest.mark.usefixtures("fresh_build")
def test_a_spoiled_file_is_made_anew() -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    made = native._place(compiler, native._OPTIONS[0])
    made.parent.mkdir(parents=True)
    made.write_bytes(b"not a library")
    assert native.library() is not None
    assert made.stat().st_size > 1000


def test_the_plain_c_computes_what_the_vector_code_does(tmp_path: Path) -> None:
    """What a processor without AVX2 runs: compiled with the intrinsics left out."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None
    made = tmp_path / "plain.so"
    source = Path(native.__file__).with_name("decode.c")
    flags = ["-std=c11", "-O1", "-DPLAIN_C", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    flags += ["-Wno-psabi"]
    done = subprocess.run(
        [compiler, *flags, "-shared", "-fPIC", str(source), "-o", str(made), "-lm"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "warning" not in done.stderr
    plain = ctypes.CDLL(str(made))
    plain.prepare()
    for kind in KINDS:
        fast = FastLinear.of(linear(kind, 40, 96))
        x, y, scratch = torch.randn(6, 96), torch.empty(6, 40), torch.empty(6 * 104)
        plain.linear(
            ctypes.byref(fast.matrix()),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(6),
            ctypes.c_void_p(y.data_ptr()),
            ctypes.c_void_p(scratch.data_ptr()),
            ctypes.c_int64(1),
        )
        torch.testing.assert_close(y, fast(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantising_in_one_pass_gives_the_same_bits(
    kind: str, dtype: torch.dtype
) -> None:
    w = torch.randn(40, 96) * torch.logspace(-7, 4, 40)[:, None]
    w[3] = 0
    w[4] = w[4, 0]
    w[5, 7] = 3e4
    w = w.to(dtype)
    ours, plain = quantized(w, kind), maker(kind)(w)
    for name, tensor in plain.named_buffers():
        assert torch.equal(getattr(ours, name), tensor), name
    assert type(quantized(w, "int4", tied=True)) is Int8Linear
    with pytest.raises(ValueError, match="choose int8, int4 or None"):
        quantized(w, "int5")


def test_float16_in_c_is_pytorch_s() -> None:
    """All 65,536 of them through a scale, and numbers between them, ties included."""
    halves = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    between = (halves[:-1] + halves[1:]) / 2
    numbers = torch.cat((halves[:-1], between, torch.nextafter(between, halves[1:])))
    numbers = numbers[: len(numbers) // 8 * 8]
    rows = torch.zeros(len(numbers), 32)
    rows[:, 0] = numbers  # the zero of a group is its smallest, here the negative
    small = quantized(-rows, "int4")
    assert isinstance(small, Int4Linear)
    assert torch.equal(small.zero[:, 0], -numbers.half())
