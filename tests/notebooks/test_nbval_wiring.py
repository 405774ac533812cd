"""nbval, set up as pyproject.toml sets it up, notices what it should."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]

# The source, the stored output, the tags, and what nbval should say.
CELLS = {
    "the same": ("print(42)", "42\n", [], "PASSED"),
    "another number": ("print(42)", "43\n", [], "FAILED"),
    "another last digit": ("print(0.333)", "0.334\n", [], "FAILED"),
    "no output any more": ("x = 1", "1\n", [], "FAILED"),
    "an output too many": ("print(1)", "", [], "FAILED"),
    "seconds": ("print('took 1.25 s')", "took 0.9 s\n", [], "PASSED"),
    "speed": ("print('12.5 tokens a second')", "9 tokens a second\n", [], "PASSED"),
    "device": ("print('on cpu')", "on cuda:0\n", [], "PASSED"),
    "address": (
        "print('<K at 0x7f69ebc95190>')",
        "<K at 0x7000ebc95190>\n",
        [],
        "PASSED",
    ),
    "a count near a unit": ("print('4 steps')", "5 steps\n", [], "FAILED"),
    "ignored": ("print(1)", "2\n", ["nbval-ignore-output"], "PASSED"),
    "ignored, but raises": ("1 / 0", "", ["nbval-ignore-output"], "FAILED"),
    "skipped": ("1 / 0", "", ["gpu", "nbval-skip"], "SKIPPED"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What nbval says of each cell."""
    path = tmp_path_factory.mktemp("made") / "made.ipynb"
    node = nbformat.v4.new_notebook()
    node.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    for count, (source, stored, tags, _) in enumerate(CELLS.values(), 1):
        cell = nbformat.v4.new_code_cell(source, execution_count=count)
        cell.metadata.tags = tags
        if stored:
            cell.outputs = [
                nbformat.v4.new_output("stream", name="stdout", text=stored)
            ]
        node.cells.append(cell)
    nbformat.write(node, path)
    options = f"--nbval -rA -q -p no:cacheprovider --rootdir={ROOT}".split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c=pyproject.toml", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    found = re.findall(r"^(PASSED|FAILED|SKIPPED).*Cell (\d+)", done.stdout, re.M)
    return {int(number): outcome for outcome, number in found}


@pytest.mark.parametrize("name", CELLS)
def test_a_stored_output_is_compared(name: str, outcomes: dict[int, str]) -> None:
    number = list(CELLS).index(name)
    assert outcomes.get(number, "SKIPPED") == CELLS[name][3]


def test_all_but_the_skipped_cell_ran(outcomes: dict[int, str]) -> None:
    assert len(outcomes) == len(CELLS) - 1
