"""Encoding and training of tokenizers, ours beside tiktoken's and Hugging Face's.

`python -m benchmarks.tokenizers_speed` prints the medians of interleaved rounds and the
ratios to minillama. It needs `minillama pull llama3-tokenizer`. Read with the figures:

- Text is what every Python has: the sources of its standard library, code with the
  prose in it, and the sentences of the course in eight languages.
- Each run encodes a fresh copy of the text: Python keeps the UTF-8 of a text that was
  asked for it, and a second run on the same text would not pay for it.
- Plain names run in one thread and take one text. "2 threads" and the like are batches
  of texts of 400,000 characters, the cuts that Meta's encoder makes, in all cores.
- `tokenizers` is asked by `encode_batch_fast`, which leaves out the places of tokens in
  the text; `encode` makes them, and is published beside it.
- The naive trainers count all pairs again after each merge. At 10 MB that takes hours,
  so they stand beside ours on a short text and a small vocabulary. Their time grows
  with text times merges and ours more slowly: the ratio at 10 MB is larger.
"""

import hashlib
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken
import tokenizers

# tiktoken comes with a trainer for teaching, in Python.
from tiktoken._educational import bpe_train
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from minillama import hub
from minillama.tokenizer import LLAMA3_PATTERN, Tokenizer, train_bpe

Run = Callable[[], object]

SENTENCES = Path(__file__).parents[1] / "data" / "sentences.toml"
BYTES, VOCABULARY = 10_000_000, 4096
SHORT, SMALL = 100_000, 1024
ALL_CORES = f"{os.cpu_count()} threads"


def mixed_text(n_bytes: int) -> str:
    """The sentences of the course, then modules of the standard library, shuffled.

    Modules come in the order of a hash of their names, those of its tests last, since
    not every install has them. Raises ValueError if there is less text than asked for.
    """
    root = Path(sysconfig.get_path("stdlib"))
    modules = (path.relative_to(root) for path in root.rglob("*.py"))
    ours = [path for path in modules if "site-packages" not in path.parts]

    def order(path: Path) -> tuple[bool, bytes]:
        tests = not {"test", "tests", "idle_test"}.isdisjoint(path.parts)
        return tests, hashlib.sha256(path.as_posix().encode()).digest()

    raw = SENTENCES.read_bytes()
    for path in sorted(ours, key=order):
        if len(raw) >= n_bytes:
            return raw[:n_bytes].decode(errors="ignore")
        try:
            raw += (root / path).read_text("utf-8").encode()
        except UnicodeDecodeError:  # a test of other encodings
            continue
    raise ValueError(f"the standard library has {len(raw):,} bytes, not {n_bytes:,}")


def cases(
    n_bytes: int = BYTES, vocab_size: int = VOCABULARY
) -> dict[str, dict[str, Run]]:
    """Row, contender, and what to time; equal ids are asserted before."""
    text = mixed_text(n_bytes)
    short = text[-SHORT:]
    size = f"{n_bytes / 1e6:g} MB"
    return {
        f"encode {size}": encoders(text),
        f"train {size}": {
            "minillama": lambda: train_bpe(text, vocab_size),
            "tokenizers": lambda: train_theirs([text], vocab_size, parallel=False),
            f"tokenizers, {ALL_CORES}": lambda: train_theirs(
                blocks(text), vocab_size, parallel=True
            ),
        },
        f"train {SHORT / 1e6:g} MB": {
            "minillama": lambda: train_bpe(short, SMALL),
            "tokenizers": lambda: train_theirs([short], SMALL, parallel=False),
            "naive": lambda: bpe_train(short, SMALL, LLAMA3_PATTERN, visualise=None),
            "naive, pieces counted once": lambda: train_naively(short, SMALL),
        },
    }


def encoders(text: str) -> dict[str, Run]:
    """One contender a library with Llama 3's vocabulary, and their batches."""
    path = hub.find("llama3-tokenizer")
    if path is None:
        raise ValueError(
            "Llama 3's vocabulary is not here: minillama pull llama3-tokenizer"
        )
    ours = Tokenizer.from_file(path)
    bare = tiktoken.Encoding(
        "bare",
        pat_str=ours.pattern,
        mergeable_ranks=ours.ranks,
        special_tokens=ours.special_tokens,
    )
    with tempfile.TemporaryDirectory() as folder:
        ours.save_hf(folder)
        theirs = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    texts = blocks(text)

    def batch(texts: list[str], parallel: bool) -> list[list[int]]:
        os.environ["TOKENIZERS_PARALLELISM"] = str(parallel).lower()
        found = theirs.encode_batch_fast(texts, add_special_tokens=False)
        return [one.ids for one in found]

    ids = ours.encode(texts[0])
    assert ids == bare.encode_ordinary(texts[0]) == batch(texts[:1], False)[0]
    return {
        "minillama": lambda: ours.encode(fresh(text)),
        "tiktoken": lambda: bare.encode_ordinary(fresh(text)),
        "tokenizers": lambda: batch([fresh(text)], parallel=False)[0],
        "tokenizers, with places": lambda: (
            theirs.encode(text, add_special_tokens=False).ids
        ),
        f"tiktoken, {ALL_CORES}": lambda: bare.encode_ordinary_batch(
            blocks(text), num_threads=os.cpu_count() or 1
        ),
        f"tokenizers, {ALL_CORES}": lambda: batch(blocks(text), parallel=True),
    }


def fresh(text: str) -> str:
    return "".join((text[:1], text[1:]))


def blocks(text: str, width: int = 400_000) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), width)]


def train_theirs(
    texts: Iterable[str], vocab_size: int, *, parallel: bool
) -> tokenizers.Tokenizer:
    """Hugging Face's trainer with the same pattern and the same 256 first tokens."""
    os.environ["TOKENIZERS_PARALLELISM"] = str(parallel).lower()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(tokenizers.Regex(LLAMA3_PATTERN), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_naively(text: str, vocab_size: int) -> list[tuple[bytes, bytes]]:
    """The algorithm of the paper (arXiv 1508.07909, figure 1): a dictionary of words.

    All pairs of all different pieces are counted again for each merge. Only the tie
    rule is ours, so that the merges are.
    """
    found = Counter(piece.encode() for piece in regex.findall(LLAMA3_PATTERN, text))
    words = [([bytes([byte]) for byte in piece], n) for piece, n in found.items()]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < vocab_size - 256:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, n in words:
            for pair in pairwise(word):
                counts[pair] += n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = [(joined(word, best), n) for word, n in words]
    return merges


def joined(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    parts: list[bytes] = []
    at = 0
    while at < len(word):
        if at + 1 < len(word) and (word[at], word[at + 1]) == pair:
            parts.append(word[at] + word[at + 1])
            at += 2
        else:
            parts.append(word[at])
            at += 1
    return parts


def interleave(contenders: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, one of each a round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main(rounds: int = 5) -> None:
    """Print for each contender the median, and how much faster minillama is."""
    for row, contenders in cases().items():
        seconds = interleave(contenders, rounds)
        print(f"{row}, medians of {rounds} rounds")
        for name, took in seconds.items():
            rates = [t / o for t, o in zip(took, seconds["minillama"], strict=True)]
            rate = statistics.median(rates)
            print(f"  {name:26} {statistics.median(took):8.3f} s  {rate:8.2f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
