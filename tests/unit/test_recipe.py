"""A recipe becomes a folder that opens, stops and goes on, and is made again alike."""

import os
import shutil
import signal

import pytest
import torch

from minillama.course.tales.world import data_file
from minillama.recipe import is_recipe, read_recipe, train_from_toml


@pytest.fixture(autouse=True)
def one_thread():
    """For tensors this small, a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TALES = data_file("tales.toml")
SMALL = {
    "corpus.stories": 200,
    "corpus.held_out_stories": 20,
    "tokenizer.vocab_size": 300,
    "model.dim": 32,
    "model.n_layers": 2,
    "model.ffn_dim": 48,
    "model.head_dim": 16,
    "batches.batch_size": 2,
    "batches.context": 40,
    "training.steps": 12,
    "training.warmup_steps": 2,
    "training.anneal_steps": 3,
    "training.evaluate_every": 6,
    "training.save_every": 4,
}


def test_a_recipe_becomes_a_model_that_opens(tmp_path):
    from minillama.api import load

    made = train_from_toml(TALES, tmp_path / "own", changes=SMALL)
    assert made.finished
    assert [p.step for p in made.history] == list(range(12))
    assert made.history[-1].held_out_loss < made.history[0].loss
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own"]
    model, tokenizer = load(str(tmp_path / "own"), device="cpu")
    assert model.config == made.model.config
    assert next(model.parameters()).dtype == torch.bfloat16
    for name, weight in made.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.bfloat16())
    text = "One sunny day, Mia was 7 years old: größer?"
    ids = tokenizer.encode(text)
    assert ids == made.tokenizer.encode(text)
    assert tokenizer.bos_id == made.tokenizer.bos_id is not None
    assert tokenizer.eos_id == made.tokenizer.eos_id in tokenizer.stop_ids


def test_ctrl_c_leaves_a_model_and_the_same_call_goes_on(tmp_path):
    def press(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "own"
    part = train_from_toml(TALES, out, on_step=press, changes=SMALL)
    assert not part.finished
    assert (out / "config.json").exists()
    assert (tmp_path / "own.checkpoint").exists()
    rest = train_from_toml(TALES, out, changes=SMALL)
    assert rest.finished
    assert [p.step for p in (*part.history, *rest.history)] == list(range(12))
    assert not (tmp_path / "own.checkpoint").exists()
    shutil.rmtree(out)
    whole = train_from_toml(TALES, out, changes=SMALL)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], weight)


def test_a_recipe_is_checked_before_any_work(tmp_path):
    assert is_recipe(TALES)
    assert read_recipe(TALES)["corpus"]["seed"] == 1
    with pytest.raises(ValueError, match=r"\[training\] does not know speed"):
        train_from_toml(TALES, tmp_path / "x", changes={"training.speed": 3})
    bare = TALES.read_text("utf-8").replace("\ndim = ", "\n#dim = ")
    (tmp_path / "bare.toml").write_text(bare, "utf-8")
    with pytest.raises(ValueError, match=r"\[model\] lacks dim"):
        read_recipe(tmp_path / "bare.toml")
    too_short = SMALL | {"training.steps": 3, "training.warmup_steps": 5}
    with pytest.raises(ValueError, match="3 steps cannot hold 5"):
        train_from_toml(TALES, tmp_path / "x", changes=too_short)
    world = TALES.read_text("utf-8").split("[corpus]")[0]
    (tmp_path / "world.toml").write_text(world, "utf-8")
    assert not is_recipe(tmp_path / "world.toml")
    with pytest.raises(ValueError, match=r"has no section \[corpus\]"):
        read_recipe(tmp_path / "world.toml")
    assert not (tmp_path / "x").exists()


def test_held_out_tales_are_not_among_those_learned(tmp_path):
    from minillama.course.tales import World
    from minillama.recipe import _texts

    texts, outside = _texts(World.load(), 1, 300, 1, 300)
    assert len(texts) == 300
    assert outside == []  # the same seed: all are known
    texts, outside = _texts(World.load(), 1, 300, 2, 50)
    assert not set(texts) & set(outside)
    assert len(outside) == 50
