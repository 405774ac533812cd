"""The checks of notebook 06, on what their lists of mistakes cannot hold."""

import pytest
import torch
from torch import nn

from minillama.config import LlamaConfig
from minillama.course.checks.llama import (
    check_count,
    check_is_causal,
    check_llama,
    check_read_config,
)
from minillama.model import Block, Llama, Parts


class Learner(nn.Module):
    """Llama once more, as a learner writes it; the tests below change a line each."""

    tie_always = tie_never = False

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = self.make_layers()
        self.norm = Parts().norm(config)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if (config.tied_embeddings or self.tie_always) and not self.tie_never:
            self.output.weight = self.tok_embeddings.weight

    def make_layers(self):
        blocks = [Block(self.config, Parts()) for _ in range(self.config.n_layers)]
        return nn.ModuleList(blocks)

    def forward(self, tokens):
        count = tokens.shape[1]
        angles = Llama.rope_tables(self, 0, count, tokens.device)
        mask = torch.arange(count) <= torch.arange(count)[:, None]
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, angles, mask)
        return self.output(self.norm(x))


class PlainList(Learner):
    def make_layers(self):
        return list(super().make_layers())


class OneBlock(Learner):
    def make_layers(self):
        return nn.ModuleList([Block(self.config, Parts())] * self.config.n_layers)


class OneLayerMore(Learner):
    def make_layers(self):
        return super().make_layers().append(Block(self.config, Parts()))


class NeverTied(Learner):
    tie_never = True


class AlwaysTied(Learner):
    tie_always = True


class NoFinalNorm(Learner):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        del self.norm


def test_a_llama_of_ones_own_passes():
    assert check_llama.examine(Learner).message == "ok: 6.3 the whole Llama"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (PlainList, "`layers` is a list, and PyTorch does not see"),
        (OneBlock, "`layers` holds one block several times"),
        (OneLayerMore, "There are 2 layers, and config.n_layers is 1."),
        (NeverTied, "this config says tied_embeddings"),
        (AlwaysTied, "The output shares the embeddings' matrix"),
        (NoFinalNorm, "The parameter `norm.weight` is not there"),
    ],
)
def test_how_it_is_built_is_named(wrong, words):
    result = check_llama.examine(wrong)
    assert result.status == "parameters"
    assert words in result.message


def test_the_librarys_own_is_no_solution():
    assert check_llama.examine(Llama).status == "library"
    assert check_count.examine(LlamaConfig.n_params).status != "ok"
    assert check_count.examine(lambda c: c.n_params()).status == "exception"
    assert check_read_config.examine(LlamaConfig.from_hf).status == "library"


def test_two_mistakes_at_once():
    class NoNormNeverTied(NeverTied):
        def forward(self, tokens):
            self.norm = nn.Identity()
            return super().forward(tokens)

    message = check_llama.examine(NoNormNeverTied).message
    assert "The final norm is missing." in message
    assert "something else is wrong as well" in message


def test_a_stub_is_not_attempted():
    class Stub(nn.Module):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__()

        def forward(self, tokens): ...

    assert check_llama.examine(Stub).status == "not attempted"


def test_a_yes_or_no_is_not_blamed_on_the_wrong_mistake():
    """Any wrong True is a wrong `not False`: it must not be called inverted."""

    def to_the_last_bit_and_id_zero(forward, tokens, vocab_size):
        right = forward(tokens)
        for place in range(1, tokens.shape[1]):
            other = tokens.clone()
            other[0, place] = 0
            if not torch.equal(forward(other)[0, :place], right[0, :place]):
                return False
        return True

    message = check_is_causal.examine(to_the_last_bit_and_id_zero).message
    assert "equal to the last bit" in message
    assert "something else is wrong as well" in message
