"""Commands about this machine and this course: doctor, bench, lab, test, progress."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from minillama.cli import screen
from minillama.cli.models import Device, Name
from minillama.cli.talk import Dtype, torch_dtype


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    panel = "This machine"
    app.command(rich_help_panel=panel, epilog=_DOCTOR)(doctor)
    app.command(rich_help_panel=panel, epilog=_BENCH)(bench)
    panel = "The course"
    app.command(rich_help_panel=panel, epilog=_LAB)(lab)
    app.command(rich_help_panel=panel, epilog=_PROGRESS)(progress)
    app.command("test", rich_help_panel=panel, epilog=_TEST)(run_tests)


_DOCTOR = "Example: minillama doctor"
_BENCH = "Example: minillama bench smollm2-135m --dtype bf16"
_LAB = "Example: minillama lab"
_PROGRESS = "Example: minillama progress"
_TEST = "Example: minillama test -- -k tokenizer"

COURSE_MODELS = ("smollm2-135m", "llama3-tokenizer")


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte of the models, too.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Say what a result code means, and end."),
    ] = None,
) -> None:
    """Say whether this machine is ready, and what to do if it is not.

    The result code in the last line is for a teacher to collect. The exit code is 0 if
    the machine is ready, else 1.
    """
    from minillama import doctor as dr

    if explain is not None:
        table = screen.table("check", "passed", "needed")
        for check, good in zip(dr.CHECKS, dr.decode(explain), strict=True):
            needed = "yes" if check.needed else ""
            table.add_row(check.name, "yes" if good else "no", needed)
        screen.show(table)
        return
    report = dr.examine(deep=deep)
    table = screen.table("check", "", "found", "what to do")
    for check, finding in zip(dr.CHECKS, report.findings, strict=True):
        mark = "ok" if finding.good else "FIX" if check.needed else "-"
        remedy = "" if finding.good else finding.remedy
        table.add_row(check.name, mark, screen.harmless(finding.found), remedy)
    screen.show(table)
    screen.say("ready" if report.ready else "not ready: do what the lines with FIX say")
    screen.say(report.code)
    if not report.ready:
        raise typer.Exit(1)


def bench(
    name: Name,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    new: Annotated[int, typer.Option(help="Tokens to write.")] = 32,
    repeats: Annotated[int, typer.Option(help="Times to read the prompt.")] = 3,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Measure tokens a second, beside what the memory allows."""
    from minillama import hub

    hub.resolve(name)
    from minillama.api import load_model
    from minillama.bench import measure

    model = load_model(name, dtype=torch_dtype(dtype), device=device)
    speed = measure(model, prompt=prompt, new=new, repeats=repeats)
    table = screen.table(
        f"{name}, {speed.dtype} on {speed.device}", "median", right=("median",)
    )
    read, write = speed.prefill_seconds, speed.decode_seconds
    for what, value in (
        (f"reading a prompt of {prompt} tokens", f"{read * 1e3:.1f} ms"),
        ("prompt tokens a second", f"{prompt / read:.1f}"),
        ("writing one token", f"{write * 1e3:.1f} ms"),
        ("new tokens a second", f"{1 / write:.1f}"),
        ("bytes read for one token", screen.size(speed.bytes_a_token)),
        ("memory bandwidth, measured", f"{screen.size(speed.bandwidth)}/s"),
        ("so at most, tokens a second", f"{speed.bound:.1f}"),
        ("share of that bound", f"{speed.share:.0%}"),
    ):
        table.add_row(what, value)
    screen.show(table)
    screen.say(f"{speed.threads} threads; other work on this machine makes it slower.")


def lab() -> None:
    """Open the course in JupyterLab, at its first notebook."""
    root = _checkout()
    notebook = root / "notebooks" / "00_welcome.ipynb"
    if not notebook.exists():
        raise ValueError(f"there is no {notebook}: is this checkout whole?")
    _fetch_missing()
    # JupyterLab refuses root unless told, and in a container everybody is root.
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    options = ["--allow-root"] if as_root else []
    raise typer.Exit(_run(["-m", "jupyterlab", *options, str(notebook)], str(root)))


def run_tests(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- PYTEST...]", help="Handed on to pytest."),
    ] = None,
) -> None:
    """Run the whole test suite of a checkout, notebooks included."""
    import importlib.util

    root = _checkout()
    missing = [n for n in ("pytest", "nbval") if importlib.util.find_spec(n) is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} are not installed: run "
            'pip install -c constraints.txt -e ".[test]"'
        )
    _fetch_missing()
    places = [] if arguments else ["--nbval", "tests", "notebooks"]
    command = ["-m", "pytest", *places, *(arguments or ())]
    raise typer.Exit(_run(command, str(root), MINILLAMA_REQUIRE_MODELS="1"))


def progress(
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Forget all progress on this machine.")
    ] = False,
) -> None:
    """Show which exercises of the course you have solved."""
    from minillama.course import progress as kept
    from minillama.course.checks import every

    screen.say(kept.wipe() if wipe else kept.render({c.name: c.title for c in every()}))


def _checkout() -> Path:
    from minillama.doctor import checkout

    root = checkout()
    if root is None:
        raise ValueError(
            "there are no notebooks beside this package: clone the repository, install "
            "it there with pip install -e . and run the command again"
        )
    return root


def _fetch_missing() -> None:
    """Pull what the course wants; without a network, say so and go on."""
    from minillama import hub

    for name in COURSE_MODELS:
        if hub.find(name) is None:
            try:
                with screen.progress_bar(name) as report:
                    hub.pull(name, progress=report)
            except ValueError as error:
                screen.complain(str(error))


def _run(arguments: list[str], folder: str, **environment: str) -> int:
    """Run Python on `arguments`; Ctrl-C is for it, and not for us."""
    # Threads that wait for each other sleep and do not spin: where the machine has
    # other work, small models are then five to ten times faster.
    quiet = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=quiet | environment
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        if process.poll() is None:
            process.terminate()
            process.wait()
