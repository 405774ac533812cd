"""Names and row orders, against what the other libraries themselves say."""

import gguf
import pytest
import torch
from loud import small_config
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from minillama.model import Llama
from minillama.names import DIALECTS, NATIVE, from_dialect, name_table, to_dialect


def test_every_dialect_has_twelve_names() -> None:
    for names in (NATIVE, *DIALECTS.values()):
        assert len(set(names)) == 12


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tied", [False, True])
def test_table_has_each_parameter_of_the_model_once(dialect: str, tied: bool) -> None:
    config = small_config(tied_embeddings=tied)
    table = name_table(config, dialect)
    assert sorted(table) == sorted(n for n, _ in Llama(config).named_parameters())
    assert len(set(table.values())) == len(table)


def test_hf_names_are_those_of_transformers() -> None:
    config = HfConfig(
        hidden_size=32, num_hidden_layers=3, vocab_size=7, num_attention_heads=4
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config).state_dict()
    assert set(name_table(small_config(n_layers=3), "hf").values()) == set(theirs)


@pytest.mark.parametrize("dialect", ["hf", "meta"])
def test_names_translate_as_the_gguf_package_translates_them(dialect: str) -> None:
    config = small_config(n_layers=3)
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    ours = name_table(config, "gguf")
    for native, foreign in name_table(config, dialect).items():
        assert theirs.get_name(foreign, (".weight",)) == ours[native], native


def test_native_and_meta_names_differ_in_the_feed_forward_alone() -> None:
    config = small_config(n_layers=1)
    different = {n: m for n, m in name_table(config, "meta").items() if n != m}
    assert different == {
        "layers.0.feed_forward.w_gate.weight": "layers.0.feed_forward.w1.weight",
        "layers.0.feed_forward.w_up.weight": "layers.0.feed_forward.w3.weight",
        "layers.0.feed_forward.w_down.weight": "layers.0.feed_forward.w2.weight",
    }


def test_hf_rows_are_put_in_pairs() -> None:
    """Hugging Face pairs row i of a head with row i + Dh/2: ours must be neighbours."""
    heads, dh = 3, 8
    theirs = torch.arange(heads * dh)[:, None] * torch.ones(1, 5)
    ours = from_dialect(theirs, "layers.0.attention.wq.weight", "hf", dh)
    for head in range(heads):
        for i in range(dh // 2):
            assert ours[head * dh + 2 * i, 0] == head * dh + i
            assert ours[head * dh + 2 * i + 1, 0] == head * dh + i + dh // 2


@pytest.mark.parametrize("dialect", DIALECTS)
def test_row_order_is_undone_to_the_last_bit(dialect: str) -> None:
    config = small_config()
    for native, weight in Llama(config).named_parameters():
        foreign = to_dialect(weight, native, dialect, config.head_dim)
        turned = dialect == "hf" and native.endswith(("wq.weight", "wk.weight"))
        assert torch.equal(foreign, weight) != turned
        back = from_dialect(foreign, native, dialect, config.head_dim)
        assert torch.equal(back, weight)


def test_unknown_dialect_is_named() -> None:
    with pytest.raises(ValueError, match="no dialect 'ggml': there are meta, hf, gguf"):
        name_table(small_config(), "ggml")
