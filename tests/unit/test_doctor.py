"""The doctor: each check can fail, and the result code says what it should."""

import importlib.metadata
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from minillama import doctor, hub, plan
from minillama.doctor import CHECKS, Check, Finding

NEEDED = [check.needed for check in CHECKS]


def looked(name: str, deep: bool = False) -> Finding:
    [check] = [check for check in CHECKS if check.name == name]
    return doctor._asked(check, deep)


def test_there_are_twelve_and_their_order_is_fixed() -> None:
    """The code of an old machine must mean the same to a new teacher."""
    assert [check.name for check in CHECKS] == [
        "Python",
        "PyTorch",
        "packages",
        "memory",
        "disk",
        "cache folder",
        "smollm2-135m",
        "llama3-tokenizer",
        "JupyterLab",
        "course",
        "GPU",
        "every byte",
    ]
    assert NEEDED == [True] * 9 + [False] * 3


def test_codes_by_hand() -> None:
    assert doctor.encode(NEEDED) == "ML-READY-1FF2"  # (11 + 3 + 5*15 + 7*15) % 16
    assert doctor.encode([True] * 12) == "ML-READY-FFFC"  # 11 + 45 + 75 + 105 = 236
    assert doctor.encode([False] * 12) == "ML-FIX-000B"
    no_model = [check.name != "smollm2-135m" for check in CHECKS]
    assert doctor.encode(no_model) == "ML-FIX-FBF" + f"{(11 + 45 + 55 + 105) % 16:X}"


def test_every_code_comes_back() -> None:
    for mask in range(1 << 12):
        passed = [bool(mask >> i & 1) for i in range(12)]
        assert doctor.decode(doctor.encode(passed)) == passed
    assert doctor.decode(" ml-ready-1ff2\n") == NEEDED


def test_a_code_with_one_wrong_digit_is_refused() -> None:
    for mask, place, digit in product((0, 0x1FF, 0xABC, 0xFFF), range(4), range(16)):
        code = doctor.encode([bool(mask >> i & 1) for i in range(12)])
        letters = list(code)
        at = len(letters) - 4 + place
        if letters[at] == f"{digit:X}":
            continue
        letters[at] = f"{digit:X}"
        with pytest.raises(ValueError, match="not copied well"):
            doctor.decode("".join(letters))


@pytest.mark.parametrize(
    "code", ["", "ML-READY-1FF", "ML-READY-1FFG2", "READY-1FF2", "ML-OK-1FF2"]
)
def test_what_is_no_code(code: str) -> None:
    with pytest.raises(ValueError, match="is no result code: it looks like ML-READY-"):
        doctor.decode(code)


def test_ready_and_fix_must_agree_with_the_digits() -> None:
    with pytest.raises(ValueError, match="not copied well"):
        doctor.decode("ML-FIX-1FF2")


def test_a_report_says_ready_only_when_all_that_is_needed_passed() -> None:
    for missing in range(12):
        findings = [Finding(good=i != missing, found="") for i in range(12)]
        report = doctor.Report(findings=tuple(findings))
        assert report.ready == (not NEEDED[missing])
        assert report.code.startswith("ML-READY-" if report.ready else "ML-FIX-")


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken(deep: bool) -> Finding:
        raise OSError("libtorch.so: cannot open\nshared object")

    finding = doctor._asked(Check(name="x", needed=True, look=broken), False)
    assert not finding.good
    assert finding.found == "OSError: libtorch.so: cannot open shared object"


@pytest.mark.parametrize(
    ("version", "good"),
    [((3, 9), False), ((3, 10), True), ((3, 13), True), ((3, 14), False)],
)
def test_python(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], good: bool
) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 1))
    assert looked("Python").good == good


def test_torch_works_here() -> None:
    import torch

    assert looked("PyTorch").good
    assert looked("PyTorch").found == torch.__version__


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked("packages").good, looked("packages").found
    asked = ["numpy>=2.0", "no-such-thing>=1", 'pytest>=8; extra == "test"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    assert looked("packages").found == "no-such-thing is missing"
    asked[1] = "regex>=9999.1"
    assert not looked("packages").good
    assert looked("packages").found.endswith("is not >=9999.1")
    asked[1] = "tomli>=2; python_version < '3'"  # not for this Python
    assert looked("packages").good
    asked.clear()
    assert not looked("packages").good


def test_memory_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, good in ((3.5e9, False), (3.8e9, True), (16e9, True)):
        monkeypatch.setattr(plan, "memory", lambda t=total: (int(t), 10**9))
        assert looked("memory").good == good
    usage = shutil.disk_usage("/")
    for free, good in ((10**9 - 1, False), (10**9, True)):
        now = usage._replace(free=free)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda p, now=now: now)
        assert looked("disk").good == good


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path))
    finding = looked("llama3-tokenizer")
    assert (finding.good, finding.found) == (False, "not pulled")
    assert finding.remedy == "minillama pull llama3-tokenizer"
    path = hub.place("llama3-tokenizer")
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(hub.MODELS["llama3-tokenizer"].size)
    assert looked("llama3-tokenizer").good
    assert not looked("every byte").good
    assert looked("llama3-tokenizer", deep=True).found.endswith("has the wrong sha256")
    deep = looked("every byte", deep=True)
    assert (deep.good, deep.found) == (False, "wrong: llama3-tokenizer")


@pytest.mark.model
def test_the_pulled_models_pass(
    smollm2_path: Path, llama3_tokenizer_path: Path
) -> None:
    assert looked("smollm2-135m").good
    assert looked("llama3-tokenizer", deep=True).good
    assert looked("every byte", deep=True).good


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path / "not" / "yet"))
    assert looked("cache folder").good
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path / "file"))
    assert not looked("cache folder").good


def test_lab_and_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked("JupyterLab").good
    absent: Callable[[str], Any] = lambda name: name != "ipykernel"  # noqa: E731
    monkeypatch.setattr(doctor, "_has", absent)
    assert looked("JupyterLab").found == "ipykernel cannot be imported"
    monkeypatch.setattr(doctor, "checkout", lambda: None)
    assert not looked("course").good
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(doctor, "checkout", lambda: tmp_path)
    assert not looked("course").good
    (tmp_path / "notebooks" / "00_welcome.ipynb").touch()
    assert looked("course").found == "1 notebooks"


def test_examine_asks_everything() -> None:
    report = doctor.examine()
    assert len(report.findings) == 12
    assert doctor.decode(report.code) == [f.good for f in report.findings]
    for check, finding in zip(CHECKS, report.findings, strict=True):
        assert finding.found
        assert finding.good or finding.remedy, check.name
