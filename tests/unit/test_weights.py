"""Every format there and back, bit for bit; and what loading costs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Packing
from loud import loud_model, make_loud, small_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from weight_files import (
    llama_cpp_factors,
    weights_of,
    write_gguf,
    write_meta,
)

from minillama.attention import Attention
from minillama.config import LlamaConfig, RopeScaling
from minillama.formats import GgufReader, find_scaling
from minillama.model import Llama, Parts
from minillama.norm import RMSNorm
from minillama.weights import load_model, load_weights, read_config, save_weights

SCALED = RopeScaling(original_max_seq_len=32)
SHAPES = {
    "grouped": {},
    "all heads": {"n_kv_heads": 6},
    "one KV head": {"n_kv_heads": 1},
    "scaled": {"rope_scaling": SCALED, "rope_theta": 500_000.0},
    "tied": {"tied_embeddings": True},
    "tied and scaled": {"tied_embeddings": True, "rope_scaling": SCALED},
    "wide heads": {"head_dim": 32},
}


def assert_same(model: Llama, wanted: dict[str, Tensor]) -> None:
    found = weights_of(model)
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name


# Hugging Face


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_hf_round_trip(shape: dict[str, object], shard_bytes: int, tmp_path: Path):
    model = loud_model(**shape)
    save_weights(model, tmp_path / "saved", shard_bytes=shard_bytes)
    again = load_model(tmp_path / "saved")
    assert again.config == model.config
    assert_same(again, weights_of(model))
    save_weights(again, tmp_path / "twice", shard_bytes=shard_bytes)
    files = sorted((tmp_path / "saved").iterdir())
    assert len(files) == 2 if shard_bytes == 10**9 else len(files) > 4
    for file in files:
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()


def test_shards_stay_below_their_limit_and_the_index_names_all(tmp_path: Path) -> None:
    model = loud_model()
    save_weights(model, tmp_path, shard_bytes=40_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    total = sum(w.nbytes for w in weights_of(model).values())
    assert index["metadata"]["total_size"] == total
    held: dict[str, str] = {}
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= 40_000
        held |= dict.fromkeys(tensors, file.name)
    assert held == index["weight_map"]


def test_a_tied_output_stored_twice_is_taken_if_it_is_equal(tmp_path: Path) -> None:
    model = loud_model(tied_embeddings=True)
    save_weights(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    assert_same(load_model(tmp_path), weights_of(model))
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        load_model(tmp_path)


def test_old_tables_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    model = loud_model()
    save_weights(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), weights_of(model))


# Meta


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_kv_heads": 6},
        {"rope_scaling": RopeScaling()},
        {"rope_scaling": RopeScaling(factor=32.0), "tied_embeddings": True},
    ],
    ids=["grouped", "all heads", "3.1", "3.2"],
)
def test_meta_round_trip(shape: dict[str, object], shards: int, tmp_path: Path) -> None:
    """Meta's head is always dim / n_heads wide, and its context is not in the file."""
    model = loud_model(head_dim=16, dim=96, vocab_size=130, **shape)
    again = load_model(write_meta(tmp_path / "meta", model, shards))
    context = 131_072 if model.config.rope_scaling else 8192
    assert again.config.max_seq_len == context
    assert_same(again, weights_of(model))


@pytest.mark.parametrize("shards", [1, 2])
def test_meta_file_with_the_tied_output_stored_too(shards: int, tmp_path: Path) -> None:
    model = loud_model(head_dim=16, dim=96, vocab_size=130, tied_embeddings=True)
    folder = write_meta(tmp_path / "meta", model, shards)
    for file in folder.glob("*.pth"):
        tensors = torch.load(file)
        tensors["output.weight"] = tensors["tok_embeddings.weight"]
        tensors["rope.freqs"] = torch.ones(8)
        torch.save(tensors, file)
    again = load_model(folder)
    assert again.output.weight is again.tok_embeddings.weight
    assert_same(again, weights_of(model))


# GGUF

