"""The law of scaling: found again in runs that follow one; too few runs fix none."""

import re

import pytest

from minillama.course import scaling
from minillama.course.scaling import (
    TARGET,
    Law,
    Run,
    fit_law,
    measure,
    read_runs,
    small_changes,
)
from minillama.course.tales.world import data_file
from minillama.recipe import read_recipe

TRUE = Law(floor=0.4, a=4e6, alpha=0.55, beta=0.8)


def runs_of(law, sizes=(20_000, 50_000, 120_000), tokens=(2e5, 5e5, 1e6, 2e6)):
    return [
        Run(0, 0, n, int(d), law.floor + law.a * n**-law.alpha * d**-law.beta)
        for n in sizes
        for d in tokens
    ]


def test_a_law_is_found_again_and_predicts_beyond_its_runs():
    found = fit_law(runs_of(TRUE))
    assert found.floor == pytest.approx(TRUE.floor, abs=0.02)
    assert found.alpha == pytest.approx(TRUE.alpha, abs=0.05)
    assert found.beta == pytest.approx(TRUE.beta, abs=0.05)
    larger, longer = 250_000, 4_000_000
    wanted = 0.4 + 4e6 * larger**-0.55 * longer**-0.8
    assert found.predict(larger, longer) == pytest.approx(wanted, abs=0.005)


@pytest.mark.parametrize(
    "runs",
    [
        [],
        runs_of(TRUE)[:5],
        runs_of(TRUE, sizes=(20_000,), tokens=range(100_000, 900_000, 100_000)),
        runs_of(TRUE, sizes=range(10_000, 90_000, 10_000), tokens=(1e6,)),
    ],
)
def test_too_few_runs_fix_no_law(runs):
    with pytest.raises(ValueError, match="measure at least 6"):
        fit_law(runs)


def test_small_runs_change_the_width_and_the_length_alone():
    recipe = read_recipe(data_file("tales.toml"), small_changes(32, 50))
    assert recipe["model"]["dim"] == 32
    assert recipe["model"]["ffn_dim"] == 96
    assert recipe["model"]["n_layers"] == 4
    assert recipe["training"]["steps"] == 50


def test_a_run_is_measured():
    run = measure(16, 4)
    assert run.tokens == 4 * 16 * 160
    assert run.dim == 16
    assert 5 < run.loss < 7.2


def test_the_law_predicts_a_width_that_it_was_not_fitted_to():
    runs = read_runs()
    law = fit_law([run for run in runs if run.dim < 48])
    unseen = [run for run in runs if run.dim == 48]
    assert len(unseen) == 3
    for run in unseen:
        assert law.predict(run.params, run.tokens) == pytest.approx(run.loss, rel=0.08)


def test_the_file_is_what_the_command_prints(monkeypatch, capsys):
    kept = data_file("scaling.toml").read_text("utf-8")
    runs = {(run.dim, run.steps): run for run in read_runs()}
    monkeypatch.setattr(scaling, "measure", lambda dim, steps: runs[dim, steps])
    monkeypatch.setattr("sys.argv", ["scaling"])
    scaling.main()
    printed = capsys.readouterr().out
    version = re.compile(r"PyTorch [\d.]+")  # of the day when it was measured
    assert version.sub("", printed) == version.sub("", kept)


def test_the_smaller_runs_predict_the_largest():
    runs = read_runs()
    [target] = [run for run in runs if (run.dim, run.steps) == TARGET]
    smaller = [run for run in runs if run.dim < target.dim]
    assert len(smaller) == 9
    law = fit_law(smaller)
    for run in smaller:
        assert law.predict(run.params, run.tokens) == pytest.approx(run.loss, rel=0.12)
    guess = law.predict(target.params, target.tokens)
    assert guess == pytest.approx(target.loss, rel=0.1)
    assert 0.3 < law.floor < target.loss
