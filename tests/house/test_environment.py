"""pyproject.toml, constraints.txt and environment.yml say the same."""

import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def applies(requirement: Requirement, python: str) -> bool:
    """Whether a line counts on Linux, x86, in that Python's latest version."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    return requirement.marker is None or requirement.marker.evaluate(machine)


def wanted(python: str) -> list[Requirement]:
    """What pyproject asks for, tests included."""
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    return [r for r in map(Requirement, lines) if applies(r, python)]


def pins(python: str) -> dict[str, str]:
    """Package to version, out of constraints.txt."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if applies(requirement, python):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            (only,) = requirement.specifier
            assert only.operator == "==", line
            found[name] = only.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_has_a_pin_that_suits(python: str) -> None:
    pinned = pins(python)
    for requirement in wanted(python):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt lacks {name} for Python {python}"
        assert pinned[name] in requirement.specifier


def test_conda_gets_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["channels"] == ["conda-forge"]
    python, pip, packages = environment["dependencies"]
    version = python.removeprefix("python=")
    assert version in PYTHONS
    assert pip == "pip"
    constraints, *lines, itself = packages["pip"]
    assert (constraints, itself) == ("-c constraints.txt", "-e .")
    pinned = pins(version)
    want = [
        (canonicalize_name(r.name), r.extras, pinned[canonicalize_name(r.name)])
        for r in wanted(version)
    ]
    got = [
        (canonicalize_name(r.name), r.extras, str(r.specifier).removeprefix("=="))
        for r in map(Requirement, lines)
    ]
    assert got == want


def test_the_pythons_are_those_of_pyproject() -> None:
    assert PROJECT["requires-python"] == ">=3.10"
    script = (ROOT / "tools" / "make_venv.sh").read_text("utf-8")
    assert "(3, 10) <= sys.version_info[:2] <= (3, 13)" in script


def test_oracles_are_for_tests_alone() -> None:
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not names & {"transformers", "tokenizers", "pytest", "hypothesis"}
