"""The learner's code in a real model: the same weights, and the reply must be the same.

`play` builds a second model that shares the library's weights, puts the learner's parts
into it, and lets both answer. Nothing of the library's model is changed: what a
learner's part holds are copies.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import minillama.attention
import minillama.model
from minillama import api
from minillama.chat import ChatFormat
from minillama.config import LlamaConfig
from minillama.course.check import fill
from minillama.course.guard import TimeUp, own_line, raised, time_limit, unwritten
from minillama.course.values import clean, kind
from minillama.feed_forward import FeedForward
from minillama.generate import generate
from minillama.model import Llama, Parts
from minillama.norm import RMSNorm
from minillama.tokenizer import Tokenizer

# Where the library looks a function up when it runs: there the learner's is put while
# the learner's model runs, and taken away again whatever happens.
_LOOKED_UP = {
    "apply_rope": minillama.attention,
    "rope_frequencies": minillama.model,
    "causal_mask": minillama.model,
}
_IN_LAYERS = {
    "norm": ("attention_norm", "ffn_norm"),
    "attention": ("attention",),
    "feed_forward": ("feed_forward",),
}
_SECONDS = 60.0
_CLOSE = 1e-3  # logits are around 20; float32 in another order moves them by 1e-4


@dataclass(frozen=True)
class Played:
    """What came of it: `ok` if tokens and logits are the library's."""

    ok: bool
    status: str
    reply: str = ""
    library: str = ""
    first_difference: int | None = None  # counted from 0
    logit_error: float | None = None
    message: str = field(default="", repr=False)

    def _ipython_display_(self) -> None:
        """Nothing: `play` has printed it already."""


def play(
    *,
    norm: Any = None,
    attention: Any = None,
    feed_forward: Any = None,
    apply_rope: Any = None,
    rope_frequencies: Any = None,
    causal_mask: Any = None,
    attend: Any = None,
    sample: Any = None,
    cache: Any = None,
    tokenizer: Any = None,
    prompt: str | None = None,
    model: str = "smollm2-135m",
    max_new_tokens: int = 12,
) -> Played:
    """Let a real model answer with the learner's parts, and show both replies.

    `norm`, `attention`, `feed_forward` are classes, made from the config or from the
    numbers that their `__init__` names (`dim, eps`; `dim, ffn_dim`; ...), or functions
    of x and the weights (`x, weight, eps`; `x, w_gate, w_up, w_down`).
    `apply_rope`, `rope_frequencies`, `causal_mask`, `attend` stand for the library's
    functions of these names and may take fewer arguments, the first ones.
    `sample(logits, history)` gives the next id and must be greedy to be compared.
    `cache` is a class like `KVCache(shape, dtype, device)`; without it the whole text
    is read anew for each token. `tokenizer` is an object with `encode(text)`, or such a
    function.

    Decoding is greedy, in float32 on the CPU. Raises ValueError if the model is not on
    this machine, if nothing of the learner's is given, or if two parts exclude each
    other; what the learner's code does wrong is printed, not raised.
    """
    mine = {
        "norm": norm,
        "attention": attention,
        "feed_forward": feed_forward,
        "apply_rope": apply_rope,
        "rope_frequencies": rope_frequencies,
        "causal_mask": causal_mask,
        "attend": attend,
        "sample": sample,
        "cache": cache,
        "tokenizer": tokenizer,
    }
    mine = {name: theirs for name, theirs in mine.items() if theirs is not None}
    _refuse(mine)
    played = _missing(mine, early=True) or _play(mine, prompt, model, max_new_tokens)
    print(played.message)
    return played


def _refuse(mine: dict[str, Any]) -> None:
    if not mine:
        raise ValueError("give a part of your own, such as play(norm=MyRMSNorm)")
    for inner in ("apply_rope", "attend"):
        if inner in mine and "attention" in mine:
            raise ValueError(
                f"{inner} is called by the library's Attention, and attention= takes "
                "its place: give one of the two"
            )


