"""A module imports only from the floors below its own."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from floors import MODULES

import minillama

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(minillama.__file__).parent
HERE = sorted(
    p.stem if p.is_file() else p.name
    for p in PACKAGE.iterdir()
    if (p.suffix == ".py" and p.name != "__init__.py") or (p / "__init__.py").exists()
)


def imports(tree: ast.AST) -> set[str]:
    """The modules of minillama that a source imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "minillama":
            names |= {f"minillama.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name"
            names.add(node.module or "")
    found = {name.split(".")[1] for name in names if name.startswith("minillama.")}
    # A name of the public face (`from minillama import Llama`) stands for its module.
    return {minillama._HOME.get(name, name) for name in found} - {"__version__"}


def files(module: str) -> list[Path]:
    single = PACKAGE / f"{module}.py"
    return [single] if single.exists() else sorted((PACKAGE / module).rglob("*.py"))


def wrong(module: str, imported: set[str]) -> list[str]:
    """What this module imports and should not."""
    floor, _, beside = MODULES[module]
    return sorted(
        name
        for name in imported - {module, *beside}
        if name not in MODULES or MODULES[name].floor >= floor
    )


def imported_by(module: str) -> set[str]:
    return set().union(
        *(imports(ast.parse(p.read_text("utf-8"))) for p in files(module))
    )


@pytest.mark.parametrize("module", HERE)
def test_imports_point_downwards(module: str) -> None:
    assert module in MODULES, "give the new module its floor in tools/floors.py"
    assert not wrong(module, imported_by(module))


def at_once(path: Path) -> set[str]:
    """The modules, with all their dots, that a file imports when it is imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return found


def test_no_file_imports_itself_in_a_circle() -> None:
    names = {
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p
        for p in PACKAGE.rglob("*.py")
        if p.name != "__init__.py"
    }
    graph = {name: at_once(path) & set(names) for name, path in names.items()}
    assert graph["minillama.model"] >= {"minillama.rope", "minillama.norm"}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "line",
    [
        "from minillama.model import Llama",
        "from minillama import Llama",
        "from minillama import model",
        "import minillama.model",
        "def f():\n    from minillama.model import Llama",
    ],
)
def test_a_part_that_imports_the_whole_is_noticed(line: str) -> None:
    assert wrong("norm", imports(ast.parse(line))) == ["model"]


NO_TORCH = """
import sys
{line}
assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize(
    "line",
    [
        "import minillama",
        "import minillama.config",
        "import minillama.tokenizer",
        "import minillama.chat",
        "import minillama.hub",
        "from minillama import LlamaConfig, Tokenizer, ChatFormat, train_bpe",
        "import minillama.cli",
    ],
)
def test_torch_stays_out(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(line=line)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_pyright_is_strict_up_to_floor_3() -> None:
    root = PACKAGE.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    low = {name for name, module in MODULES.items() if module.floor <= 3}
    found = {str(p.relative_to(root)) for name in low for p in files(name)}
    assert set(settings["tool"]["pyright"]["strict"]) == found


def test_the_public_face() -> None:
    designed = """load load_model save_weights stream generate Llama LlamaConfig Parts
    KVCache Sampler Tokenizer train_bpe ChatFormat capture"""
    assert minillama.__all__ == designed.split()
    for name in minillama.__all__:
        value = getattr(minillama, name)
        assert callable(value), (
            f"minillama.{name} is a module, not what it should hand out"
        )
        assert value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'lama'"):
        minillama.lama
