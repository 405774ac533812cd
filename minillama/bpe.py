"""Byte-pair encoding: learn merges from pieces of text, and apply them to a piece.

Everything here works on bytes. How text is cut into pieces is in `splitting.py`, ids
and special tokens are in `tokenizer.py`. Source: Sennrich et al. (arXiv 1508.07909);
that the first symbols are the 256 bytes comes from GPT-2.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise

Pair = tuple[bytes, bytes]
RankOf = Callable[[bytes, bytes], int | None]
Progress = Callable[[int, int], None]

BYTES = tuple(bytes([byte]) for byte in range(256))


def apply_merges(piece: bytes, rank_of: RankOf) -> list[bytes]:
    """Split a piece into tokens: merge the lowest-ranking pair until none is left.

    Among equal ranks the leftmost pair goes first. `rank_of(left, right)` is the rank
    of a merge, or None if the two do not merge. A heap finds the lowest pair and a
    linked list its neighbours, so n bytes take n log n steps, not n squared.
    """
    parts = [BYTES[byte] for byte in piece]
    end = len(parts)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    queue: list[tuple[int, int, bytes, bytes]] = []

    def offer(at: int) -> None:
        left, right = parts[at], parts[after[at]]
        rank = rank_of(left, right)
        if rank is not None:
            heappush(queue, (rank, at, left, right))

    for at in range(end - 1):
        offer(at)
    while queue:
        _, at, left, right = heappop(queue)
        gone = after[at]
        # One of the two may have merged with another neighbour since it was queued.
        if gone == end or parts[at] != left or parts[gone] != right:
            continue
        parts[at], parts[gone] = left + right, b""
        after[at] = after[gone]
        if after[at] < end:
            before[after[at]] = at
            offer(at)
        if before[at] >= 0:
            offer(before[at])
    return [part for part in parts if part]


def last_split(token: bytes, rank_of: RankOf) -> list[bytes]:
    """What is left when a token's bytes are merged, short of the token itself.

    Two parts: they are the pair that makes the token, wherever it occurs, since no
    merge across its ends has happened there either. More: no merge makes the token.
    """

    def but_the_last(left: bytes, right: bytes) -> int | None:
        return None if left + right == token else rank_of(left, right)

    return apply_merges(token, but_the_last)


def recover_merges(ranks: Mapping[bytes, int]) -> list[Pair]:
    """The merges behind a rank file, which lists tokens alone.

    Any two tokens merge whose joined bytes are a token, but only one pair for each
    token ever meets. They come in the order of their tokens' ranks.
    """
    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    splits = (last_split(token, by_joined_rank(ranks)) for token in longer)
    return [(parts[0], parts[1]) for parts in splits if len(parts) == 2]


def by_joined_rank(ranks: Mapping[bytes, int]) -> RankOf:
    """Merge any pair whose joined bytes have a rank: how a rank file is meant."""
    return lambda left, right: ranks.get(left + right)


def by_order(merges: Iterable[Pair]) -> RankOf:
    """Merge the pairs that are listed, the first listed first: how GPT-2 is meant."""
    order = {pair: rank for rank, pair in enumerate(merges)}
    return lambda left, right: order.get((left, right))


def learn_merges(
    pieces: Mapping[bytes, int], n_merges: int, progress: Progress | None = None
) -> list[Pair]:
    """Learn merges from pieces and how often each occurs: the commonest pair first.

    Among equally common pairs the lexicographically greatest goes first. Counts of
    pairs are kept from merge to merge, and only what stands beside a merged pair is
    counted again. A pair that is queued only ever loses, since a merge adds no pairs
    but those of its own token: one whose count is too high goes back under the true
    one. Fewer merges come back when no pairs are left.
    `progress(done, wanted)` is called now and then once two seconds have passed.
    """
    words = [[BYTES[byte] for byte in piece] for piece in pieces]
    weights = list(pieces.values())
    counts: defaultdict[Pair, int] = defaultdict(int)
    holders: defaultdict[Pair, list[int]] = defaultdict(list)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += weights[number]
            holders[pair].append(number)
    queue = [_Candidate(count, pair) for pair, count in counts.items()]
    heapify(queue)

    merges: list[Pair] = []
    report = _patient(progress, n_merges)
    while queue and len(merges) < n_merges:
        best = heappop(queue)
        if best.count != counts[best.pair]:
            best.count = counts[best.pair]
            if best.count:
                heappush(queue, best)
            continue
        merges.append(best.pair)
        made: set[Pair] = set()
        for number in holders.pop(best.pair):
            weight = weights[number]
            lost, won = _merge_pair(words[number], best.pair)
            for pair in lost:
                counts[pair] -= weight
            for pair in won:
                counts[pair] += weight
                holders[pair].append(number)
            made.update(won)
        del counts[best.pair]
        for pair in made:
            if counts[pair]:
                heappush(queue, _Candidate(counts[pair], pair))
        report(len(merges))
    return merges


class _Candidate:
    """A pair in the queue: the commoner first, then the greater."""

    __slots__ = ("count", "pair")

    def __init__(self, count: int, pair: Pair) -> None:
        self.count, self.pair = count, pair

    def __lt__(self, other: "_Candidate") -> bool:
        return (self.count, self.pair) > (other.count, other.pair)


def _merge_pair(word: list[bytes], pair: Pair) -> tuple[list[Pair], list[Pair]]:
    """Merge a pair in a word, in place: the neighbouring pairs lost, and those won."""
    left, right = pair
    both = left + right
    lost: list[Pair] = []
    won: list[Pair] = []
    at = 0
    while at < len(word) - 1:
        if word[at] == left and word[at + 1] == right:
            word[at : at + 2] = [both]
            if at > 0:
                lost.append((word[at - 1], left))
                won.append((word[at - 1], both))
            if at + 1 < len(word):
                lost.append((right, word[at + 1]))
                won.append((both, word[at + 1]))
        at += 1
    return lost, won


def _patient(progress: Progress | None, total: int) -> Callable[[int], None]:
    next_report = time.monotonic() + 2

    def report(done: int) -> None:
        nonlocal next_report
        if progress is not None and time.monotonic() >= next_report:
            next_report = time.monotonic() + 0.1
            progress(done, total)

    return report
