"""What every view has: its place in a notebook, a picture for paper, a file of its own.

A view is fed plain arrays, strings and functions, never a model. Small data go to the
browser at once (`data`). What is large, or has to be computed, the browser asks for by
name (`answer`). A saved page has no Python behind it, so the questions of `record` are
answered beforehand and stored in it.
"""

import json
import math
import re
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import numpy as np
import traitlets

Answer = tuple[Mapping[str, Any], list[bytes]]
_WIDGET = "application/vnd.jupyter.widget-view+json"


class View(anywidget.AnyWidget):
    """An interactive view. What it cannot show, it says in a sentence in its place."""

    name: ClassVar[str]
    title: ClassVar[str]
    data = traitlets.Dict().tag(sync=True)

    def __init_subclass__(cls, **options: Any) -> None:
        if "name" in cls.__dict__:
            cls._esm = static("common.js") + static(f"{cls.name}.js")
            cls._css = static("common.css") + static(f"{cls.name}.css")
        super().__init_subclass__(**options)

    def __init__(self, prepare: Callable[[], Mapping[str, Any]]) -> None:
        """`prepare` gives the data; its ValueError becomes the sentence."""
        try:
            data = plain(prepare())
        except ValueError as error:
            data = {"sentence": str(error)}
        super().__init__(data=data)
        self.on_msg(self._asked)

    def answer(self, what: str, args: Mapping[str, Any]) -> Answer:
        """What the browser asks for. Raises ValueError with what to say instead."""
        raise ValueError(f"{type(self).__name__} knows nothing of {what!r}")

    def record(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """The questions that a saved page can answer."""
        return ()

    def draw(self) -> Any:
        """The static picture, a matplotlib Figure, or None where there is none."""
        return None

    def words(self) -> str:
        """One line for text outputs and screen readers."""
        return self.title

    @property
    def sentence(self) -> str | None:
        """What this view says in place of a picture, or None if all is well."""
        return self.data.get("sentence")

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.sentence or self.words()}"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict]:
        """The widget, and beside it what GitHub, paper and the site show."""
        bundle, about = super()._repr_mimebundle_(**options) or ({}, {})
        bundle["text/plain"] = repr(self)
        if picture := self._picture():
            bundle["image/png"] = b64encode(picture).decode()
            about["image/png"] = {"alt": self.words()}
        return bundle, about

    def _picture(self) -> bytes | None:
        figure = None if self.sentence else self.draw()
        if figure is None:
            return None
        out = BytesIO()
        with warnings.catch_warnings():
            # A letter that the font lacks is drawn as a box; the widget shows it.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            figure.savefig(out, format="png", dpi=100, facecolor="white")
        return out.getvalue()

    def to_html(self, path: str | Path) -> Path:
        """Write one file that shows this view in any browser, with no network.

        Moving, choosing and hovering work; what only Python can compute is there as far
        as it was recorded. Raises ValueError if the folder does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}: make it first")
        recorded: dict[str, Any] = {}
        for what, args in () if self.sentence else self.record():
            content, buffers = self.answer(what, args)
            recorded[_key(what, args)] = {
                "answer": plain(content),
                "buffers": [b64encode(b).decode() for b in buffers],
            }
        stored = json.dumps({"data": self.data, "recorded": recorded})
        parts = {
            "title": escape(f"{self.title} · minillama"),
            "css": str(self._css),
            # In a script element, `</script>` would end it and `<!--` hide it.
            "data": stored.replace("<", "\\u003c"),
            "esm": str(self._esm).replace("export default", "const view =", 1),
        }
        # In one pass: what was put in may itself spell a place to fill.
        page = re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], static("page.html"))
        path.write_text(page, encoding="utf-8")
        return path

    def _asked(self, _: Any, content: Mapping[str, Any], __: Any) -> None:
        reply: dict[str, Any] = {"id": content.get("id")}
        buffers: list[bytes] = []
        try:
            answer, buffers = self.answer(str(content["what"]), content["args"])
            reply["answer"] = plain(answer)
        except ValueError as error:
            reply["sentence"] = str(error)
        except Exception as error:  # a learner's function may raise anything
            reply["sentence"] = f"{type(error).__name__}: {error}"
        self.send(reply, buffers)


def static(name: str) -> str:
    """One of the files beside this module."""
    return (files("minillama.widgets") / "static" / name).read_text("utf-8")


def _key(what: str, args: Mapping[str, Any]) -> str:
    """A question as JavaScript's JSON.stringify writes it: 1.0 is 1 there."""
    whole = {
        name: int(v) if isinstance(v, float) and v.is_integer() else v
        for name, v in args.items()
    }
    return json.dumps([what, whole], separators=(",", ":"), ensure_ascii=False)


def array(given: Any, name: str, dtype: type = np.float64) -> np.ndarray:
    """What numpy takes, and what it does not: bfloat16, gradients, other devices.

    Raises ValueError if these are no numbers, or rows of unequal length.
    """
    if hasattr(given, "detach"):
        given = given.detach().cpu().double().numpy()
    try:
        return np.asarray(given, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be numbers in even rows: {error}") from None


def plain(value: Any) -> Any:
    """Numbers, strings, lists and dictionaries alone, as JSON knows them.

    JSON has no infinities: they and NaN become None.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        # Half a surrogate pair cannot be sent.
        return value.encode("utf-8", "replace").decode("utf-8")
    return value
