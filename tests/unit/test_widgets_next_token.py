"""The next-token view without a browser: what it sends, stores, refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from minillama.widgets import NextTokenView
from minillama.widgets.view import View

V = 5000


def logits(ids: list[int]) -> np.ndarray:
    """Another row of logits after each prefix, spread as a model's are."""
    return 3 * np.random.default_rng(ids).standard_normal(V)


def letter(id: int) -> str:
    return f"t{id}"


def view(start: Any = (1, 2, 3), **options: Any) -> NextTokenView:
    return NextTokenView(logits, start, letter, **options)


def test_what_is_sent_gives_the_sums_of_all_tokens() -> None:
    sent, _ = view().answer("after", {"at": 2, "branch": [7]})
    row = torch.tensor(logits([1, 2, 7]))
    ids = row.argsort(descending=True)
    assert list(sent["ids"]) == ids[:1000].tolist()
    assert sent["texts"] == [f"t{id}" for id in ids[:50].tolist()]
    assert sum(sent["counts"]) == V - 1000
    for heat, tolerance in ((1, 1e-6), (2, 1e-5), (0.3, 1e-6), (0.7, 1e-6)):
        mine = sum(np.exp(np.array(sent["logits"]) / heat)) + sum(
            np.array(sent["counts"]) * np.exp(np.array(sent["bins"]) / heat)
        )
        theirs = ((row - row.max()) / heat).exp().sum().item()
        assert abs(mine / theirs - 1) < tolerance, heat
    probs = torch.distributions.Categorical(logits=row)
    assert sent["entropy"] == pytest.approx(probs.entropy().item() / np.log(2))
    p = np.exp(np.array(sent["logits"]) - sent["total"])
    assert_close(p, probs.probs[ids[:1000]].numpy(), atol=1e-7, rtol=1e-6)


def test_equal_logits_are_all_sent() -> None:
    flat = NextTokenView(lambda ids: np.zeros(3000), [1], letter)
    assert len(flat.data["first"]["ids"]) == 3000
    assert flat.data["first"]["entropy"] == pytest.approx(np.log2(3000))


def test_what_is_impossible_or_nearly_so() -> None:
    row = np.full(2000, -np.inf)
    row[5], row[6] = 1.0, 0.0
    sent = NextTokenView(lambda ids: row, [1], letter).data["first"]
    assert sent["ids"][:2] == [5, 6]
    assert sent["counts"] == []
    assert max(sent["logits"][2:]) < -1e5
    row = np.concatenate([np.zeros(1000), -np.ones(500), np.full(500, -1e30)])
    sent = NextTokenView(lambda ids: row, [1], letter).data["first"]
    assert sent["counts"] == [500, 500]
    assert sent["bins"][0] == -1


def test_along_and_rank() -> None:
    it = view()
    after = torch.tensor(logits([1])).log_softmax(-1)
    along, _ = it.answer("along", {"at": 1})
    assert along["logprob"] == pytest.approx(after[2].item())
    far, _ = it.answer("rank", {"at": 1, "branch": [], "rank": 4321})
    assert far["id"] == after.argsort(descending=True)[4321].item()
    assert far["logprob"] == pytest.approx(after[far["id"]].item())


def test_the_record_leaves_no_trace() -> None:
    it = view(range(1, 20))
    it.answer("after", {"at": 19, "branch": [9]})
    it.answer("after", {"at": 4, "branch": [8]})
    for _ in range(2):
        stored = list(it.record())
        for what, args in stored:
            it.answer(what, args)
        [(_, nodes)] = [(w, it.answer(w, a)[0]["nodes"]) for w, a in stored[:1]]
        # As to_html does it: each answered before the next is asked for.
        for what, args in it.record():
            it.answer(what, args)
    after = [args for what, args in stored if what == "after"]
    depths = [len(args["branch"]) for args in after if args["at"] == 19]
    assert depths.count(1) == 3 + 1
    assert depths.count(2) == 9
    assert {"at": 4, "branch": [8]} in after
    assert [args["at"] for what, args in stored if what == "along"] == [*range(1, 19)]
    assert nodes[0]["text"] == "t9"


