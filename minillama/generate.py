"""Decoding: a model and a prompt in, one token after another out.

`prefill` reads the prompt into the caches, `decode_step` adds one token a row. Both ask
for nothing but a callable `(tokens, caches, pad) -> logits`. `stream` and
`stream_batch` are the loop around them, `generate` the same loop run to its end.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillama.cache import KVCache
from minillama.model import Llama
from minillama.sampling import Sampler

Model = Callable[[Tensor, "list[KVCache]", "Tensor | None"], Tensor]
Choose = Callable[[Tensor, "list[list[int]]"], Tensor]


class StreamDecoder(Protocol):
    """Turns ids into text, and keeps the bytes of an unfinished character."""

    def push(self, id: int, /) -> str: ...
    def flush(self) -> str: ...


class TextSource(Protocol):
    """What `stream` wants of a tokenizer."""

    def stream_decoder(self) -> StreamDecoder: ...


@dataclass(frozen=True)
class Step:
    """One token of a stream.

    `text` is what has become sure with this token: whole characters, nothing that may
    be the beginning of a stop string. `logprob` is the natural logarithm of the token's
    probability in the model's own distribution, before temperature and filters; `top`
    has the likeliest ids of that distribution, each with its own, when asked for.
    """

    id: int
    text: str
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


def left_pad(
    prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B"] | None]:
    """Prompts as one tensor whose rows end together, and how much padding each has.

    The padding is token 0, which no query sees. None stands for no padding at all.
    """
    longest = max(len(ids) for ids in prompts)
    pad = [longest - len(ids) for ids in prompts]
    rows = [[0] * n + list(ids) for n, ids in zip(pad, prompts, strict=True)]
    tokens = torch.tensor(rows, device=device)
    return tokens, torch.tensor(pad, device=device) if any(pad) else None


def prefill(
    model: Model,
    tokens: Int[Tensor, "B T"],
    caches: list[KVCache],
    pad: Int[Tensor, "B"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "B V"]:
    """Read the prompt into the caches; return the logits of the token after it.

    With `chunk`, that many tokens at a time: the same logits, while the memory for
    attention and logits is a chunk's, not the whole prompt's.
    """
    if tokens.shape[1] == 0:
        raise ValueError("an empty prompt has no last token: give at least one")
    _check_count("chunk", chunk)
    length = tokens.shape[1]
    size = chunk or length
    for start in range(0, length - size, size):
        _last_logits(model, tokens[:, start : start + size], caches, pad)
    last = (length - 1) // size * size
    return _last_logits(model, tokens[:, last:], caches, pad)


def decode_step(
    model: Model,
    token: Int[Tensor, "B"],
    caches: list[KVCache],
    pad: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, "B V"]:
    """Add one token a row; return the logits of the token after it."""
    return _last_logits(model, token[:, None], caches, pad)


def _last_logits(
    model: Model, tokens: Tensor, caches: list[KVCache], pad: Tensor | None
) -> Float[Tensor, "B V"]:
    # A step is hundreds of small operations, and inference mode does each faster than
    # no_grad does. The copy is an ordinary tensor again, which a caller may change.
    with torch.inference_mode():
        if isinstance(model, Llama) and tokens.shape[1] > 1 and _is_plain(model):
            # The widest matrix of all, for one token of the prompt and not for each.
            logits = model.output(model.hidden(tokens, caches, pad)[:, -1:])[:, -1]
        else:
            logits = model(tokens, caches, pad)[:, -1]
    return logits.clone()


def _is_plain(model: Llama) -> bool:
    """False where somebody has a forward of their own, or watches it with a hook."""
    state = vars(model)
    own = type(model).forward is not Llama.forward or "forward" in state
    return not (own or state["_forward_hooks"] or state["_forward_pre_hooks"])


def stream(
    model: Llama,
    ids: Sequence[int],
    *,
    max_new_tokens: int | None = 256,
    sampler: Choose | None = None,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: TextSource | None = None,
    top: int = 0,
    caches: list[KVCache] | None = None,
    chunk: int | None = 512,
) -> Iterator[Step]:
    """Continue a prompt, one `Step` a token, each as soon as it is known.

    Greedy without a `sampler`. It ends after `max_new_tokens` (None: at the end of the
    context), after a token of `stop_ids`, which is a step without text of its own, or
    when the text comes to one of `stop_strings`, which is not part of the text. Steps
    have text when there is a `tokenizer`.

    `caches` may hold a beginning already: `ids` then continue it, and a repetition
    penalty knows `ids` alone. At each step the caches hold the prompt and all tokens
    yielded but the last.

    Raises ValueError at the call, before any work: an empty prompt, ids outside the
    vocabulary, a prompt and `max_new_tokens` that do not fit the context.
    """
    steps = stream_batch(
        model,
        [ids],
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
        top=top,
        caches=caches,
        chunk=chunk,
    )
    return (step for [step] in steps if step is not None)


def stream_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = 256,
    sampler: Choose | None = None,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: TextSource | None = None,
    top: int = 0,
    caches: list[KVCache] | None = None,
    chunk: int | None = 512,
) -> Iterator[list[Step | None]]:
    """Continue several prompts at once: a list with one `Step` a row at each turn.

    Prompts of unequal length are padded on the left. A row that has ended gives None;
    it is computed along until all have ended, since the weights are read for the
    others anyway. The rest is as in `stream`.
    """
    history = [[int(id) for id in ids] for ids in prompts]
    count = check_request(
        model,
        history,
        max_new_tokens=max_new_tokens,
        context=room_for(model, caches),
        held=caches[0].length if caches else 0,
        top=top,
        chunk=chunk,
    )
    texts = [RowText(tokenizer, stop_strings) for _ in history]
    stops = frozenset(stop_ids)
    past = caches or new_caches(model, len(history), len(max(history, key=len)) + count)
    tokens, pad = left_pad(history, float_weight(model).device)
    choose = Sampler(temperature=0) if sampler is None else sampler
    if isinstance(choose, Sampler):  # the same call gives the same tokens
        choose = choose.restart()

    def run() -> Iterator[list[Step | None]]:
        logits = prefill(model, tokens, past, pad, chunk)  # B V
        for left in reversed(range(count)):
            ids = _one_a_row(choose(logits, history), len(history))
            logprobs, tops = own_logprobs(logits, ids, top)
            steps: list[Step | None] = [None] * len(history)
            for row, id in enumerate(_numbers(ids)):
                if texts[row].ended:
                    continue
                history[row].append(id)
                text = texts[row].push(id, last=left == 0, stop=id in stops)
                steps[row] = Step(id, text, logprobs[row], tops[row])
            yield steps
            if all(text.ended for text in texts):
                return
            logits = decode_step(model, ids, past, pad)

    return run()


@overload
def generate(model: Llama, ids: Sequence[int], **options: Any) -> list[int]: ...
@overload
def generate(
    model: Llama, ids: Sequence[Sequence[int]], **options: Any
) -> list[list[int]]: ...
def generate(model: Llama, ids: Sequence[Any], **options: Any) -> Any:
    """The new ids of a prompt, or a list of them for a list of prompts.

    Options are those of `stream`. A stop id that came is the last of its row.
    """
    if len(ids) and isinstance(ids[0], Sequence):
        new: list[list[int]] = [[] for _ in ids]
        for steps in stream_batch(model, ids, **options):
            for row, step in zip(new, steps, strict=True):
                row.extend([] if step is None else [step.id])
        return new
    return [step.id for step in stream(model, ids, **options)]


def new_caches(
    model: Llama, batch: int = 1, tokens: int | None = None
) -> list[KVCache]:
    """Empty caches of the model's own dtype and device, for `tokens` tokens.

    By default for its whole context, which can be much: `model.config.kv_cache_bytes`
    says how much.
    """
    weight = float_weight(model)
    return KVCache.for_model(
        model.config,
        batch=batch,
        max_seq_len=tokens,
        dtype=weight.dtype,
        device=weight.device,
    )


def check_ids(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Refuse no prompts at all, an empty one, and ids outside the vocabulary."""
    if not prompts:
        raise ValueError("there are no prompts: give at least one")
    for row, ids in enumerate(prompts):
        which = f"prompt {row}" if len(prompts) > 1 else "the prompt"
        if not ids:
            raise ValueError(
                f"{which} is empty: give at least one token, such as the tokenizer's "
                "bos_id"
            )
        strange = [id for id in ids if not 0 <= id < vocab_size]
        if strange:
            raise ValueError(
                f"{which} has id {strange[0]}, and the vocabulary of this model is 0 "
                f"to {vocab_size - 1}: encode with the model's own tokenizer"
            )


