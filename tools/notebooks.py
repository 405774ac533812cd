"""Run the notebooks, hold them to the rules of the course, and report their figures.

    python tools/notebooks.py run notebooks/03_rope.ipynb   # fresh kernel, outputs kept
    python tools/notebooks.py lint                          # what the rules forbid
    python tools/notebooks.py report [--measure]            # docs/notebooks.md

`run` formats the code, stores the outputs without anything that changes from one run to
the next, and copies each figure's caption into the picture's metadata, where nbconvert
looks for alt text. The rules are in tools/anatomy.py. Without names, each verb takes
all notebooks.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from anatomy import (
    CELL,
    IMAGE,
    MEDIAN,
    QUOTE,
    WORDS,
    Cell,
    Notebook,
    lint,
    prose_for_a_line,
)
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
README = ROOT / "README.md"
REPORT = ROOT / "docs" / "notebooks.md"
SECONDS, MEGABYTES = 90, 4096

# The peak memory of a kernel, in MB; where there is no `resource`, none is reported.
PEAK = """
import re, resource, sys
try:  # Linux: what getrusage says there begins with the peak of the parent
    with open("/proc/self/status") as status:
        print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) / 2**10)
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (2**20 if sys.platform == "darwin" else 2**10))
"""


def execute(path: Path) -> tuple[Notebook, float, float | None]:
    """The notebook after a run from a fresh kernel, its seconds, its peak megabytes."""
    from nbclient import NotebookClient

    os.environ["MINILLAMA_PROGRESS"] = "off"  # for the kernel: nobody's progress
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the Makefile
    nb = Notebook(path)
    probe = nbformat.v4.new_code_cell(PEAK)
    probe.metadata.tags = ["raises-exception"]
    for cell in nb.code:
        cell.node.outputs, cell.node.execution_count = [], None
    client = NotebookClient(
        nb.node,
        timeout=600,
        kernel_name="python3",
        skip_cells_with_tag="nbval-skip",
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    start = time.perf_counter()
    with client.setup_kernel():
        for cell in nb.cells:
            client.execute_cell(cell.node, cell.number)
        seconds = time.perf_counter() - start
        nb.node.cells.append(probe)
        client.execute_cell(probe, len(nb.node.cells) - 1)
        nb.node.cells.pop()
    text = Cell(-1, probe).printed
    return nb, seconds, float(text) if text else None


def tidy(nb: Notebook) -> None:
    """Take out what changes from run to run; give each picture its alt text."""
    nb.node.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"file_extension": ".py", "name": "python"},
        }
    )
    nb.node.nbformat, nb.node.nbformat_minor = 4, 5
    for cell in nb.cells:
        kept = {k: v for k, v in cell.node.metadata.items() if k in ("tags", "jupyter")}
        cell.node.metadata = nbformat.from_dict(kept)
        caption = nb.caption(cell) if cell.code else None
        for output, kind in cell.pictures:
            output.metadata = nbformat.from_dict(
                {kind: {"alt": caption}} if caption else {}
            )
            if kind == "image/png":
                output.data[kind] = smaller(output.data[kind])
            # Without a kernel there is no widget to show: its picture stands there, and
            # the widget comes back when the cell runs.
            output.data.pop("application/vnd.jupyter.widget-view+json", None)


def smaller(png: str) -> str:
    """A picture in 256 colours: a third of the bytes, and no eye tells them apart."""
    with Image.open(BytesIO(b64decode(png))) as picture:
        if picture.mode == "P" or picture.convert("RGBA").getextrema()[3][0] < 255:
            return png  # done already, or lets the page shine through
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        out = BytesIO()
        few.save(out, "PNG", optimize=True)
    return min(png, b64encode(out.getvalue()).decode(), key=len)


def save(nb: Notebook) -> None:
    text = json.dumps(nb.node, indent=1, ensure_ascii=False, sort_keys=True)
    nb.path.write_text(text + "\n", "utf-8")


COLUMNS = (
    "notebook",
    "words a line",
    "code cells",
    "median lines",
    "longest",
    "figures",
    "with alt text",
    "exercises",
    "outputs ignored",
    "KB",
)
MEASURED = ("seconds", "MB")


def figures_of(nb: Notebook) -> list[str]:
    """What a reader can count in one notebook, in the order of COLUMNS."""
    lines = [cell.lines for cell in nb.code]
    drawn = [(cell, o, kind) for cell in nb.code for o, kind in cell.pictures]
    images = [i for cell in nb.prose for i in IMAGE.finditer(cell.source)]
    told = sum(bool(o.metadata.get(kind, {}).get("alt")) for _, o, kind in drawn)
    return [
        f"[{nb.path.stem}](../notebooks/{nb.name})",
        f"{prose_for_a_line(nb):.1f}",
        str(len(nb.code)),
        f"{statistics.median(lines):g}",
        str(max(lines)),
        str(len(drawn) + len(images)),
        str(told + sum(bool(i["alt"].strip()) for i in images)),
        str(len(nb.tagged("exercise"))),
        f"{sum(cell.ignored for cell in nb.code)} of {len(nb.code)}",
        str(nb.path.stat().st_size // 1024),
    ]


HEAD = f"""# The notebooks in figures

