"""A check that names the mistake.

It holds a reference and a list of named wrong versions. All run on the same inputs; the
wrong version whose results the learner's equal is the diagnosis. docs/writing_checks.md
shows how to write one.
"""

import copy
import inspect
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minillama.course import progress
from minillama.course.guard import (
    Look,
    TimeUp,
    call,
    functions,
    own_line,
    seed_of,
    settled,
    time_limit,
    unwritten,
)
from minillama.course.values import (
    Difference,
    Other,
    Raised,
    clean,
    difference,
    kind,
    show,
    snapshot,
)

Case = tuple[Any, ...]

_UNSTEADY = (
    "Called again with the same input, it gives another result: is something random, "
    "or kept from call to call?"
)


@dataclass(frozen=True)
class Result:
    """What a check found: its status in a word, and the text that is printed."""

    status: str
    message: str
    mistake: str | None = None  # the sentence of the wrong version that was recognised

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One exercise's check: `check(my_rope)` prints what is right or wrong with it.

    `inputs(rng)` gives the argument tuples, smallest first, its numbers drawn from the
    generator `rng`. `mistakes` maps a sentence to a wrong version, `solutions` are two
    or more right ones written differently. `adapt` turns what the learner hands in
    (always, if `reference` is a class) into a function of those arguments.
    """

    name: str
    title: str
    reference: Any
    mistakes: Mapping[str, Any]
    solutions: Sequence[Any] = ()
    inputs: Callable[[torch.Generator], Iterable[Case]] = lambda rng: [()]
    adapt: Callable[[Any], Callable[..., Any]] | None = None
    rtol: float = 1e-5
    atol: float = 1e-6
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+\.\d+[a-z]?", self.name):
            raise ValueError(f"a check is named like '3.1', not {self.name!r}")
        if inspect.isclass(self.reference) and self.adapt is None:
            raise ValueError(f"check {self.name}: a class needs `adapt`")

    def __call__(self, learner: Any, *, solution: bool = False) -> None:
        """Print the result, and note it in the learner's progress.

        The cell with the course's own solution says `solution=True`: it is noted as
        read, not as solved.
        """
        result = self.examine(learner)
        print(result.message)
        if result.status != "not attempted":
            state = "solution" if solution else "ok" if result.ok else "tried"
            progress.record(self.name, self.title, state)

    def examine(self, learner: Any) -> Result:
        """The result alone: nothing is printed, nothing is noted."""
        if callable(self.reference) and _is_library(learner, self.reference):
            sentence = "This is minillama's own. Hand in what you wrote yourself."
            return self._result("library", [sentence])
        # The second round of inputs belongs to this very source code: a table of the
        # first round's answers does not help.
        return self._examine(learner, (0, seed_of(learner)))

    def _examine(
        self, learner: Any, seeds: Sequence[int], *, early: bool = True
    ) -> Result:
        if early and (result := self._early(learner)):
            return result
        with settled():
            cases = self._cases(seeds)
            want = self._run(self.reference, cases)[0]
            try:
                with time_limit(self.seconds):
                    got, changed = self._run(learner, cases, quiet=False)
                    unsteady = self._unsteady(learner, cases, want, got)
            except TimeUp as late:
                return self._too_slow(own_line(late.__traceback__))
            found = [self._apart(w, g) for w, g in zip(want, got, strict=True)]
            failing = [i for i, difference in enumerate(found) if difference]
            # Where only the gradient is missing, the numbers say nothing of a mistake.
            wrong = [i for i, d in enumerate(found) if d and d.status != "gradient"]
            failing = wrong or failing
            if failing:
                first = found[failing[0]]
                assert first is not None
                absent = self._absent(learner, got, failing)
                if absent or unsteady:
                    return absent or self._result("not repeatable", [_UNSTEADY])
                return self._wrong(cases, got, failing, first, changed)
        if changed:
            sentence = f"It changes its input {changed} in place. Work on a copy."
            return self._result("mutated", [sentence])
        if unsteady:
            return self._result("not repeatable", [_UNSTEADY])
        return self._result("ok", [])

    def _early(self, learner: Any) -> Result | None:
        """What can be said before anything runs."""
        if learner is None or learner is ...:
            return self._not_attempted("nothing is handed in")
        if not callable(self.reference):
            return None
        for is_one, what in ((inspect.isclass, "class"), (callable, "function")):
            if is_one(self.reference) and not is_one(learner):
                sentence = f"Hand in the {what} itself; this is {kind(learner)}."
                return self._result("not callable", [sentence])
        if self.adapt is None:
            return self._signature(learner)
        return None

    def _signature(self, learner: Any) -> Result | None:
        try:
            signature = inspect.signature(learner)
        except (TypeError, ValueError):
            return None  # some built-in functions have none
        for case in self._cases((0,)):
            try:
                signature.bind(*case)
            except TypeError:
                names = ", ".join(self._names(case))
                takes = ", ".join(signature.parameters) or "nothing"
                sentence = f"It is called with ({names}), and yours takes ({takes})."
                return self._result("signature", [sentence])
        return None

    def _cases(self, seeds: Sequence[int]) -> list[Case]:
        rngs = (torch.Generator().manual_seed(seed) for seed in seeds)
        return [tuple(case) for rng in rngs for case in self.inputs(rng)]

    def _code(self, thing: Any) -> Callable[..., Any]:
        """The function of a case's arguments that `thing` stands for."""
        if not callable(self.reference):
            return lambda: thing
        adapt = self.adapt
        if adapt is None or inspect.isclass(self.reference) != inspect.isclass(thing):
            return thing
        return lambda *args: adapt(thing)(*args)

    def _run(
        self, thing: Any, cases: Sequence[Case], *, quiet: bool = True, seed: int = 0
    ) -> tuple[list[Any], str | None]:
        """The results, and the name of an argument that was changed."""
        code, changed = self._code(thing), None
        results: list[Any] = []
        for i, case in enumerate(cases):
            torch.default_generator.manual_seed(seed + i)
            random.seed(seed + i)
            np.random.seed(seed + i)  # noqa: NPY002 - the learner's code may use it
            own = snapshot(case)
            # What the learner's code prints is shown once, for the smallest input.
            results.append(call(code, own, quiet=quiet or i > 0))
            for name, before, after in zip(self._names(case), case, own, strict=True):
                if _changed(before, after):
                    changed = changed or name
        return results, changed

    def _unsteady(
        self, thing: Any, cases: Sequence[Case], want: list[Any], got: list[Any]
    ) -> bool:
        """Whether results change in another order, with other random states."""
        pairs = zip(want, got, strict=True)
        wrong = [i for i, pair in enumerate(pairs) if self._apart(*pair)]
        # Right results shall stay right, and a wrong one the same.
        again = wrong[:1] or range(len(cases))[::-1]
        second = self._run(thing, [cases[i] for i in again], seed=1000)[0]
        before = [got[i] if wrong else want[i] for i in again]
        pairs = zip(before, second, strict=True)
        return any(self._apart(*pair) for pair in pairs)

    def _apart(self, want: Any, got: Any, times: float = 1.0) -> Difference | None:
        return difference(want, got, times * self.rtol, times * self.atol)

    def _absent(
        self, learner: Any, got: list[Any], failing: list[int]
    ) -> Result | None:
        """A stub, or a result that never comes."""
        name = clean(str(getattr(learner, "__name__", "it")))
        if empty := unwritten(learner):
            whole = name if empty in (name, "<lambda>") else f"{name}.{empty}"
            return self._not_attempted(f"{whole} is still empty")
        todo = [g for g in got if type(g) is Raised and g.status == "not attempted"]
        if todo:
            return self._not_attempted(
                todo[0].where or f"{name} is still to be written"
            )
        if any(g is ... for g in got):
            return self._not_attempted(f"{name} gives ...")
        if len(failing) == len(got) and all(g is None for g in got):
            return self._result("none", ["It gives None. Is the `return` missing?"])
        return None

    def _wrong(
        self,
        cases: list[Case],
        got: list[Any],
        failing: list[int],
        first: Difference,
        changed: str | None,
    ) -> Result:
        at = failing[0]
        mistake, explained = None, 0
        if first.status != "gradient":
            mistake, explained = self._diagnose(cases, got, failing)
        lines = list(first.lines)
        if mistake:
            lines.insert(0, mistake)
        elif first.status == "wrong":
            lines.insert(
                0, "The result differs, in a way that this check has no name for."
            )
        else:
            lines[0] = lines[0][0].upper() + lines[0][1:]
        if mistake and explained < len(failing):
            inputs = f"{explained} of {len(failing)} wrong results"
            lines.append(f"That explains {inputs}; something else is wrong as well.")
        if right := len(cases) - len(failing):
            lines.append(f"{right} of {len(cases)} inputs come out right already.")
        if changed:
            lines.append(f"It also changes its input {changed} in place.")
        case = cases[at]
        if case:
            lines.append("smallest input that shows it:")
            pairs = zip(self._names(case), case, strict=True)
            lines += [f"  {name} = {show(value)}" for name, value in pairs]
        elif not callable(self.reference):  # the answer is not given away
            yours = show(got[0], digits=17)
            lines = [*([mistake] if mistake else lines[:1]), f"yours: {yours}"]
        known = mistake and first.status != "exception"
        return self._result("mistake" if known else first.status, lines, mistake)

    def _diagnose(
        self, cases: list[Case], got: list[Any], failing: list[int]
    ) -> tuple[str | None, int]:
        """The wrong version with the learner's results, and how many it explains.

        At best it agrees on all inputs, else on all failing ones: whoever is right for
        one head and wrong for several has made the mistake too. Else on the smallest
        failing one and half of the others: then there is a second mistake.
        """
        best, most = None, (len(failing) - 1) // 2
        for sentence, mistake in self.mistakes.items():
            agreed = {
                i for i in failing if not self._departs(mistake, cases[i], got[i])
            }
            if len(agreed) == len(failing):
                pairs = zip(cases, got, strict=True)
                if not any(self._departs(mistake, *pair) for pair in pairs):
                    return sentence, len(failing)
            if failing[0] in agreed and len(agreed) > most:
                best, most = sentence, len(agreed)
        return best, most

    def _departs(self, mistake: Any, case: Case, got: Any) -> bool:
        found = self._apart(self._run(mistake, [case])[0][0], got)
        return found is not None and found.status != "gradient"

    def _too_slow(self, where: str) -> Result:
        sentence = f"Still running after {self.seconds:g} s. Does a loop never end?"
        return self._result("too slow", [sentence, *([where] if where else [])])

    def _not_attempted(self, why: str) -> Result:
        text = f"not attempted yet: {self.name} {self.title} ({why})"
        return Result("not attempted", text)

    def _result(
        self, status: str, lines: list[str], mistake: str | None = None
    ) -> Result:
        if status == "ok":
            return Result("ok", f"ok: {self.name} {self.title}")
        head, *rest = lines
        text = [f"not yet: {self.name} {self.title}", f"look: {head}"]
        return Result(status, "\n".join([*text, *(f"  {r}" for r in rest)]), mistake)

    def _names(self, case: Case) -> list[str]:
        code = self.adapt(self.reference) if self.adapt else self.reference
        names = list(inspect.signature(code).parameters) if case else []
        return [names[i] if i < len(names) else f"input {i}" for i in range(len(case))]

    def self_test(self) -> None:
        """Prove that this check tells right from wrong, and each wrong from the others.

        Raises AssertionError with all defects: an undiagnosed or ambiguous mistake, a
        right solution that is refused, inputs too much alike.
        """
        defects = [f"{self.name}: {each}" for each in dict.fromkeys(self._defects())]
        if defects:
            raise AssertionError("\n".join(defects))

    def _defects(self) -> Iterable[str]:
        if len(self.mistakes) < 5:
            yield f"{len(self.mistakes)} mistakes, at least 5 are needed"
        for sentence in self.mistakes:
            if len(sentence) < 20 or sentence[-1] not in ".?!":
                yield f"no whole sentence: {sentence!r}"
        if callable(self.reference):
            yield from self._poor_inputs()
            if len(self.solutions) < 2:
                yield f"{len(self.solutions)} solutions, at least 2 are needed"
        for seed in (1, 2):
            for right in (self.reference, *self.solutions):
                if not (result := self._examine(right, (0, seed))).ok:
                    yield f"a right solution is refused: {result.message}"
            for sentence, wrong in self.mistakes.items():
                result = self._examine(wrong, (0, seed), early=False)
                if result.mistake != sentence:
                    yield f"{sentence!r} is reported as: {result.message}"
            for lazy in self._lazy():
                if (result := self._examine(lazy, (0, seed), early=False)).ok:
                    yield "an answer that ignores its input passes"
        if (status := self.examine(_stub).status) not in (
            "not attempted",
            "not callable",
        ):
            yield f"an empty function is reported as {status!r}"

    def _lazy(self) -> Iterable[Callable[..., Any]]:
        if callable(self.reference):
            with settled():
                answer = self._run(self.reference, self._cases((0,))[:1])[0][0]
            yield lambda *args: copy.deepcopy(answer)
            yield lambda *args: args[0]

    def _poor_inputs(self) -> Iterable[str]:
        with settled():
            cases = self._cases((0,))
            want = self._run(self.reference, cases)[0]
            for strange in {kind(w) for w in want if type(w) is Other}:
                yield f"the reference gives {strange}: let adapt turn it into values"
            if len(cases) < 3:
                yield f"{len(cases)} inputs, at least 3 are needed"
            sizes = [[_size(value) for value in case] for case in cases]
            if all(size == sizes[0] for size in sizes):
                yield "all inputs are of one size"
            for sentence, mistake in self.mistakes.items():
                wrong = self._run(mistake, cases)[0]
                pairs = zip(want, wrong, strict=True)
                if not any(self._apart(w, m, times=10) for w, m in pairs):
                    yield f"{sentence!r} hardly differs from the reference"


