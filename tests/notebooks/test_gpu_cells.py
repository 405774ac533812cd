"""Cells tagged `gpu` run here with SmolLM2 in Llama 3 8B's place, on the CPU.

It says nothing of Llama 3 8B: only that the code is whole, and that a wrong token, or a
missing GPU, is noticed.
"""

import re
from pathlib import Path
from typing import Any

import anatomy
import pytest
import torch

from minillama import ChatFormat, LlamaConfig, generate, hub, load, save_weights
from minillama.plan import make_plan

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "09_weights.ipynb"
TEXT = "the answer to the ultimate question of life, the universe, and everything is "


def cells() -> list[str]:
    return [cell.source for cell in anatomy.Notebook(NOTEBOOK).tagged("gpu")]


def run(sources: list[str], **names: Any) -> None:
    known = {
        "torch": torch,
        "hub": hub,
        "load": load,
        "generate": generate,
        "ChatFormat": ChatFormat,
        "make_plan": make_plan,
        "llama": LlamaConfig.preset("smollm2-135m"),
        **names,
    }
    for source in sources:
        exec(source, known)


@pytest.fixture(scope="module")
@torch.no_grad()
def stand_in(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SmolLM2 in a folder, and what it says where the cells know what Llama says."""
    folder = tmp_path_factory.mktemp("8b") / "model"
    model, tokenizer = load(smollm2_path, dtype=torch.bfloat16, device="cpu")
    save_weights(model, folder, tokenizer)
    ids = tokenizer.encode(TEXT, bos=True)
    effort = generate(model, tokenizer.encode("Every effort"), max_new_tokens=25)
    question = [{"role": "user", "content": "What do llamas eat?"}]
    answer = generate(model, ChatFormat(tokenizer).encode(question), max_new_tokens=8)
    first = model(torch.tensor([ids]))[0].argmax(-1).tolist()
    return folder, first, effort, tokenizer.decode(answer)


def changed(source: str, first: list[int], effort: list[int], answer: str) -> str:
    source = source.replace('"cuda"', '"cpu"').replace("=60", "=8")
    source = source.replace("== 17", f"== {len(first)}")
    source = re.sub(r"herbivores = .*", f"herbivores = {answer!r}", source)
    source = source.replace('herbivores + " plant-based foods."', "herbivores")
    for name, ids in (("EXPECTED", first), ("EFFORT", effort)):
        lists = rf"{name} = \[[^]]*\]\n{name} \+= \[[^]]*\]"
        source = re.sub(lists, f"{name} = {ids}", source)
    return source


@pytest.fixture
def gpu(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 16_200_000_000)
    monkeypatch.setenv("MINILLAMA_8B", str(stand_in[0]))
    monkeypatch.setenv("MINILLAMA_8B_INSTRUCT", str(stand_in[0]))
    return stand_in


@pytest.mark.model
@torch.no_grad()
def test_they_run(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    expected = list(gpu[1:])
    run([changed(source, *expected) for source in cells()])
    said = capsys.readouterr().out
    assert "first at" in said
    assert "skipped" not in said
    assert said.count("Every effort") == 1


@pytest.mark.model
@pytest.mark.parametrize("place", [0, 1])
@torch.no_grad()
def test_a_wrong_token_is_noticed(place: int, gpu: Any) -> None:
    expected = list(gpu[1:])
    expected[place] = [*expected[place][:5], 7, *expected[place][6:]]
    with pytest.raises(AssertionError):
        run([changed(source, *expected) for source in cells()])


def test_without_a_gpu_each_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(cells(), load=None, generate=None)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5
    assert all("skipped" in line or "no CUDA GPU" in line for line in said)


def test_without_weights_each_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("MINILLAMA_8B", "MINILLAMA_8B_INSTRUCT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "find", lambda name: None)
    run(cells(), load=None, generate=None)
    said = capsys.readouterr().out
    assert said.count("name their folder in MINILLAMA_8B") == 2
