"""Hold notebooks and library together: what a notebook shows of it is its source.

A cell whose first line is `# @quote minillama.rope.apply_rope` must be that definition,
comments included. A definition of a notebook that bears a name of the library is such a
quote, or is marked `# @draft`: an earlier version, on purpose. Every public definition
of floors 0 to 2 is quoted in exactly one notebook.

    python tools/quotes.py --check    # say what does not hold; exit 1
    python tools/quotes.py --write    # bring the quoted cells up to date
    python tools/quotes.py --table    # module, definition, notebook

(`#@quote` is read as well; ruff puts the blank in.)
"""

import argparse
import ast
import json
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from floors import MODULES, NOTEBOOK_OF

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "modules.md"
MARK = re.compile(r"#\s?@(quote|draft)\b\s*(\S*)\s*$")
CELL = 60  # lines that one cell may quote: a longer class is quoted in pieces
QUOTED_FLOORS = range(3)
# Floors whose names a notebook must not take for something else.
NAMED_FLOORS = range(5)

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Source:
    """One definition of the library."""

    name: str  # minillama.rope.apply_rope, or minillama.tokenizer.Tokenizer.encode
    text: str
    parts: list["Source"] = field(default_factory=list)  # public methods of a class

    @property
    def module(self) -> str:
        return self.name.split(".")[1]

    @property
    def notebook(self) -> str | None:
        return NOTEBOOK_OF.get(self.name, MODULES[self.module].notebook)

    @property
    def too_long(self) -> bool:
        return len(self.text.splitlines()) > CELL


@dataclass(frozen=True)
class Quote:
    """A cell that says that it shows the library."""

    notebook: Path
    cell: int
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.notebook.name}, cell {self.cell}"


def text_of(node: Definition, lines: list[str]) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))


def definitions(package: Path) -> Iterator[Source]:
    """The definitions of all modules in tools/floors.py, with their methods."""
    for module in MODULES:
        path = package / f"{module}.py"
        if not path.exists():
            continue
        lines = path.read_text("utf-8").splitlines()
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, DEFINITION):
                source = Source(f"minillama.{module}.{node.name}", text_of(node, lines))
                if isinstance(node, ast.ClassDef):
                    source.parts = [
                        Source(f"{source.name}.{part.name}", text_of(part, lines))
                        for part in node.body
                        if isinstance(part, DEFINITION)
                    ]
                yield source


def private(name: str) -> bool:
    return name.rpartition(".")[2].startswith("_")


def read_cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["cells"]


def source_of(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def code_cells(path: Path) -> Iterator[tuple[int, str]]:
    for number, cell in enumerate(read_cells(path)):
        if cell["cell_type"] == "code":
            yield number, source_of(cell)


def mark_of(line: str) -> tuple[str, str] | None:
    match = MARK.match(line)
    return (match[1], match[2]) if match else None


def quotes_in(path: Path) -> Iterator[Quote]:
    for number, code in code_cells(path):
        first, _, rest = code.partition("\n")
        mark = mark_of(first)
        if mark and mark[0] == "quote":
            yield Quote(path, number, mark[1], rest.rstrip())


def python_of(code: str) -> str:
    """The cell without IPython's own lines."""
    return "\n".join(
        "pass" if line.startswith(("%", "!")) else line for line in code.splitlines()
    )


def defined_in(code: str) -> Iterator[tuple[str, bool]]:
    """Names that a cell defines at its top, and whether each is marked as a draft.

    The mark stands on the cell's first line, or on the line above the definition.
    """
    lines = python_of(code).splitlines()
    try:
        body = ast.parse("\n".join(lines)).body
    except SyntaxError:  # a cell may show one
        return
    drafts = [bool(m and m[0] == "draft") for m in map(mark_of, lines)]
    for node in body:
        first = node.lineno
        if isinstance(node, DEFINITION):
            name = node.name
            first = min([first, *(d.lineno for d in node.decorator_list)])
        elif (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Lambda)
            and isinstance(node.targets[0], ast.Name)
        ):
            name = node.targets[0].id
        else:
            continue
        yield name, drafts[0] or (first > 1 and drafts[first - 2])


@dataclass
class Findings:
    """What does not hold, and what still waits for its notebook."""

    errors: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


def check(package: Path, notebooks: list[Path]) -> Findings:
    """Hold the notebooks against the library."""
    found = Findings()
    library = list(definitions(package))
    known = {s.name: s for top in library for s in (top, *top.parts)}
    quoted: dict[str, list[Quote]] = defaultdict(list)
    for path in notebooks:
        for quote in quotes_in(path):
            quoted[quote.name].append(quote)
            _check_quote(quote, known, found)
        _check_names(path, library, found)
    for name, where in quoted.items():
        if len(where) > 1:
            places = " and ".join(map(str, where))
            found.errors.append(f"{name} is quoted more than once: {places}")
    written = {path.name.split("_")[0] for path in notebooks}
    for source in library:
        if MODULES[source.module].floor in QUOTED_FLOORS and not private(source.name):
            _check_coverage(source, quoted, written, found)
    return found


