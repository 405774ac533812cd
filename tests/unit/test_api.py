"""load: names, folders and files become a model and its tokenizer."""

from pathlib import Path

import pytest
import torch
from loud import loud_model
from torch import nn

from minillama import Parts, Tokenizer, api, load, load_model, save_weights, train_bpe
from minillama.config import LlamaConfig

TEXT = "It was a snowy night, and Lin was at the market. " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXT, 300, ("<|begin_of_text|>", "<|end_of_text|>"))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A small model with its tokenizer, as Hugging Face writes it."""
    model = loud_model(vocab_size=tokenizer.vocab_size)
    save_weights(model, tmp_path / "model", tokenizer)
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "best_device", lambda: "cpu")


def test_a_folder(folder: Path, tokenizer: Tokenizer) -> None:
    model, loaded = load(folder)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    ids = torch.tensor([tokenizer.encode(TEXT)[:32]])
    wanted = loud_model(vocab_size=tokenizer.vocab_size)
    torch.testing.assert_close(model(ids), wanted(ids), rtol=0, atol=0)
    assert not model.training


def test_dtype_and_device(folder: Path) -> None:
    model, _ = load(str(folder), dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert next(load_model(folder).parameters()).dtype == torch.float32


def test_the_best_device_is_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "best_device", lambda: "meta")
    assert next(load_model(folder).parameters()).device.type == "meta"
    assert next(load_model(folder, device="cpu").parameters()).device.type == "cpu"


def test_best_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for cuda, mps, best in (
        (True, True, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda c=cuda: c)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda m=mps: m)
        assert api.best_device() == best


def test_a_learners_part_gets_the_weights(folder: Path) -> None:
    class Norm(nn.Module):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(config.dim))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.pow(2).mean(-1, keepdim=True).add(1e-5).sqrt() * self.weight

    own, tokenizer = load(folder, parts=Parts(norm=Norm))
    assert isinstance(own.norm, Norm)
    ids = torch.tensor([tokenizer.encode(TEXT)[:32]])
    torch.testing.assert_close(own(ids), load_model(folder)(ids), rtol=1e-5, atol=1e-5)


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer .* with load_model$"):
        load(folder)
    assert load_model(folder).config.dim == 48


def test_metas_tokenizer_file_in_a_folder(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "tokenizer.json").unlink()
    tokenizer.save(folder / "tokenizer.model")
    _, loaded = load(folder)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    alone = api.load_tokenizer(folder / "tokenizer.model")
    assert alone.encode(TEXT) == tokenizer.encode(TEXT)


def test_quantize_says_what_there_is(folder: Path) -> None:
    with pytest.raises(ValueError, match="'int5': choose int8, int4 or None"):
        load(folder, quantize="int5")
    model, _ = load(folder, quantize="int8", device="cpu")
    assert not any(type(m) is torch.nn.Linear for m in model.modules())
    assert model.tok_embeddings.weight.dtype == torch.bfloat16


def test_compile_where_nothing_can_be_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nsecond line")

    monkeypatch.setattr("minillama.native.library", lambda: None)
    monkeypatch.setattr("minillama.native.why_not", lambda: "there is no C compiler")
    monkeypatch.setattr("minillama.compiled.compile_step", none)
    with pytest.warns(UserWarning, match="not compiled: there is no C compiler; the"):
        model, _ = load(folder, compile=True, device="cpu")
    load(folder, quantize="int8", device="cpu")  # by default: no word
    plain, _ = load(folder, device="cpu")
    tokens = torch.arange(5)[None]
    assert torch.equal(model(tokens), plain(tokens))


def test_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path))
    for function in (load, load_model, api.load_tokenizer):
        with pytest.raises(ValueError, match="run `minillama pull smollm2-135m`"):
            function("smollm2-135m")
        with pytest.raises(ValueError, match="did you mean smollm2-135m"):
            function("smollm-135m")


@pytest.mark.model
def test_a_pulled_name_and_its_file(smollm2_path: Path) -> None:
    by_name = api.load_tokenizer("smollm2-135m")
    by_file = api.load_tokenizer(smollm2_path)
    assert by_name.encode("Paris") == by_file.encode("Paris") != []