def _check_count(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} is {value}: it must be at least 1, or None")


def check_request(
    model: Llama,
    prompts: list[list[int]],
    *,
    max_new_tokens: int | None,
    context: int,
    held: int = 0,
    top: int = 0,
    chunk: int | None = None,
) -> int:
    """Refuse what cannot be done, before any work; say how many tokens may be added.

    As many as wanted, or for None all that fit into `context` after the `held` ones
    that the caches have already.
    """
    check_ids(prompts, model.config.vocab_size)
    _check_count("chunk", chunk)
    _check_count("max_new_tokens", max_new_tokens)
    if not 0 <= top <= model.config.vocab_size:
        raise ValueError(
            f"top is {top}: it must be from 0 to {model.config.vocab_size}, the "
            "size of the vocabulary"
        )
    longest = len(max(prompts, key=len))
    if held and any(len(ids) != longest for ids in prompts):
        raise ValueError(
            f"the caches hold {held} tokens already, and padding cannot stand in the "
            "middle of a row: give prompts of one length, or empty caches"
        )
    room = context - held - longest
    new = 1 if max_new_tokens is None else max_new_tokens
    if new > room:
        cached = f" after {held} in the caches" if held else ""
        fewer = f", or ask for at most {room} new tokens" if room > 0 else ""
        raise ValueError(
            f"a prompt of {longest} tokens{cached} and {new} new ones are "
            f"{held + longest + new}, and the context is {context}: shorten the "
            f"prompt{fewer}"
        )
    return room if max_new_tokens is None else max_new_tokens