def _check_quote(quote: Quote, known: dict[str, Source], found: Findings) -> None:
    source = known.get(quote.name)
    if source is None:
        found.errors.append(f"{quote}: there is no {quote.name}")
    elif source.too_long:
        found.errors.append(
            f"{quote}: {quote.name} is longer than {CELL} lines: quote its methods"
        )
    elif quote.text != source.text:
        pairs = zip(quote.text.splitlines(), source.text.splitlines(), strict=False)
        differs = next((pair for pair in pairs if pair[0] != pair[1]), None)
        shown = f": {differs[0]!r} is {differs[1]!r} there" if differs else ""
        found.errors.append(f"{quote}: {quote.name} is not the library's{shown}")


def _check_names(path: Path, library: list[Source], found: Findings) -> None:
    names = {
        s.name.rpartition(".")[2]
        for s in library
        if MODULES[s.module].floor in NAMED_FLOORS and not private(s.name)
    }
    for number, code in code_cells(path):
        mark = mark_of(code.partition("\n")[0])
        if mark and mark[0] == "quote":
            continue
        for name, draft in defined_in(code):
            if name in names and not draft:
                found.errors.append(
                    f"{path.name}, cell {number}: {name} bears the name of the "
                    "library's own: quote it, or mark it `# @draft`"
                )


def _check_coverage(
    source: Source, quoted: dict[str, list[Quote]], written: set[str], found: Findings
) -> None:
    if source.too_long and not source.parts:
        found.errors.append(f"{source.name} is longer than a cell, {CELL} lines")
        return
    if source.name in quoted or source.notebook is None:
        return
    if source.too_long and any(part.name in quoted for part in source.parts):
        return
    if source.notebook in written:
        found.errors.append(
            f"{source.name} is quoted nowhere, and notebook {source.notebook} is there"
        )
    else:
        found.waiting.append(f"{source.name} (notebook {source.notebook})")


def write(package: Path, notebooks: list[Path]) -> list[str]:
    """Put the library's source into every cell that quotes it; say which changed."""
    known = {s.name: s for top in definitions(package) for s in (top, *top.parts)}
    changed: list[str] = []
    for path in notebooks:
        content = json.loads(path.read_text("utf-8"))
        old = {q: known[q.name].text for q in quotes_in(path) if q.name in known}
        old = {q: text for q, text in old.items() if q.text != text}
        for quote, text in old.items():
            lines = f"# @quote {quote.name}\n{text}".splitlines(keepends=True)
            content["cells"][quote.cell]["source"] = lines
        if old:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            path.write_text(text + "\n", "utf-8")
        changed += [f"{quote}: {quote.name}" for quote in old]
    return changed


def table(package: Path, notebooks: list[Path]) -> str:
    """Which notebook explains which definition, as Markdown."""
    where = {q.name: q.notebook for path in notebooks for q in quotes_in(path)}
    rows = ["| floor | module | definition | quoted in |", "|---|---|---|---|"]
    for source in sorted(definitions(package), key=lambda s: MODULES[s.module].floor):
        floor = MODULES[source.module].floor
        if private(source.name) and source.name not in where:
            continue
        if floor not in QUOTED_FLOORS and source.name not in where:
            continue
        path = where.get(source.name)
        place = f"[{path.stem}](../notebooks/{path.name})" if path else ""
        parts = [p.name for p in source.parts if p.name in where]
        if parts:
            path = where[parts[0]]
            names = ", ".join(f"`{name.rpartition('.')[2]}`" for name in parts)
            place = f"[{path.stem}](../notebooks/{path.name}): {names}"
        name = source.name.rpartition(".")[2]
        if not place and source.notebook is None:
            place = "(in the library alone)"
        place = place or f"(notebook {source.notebook}, not yet)"
        rows.append(f"| {floor} | `{source.module}.py` | `{name}` | {place} |")
    return "\n".join(rows)


HEAD = """# Where each part of the library is explained

Made by `python tools/quotes.py --write`. Every public definition of floors 0 to 2 is
quoted in one notebook, word for word; a class that is longer than a cell in pieces, and
the pieces are named. What only reads and writes files is to be read in the library.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="say what does not hold")
    what.add_argument("--write", action="store_true", help="renew quotes and the table")
    what.add_argument("--table", action="store_true", help="print the table")
    arguments = parser.parse_args()
    package = ROOT / "minillama"
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if arguments.table:
        print(table(package, notebooks))
        return 0
    if arguments.write:
        for line in write(package, notebooks):
            print("renewed", line)
        TABLE.write_text(HEAD + table(package, notebooks) + "\n", "utf-8")
        return 0
    found = check(package, notebooks)
    if TABLE.read_text("utf-8") != HEAD + table(package, notebooks) + "\n":
        found.errors.append(f"{TABLE.relative_to(ROOT)} is old: make format")
    if found.waiting:
        print(f"{len(found.waiting)} definitions wait for their notebook:")
        print(textwrap.fill(", ".join(found.waiting), 88))
    for line in found.errors:
        print(line, file=sys.stderr)
    return 1 if found.errors else 0


if __name__ == "__main__":
    sys.exit(main())