def _missing(mine: dict[str, Any], *, early: bool = False) -> Played | None:
    """A part that is not written yet; `early` if nothing has gone wrong so far."""
    for name, theirs in mine.items():
        empty = "nothing" if theirs is ... else unwritten(theirs)
        own = getattr(theirs, "__name__", name)
        # A class may have an empty method with good reason, but not one of these.
        if empty and (not early or empty in ("nothing", "forward", "update", own)):
            text = f"{name}: {'nothing is' if theirs is ... else clean(own) + ' is'}"
            why = "handed in" if theirs is ... else "still empty"
            message = f"not attempted yet: {text} {why}"
            return Played(False, "not attempted", message=message)
    return None


def _play(
    mine: dict[str, Any], prompt: str | None, model: str, max_new_tokens: int
) -> Played:
    theirs = _answer(model, prompt, max_new_tokens)
    head = [
        f"prompt: {clean(theirs.prompt)}",
        f"{Path(model).name} with your {_names(mine)}, beside the library's own",
    ]
    try:
        with (
            time_limit(_SECONDS),
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
        ):
            found = _compare(mine, theirs, max_new_tokens)
    except TimeUp as late:
        lines = [f"Still running after {_SECONDS:g} s.", own_line(late.__traceback__)]
        found = Played(False, "too slow", message=_look(lines))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        told = raised(error)
        if told.status == "not attempted" or _missing(mine):
            return _missing(mine) or Played(
                False,
                "not attempted",
                message=f"not attempted yet: still to be written: {told.where}",
            )
        text = f"{told.kind}: {told.text}" if told.kind else told.text
        found = Played(False, told.status, message=_look([text, told.where]))
    return replace(
        found, library=theirs.text, message="\n".join([*head, found.message])
    )


@dataclass(frozen=True)
class _Answer:
    """The library's own answer to a prompt, and what it came from."""

    model: Llama
    tokenizer: Tokenizer
    prompt: str
    ids: list[int]  # of the prompt
    new: list[int]
    logits: Tensor  # of prompt and answer, T V

    @property
    def text(self) -> str:
        stops = self.tokenizer.stop_ids
        return self.tokenizer.decode(id for id in self.new if id not in stops)


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple[Llama, Tokenizer]:
    return api.load(name, dtype=torch.float32, device="cpu")


@lru_cache(maxsize=16)
def _answer(name: str, prompt: str | None, count: int) -> _Answer:
    model, tokenizer = _loaded(name)
    if prompt is None:
        question, story = "What is the capital of France?", "It was a rainy evening,"
        prompt = question if _speaks(tokenizer) else story
    with torch.no_grad():
        ids = _encode(tokenizer, prompt)
        stops = tokenizer.stop_ids
        new = generate(model, ids, max_new_tokens=count, stop_ids=stops)
        logits = model(torch.tensor([ids + new]))[0]
    return _Answer(model, tokenizer, prompt, ids, new, logits)


def _speaks(tokenizer: Any) -> bool:
    try:
        ChatFormat(tokenizer)
    except ValueError:
        return False
    return True


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    if _speaks(tokenizer):
        return ChatFormat(tokenizer).encode([{"role": "user", "content": prompt}])
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    return begin + tokenizer.encode(prompt)


def _likeliest(logits: Tensor, history: list[list[int]]) -> Tensor:
    return logits.argmax(-1)


def _reply(
    model: Any,
    ids: list[int],
    count: int,
    choose: Callable[..., Any],
    stop_ids: frozenset[int],
    caches: Any = None,
) -> list[int]:
    """The loop in its plainest form: a part that knows no cache can run in it."""
    new: list[int] = []
    tokens = ids
    while len(new) < count and (not new or new[-1] not in stop_ids):
        logits = model(torch.tensor([tokens]), caches)[:, -1]
        new.append(int(torch.as_tensor(choose(logits, [ids + new])).reshape(())))
        tokens = new[-1:] if caches else ids + new
    return new


