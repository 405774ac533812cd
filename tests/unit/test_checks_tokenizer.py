"""The checks of notebook 01 against answers as learners write them."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from minillama.course.checks.tokenizer import (
    check_best_pair,
    check_dialogue,
    check_encode_piece,
    check_merge,
    check_stream_text,
)


def _most_common(words, counts):
    found = Counter()
    for word, count in zip(words, counts, strict=True):
        for i in range(len(word) - 1):
            found[word[i], word[i + 1]] += count
    return found.most_common(1)[0][0]


def _each_word_once(words, counts):
    found = Counter()
    for word in words:
        found.update(pairwise(word))
    return max(found.items(), key=lambda item: (item[1], item[0]))[0]


def _one_long_row(words, counts):
    row = [part for word, n in zip(words, counts, strict=True) for part in word * n]
    found = Counter(pairwise(row))
    return max(found, key=lambda pair: (found[pair], pair))


def _with_replace(parts, pair):
    """On the text of the parts: borders are forgotten."""
    rest = re.split(b"(" + re.escape(b"".join(pair)) + b")", b"".join(parts))
    whole = b"".join(pair)
    return [
        piece
        for part in rest
        for piece in ([part] if part == whole else [bytes([b]) for b in part])
    ]


def _without_the_last(parts, pair):
    out, i = [], 0
    while i < len(parts) - 1:
        if (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


def _index_stuck(parts, pair):
    out = []
    for i in range(len(parts)):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
        else:
            out.append(parts[i])
    return out


def _stuck_and_short(parts, pair):
    out = []
    for i in range(len(parts) - 1):
        if (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
        else:
            out.append(parts[i])
    return out


def _in_place(parts, pair):
    i = 0
    while i + 1 < len(parts):
        if (parts[i], parts[i + 1]) == pair:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        i += 1
    return parts


def _greedy(piece, ranks):
    ids, at = [], 0
    while at < len(piece):
        for end in range(len(piece), at, -1):
            if piece[at:end] in ranks:
                ids.append(ranks[piece[at:end]])
                at = end
                break
    return ids


def _no_whole_piece(piece, ranks):
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        best = None
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            if rank is not None and (best is None or rank < best[0]):
                best = rank, i
        if best is None:
            return [ranks[part] for part in parts]
        parts[best[1] : best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]


def _last_of_equals(piece, ranks):
    if piece in ranks:
        return [ranks[piece]]
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        best = None
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            if rank is not None and (best is None or rank <= best[0]):
                best = rank, i
        if best is None:
            return [ranks[part] for part in parts]
        parts[best[1] : best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]


def _bytes_themselves(piece, ranks):
    if piece in ranks:
        return [ranks[piece]]
    return list(piece)


def _wait_for_all(tokens):
    out, kept = [], b""
    for token in tokens:
        kept += token
        try:
            out.append(kept.decode("utf-8"))
            kept = b""
        except UnicodeDecodeError:
            out.append("")
    return out


def _diamonds(tokens):
    return [token.decode("utf-8", "replace") for token in tokens]


def _growing(tokens):
    out, text = [], b""
    for token in tokens:
        text += token
        out.append(text.decode("utf-8", "ignore"))
    return out


def _as_one_text(messages, tokenizer):
    text = "<|begin_of_text|>"
    for m in messages:
        text += f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}"
        text += "<|eot_id|>"
    text += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    return tokenizer.encode(text, allowed_special="all")


def _pieces(messages, tokenizer, gap="\n\n", opening=True, body=None):
    special, encode = tokenizer.special_tokens, tokenizer.encode
    start, end = special["<|start_header_id|>"], special["<|end_header_id|>"]
    ids = [special["<|begin_of_text|>"]]
    for message in messages:
        ids += [start, *encode(message["role"]), end]
        content = message["content"]
        ids += encode(gap + content) if body else encode(gap) + encode(content)
        ids.append(special["<|eot_id|>"])
    if opening:
        ids += [start, *encode("assistant"), end, *encode(gap)]
    return ids


ATTACKS = [
    (check_best_pair, _most_common, "met first"),
    (check_best_pair, _each_word_once, "How often a word occurs is not used"),
    (check_best_pair, _one_long_row, "strung together"),
    (check_merge, _with_replace, "joined bytes are right"),
    (check_merge, _without_the_last, "The last part is lost"),
    (check_merge, _index_stuck, "The right half stays"),
    (check_merge, _stuck_and_short, "and the last part is lost"),
    (check_stream_text, lambda ts: [t.decode() for t in ts], "is no text"),
    (check_encode_piece, _greedy, "the longest token that fits"),
    (check_encode_piece, _no_whole_piece, "whole-piece rule is missing"),
    (check_encode_piece, _last_of_equals, "merge the right one first"),
    (check_stream_text, _wait_for_all, "wait until everything"),
    (check_stream_text, _diamonds, "half a character becomes"),
    (check_stream_text, _growing, "all text so far"),
    (check_dialogue, _as_one_text, "spellings become special tokens"),
    (check_dialogue, lambda m, t: _pieces(m, t, gap="\n"), "One line end"),
    (check_dialogue, lambda m, t: _pieces(m, t, opening=False), "opening for the"),
    (check_dialogue, lambda m, t: _pieces(m, t, body=True), "together with the"),
]


@pytest.mark.parametrize(("check", "answer", "sentence"), ATTACKS)
def test_a_learners_mistake_is_named(check, answer, sentence):
    result = check.examine(answer)
    assert result.mistake is not None, result.message
    assert sentence in result.mistake, result.message


def test_right_answers_pass():
    assert check_dialogue.examine(_pieces).ok


def test_parts_changed_in_place_are_told():
    assert check_merge.examine(_in_place).status == "mutated"


def test_bytes_for_ids_do_not_pass():
    assert not check_encode_piece.examine(_bytes_themselves).ok


def test_what_is_raised_names_the_learners_line():
    def by_index(piece, ranks):
        return [ranks[piece]]

    result = check_encode_piece.examine(by_index)
    assert result.status == "exception"
    assert "return [ranks[piece]]" in result.message


@pytest.mark.parametrize("give", [None, 7, "the", [b"t", b"h"], (b"t",)])
def test_another_type_is_told(give):
    result = check_best_pair.examine(lambda words, counts: give)
    assert result.status in {"none", "type", "wrong"}


def test_ids_as_text_are_told():
    result = check_dialogue.examine(lambda messages, tokenizer: "hi")
    assert result.status == "type"