def test_a_callback_that_fails_later_does_not_lose_the_page(tmp_path: Any) -> None:
    def short(ids: list[int]) -> np.ndarray:
        if len(ids) != 2:
            raise RuntimeError("only two")
        return logits(ids)

    it = NextTokenView(short, [1, 2], letter)
    assert it.to_html(tmp_path / "x.html").stat().st_size > 10_000
    with pytest.raises(ValueError, match="next_logits raised RuntimeError: only two"):
        it.answer("after", {"at": 2, "branch": [4]})


def test_torch_in_its_many_kinds() -> None:
    row = torch.randn(40, requires_grad=True)
    it = NextTokenView(lambda ids: row, torch.tensor([1]), letter)
    assert it.sentence is None
    it = NextTokenView(lambda ids: row.bfloat16(), torch.tensor([1]), letter)
    assert it.data["first"]["size"] == 40


def nan(ids: list[int]) -> np.ndarray:
    row = logits(ids)
    row[[3, 4]] = np.nan
    return row


def fails(ids: list[int]) -> np.ndarray:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: view([]), "the start is empty"),
        (lambda: view([[1, 2]]), "one row of token ids"),
        (lambda: view("hello"), "encode the text first"),
        (lambda: view([1.5]), "one row of token ids"),
        (lambda: view([1, 9000]), "the start has the id 9000"),
        (lambda: view([-1]), "one row of token ids"),
        (lambda: view(top=0), "top is 0"),
        (lambda: NextTokenView(nan, [1], letter), "NaN or infinity 2 times in 5000"),
        (lambda: NextTokenView(fails, [1], letter), "ZeroDivisionError: by zero"),
        (lambda: NextTokenView(logits, [1], lambda i: i), r"show_token\(\d+\) gave"),
        (lambda: NextTokenView(logits, [1], fails), "show_token raised Zero"),
        (lambda: NextTokenView(lambda ids: [], [1], letter), r"shape \(0,\)"),
        (lambda: NextTokenView(lambda ids: [[1.0]], [1], letter), r"shape \(1, 1\)"),
        (
            lambda: NextTokenView(lambda ids: "no", [1], letter),
            "what next_logits gives must",
        ),
        (lambda: NextTokenView(lambda ids: [-np.inf] * 3, [1], letter), "3 times"),
        (lambda: NextTokenView(lambda ids: [np.inf, 1], [1], letter), "1 times"),
    ],
)
def test_a_sentence(made: Any, sentence: str) -> None:
    it: View = made()
    assert it.sentence is not None
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(it.sentence)
    assert it._picture() is None
    assert it.sentence in repr(it)


def test_a_length_that_changes() -> None:
    it = NextTokenView(lambda ids: np.zeros(4 + len(ids)), [1], letter)
    with pytest.raises(ValueError, match="gave 6 numbers, and 5 before"):
        it.answer("after", {"at": 1, "branch": [2]})
    with pytest.raises(ValueError, match="no token 7"):
        it.answer("after", {"at": 7, "branch": []})
    with pytest.raises(ValueError, match="knows nothing of 'no'"):
        it.answer("no", {})


def test_the_picture_and_the_words() -> None:
    it = NextTokenView(
        lambda ids: np.log([0.5, 0.25, 0.125, 0.125]), [2, 3], "a$ \n".__getitem__
    )
    assert (
        it.words() == "after ' \\n': 'a' 50.0%, '$' 25.0%, ' ' 12.5%; entropy 1.75 bits"
    )
    [axes] = it.draw().axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(
        [0.5, 0.25, 0.125, 0.125]
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "$", "·", "⏎"]
    assert it._picture()
