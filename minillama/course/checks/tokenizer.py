"""Checks of notebook 01: byte-pair encoding, streams of text, dialogues."""

import codecs
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch

from minillama.bpe import apply_merges, by_joined_rank
from minillama.chat import ChatFormat
from minillama.course.check import Case, Check
from minillama.tokenizer import Tokenizer, train_bpe

Pair = tuple[bytes, bytes]
Words = list[list[bytes]]


def _letters(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


def _random_word(rng: torch.Generator, size: int, letters: str = "abc") -> list[bytes]:
    drawn = torch.randint(len(letters), (size,), generator=rng).tolist()
    return [letters[i].encode() for i in drawn]


# -- 1.1 The commonest pair ------------------------------------------------------------


def best_pair(words: Words, counts: list[int]) -> Pair:
    """The commonest pair of neighbours; of equally common ones the greatest."""
    found: Counter[Pair] = Counter()
    for word, count in zip(words, counts, strict=True):
        for pair in pairwise(word):
            found[pair] += count
    return max(found, key=lambda pair: (found[pair], pair))


def _by_sorting(words: Words, counts: list[int]) -> Pair:
    found: dict[Pair, int] = {}
    for number in range(len(words)):
        word = words[number]
        for i in range(len(word) - 1):
            pair = (word[i], word[i + 1])
            found[pair] = found.get(pair, 0) + counts[number]
    return sorted((count, pair) for pair, count in found.items())[-1][1]


def _in_two_steps(words: Words, counts: list[int]) -> Pair:
    written_out = [word for word, n in zip(words, counts, strict=True) for _ in [0] * n]
    found = Counter(pair for word in written_out for pair in pairwise(word))
    most = max(found.values())
    return max(pair for pair, count in found.items() if count == most)


def _counted(
    choose: Callable[[Counter[Pair]], Pair] | None = None,
    pairs: Callable[[list[bytes]], Iterable[Pair]] = pairwise,
    weight: Callable[[int], int] = lambda count: count,
) -> Callable[[Words, list[int]], Pair]:
    """A version that differs in what it counts, or in what it then takes."""

    def wrong(words: Words, counts: list[int]) -> Pair:
        found: Counter[Pair] = Counter()
        for word, count in zip(words, counts, strict=True):
            for pair in pairs(word):
                found[pair] += weight(count)
        greatest = max(found, key=lambda pair: (found[pair], pair))
        return choose(found) if choose else greatest

    return wrong


def _across(words: Words, counts: list[int]) -> Pair:
    text = [part for word, n in zip(words, counts, strict=True) for part in word * n]
    return best_pair([text], [1])


def _without_overlap(word: list[bytes]) -> Iterable[Pair]:
    last: Pair | None = None
    for pair in pairwise(word):
        if pair == last:
            last = None
        else:
            last = pair
            yield pair


def _some_words(rng: torch.Generator) -> Iterable[Case]:
    # The sentence of the course: th, he, an and at are each there twice.
    words = [_letters(w) for w in ("the", " dog", " saw", " the", " cat", " ran")]
    yield words[:3], [2, 1, 1]
    yield words, [1] * 6
    # A tie between two pairs of which one is greater, and the other when joined.
    yield [[b"ab", b"a"], [b"a", b"z"]], [3, 3]
    yield [_letters("ba"), _letters("bc"), _letters("ca")], [2, 1, 2]
    yield [_letters("aaa"), _letters("bc")], [1, 1]
    yield [_letters("aaaa"), _letters("bcbc"), _letters("cb")], [1, 1, 0]
    # ba stands thrice between two words, and nowhere inside one.
    yield [_letters("ab"), _letters("acb")], [4, 3]
    yield [_letters("abab"), _letters("ca")], [2, 3]
    for size in (5, 8, 12):
        some = [_random_word(rng, size - i) for i in range(4)]
        yield some, torch.randint(1, 6, (4,), generator=rng).tolist()


check_best_pair = Check(
    name="1.1",
    title="best_pair",
    reference=best_pair,
    inputs=_some_words,
    solutions=(_by_sorting, _in_two_steps),
    mistakes={
        "Of equally common pairs you take the one that was met first. Which one that "
        "is depends on the order of the text; here the greatest pair of bytes is "
        "taken.": _counted(lambda found: max(found, key=found.__getitem__)),
        "Of equally common pairs you take the smallest. Here the greatest is taken, "
        "as Python compares tuples of bytes.": _counted(
            lambda found: min(found, key=lambda pair: (-found[pair], pair))
        ),
        "Of equally common pairs you take the one that is greatest when joined. Here "
        "the pairs themselves are compared: the left half first.": _counted(
            lambda found: max(found, key=lambda p: (found[p], p[0] + p[1]))
        ),
        "How often a word occurs is not used. A pair in a word that occurs five times "
        "counts five times.": _counted(weight=lambda count: 1),
        "The words are strung together, and pairs across their borders counted. Llama "
        "never merges across the border of a piece.": _across,
        "A pair counts once in each word that has it. It counts as often as it stands "
        "there: ab is in abab twice.": _counted(pairs=lambda word: set(pairwise(word))),
        "Pairs that overlap are counted once. In aaa the pair aa stands twice, at the "
        "first place and at the second.": _counted(pairs=_without_overlap),
        "You count ab and ba as one pair. Their order matters: they make two different "
        "tokens.": _counted(
            pairs=lambda word: ((min(p), max(p)) for p in pairwise(word))
        ),
        "That is the rarest pair. Training merges the commonest one.": _counted(
            lambda found: min(found, key=lambda pair: (found[pair], pair))
        ),
    },
)


# -- 1.2 One merge ---------------------------------------------------------------------


def merge(parts: list[bytes], pair: Pair) -> list[bytes]:
    """The parts, with each occurrence of the pair joined, from the left."""
    merged: list[bytes] = []
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


def _look_back(parts: list[bytes], pair: Pair) -> list[bytes]:
    merged: list[bytes] = []
    joined: list[bool] = []
    for part in parts:
        if merged and not joined[-1] and (merged[-1], part) == pair:
            merged[-1], joined[-1] = merged[-1] + part, True
        else:
            merged.append(part)
            joined.append(False)
    return merged


def _on_a_copy(parts: list[bytes], pair: Pair) -> list[bytes]:
    parts = list(parts)
    at = 0
    while at + 1 < len(parts):
        if parts[at] == pair[0] and parts[at + 1] == pair[1]:
            parts[at : at + 2] = [b"".join(pair)]
        at += 1
    return parts


def _first_alone(parts: list[bytes], pair: Pair) -> list[bytes]:
    for i, here in enumerate(pairwise(parts)):
        if here == pair:
            return [*parts[:i], pair[0] + pair[1], *parts[i + 2 :]]
    return list(parts)


def _used_twice(parts: list[bytes], pair: Pair) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 1 if tuple(parts[i + 1 : i + 3]) == pair else 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


def _right_half_stays(parts: list[bytes], pair: Pair) -> list[bytes]:
    after = [*parts[1:], b""]
    return [p + q if (p, q) == pair else p for p, q in zip(parts, after, strict=True)]


def _by_joined_bytes(parts: list[bytes], pair: Pair) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(parts):
        two = i + 1 < len(parts) and parts[i] + parts[i + 1] == pair[0] + pair[1]
        merged.append(b"".join(parts[i : i + 1 + two]))
        i += 1 + two
    return merged


def _last_is_lost(parts: list[bytes], pair: Pair) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(parts) - 1:
        two = (parts[i], parts[i + 1]) == pair
        merged.append(pair[0] + pair[1] if two else parts[i])
        i += 1 + two
    return merged


def _either_way(parts: list[bytes], pair: Pair) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(parts):
        two = tuple(parts[i : i + 2]) in (pair, pair[::-1])
        merged.append(b"".join(parts[i : i + 1 + two]))
        i += 1 + two
    return merged


def _backwards(parts: list[bytes]) -> list[bytes]:
    return [part[::-1] for part in parts[::-1]]


def _some_parts(rng: torch.Generator) -> Iterable[Case]:
    ab = (b"a", b"b")
    yield _letters("cabab"), ab
    yield _letters("aaa"), (b"a", b"a")
    yield _letters("ba"), ab
    yield [b"ab", b"c", b"a", b"bc"], (b"ab", b"c")
    yield [], ab
    yield _letters("b"), ab
    for size in (7, 12, 20):
        yield _random_word(rng, size, "ab"), (b"a", b"a")
        yield _random_word(rng, size), ab


check_merge = Check(
    name="1.2",
    title="merge",
    reference=merge,
    inputs=_some_parts,
    solutions=(_look_back, _on_a_copy),
    mistakes={
        "Only the first occurrence is merged. A merge joins the pair wherever it "
        "stands.": _first_alone,
        "You join from the right: aaa becomes a, aa. Llama's trainers go from the left "
        "and get aa, a.": lambda parts, pair: _backwards(
            merge(_backwards(parts), (pair[1][::-1], pair[0][::-1]))
        ),
        "A part is used twice: in aaa the middle one goes into two tokens. After a "
        "merge, go on behind both halves.": _used_twice,
        "The right half stays, though it went into the new token. After a merge, go "
        "on behind both halves.": _right_half_stays,
        "The right half stays, and the last part is lost where nothing merges. After "
        "a merge, go on behind both halves; and the last part has no right neighbour, "
        "but is kept.": lambda parts, pair: _right_half_stays(parts, pair)[:-1],
        "Two parts are merged because their joined bytes are right. A merge is a pair: "
        "a and bc do not merge when the pair is ab and c.": _by_joined_bytes,
        "The last part is lost. It has no neighbour to the right, and must be kept all "
        "the same.": _last_is_lost,
        "The pair is merged in the other order, too. ab is not ba.": _either_way,
    },
)


# -- 1.3 A piece into ids --------------------------------------------------------------

Ranks = dict[bytes, int]


def encode_piece(piece: bytes, ranks: Ranks) -> list[int]:
    """The ids of a piece: whole if it is a token, else by merges, lowest rank first."""
    if piece in ranks:
        return [ranks[piece]]
    return [ranks[token] for token in apply_merges(piece, by_joined_rank(ranks))]


def _scan(
    piece: bytes, ranks: Ranks, order: Callable[[int, int, bytes], Any]
) -> list[bytes]:
    """Join the pair that comes first in this order, until none has a rank.

    `order(rank, place, joined)` is what the pairs are compared by.
    """
    parts = [bytes([byte]) for byte in piece]
    while True:
        found = [
            (order(ranks[left + right], i, left + right), i)
            for i, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _plainly(piece: bytes, ranks: Ranks) -> list[int]:
    if piece in ranks:
        return [ranks[piece]]
    return [ranks[t] for t in _scan(piece, ranks, lambda rank, i, joined: (rank, i))]


def _rank_by_rank(piece: bytes, ranks: Ranks) -> list[int]:
    parts = [piece] if piece in ranks else [bytes([byte]) for byte in piece]
    while True:
        joined = [ranks.get(left + right) for left, right in pairwise(parts)]
        if not (known := [rank for rank in joined if rank is not None]):
            return [ranks[part] for part in parts]
        at = joined.index(min(known))
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


def _by(order: Callable[[int, int, bytes], Any]) -> Callable[[bytes, Ranks], list[int]]:
    def wrong(piece: bytes, ranks: Ranks) -> list[int]:
        if piece in ranks:
            return [ranks[piece]]
        return [ranks[token] for token in _scan(piece, ranks, order)]

    return wrong


def _longest_first(piece: bytes, ranks: Ranks) -> list[int]:
    ids: list[int] = []
    while piece:
        end = next(e for e in range(len(piece), 0, -1) if piece[:e] in ranks)
        ids.append(ranks[piece[:end]])
        piece = piece[end:]
    return ids


def _one_merge(piece: bytes, ranks: Ranks) -> list[int]:
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    known = [left + right for left, right in pairwise(parts) if left + right in ranks]
    if known:
        best = min(known, key=ranks.__getitem__)
        at = next(i for i, p in enumerate(pairwise(parts)) if p[0] + p[1] == best)
        parts[at : at + 2] = [best]
    return [ranks[part] for part in parts]


def _bytes_as_ids(piece: bytes, ranks: Ranks) -> list[int]:
    if piece in ranks:
        return [ranks[piece]]
    tokens = apply_merges(piece, by_joined_rank(ranks))
    return [t[0] if len(t) == 1 else ranks[t] for t in tokens]


def _some_pieces(rng: torch.Generator) -> Iterable[Case]:
    # Bytes are in no order here, as in Llama 3's vocabulary.
    few = {b"h": 0, b"t": 1, b"e": 2, b"he": 3, b"th": 4}
    yield b"the", few
    yield b"het", few
    # No two tokens join to the: only the whole piece is a token.
    cat = {b"t": 0, b"a": 1, b"c": 2, b"at": 3, b"ca": 4, b"cats": 5, b"s": 6}
    yield b"cats", cat
    yield b"tcats", cat
    # Two merges of rank 1; a later one of three.
    yield b"aaa", {b"a": 0, b"aa": 1}
    yield b"aaaaa", {b"a": 0, b"aa": 1, b"aaa": 2}
    yield b"abcab", {b"c": 0, b"b": 1, b"a": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    for size in (8, 12, 16):
        ranks = {b"b": 0, b"c": 1, b"a": 2, **_random_ranks(rng)}
        yield b"".join(_random_word(rng, size)), ranks


def _random_ranks(rng: torch.Generator) -> Ranks:
    """Tokens in the order in which a random trainer would find them."""
    tokens = [b"a", b"b", b"c"]
    while len(tokens) < 12:
        left, right = torch.randint(len(tokens), (2,), generator=rng).tolist()
        if tokens[left] + tokens[right] not in tokens:
            tokens.append(tokens[left] + tokens[right])
    return {token: rank for rank, token in enumerate(tokens) if rank > 2}


check_encode_piece = Check(
    name="1.3",
    title="encode_piece",
    reference=encode_piece,
    inputs=_some_pieces,
    solutions=(_plainly, _rank_by_rank),
    mistakes={
        "The whole-piece rule is missing. A piece that is a token gets its id before "
        "anything is merged.": lambda piece, ranks: [
            ranks[token] for token in apply_merges(piece, by_joined_rank(ranks))
        ],
        "You take the longest token that fits, from the left. Llama merges pairs, the "
        "lowest rank first.": _longest_first,
        "You merge from left to right. The pair with the lowest rank goes first, "
        "wherever it stands.": _by(lambda rank, i, joined: i),
        "The highest rank goes first. Merges apply in the order in which they were "
        "learnt: the lowest rank first.": _by(lambda rank, i, joined: (-rank, i)),
        "The longest pair goes first. The rank decides, not the length.": _by(
            lambda rank, i, joined: (-len(joined), rank, i)
        ),
        "Of two pairs of one rank you merge the right one first. Llama goes from the "
        "left: aaa becomes aa, a.": _by(lambda rank, i, joined: (rank, -i)),
        "You stop after one merge. Go on until no two neighbours join to a token.": (
            _one_merge
        ),
        "A byte that is left over gives its own number. Look its id up as well: Llama "
        "3's vocabulary has the bytes in another order.": _bytes_as_ids,
        "You give the tokens' bytes. Wanted are their ids: ranks[token].": (
            lambda piece, ranks: (
                [piece]
                if piece in ranks
                else apply_merges(piece, by_joined_rank(ranks))
            )
        ),
    },
)


# -- 1.4 A stream of text --------------------------------------------------------------


def stream_text(tokens: list[bytes]) -> list[str]:
    """What can be shown after each token: the characters that are complete now."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(token) for token in tokens]


def _by_first_byte(tokens: list[bytes]) -> list[str]:
    shown: list[str] = []
    kept = b""
    for token in tokens:
        kept, text = kept + token, ""
        while kept:
            first = kept[0]
            length = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
            if len(kept) < length:
                break
            text, kept = text + kept[:length].decode(), kept[length:]
        shown.append(text)
    return shown


def _by_trying(tokens: list[bytes]) -> list[str]:
    shown: list[str] = []
    kept = b""
    for token in tokens:
        kept += token
        for held in range(4):
            end = len(kept) - held
            try:
                shown.append(kept[:end].decode())
            except UnicodeDecodeError:
                continue
            kept = kept[end:]
            break
    return shown


def _all_so_far(tokens: list[bytes]) -> list[str]:
    shown = stream_text(tokens)
    return ["".join(shown[: i + 1]) for i in range(len(shown))]


def _all_or_nothing(
    tokens: list[bytes], forget: bool = False, keep: bool = False
) -> list[str]:
    shown: list[str] = []
    kept = b""
    for token in tokens:
        kept += token
        try:
            shown.append(kept.decode())
            kept = kept if keep else b""
        except UnicodeDecodeError:
            shown.append("")
            kept = b"" if forget else kept
    return shown


def _one_late(tokens: list[bytes]) -> list[str]:
    text, shown, given = "", [], 0
    for new in stream_text(tokens):
        text += new
        end = max(given, len(text) - 1)
        shown.append(text[given:end])
        given = end
    return shown


def _some_tokens(rng: torch.Generator) -> Iterable[Case]:
    yield (["h".encode(), *_bytes("é")],)  # noqa: UP012
    yield (["né".encode()[:2], "é!".encode()[1:]],)
    yield ([b"A ", "😀".encode()[:3], "😀".encode()[3:]],)
    yield (["llama ".encode() + "ल".encode()[:1], "ल".encode()[1:], b"."],)  # noqa: UP012
    yield ([*_bytes("क"), *_bytes("中a")],)
    yield (["ab".encode(), "é".encode()[:1]],)  # noqa: UP012
    for size in (6, 9, 14):
        drawn = torch.randint(6, (size,), generator=rng).tolist()
        raw = ("é" + "".join("aé中😀b "[i] for i in drawn)).encode()
        cuts = torch.randint(1, 4, (len(raw),), generator=rng).cumsum(0).tolist()
        bounds = [0, *(cut for cut in cuts if cut < len(raw)), len(raw)]
        yield ([raw[a:b] for a, b in pairwise(bounds)],)


def _bytes(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


check_stream_text = Check(
    name="1.4",
    title="stream_text",
    reference=stream_text,
    inputs=_some_tokens,
    solutions=(_by_first_byte, _by_trying),
    mistakes={
        "Each token is decoded by itself, so half a character becomes \ufffd. Keep the "
        "bytes of a character that is not complete, and put the next token behind "
        "them.": lambda tokens: [t.decode(errors="replace") for t in tokens],
        "Each token is decoded by itself, and half a character is no text. Keep its "
        "bytes, and put the next token behind them.": (
            lambda tokens: [token.decode() for token in tokens]
        ),
        "Each token is decoded by itself, and half characters are dropped. Keep their "
        "bytes until the rest has come.": (
            lambda tokens: [t.decode(errors="ignore") for t in tokens]
        ),
        "You wait until everything that is kept is whole. Give out at once what is "
        "complete, and keep the half character alone.": _all_or_nothing,
        "When decoding fails, the bytes are thrown away. Keep them: the next token "
        "brings the rest of the character.": partial(_all_or_nothing, forget=True),
        "What was given out stays in the buffer and comes again. Keep only the bytes "
        "of the character that is not complete.": partial(_all_or_nothing, keep=True),
        "You give all text so far each time. Wanted is what is new with each token.": (
            _all_so_far
        ),
        "A character is held back though it is complete. Only the bytes of half a "
        "character wait.": _one_late,
        "Nothing is given for a token that completes no character. Give an empty text, "
        "so that there is one for each token.": (
            lambda tokens: [text for text in stream_text(tokens) if text]
        ),
        "All text comes at the end. A stream shows each character as soon as it is "
        "complete.": lambda tokens: [
            *[""] * (len(tokens) - 1),
            b"".join(tokens).decode(errors="ignore"),
        ],
    },
)


# -- 1.5 A dialogue --------------------------------------------------------------------

Messages = list[dict[str, str]]
BEGIN, EOT = "<|begin_of_text|>", "<|eot_id|>"
START, END = "<|start_header_id|>", "<|end_header_id|>"


@cache
def _toy() -> Tokenizer:
    """A small vocabulary in which line ends merge, as they do in Llama 3's."""
    text = "user assistant system\n\nhi\n\n\nhi\n\n\n\nuser\n\n\n"
    names = [BEGIN, "<|end_of_text|>", START, END, EOT]
    return train_bpe(4 * text, 285, special_tokens=names)


def dialogue(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """The ids of a dialogue in Llama 3's format, and the opening for an answer."""
    return ChatFormat(tokenizer).encode(messages)


def _variant(
    *,
    begin: str = BEGIN,
    begin_each: bool = False,
    gap: str = "\n\n",
    eot: str = EOT,
    open_up: str = "assistant",
    open_gap: bool = True,
    joined: bool = False,
    trimmed: bool = False,
) -> Callable[[Messages, Tokenizer], list[int]]:
    """The format with one thing changed."""

    def made(messages: Messages, tokenizer: Tokenizer) -> list[int]:
        special, encode = tokenizer.special_tokens, tokenizer.encode

        def header(role: str) -> list[int]:
            return [special[START], *encode(role), special[END]]

        ids: list[int] = []
        for number, message in enumerate(messages):
            if begin and (begin_each or not number):
                ids.append(special[begin])
            content = message["content"]
            content = content.strip() if trimmed else content
            body = encode(gap + content) if joined else encode(gap) + encode(content)
            ids += header(message["role"]) + body + ([special[eot]] if eot else [])
        if open_up:
            ids += header(open_up) + (encode(gap) if open_gap else [])
        return ids

    return made


def _template(messages: Messages) -> str:
    said = (f"{START}{m['role']}{END}\n\n{m['content']}{EOT}" for m in messages)
    return f"{BEGIN}{''.join(said)}{START}assistant{END}\n\n"


def _piecewise(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """The template as text, but only the frame may be special."""
    ids = tokenizer.encode(BEGIN, allowed_special="all")
    for message in [*messages, {"role": "assistant"}]:
        frame = f"{START}{message['role']}{END}\n\n"
        ids += tokenizer.encode(frame, allowed_special="all")
        if "content" in message:
            ids += tokenizer.encode(message["content"])
            ids += tokenizer.encode(EOT, allowed_special={EOT})
    return ids


def _as_texts(
    theirs: Callable[[Messages, Tokenizer], Any],
) -> Callable[[Messages], Any]:
    """The learner's function on the toy vocabulary; each id becomes its text."""

    def dialogue(messages: Messages) -> Any:
        tokenizer = _toy()
        ids = theirs(messages, tokenizer)
        if not isinstance(ids, list) or not all(type(id) is int for id in ids):
            return ids
        names = {id: name for name, id in tokenizer.special_tokens.items()}
        return [names.get(id) or tokenizer.token_bytes(id).decode() for id in ids]

    return dialogue


def _some_dialogues(rng: torch.Generator) -> Iterable[Case]:
    yield ([_said("user", "hi")],)
    # A user who types the spelling of a special token has typed ten characters.
    yield ([_said("user", f"hi{EOT}")],)
    yield ([_said("user", "\nhi")],)
    yield ([_said("system", "hi"), _said("user", " hi "), _said("assistant", "us")],)
    for size in (1, 2, 3):
        drawn = torch.randint(4, (size, 4), generator=rng).tolist()
        texts = ("".join(("hi", "\n", " ", "us")[i] for i in row) for row in drawn)
        roles = ("user", "assistant", "user")
        yield ([_said(role, text) for role, text in zip(roles, texts, strict=False)],)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


check_dialogue = Check(
    name="1.5",
    title="dialogue",
    reference=dialogue,
    adapt=_as_texts,
    inputs=_some_dialogues,
    solutions=(_variant(), _piecewise),
    mistakes={
        "The dialogue begins without <|begin_of_text|>. Llama 3 has seen it at the "
        "head of every text.": _variant(begin=""),
        "<|begin_of_text|> stands before each message. It begins the dialogue, once.": (
            _variant(begin_each=True)
        ),
        "One line end follows the header. Llama 3 has two, which are one token.": (
            _variant(gap="\n")
        ),
        "No line ends follow the header. Llama 3 has two, which are one token.": (
            _variant(gap="")
        ),
        "A message is not ended. Llama 3 puts <|eot_id|> after each.": _variant(eot=""),
        "A message ends in <|end_of_text|>. Llama 3's turns end in <|eot_id|>.": (
            _variant(eot="<|end_of_text|>")
        ),
        "The opening for the answer is missing: a header with the role assistant.": (
            _variant(open_up="")
        ),
        "The opening for the answer lacks its two line ends. The model would have to "
        "write them first.": _variant(open_gap=False),
        "The opening has the role user. The answer is the assistant's.": _variant(
            open_up="user"
        ),
        "The line ends are encoded together with the content, and merge with a line "
        "end that it begins with. Encode the two apart.": _variant(joined=True),
        "Blanks and line ends around the content are taken away. Meta's own encoder "
        "keeps what the user wrote.": _variant(trimmed=True),
        "The whole dialogue is one text in which spellings become special tokens. So a "
        "user who types <|eot_id|> ends the turn. Put special tokens in as ids, and "
        "encode content as plain text.": lambda messages, tokenizer: tokenizer.encode(
            _template(messages), allowed_special="all"
        ),
        "The frame is plain text: <|eot_id|> became many ordinary tokens. Put special "
        "tokens in as ids: tokenizer.special_tokens[name].": (
            lambda messages, tokenizer: tokenizer.encode(_template(messages))
        ),
    },
)

__all__ = [
    "check_best_pair",
    "check_dialogue",
    "check_encode_piece",
    "check_merge",
    "check_stream_text",
]
