"""Run a learner's code so that nothing it does reaches further than its own result.

It gets copies, a time limit, and random numbers of its own. What it raises becomes a
value that names the learner's own line, and nothing of the stack below it.
"""

import ctypes
import dis
import inspect
import io
import linecache
import random
import sysconfig
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType, TracebackType
from typing import Any

import numpy as np
import torch

from minillama.course.values import Raised, Yielded, clean, result

_LONGEST = 10_000  # items that are drawn from a generator


class Look(Exception):
    """Raised by `adapt` or `fill`: a report in words, where a check cannot go on."""

    def __init__(self, status: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class TimeUp(BaseException):
    """The time limit is over: no Exception, so no `except Exception` eats it."""


def _send(thread: int, error: type[BaseException]) -> None:
    ident, value = ctypes.c_ulong(thread), ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, value)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in this thread after `seconds` of work, on every platform.

    A watching thread asks the interpreter to raise it before the next step of Python
    code; one long call into C is stopped when it returns. On a machine that is busy
    with other things, waiting counts a fifth. A loop whose bare `except` would eat
    Ctrl-C may eat this too (Python 3.10).
    """
    thread, lock, done = threading.get_ident(), threading.Lock(), threading.Event()
    wall, cpu = time.monotonic(), time.process_time()

    def watch() -> None:
        while not done.wait(0.05):
            waited, worked = time.monotonic() - wall, time.process_time() - cpu
            if waited > seconds and (worked > seconds or waited > 5 * seconds):
                with lock:
                    if not done.is_set():
                        _send(thread, TimeUp)
                done.wait(0.5)  # then again, should a bare `except` have eaten it

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        while not done.is_set() or watcher.is_alive():
            try:
                with lock:
                    done.set()
                watcher.join()
                for _ in range(100):  # what was sent, and has not arrived, comes here
                    pass
            except TimeUp:
                continue


@contextmanager
def settled() -> Iterator[None]:
    """PyTorch's defaults inside; outside, all random states and defaults as before."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    threads, elsewhere = torch.get_num_threads(), torch.get_default_device().type
    cpu = nullcontext() if elsewhere == "cpu" else torch.device("cpu")
    with torch.random.fork_rng(devices=[]), cpu:
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_grad_enabled(True)
            # Inputs are tiny: a second thread costs more than it brings, on a busy
            # machine eight times the time.
            torch.set_num_threads(1)
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)
            torch.set_num_threads(threads)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def call(code: Callable[..., Any], args: tuple[Any, ...], *, quiet: bool = True) -> Any:
    """The value that `code` gives, as a copy of its own, or what it raised."""
    try:
        with redirect_stdout(io.StringIO()) if quiet else nullcontext():
            value = code(*args)
            if isinstance(value, Iterator):
                value = Yielded(tuple(islice(value, _LONGEST)))
        return result(value)
    except (KeyboardInterrupt, TimeUp):
        raise
    except BaseException as error:
        return raised(error)


def raised(error: BaseException) -> Raised:
    """What was raised: type, message, and the line of the learner's code."""
    if isinstance(error, Look):
        return Raised("", clean(error.sentence), error.status)
    try:
        text = clean(str(error).split("\n")[0])[:200]
    except Exception:  # the learner's own exception, whose text fails in turn
        text = ""
    status = "exception"
    if isinstance(error, NotImplementedError) or (
        isinstance(error, TypeError | AttributeError) and "ellipsis" in text.lower()
    ):
        status = "not attempted"
    return Raised(type(error).__name__, text, status, own_line(error.__traceback__))


def own_line(trace: TracebackType | None) -> str:
    """The innermost line outside of installed packages and of this library."""
    found = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not _foreign(code):
            line = linecache.getline(code.co_filename, trace.tb_lineno).strip()
            found = f"in {code.co_name}, line {trace.tb_lineno}: {clean(line)[:100]}"
        trace = trace.tb_next
    return found.removesuffix(": ")


_HERE = Path(__file__).parent.parent
_FOREIGN = [str(_HERE), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))]
_FOREIGN.append(str(Path(torch.__file__).parent))


def _foreign(code: CodeType) -> bool:
    name = code.co_filename
    return name.startswith("<frozen") or any(name.startswith(f) for f in _FOREIGN)


def functions(learner: Any) -> dict[str, FunctionType]:
    """The functions that a function, a class or an object is written in, by name."""
    if isinstance(learner, partial):
        return functions(learner.func)
    if inspect.ismethod(learner):
        return functions(learner.__func__)
    if isinstance(learner, FunctionType):
        return {learner.__name__: learner}
    own = learner if inspect.isclass(learner) else type(learner)
    found: dict[str, FunctionType] = {}
    for name, value in vars(own).items():
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(inner, FunctionType):
            found[name] = inner
    return found


# What is left of a body that has a docstring, `...`, `pass` or `return` alone.
_NOTHING = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "CACHE"}
_NOTHING |= {"MAKE_CELL", "COPY_FREE_VARS", "POP_TOP"}


def unwritten(learner: Any) -> str | None:
    """The first function whose body is still empty."""
    for name, function in functions(learner).items():
        steps = list(dis.get_instructions(function))
        consts = {s.argval for s in steps if s.opname in ("LOAD_CONST", "RETURN_CONST")}
        if {s.opname for s in steps} <= _NOTHING and consts <= {None, ...}:
            return name
    return None


def seed_of(learner: Any) -> int:
    """A seed drawn from the learner's source: it changes as soon as the code does."""
    parts: list[str] = []
    for function in functions(learner).values():
        try:
            parts.append(inspect.getsource(function))
        except (OSError, TypeError):
            parts.append(function.__name__)
    return 1 + zlib.crc32("\n".join(parts).encode()) % 2**31
