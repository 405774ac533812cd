"""Batches: what is cut, from where, and that the same step is always the same batch."""

import numpy as np
import pytest
import torch

from minillama.data import Batches, all_windows, cut_windows, encode_texts, split
from minillama.tokenizer import train_bpe

TEXTS = ["Mia has a kite.", "Tom has a red ball.", "", "Zoe: <|end_of_text|>?"]
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(" ".join(TEXTS[:2]), 270, (BEGIN, END))


def counting(n=100):
    return np.arange(n, dtype=np.uint16)


def test_texts_are_joined_between_begin_and_end(tokenizer):
    ids = encode_texts(iter(TEXTS), tokenizer)
    begin, end = tokenizer.special_tokens[BEGIN], tokenizer.special_tokens[END]
    assert ids.dtype == np.uint16
    assert (ids == begin).sum() == (ids == end).sum() == 4  # the spelt one is text
    assert ids[0] == begin
    assert ids[-1] == end
    rows = np.split(ids, np.flatnonzero(ids == begin)[1:])
    assert [tokenizer.decode(row[1:-1].tolist()) for row in rows] == TEXTS


def test_targets_are_the_next_tokens():
    batches = Batches(counting(), batch_size=6, context=10, seed=1)
    for step in range(5):
        tokens, targets = batches.at(step)
        assert tokens.shape == targets.shape == (6, 10)
        assert tokens.dtype == targets.dtype == torch.int64
        assert (targets == tokens + 1).all()  # in this row, next is one more
        assert (tokens[:, 1:] == tokens[:, :-1] + 1).all()


def test_a_batch_follows_from_seed_and_number_alone():
    one, two = (Batches(counting(5000), 4, 10, seed=1) for _ in range(2))
    later = [one.at(step)[0] for step in (7, 3, 7)]
    assert torch.equal(later[0], later[2])
    assert torch.equal(later[0], two.at(7)[0])
    assert not torch.equal(later[0], later[1])
    other = Batches(counting(5000), 4, 10, seed=2)
    assert not torch.equal(later[0], other.at(7)[0])
    assert not torch.equal(later[0], other.at(6)[0])  # seed and number are not added


def test_every_window_is_drawn_and_none_runs_over_the_end():
    batches = Batches(counting(14), batch_size=50, context=10)
    starts = {int(s) for step in range(10) for s in batches.at(step)[0][:, 0]}
    assert starts == {0, 1, 2, 3}
    assert max(int(batches.at(s)[1].max()) for s in range(10)) == 13


def test_windows_are_drawn_evenly():
    batches = Batches(counting(30), batch_size=100, context=10)
    drawn = torch.cat([batches.at(step)[0][:, 0] for step in range(100)])
    share = torch.bincount(drawn) / len(drawn)
    assert len(share) == 20
    assert ((share - 1 / 20).abs() < 0.01).all()  # 4.6 standard deviations


def test_windows_can_begin_where_texts_begin():
    ids = np.array([9, 1, 2, 9, 3, 4, 5, 9, 6, 7], dtype=np.uint16)
    batches = Batches(ids, batch_size=40, context=4, begin_id=9)
    assert {int(s) for s in batches.at(0)[0][:, 0]} == {9}
    assert {tuple(row.tolist()) for row in batches.at(0)[0]} == {
        (9, 1, 2, 9),
        (9, 3, 4, 5),
    }


def test_a_row_of_one_window_is_enough_and_shorter_is_an_error():
    tokens, targets = Batches(counting(11), batch_size=1, context=10).at(0)
    assert tokens[0].tolist() == list(range(10))
    assert targets[0].tolist() == list(range(1, 11))
    with pytest.raises(ValueError, match="10 tokens hold no window of 11"):
        Batches(counting(10), batch_size=1, context=10)
    with pytest.raises(ValueError, match="hold no window"):
        Batches(counting(0), batch_size=1, context=10)
    with pytest.raises(ValueError, match="hold no window"):
        Batches(counting(50), batch_size=1, context=10, begin_id=99)
    with pytest.raises(ValueError, match="batch_size 0"):
        Batches(counting(50), batch_size=0, context=10)


def test_batches_read_a_memory_mapped_file(tmp_path):
    np.save(tmp_path / "ids.npy", counting())
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    one, two = Batches(mapped, 4, 10), Batches(counting(), 4, 10)
    assert all(torch.equal(a, b) for a, b in zip(one.at(2), two.at(2), strict=True))


@pytest.mark.parametrize("length", [11, 12, 20, 21, 41, 47])
def test_all_windows_predict_each_token_once(length):
    pairs = list(all_windows(counting(length), batch_size=2, context=10))
    predicted = [int(t) for _, targets in pairs for row in targets for t in row]
    whole = (length - 1) // 10 * 10
    assert predicted == list(range(1, whole + 1))
    assert all(torch.equal(targets, tokens + 1) for tokens, targets in pairs)


def test_all_windows_can_begin_where_texts_begin():
    ids = np.array([9, 1, 2, 9, 3, 4, 5, 9, 6, 7], dtype=np.uint16)
    pairs = list(all_windows(ids, batch_size=1, context=4, begin_id=9))
    assert [t.tolist() for t, _ in pairs] == [[[9, 1, 2, 9]], [[9, 3, 4, 5]]]
    assert [t.tolist() for _, t in pairs] == [[[1, 2, 9, 3]], [[3, 4, 5, 9]]]


def test_too_few_held_out_tokens_are_an_error():
    with pytest.raises(ValueError, match="10 held-out tokens hold no window of 11"):
        list(all_windows(counting(10), batch_size=2, context=10))


def test_split_keeps_the_end_away():
    kept, held = split(counting(), 0.1)
    assert kept.tolist() + held.tolist() == list(range(100))
    assert len(held) == 10


def test_split_between_two_texts():
    ids = np.array([9, 1, 2, 9, 3, 4, 5, 9, 6, 7], dtype=np.uint16)
    kept, held = split(ids, 0.5, begin_id=9)
    assert held.tolist() == [9, 6, 7]
    kept, held = split(ids, 0.01, begin_id=9)  # no text begins so late: the last one
    assert held.tolist() == [9, 6, 7]
    kept, held = split(ids, 0.9, begin_id=9)
    assert kept.tolist() == [9, 1, 2]
    with pytest.raises(ValueError, match="give more texts"):
        split(ids[:3], 0.5, begin_id=9)
    with pytest.raises(ValueError, match=r"held_out 1\.5"):
        split(ids, 1.5)


def test_cut_windows_copies():
    ids = counting()
    tokens, _ = cut_windows(ids, np.array([0]), 5)
    tokens[0, 0] = 50
    assert ids[0] == 0