FLOATS = {
    Packing.F32: torch.float32,
    Packing.F16: torch.float16,
    Packing.BF16: torch.bfloat16,
}
PACKED = [Packing.Q4_0, Packing.Q4_1, Packing.Q5_0, Packing.Q5_1, Packing.Q8_0]
K_QUANTS = [Packing.Q2_K, Packing.Q3_K, Packing.Q4_K, Packing.Q5_K, Packing.Q6_K]


@pytest.mark.parametrize("packing", [*FLOATS, *PACKED, *K_QUANTS], ids=lambda p: p.name)
@pytest.mark.parametrize("tied", [False, True])
def test_gguf_of_each_type(packing: Packing, tied: bool, tmp_path: Path) -> None:
    model = loud_model(
        n_layers=2,
        dim=256,
        n_heads=16,
        n_kv_heads=4,
        ffn_dim=256,
        tied_embeddings=tied,
    )
    worth = write_gguf(tmp_path / "model.gguf", model, packing)
    again = load_model(tmp_path / "model.gguf")
    assert again.config == model.config
    dtype = FLOATS.get(packing, torch.float32)
    assert_same(again, {name: w.to(dtype) for name, w in worth.items()})
    if packing is Packing.F32:
        assert_same(again, weights_of(model))


def test_gguf_blocks_against_their_formulas(tmp_path: Path) -> None:
    """Q8_0: scale q. Q4_0: scale (q - 8). Q4_1: scale q + least. 32 numbers a block,
    nibbles low halves first. Source: ggml's block layouts."""
    model = loud_model(dim=64, head_dim=32, n_heads=2, ffn_dim=64)
    for packing in (Packing.Q8_0, Packing.Q4_0, Packing.Q4_1):
        path = tmp_path / f"{packing.name}.gguf"
        write_gguf(path, model, packing)
        reader = GgufReader(path)
        rows = reader.blocks("blk.1.ffn_up.weight")
        got = reader.get("blk.1.ffn_up.weight")
        size = rows.shape[1] // 2  # 64 numbers a row: two blocks
        for (row, b), block in np.ndenumerate(
            np.array([[r[:size].tobytes(), r[size:].tobytes()] for r in rows], object)
        ):
            half = np.frombuffer(block[:4], np.float16).astype(np.float32)
            if packing is Packing.Q8_0:
                wanted = half[0] * np.frombuffer(block[2:], np.int8)
            else:
                packed = np.frombuffer(block[-16:], np.uint8)
                q = np.concatenate([packed & 15, packed >> 4]).astype(np.float32)
                is_1 = packing is Packing.Q4_1
                wanted = half[0] * q + half[1] if is_1 else half[0] * (q - 8)
            assert np.array_equal(got[row, 32 * b : 32 * b + 32].numpy(), wanted)


def test_gguf_is_unpacked_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loud_model(dim=64, head_dim=32, n_heads=2, ffn_dim=64)
    worth = write_gguf(tmp_path / "model.gguf", model, Packing.Q4_1)
    monkeypatch.setattr("minillama.formats._UNPACKED_AT_ONCE", 300)  # 4 rows of 64
    assert_same(load_model(tmp_path / "model.gguf"), worth)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize(
    ("head_dim", "theta"), [(128, 5e5), (64, 5e5), (16, 5e5), (32, 1e4), (16, 100.0)]
)
def test_gguf_scaling_is_recovered(
    factor: float, head_dim: int, theta: float, tmp_path: Path
) -> None:
    """With theta 100 no clock is slow enough to be slowed in full."""
    scaling = RopeScaling(factor=factor)
    model = loud_model(
        head_dim=head_dim, dim=32, n_heads=2, rope_theta=theta, rope_scaling=scaling
    )
    write_gguf(tmp_path / "model.gguf", model, Packing.F32)
    found = read_config(tmp_path / "model.gguf").rope_scaling
    if llama_cpp_factors(model.config).max() == 1:
        assert found is None  # nothing is scaled
    else:
        assert found == scaling


