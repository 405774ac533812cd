"""The benchmark's arithmetic, on a model whose bytes are counted by hand."""

import time

import pytest
import torch
from loud import loud_model
from torch import nn

from minillama import bench


def test_bytes_a_token_by_hand() -> None:
    model = loud_model(tied_embeddings=False)
    c = model.config
    table = 131 * 48 * 4
    whole = sum(p.numel() for p in model.parameters()) * 4
    cache = 2 * c.n_layers * c.n_kv_heads * c.head_dim * 4
    expected = whole - table + 48 * 4 + 100 * cache
    assert bench.bytes_a_token(model, 100) == expected


def test_tied_embeddings_are_read_whole_once() -> None:
    model = loud_model(tied_embeddings=True)
    whole = sum(p.numel() for p in model.parameters()) * 4
    assert bench.bytes_a_token(model, 0) == whole


def test_packed_weights_in_buffers_count() -> None:
    """A quantised Linear holds its integers in a buffer."""
    model = loud_model(tied_embeddings=False)
    before = bench.bytes_a_token(model, 0)
    old = model.layers[0].attention.wq.weight.nbytes
    packed = nn.Module()
    packed.register_buffer("weight", torch.zeros(96 * 48, dtype=torch.int8))
    model.layers[0].attention.wq = packed
    assert bench.bytes_a_token(model, 0) == before - old + 96 * 48


def test_speed_by_hand() -> None:
    speed = bench.Speed(
        device="cpu",
        dtype="float32",
        threads=1,
        prompt=10,
        prefill_seconds=1.0,
        decode_seconds=0.5,
        bytes_a_token=10**9,
        bandwidth=8e9,
    )
    assert speed.bound == 8.0
    assert speed.share == 0.25


def test_measure_counts_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loud_model()
    lengths: list[int] = []
    monkeypatch.setattr(bench, "memory_bandwidth", lambda device: 1e10)
    hidden = model.hidden
    model.hidden = lambda t, *rest: lengths.append(t.shape[1]) or hidden(t, *rest)
    speed = bench.measure(model, prompt=20, new=5, repeats=2)
    assert lengths == [20] * 3 + [1] * 6  # one of each is not timed
    assert (speed.prompt, speed.dtype, speed.bandwidth) == (20, "float32", 1e10)
    assert speed.bytes_a_token == bench.bytes_a_token(model, 22)
    assert 0 < speed.decode_seconds < 1


def test_times_are_times() -> None:
    took = bench._times(lambda: time.sleep(0.02), 3, torch.device("cpu"))
    assert len(took) == 3
    assert all(0.02 <= t < 0.5 for t in took)


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < bench.memory_bandwidth(size=1 << 24, repeats=3) < 1e13


def test_what_cannot_be_measured() -> None:
    model = loud_model()
    with pytest.raises(ValueError, match="200 tokens of prompt and 60 new ones are mo"):
        bench.measure(model, prompt=200, new=60)
    with pytest.raises(ValueError, match="must be at least 1"):
        bench.measure(model, prompt=0)
