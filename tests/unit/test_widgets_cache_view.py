"""The KV cache's view: its sum is the config's, and what it refuses."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from minillama.config import PRESETS
from minillama.widgets import CacheView
from minillama.widgets.cache_view import cache_bytes

MODELS = {name: asdict(config) for name, config in PRESETS.items()}
ONE = {"n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_sum_is_that_of_the_config(name: str, dtype: str) -> None:
    width = np.dtype(dtype)
    data = CacheView(MODELS).data["models"][name]
    expected = PRESETS[name].kv_cache_bytes(tokens=777, dtype=width, batch=3)
    assert cache_bytes(data, 777, 3, width.itemsize) == expected


def test_words_and_picture() -> None:
    view = CacheView()
    assert view.words() == "KV cache of Llama 3 8B, 8,192 tokens, batch 1: 1 GiB"
    axes = CacheView(MODELS).draw().axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert len(widths) == 3 * len(MODELS)
    assert widths[0] == 4 * widths[len(MODELS)] == 32 * widths[2 * len(MODELS)] == 4
    assert view._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: CacheView({}), "no model is given"),
        (lambda: CacheView({"x": {"n_layers": 2}}), "x lacks n_heads, n_kv_heads"),
        (lambda: CacheView({"x": {**ONE, "n_kv_heads": 4}}), "6 heads for 4 KV heads"),
        (lambda: CacheView({"x": {**ONE, "n_layers": 0}}), "between 1 and 1,000"),
        (lambda: CacheView({"x": {**ONE, "head_dim": 2.5}}), "whole number"),
        (lambda: CacheView({"x": {**ONE, "head_dim": float("nan")}}), "head_dim nan"),
        (lambda: CacheView({"x": {**ONE, "head_dim": "8"}}), "head_dim 8"),
        (lambda: CacheView(memories=()), "sizes in GiB"),
        (lambda: CacheView(memories=(8, -1)), "sizes in GiB"),
        (lambda: CacheView(tokens=0), "tokens 0"),
        (lambda: CacheView(number_bytes=3), "number_bytes is 3"),
    ],
)
def test_a_sentence_in_its_place(made: Any, sentence: str) -> None:
    assert sentence in made().sentence