def room_for(model: Llama, caches: list[KVCache] | None) -> int:
    """How many tokens a row may have: the model's context, or what the caches take."""
    context = model.config.max_seq_len
    if caches and type(caches[0]) is KVCache:  # other kinds know their own limits
        return min(context, caches[0].keys.shape[2])
    return context


def float_weight(model: Llama) -> Tensor:
    """The first floating-point parameter: it has the dtype that flows in the model.

    Quantised weights are integers; the norms between them are not.
    """
    return next(p for p in model.parameters() if p.is_floating_point())


def _one_a_row(ids: Tensor, batch: int) -> Int[Tensor, "B"]:
    if ids.shape != (batch,):
        raise ValueError(
            f"the sampler returned shape {tuple(ids.shape)}: it must be ({batch},), "
            "one id a row"
        )
    return ids


def own_logprobs(
    logits: Float[Tensor, "B V"], ids: Int[Tensor, "B"], top: int
) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """Log-probabilities of the chosen ids, and the `top` likeliest of each row."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = logits.logsumexp(-1, keepdim=True)  # B 1
    own = logits.gather(1, ids[:, None]) - total
    best = logits.topk(top)
    pairs = zip(_numbers(best.indices), _numbers(best.values - total), strict=True)
    return _numbers(own[:, 0]), [list(zip(*pair, strict=True)) for pair in pairs]


def _numbers(x: Tensor) -> list[Any]:
    return x.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class RowText:
    """The text of one row, held back while it may be the start of a stop string."""

    def __init__(self, tokenizer: TextSource | None, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or "" in stops:
            raise ValueError(
                f"stop_strings is {stops!r}: it must be a list of strings, none empty"
            )
        if stops and tokenizer is None:
            raise ValueError("stop strings are text: give the tokenizer as well")
        self.stops = stops
        self.decoder = tokenizer.stream_decoder() if tokenizer else None
        self.held = ""
        self.ended = False

    def push(self, id: int, *, last: bool, stop: bool) -> str:
        """The text that has become sure with this token; all that is left at the end.

        A stop id ends the row and shows nothing of its own.
        """
        if self.decoder is not None:
            if not stop:
                self.held += self.decoder.push(id)
            if stop or last:
                self.held += self.decoder.flush()
        # The stop string that is complete first; of two, the one that began first.
        starts = [(self.held.find(s), len(s)) for s in self.stops]
        found = [(at + size, at) for at, size in starts if at >= 0]
        if found:
            end = min(found)[1]
        elif stop or last:
            end = len(self.held)
        else:
            end = len(self.held) - self._beginning()
        self.ended = bool(found) or stop or last
        text, self.held = self.held[:end], self.held[end:]
        return text

    def _beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self.stops), default=1) - 1
        for size in range(min(longest, len(self.held)), 0, -1):
            if any(s.startswith(self.held[-size:]) for s in self.stops):
                return size
        return 0