def _compare(mine: dict[str, Any], theirs: _Answer, count: int) -> Played:
    ids = theirs.ids
    if "tokenizer" in mine:
        ids = _encode(_Borrowed(theirs.tokenizer, mine["tokenizer"]), theirs.prompt)
        if ids != theirs.ids:
            return _other_ids(ids, theirs)
    with _with_parts(theirs.model, mine) as model:
        make = _caches(mine, model.config, len(ids) + count)
        # Along the library's own answer: after a difference each goes its own way.
        logits = model(torch.tensor([ids + theirs.new]), make())[0]
        error = (logits - theirs.logits).abs().max().item()
        new = logits[len(ids) - 1 : -1].argmax(-1).tolist()
        if error >= _CLOSE or new != theirs.new or {"sample", "cache"} & set(mine):
            choose = _fitted(mine.get("sample", _likeliest), 2)
            new = _reply(model, ids, count, choose, theirs.tokenizer.stop_ids, make())
    return _verdict(theirs, new, error)


def _caches(mine: dict[str, Any], config: LlamaConfig, tokens: int) -> Any:
    if "cache" not in mine:
        return lambda: None
    make = _fitted(mine["cache"], 3)
    shape = (1, config.n_kv_heads, tokens, config.head_dim)
    return lambda: [make(shape, torch.float32, "cpu") for _ in range(config.n_layers)]


@contextmanager
def _with_parts(library: Llama, mine: dict[str, Any]) -> Iterator[Any]:
    """A model of the library's weights and the learner's parts."""
    makers = {name: _maker(name, mine[name]) for name in _IN_LAYERS if name in mine}
    with torch.device("meta"):  # the library's parts are put in below
        model: Any = Llama(library.config, Parts(**makers))
    model.tok_embeddings, model.output = library.tok_embeddings, library.output
    model.norm = _part(model.norm, library.norm, "norm" in mine)
    for layer, own in zip(model.layers, library.layers, strict=True):
        for name, places in _IN_LAYERS.items():
            for place in places:
                part = _part(getattr(layer, place), getattr(own, place), name in mine)
                setattr(layer, place, part)
        if "attend" in mine:
            layer.attention = copy.copy(layer.attention)  # shares the weights
            layer.attention.attend = _fitted(mine["attend"], 4)
    with ExitStack() as stack:
        for name, module in _LOOKED_UP.items():
            if name in mine:
                function = _fitted(mine[name], 4)
                stack.enter_context(patch.object(module, name, function))
        yield model.eval()


def _part(theirs: Any, own: Any, replaced: bool) -> Any:
    return fill(theirs, dict(own.named_parameters())) if replaced else own


# What a learner's `__init__` may ask for, beside the config's own names.
_ALSO = {"eps": "norm_eps", "hidden_dim": "ffn_dim"}


def _maker(name: str, theirs: Any) -> Callable[[LlamaConfig], nn.Module]:
    """`make(config)`, as Parts wants it, out of a class or a function."""
    if not callable(theirs):
        raise ValueError(f"{name} is {kind(theirs)}: hand in the class itself")

    def make(config: LlamaConfig) -> nn.Module:
        with torch.device("cpu"):
            module: Any = theirs(*_arguments(theirs, config))
        if name == "attention" and isinstance(module, nn.Module):
            forward = module.forward
            module.forward = _fitted(forward, 4)  # before the cache there were three
        return module

    names = list(inspect.signature(theirs).parameters)
    if names[:1] == ["x"]:
        return _as_module(name, theirs)
    return make


def _arguments(theirs: Any, config: LlamaConfig) -> list[Any]:
    parameters = inspect.signature(theirs).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    known = [_ALSO.get(name, name) for name in needed]
    if all(hasattr(config, name) for name in known):
        return [getattr(config, name) for name in known]
    if len(needed) == 1:
        return [config]
    raise ValueError(
        f"{clean(theirs.__name__)} wants ({', '.join(needed)}): play can give the "
        "config alone, or numbers by the config's names, such as (dim, eps)"
    )


class _NormOf(RMSNorm):
    function: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.eps)


class _FeedForwardOf(FeedForward):
    function: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.w_gate.weight, self.w_up.weight, self.w_down.weight)
        return self.function(x, *weights)


