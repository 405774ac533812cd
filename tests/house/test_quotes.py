"""tools/quotes.py notices each way in which a notebook can leave the library."""

import json
import textwrap
from pathlib import Path

import pytest
import quotes

ROPE = textwrap.dedent('''
    import math


    @cached
    def turn(x, angle):
        """Turn it."""
        # anticlockwise
        return x * math.cos(angle)


    class Clock:
        def tick(self):
            # each second
            return 1

        def _wind(self):
            return 2


    def _private():
        return 3
''')
TURN = '''@cached
def turn(x, angle):
    """Turn it."""
    # anticlockwise
    return x * math.cos(angle)'''
CLOCK = """class Clock:
    def tick(self):
        # each second
        return 1

    def _wind(self):
        return 2"""
GOOD = [
    f"# @quote minillama.rope.turn\n{TURN}",
    f"#@quote minillama.rope.Clock\n{CLOCK}",
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "minillama"
    package.mkdir()
    (package / "rope.py").write_text(ROPE)
    return package


def notebook(folder: Path, name: str, *cells: str) -> Path:
    path = folder / f"{name}.ipynb"
    made = [
        {"cell_type": "code", "source": cell.splitlines(keepends=True), "metadata": {}}
        for cell in cells
    ]
    path.write_text(json.dumps({"cells": made, "nbformat": 4, "nbformat_minor": 5}))
    return path


def errors(package: Path, *paths: Path) -> list[str]:
    return quotes.check(package, list(paths)).errors


def test_faithful_quotes_pass(package: Path, tmp_path: Path) -> None:
    assert errors(package, notebook(tmp_path, "03_rope", *GOOD)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cos", "sin"),
        ("# anticlockwise", "# clockwise"),
        ("@cached\n", ""),
        ("    # anticlockwise\n", ""),
        ("cos(angle)", "cos(angle)\n\nprint(1)"),
        ("x * math", "x  *  math"),
    ],
)
def test_drift(package: Path, tmp_path: Path, old: str, new: str) -> None:
    path = notebook(tmp_path, "03_rope", GOOD[0].replace(old, new), GOOD[1])
    (error,) = errors(package, path)
    assert "03_rope.ipynb, cell 0: minillama.rope.turn is not the library's" in error
    before = json.loads(path.read_text())["cells"][1]
    assert quotes.write(package, [path]) == [
        "03_rope.ipynb, cell 0: minillama.rope.turn"
    ]
    assert errors(package, path) == []
    assert json.loads(path.read_text())["cells"][1] == before
    assert quotes.write(package, [path]) == []


def test_a_quote_of_nothing(package: Path, tmp_path: Path) -> None:
    path = notebook(tmp_path, "03_rope", *GOOD, "#@quote minillama.rope.trun\npass")
    assert errors(package, path) == [
        "03_rope.ipynb, cell 2: there is no minillama.rope.trun"
    ]


def test_a_quote_twice(package: Path, tmp_path: Path) -> None:
    first = notebook(tmp_path, "03_rope", *GOOD)
    second = notebook(tmp_path, "04_attention", GOOD[0])
    assert errors(package, first, second) == [
        "minillama.rope.turn is quoted more than once: "
        "03_rope.ipynb, cell 0 and 04_attention.ipynb, cell 0"
    ]


@pytest.mark.parametrize(
    "cell",
    [
        "def turn(x):\n    return x",
        "%time\nclass Clock:\n    pass",
        "x = 1\nturn = lambda x: x",
        "# not @draft\ndef turn(x):\n    return x",
        "x = 1\n# @draft\ny = 2\n\n\ndef turn(x):\n    return x",
    ],
)
def test_a_name_of_the_library_without_a_mark(
    package: Path, tmp_path: Path, cell: str
) -> None:
    (error,) = errors(package, notebook(tmp_path, "03_rope", *GOOD, cell))
    assert "cell 2" in error
    assert "bears the name of the library's own" in error


