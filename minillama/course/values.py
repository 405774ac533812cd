"""Values that a check handles: copied, compared, and shown in a few words.

A value is a tensor, a number, a string, bytes, None, or a list, tuple, dict or set of
values. Types are compared exactly: a subclass could bring an `==` of its own.
"""

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, bool, str, bytes, type(None), type(...))
_ROW = 8  # numbers of a tensor's last axis, or items of a list, that are shown


@dataclass(frozen=True)
class Raised:
    """Instead of a value: what the code raised, ready to be shown."""

    kind: str  # the exception's type
    text: str  # its message, cleaned
    status: str = "exception"
    where: str = ""  # the learner's own line


@dataclass(frozen=True)
class Yielded:
    """The items of a generator or another iterator."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Other:
    """What is no value, known by its kind alone: an array, a module, a subclass."""

    kind: str


@dataclass(frozen=True)
class Difference:
    """Where a value first departs from the wanted one, in lines to print."""

    status: str
    lines: tuple[str, ...]


def snapshot(value: Any, other: Callable[[Any], Any] = copy.deepcopy) -> Any:
    """A copy that later calls cannot change; `other` copies what is no value."""
    if type(value) in (Tensor, nn.Parameter) and _ordinary(value):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple, set):
        return type(value)(snapshot(item, other) for item in value)
    if type(value) is dict:
        return {key: snapshot(item, other) for key, item in value.items()}
    if type(value) is Yielded:
        return Yielded(snapshot(value.items, other))
    return value if type(value) in (*_PLAIN, float) else other(value)


def result(value: Any) -> Any:
    """A copy of what some code gave, of which nothing but plain values is kept."""
    return snapshot(value, lambda stranger: Other(kind(stranger)))


def _ordinary(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided


def difference(
    want: Any, got: Any, rtol: float = 0.0, atol: float = 0.0
) -> Difference | None:
    """None where `got` is `want` within the tolerances, else the first difference."""
    if type(want) is Raised or type(got) is Raised:
        return _raised(want, got)
    if type(want) is float and type(got) is int:
        got = float(got)
    if type(got) is not type(want) or type(want) is Other:
        if type(got) is Other and want == got:
            return None
        return Difference(
            "type", (f"it gives {kind(got)}, it should be {kind(want)}.",)
        )
    if type(want) is Tensor:
        return _tensors(want, got, rtol, atol)
    if type(want) is float:
        return _numbers(want, got, rtol, atol)
    if type(want) is Yielded:
        return _items(want.items, got.items, rtol, atol)
    if isinstance(want, list | tuple):
        return _items(want, got, rtol, atol)
    if type(want) is dict:
        return _dicts(want, got, rtol, atol)
    if type(want) in (str, bytes):
        return _texts(want, got)
    if type(want) is set or type(want) in _PLAIN:
        return None if want == got else _wrong("", got, want)
    raise TypeError(f"cannot compare {kind(want)}")


def _raised(want: Any, got: Any) -> Difference | None:
    if type(want) is Raised and type(got) is Raised:
        if (want.kind, want.text) == (got.kind, got.text):
            return None
        return Difference("exception", (f"it raises {got.kind}: {got.text}",))
    if type(got) is Raised:
        lines = (f"{got.kind}: {got.text}" if got.kind else got.text, got.where)
        return Difference(got.status, tuple(filter(None, lines)))
    return Difference(
        "no exception", (f"it gives {show(got)}, it should raise {want.kind}.",)
    )


def _tensors(want: Tensor, got: Tensor, rtol: float, atol: float) -> Difference | None:
    for status, of in (
        ("shape", lambda t: tuple(t.shape)),
        ("dtype", lambda t: _dtype(t)),
    ):
        if of(got) != of(want):
            line = f"it gives {status} {of(got)}, it should be {of(want)}."
            return Difference(status, (line,))
    if want.dtype.is_floating_point and want.dtype.itemsize < 4 and rtol:
        # bfloat16 keeps two to three digits: to round once more is no mistake.
        eps = torch.finfo(want.dtype).eps
        rtol, atol = max(rtol, 2 * eps), max(atol, eps * _largest(want))
    if want.dtype.is_floating_point or want.dtype.is_complex:
        wide = torch.promote_types(want.dtype, torch.float32)
        pair = got.detach().to(wide), want.detach().to(wide)
        apart = ~torch.isclose(*pair, rtol=rtol, atol=atol, equal_nan=True)
    else:
        apart = got != want
    if not apart.any():
        if want.requires_grad and not got.requires_grad:
            line = "the numbers are right, but no gradient flows back through them."
            return Difference("gradient", (line,))
        return None
    places = torch.nonzero(apart)
    lost = torch.nonzero(~got.isfinite() & want.isfinite())
    if len(lost):
        at = tuple(lost[0].tolist())
        line = f"it gives {_number(got[at].item())} at {list(at)}"
        wanted = f"it should be {_number(want[at].item())}."
        return Difference("nan", (f"{line}, {wanted}",))
    if want.numel() <= 2 * _ROW:
        return _wrong("", got, want)
    *row, at = places[0].tolist()
    first = max(0, min(at - 2, want.shape[-1] - _ROW)) if at >= _ROW else 0
    cut = slice(first, first + _ROW)
    named = f"{first}:{first + _ROW}" if want.shape[-1] > _ROW else ":"
    where = f" at [{', '.join([*map(str, row), named])}]"
    return _wrong(where, got[tuple(row)][cut], want[tuple(row)][cut])


def _numbers(want: float, got: float, rtol: float, atol: float) -> Difference | None:
    if math.isnan(want) and math.isnan(got):
        return None
    if math.isfinite(want) and not math.isfinite(got):
        return Difference("nan", (f"it gives {got}, it should be {_number(want)}.",))
    if want == got or abs(want - got) <= atol + rtol * abs(want):
        return None
    return _wrong("", got, want)


def _items(
    want: Sequence[Any], got: Sequence[Any], rtol: float, atol: float
) -> Difference | None:
    for i, (w, g) in enumerate(zip(want, got, strict=False)):
        if found := difference(w, g, rtol, atol):
            if len(want) == len(got) <= 4 and type(w) not in (*_PLAIN, float):
                return Difference(found.status, (f"in item {i}:", *found.lines))
            break
    else:
        if len(want) == len(got):
            return None
        i = min(len(want), len(got))
    if max(len(want), len(got)) <= 2 * _ROW:
        return _wrong("", got, want)
    cut = slice(max(0, i - 2), max(0, i - 2) + _ROW)
    lengths = "" if len(want) == len(got) else f" ({len(got)} items, not {len(want)})"
    return _wrong(f" from item {cut.start}{lengths}", got[cut], want[cut])


def _dicts(want: Any, got: Any, rtol: float, atol: float) -> Difference | None:
    if want.keys() != got.keys():
        return _wrong(" keys", list(got), list(want))
    for key in want:
        if found := difference(want[key], got[key], rtol, atol):
            return Difference(found.status, (f"under {show(key)}:", *found.lines))
    return None


def _texts(want: Any, got: Any) -> Difference | None:
    if want == got:
        return None
    pairs = zip(want, got, strict=False)
    at = next((i for i, (w, g) in enumerate(pairs) if w != g), min(len(want), len(got)))
    start = max(0, at - 20)
    where = f" from character {start}" if start else ""
    return _wrong(where, got[start:], want[start:])


def _wrong(where: str, got: Any, want: Any) -> Difference:
    texts = show(got), show(want)
    for digits in (6, 9, 17):
        if texts[0] != texts[1]:
            break
        texts = show(got, digits), show(want, digits)
    width = len("should be:") + len(where)
    yours = f"{f'yours{where}:':{width}} {texts[0]}"
    return Difference("wrong", (yours, f"should be{where}: {texts[1]}"))


def kind(value: Any) -> str:
    """What a value is, in words: "a Tensor", "a list", "None"."""
    if value is None or value is ...:
        return repr(value)
    if type(value) is Yielded:
        return "a generator"
    if type(value) is Other:
        return value.kind
    if type(value) is Tensor and not _ordinary(value):
        return f"a Tensor on {value.device}, {value.layout}"
    name = clean(type(value).__name__)
    own = "numpy " if type(value).__module__ == "numpy" else ""
    return f"{'an' if (own or name)[0] in 'aeiouAEIOU' else 'a'} {own}{name}"


def show(value: Any, digits: int = 4) -> str:
    """A value in one short line: small tensors whole, larger ones by their shape."""
    return _cut(_text(value, digits))


def _text(value: Any, digits: int) -> str:
    if type(value) in (Tensor, nn.Parameter):
        if value.numel() > 2 * _ROW or not _ordinary(value):
            return f"a Tensor {tuple(value.shape)} of {_dtype(value)}"
        return _numbers_of(value, digits)
    if type(value) is float:
        return _number(value, digits)
    if type(value) is Yielded:
        return _text(list(value.items), digits)
    if type(value) in (list, tuple, set):
        ends = {list: "[]", tuple: "()", set: "{}"}[type(value)]
        texts = [_text(item, digits) for item in value]
        inside = ", ".join(sorted(texts) if type(value) is set else texts)
        last = "," if type(value) is tuple and len(value) == 1 else ""
        return ends[0] + inside + last + ends[1]
    if type(value) is dict:
        pairs = (f"{_text(k, digits)}: {_text(v, digits)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if type(value) is Raised:
        return f"{value.kind}: {value.text}"
    if type(value) in (Other, torch.Generator):
        return kind(value)
    return clean(repr(value))


def clean(text: str) -> str:
    """One printable line, the same on every run: no addresses, no control codes."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _numbers_of(value: Tensor, digits: int) -> str:
    tensor = value.detach()
    if not tensor.dtype.is_floating_point:
        return str(tensor.tolist())
    noise = 1e-6 * _largest(tensor)

    def inside(items: Any) -> str:
        if isinstance(items, list):
            return "[" + ", ".join(map(inside, items)) + "]"
        return _number(0.0 if abs(items) < noise else items, digits)

    return inside(tensor.double().tolist())


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0


def _number(value: float, digits: int = 4) -> str:
    # The last digits of a float differ between machines; four agree.
    return f"{value + 0.0:.{digits}g}" if isinstance(value, float) else str(value)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _cut(text: str, width: int = 72) -> str:
    return text if len(text) <= width else text[: width - 4] + " ..."
