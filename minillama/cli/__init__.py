"""The command `minillama`. Nothing heavy is imported before a command needs it."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from minillama.cli import machine, models, screen, talk, training


class Commands(TyperGroup):
    """Every command ends in one sentence, whatever goes wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _terminable():
                return super().invoke(ctx)
        except (KeyboardInterrupt, screen.Stopped) as stop:
            screen.complain(f"stopped{f': {stop}' if str(stop) else ''}")
            raise typer.Exit(
                130 if isinstance(stop, KeyboardInterrupt) else 143
            ) from None
        except BrokenPipeError:
            # The reader of our output has seen enough: `minillama list | head -3`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if _is_clicks_own(error) or screen.debugging():
                raise
            screen.complain(screen.sentence(error))
            raise typer.Exit(1) from None


def _is_clicks_own(error: Exception) -> bool:
    """Usage errors and exits, which typer shows itself."""
    return isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "exit_code")


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise screen.Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with: minillama pull smollm2-135m, then minillama chat smollm2-135m",
)


@app.callback()
def about() -> None:
    """Llama 3, built step by step in notebooks, with real weights that talk."""


for module in (models, talk, machine, training):
    module.add_to(app)


def main() -> None:
    """Run the command line; the exit code is 0, 1 for an error, 2 for wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter shows another one; it does not end the answer.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="minillama")