@pytest.mark.parametrize(
    "cell",
    [
        "# @draft\ndef turn(x):\n    return x",
        "#@draft\nx = 1\n\n\ndef turn(x):\n    return x",
        "x = 1\n\n\n# @draft\n@cached\ndef turn(x):\n    return x",
        "# @draft\nturn = lambda x: x",
        "def my_turn(x):\n    def turn(y):\n        return y\n    return turn(x)",
        "turn = rope.turn",
        "_private = lambda: 4",
        "this is no Python, on purpose",
    ],
)
def test_what_may_stand_in_a_notebook(package: Path, tmp_path: Path, cell: str) -> None:
    assert errors(package, notebook(tmp_path, "03_rope", *GOOD, cell)) == []


def test_a_definition_that_its_notebook_forgot(package: Path, tmp_path: Path) -> None:
    path = notebook(tmp_path, "03_rope", GOOD[0])
    assert errors(package, path) == [
        "minillama.rope.Clock is quoted nowhere, and notebook 03 is there"
    ]


def test_a_method_stands_for_no_short_class(package: Path, tmp_path: Path) -> None:
    tick = "# @quote minillama.rope.Clock.tick\ndef tick(self):\n    # each second\n"
    path = notebook(tmp_path, "03_rope", GOOD[0], tick + "    return 1")
    (error,) = errors(package, path)
    assert "Clock is quoted nowhere" in error


def test_a_definition_whose_notebook_is_to_come(package: Path, tmp_path: Path) -> None:
    found = quotes.check(package, [notebook(tmp_path, "02_norm", "x = 1")])
    assert found.errors == []
    assert found.waiting == [
        "minillama.rope.turn (notebook 03)",
        "minillama.rope.Clock (notebook 03)",
    ]


def test_a_class_longer_than_a_cell(package: Path, tmp_path: Path) -> None:
    long = ROPE.replace("        # each second\n", "        # each second\n" * 60)
    (package / "rope.py").write_text(long)
    whole = notebook(tmp_path, "03_rope", *GOOD)
    assert "longer than 60 lines" in errors(package, whole)[0]
    wind = "# @quote minillama.rope.Clock._wind\ndef _wind(self):\n    return 2"
    pieces = notebook(tmp_path, "03_rope", GOOD[0], wind)
    assert errors(package, pieces) == []
    row = "| 1 | `rope.py` | `Clock` | [03_rope](../notebooks/03_rope.ipynb): `_wind` |"
    assert row in quotes.table(package, [pieces])
    neither = notebook(tmp_path, "03_rope", GOOD[0])
    assert "Clock is quoted nowhere" in errors(package, neither)[0]


def test_a_function_longer_than_a_cell(package: Path) -> None:
    long = ROPE.replace("    # anticlockwise\n", "    # anticlockwise\n" * 60)
    (package / "rope.py").write_text(long)
    assert errors(package) == ["minillama.rope.turn is longer than a cell, 60 lines"]


def test_what_no_notebook_explains(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quotes.NOTEBOOK_OF, "minillama.rope.Clock", None)
    path = notebook(tmp_path, "03_rope", GOOD[0])
    assert errors(package, path) == []
    row = "| 1 | `rope.py` | `Clock` | (in the library alone) |"
    assert row in quotes.table(package, [path])


def test_the_table(package: Path, tmp_path: Path) -> None:
    rows = quotes.table(package, [notebook(tmp_path, "03_rope", GOOD[0])]).splitlines()
    assert rows[2:] == [
        "| 1 | `rope.py` | `turn` | [03_rope](../notebooks/03_rope.ipynb) |",
        "| 1 | `rope.py` | `Clock` | (notebook 03, not yet) |",
    ]


def test_this_library_and_these_notebooks() -> None:
    notebooks = sorted((quotes.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    assert quotes.check(quotes.ROOT / "minillama", notebooks).errors == []
