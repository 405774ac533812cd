"""Commands about this machine and this course: doctor, bench, lab, test, progress."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.cli import screen
from minillama.cli.loading import (
    Compile,
    Dtype,
    How,
    Quantize,
    compile_if_asked,
    load_model,
    torch_dtype,
)
from minillama.cli.models import Device, Name

if TYPE_CHECKING:
    from minillama.bench import Speed
    from minillama.model import Llama


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
_BENCH = "Example: minillama bench smollm2-135m --quantize int4"
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
    quantize: Quantize = None,
    compile: Compile = None,
    device: Device = None,
    random: Annotated[
        bool,
        typer.Option("--random", help="Random weights: no model has to be here."),
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--every", help="In bf16, int8 and int4, one after the other."),
    ] = False,
) -> None:
    """Measure tokens a second, beside what the memory allows."""
    from dataclasses import replace

    if every:
        ways = [How("bf16", device, kind, compile) for kind in (None, "int8", "int4")]
    else:
        ways = [How(dtype, device, quantize, compile)]
    speeds: list[Speed] = []
    for how in ways:
        model = _random_model(name, how) if random else load_model(name, how)
        from minillama.bench import measure

        speed = measure(model, prompt=prompt, new=new, repeats=repeats)
        speeds.append(replace(speed, dtype=how.quantize or speed.dtype))
        del model
    _show_speeds(name, prompt, speeds)


def _random_model(name: str, how: How) -> "Llama":
    from minillama.plan import config_of

    config = config_of(name)
    from minillama.api import best_device
    from minillama.bench import random_model

    model = random_model(
        config,
        dtype=torch_dtype(how.dtype or "bf16"),
        device=how.device or best_device(),
        quantize=how.quantize,
    )
    compile_if_asked(model, how)
    return model


def _show_speeds(name: str, prompt: int, speeds: "list[Speed]") -> None:
    kinds = [speed.dtype for speed in speeds]
    columns = (f"{name} on {speeds[0].device}", *kinds)
    table = screen.table(*columns, right=tuple(kinds))
    for what, show in (
        (
            f"reading a prompt of {prompt} tokens",
            lambda s: f"{s.prefill_seconds * 1e3:.1f} ms",
        ),
        ("prompt tokens a second", lambda s: f"{prompt / s.prefill_seconds:.1f}"),
        ("writing one token", lambda s: f"{s.decode_seconds * 1e3:.1f} ms"),
        ("new tokens a second", lambda s: f"{1 / s.decode_seconds:.1f}"),
        ("bytes read for one token", lambda s: screen.size(s.bytes_a_token)),
        (
            "which is read at",
            lambda s: f"{screen.size(s.bytes_a_token / s.decode_seconds)}/s",
        ),
        ("memory bandwidth, measured", lambda s: f"{screen.size(s.bandwidth)}/s"),
        ("so at most, tokens a second", lambda s: f"{s.bound:.1f}"),
        ("share of that bound", lambda s: f"{s.share:.0%}"),
    ):
        table.add_row(what, *map(show, speeds))
    screen.show(table)
    screen.say(
        f"Medians; {speeds[0].threads} threads; other work on this machine makes it "
        "slower."
    )


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
