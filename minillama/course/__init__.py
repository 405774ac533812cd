"""What only the course needs: checks, play, progress, the example, the tale world."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillama.course.check import Check, fill
    from minillama.course.guard import Look
    from minillama.course.real_model import play

_HOME = {
    "Check": "check",
    "fill": "check",
    "Look": "guard",
    "play": "real_model",
}

__all__ = ["Check", "Look", "fill", "play"]


def __getattr__(name: str) -> Any:
    # Imported when first used: progress and the tale world need no torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"minillama.course.{_HOME[name]}"), name)
