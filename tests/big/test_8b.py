"""8B for real, beside transformers. `make test-8b` runs the full size."""

import os
from pathlib import Path

import eight_b
import pytest


def somewhere(tmp_path: Path) -> Path:
    return Path(os.environ.get("MINILLAMA_8B_FOLDER", tmp_path))


def test_the_layout_is_that_of_the_real_folder() -> None:
    """16,060,522,496 bytes, four shards; the real index parts layers 20 and 31."""
    config = eight_b.config_of(32)
    assert eight_b.weight_bytes(config) == 16_060_522_496
    shards = eight_b.shards_of(eight_b.shapes(config))
    firsts = [names[0] for names in shards]
    assert firsts == [
        "model.embed_tokens.weight",
        "model.layers.9.self_attn.q_proj.weight",
        "model.layers.20.mlp.up_proj.weight",
        "model.layers.31.mlp.down_proj.weight",
    ]


@pytest.mark.slow
def test_two_layers_of_8b(tmp_path: Path) -> None:
    report = tmp_path / "8b.md"
    eight_b.compare(2, somewhere(tmp_path), report, keep=False)
    assert "a trial with 2 layers" in report.read_text()


@pytest.mark.slow
def test_full_size_8b(tmp_path: Path) -> None:
    report = Path(__file__).parents[2] / "docs" / "8b.md"
    eight_b.compare(32, somewhere(tmp_path), report, keep=False)