def fill(module: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """Put these weights into a learner's module, by name; other names are reported."""
    if not isinstance(module, nn.Module):
        raise Look("type", f"It gives {kind(module)}; it should be an nn.Module.")
    own = dict(module.named_parameters())
    for name, weight in weights.items():
        if name not in own:
            extra = [n for n in own if n not in weights]
            has = ", ".join(extra or own) or "none"
            plain = isinstance(_dig(module, name), Tensor)
            hint = (
                "a tensor, but no nn.Parameter" if plain else f"not there (has {has})"
            )
            raise Look("parameters", f"The parameter `{name}` is {hint}.")
        if own[name].shape != weight.shape:
            shapes = f"{tuple(own[name].shape)}, it should be {tuple(weight.shape)}"
            raise Look("parameters", f"The parameter `{name}` has shape {shapes}.")
    if extra := [name for name in own if name not in weights]:
        raise Look("parameters", f"Llama has no parameter `{extra[0]}` here.")
    for name, weight in weights.items():
        own[name].data = weight.detach().clone()
    return module


def _dig(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _is_library(learner: Any, reference: Any) -> bool:
    """Whether this is minillama's own: renamed, bound, or inherited unchanged."""
    while isinstance(learner, partial):
        learner = learner.func
    while inspect.isclass(learner) and not functions(learner).keys() - {"__init__"}:
        if learner.__base__ is None:
            break
        learner = learner.__base__
    home = str(getattr(learner, "__module__", "")).split(".")
    return learner is reference or (home[0] == "minillama" and home[1:2] != ["course"])


def _changed(before: Any, after: Any) -> bool:
    if type(before) not in (Tensor, list, dict, set, tuple):
        return False
    try:
        return difference(before, after) is not None
    except TypeError:  # holds something that is no value: a module, a config
        return False


def _size(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return len(value) if hasattr(value, "__len__") else value


def _stub(*args: Any) -> Any: ...
