"""The real 135M weights: GGUF against transformers, and there and back."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from weight_files import weights_of, write_meta

from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.tokenizer import Tokenizer
from minillama.weights import load_model, read_config, save_weights

pytestmark = pytest.mark.model
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEXT = "The capital of France is Paris, and the capital of Italy is Rome. 12 + 30 ="


@pytest.fixture(scope="module")
def ours(smollm2_path: Path) -> Llama:
    return load_model(smollm2_path)


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_path)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Half a gigabyte that pytest should not keep."""
    with TemporaryDirectory() as path:
        yield Path(path) / "model"


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    """The logits have a standard deviation of 4 and reach 30: float32 can do this."""
    assert theirs.std() > 3
    assert (ours - theirs).abs().max() / theirs.std() < 1e-5


def test_config(smollm2_path: Path) -> None:
    assert read_config(smollm2_path) == LlamaConfig(
        dim=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        ffn_dim=1536,
        vocab_size=49152,
        max_seq_len=8192,
        rope_theta=100_000.0,
        tied_embeddings=True,
    )


@torch.inference_mode()
def test_logits_are_those_of_transformers(
    smollm2_path: Path, ours: Llama, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("accelerate", reason="transformers wants it to read GGUF files")
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    )
    tokens = torch.tensor([tokenizer.encode(TEXT)])
    assert_same_logits(ours(tokens), theirs(tokens).logits)


@torch.inference_mode()
def test_it_knows_the_capital_of_france(ours: Llama, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The capital of France is")
    start = len(ids)
    for _ in range(6):
        ids.append(int(ours(torch.tensor([ids]))[0, -1].argmax()))
    assert "Paris" in tokenizer.decode(ids[start:])


@torch.inference_mode()
def test_transformers_opens_the_saved_folder(
    ours: Llama, tokenizer: Tokenizer, folder: Path
) -> None:
    save_weights(ours, folder, tokenizer)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
    their_tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(TEXT)
    assert their_tokenizer.encode(TEXT, add_special_tokens=False) == ids
    assert theirs.generation_config.eos_token_id == sorted(tokenizer.stop_ids)
    tokens = torch.tensor([ids])
    assert_same_logits(ours(tokens), theirs(tokens).logits)
    again = weights_of(load_model(folder))
    for name, weight in weights_of(ours).items():
        assert torch.equal(again[name], weight), name


def test_meta_folder_of_the_same_weights(ours: Llama, folder: Path) -> None:
    """Three shards cut the nine heads and the three KV heads."""
    write_meta(folder, ours, shards=3)
    again = weights_of(load_model(folder))
    for name, weight in weights_of(ours).items():
        assert torch.equal(again[name], weight), name
