"""What may come next: the distribution after any prefix, and a tree of continuations.

The browser gets the likeliest logits one by one and the others in bins of nearly equal
ones: enough to compute there, at each move of a slider, what a sampler keeps.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillama.widgets.view import Answer, View, array

EXACT = 1000  # tokens whose logits are sent one by one
BINS = 512  # for all others
FLOOR = 40.0  # what lies that far (in nats) below the last of them is one bin
ALONG = 128  # tokens of the start whose surprise is shown
CHILDREN, LEVELS = 3, 2  # of the start, in a saved page
INSIDE = 8  # shorter prefixes of the start in it

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class _Next:
    """The distribution after one prefix; logits less the largest of them."""

    ids: np.ndarray  # the likeliest tokens, the likeliest first
    logits: np.ndarray  # theirs
    bins: np.ndarray  # of the rest: logits whose weight is the mean weight of a bin
    counts: np.ndarray  # how many tokens each bin has
    total: float  # ln of the sum of all weights
    entropy: float  # bits


class NextTokenView(View):
    """The next token's distribution, under a sampler's sliders, and a tree that grows.

    `next_logits` maps the ids so far to the V logits of the token after them, and
    `show_token` an id to its text; so it serves any model. `start_ids` is where it
    begins: a prompt, or a chat turn. The ids of `special` are marked as special tokens.
    `top` tokens are shown as bars. Each prefix costs one call, also each of the last
    128 of the start, whose surprise is shown.
    """

    name = "next_token"
    title = "Next token"

    def __init__(
        self,
        next_logits: Callable[[list[int]], Any],
        start_ids: Sequence[int],
        show_token: Callable[[int], str],
        *,
        special: Collection[int] = (),
        top: int = 50,
    ) -> None:
        self._next_logits, self._show_token = next_logits, show_token
        self._special = {int(id) for id in special}
        self._top = top
        self._size: int | None = None
        self._seen: dict[Prefix, _Next] = {}
        self._opened: dict[tuple[int, Prefix], None] = {}
        self._start: Prefix = ()
        super().__init__(lambda: self._begin(start_ids))

    def _begin(self, start_ids: Sequence[int]) -> dict[str, Any]:
        if not 1 <= self._top <= EXACT:
            raise ValueError(f"top is {self._top}: it must be from 1 to {EXACT}")
        self._start = _ids(start_ids)
        if not self._start:
            raise ValueError("the start is empty: give at least one token id")
        first = self._sent(self._start)
        assert self._size is not None
        if (high := max(self._start)) >= self._size:
            raise ValueError(
                f"the start has the id {high}, and next_logits gives {self._size} "
                f"logits, so ids go from 0 to {self._size - 1}: are both from the same "
                "model?"
            )
        return {
            "start": [self._token(id) for id in self._start],
            "first": first,
            "along": ALONG,
        }

    def answer(self, what: str, args: Mapping[str, Any]) -> Answer:
        if what == "opened":
            return {"nodes": [self._node(*key) for key in self._opened]}, []
        if what not in ("after", "along", "rank"):
            return super().answer(what, args)
        at, branch = int(args["at"]), _ids(args.get("branch", ()))
        if not 1 <= at <= len(self._start):
            raise ValueError(f"the start has no token {at}")
        prefix = self._start[:at] + branch
        if what == "along":
            after = self._after(prefix)
            logprob = self._logprob(prefix, self._start[at])
            return {"entropy": after.entropy, "logprob": logprob}, []
        if what == "rank":
            ranked = np.argsort(-self._logits(prefix), kind="stable")
            id = int(ranked[int(args["rank"])])
            return {**self._token(id), "logprob": self._logprob(prefix, id)}, []
        sent = self._sent(prefix)
        if branch:
            self._opened[at, branch] = None
        return sent, []

    def record(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """The branches opened so far, the top of the tree, and the start's surprises.

        A prefix for which `next_logits` fails is left out.
        """
        opened = dict(self._opened)
        try:
            yield "opened", {}
            yield from self._recorded(opened)
        finally:
            self._opened = opened  # answering for the page has opened nothing

    def _recorded(
        self, opened: Iterable[tuple[int, Prefix]]
    ) -> Iterable[tuple[str, Mapping[str, Any]]]:
        end = len(self._start)
        wanted: list[tuple[int, Prefix]]
        wanted = [(at, ()) for at in range(max(1, end - INSIDE), end + 1)]
        wanted += opened
        likely: list[Prefix] = [()]
        for _ in range(LEVELS):
            likely = [
                (*branch, int(id))
                for branch in likely
                if self._can(self._start + branch)
                for id in self._after(self._start + branch).ids[:CHILDREN]
            ]
            wanted += [(end, branch) for branch in likely]
        for at, branch in dict.fromkeys(wanted):
            if self._can(self._start[:at] + branch):
                yield "after", {"at": at, "branch": list(branch)}
        for at in range(max(1, end - ALONG), end):
            if self._can(self._start[:at]):
                yield "along", {"at": at}

    def words(self) -> str:
        first = self.data["first"]
        top = zip(first["texts"][:3], self._shares(), strict=False)
        shown = ", ".join(f"{text!r} {p:.1%}" for text, p in top)
        text = "".join(token["text"] for token in self.data["start"][-20:])
        return f"after {text!r}: {shown}; entropy {first['entropy']:.2f} bits"

    def draw(self) -> Any:
        """Bars of the likeliest tokens after the start."""
        from matplotlib.figure import Figure

        texts = [_marked(text) for text in self.data["first"]["texts"][:15]]
        shares = self._shares()[: len(texts)]
        figure = Figure(figsize=(7, 0.7 + 0.26 * len(texts)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(texts)), shares, color="#3182bd")
        for line, share in enumerate(shares):
            axes.text(share, line, f" {share:.1%}", va="center", fontsize=9)
        axes.set_yticks(range(len(texts)), texts, family="monospace", parse_math=False)
        axes.set_xlim(0, 1.15 * max(shares))
        axes.set_xlabel("probability of the next token")
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def _shares(self) -> list[float]:
        first = self._after(self._start)
        return np.exp(first.logits[: self._top] - first.total).tolist()

    def _token(self, id: int) -> dict[str, Any]:
        text = _called("show_token", self._show_token, id)
        if not isinstance(text, str):
            raise ValueError(
                f"show_token({id}) gave {text!r}: it must give the token's text"
            )
        return {"id": id, "text": text, "special": id in self._special}

    def _node(self, at: int, branch: Prefix) -> dict[str, Any]:
        logprob = self._logprob(self._start[:at] + branch[:-1], branch[-1])
        entropy = self._after(self._start[:at] + branch).entropy
        place = {"at": at, "branch": branch, "logprob": logprob, "entropy": entropy}
        return {**self._token(branch[-1]), **place}

    def _sent(self, prefix: Prefix) -> dict[str, Any]:
        after = self._after(prefix)
        shown = [self._token(int(id)) for id in after.ids[: self._top]]
        return {
            "ids": after.ids,
            "texts": [token["text"] for token in shown],
            "special": [i for i, token in enumerate(shown) if token["special"]],
            "logits": _short(after.logits),
            "bins": _short(after.bins),
            "counts": after.counts,
            "total": after.total,
            "entropy": after.entropy,
            "size": self._size,
        }

    def _after(self, prefix: Prefix) -> _Next:
        if prefix not in self._seen:
            self._seen[prefix] = _summary(self._logits(prefix))
        return self._seen[prefix]

    def _can(self, prefix: Prefix) -> bool:
        try:
            self._sent(prefix)
        except ValueError:
            return False
        return True

    def _logprob(self, prefix: Prefix, id: int) -> float:
        """Of one token after a prefix, in nats."""
        after = self._after(prefix)
        if (found := np.flatnonzero(after.ids == id)).size:
            return float(after.logits[found[0]] - after.total)
        logits = self._logits(prefix)
        return float(logits[id] - logits.max() - after.total)

    def _logits(self, prefix: Prefix) -> np.ndarray:
        given = _called("next_logits", self._next_logits, list(prefix))
        logits = array(given, "what next_logits gives")
        if logits.ndim != 1 or not logits.size:
            raise ValueError(
                f"next_logits gave an array of shape {logits.shape}: it must give V "
                "numbers, one a token; of a model's logits [B, T, V] take [0, -1]"
            )
        if self._size not in (None, logits.size):
            raise ValueError(
                f"next_logits gave {logits.size} numbers, and {self._size} before: it "
                "must give one for each token of the vocabulary"
            )
        bad = int((np.isnan(logits) | (logits == np.inf)).sum())
        if bad or not np.isfinite(logits.max()):
            raise ValueError(
                f"next_logits gave NaN or infinity {bad or logits.size} times in "
                f"{logits.size} numbers after {len(prefix)} tokens: the model's "
                "weights or its dtype are broken"
            )
        self._size = int(logits.size)
        return logits


def _ids(ids: Sequence[int]) -> Prefix:
    numbers = ids.tolist() if hasattr(ids, "tolist") else ids  # type: ignore[attr-defined]
    try:
        if all(int(id) == id >= 0 for id in numbers):
            return tuple(int(id) for id in numbers)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"start_ids is {str(ids)[:60]}: it must be one row of token ids; encode the "
        "text first"
    )


def _called(name: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """What a learner's function gives; whatever it raises becomes a sentence."""
    try:
        return function(argument)
    except Exception as error:
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error