def test_gguf_factors_of_no_llama_are_refused() -> None:
    config = small_config(rope_theta=500_000.0, rope_scaling=RopeScaling())
    good = torch.from_numpy(llama_cpp_factors(config))
    assert find_scaling(good, config) == RopeScaling()
    assert find_scaling(torch.ones(8), config) is None
    other = good.clone()
    other[4] *= 1.01
    for bad in (other, good[:-1], torch.full((8,), 8.0), good.flip(0), good * 0):
        with pytest.raises(ValueError, match="no scaling of Llama"):
            find_scaling(bad, config)


# Loading


def test_dtype_is_the_files_or_the_one_asked_for(tmp_path: Path) -> None:
    model = loud_model().bfloat16()
    save_weights(model, tmp_path)
    assert {w.dtype for w in load_model(tmp_path).parameters()} == {torch.bfloat16}
    again = load_model(tmp_path, dtype=torch.float32)
    assert_same(again, {n: w.float() for n, w in weights_of(model).items()})
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_norms_of_another_type_follow_the_matrices(tmp_path: Path) -> None:
    """GGUF keeps the norms in float32: mixed, the products would not even run."""
    model = loud_model()
    write_gguf(tmp_path / "model.gguf", model, Packing.BF16)
    again = load_model(tmp_path / "model.gguf")
    assert {w.dtype for w in again.parameters()} == {torch.bfloat16}
    assert again(torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["hf", "meta", "gguf"])
def test_a_loaded_model_can_be_trained_and_its_file_stays(
    form: str, tmp_path: Path
) -> None:
    model = loud_model(dim=96)
    path = tmp_path / form
    if form == "hf":
        save_weights(model, path)
    elif form == "meta":
        write_meta(path, model)
    else:
        write_gguf(path, model, Packing.F32)
    again = load_model(path)
    with torch.no_grad():
        for weight in again.parameters():
            weight.zero_()
    del again
    assert_same(load_model(path), weights_of(model))


def test_load_model_is_ready_to_answer(tmp_path: Path) -> None:
    model = loud_model()
    save_weights(model, tmp_path)
    again = load_model(tmp_path)
    assert not again.training
    assert all(w.requires_grad for w in again.parameters())
    tokens = torch.randint(0, 131, (2, 50), generator=torch.manual_seed(0))
    assert torch.equal(again(tokens), model(tokens))


def test_load_weights_fills_a_model_in_place(tmp_path: Path) -> None:
    source = loud_model(seed=1, tied_embeddings=True)
    save_weights(source.bfloat16(), tmp_path)
    model = loud_model(seed=2, tied_embeddings=True, max_seq_len=64)
    before = list(model.parameters())
    load_weights(model, tmp_path)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert_same(model, {n: w.float() for n, w in weights_of(source).items()})


def test_load_weights_brings_a_meta_model_alive(tmp_path: Path) -> None:
    source = loud_model(tied_embeddings=True)
    save_weights(source, tmp_path)
    with torch.device("meta"):
        model = Llama(source.config)
    load_weights(model, tmp_path)
    assert model.output.weight is model.tok_embeddings.weight
    assert_same(model, weights_of(source))


def test_load_weights_refuses_another_architecture(tmp_path: Path) -> None:
    save_weights(loud_model(rope_theta=500.0), tmp_path)
    model = loud_model()
    before = {name: w.clone() for name, w in weights_of(model).items()}
    with pytest.raises(ValueError, match=r"rope_theta is 500\.0 there, 10000\.0 here"):
        load_weights(model, tmp_path)
    assert_same(model, before)


class NormWithBuffer(RMSNorm):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config.dim, config.norm_eps)
        self.register_buffer("table", torch.arange(5.0).outer(torch.ones(2)))
        self.plain = torch.tril(torch.ones(4, 4))