def _as_module(name: str, function: Any) -> Callable[[LlamaConfig], nn.Module]:
    """A module that holds the weights and leaves the rest to the function."""

    def make(config: LlamaConfig) -> nn.Module:
        with torch.device("cpu"):
            if name == "norm":
                module = _NormOf(config.dim, config.norm_eps)
            elif name == "feed_forward":
                module = _FeedForwardOf(config.dim, config.ffn_dim)
            else:
                raise ValueError(f"{name} must be a class, made from the config")
        module.function = function
        return module

    return make


def _fitted(function: Any, most: int) -> Callable[..., Any]:
    """The function, called with as many of the arguments as it takes."""
    if not callable(function):
        raise ValueError(
            f"{kind(function)} is no function: hand in the function itself"
        )
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = sum(p.kind in kinds for p in parameters)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        takes = most
    return lambda *args: function(*args[:takes])


class _Borrowed:
    """The library's tokenizer, but plain text is encoded by the learner's."""

    def __init__(self, library: Tokenizer, mine: Any) -> None:
        self._library, self._mine = library, getattr(mine, "encode", mine)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def encode(self, text: str) -> list[int]:
        return [int(id) for id in self._mine(text)]


def _names(mine: dict[str, Any]) -> str:
    each = []
    for name, theirs in mine.items():
        own = clean(getattr(theirs, "__name__", type(theirs).__name__))
        each.append(name if own in (name, "<lambda>") else f"{name} ({own})")
    return ", ".join(each[:-1]) + (" and " if len(each) > 1 else "") + each[-1]


def _other_ids(ids: list[int], theirs: _Answer) -> Played:
    pairs = zip(ids, theirs.ids, strict=False)
    shorter = min(len(ids), len(theirs.ids))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    lines = [
        f"Your tokenizer gives {len(ids)} ids for the prompt, the library's "
        f"{len(theirs.ids)}. First difference at id {at}:",
        f"yours:     {ids[at : at + 6]}",
        f"should be: {theirs.ids[at : at + 6]}",
    ]
    return Played(False, "tokenizer", message=_look(lines))


def _verdict(theirs: _Answer, new: list[int], error: float) -> Played:
    first = next(
        (
            i
            for i in range(max(len(new), len(theirs.new)))
            if new[i : i + 1] != theirs.new[i : i + 1]
        ),
        None,
    )
    ok = first is None and error < _CLOSE
    about = f"differ by {_at_least(error)}"
    lines = _table(theirs, new, first)
    if ok:
        lines.append(f"ok: the same {len(new)} tokens, and logits within {_CLOSE:g}")
    elif first is None:
        lines.append(f"look: The tokens are the same by luck: the logits {about}.")
    else:
        lines.append(
            f"not yet: token {first + 1} is the first to differ; the logits {about}"
        )
    status = "ok" if ok else "logits" if first is None else "tokens"
    stops = theirs.tokenizer.stop_ids
    reply = theirs.tokenizer.decode(id for id in new if id not in stops)
    return Played(ok, status, reply, "", first, error, "\n".join(lines))


def _table(theirs: _Answer, new: list[int], first: int | None) -> list[str]:
    def text(ids: list[int], at: int) -> str:
        return clean(
            repr(theirs.tokenizer.decode(ids[at : at + 1])) if at < len(ids) else "-"
        )

    rows = range(max(len(new), len(theirs.new)))
    width = max(len("library"), *(len(text(theirs.new, i)) for i in rows))
    lines = [f"     {'library':{width}}  yours"]
    for i in rows:
        mark = "   <- first difference" if i == first else ""
        line = f"{i + 1:3}  {text(theirs.new, i):{width}}  {text(new, i)}"
        lines.append(line + mark)
    return lines


def _at_least(error: float) -> str:
    """A bound that is the same on every machine."""
    if not error < torch.inf:
        return "NaN or infinity"
    bounds = [bound for bound in (10, 1, 0.1, 0.01, 1e-3) if error >= bound]
    return f"more than {bounds[0]:g}" if bounds else f"less than {_CLOSE:g}"


def _look(lines: list[str]) -> str:
    head, *rest = [line for line in lines if line]
    return "\n".join([f"look: {head}", *(f"  {line}" for line in rest)])
