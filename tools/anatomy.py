"""What a notebook of the course must have and must not have: the rules as code.

CONTRIBUTING.md has them in words. tools/notebooks.py calls `lint`.
"""

import getpass
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from floors import SYLLABUS
from nbformat import NotebookNode

TAGS = {
    "exercise",
    "solution",
    "check",
    "gpu",
    "widget",
    "raises-exception",
    "nbval-ignore-output",
    "nbval-skip",
}
CELL, QUOTE, MEDIAN = 40, 60, 6  # lines of code
WORDS = (7, 12)  # of prose for a line of code
BYTES = 2**20
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
MACHINE = re.compile(r"/(?:home|root|Users|tmp|work|mnt|private|opt)/\w|\b[A-Z]:\\\w")
QUOTED = re.compile(r"#\s?@quote\b")
CAPTION = re.compile(r"\*Figure: (.+?)\*(?=\n\n|\s*\Z)", re.DOTALL)
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<to>[^)\s]+)")
TO_BE_WRITTEN = {f"{no}_{name}.ipynb" for no, name in SYLLABUS.items()}
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<to>[^)#\s]+)")


@dataclass
class Cell:
    """One cell, its number in the notebook, and questions about it."""

    number: int
    node: NotebookNode

    @property
    def source(self) -> str:
        return self.node.source

    @property
    def code(self) -> bool:
        return self.node.cell_type == "code"

    @property
    def tags(self) -> set[str]:
        return set(self.node.metadata.get("tags", []))

    @property
    def lines(self) -> int:
        return sum(bool(line.strip()) for line in self.source.splitlines())

    @property
    def words(self) -> int:
        return 0 if self.code else len(self.source.split())

    @property
    def outputs(self) -> list[NotebookNode]:
        return self.node.get("outputs", [])

    @property
    def pictures(self) -> list[tuple[NotebookNode, str]]:
        return [
            (output, kind)
            for output in self.outputs
            for kind in PICTURES
            if kind in output.get("data", {})
        ]

    @property
    def ignored(self) -> bool:
        return "nbval-ignore-output" in self.tags or "NBVAL_IGNORE" in self.source

    @property
    def skipped(self) -> bool:
        return "nbval-skip" in self.tags or "NBVAL_SKIP" in self.source

    @property
    def printed(self) -> str:
        return "".join(
            o.text for o in self.outputs if o.get("name") == "stdout"
        ).strip()

    @property
    def text(self) -> str:
        """All that its outputs say in words."""
        parts = [output.get("text", "") for output in self.outputs]
        for output in self.outputs:
            data = output.get("data", {})
            parts += [str(data[kind]) for kind in data if kind not in PICTURES]
            parts += output.get("traceback", [])
        return "\n".join(parts)


