"""Put a notebook together from a Python script, cell by cell.

For authors: a long notebook is easier to move about in as a script. The notebook is
what the repository keeps; `save` writes it, tools/notebooks.py runs it.

    page = Page("03")
    page.head("Where am I? Position by rotation", promise="...", need="...",
              build="`apply_rope`", read=20, code=25)
    page.text("## Attention is blind to order ...")
    page.code("print(1 + 1)")
    page.quote("minillama.rope.apply_rope")
    page.exercise("3.1", "Write `my_rope` ...", difficulty=2, importance=5, minutes=10,
                  hints=["..."], stub="...", check="...", solution="...")
    page.quiz([("How many parameters does RoPE have?", "None.")])
    page.sources("RoFormer (arXiv 2104.09864)")
    page.next("In [04 Attention](04_attention.ipynb) ...")
    page.save()

`python tools/nb.py notebooks/03_rope.ipynb` prints a notebook, outputs included.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import nbformat
from floors import SYLLABUS
from quotes import ROOT, definitions

FOLDER = ROOT / "notebooks"


class Page:
    """A notebook in the making."""

    def __init__(self, number: str) -> None:
        self.number = number
        self.path = FOLDER / f"{number}_{SYLLABUS[number]}.ipynb"
        self.cells: list[nbformat.NotebookNode] = []

    def text(self, markdown: str) -> None:
        self._add(nbformat.v4.new_markdown_cell(dedent(markdown).strip()))

    def code(self, source: str, *tags: str, hidden: bool = False) -> None:
        cell = nbformat.v4.new_code_cell(dedent(source).strip())
        if tags:
            cell.metadata.tags = list(tags)
        if hidden:
            cell.metadata.jupyter = {"source_hidden": True}
        self._add(cell)

    def quote(self, name: str) -> None:
        """The library's own source."""
        tops = list(definitions(ROOT / "minillama"))
        known = {s.name: s.text for top in tops for s in (top, *top.parts)}
        self.code(f"# @quote {name}\n{known[name]}")

    def head(
        self, title: str, *, promise: str, need: str, build: str, read: int, code: int
    ) -> None:
        """Title, promise, what it takes, and the way through the course."""
        numbers = list(SYLLABUS)
        at = numbers.index(self.number)

        def link(i: int) -> str:
            name = SYLLABUS[numbers[i]]
            return f"[{numbers[i]} {name}]({numbers[i]}_{name}.ipynb)"

        done = "●" * (at + 1) + "○" * (len(numbers) - at - 1)
        way = [link(at - 1)] if at else []
        way += [done] + ([link(at + 1)] if at + 1 < len(numbers) else [])
        self.text(
            f"# {self.number} · {title}\n\n*{promise}*\n\n"
            f"**You need** {need}  \n**You build** {build}  \n"
            f"**Time** {read} minutes to read, {code} to code  \n"
            f"**Way** {' · '.join(way)}"
        )

    def exercise(
        self,
        number: str,
        task: str,
        *,
        difficulty: int,
        importance: int,
        minutes: int,
        hints: Sequence[str],
        stub: str,
        check: str,
        solution: str,
    ) -> None:
        """The card with its hints, the stub, the check, the folded solution."""
        task = dedent(task).strip().replace("\n", "\n> ")
        folded = "\n".join(
            f"<details><summary>Hint {i}</summary> {hint}</details>"
            for i, hint in enumerate(hints, 1)
        )
        self.text(
            f"> **Exercise {number} · difficulty {difficulty} of 5 · "
            f"importance {importance} of 5 · {minutes} minutes**\n>\n"
            f"> {task}\n\n{folded}"
        )
        self.code(stub, "exercise")
        self.code(check, "check")
        self.code(solution, "solution", hidden=True)

    def quiz(self, questions: Sequence[tuple[str, str]]) -> None:
        folded = "\n".join(
            f"<details><summary>{question}</summary> {answer}</details>"
            for question, answer in questions
        )
        self.text(f"## Quiz\n\n{folded}")

    def sources(self, *papers: str) -> None:
        self.text("## Sources\n\n" + "\n".join(f"- {paper}" for paper in papers))

    def next(self, markdown: str) -> None:
        self.text(f"## Next\n\n{dedent(markdown).strip()}")

    def _add(self, cell: nbformat.NotebookNode) -> None:
        # An id that stays while the cell's text does.
        used = {c.id for c in self.cells}
        salt = 0
        while True:
            text = f"{cell.cell_type}{cell.source}{salt or ''}"
            cell.id = hashlib.sha256(text.encode()).hexdigest()[:8]
            if cell.id not in used:
                break
            salt += 1
        self.cells.append(cell)

    def save(self) -> None:
        node = nbformat.v4.new_notebook(cells=self.cells)
        nbformat.validate(node)
        text = json.dumps(node, indent=1, ensure_ascii=False, sort_keys=True)
        self.path.write_text(text + "\n", "utf-8")


def show(path: Path) -> None:
    """Print a notebook as a reader meets it, cell by cell."""
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        tags = ", ".join(cell.metadata.get("tags", []))
        print(f"--- {number} {cell.cell_type} {tags}".rstrip())
        print(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            words = output.get("text") or data.get("text/plain", "")
            kinds = ", ".join(k for k in data if k != "text/plain")
            print("  >> " + f"{words} {kinds}".strip().replace("\n", "\n  >> "))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        show(Path(name))
