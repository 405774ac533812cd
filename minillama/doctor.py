"""Is this machine ready for the course? Twelve checks, and a code that says the result.

The result code is `ML-READY-XXXX` or `ML-FIX-XXXX`, four hexadecimal digits: three are
a mask of twelve bits, bit i set if check i of `CHECKS` passed, and the fourth is their
check digit, (11 + 3a + 5b + 7c) mod 16 for the digits abc. It changes with any single
digit, so a slip of the pen is noticed. READY stands if all checks that are needed
passed. A teacher reads a room of codes with `minillama doctor --explain CODE`.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minillama import hub, plan

MEMORY, DISK = 4 * 10**9, 10**9
"""Bytes of memory and of free disk that the course wants."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found, and what to do if it is not well."""

    good: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to the machine; `deep` is True if every byte may be read."""

    name: str
    needed: bool
    look: Callable[[bool], Finding]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, in the order of CHECKS."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """True if every check that is needed passed."""
        return all(
            finding.good or not check.needed
            for check, finding in zip(CHECKS, self.findings, strict=True)
        )

    @property
    def code(self) -> str:
        """The short result code."""
        return encode([finding.good for finding in self.findings])


def examine(*, deep: bool = False) -> Report:
    """Ask all questions; `deep` compares the sha256 of the pulled models, too."""
    return Report(findings=tuple(_asked(check, deep) for check in CHECKS))


def encode(passed: list[bool]) -> str:
    """The result code of twelve answers."""
    mask = sum(good << i for i, good in enumerate(passed))
    ready = all(p or not c.needed for c, p in zip(CHECKS, passed, strict=True))
    digits = f"{mask:03X}"
    return f"ML-{'READY' if ready else 'FIX'}-{digits}{_check_digit(digits)}"


def decode(code: str) -> list[bool]:
    """The twelve answers of a result code; ValueError if it was not copied well."""
    match = re.fullmatch(
        r"ML-(READY|FIX)-([0-9A-F]{3})([0-9A-F])", code.strip().upper()
    )
    if not match:
        raise ValueError(f"{code!r} is no result code: it looks like ML-READY-3F2A")
    passed = [bool(int(match[2], 16) >> i & 1) for i in range(len(CHECKS))]
    if encode(passed) != match[0]:
        raise ValueError(f"{code!r} was not copied well: its check digit is wrong")
    return passed


def _check_digit(digits: str) -> str:
    a, b, c = (int(digit, 16) for digit in digits)
    return f"{(11 + 3 * a + 5 * b + 7 * c) % 16:X}"


def _asked(check: Check, deep: bool) -> Finding:
    try:
        return check.look(deep)
    except Exception as error:  # a broken installation is what we look for
        words = " ".join(str(error).split())
        return Finding(
            good=False,
            found=f"{type(error).__name__}: {words}",
            remedy="install anew: pip install -c constraints.txt -e .",
        )


def _python(deep: bool) -> Finding:
    return Finding(
        good=(3, 10) <= sys.version_info[:2] <= (3, 13),
        found=f"{platform.python_version()} on {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores",
        remedy="use Python 3.10 to 3.13",
    )


def _torch(deep: bool) -> Finding:
    import torch

    works = (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item() == 8
    return Finding(good=works, found=torch.__version__, remedy="install torch anew")


def _packages(deep: bool) -> Finding:
    from packaging.requirements import Requirement

    lacking: list[str] = []
    every = map(Requirement, importlib.metadata.requires("minillama") or ())
    asked = [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    for wanted in asked:
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            lacking.append(f"{wanted.name} {version} is not {wanted.specifier}")
    return Finding(
        good=bool(asked) and not lacking,
        found="; ".join(lacking) or f"{len(asked)} packages, all new enough",
        remedy="pip install -c constraints.txt -e .",
    )


def _memory(deep: bool) -> Finding:
    total, free = plan.memory()
    return Finding(
        good=total >= MEMORY * 0.9,  # a laptop sold with 4 GB shows a little less
        found=f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free",
        remedy=f"{MEMORY / 1e9:.0f} GB are wanted: use another machine, or a cloud one",
    )


def _disk(deep: bool) -> Finding:
    free = shutil.disk_usage(_there(hub.cache_dir())).free
    return Finding(
        good=free >= DISK,
        found=f"{free / 1e9:.1f} GB free for {hub.cache_dir()}",
        remedy="make room, or set MINILLAMA_HOME to another disk",
    )


def _cache(deep: bool) -> Finding:
    folder = _there(hub.cache_dir())
    return Finding(
        good=folder.is_dir() and os.access(folder, os.W_OK),
        found=f"{hub.cache_dir()}",
        remedy="set MINILLAMA_HOME to a folder of your own",
    )


def _there(path: Path) -> Path:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _model(name: str) -> Callable[[bool], Finding]:
    def look(deep: bool) -> Finding:
        wrong = hub.damage(name, deep=deep)
        right = "here, sha256 right" if deep else "here, size right"
        return Finding(
            good=wrong is None, found=wrong or right, remedy=f"minillama pull {name}"
        )

    return look


def _lab(deep: bool) -> Finding:
    lacking = [n for n in ("jupyterlab", "ipykernel", "ipywidgets") if not _has(n)]
    return Finding(
        good=not lacking,
        found=f"{', '.join(lacking)} cannot be imported"
        if lacking
        else f"JupyterLab {importlib.metadata.version('jupyterlab')}",
        remedy="pip install jupyterlab ipywidgets",
    )


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def checkout() -> Path | None:
    """The folder of the course, if this package runs from a checkout of it."""
    root = Path(__file__).parents[1]
    return root if (root / "notebooks").is_dir() else None


def _course(deep: bool) -> Finding:
    root = checkout()
    count = len(list((root / "notebooks").glob("[0-9]*.ipynb"))) if root else 0
    return Finding(
        good=count > 0,
        found=f"{count} notebooks" if count else "no notebooks beside the package",
        remedy="work in a checkout, installed with pip install -e .",
    )


def _gpu(deep: bool) -> Finding:
    import torch

    if torch.cuda.is_available():
        at = plan.this_machine("cuda")
        return Finding(good=True, found=f"{at.name}, {at.total / 1e9:.0f} GB")
    if torch.backends.mps.is_available():
        return Finding(good=True, found="Apple, shares the main memory")
    return Finding(good=False, found="none", remedy="not needed before notebook 09")


def _verified(deep: bool) -> Finding:
    if not deep:
        return Finding(
            good=False, found="not looked at", remedy="minillama doctor --deep"
        )
    here = [name for name in hub.MODELS if hub.place(name).exists()]
    wrong = [name for name in here if hub.damage(name, deep=True)]
    return Finding(
        good=bool(here) and not wrong,
        found=f"wrong: {', '.join(wrong)}" if wrong else f"{len(here)} models read",
        remedy=f"minillama pull {' '.join(wrong)}" if wrong else "",
    )


# The order is part of the result code: new checks take the place of none.
CHECKS = (
    Check(name="Python", needed=True, look=_python),
    Check(name="PyTorch", needed=True, look=_torch),
    Check(name="packages", needed=True, look=_packages),
    Check(name="memory", needed=True, look=_memory),
    Check(name="disk", needed=True, look=_disk),
    Check(name="cache folder", needed=True, look=_cache),
    Check(name="smollm2-135m", needed=True, look=_model("smollm2-135m")),
    Check(name="llama3-tokenizer", needed=True, look=_model("llama3-tokenizer")),
    Check(name="JupyterLab", needed=True, look=_lab),
    Check(name="course", needed=False, look=_course),
    Check(name="GPU", needed=False, look=_gpu),
    Check(name="every byte", needed=False, look=_verified),
)
