"""The checks of all exercises: one module a topic, found by walking this folder."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minillama.course.check import Check


def every() -> "list[Check]":
    """All checks of the course, in the order of their names. Two may not share one."""
    from minillama.course.check import Check

    found: dict[str, Check] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if not isinstance(value, Check):
                continue
            if found.setdefault(value.name, value) is not value:
                raise ValueError(
                    f"two checks are named {value.name}: {value.title!r} in "
                    f"{module.name}.py and {found[value.name].title!r}"
                )
    return sorted(found.values(), key=lambda c: [int(n) for n in _numbers(c.name)])


def _numbers(name: str) -> list[str]:
    import re

    return re.findall(r"\d+", name)
