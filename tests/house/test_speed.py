"""No step back in speed: ratios against transformers and against ourselves.

`make test-speed` runs these; they are `slow`, since they want a quiet machine. Every
ratio is of medians over interleaved rounds (`benchmarks/conduct.py`), so a slow machine
is as good as a fast one. The limits lie well below what docs/benchmarks.md has: a test
that fails says that something broke, not that the machine had a bad day.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import conduct, files, results
from benchmarks.figures import growth, speed_ratio
from benchmarks.rows import BF16, HF_BF16, INT4, Inputs, decoding, of_folder, of_gguf

pytestmark = [pytest.mark.slow, pytest.mark.model]

ROUNDS = 7
# Of the ratios that docs/benchmarks.md has, about three quarters.
BF16_TIMES_TRANSFORMERS = 1.5
INT4_TIMES_BF16 = 1.3
BATCH_OF_8_TIMES_1 = 3.0
# A token at context 1,000 beside one at 100: without the cache it would be ten.
LONG_OVER_SHORT = 1.6


@pytest.fixture(scope="module")
def inputs(smollm2_path: Path) -> Inputs:
    return files.smollm2(threads=2)


def seconds_of(entries: dict[str, Any], tmp_path: Path) -> dict[str, list[float]]:
    raw = conduct.measure(
        entries,
        rounds=ROUNDS,
        env=lambda spec: conduct.environment(spec, 2, "PASSIVE"),
        logs=tmp_path,
        say=lambda text: print(text, file=sys.stderr),
    )
    failed = {key: entry["error"] for key, entry in raw.items() if "error" in entry}
    assert not failed, failed
    row = {"entries": {key: results.series(entry, None) for key, entry in raw.items()}}
    return results.seconds_of(row)


def test_bf16_decode_beside_transformers(inputs: Inputs, tmp_path: Path) -> None:
    case = decoding(inputs, new=12)
    entries = {
        BF16: (of_folder(inputs, "minillama"), case),
        HF_BF16: (of_folder(inputs, "transformers"), case),
    }
    ratio = speed_ratio(seconds_of(entries, tmp_path), BF16, HF_BF16)
    assert ratio >= BF16_TIMES_TRANSFORMERS, f"{ratio:.2f} x transformers"


def test_fewer_bits_are_faster(inputs: Inputs, tmp_path: Path) -> None:
    case = decoding(inputs, new=12)
    entries = {
        INT4: (of_gguf(inputs), case),
        BF16: (of_folder(inputs, "minillama"), case),
    }
    ratio = speed_ratio(seconds_of(entries, tmp_path), INT4, BF16)
    assert ratio >= INT4_TIMES_BF16, f"int4 is {ratio:.2f} x bf16"


def test_a_batch_shares_the_weights(inputs: Inputs, tmp_path: Path) -> None:
    spec = of_gguf(inputs)
    entries = {
        "one": (spec, decoding(inputs, new=12)),
        "eight": (spec, decoding(inputs, new=12, batch=8)),
    }
    ratio = speed_ratio(seconds_of(entries, tmp_path), "eight", "one")
    assert ratio >= BATCH_OF_8_TIMES_1, f"a batch of 8 is {ratio:.2f} x one"


def test_a_token_costs_little_more_after_many(inputs: Inputs, tmp_path: Path) -> None:
    spec = of_gguf(inputs)
    entries = {
        "short": (spec, decoding(inputs, context=100, new=12)),
        "long": (spec, decoding(inputs, context=1000, new=12)),
    }
    seconds = seconds_of(entries, tmp_path)
    ratio = 1 / speed_ratio(seconds, "long", "short")
    added = growth(seconds, "short", "long") * 1e3
    assert ratio <= LONG_OVER_SHORT, f"{ratio:.2f} x at 1,000 tokens, {added:.1f} ms"