def _summary(logits: np.ndarray) -> _Next:
    logits = logits - logits.max()
    weights = np.exp(logits)
    total = float(np.log(weights.sum()))
    likely = weights > 0
    mean = float(weights[likely] @ logits[likely] / weights.sum())
    # Equals are treated alike, so none of them is hidden in a bin.
    last = np.partition(logits, -min(EXACT, logits.size))[-min(EXACT, logits.size)]
    ids = np.flatnonzero(logits >= last)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    tail = logits[logits < last]
    bins, counts = _binned(tail[np.isfinite(tail)])
    # An impossible token is beyond every limit; JSON has no infinity.
    listed = np.maximum(logits[ids], -1e6)
    return _Next(ids, listed, bins, counts, total, (total - mean) / math.log(2))


def _binned(tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Many logits as few that weigh the same: exactly so at temperature 1."""
    if not tail.size:
        return np.zeros(0), np.zeros(0, dtype=int)
    below = tail.max() - tail
    width = max(min(float(below.max()), FLOOR) / BINS, 1e-9)
    place = np.minimum(below / width, BINS).astype(int)
    counts = np.bincount(place)
    weights = np.bincount(place, weights=np.exp(-np.minimum(below, 700)))
    full = counts > 0
    return tail.max() + np.log(weights[full] / counts[full]), counts[full]


def _short(values: np.ndarray) -> list[float]:
    """float32's digits and no more: half the text."""
    return [float(str(value)) for value in values.astype(np.float32)]


def _marked(text: str) -> str:
    return text.replace(" ", "·").replace("\n", "⏎")[:24] or "∅"
