"""The running example: its numbers are as round as its docstring says."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from minillama.course import example
from minillama.tokenizer import Tokenizer


def test_the_vectors_are_what_the_docstring_says():
    x = example.vectors()
    assert x.shape == (8, 4)
    assert torch.equal(x, x.round())
    rms = dict(zip(example.WORDS, x.square().mean(-1).sqrt().tolist(), strict=True))
    assert rms == {
        "the": 2.5,
        "dog": 2.5,
        "saw": 2.5,
        "cat": 2.5,
        "and": 1.0,
        "it": 2.5,
        "ran": 5.0,
    }
    it, dog, cat = example.vectors("it dog cat")
    assert (it @ dog, it @ cat) == (22, 22)
    assert torch.equal(x[0], x[3])
    assert example.SENTENCE.split() == list(example.WORDS)


@pytest.mark.model
def test_each_word_is_one_token(smollm2_path, llama3_tokenizer_path):
    for tokenizer in (
        Tokenizer.from_gguf(smollm2_path),
        Tokenizer.from_file(llama3_tokenizer_path),
    ):
        ids = tokenizer.encode(example.SENTENCE)
        assert tuple(tokenizer.decode([id]).strip() for id in ids) == example.WORDS


def test_figures_carry_the_style_and_leave_none_behind(monkeypatch):
    matplotlib.use("Agg")
    before = dict(plt.rcParams)
    fig, axes = example.figure(4, 3)
    first, second = axes.plot([1, 2]), axes.plot([2, 1])
    assert first[0].get_color() == example.BLUE
    assert (first[0].get_linestyle(), second[0].get_linestyle()) == ("-", "--")
    assert not axes.spines["top"].get_visible()
    assert dict(plt.rcParams) == before
    plt.close(fig)


def test_a_heat_map_shows_its_numbers():
    matplotlib.use("Agg")
    fig, axes = example.figure(4, 3)
    values = torch.tensor([[0.0, 1.0], [0.25, 0.5], [1.0, 0.75]], requires_grad=True)
    example.heatmap(axes, values, rows="abc", columns="xy")
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.00", "1.00", "0.25", "0.50", "1.00", "0.75"]
    # White on dark, black on light: readable in grey.
    assert [t.get_color() for t in axes.texts][:2] == ["black", "white"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    plt.close(fig)
