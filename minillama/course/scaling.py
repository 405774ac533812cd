"""How the loss falls with size and tokens: measured runs, a fitted law, a prediction.

    python -m minillama.course.scaling > data/scaling.toml

trains small models of several widths, each for several lengths, on tales. `read_runs`
gives them to a notebook, `fit_law` finds the law that they follow.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minillama.course.tales.world import data_file, tomllib
from minillama.recipe import prepare

if TYPE_CHECKING:
    from minillama.train import Progress

WIDTHS = (16, 32, 48)
STEPS = (100, 200, 400)
# What the notebook trains itself, and predicts from the nine smaller runs: about a
# minute of one core.
TARGET = (64, 400)


@dataclass(frozen=True)
class Run:
    """One model trained to its end: parameters, tokens seen, held-out loss in nats."""

    dim: int
    steps: int
    params: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Law:
    """loss = floor + a / (params^alpha tokens^beta).

    The floor is what no model can know: which name or thing a tale picks. In runs as
    short as these, size and tokens multiply: with alpha = beta this is a law of compute
    alone, since training takes about 6 x params x tokens operations (Kaplan et al.,
    arXiv 2001.08361; Llama 3 plots its runs so, arXiv 2407.21783, section 3.2.1). In
    runs long enough to level off, size and tokens each set a limit of their own, and
    the two terms are added (Hoffmann et al., arXiv 2203.15556).
    """

    floor: float
    a: float
    alpha: float
    beta: float

    def predict(self, params: int, tokens: int) -> float:
        """The held-out loss to expect of a model that was not among the runs."""
        return self.floor + self.a / (params**self.alpha * tokens**self.beta)


def small_changes(dim: int, steps: int) -> dict[str, Any]:
    """What a small run changes in the recipe of data/tales.toml; all else is as there.

    The shape keeps its proportions: only the width changes.
    """
    return {
        "corpus.stories": max(1000, 16 * steps),
        "model.dim": dim,
        "model.ffn_dim": 3 * dim,
        "training.steps": steps,
        "training.learning_rate": 5e-3,
        "training.warmup_steps": steps // 10,
        "training.anneal_steps": steps // 2,
        "training.evaluate_every": 0,
        "training.save_every": 0,
    }


def measure(dim: int, steps: int) -> Run:
    """Train one small model on tales, and measure it on tales that it has not seen."""
    from minillama.train import train

    made = prepare(data_file("tales.toml"), small_changes(dim, steps))
    history: list[Progress] = train(
        made.model, made.data, made.settings, held_out=made.held_out
    )
    loss = history[-1].held_out_loss
    assert loss is not None
    tokens = steps * made.data.batch_size * made.data.context
    return Run(dim, steps, made.config.n_params(), tokens, round(loss, 4))


def read_runs(path: str | Path | None = None) -> list[Run]:
    """The runs of a file like data/scaling.toml (the default)."""
    raw = tomllib.loads(Path(path or data_file("scaling.toml")).read_text("utf-8"))
    return [Run(**row) for row in raw["runs"]]


def fit_law(runs: Sequence[Run]) -> Law:
    """The law that fits the runs best, by least squares of log(loss).

    Fitted over logarithms, so that all four numbers stay positive, from several
    beginnings, since the valley is flat. Needs six runs, of several sizes and lengths.
    """
    sizes, lengths = {r.params for r in runs}, {r.tokens for r in runs}
    if len(runs) < 6 or len(sizes) < 2 or len(lengths) < 2:
        raise ValueError(
            f"{len(runs)} runs of {len(sizes)} sizes and {len(lengths)} lengths do not "
            "fix four numbers: measure at least 6, of 2 sizes and 2 lengths"
        )
    params = torch.tensor([r.params for r in runs], dtype=torch.float64)
    tokens = torch.tensor([r.tokens for r in runs], dtype=torch.float64)
    loss = torch.tensor([r.loss for r in runs], dtype=torch.float64)
    scale = params.mean().item(), tokens.mean().item()

    def error(x: Tensor) -> Tensor:
        floor, a, alpha, beta = x.exp()
        near = (params / scale[0]) ** alpha * (tokens / scale[1]) ** beta
        fit = floor + a / near
        return (fit.log() - loss.log()).square().mean()

    fits = [_descend(error, start) for start in _beginnings(float(loss.min()))]
    _, best = min(fits, key=lambda fit: fit[0])
    floor, a, alpha, beta = best.exp().tolist()
    # Back from the scaled units, in which all numbers are near one.
    return Law(floor, a * scale[0] ** alpha * scale[1] ** beta, alpha, beta)


def _beginnings(smallest: float) -> Iterator[list[float]]:
    for share in (0.5, 0.9):
        for power in (0.3, 1.0, 2.0):
            yield [smallest * share, 0.1, power, power]


def _descend(error: Any, start: list[float]) -> tuple[float, Tensor]:
    x = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    descent = torch.optim.LBFGS(
        [x],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        descent.zero_grad()
        value = error(x)
        torch.autograd.backward(value)
        return value

    descent.step(closure)
    best = x.detach()
    value = error(best).item()
    return (value if math.isfinite(value) else math.inf), best


_HEADER = """\
# Held-out loss (nats a token) of small Llamas trained on tales: all of data/tales.toml
# but the width, the feed-forward (3 x width) and what `small_changes` in
# minillama/course/scaling.py names. 16 windows of 160 tokens a step; each run was
# trained to the end of its own schedule; one seed.
# Made by: python -m minillama.course.scaling > data/scaling.toml
# PyTorch {version} on a CPU, threads: {threads}."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure runs of several sizes.")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    version = torch.__version__.split("+")[0]
    print(_HEADER.format(version=version, threads=asked.threads))
    for dim, steps in (*product(WIDTHS, STEPS), TARGET):
        print("\n[[runs]]")
        for name, value in asdict(measure(dim, steps)).items():
            print(f"{name} = {value}", flush=True)


if __name__ == "__main__":
    main()
