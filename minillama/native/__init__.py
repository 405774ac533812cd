"""The functions of decode.c: compiled once, by the C compiler of this machine.

Without a compiler nothing is lost but speed: `library()` is then None, and `why_not()`
says what is missing. The compiled file lies in the cache, under a name that its source,
the compiler's options and the processor decide.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from minillama.home import home

# An Apple clang has no OpenMP by itself; then one thread works.
_OPTIONS = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
)
# Neither lets a NaN or an infinity be lost; both let loops become vector code.
_FLAGS = ("-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math")
_SOURCE = Path(__file__).with_name("decode.c")
_SECONDS = 120


class Matrix(ctypes.Structure):
    """A weight as decode.c sees it."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("scale_step", ctypes.c_int64),
    ]


class Block(ctypes.Structure):
    """A block of a Llama as decode.c sees it."""

    _fields_ = [
        ("wq", Matrix),
        ("wk", Matrix),
        ("wv", Matrix),
        ("wo", Matrix),
        ("w_gate", Matrix),
        ("w_up", Matrix),
        ("w_down", Matrix),
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        ("norm_eps", ctypes.c_double),
        ("dim", ctypes.c_int64),
        ("ffn_dim", ctypes.c_int64),
        ("n_heads", ctypes.c_int64),
        ("n_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
    ]


class Cache(ctypes.Structure):
    """The cache of one layer as decode.c sees it."""

    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("kind", ctypes.c_int64),
        ("room", ctypes.c_int64),
        ("length", ctypes.c_int64),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be had."""
    return _build()[0]


def why_not() -> str:
    """One sentence on why `library()` is None; empty if it is not."""
    return _build()[1]


def give_back() -> None:
    """Return freed memory to the system, where the C library does not by itself.

    Large weights that come and go leave holes between those that stay.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # only glibc has it


@cache
def _build() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("MINILLAMA_NATIVE", "1") == "0":
        return None, "MINILLAMA_NATIVE is 0, so nothing is compiled"
    named = os.environ.get("CC")
    compiler = shutil.which(named) if named else None
    compiler = compiler or next(
        filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None
    )
    if compiler is None:
        return None, "there is no C compiler (cc, gcc or clang) on this machine"
    reason = ""
    for options in _OPTIONS:
        try:
            return _open_or_make(compiler, options), ""
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            reason = output.strip().splitlines()[0] if output.strip() else repr(error)
    return None, f"{Path(compiler).name} could not compile decode.c: {reason}"


def _open_or_make(compiler: str, options: tuple[str, ...]) -> ctypes.CDLL:
    path = _place(compiler, options)
    if path.exists():
        with contextlib.suppress(OSError, AttributeError):  # spoiled: made anew
            return _open(path)
    _compile(compiler, options, path)
    return _open(path)


def _place(compiler: str, options: tuple[str, ...]) -> Path:
    machine = f"{compiler} {_FLAGS} {options} {platform.machine()} {_processor()}"
    name = hashlib.sha256(_SOURCE.read_bytes() + machine.encode()).hexdigest()[:16]
    return home() / "native" / f"decode-{name}.so"


def _compile(compiler: str, options: tuple[str, ...], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made beside it and moved: two processes may do so at the same time.
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / target.name
        command = [compiler, *_FLAGS, *options, "-shared", "-fPIC"]
        subprocess.run(
            [*command, str(_SOURCE), "-o", str(made), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        made.replace(target)


def _open(path: Path) -> ctypes.CDLL:
    import torch  # noqa: F401 - its OpenMP first: two of them would fight for the cores

    lib = ctypes.CDLL(str(path))
    p, i = ctypes.c_void_p, ctypes.c_int64
    lib.block_step.argtypes = [p, p, i, p, p, p, p, i]
    lib.linear.argtypes = [p, p, i, p, p, i]
    lib.unpack.argtypes = [p, i, i, p, i]
    lib.quantize.argtypes = [p, i, i, i, i, p, p, p, i]
    lib.to_tiles.argtypes = [p, i, i, i, p, i]
    lib.norm_rows.argtypes = [p, p, ctypes.c_double, i, i, p, i]
    lib.rope_rows.argtypes = [p, p, p, i, i, i, i, i, i]
    lib.swiglu_rows.argtypes = [p, p, i, i, p, i]
    lib.scratch_size.argtypes = [p, i, i, i]
    lib.scratch_size.restype = i
    for function in (lib.block_step, lib.linear, lib.unpack, lib.quantize, lib.prepare):
        function.restype = None
    for function in (lib.norm_rows, lib.rope_rows, lib.swiglu_rows, lib.to_tiles):
        function.restype = None
    lib.prepare()
    return lib


def _processor() -> str:
    """What tells one processor from another: a home folder may be shared by many."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
