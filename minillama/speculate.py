"""Speculative decoding: a draft guesses some tokens, one pass of the model judges them.

Decoding reads every weight for one token. For five tokens each weight is still read
once, so where reading is what takes the time, five cost little more than one. A draft
that is cheap and often right makes use of that. The tokens stay the model's own: greedy
ones are the same, drawn ones have the same distribution.
Source: Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from minillama.generate import (
    Choose,
    RowText,
    Step,
    TextSource,
    check_request,
    decode_step,
    float_weight,
    own_logprobs,
    prefill,
)
from minillama.model import Llama
from minillama.prefix import PrefixCache
from minillama.sampling import Sampler, draw

Guess = Callable[[Sequence[int], int], Sequence[int]]


@dataclass
class Acceptance:
    """What a draft was worth, counted over all the calls that it is handed to.

    `rounds` is how often the model was run after the prompt; each gave one token of
    its own besides the `accepted` ones of the `drafted`.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """The share of the drafted tokens that were accepted; 0 if there were none."""
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_round(self) -> float:
        """Tokens for one pass over the model's weights; 1 without a draft."""
        return (self.rounds + self.accepted) / max(self.rounds, 1)


class Dice:
    """What a sampler draws from, and the one generator behind every draw of a call."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.generator = torch.Generator("cpu").manual_seed(sampler.seed)

    def probs(
        self, logits: Float[Tensor, "N V"], ids: Sequence[int]
    ) -> Float[Tensor, "N V"]:
        """Probabilities at N places in a row, the last of them after all of `ids`.

        Each place has a past of its own, which is what a repetition penalty looks at.
        Greedy decoding has one token with probability 1.
        """
        past = None
        if self.sampler.repetition_penalty != 1:
            ends = range(len(ids) - len(logits) + 1, len(ids) + 1)
            past = [list(ids[:end]) for end in ends]
        logits = self.sampler.limit(logits, past)
        if self.sampler.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter_(-1, best, 1)
        return logits.softmax(-1)

    def draw(self, weights: Float[Tensor, "V"]) -> int:
        """An id, with a probability in proportion to its weight."""
        if self.sampler.temperature == 0:
            return int(weights.argmax())
        return int(draw(weights[None], [self.generator]))

    def happens(self, probability: float) -> bool:
        """True with this probability; always from 1 on."""
        dart = torch.rand(1, generator=self.generator, dtype=torch.float64)
        return dart.item() < probability


class DraftModel:
    """A smaller model that guesses, and what it has read so far.

    One for a whole chat reads only what is new at each turn. Room is for `tokens`
    tokens (its whole context); where a text outgrows that, it guesses no more.
    """

    def __init__(self, model: Llama, tokens: int | None = None) -> None:
        self.model = model
        self.past = PrefixCache(model, tokens)

    def guess(
        self, ids: Sequence[int], count: int, dice: Dice
    ) -> tuple[list[int], list[Float[Tensor, "V"]]]:
        """Up to `count` ids that may follow, and what each was drawn from."""
        past, guessed, drawn_from = self.past, list[int](), list[Tensor]()
        # The last guess is never read.
        count = min(count, past.context - len(ids) + 1)
        if count < 1:
            return guessed, drawn_from
        device = float_weight(self.model).device
        tokens = torch.tensor([past.reuse(ids)], device=device)
        logits = prefill(self.model, tokens, past.caches, chunk=512)  # 1 V
        while True:
            [probs] = dice.probs(logits, past.ids)
            guessed.append(dice.draw(probs))
            drawn_from.append(probs)
            past.ids.append(guessed[-1])
            if len(guessed) == count:
                return guessed, drawn_from
            token = torch.tensor(guessed[-1:], device=device)
            logits = decode_step(self.model, token, past.caches)


def first_layers(model: Llama, n_layers: int) -> Llama:
    """The first layers of a model as a draft: it shares their weights.

    The norm and the output at the end are shared, too, though they were trained for
    what comes out of the last layer. Source: Zhang et al., arXiv 2309.08168, who choose
    the layers with more care.
    """
    whole = model.config.n_layers
    if not 1 <= n_layers <= whole:
        raise ValueError(
            f"n_layers is {n_layers}: the model has {whole} layers, so take 1 to "
            f"{whole}"
        )
    with torch.device("meta"):  # no memory: each part is replaced
        draft = Llama(replace(model.config, n_layers=n_layers))
    draft.tok_embeddings, draft.layers = model.tok_embeddings, model.layers[:n_layers]
    draft.norm, draft.output = model.norm, model.output
    return draft.eval()


def prompt_lookup(ids: Sequence[int], count: int, *, longest: int = 3) -> list[int]:
    """A draft without a model: what followed the last tokens where they came before.

    It looks for the last `longest` ids, then for fewer, down to one, and takes what
    stands after the first place where they are found. Good for a text that quotes its
    prompt: summaries, corrections, code.
    Source: Saxena, github.com/apoorvumang/prompt-lookup-decoding.
    """
    ids = list(ids)
    for size in range(min(longest, len(ids) - 1), 0, -1):
        sought = ids[-size:]
        end = ids.index(sought[-1]) + 1
        while end < len(ids):
            if ids[max(end - size, 0) : end] == sought:
                return ids[end : end + count]
            end = ids.index(sought[-1], end) + 1  # it stands at the very end, too
    return []


def residual(p: Float[Tensor, "V"], q: Float[Tensor, "V"]) -> Float[Tensor, "V"]:
    """What p has more of than q: max(p - q, 0), not normalised."""
    more = (p - q.to(p.device)).clamp(min=0)
    # Where the two differ by rounding alone, nothing may be left.
    return more if more.any() else p


def judge(
    p: Float[Tensor, "N V"],
    q: Sequence[Float[Tensor, "V"]],
    drafted: list[int],
    dice: Dice,
) -> list[int]:
    """The drafted ids up to the first that is rejected, and one more instead of it.

    An id x that was drawn from q is accepted with probability min(1, p(x) / q(x)), else
    replaced by one drawn from max(p - q, 0). So x comes out with probability
    min(p(x), q(x)) + max(p(x) - q(x), 0) = p(x): the share that is rejected is just
    what max(p - q, 0) sums to. If all are accepted, the row of p after them gives one
    more token. `p` has a row more than there are drafted ids.
    Source: Leviathan et al., arXiv 2211.17192, algorithm 1 and appendix A.1.
    """
    for i, id in enumerate(drafted):
        if not dice.happens(float(p[i, id]) / float(q[i][id])):
            return [*drafted[:i], dice.draw(residual(p[i], q[i]))]
    return [*drafted, dice.draw(p[-1])]


def speculate(
    model: Llama,
    draft: "Llama | DraftModel | Guess",
    ids: Sequence[int],
    *,
    draft_tokens: int = 4,
    max_new_tokens: int | None = 256,
    sampler: Choose | None = None,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: TextSource | None = None,
    top: int = 0,
    past: PrefixCache | None = None,
    chunk: int | None = 512,
    counts: Acceptance | None = None,
) -> Iterator[Step]:
    """Continue a prompt like `stream`, several tokens for one pass of the model.

    `draft` guesses up to `draft_tokens` tokens at a time: a model with the same
    vocabulary, or a function `(ids, count) -> ids` such as `prompt_lookup`. Greedy
    tokens are those of `stream`, but where two logits are so close that rounding
    decides: several rows at once are summed in another order than one. With a `sampler`
    the same seed gives other tokens than in `stream`, of the same distribution.

    `past` is what an earlier call has read (`ids` are then still the whole prompt).
    `counts` takes note of what was drafted and accepted.

    Raises ValueError at the call, like `stream`; also for a draft of another
    vocabulary, and a sampler that does not say what it draws from.
    """
    prompt = [int(id) for id in ids]
    size = model.config.vocab_size
    if past is not None and past.model is not model:
        raise ValueError("past was filled by another model: give each its own")
    count = check_request(
        model,
        [prompt],
        max_new_tokens=max_new_tokens,
        context=past.context if past else model.config.max_seq_len,
        top=top,
        chunk=chunk,
    )
    if draft_tokens < 1:
        raise ValueError(f"draft_tokens is {draft_tokens}: it must be at least 1")
    sampler = Sampler(temperature=0) if sampler is None else sampler
    if not isinstance(sampler, Sampler):
        raise ValueError(
            f"sampler is a {type(sampler).__name__}, which does not say what it draws "
            "from: give a Sampler, or use stream"
        )
    text = RowText(tokenizer, stop_strings)
    stops = frozenset(stop_ids)
    room = len(prompt) + count
    guess = _guesser(draft, size, room)
    past = past or PrefixCache(model, room)
    dice = Dice(sampler)
    counts = counts or Acceptance()

    def run() -> Iterator[Step]:
        device = float_weight(model).device
        tokens = torch.tensor([past.reuse(prompt)], device=device)
        logits = prefill(model, tokens, past.caches, chunk=chunk)  # 1 V
        drafted, q = list[int](), list[Tensor]()
        left = count
        while True:
            p = dice.probs(logits, [*past.ids, *drafted])
            new = judge(p, q, drafted, dice)
            counts.drafted += len(drafted)
            counts.accepted += len(new) - 1
            # What was rejected leaves the caches before anything else is noted: if this
            # is broken off, they hold nothing that `past.ids` contradicts.
            for cache in past.caches:
                cache.truncate(len(past.ids) + len(new) - 1)
            past.ids.extend(new)
            told = own_logprobs(
                logits[: len(new)], torch.tensor(new, device=device), top
            )
            for id, logprob, best in zip(new, *told, strict=True):
                left -= 1
                piece = text.push(id, last=left == 0, stop=id in stops)
                yield Step(id, piece, logprob, best)
                if text.ended:
                    return
            # The last token comes from the model itself: no guess can go past the end.
            drafted, q = guess(past.ids, min(draft_tokens, left - 1), dice)
            tokens = torch.tensor([[new[-1], *drafted]], device=device)
            with torch.inference_mode():
                logits = model(tokens, past.caches, None)[0]  # N V
            counts.rounds += 1

    return run()


def _guesser(
    draft: "Llama | DraftModel | Guess", vocab_size: int, room: int
) -> Callable[[list[int], int, Dice], tuple[list[int], list[Tensor]]]:
    """Any kind of draft as a function that says what its guesses were drawn from."""
    if isinstance(draft, Llama):
        draft = DraftModel(draft, min(room, draft.config.max_seq_len))
    if isinstance(draft, DraftModel):
        theirs = draft.model.config.vocab_size
        if theirs != vocab_size:
            raise ValueError(
                f"the draft has a vocabulary of {theirs} tokens and the model one of "
                f"{vocab_size}: take a draft with the model's own tokenizer"
            )
        return draft.guess

    def guess(ids: list[int], count: int, _: Dice) -> tuple[list[int], list[Tensor]]:
        guessed = [int(id) for id in draft(ids, count)][:count] if count else []
        strange = [id for id in guessed if not 0 <= id < vocab_size]
        if strange:
            raise ValueError(
                f"the draft guessed id {strange[0]}, and the vocabulary of this model "
                f"is 0 to {vocab_size - 1}: take a draft for the model's own tokenizer"
            )
        # A function is sure of its guess: all probability is there.
        return guessed, list(one_hot(torch.tensor(guessed).long(), vocab_size).float())

    return guess
