"""The core stays small enough to be read in a notebook."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from floors import CORE
from loud import loud_model

import minillama

LINES, BRANCHES, FUNCTION, CLASS = 240, 4, 30, 45
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that are neither blank, comment nor docstring."""
    lines = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return lines


def sizes(source: str, kind: type | tuple[type, ...]) -> Iterator[tuple[str, int]]:
    lines = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kind):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            own = range(first, node.end_lineno + 1)
            yield node.name, len(lines & set(own))


def branches_in_forward(source: str) -> int:
    """Each `if`, conditional value, `while`, `case`, and `and` or `or` in a forward."""
    count = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name in ("forward", "hidden"):
            for part in ast.walk(node):
                if isinstance(part, ast.BoolOp):
                    count += len(part.values) - 1
                elif isinstance(part, ast.comprehension):
                    count += len(part.ifs)
                else:
                    count += isinstance(
                        part, (ast.If, ast.IfExp, ast.While, ast.match_case)
                    )
    return count


def source_of(module: str) -> str:
    return (Path(minillama.__file__).parent / f"{module}.py").read_text("utf-8")


def test_the_whole_core() -> None:
    count = {module: len(code_lines(source_of(module))) for module in CORE}
    assert sum(count.values()) <= LINES, count


def test_branches_of_all_forwards() -> None:
    assert sum(branches_in_forward(source_of(module)) for module in CORE) <= BRANCHES


@pytest.mark.parametrize("module", CORE)
def test_functions_and_classes_fit_a_cell(module: str) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert not [s for s in sizes(source_of(module), functions) if s[1] > FUNCTION]
    assert not [s for s in sizes(source_of(module), ast.ClassDef) if s[1] > CLASS]


def test_the_ruler() -> None:
    source = textwrap.dedent('''
        """Not counted."""
        import os  # counted


        @decorated
        class A:
            """Not
            counted."""

            # not counted
            def forward(self, x):
                y = x or 1
                while y if x else 2:
                    y = [i for i in y if i]
                match y:
                    case 1:
                        return 1
                if y:
                    return 2
    ''')
    assert len(code_lines(source)) == 12
    assert dict(sizes(source, ast.ClassDef)) == {"A": 11}
    assert dict(sizes(source, ast.FunctionDef)) == {"forward": 9}
    assert branches_in_forward(source) == 6


def test_a_wrong_shape_raises_in_the_tests() -> None:
    """The annotations are no decoration: jaxtyping checks them while the tests run."""
    from minillama.attention import attend
    from minillama.rope import apply_rope

    q, kv = torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, 16)
    with pytest.raises(TypeError, match="Type-check error"):
        attend(q, kv, kv[..., :8], None)
    with pytest.raises(TypeError, match="Type-check error"):
        apply_rope(q, torch.zeros(3, 16), torch.zeros(3, 16))
    with pytest.raises(TypeError, match="Type-check error"):
        loud_model()(torch.zeros(1, 3))  # floats are no tokens