Made by `python tools/notebooks.py report`; `--measure` runs each notebook again from a
fresh kernel for the last two columns: seconds, and the kernel's peak memory.

What the course asks of itself: {WORDS[0]} to {WORDS[1]} words of prose a line of code;
a median of at most {MEDIAN} lines a cell, {CELL} at most, {QUOTE} for a quoted class;
alt text for every figure; three exercises from notebook 01 on; at most one output in
ten ignored; {SECONDS} seconds and {MEGABYTES} MB.

"""


def measured_before() -> dict[str, list[str]]:
    """The last two columns of the report as it stands."""
    if not REPORT.exists():
        return {}
    rows = [line.strip("| ").split(" | ") for line in REPORT.read_text().splitlines()]
    wide = [row for row in rows if len(row) == len(COLUMNS) + len(MEASURED)]
    return {row[0]: row[-len(MEASURED) :] for row in wide}


def report(measured: dict[str, list[str]]) -> str:
    """The whole page; `measured` has the last columns by the first one."""
    names = (*COLUMNS, *MEASURED)
    rows = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for path in all_notebooks():
        own = figures_of(Notebook(path))
        rows.append(f"| {' | '.join(own + measured.get(own[0], ['-', '-']))} |")
    return HEAD + "\n".join(rows) + "\n"


def run_one(path: Path, measured: dict[str, list[str]], *, keep: bool) -> list[str]:
    """Run a notebook, note what it took, and say whether that was too much."""
    if keep:
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", path], check=True)
    nb, seconds, megabytes = execute(path)
    peak = "-" if megabytes is None else f"{megabytes:.0f}"
    print(f"{nb.name}: {seconds:.0f} s, peak {peak} MB", flush=True)
    if keep:
        tidy(nb)
        save(nb)
    measured[figures_of(nb)[0]] = [f"{seconds:.0f}", peak]
    problems = []
    if seconds > SECONDS:
        problems.append(f"{nb.name}: {seconds:.0f} s, more than {SECONDS}")
    if (megabytes or 0) > MEGABYTES:
        problems.append(f"{nb.name}: {peak} MB, more than {MEGABYTES}")
    return problems


def with_links(readme: str) -> str:
    """The README, with a link in the row of each notebook that is there."""
    for path in all_notebooks():
        number = path.name[:2]
        readme = re.sub(
            rf"^\| {number} \| ([^\[|]+) \|",
            rf"| {number} | [\1](notebooks/{path.name}) |",
            readme,
            flags=re.M,
        )
    return readme


def write_report(measured: dict[str, list[str]]) -> None:
    REPORT.write_text(report(measured), "utf-8")
    README.write_text(with_links(README.read_text("utf-8")), "utf-8")


def all_notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("run", "run each from a fresh kernel and keep its outputs"),
        ("lint", "say what the rules forbid"),
        ("report", "write docs/notebooks.md"),
    ):
        own = verbs.add_parser(verb, help=text, description=text)
        own.add_argument("paths", nargs="*", type=Path, help="all, if none is named")
        if verb == "report":
            own.add_argument("--measure", action="store_true", help="run them as well")
            own.add_argument(
                "--check", action="store_true", help="only say if it is old"
            )
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.paths] or all_notebooks()
    measured = measured_before()
    problems: list[str] = []
    if arguments.verb == "run":
        for path in paths:
            problems += run_one(path, measured, keep=True) + lint(path)
        write_report(measured)
    elif arguments.verb == "lint":
        problems = [line for path in paths for line in lint(path)]
        if report(measured) != REPORT.read_text("utf-8"):
            problems.append("docs/notebooks.md is old: tools/notebooks.py report")
    else:
        for path in paths if arguments.measure else []:
            problems += run_one(path, measured, keep=False)
        write_report(measured)
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
