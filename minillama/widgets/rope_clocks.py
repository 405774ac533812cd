"""RoPE as clocks: one a pair of numbers, each turned by its own frequency."""

from typing import Any

import numpy as np

from minillama.widgets.view import View, array

Numbers = Any  # whatever numpy takes: a list, an array, a tensor
FURTHEST = 1_000_000  # the last position a slider may reach
MOST = 256  # clocks


class RopeClocks(View):
    """A query at position m and a key at n, both turned, and their dot product.

    `frequencies` are radians from one token to the next, one a pair, as
    `rope_frequencies` gives them. `scaled` is a second set, such as Llama 3.1's, drawn
    as thin second hands. `positions` are the (m, n) to begin with, `longest` is the
    slider's end. `vectors` are the query and the key before they are turned, neighbours
    paired (Su et al., arXiv 2104.09864, section 3.4.2); without them two fixed ones.
    """

    name = "rope_clocks"
    title = "RoPE clocks"

    def __init__(
        self,
        frequencies: Numbers,
        positions: tuple[int, int] = (12, 7),
        scaled: Numbers | None = None,
        *,
        longest: int = 100,
        vectors: tuple[Numbers, Numbers] | None = None,
    ) -> None:
        super().__init__(
            lambda: _data(frequencies, positions, scaled, longest, vectors)
        )

    def words(self) -> str:
        m, n = self.data["positions"]
        clocks = len(self.data["frequencies"])
        dot = dot_product(self.data, m, n)
        return f"{clocks} clocks of RoPE at positions {m} and {n}: q·k = {dot:.4f}"

    def draw(self) -> Any:
        """Eight clocks from the fastest to the slowest, at the first positions."""
        from matplotlib.figure import Figure

        frequencies = self.data["frequencies"]
        m, n = self.data["positions"]
        count = min(8, len(frequencies))
        picked = np.linspace(0, len(frequencies) - 1, count).round().astype(int)
        figure = Figure(figsize=(1.2 * count + 0.4, 1.9))
        for k, pair in enumerate(picked):
            left, width = 0.02 + 0.96 * k / count, 0.96 / count
            axes = figure.add_axes((left, 0.22, width, 0.6), projection="polar")
            axes.set(xticks=(), yticks=(), ylim=(0, 1))
            _draw_hands(axes, self.data, int(pair), (m, n))
            axes.set_title(f"pair {pair}", fontsize=8, pad=4)
            turn = _shown(2 * np.pi / frequencies[pair])
            figure.text(
                left + width / 2, 0.14, f"a turn in {turn}", fontsize=7, ha="center"
            )
        thin = ", thin: scaled" if self.data["scaled"] else ""
        legend = f"query at {m} (blue), key at {n} (orange, dashed){thin}"
        figure.text(0.5, 0.03, legend, fontsize=8, ha="center")
        return figure


def dot_product(data: dict[str, Any], m: int, n: int) -> float:
    """Of the query turned to m and the key turned to n, with the plain frequencies."""
    q, k = (np.array(data[name]).reshape(-1, 2) @ (1, 1j) for name in ("q", "k"))
    turn = np.exp(1j * np.outer((m, n), data["frequencies"]))
    return float(((q * turn[0]) * (k * turn[1]).conj()).real.sum())


def _draw_hands(
    axes: Any, data: dict[str, Any], pair: int, positions: tuple[int, int]
) -> None:
    hands = (("#0060a0", "-", 0.92), ("#a84300", "--", 0.7))
    for place, (colour, style, length) in zip(positions, hands, strict=True):
        angle = place * data["frequencies"][pair]
        axes.plot([0, angle], [0, length], style, color=colour, linewidth=2)
        if data["scaled"]:
            angle = place * data["scaled"][pair]
            axes.plot([0, angle], [0, 0.98], "-", color=colour, linewidth=0.8)


def _shown(turn: float) -> str:
    return f"{turn:.1f}" if turn < 100 else f"{turn:,.0f}"


def _data(
    frequencies: Numbers,
    positions: tuple[int, int],
    scaled: Numbers | None,
    longest: int,
    vectors: tuple[Numbers, Numbers] | None,
) -> dict[str, Any]:
    plain = _frequencies(frequencies, "frequencies")
    if not 1 <= longest <= FURTHEST:
        raise ValueError(f"longest is {longest:,}: it lies between 1 and {FURTHEST:,}")
    if len(positions) != 2 or not all(0 <= p <= longest for p in positions):
        raise ValueError(
            f"positions are {tuple(positions)}: give two, m and n, between 0 and "
            f"{longest}"
        )
    second = None if scaled is None else _frequencies(scaled, "scaled")
    if second is not None and len(second) != len(plain):
        raise ValueError(
            f"there are {len(plain)} frequencies and {len(second)} scaled ones: "
            "give one for each clock"
        )
    q, k = vectors or np.random.default_rng(3).standard_normal((2, 2 * len(plain)))
    return {
        "frequencies": plain.tolist(),
        "scaled": None if second is None else second.tolist(),
        "positions": [int(p) for p in positions],
        "longest": int(longest),
        "q": _vector(q, len(plain), "the query"),
        "k": _vector(k, len(plain), "the key"),
    }


def _frequencies(given: Numbers, name: str) -> np.ndarray:
    numbers = array(given, name)
    if numbers.ndim != 1 or not 1 <= len(numbers) <= MOST:
        raise ValueError(
            f"{name} has the shape {numbers.shape}: give a list of 1 to {MOST} numbers"
        )
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise ValueError(f"{name} must be finite and above 0: radians a token")
    return numbers


def _vector(given: Numbers, pairs: int, name: str) -> list[float]:
    numbers = array(given, name)
    if numbers.shape != (2 * pairs,) or not np.isfinite(numbers).all():
        raise ValueError(
            f"{name} has the shape {numbers.shape}: give {2 * pairs} finite numbers, "
            f"two for each of the {pairs} clocks"
        )
    return numbers.tolist()