def test_a_learners_part_keeps_the_tensors_that_it_made(tmp_path: Path) -> None:
    model = loud_model(tied_embeddings=True)
    save_weights(model, tmp_path)
    again = load_model(tmp_path, parts=Parts(norm=NormWithBuffer))
    assert_same(again, weights_of(model))
    assert again.norm.table.tolist() == [[i, i] for i in range(5)]
    assert again.norm.plain.sum() == 10
    assert again.output.weight is again.tok_embeddings.weight
    tokens = torch.arange(40)[None]
    assert torch.equal(again(tokens), model(tokens))


def test_a_learners_part_costs_no_memory_for_its_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(loud_model(), tmp_path)
    seen: list[bool] = []

    class Mine(Attention):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            seen.append(self.wq.weight.is_meta)

    load_model(tmp_path, parts=Parts(attention=Mine))
    assert seen == [True, True, True]


@pytest.mark.parametrize("buffer", [True, False])
def test_a_learners_empty_tensor_is_told(buffer: bool, tmp_path: Path) -> None:
    class Empty(RMSNorm):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config.dim, config.norm_eps)
            table = torch.empty(3).fill_(2)
            if buffer:
                self.register_buffer("table", table)
            else:
                self.table = table

    save_weights(loud_model(), tmp_path)
    with pytest.raises(ValueError, match=r"attention_norm\.table .*use torch\.zeros"):
        load_model(tmp_path, parts=Parts(norm=Empty))


def test_a_learners_part_with_other_names_is_told_which(tmp_path: Path) -> None:
    class Renamed(nn.Module):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(config.dim))

    save_weights(loud_model(), tmp_path)
    with pytest.raises(ValueError, match=r"missing: .*scale.*not expected: ") as error:
        load_model(tmp_path, parts=Parts(norm=Renamed))
    assert "layers.0-2.attention_norm.scale" in str(error.value)
    assert "model.layers.0-2.input_layernorm.weight" in str(error.value)


def test_a_learners_part_of_another_shape_is_told_which(tmp_path: Path) -> None:
    save_weights(loud_model(), tmp_path)
    parts = Parts(norm=lambda c: RMSNorm(c.dim + 1, c.norm_eps))
    with pytest.raises(ValueError, match=r"norm\.weight is \(48,\) in the file, \(49,"):
        load_model(tmp_path, parts=parts)


# Saving


def test_a_failed_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    first = loud_model(seed=1)
    save_weights(first, tmp_path / "old")
    monkeypatch.setattr("minillama.weights.save_file", full)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            save_weights(loud_model(seed=2), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert_same(load_model(tmp_path / "old"), weights_of(first))


def test_saving_over_an_earlier_save_replaces_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_weights(loud_model(seed=1), folder, shard_bytes=20_000)
    (folder / "tokenizer.json").write_text("{}")
    again = load_model(folder)  # mapped from the files that are replaced now
    save_weights(again, folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert_same(load_model(folder), weights_of(loud_model(seed=1)))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_who_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    save_weights(loud_model(), tmp_path / "model")
    rights = {p.name: p.stat().st_mode for p in (tmp_path / "model").iterdir()}
    assert len(set(rights.values())) == 1, rights


def test_saving_among_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.txt"):
        save_weights(loud_model(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        save_weights(loud_model(), tmp_path / "thesis.txt")


def test_only_a_plain_llama_with_weights_is_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = Llama(small_config())
    with pytest.raises(ValueError, match="no weights to save yet"):
        save_weights(empty, tmp_path / "a")
    changed = loud_model()
    changed.layers[1].attention.wq = nn.Linear(48, 96)
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wq\.bias: undo"):
        save_weights(changed, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


class TokenizerStub:
    bos_id = 5
    stop_ids = frozenset({9, 7})

    def save_hf(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_the_tokenizer_is_saved_too(tmp_path: Path) -> None:
    save_weights(make_loud(Llama(small_config())), tmp_path, TokenizerStub())  # type: ignore[arg-type]
    for name in ("generation_config.json", "config.json"):
        content = json.loads((tmp_path / name).read_text())
        assert content["bos_token_id"] == 5
        assert content["eos_token_id"] == [7, 9]
    assert (tmp_path / "tokenizer.json").exists()
    load_model(tmp_path)
