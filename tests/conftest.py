"""Fixtures that every test may use: the real files."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["MINILLAMA_PROGRESS"] = "off"  # what tests solve is nobody's progress
torch.set_num_threads(1)  # the models are small: two threads wait for each other
# A shell ignores Ctrl-C for what it starts in the background, and children inherit it:
# the tests that interrupt a child would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _pulled(name: str) -> Path:
    from minillama import hub

    path = hub.find(name)
    if path is None:
        sentence = f"{name} is not here: run `minillama pull {name}` first"
        if os.environ.get("MINILLAMA_REQUIRE_MODELS"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return _pulled("smollm2-135m")


@pytest.fixture(scope="session")
def llama3_tokenizer_path() -> Path:
    """Meta's tokenizer.model."""
    return _pulled("llama3-tokenizer")


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Whatever is made without a dtype is in float64 for the length of a test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
