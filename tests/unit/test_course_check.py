"""Checks: each kind of wrong answer is told apart, and none is called right."""

import random
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minillama.course.check import Check, Look, fill
from minillama.course.guard import TimeUp, seed_of, time_limit
from minillama.norm import RMSNorm
from minillama.rope import apply_rope


@pytest.fixture(autouse=True)
def _no_progress(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILLAMA_PROGRESS", str(tmp_path / "progress.json"))


def scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor


def inputs(rng):
    yield torch.tensor([1.0, 2.0]), 3.0
    for shape in ((3,), (2, 3), (4, 2, 5)):
        yield torch.randn(shape, generator=rng) + 2, 2.0


MISTAKES = {
    "It adds the factor. Llama multiplies by it.": lambda x, factor: x + factor,
    "It divides by the factor. Llama multiplies by it.": lambda x, factor: x / factor,
    "The factor is not used. Llama multiplies by it.": lambda x, factor: x + 0,
    "It multiplies twice. Llama does it once only.": lambda x, factor: x * factor**2,
    "It gives a number a row. Llama keeps all numbers.": lambda x, factor: (
        x.sum(-1) * factor
    ),
    "It is right for one axis, for more it takes the first row.": lambda x, factor: (
        (x * factor) if x.dim() == 1 else (x[:1] * factor).expand_as(x)
    ),
    "It wants exactly one axis. Llama takes any number.": lambda x, factor: (
        torch.dot(x, torch.ones(x.shape)) * 0 + x * factor
    ),
}

check = Check(
    name="9.1",
    title="scaled",
    reference=scaled,
    inputs=inputs,
    mistakes=MISTAKES,
    solutions=(lambda x, factor: factor * x, lambda x, factor: torch.mul(x, factor)),
)


class Lying(Tensor):
    """A tensor that says yes to every comparison."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.isclose, torch.equal, Tensor.eq):
            return torch.ones(1, dtype=torch.bool)
        return super().__torch_function__(func, types, args, kwargs or {})


def empty(x, factor): ...


def documented(x, factor):
    """Only a docstring."""


def passes(x, factor):
    pass


def dots(x, factor):
    return ...


def todo(x, factor):
    raise NotImplementedError


def half_done(x, factor):
    y = ...
    return x * y


def no_return(x, factor):
    x * factor


def in_place(x, factor):
    return x.mul_(factor)


def adds(x, factor):
    return x + factor


def endless(x, factor):
    while True:
        x = x + 1


def bad_loop(x, factor):
    out = []
    for i in range(len(x) + 1):
        out.append(x[i] * factor)
    return torch.stack(out)


calls = []


def by_call(x, factor):
    calls.append(1)
    return x * factor if len(calls) <= 8 else x


def first_round_only(x, factor):
    rng = torch.Generator().manual_seed(0)
    known = {tuple(a.shape): a * f for a, f in inputs(rng)}
    return known[tuple(x.shape)].clone()


def one_size(x, factor):
    return x * factor if x.dim() == 1 else x * 2 * factor / factor * 1.5


def random_too(x, factor):
    return x * factor + torch.rand(x.shape)


class Speechless(Exception):
    def __str__(self):
        raise ValueError

    @classmethod
    def cry(cls):
        raise cls


def quits(x, factor):
    raise SystemExit


@pytest.mark.parametrize(
    ("learner", "status", "part"),
    [
        (None, "not attempted", "nothing is handed in"),
        (..., "not attempted", "nothing is handed in"),
        (empty, "not attempted", "(empty is still empty)"),
        (documented, "not attempted", "documented is still empty"),
        (passes, "not attempted", "passes is still empty"),
        (dots, "not attempted", "dots is still empty"),
        (lambda x, factor: None, "not attempted", "still empty"),
        (todo, "not attempted", "raise NotImplementedError"),
        (half_done, "not attempted", "return x * y"),
        (no_return, "none", "`return` missing"),
        (3, "not callable", "this is an int"),
        (lambda x: x, "signature", "called with (x, factor), and yours takes (x)"),
        (scaled, "library", "Hand in what you wrote yourself"),
        (apply_rope, "library", "Hand in what you wrote yourself"),
        (partial(scaled), "library", "Hand in what you wrote yourself"),
        (lambda x, factor: Speechless.cry(), "exception", "look: Speechless"),
        (adds, "mistake", "look: It adds the factor. Llama multiplies by it."),
        (lambda x, factor: x * factor + 1, "wrong", "no name for"),
        (lambda x, factor: (x * factor).tolist(), "type", "a list, it should be a Ten"),
        (lambda x, factor: (x * factor).numpy(), "type", "a numpy ndarray"),
        (lambda x, factor: (x * factor).as_subclass(Lying), "type", "a Lying"),
        (lambda x, factor: (x + 1).as_subclass(Lying), "type", "a Lying"),
        (lambda x, factor: (x * factor)[None], "shape", "(1, 2), it should be (2,)"),
        (lambda x, factor: (x * factor).double(), "dtype", "float64, it should be flo"),
        (lambda x, factor: (x * factor).long(), "dtype", "int64, it should be float3"),
        (lambda x, factor: x * factor * torch.nan, "nan", "nan at [0], it should be 3"),
        (lambda x, factor: x * factor / 0, "nan", "inf at [0], it should be 3"),
        (lambda x, factor: (x * factor).to("meta"), "type", "a Tensor on meta"),
        (lambda x, factor: (x * factor).to_sparse(), "type", "sparse"),
        (in_place, "mutated", "changes its input x in place"),
        (bad_loop, "exception", "in bad_loop, line"),
        (quits, "exception", "SystemExit"),
        (by_call, "not repeatable", "Called again"),
        (random_too, "not repeatable", "Called again"),
        (first_round_only, "wrong", "5 of 8 inputs"),
        (one_size, "wrong", "4 of 8 inputs come out right already"),
        (partial(adds), "mistake", "It adds the factor"),
    ],
)
def test_each_kind_of_answer_has_its_name(learner, status, part):
    calls.clear()
    result = check.examine(learner)
    assert (result.status, part in result.message) == (status, True), result.message
    assert not result.ok


@pytest.mark.parametrize(
    "learner",
    [
        lambda x, factor: factor * x,
        partial(lambda scale, x, factor: scale * factor * x, 1.0),
        lambda x, factor: (torch.stack((x, x)) * factor)[0],  # a view of its own tensor
        lambda *args: args[0] * args[1],
        lambda x, factor: torch.as_tensor(np.float32(factor) * x.numpy()),
    ],
)
def test_right_answers_written_differently(learner):
    assert check.examine(learner).message == "ok: 9.1 scaled"


def test_the_whole_text_of_a_diagnosis(capsys):
    check(adds)
    assert capsys.readouterr().out == (
        "not yet: 9.1 scaled\n"
        "look: It adds the factor. Llama multiplies by it.\n"
        "  yours:     [4, 5]\n"
        "  should be: [3, 6]\n"
        "  smallest input that shows it:\n"
        "    x = [1, 2]\n"
        "    factor = 3\n"
    )


def test_the_smallest_failing_input_is_shown_and_partial_mistakes_are_found():
    result = check.examine(
        lambda x, factor: x * factor if x.dim() < 2 else (x[:1] * factor).expand_as(x)
    )
    assert result.mistake == list(MISTAKES)[5]
    assert "4 of 8 inputs come out right already." in result.message
    # Wrong on one kind of input as the mistake is, and right where that is wrong too.
    result = check.examine(lambda x, factor: x + factor if x.dim() == 3 else x * factor)
    assert result.mistake == next(iter(MISTAKES))
    assert "6 of 8 inputs" in result.message
    assert "x = a Tensor (4, 2, 5) of float32" in result.message


def test_one_of_two_mistakes_is_named_and_the_other_announced():
    def both(x, factor):
        return x + factor if x.dim() < 3 else x * 7

    result = check.examine(both)
    assert result.mistake == next(iter(MISTAKES))
    assert "That explains 6 of 8 wrong results; something else" in result.message
    few = check.examine(lambda x, factor: x * 7 if x.shape == (2,) else x + factor)
    assert few.mistake is None  # the smallest input is not explained
    few = check.examine(lambda x, factor: x + factor if x.shape == (2,) else x * 7)
    assert few.mistake is None  # nor are the most


def test_an_exception_is_the_learners_own_line_and_nothing_of_ours():
    result = check.examine(bad_loop)
    assert result.status == "exception"
    assert "IndexError: index 2 is out of bounds" in result.message
    assert "out.append(x[i] * factor)" in result.message
    assert "minillama" not in result.message
    assert "Traceback" not in result.message


def test_an_exception_deep_in_a_library_is_shown_at_the_learners_line():
    def deep(x, factor):
        return nn.functional.one_hot(x) + nn.Linear(2, 3)(x)

    def deeper(x, factor):
        return nn.Linear(99, 1)(x)

    for learner in (deep, deeper):
        message = check.examine(learner).message
        assert f"  in {learner.__name__}, line" in message
        assert "forward" not in message


def test_an_exception_that_a_mistake_raises_too_is_named():
    result = check.examine(
        lambda x, factor: x * factor + 0 * torch.dot(x, torch.ones(x.shape))
    )
    assert result.status == "exception"
    assert result.mistake == list(MISTAKES)[6]
    assert "RuntimeError: 1D tensors expected" in result.message


def test_text_from_the_learner_is_one_printable_line():
    def loud(x, factor):
        raise error

    error = ValueError("\x1b[31mred <b>\nsecond line at 0x7f00aa")
    message = check.examine(loud).message
    assert "\x1b" not in message
    assert "second" not in message
    assert "ValueError: [31mred <b>" in message


def eats_one(x, factor):
    try:
        endless(x, factor)
    except:  # noqa: E722
        return endless(x, factor)


@pytest.mark.parametrize("learner", [endless, eats_one])
def test_an_endless_loop_is_stopped(learner):
    started = time.monotonic()
    result = replace(check, seconds=0.2).examine(learner)
    assert result.status == "too slow"
    assert "in endless, line" in result.message
    assert time.monotonic() - started < 10


def test_an_endless_loop_is_stopped_in_any_thread():
    found = []
    quick = replace(check, seconds=0.2)
    thread = threading.Thread(target=lambda: found.append(quick.examine(endless)))
    thread.start()
    thread.join(20)
    assert found[0].status == "too slow"


def test_a_time_limit_that_is_kept_leaves_nothing_behind():
    for _ in range(20):
        with time_limit(0.05):
            pass
    time.sleep(0.3)
    with pytest.raises(TimeUp), time_limit(0.05):
        endless(0, 0)


def test_an_endless_generator_is_cut():
    numbers = Check(
        name="9.2",
        title="numbers",
        reference=lambda n: iter(range(n)),
        inputs=lambda rng: [(3,), (5,)],
        mistakes={},
    )

    def forever(n):
        i = -1
        while True:
            yield (i := i + 1)

    assert numbers.examine(forever).status == "wrong"
    assert "10000 items, not 3" in numbers.examine(forever).message
    assert numbers.examine(lambda n: (i for i in range(n))).ok
    assert "a list, it should be a generator" in (
        numbers.examine(lambda n: list(range(n))).message
    )


def test_what_is_outside_stays_as_it_was():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    want = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def meddles(x, factor):
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return x * factor

    assert check.examine(meddles).ok
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    got = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert torch.equal(got[0], want[0])
    assert got[1:] == want[1:]


def test_a_default_device_set_outside_does_not_matter():
    torch.set_default_device("meta")
    try:
        assert check.examine(lambda x, factor: factor * x).ok
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


def test_a_default_dtype_set_outside_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        assert check.examine(lambda x, factor: factor * x).ok
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("coin", [random.random, np.random.rand, torch.rand])
def test_the_text_is_the_same_each_time_though_the_learners_code_is_random(coin):
    size = (1,) if coin is torch.rand else ()

    def tosses(x, factor):
        return x * factor if float(coin(*size)) < 0.7 else x

    texts = set()
    for _ in range(8):
        coin(*size)  # another state outside
        texts.add(check.examine(tosses).message)
    assert len(texts) == 1


def test_prints_are_shown_once(capsys):
    def chatty(x, factor):
        print("shape", tuple(x.shape))
        return x * factor

    check(chatty)
    assert capsys.readouterr().out == "shape (2,)\nok: 9.1 scaled\n"


def test_the_seed_changes_with_the_source():
    def one(x):
        return x + 1

    def two(x):
        return x + 2

    assert seed_of(one) != seed_of(two)
    assert seed_of(one) == seed_of(one)
    assert isinstance(seed_of(3), int)


# Classes


class Plain(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


def norm_of(cls):
    def norm(x, weight):
        return fill(cls(weight.shape[0], 1e-2), {"weight": weight})(x)

    return norm


def norm_inputs(rng):
    for shape in ((2,), (3, 4), (2, 3, 6)):
        x = torch.randn(shape, generator=rng)
        yield x, torch.rand(shape[-1], generator=rng)


norm_check = Check(
    name="9.3",
    title="norm",
    reference=RMSNorm,
    adapt=norm_of,
    inputs=norm_inputs,
    mistakes={
        "The weight is not used. Llama multiplies by it.": lambda x, weight: norm_of(
            RMSNorm
        )(x, torch.ones_like(weight))
    },
    solutions=(Plain,),
)


class NoWeight(Plain):
    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


class Stub(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x): ...


class EmptyInit(nn.Module):
    def __init__(self, dim, eps): ...


class Tensors(Plain):
    def __init__(self, dim, eps):
        nn.Module.__init__(self)
        self.eps, self.weight = eps, torch.ones(dim)


class Renamed(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))


class Extra(Plain):
    def __init__(self, dim, eps):
        super().__init__(dim, eps)
        self.bias = nn.Parameter(torch.zeros(dim))


class Misshapen(Plain):
    def __init__(self, dim, eps):
        super().__init__(1, eps)


class Detached(Plain):
    def forward(self, x):
        return super().forward(x).detach()


class Inherits(RMSNorm):
    def __init__(self, dim, eps):
        super().__init__(dim, eps)


class Forgetful(nn.Module):
    def __init__(self, dim, eps):
        self.weight = nn.Parameter(torch.ones(dim))


@pytest.mark.parametrize(
    ("learner", "status", "part"),
    [
        (Plain, "ok", "ok: 9.3 norm"),
        (NoWeight, "mistake", "The weight is not used"),
        (Stub, "not attempted", "Stub.forward is still empty"),
        (EmptyInit, "not attempted", "EmptyInit.__init__ is still empty"),
        (Tensors, "parameters", "`weight` is a tensor, but no nn.Parameter"),
        (Renamed, "parameters", "`weight` is not there (has scale)"),
        (Extra, "parameters", "no parameter `bias` here"),
        (Misshapen, "parameters", "shape (1,), it should be (2,)"),
        (Detached, "gradient", "no gradient flows back"),
        (Forgetful, "exception", "before Module.__init__() call"),
        (Plain(2, 1e-2), "not callable", "Hand in the class itself"),
        (RMSNorm, "library", "minillama's own"),
        (type("Mine", (RMSNorm,), {}), "library", "minillama's own"),
        (Inherits, "library", "minillama's own"),
        (int, "exception", "TypeError"),
        (object, "exception", "TypeError"),
    ],
)
def test_classes(learner, status, part):
    result = norm_check.examine(learner)
    assert (result.status, part in result.message) == (status, True), result.message


def test_a_missing_gradient_is_no_mistake_that_comes_near():
    """A wrong version that is right on most inputs does not explain it."""
    traced = replace(
        check,
        inputs=lambda rng: [
            (x.requires_grad_(), factor)
            for x, factor in (*inputs(rng), (-torch.ones(2), 2.0))
        ],
        mistakes={"Negative ones are cut off.": lambda x, factor: x.relu() * factor},
    )
    result = traced.examine(lambda x, factor: x.detach() * factor)
    assert (result.status, result.mistake) == ("gradient", None), result.message


def test_adapt_can_report_for_itself():
    def adapt(thing):
        def run(x):
            raise Look("parameters", "There is no method `truncate`.")

        return run

    own = replace(check, adapt=adapt, inputs=lambda rng: [(1,)])
    assert "Look" not in own.examine(lambda x: x).message
    assert own.reference is scaled


# Numbers, strings, refusals


def test_a_number_is_not_given_away():
    count = Check(
        name="9.4",
        title="count",
        reference=8030,
        mistakes={"The output matrix is left out. It counts too.": 7504},
    )
    assert count.examine(8030).ok
    assert (
        count.examine(7504).mistake == "The output matrix is left out. It counts too."
    )
    for wrong in (7504, 8031, 8030.5, "8030", True):
        result = count.examine(wrong)
        assert not result.ok
        assert "8030" not in result.message.replace(repr(wrong), "")
    assert count.examine(...).status == "not attempted"


def test_integers_are_exact_and_numbers_show_the_digits_that_differ():
    ids = Check(
        name="9.7",
        title="ids",
        reference=lambda n: (torch.tensor([128_000, n]), [1.0 * n]),
        inputs=lambda rng: [(4,), (5,)],
        mistakes={},
    )
    result = ids.examine(lambda n: (torch.tensor([128_001, n]), [1.0 * n]))
    assert "  in item 0:\n  yours:     [128001, 4]\n" in result.message
    result = ids.examine(lambda n: (torch.tensor([128_000, n]), [1.0001 * n]))
    assert "yours:     [4.0004]\n  should be: [4]\n" in result.message


def test_no_address_is_printed():
    odd = replace(check, inputs=lambda rng: [(object(), print)], rtol=1e-4)
    odd = replace(odd, reference=lambda x, factor: 1)
    message = odd.examine(lambda x, factor: 2 if x else 3).message
    assert "x = <object object>\n    factor = <built-in function print>" in message


def test_strings_show_the_first_character_that_differs():
    text = Check(
        name="9.5",
        title="text",
        reference=lambda n: "a" * 30 + "b" * n,
        inputs=lambda rng: [(1,), (2,)],
        mistakes={},
    )
    result = text.examine(lambda n: "a" * 30 + "c" * n)
    assert "from character 10" in result.message
    assert "aaac'" in result.message


def test_a_refusal_is_expected_where_the_reference_refuses():
    def refuse(n):
        if n > 2:
            raise ValueError(f"{n} is too many: at most 2")
        return n

    room = Check(
        name="9.6",
        title="room",
        reference=refuse,
        inputs=lambda rng: [(1,), (3,)],
        mistakes={},
    )
    assert room.examine(lambda n: refuse(n)).ok
    silent = room.examine(lambda n: n + 0)
    assert silent.status == "no exception"
    assert "It gives 3, it should raise ValueError." in silent.message


# The self-test


def test_a_good_check_passes_its_own_test():
    check.self_test()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"mistakes": dict(list(MISTAKES.items())[:4])}, "4 mistakes, at least 5"),
        ({"solutions": (torch.mul,)}, "1 solutions, at least 2"),
        (
            {"solutions": (torch.mul, lambda x, factor: x * factor + 1e-3)},
            "a right solution is refused",
        ),
        (
            {"mistakes": MISTAKES | {"The same again. Llama does not.": adds}},
            "'The same again. Llama does not.' is reported as",
        ),
        (
            {"mistakes": MISTAKES | {"No mistake at all. It is right.": torch.mul}},
            "'No mistake at all. It is right.' is reported as: ok",
        ),
        (
            {"mistakes": MISTAKES | {"Off by very little.": lambda x, f: x * f + 1e-5}},
            "'Off by very little.' hardly differs",
        ),
        ({"mistakes": MISTAKES | {"bad": lambda x, f: x * 7}}, "no whole sentence"),
        ({"reference": lambda x, factor: None}, "an empty function is reported as"),
        ({"reference": lambda x, factor: x.numpy()}, "let adapt turn it into values"),
        ({"inputs": lambda rng: list(inputs(rng))[:2]}, "2 inputs, at least 3"),
        (
            {"inputs": lambda rng: [(torch.ones(2) + i, 2.0) for i in range(4)]},
            "all inputs are of one size",
        ),
        (
            {"inputs": lambda rng: [(torch.zeros(n), 2.0) for n in range(4)]},
            "an answer that ignores its input passes",
        ),
    ],
)
def test_a_defect_of_a_check_is_found(change, part):
    with pytest.raises(AssertionError) as found:
        replace(check, **change).self_test()
    assert part in str(found.value)


def test_a_check_with_a_bad_name_or_a_class_without_adapt_is_refused():
    with pytest.raises(ValueError, match=r"named like '3\.1'"):
        replace(check, name="three")
    with pytest.raises(ValueError, match="needs `adapt`"):
        replace(norm_check, adapt=None)
