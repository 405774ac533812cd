"""The running example of the course, and how its figures look.

One sentence of eight words, each a token of its own in the vocabularies of Llama 3 and
of SmolLM2. "the" comes twice, and "it" may be the dog or the cat.

One vector of four whole numbers a word, made to be computed by hand: most have length 5
and so a root mean square of 2.5, "and" is quieter (1) and "ran" louder (5). "it" has
the same dot product, 22, with "dog" and with "cat": without their places it cannot
tell them apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SENTENCE = "the dog saw the cat and it ran"
WORDS = tuple(SENTENCE.split())
VECTORS = {
    "the": (0, 0, 4, 3),
    "dog": (4, 2, 1, 2),
    "saw": (1, 4, 2, 2),
    "cat": (4, 1, 2, 2),
    "and": (-1, -1, 1, 1),
    "it": (4, 0, 0, 3),
    "ran": (0, 8, 0, -6),
}

# Okabe and Ito's colours, which colour-blind eyes tell apart. In grey some look alike,
# so lines differ in their dashes as well.
BLACK, BLUE, RED, GREEN = "#000000", "#0072b2", "#d55e00", "#009e73"
PINK, SKY, ORANGE, YELLOW = "#cc79a7", "#56b4e9", "#e69f00", "#f0e442"
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def vectors(words: str | Sequence[str] = WORDS) -> Tensor:
    """The vectors of these words, T 4 in float32."""
    each = words.split() if isinstance(words, str) else words
    return torch.tensor([VECTORS[word] for word in each], dtype=torch.float32)


def figure(width: float = 6, height: float = 2.8, **options: Any) -> Any:
    """`plt.subplots` in the style of the course: (figure, axes)."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    # Set on the axes: rc_context would undo what Jupyter sets when it first draws.
    lines = cycler(color=COLOURS) + cycler(linestyle=DASHES) + cycler(linewidth=[2] * 7)
    fig, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
    for ax in fig.axes:
        ax.set_prop_cycle(lines)
        for side in {"top", "right"} & set(ax.spines):
            ax.spines[side].set_visible(False)
    return fig, axes


def heatmap(
    axes: Any,
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str = ".2f",
) -> None:
    """Numbers on shades of blue, readable in grey: dark is large."""
    grid = torch.as_tensor(values).detach().float().numpy()
    axes.imshow(grid, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    low, high = grid.min(), grid.max()
    for row, line in enumerate(grid.tolist()):
        for column, value in enumerate(line):
            ink = "white" if value > low + 0.6 * (high - low) else "black"
            style = {"color": ink, "ha": "center", "va": "center"}
            axes.text(column, row, format(value, form), **style)
