"""Values that a check handles: copied, compared, and shown in a few words.

A value is a tensor, a number, a string, bytes, None, or a list, tuple, dict or set of
values. Types are compared exactly: a subclass could bring an `==` of its own.
"""

import copy
import math
import re
from collections.abc import Sequence
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
class Difference:
    """Where a value first departs from the wanted one, in lines to print."""

    status: str
    lines: tuple[str, ...]


def snapshot(value: Any) -> Any:
    """A copy that later calls cannot change; a Parameter becomes a plain tensor."""
    if type(value) in (Tensor, nn.Parameter):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple, set):
        return type(value)(snapshot(item) for item in value)
    if type(value) is dict:
        return {key: snapshot(item) for key, item in value.items()}
    if type(value) is Yielded:
        return Yielded(snapshot(value.items))
    return value if type(value) in (*_PLAIN, float, Raised) else copy.deepcopy(value)


def difference(
    want: Any, got: Any, rtol: float = 0.0, atol: float = 0.0
) -> Difference | None:
    """None where `got` is `want` within the tolerances, else the first difference."""
    if type(want) is Raised or type(got) is Raised:
        return _raised(want, got)
    if type(want) is float and type(got) is int:
        got = float(got)
    if type(got) is not type(want):
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
        return None if want == got else _wrong("", show(got), show(want))
    raise TypeError(
        f"a check cannot compare {kind(want)}: let adapt turn it into values"
    )


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
        ("device", lambda t: str(t.device)),
        ("type", lambda t: str(t.layout)),
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
        return _wrong("", show(got), show(want))
    *row, at = places[0].tolist()
    first = max(0, min(at - 2, want.shape[-1] - _ROW)) if at >= _ROW else 0
    cut = slice(first, first + _ROW)
    named = f"{first}:{first + _ROW}" if want.shape[-1] > _ROW else ":"
    where = f" at [{', '.join([*map(str, row), named])}]"
    return _wrong(where, show(got[tuple(row)][cut]), show(want[tuple(row)][cut]))


def _numbers(want: float, got: float, rtol: float, atol: float) -> Difference | None:
    if math.isnan(want) and math.isnan(got):
        return None
    if math.isfinite(want) and not math.isfinite(got):
        return Difference("nan", (f"it gives {got}, it should be {_number(want)}.",))
    if want == got or abs(want - got) <= atol + rtol * abs(want):
        return None
    return _wrong("", _number(got), _number(want))


def _items(
    want: Sequence[Any], got: Sequence[Any], rtol: float, atol: float
) -> Difference | None:
    for i, (w, g) in enumerate(zip(want, got, strict=False)):
        if found := difference(w, g, rtol, atol):
            if len(want) == len(got) <= 4 and type(w) not in _PLAIN:
                return Difference(found.status, (f"in item {i}:", *found.lines))
            break
    else:
        if len(want) == len(got):
            return None
        i = min(len(want), len(got))
    if max(len(want), len(got)) <= 2 * _ROW:
        return _wrong("", show(got), show(want))
    cut = slice(max(0, i - 2), max(0, i - 2) + _ROW)
    lengths = "" if len(want) == len(got) else f" ({len(got)} items, not {len(want)})"
    return _wrong(f" from item {cut.start}{lengths}", show(got[cut]), show(want[cut]))


def _dicts(want: Any, got: Any, rtol: float, atol: float) -> Difference | None:
    if want.keys() != got.keys():
        return _wrong("", f"keys {show(list(got))}", f"keys {show(list(want))}")
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
    return _wrong(where, show(got[start:]), show(want[start:]))


def _wrong(where: str, got: str, want: str) -> Difference:
    width = len("should be:") + len(where)
    return Difference(
        "wrong",
        (f"{f'yours{where}:':{width}} {got}", f"should be{where}: {want}"),
    )


def kind(value: Any) -> str:
    """What a value is, in words: "a Tensor", "a list", "None"."""
    if value is None or value is ...:
        return repr(value)
    if type(value) is Yielded:
        return "a generator"
    name = clean(type(value).__name__)
    own = "numpy " if type(value).__module__ == "numpy" else ""
    return f"{'an' if (own or name)[0] in 'aeiouAEIOU' else 'a'} {own}{name}"


def show(value: Any, width: int = 72) -> str:
    """A value in one short line: small tensors whole, larger ones by their shape."""
    if type(value) in (Tensor, nn.Parameter):
        if value.numel() > 2 * _ROW or value.is_meta:
            return f"a Tensor {tuple(value.shape)} of {_dtype(value)}"
        return _cut(_numbers_of(value), width)
    if type(value) is float:
        return _number(value)
    if type(value) is Yielded:
        return show(list(value.items), width)
    if type(value) in (list, tuple):
        ends = "[]" if type(value) is list else "()"
        last = "," if type(value) is tuple and len(value) == 1 else ""
        return _cut(ends[0] + ", ".join(map(show, value)) + last + ends[1], width)
    if type(value) is set:
        return _cut("{" + ", ".join(sorted(map(show, value))) + "}", width)
    if type(value) is dict:
        inside = ", ".join(f"{show(k)}: {show(v)}" for k, v in value.items())
        return _cut("{" + inside + "}", width)
    if type(value) is Raised:
        return f"{value.kind}: {value.text}"
    if type(value) is torch.Generator:
        return "a torch.Generator"
    return _cut(clean(repr(value)), width)


def clean(text: str) -> str:
    """One printable line, the same on every run: no addresses, no control codes."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _numbers_of(value: Tensor) -> str:
    tensor = value.detach().cpu()
    if not tensor.dtype.is_floating_point:
        return str(tensor.tolist())
    noise = 1e-6 * _largest(tensor)

    def inside(items: Any) -> str:
        if isinstance(items, list):
            return "[" + ", ".join(map(inside, items)) + "]"
        return _number(0.0 if abs(items) < noise else items)

    return inside(tensor.double().tolist())


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0


def _number(value: float) -> str:
    # The last digits of a float differ between machines; four agree.
    return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 4] + " ..."
