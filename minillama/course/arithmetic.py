"""Sums, one a line, and a judge of them: a task whose every answer can be checked.

python -m minillama.course.arithmetic --seed 1 --lines 1000 > data/arithmetic.txt
"""

import argparse
import random
import re
from collections.abc import Iterator

_LINE = re.compile(r"(\d{1,4}) ([+\-x]) (\d{1,4}) = (-?\d+)")


def sums(seed: int, lines: int) -> Iterator[str]:
    """So many sums like "37 + 45 = 82": of one to three digits, products of one or two.

    The number of digits is drawn first, so that short numbers are as common as long
    ones. The same seed gives the same lines.
    """
    rng = random.Random(seed)
    for _ in range(lines):
        sign = rng.choice("+-x")
        most = 2 if sign == "x" else 3
        a, b = (rng.randrange(10 ** rng.randint(1, most)) for _ in range(2))
        yield f"{a} {sign} {b} = {_value(a, sign, b)}"


def is_right(line: str) -> bool | None:
    """Whether a sum is right; None if the line is no sum."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    a, sign, b, answer = found.groups()
    return _value(int(a), sign, int(b)) == int(answer)


def _value(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "x": a * b}[sign]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print sums, one a line.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", type=int, default=1000)
    asked = parser.parse_args()
    for line in sums(asked.seed, asked.lines):
        print(line)


if __name__ == "__main__":
    main()
