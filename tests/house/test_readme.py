"""What README.md shows is true: its snippets run, its commands and links are there."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
COMMANDS = re.findall(r"(?:`|\$ |-m )minillama ([a-z]+)", README)


def cells() -> list[tuple[str, str]]:
    """The Python blocks, each with the output block that follows it."""
    return [
        (a[1].strip(), b[1].strip())
        for a, b in pairwise(BLOCKS)
        if (a[0], b[0]) == ("python", "text")
    ]


@pytest.mark.model
def test_the_snippets_print_what_is_shown(smollm2_path: Path) -> None:
    assert len(cells()) == sum(kind == "python" for kind, _ in BLOCKS) == 4
    mark = "\n--- the next cell ---\n"
    source = f"\nprint({mark!r}, end='')\n".join(code for code, _ in cells())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = [text.strip() for text in done.stdout.split(mark)]
    assert printed == [text for _, text in cells()]


@pytest.mark.model
def test_the_command_answers_as_shown(smollm2_path: Path) -> None:
    (shown,) = [text for kind, text in BLOCKS if kind == "console"]
    match = re.fullmatch(r'\$ minillama (\w+) (\S+) "(.*)"\n(.*)\n', shown)
    assert match is not None
    verb, name, prompt, answer = match.groups()
    done = subprocess.run(
        [sys.executable, "-m", "minillama", verb, name, prompt],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, answer), done.stderr


def test_the_first_screen_is_the_first_notebook() -> None:
    notebook = json.loads((ROOT / "notebooks/00_welcome.ipynb").read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][:3]
    shown = [("".join(c["source"]), "".join(c["outputs"][0]["text"])) for c in code]
    assert [(a.strip(), b.strip()) for a, b in shown] == cells()[:3]


def test_the_verbs_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for verb in re.findall(r"^make ([\w-]+)", README, re.M):
        assert re.search(rf"^{verb}:", makefile, re.M), verb


def test_the_verbs_of_the_command_are_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minillama", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"pull", "generate", "lab", "doctor"} <= set(COMMANDS)
    for verb in set(COMMANDS):
        assert re.search(rf"\b{verb}\b", done.stdout), verb


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_notebooks_that_are_written_are_linked() -> None:
    for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        assert f"](notebooks/{path.name})" in README, (
            f"README does not link {path.name}"
        )