class Notebook:
    """A notebook of the course, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.node: NotebookNode = nbformat.read(path, as_version=4)
        self.cells = [Cell(i, node) for i, node in enumerate(self.node.cells)]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def number(self) -> str:
        return self.name.split("_")[0]

    @property
    def builds(self) -> bool:
        """Whether it builds a part of the library: 00 is the welcome alone."""
        return self.number != "00"

    @cached_property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.code]

    @cached_property
    def prose(self) -> list[Cell]:
        return [cell for cell in self.cells if not cell.code]

    def tagged(self, tag: str) -> list[Cell]:
        return [cell for cell in self.cells if tag in cell.tags]

    def after(self, cell: Cell) -> Cell | None:
        return next(iter(self.cells[cell.number + 1 :]), None)

    def caption(self, cell: Cell) -> str | None:
        """The caption of the figure that this cell draws, from the cell below it."""
        below = self.after(cell)
        match = CAPTION.match(below.source) if below and not below.code else None
        return " ".join(match[1].split()) if match else None


Problem = tuple[Cell | None, str]
Rule = Callable[[Notebook], Iterator[Problem]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


@rule
def a_sound_file(nb: Notebook) -> Iterator[Problem]:
    try:
        nbformat.validate(nb.node)
    except nbformat.ValidationError as error:
        yield None, f"not a valid notebook: {str(error).splitlines()[0]}"
    if nb.path.stat().st_size > BYTES:
        yield None, f"{nb.path.stat().st_size:,} bytes, more than 1 MiB"
    if nb.node.metadata.get("kernelspec", {}).get("name") != "python3":
        yield None, "its kernel is not python3: use tools/notebooks.py run"
    if "widgets" in nb.node.metadata:
        yield None, "widget state is stored: it changes with every run"
    if "version" in nb.node.metadata.get("language_info", {}):
        yield None, "names a Python version: use tools/notebooks.py run"


@rule
def known_tags(nb: Notebook) -> Iterator[Problem]:
    for cell in nb.cells:
        for tag in sorted(cell.tags - TAGS):
            yield cell, f"unknown tag {tag!r}"
        if cell.skipped and "gpu" not in cell.tags:
            yield cell, "skipped by nbval, and only a cell tagged gpu may be"


@rule
def outputs_are_stored(nb: Notebook) -> Iterator[Problem]:
    counts = [cell.node.execution_count for cell in nb.code if not cell.skipped]
    if counts != list(range(1, len(counts) + 1)):
        yield None, "was not run from top to bottom: use tools/notebooks.py run"
    for cell in nb.code:
        for output in cell.outputs:
            if output.get("name") == "stderr":
                yield cell, "writes to stderr"
            if output.output_type == "error" and "raises-exception" not in cell.tags:
                yield cell, f"ends in {output.ename}"
        if set(cell.node.metadata) - {"tags", "jupyter"}:
            yield cell, "has metadata that changes from run to run"
        if cell.source.rstrip().endswith(";"):
            yield cell, "ends in a semicolon: Jupyter is silent then, and nbval is not"


@rule
def nothing_of_this_machine(nb: Notebook) -> Iterator[Problem]:
    user = getpass.getuser()
    for cell in nb.cells:
        text = f"{cell.source}\n{cell.text}"
        if found := MACHINE.search(text):
            yield cell, f"names a path of somebody's machine: {found[0]}..."
        if len(user) > 3 and user != "root" and re.search(rf"\b{user}\b", cell.text):
            yield cell, "its output names the user"


@rule
def nothing_from_the_network(nb: Notebook) -> Iterator[Problem]:
    for cell in nb.cells:
        if re.search(r"<script|(?:src|href)=[\"']?(?:https?:)?//", cell.text):
            yield cell, "its output loads something or runs a script"
        for image in IMAGE.finditer("" if cell.code else cell.source):
            if not image["alt"].strip():
                yield cell, f"the picture {image['to']} has no alt text"
            if "://" in image["to"]:
                yield cell, f"the picture {image['to']} is not in the repository"
        for link in LINK.finditer("" if cell.code else cell.source):
            path = link["to"]
            local = "://" not in path and path not in TO_BE_WRITTEN
            if local and not (nb.path.parent / path).exists():
                yield cell, f"links to {path}, which is not there"


@rule
def figures_are_told(nb: Notebook) -> Iterator[Problem]:
    for cell in nb.code:
        if len(cell.pictures) > 1:
            yield cell, "draws more than one picture: one a cell, with its caption"
        for output, kind in cell.pictures[:1]:
            caption = nb.caption(cell)
            if not caption or len(caption) < 40:
                yield (
                    cell,
                    "needs a caption: the next cell begins with "
                    "*Figure: what a reader who does not see it should know.*",
                )
            elif output.metadata.get(kind, {}).get("alt") != caption:
                yield cell, "its picture lacks its alt text: use tools/notebooks.py run"
    for cell in nb.tagged("widget"):
        near = [nb.cells[cell.number - 1], cell, *nb.cells[cell.number + 1 :][:2]]
        if not any(c.pictures or "\n" in c.text or "|--" in c.source for c in near):
            yield cell, "a widget needs a picture or a table beside it"


@rule
def most_outputs_are_compared(nb: Notebook) -> Iterator[Problem]:
    ignored = sum(cell.ignored for cell in nb.code)
    if ignored > max(1, len(nb.code) // 10):
        yield None, f"{ignored} of {len(nb.code)} cells ignore their output"


@rule
def short_cells(nb: Notebook) -> Iterator[Problem]:
    for cell in nb.code:
        limit = QUOTE if QUOTED.match(cell.source) else CELL
        if cell.lines > limit:
            yield cell, f"{cell.lines} lines of code, more than {limit}"
    median = statistics.median(cell.lines for cell in nb.code)
    if median > MEDIAN:
        yield None, f"half of the cells have more than {MEDIAN} lines: {median:g}"


@rule
def something_to_see(nb: Notebook) -> Iterator[Problem]:
    silent = 0
    for cell in nb.code:
        silent = 0 if cell.outputs or cell.skipped else silent + 1
        if silent == 4:
            yield cell, "the fourth cell in a row that shows nothing"


@rule
def head_and_foot(nb: Notebook) -> Iterator[Problem]:
    head, foot = nb.cells[0], "\n".join(cell.source for cell in nb.prose[-4:])
    if not re.match(rf"# {nb.number} · \S", head.source):
        yield head, f"the title is not '# {nb.number} · ...'"
    for wanted in ("**You need**", "**You build**", "**Time**", "**Way**"):
        if wanted not in head.source:
            yield head, f"the head lacks {wanted}"
    if "## Quiz" not in foot or foot.count("<details>") < 3:
        yield nb.cells[-1], "the foot lacks '## Quiz' with three folded answers"
    if "## Sources" not in foot or (nb.builds and "arXiv" not in foot):
        yield nb.cells[-1], "the foot lacks '## Sources' with arXiv numbers"
    if "## Next" not in foot:
        yield nb.cells[-1], "the foot lacks '## Next'"


@rule
def anatomy(nb: Notebook) -> Iterator[Problem]:
    if not nb.builds:
        return
    text = "\n".join(cell.source for cell in nb.prose)
    for wanted in ("Predict, then run", "Break it", "Your code, the real model"):
        if wanted not in text:
            yield None, f"lacks {wanted!r}"
    if not any(QUOTED.match(cell.source) for cell in nb.code):
        yield None, "quotes nothing of the library"
    if not any("assert " in cell.source for cell in nb.code):
        yield None, "asserts nothing"
    words = prose_for_a_line(nb)
    if not WORDS[0] <= words <= WORDS[1]:
        low, high = WORDS
        yield None, f"{words:.1f} words of prose a line of code, not {low} to {high}"


@rule
def exercises(nb: Notebook) -> Iterator[Problem]:
    cells = nb.tagged("exercise")
    if nb.builds and len(cells) < 3:
        yield None, f"{len(cells)} exercises, and a notebook has three or more"
    for cell in cells:
        yield from one_exercise(nb, cell)
    for tag in ("check", "solution"):
        if len(nb.tagged(tag)) < len(cells):
            yield None, f"fewer cells tagged {tag} than exercises"
    for cell in nb.tagged("solution"):
        if not cell.node.metadata.get("jupyter", {}).get("source_hidden"):
            yield cell, "a solution whose source is not hidden"


def one_exercise(nb: Notebook, stub: Cell) -> Iterator[Problem]:
    """Card, stub, check, solution, in this order."""
    before = [c.source for c in nb.cells[max(0, stub.number - 2) : stub.number]]
    card = "\n".join(before)
    for wanted in ("**Exercise ", "difficulty", "importance", "minutes"):
        if wanted not in card:
            yield stub, f"the card of this exercise lacks {wanted.strip('*')!r}"
    if not 2 <= card.count("<summary>Hint") <= 3:
        yield stub, "an exercise has two or three folded hints"
    followers = [cell for cell in nb.code if cell.number > stub.number][:2]
    tags = [cell.tags & {"check", "solution"} for cell in followers]
    if tags != [{"check"}, {"solution"}]:
        yield stub, "an exercise is followed by its check and its solution"
    elif "not attempted yet" not in followers[0].text:
        yield followers[0], "this check does not say 'not attempted yet' as shipped"


def prose_for_a_line(nb: Notebook) -> float:
    lines = sum(cell.lines for cell in nb.code)
    return sum(cell.words for cell in nb.prose) / max(lines, 1)


def lint(path: Path) -> list[str]:
    """All that the rules find in one notebook."""
    nb = Notebook(path)
    return [
        f"{nb.name}, cell {cell.number}: {what}" if cell else f"{nb.name}: {what}"
        for check in RULES
        for cell, what in check(nb)
    ]
