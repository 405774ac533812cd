"""tools/anatomy.py notices what a notebook must not have, or must have."""

from base64 import b64decode, b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import anatomy
import nb
import nbformat
import numpy as np
import pytest
from PIL import Image

import notebooks

Node = nbformat.NotebookNode
CAPTION = "Figure: bars, one for each word, that shrink from left to right."
DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQ"
    "AAAABJRU5ErkJggg=="
)


def stream(text: str, name: str = "stdout") -> Node:
    return nbformat.v4.new_output("stream", name=name, text=text)


def picture(alt: str = CAPTION.removeprefix("Figure: ")) -> Node:
    return nbformat.v4.new_output(
        "display_data",
        data={"image/png": DOT, "text/plain": "<Figure>"},
        metadata={"image/png": {"alt": alt}},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a notebook with which no rule finds fault."""
    page = nb.Page("03")
    page.path = tmp_path_factory.mktemp("made") / "03_rope.ipynb"
    page.head("Turning", promise="P.", need="N", build="B", read=1, code=1)
    page.code("print(1)\nassert True")
    page.text("**Predict, then run.** What comes out? " + "word " * 150)
    page.code("draw()")
    page.text(f"*{CAPTION}*\n\nMore.")
    page.quote("minillama.norm.RMSNorm")
    page.text("## Break it")
    for number in ("3.1", "3.2", "3.3"):
        page.exercise(
            number,
            "Write it.",
            difficulty=1,
            importance=2,
            minutes=3,
            hints=["One.", "Two."],
            stub="def mine():\n    ...",
            check="check(mine)",
            solution="def mine():\n    return 1",
        )
    page.text("## Your code, the real model")
    page.quiz([("A?", "a"), ("B?", "b"), ("C?", "c")])
    page.sources("RoFormer (arXiv 2104.09864)")
    page.next("On.")
    page.save()
    book = anatomy.Notebook(page.path)
    for count, cell in enumerate(book.code, 1):
        cell.node.execution_count = count
    book.code[0].node.outputs = [stream("1\n")]
    book.code[1].node.outputs = [picture()]
    for cell in book.tagged("check"):
        cell.node.outputs = [stream("not attempted yet: 3.1\n")]
    notebooks.tidy(book)
    notebooks.save(book)
    return page.path.read_text("utf-8")


@pytest.fixture
def sound(made: str, tmp_path: Path) -> Path:
    path = tmp_path / "03_rope.ipynb"
    path.write_text(made, "utf-8")
    return path


Change = Callable[[anatomy.Notebook], object]


def broken(path: Path, change: Change) -> list[str]:
    book = anatomy.Notebook(path)
    change(book)
    notebooks.save(book)
    return anatomy.lint(path)


def test_a_sound_notebook(sound: Path) -> None:
    assert anatomy.lint(sound) == []


def put(i: int, **fields: object) -> Change:
    """Set fields of the i-th code cell."""
    return lambda book: book.code[i].node.update(fields)


def tag(i: int, *tags: str) -> Change:
    return lambda book: book.code[i].node.metadata.update(tags=list(tags))


def prose(old: str, new: str) -> Change:
    def change(book: anatomy.Notebook) -> None:
        cells = [cell for cell in book.prose if old in cell.source]
        assert cells, f"{old} is nowhere"
        for cell in cells:
            cell.node.source = cell.source.replace(old, new)

    return change


def long_code(lines: int) -> str:
    return "\n".join(f"x{i} = {i}" for i in range(lines))


def all_long(book: anatomy.Notebook) -> None:
    for cell in book.code:
        cell.node.source = long_code(7)


CHANGES: dict[str, tuple[Change, str]] = {
    "tag": (tag(0, "excercise"), "unknown tag 'excercise'"),
    "skipped": (tag(0, "nbval-skip"), "only a cell tagged gpu"),
    "skip comment": (put(0, source="# NBVAL_SKIP\n1"), "only a cell tagged gpu"),
    "not run": (put(1, execution_count=None), "not run from top to bottom"),
    "run in disorder": (put(0, execution_count=7), "not run from top to bottom"),
    "stderr": (put(0, outputs=[stream("oh", "stderr")]), "writes to stderr"),
    "error": (
        put(0, outputs=[nbformat.v4.new_output("error", ename="E", evalue="")]),
        "ends in E",
    ),
    "timestamps": (
        put(0, metadata=nbformat.from_dict({"execution": {}})),
        "changes from run to run",
    ),
    "semicolon": (put(0, source="plot();\n"), "ends in a semicolon"),
    "home": (put(0, outputs=[stream("/home/ada/x")]), "somebody's machine: /home/a"),
    "home in code": (put(0, source='open("/Users/ada/x")'), "somebody's machine"),
    "windows": (put(0, outputs=[stream(r"C:\Users")]), "somebody's machine"),
    "script": (
        put(
            0,
            outputs=[
                nbformat.v4.new_output("display_data", data={"text/html": "<script>"})
            ],
        ),
        "runs a script",
    ),
    "no alt in markdown": (prose("More.", "![](x.png)"), "has no alt text"),
    "picture elsewhere": (prose("More.", "![a](http://x.y/z.png)"), "not in the repo"),
    "dead link": (prose("More.", "[here](nowhere.md)"), "nowhere.md, which is not"),
    "two pictures": (put(1, outputs=[picture()] * 2), "more than one picture"),
    "no caption": (prose("*Figure:", "*Here:"), "needs a caption"),
    "short caption": (prose(CAPTION, "Figure: bars."), "needs a caption"),
    "no alt in output": (put(1, outputs=[picture("other")]), "lacks its alt text"),
    "bare widget": (tag(2, "widget"), "a widget needs a picture"),
    "ignored": (
        lambda book: [tag(i, "nbval-ignore-output")(book) for i in (0, 1)],
        "2 of 12 cells ignore",
    ),
    "long cell": (put(0, source=long_code(41)), "41 lines of code, more than 40"),
    "long quote": (
        put(0, source="# @quote x\n" + long_code(60)),
        "61 lines of code, more than 60",
    ),
    "median": (all_long, "half of the cells have more than 6 lines: 7"),
    "silent": (
        lambda book: [
            put(4, outputs=[])(book),
            put(6, outputs=[stream("1")])(book),
        ],
        "cell 10: the fourth cell in a row that shows nothing",
    ),
    "title": (prose("# 03 · ", "# 3 · "), "the title is not"),
    "need": (prose("**You need**", "You need"), "lacks **You need**"),
    "way": (prose("**Way**", "Way"), "lacks **Way**"),
    "quiz": (prose("## Quiz", "## Questions"), "three folded answers"),
    "two questions": (prose("<details><summary>C?", "C?"), "three folded answers"),
    "sources": (prose("arXiv", "paper"), "'## Sources' with arXiv"),
    "next": (prose("## Next", "## End"), "lacks '## Next'"),
    "predict": (prose("Predict, then run", "Guess"), "lacks 'Predict, then run'"),
    "break": (prose("Break it", "Mend it"), "lacks 'Break it'"),
    "real model": (prose("the real model", "a model"), "lacks 'Your code, the real"),
    "nothing quoted": (put(2, source="x = 1"), "quotes nothing"),
    "nothing asserted": (put(0, source="print(1)"), "asserts nothing"),
    "few words": (prose("word ", ""), "words of prose a line of code"),
    "two exercises": (tag(3), "2 exercises"),
    "card": (prose("difficulty", "weight"), "lacks 'difficulty'"),
    "hints": (
        prose("<details><summary>Hint 2</summary> Two.</details>", ""),
        "two or three folded hints",
    ),
    "no check": (tag(4), "followed by its check and its solution"),
    "no solution": (tag(5), "followed by its check and its solution"),
    "attempted": (put(4, outputs=[stream("ok")]), "'not attempted yet' as shipped"),
    "open solution": (
        lambda book: book.code[5].node.metadata.pop("jupyter"),
        "source is not hidden",
    ),
    "kernel": (lambda book: book.node.metadata.clear(), "kernel is not python3"),
    "widget state": (
        lambda book: book.node.metadata.update(widgets={}),
        "widget state",
    ),
    "invalid": (
        lambda book: book.code[0].node.update(outputs=[{"output_type": "odd"}]),
        "not a valid notebook",
    ),
    "large": (put(0, outputs=[stream("x" * 2**20)]), "more than 1 MiB"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_rule_is_held(name: str, sound: Path) -> None:
    change, message = CHANGES[name]
    found = broken(sound, change)
    assert any(message in line for line in found), found


def test_the_users_name(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy.getpass, "getuser", lambda: "lovelace")
    found = broken(sound, put(0, outputs=[stream("saved by lovelace\n")]))
    assert found == ["03_rope.ipynb, cell 1: its output names the user"]


def test_the_welcome_builds_nothing(sound: Path) -> None:
    welcome = sound.rename(sound.with_name("00_welcome.ipynb"))

    def change(book: anatomy.Notebook) -> None:
        prose("# 03 · ", "# 00 · ")(book)
        prose("Break it", "Mend it")(book)
        prose("arXiv", "paper")(book)
        tag(3)(book)

    assert broken(welcome, change) == []


def test_the_figures(sound: Path) -> None:
    figures = dict(
        zip(
            notebooks.COLUMNS,
            notebooks.figures_of(anatomy.Notebook(sound)),
            strict=True,
        )
    )
    assert figures["code cells"] == "12"
    assert figures["figures"] == figures["with alt text"] == "1"
    assert figures["exercises"] == "3"
    assert figures["outputs ignored"] == "0 of 12"
    assert figures["median lines"] == "2"


def test_a_run_stores_nothing_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nb, "FOLDER", tmp_path)
    page = nb.Page("03")
    page.code("print(6 * 7)")
    page.code("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    page.text(f"*{CAPTION}*")
    page.code("1 / 0", "raises-exception")
    page.code(
        "from minillama.widgets import TokensView\n"
        "TokensView('a', {'letters': lambda text: [(97, b'a')]})"
    )
    page.save()
    texts = []
    for _ in range(2):
        book, seconds, megabytes = notebooks.execute(page.path)
        notebooks.tidy(book)
        notebooks.save(book)
        texts.append(page.path.read_text())
    assert texts[0] == texts[1]
    assert seconds > 0
    assert megabytes is None or 20 < megabytes < 2000
    first, second, third, view = anatomy.Notebook(page.path).code
    assert first.printed == "42"
    assert second.pictures[0][0].metadata["image/png"]["alt"] in CAPTION
    assert third.outputs[0].ename == "ZeroDivisionError"
    assert sorted(view.outputs[0].data) == ["image/png", "text/plain"]


def test_pictures_get_smaller_and_stay_what_they_show() -> None:
    shade = np.random.default_rng(0).integers(0, 256, (200, 200, 1), np.uint8)
    shades = np.repeat(shade, 3, axis=-1)
    solid = np.full((200, 200, 1), 255, np.uint8)
    png = encoded(np.concatenate([shades, solid], axis=-1))
    small = notebooks.smaller(png)
    assert len(small) < len(png)
    assert np.abs(decoded(small)[..., :3].astype(int) - shades).max() <= 2
    assert notebooks.smaller(small) == small
    through = encoded(np.concatenate([shades, solid - 1], axis=-1))
    assert notebooks.smaller(through) == through


def encoded(pixels: np.ndarray) -> str:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return b64encode(out.getvalue()).decode()


def decoded(png: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(png))).convert("RGBA"))


def test_these_notebooks() -> None:
    found = [line for path in notebooks.all_notebooks() for line in anatomy.lint(path)]
    assert found == []
    before = notebooks.measured_before()
    assert notebooks.REPORT.read_text() == notebooks.report(before), "make report"
