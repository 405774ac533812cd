"""What a model takes: held against the published figures, and against what it took."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from loud import loud_model, small_config
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillama import fast, hub, native, plan
from minillama.config import PRESETS, LlamaConfig
from minillama.generate import new_caches, prefill
from minillama.model import Llama
from minillama.quantize import quantize

LLAMA3 = LlamaConfig.preset("llama3-8b")


def test_llama3_8b_as_published() -> None:
    need = plan.need(LLAMA3, dtype="bf16", context=8192)
    assert need.weights == 16_060_522_496
    assert need.cache == 1 << 30 == 131_072 * 8192
    assert plan.need(LLAMA3, dtype="bf16", context=8192, batch=3).cache == 3 << 30
    assert plan.need(LLAMA3, dtype="float32", context=8192).cache == 2 << 30
    assert plan.weight_bytes(LLAMA3, "float32") == 2 * need.weights
    assert need.loading == 4096 * 4096 * 2
    assert need.total == need.weights + need.cache + need.activations
    on_gpu = plan.need(LLAMA3, dtype="bf16", context=8192, device="cuda")
    assert on_gpu.loading == 128_256 * 4096 * 2


def test_loading_can_be_the_peak() -> None:
    """Packed weights are put in order at the end: the output at once, 5 bits each."""
    need = plan.need(LLAMA3, dtype="int4", context=1)
    assert need.loading == 128_256 * 4096 * 5 // 8
    assert need.total == need.weights + need.loading


@pytest.mark.parametrize("name", ["llama3-8b", "llama3.2-1b", "smollm2-135m"])
def test_integer_weights_against_the_modules_of_the_model(name: str) -> None:
    """Counted Linear by Linear on the meta device, scales and zeros included."""
    from minillama.model import Llama

    config = PRESETS[name]
    with torch.device("meta"):
        model = Llama(config)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    whole = sum(p.numel() for p in model.parameters())
    output = 0
    if config.tied_embeddings:
        # Its weight is the table of embeddings, which stays; beside it comes an int8.
        linears.remove(model.output)
        output = (config.dim + 2) * config.vocab_size
    rest = 2 * (whole - sum(m.weight.numel() for m in linears)) + output
    int8 = sum(m.weight.numel() + 2 * m.out_features for m in linears)
    groups = sum(m.weight.numel() // 32 for m in linears)
    int4 = sum(m.weight.numel() // 2 for m in linears) + groups * (2 + 2)
    assert plan.weight_bytes(config, "int8") == rest + int8
    assert plan.weight_bytes(config, "int4") == rest + int4


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within this block held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        before = {
            StorageWeakRef(x.untyped_storage()).cdata
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                ref = StorageWeakRef(x.untyped_storage())
                if ref.cdata in self.live or ref.cdata not in before:
                    self.live[ref.cdata] = (ref, x.untyped_storage().nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def with_a_mask_of_numbers(q: Any, k: Any, v: Any, mask: Any) -> Any:
    shown, hidden = torch.tensor([0, -torch.inf], dtype=q.dtype)
    numbers = torch.where(mask, shown, hidden)
    return F.scaled_dot_product_attention(q, k, v, numbers, enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        {"vocab_size": 4096},  # logits are the widest
        {"ffn_dim": 1024},  # the feed-forward is
        {"ffn_dim": 32, "vocab_size": 131},  # attention is
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_activations_against_the_tensors_that_were_alive(
    shape: dict[str, int], dtype: torch.dtype, batch: int
) -> None:
    """To the byte, padding included. The mask is made numbers of in sight: PyTorch does
    so where no mode can see it."""
    model = loud_model(**shape).to(dtype)
    for layer in model.layers:
        layer.attention.attend = with_a_mask_of_numbers
    ids = torch.randint(131, (batch, 256), generator=torch.Generator().manual_seed(1))
    pad = torch.arange(batch) if batch > 1 else None
    caches = new_caches(model, batch, 256)
    with Peak() as peak:
        prefill(model, ids, caches, pad, chunk=128)
    planned = plan.activation_bytes(
        model.config,
        dtype=str(dtype).removeprefix("torch."),
        context=256,
        batch=batch,
        chunk=128,
    )
    assert planned == peak.peak


@pytest.mark.skipif(native.library() is None, reason="there is no fast path here")
@pytest.mark.parametrize(("ffn_dim", "context"), [(512, 256), (64, 1024)])
def test_activations_of_a_quantised_model(ffn_dim: int, context: int) -> None:
    """To the byte where the feed-forward is the widest. Where attention is, the mask is
    made numbers of out of sight: the peak lies between the plan without and with it."""
    config = small_config(
        dim=64,
        n_heads=4,
        n_kv_heads=4,
        head_dim=32,
        ffn_dim=ffn_dim,
        vocab_size=128,
        max_seq_len=2048,
    )
    model = Llama(config).bfloat16().eval().requires_grad_(False)
    quantize(model, "int8")
    fast.accelerate(model)
    fast._kept.__dict__.clear()  # the panel is made in sight
    ids = torch.randint(128, (1, context), generator=torch.Generator().manual_seed(1))
    caches = new_caches(model, 1, context)
    with Peak() as peak:
        prefill(model, ids, caches, chunk=128)
    planned = plan.activation_bytes(config, dtype="int8", context=context, chunk=128)
    if ffn_dim == 512:
        assert planned == peak.peak
    else:
        assert planned - 128 * context * 4 < peak.peak < planned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_attention_is_counted_for_devices_without_tiles(
    dtype: torch.dtype,
) -> None:
    """Between what attention without tiles held, and 1.4 times that."""
    model = loud_model(vocab_size=131, ffn_dim=32).to(dtype)
    ids = torch.randint(131, (2, 256), generator=torch.Generator().manual_seed(1))

    def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
        k, v = (x.float().repeat_interleave(3, 1) for x in (k, v))
        scores = q.float() @ k.mT
        shares = scores.masked_fill_(~mask, -torch.inf).softmax(-1)
        return (shares @ v).to(q.dtype)

    for layer in model.layers:
        layer.attention.attend = attend
    caches = new_caches(model, 2, 256)
    with Peak() as peak:
        prefill(model, ids, caches, chunk=128)
    planned = plan.activation_bytes(
        model.config,
        dtype=str(dtype).removeprefix("torch."),
        context=256,
        batch=2,
        chunk=128,
        device="cuda",
    )
    assert peak.peak <= planned <= 1.4 * peak.peak


def test_the_cache_against_the_caches() -> None:
    model = loud_model().to(torch.bfloat16)
    took = sum(cache.nbytes for cache in new_caches(model, 2, 200))
    assert plan.need(model.config, context=200, batch=2).cache == took


def test_dtypes_have_short_names() -> None:
    for name in ("bf16", "BF16", "bfloat16"):
        assert plan.dtype_name(name) == "bfloat16"
    assert plan.dtype_name("fp32") == plan.dtype_name("f32") == "float32"
    assert plan.dtype_name("half") == "float16"
    with pytest.raises(ValueError, match="no dtype is called 'int3': choose float32, "):
        plan.dtype_name("int3")


def test_what_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match="9000 is more than this model's 8192"):
        plan.need(LLAMA3, context=9000)
    with pytest.raises(ValueError, match="must be at least 1"):
        plan.need(LLAMA3, context=8192, batch=0)
    with pytest.raises(ValueError, match="must be at least 1"):
        plan.need(LLAMA3, context=0)
    with pytest.raises(ValueError, match="no device is called 'tpu'"):
        plan.this_machine("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device here"):
            plan.this_machine("cuda")


def test_a_config_for_every_kind_of_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path / "home"))
    assert plan.config_of("llama3.1-405b") == PRESETS["llama3.1-405b"]
    assert plan.config_of("llama3-8b-instruct") == LLAMA3
    (tmp_path / "config.json").write_text(json.dumps(small_config().to_hf()))
    assert plan.config_of(tmp_path) == small_config()
    with pytest.raises(ValueError, match="did you mean llama3-8b or"):
        plan.config_of("llama3-8B")
    with pytest.raises(ValueError, match=r"is no model, no folder and no file$"):
        plan.config_of("zzz")
    with pytest.raises(ValueError, match="run `minillama pull llama3-tokenizer`"):
        plan.config_of("llama3-tokenizer")


def test_a_tokenizer_has_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"IQ== 0\n")
    with pytest.raises(ValueError, match="is a tokenizer: it has no config"):
        plan.config_of(path)


@pytest.mark.model
def test_the_pulled_model_has_its_presets_config(smollm2_path: Path) -> None:
    assert plan.config_of("smollm2-135m") == PRESETS["smollm2-135m"]
    assert plan.config_of(smollm2_path) == PRESETS["smollm2-135m"]
    assert hub.MODELS["smollm2-135m"].preset == "smollm2-135m"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> plan.Machine:
    """A laptop with 8 GB free."""
    made = plan.Machine(
        device="cpu", name="main memory", total=12 * 10**9, free=8 * 10**9
    )
    monkeypatch.setattr(plan, "this_machine", lambda device: made)
    return made


def test_a_plan_says_what_fits_instead(machine: plan.Machine) -> None:
    made = plan.make_plan("llama3-8b")
    assert made.context == 8192
    assert made.dtype == "bfloat16"
    assert not made.fits
    choices = {choice.what: choice for choice in made.choices}
    assert not choices["--dtype float32"].fits
    assert not choices["--dtype int8"].fits
    assert choices["--dtype int4"].fits
    assert choices["llama3.2-3b"].fits
    assert "llama3-70b" not in choices
    assert "llama3-8b" not in choices
    assert not choices["--context 256"].fits  # the weights alone are too much
    weights = [choices[n].need.weights for n in ("--dtype int8", "--dtype int4")]
    assert weights[0] < made.need.weights
    assert 0.5 < weights[1] / weights[0] < 0.7


def test_the_longest_context_that_fits_is_offered(machine: plan.Machine) -> None:
    made = plan.make_plan("llama3.2-3b", context=131_072)
    assert not made.fits
    [shorter] = [c for c in made.choices if c.what.startswith("--context")]
    assert shorter.what == "--context 8192"
    assert shorter.fits
    double = plan.need(made.config, context=16_384)
    assert double.total > machine.free
    small = plan.make_plan("smollm2-135m")
    assert small.fits
    assert small.need.total < 10**9


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integer_weights_against_a_model_that_was_quantised(
    kind: str, tied: bool
) -> None:
    from loud import loud_model

    from minillama.quantize import quantize

    model = loud_model(dim=64, ffn_dim=96, tied_embeddings=tied).bfloat16()
    quantize(model, kind)
    held = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert plan.weight_bytes(model.config, kind) == held


def test_memory_within_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    stat = "anon 1000000000\ninactive_file 1500000000\nactive_file 500000000\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert plan._container(tmp_path) == (4_000_000_000, 1_000_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "_container", lambda: (4 * 10**9, 10**9))
        assert plan.memory()[0] == min(total, 4 * 10**9)
        assert plan.memory()[1] <= 3 * 10**9
        patch.setattr(plan, "_container", lambda: (2 * total, 0))
        assert plan.memory()[0] == total
        patch.setattr(plan, "_container", lambda: (10**9, 2 * 10**9))
        assert plan.memory() == (10**9, 0)
    (tmp_path / "memory.max").write_text("max\n")
    assert plan._container(tmp_path) == (None, 0)
    assert plan._container(tmp_path / "none") == (None, 0)


def test_a_plan_is_plain_data() -> None:
    made = plan.make_plan("llama3-8b", device="cpu")
    assert replace(made, batch=2).batch == 2
    assert made.machine.total >= made.machine.free > 0
