"""The bundled model and its exam."""

import pytest
import torch

from minillama.api import load
from minillama.course.tales import World, tales
from minillama.course.tales.exam import examine, tell_tales, wilson
from minillama.course.tales.world import data_file
from minillama.data import all_windows, encode_texts
from minillama.recipe import read_recipe
from minillama.train import held_out_loss


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [  # the first two: Wilson's interval as R's prop.test(correct = FALSE) gives it
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (500, 500, 0.9924, 1.0),
    ],
)
def test_wilson_interval(count, total, low, high):
    assert wilson(count, total) == pytest.approx((low, high), abs=2e-4)


def test_tiny_is_small_and_a_llama_with_grouped_queries(tiny):
    model, tokenizer = tiny
    size = sum(file.stat().st_size for file in data_file("tiny").iterdir())
    assert size < 5_000_000
    assert model.config.n_rep == 2
    recipe = read_recipe(data_file("tales.toml"))["model"]
    assert {k: getattr(model.config, k) for k in recipe if k != "seed"} == {
        k: v for k, v in recipe.items() if k != "seed"
    }
    assert tokenizer.decode(tokenizer.encode("größer 😀")) == "größer 😀"


def test_tiny_tells_well_formed_tales(tiny):
    exam = examine(*tiny, 40, temperature=0.8, seed=3)
    assert len(exam.tales) == len(exam.verdicts) == 40
    assert exam.well_formed >= 36
    assert exam.consistent <= exam.well_formed
    assert f"{100 * exam.well_formed / 40:.1f} in 100" in str(exam)
    assert sum(count for _, count in exam.reasons()) == 40 - exam.consistent
    assert len(set(exam.tales)) == 40


@pytest.mark.slow
def test_tiny_tells_500_tales_and_95_in_100_are_well_formed(tiny):
    assert examine(*tiny, 500, temperature=0.8).well_formed >= 475


def test_tiny_knows_tales_that_it_has_not_seen(tiny):
    model, tokenizer = tiny
    ids = encode_texts(tales(World.load(), 77, 40), tokenizer)
    windows = all_windows(ids, 16, 160, tokenizer.bos_id)
    assert held_out_loss(model, windows) < 0.5


def test_the_same_seed_tells_the_same_tales_in_any_batch(tiny):
    together = tell_tales(*tiny, 6, seed=5)
    assert together == tell_tales(*tiny, 6, seed=5, batch=4)
    assert together != tell_tales(*tiny, 6, seed=50)


def test_a_tale_that_is_cut_is_not_well_formed(tiny):
    model, tokenizer = tiny
    from minillama.generate import generate

    cut = generate(model, [tokenizer.bos_id], max_new_tokens=30)
    world = World.load()
    from minillama.course.tales import judge

    assert not judge(tokenizer.decode(cut), world).well_formed
