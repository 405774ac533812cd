"""The plots of docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.conduct import PROBE
from benchmarks.figures import quartiles
from benchmarks.render import figure_of
from benchmarks.results import seconds_of
from benchmarks.rows import Row

# Okabe and Ito's colours, which colour-blind readers tell apart.
OURS, THEIRS, BOUND, BAD = "#0072B2", "#999999", "#000000", "#D55E00"


def write(found: Mapping[str, Any], done: Sequence[Row], folder: Path) -> None:
    ratios(found, done, folder / "bench_ratios.png")
    for row in done:
        name = f"bench_{row.name.replace('-', '_')}.png"
        contenders(row, found["rows"][row.name], folder / name)


def ratios(found: Mapping[str, Any], done: Sequence[Row], path: Path) -> None:
    """Every figure that was asked for, over what was asked: right of 1 is reached."""
    shown: list[tuple[str, list[float]]] = []
    for row in done:
        for target in row.targets:
            figure = figure_of(target, found["rows"][row.name])
            if figure is None or target.wanted is None:
                continue
            three = [x / target.wanted for x in (figure.low, figure.value, figure.high)]
            if target.least_is_best:
                three = [1 / max(x, 1e-3) for x in reversed(three)]
            shown.append((f"{row.name}\n{target.says}", three))
    if not shown:
        return
    fig, ax = plt.subplots(figsize=(8, 0.8 + 0.5 * len(shown)))
    for y, (_, (low, value, high)) in enumerate(shown):
        colour = OURS if value >= 1 else BAD
        ax.plot([low, high], [y, y], color=colour, lw=2)
        ax.plot(value, y, "o" if value >= 1 else "X", color=colour, ms=8)
    ax.axvline(1, color=BOUND, lw=1)
    ax.set(xscale="log", xlabel="measured over asked for: right of the line is reached")
    ax.set_yticks(range(len(shown)), [label for label, _ in shown], fontsize=7)
    ax.invert_yaxis()
    ax.grid(axis="x", which="both", alpha=0.3)
    _save(fig, path)


def contenders(row: Row, raw: Mapping[str, Any], path: Path) -> None:
    """Each contender's speed with its quartiles, and its bound as a line."""
    seconds = seconds_of(raw)
    keys = [k for k, e in raw["entries"].items() if k != PROBE and "seconds" in e]
    if not keys:
        return
    fig, ax = plt.subplots(figsize=(8, 0.9 + 0.45 * len(keys)))
    for y, key in enumerate(keys):
        low, middle, high = (1 / q for q in reversed(quartiles(seconds[key])))
        colour = OURS if key.startswith("minillama") else THEIRS
        spread = [[middle - low], [high - middle]]
        ax.barh(y, middle, color=colour, xerr=spread, ecolor=BOUND, capsize=3)
        if f"{key} bound" in seconds:
            bound = 1 / median(seconds[f"{key} bound"])
            ax.plot([bound, bound], [y - 0.4, y + 0.4], color=BAD, lw=3)
    ax.set_yticks(range(len(keys)), keys)
    ax.invert_yaxis()
    ax.set(xlabel=f"{row.unit}s a second; the short line is the bound", title=row.title)
    _save(fig, path)


def _save(fig: Any, path: Path) -> None:
    fig.tight_layout()
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)
