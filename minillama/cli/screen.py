"""What the commands print, and how: no text of a model or file commands a terminal."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from minillama.fetch import Progress

# C0 and C1 control characters, and the marks that turn the direction of writing.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Stopped(BaseException):
    """SIGTERM came: like Ctrl-C, it lets everything tidy up."""


def harmless(text: str) -> str:
    """The text with every control character but newline and tab made visible.

    An escape sequence from a model could move the cursor, rewrite the title, or have
    the terminal type for the user. ESC becomes the picture of itself, U+241B.
    """
    return _UNSAFE.sub(_picture, text)


def _picture(match: "re.Match[str]") -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


def say(text: str = "", end: str = "\n") -> None:
    """Print plain text: rich markup in it stays as it is."""
    sys.stdout.write(harmless(text) + end)
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    sys.stderr.write(harmless(text) + "\n")
    sys.stderr.flush()


def complain(text: str) -> None:
    """One line on stderr that says what is wrong."""
    note(f"minillama: {text}")


def debugging() -> bool:
    """True if MINILLAMA_DEBUG asks for tracebacks."""
    return os.environ.get("MINILLAMA_DEBUG", "0") not in ("", "0")


def sentence(error: Exception) -> str:
    """An exception as one sentence with the remedy."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text and not isinstance(error, UnicodeError):
        return text
    if isinstance(error, ModuleNotFoundError):
        return f"{text}: this installation is not whole, run `minillama doctor`"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}"
    if isinstance(error, OSError) and text:
        return text
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return (
            "there is not enough memory: `minillama plan NAME` shows what is needed "
            "and what to choose instead"
        )
    return (
        f"unexpected {type(error).__name__}: {text or 'no message'} "
        "(MINILLAMA_DEBUG=1 shows where)"
    )


def console() -> "Console":
    """A rich console on stdout, for tables; it never reads markup in our strings."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> "Table":
    """An empty table; the columns named in `right` hold numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        side = "right" if column in right else "left"
        made.add_column(harmless(column), justify=side, overflow="fold")
    return made


def show(what: Any) -> None:
    """Print a table or a renderable."""
    console().print(what)


def size(n: float) -> str:
    """Bytes in the unit that a reader can compare: 16,060,522,496 is "16.06 GB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return (
                f"{n / scale:.2f} {unit}"
                if n < 100 * scale
                else f"{n / scale:.0f} {unit}"
            )
    return f"{n:.0f} bytes"


@contextmanager
def progress_bar(title: str) -> Iterator["Progress"]:
    """A bar in bytes on stderr; without a terminal, a line at each new stage."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    error = Console(stderr=True)
    if not error.is_terminal:
        stages: list[str] = []

        def line(what: str, done: int, total: int) -> None:
            if what not in stages:
                stages.append(what)
                note(f"{title}: {what}" + (f", {size(total)}" if total else ""))

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=error, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(
                task,
                description=f"{title}: {what}",
                completed=done,
                total=total or None,
            )

        yield report
