"""Which module stands on which floor, and which notebook explains it: said here, once.

A module imports from lower floors only. The few imports along a floor that are wanted
are named in `beside`. Read by tools/quotes.py and by tests/house.
"""

from typing import NamedTuple

SYLLABUS = {
    "00": "welcome",
    "01": "tokenizer",
    "02": "norm",
    "03": "rope",
    "04": "attention",
    "05": "block",
    "06": "llama",
    "07": "training",
    "08": "decoding",
    "09": "weights",
    "10": "faster",
    "11": "inside",
}


class Module(NamedTuple):
    """The place of one module of minillama."""

    floor: int
    notebook: str | None = None  # that builds it; None: read it in the library alone
    beside: tuple[str, ...] = ()  # modules of its own floor that it may import


MODULES = {
    # 0: facts, no torch
    "config": Module(0, "06"),
    "bpe": Module(0, "01"),
    "splitting": Module(0, "01"),
    "vocabulary": Module(0, beside=("bpe", "splitting")),
    "tokenizer_files": Module(
        0, beside=("bpe", "splitting", "vocabulary", "gguf_file")
    ),
    "tokenizer": Module(
        0, "01", beside=("bpe", "splitting", "vocabulary", "tokenizer_files")
    ),
    "chat": Module(0, "01", beside=("tokenizer",)),
    "gguf_file": Module(0),
    "home": Module(0),
    # 1: parts
    "norm": Module(1, "02"),
    "rope": Module(1, "03"),
    "attention": Module(1, "04", beside=("rope", "cache")),
    "feed_forward": Module(1, "05"),
    "cache": Module(1, "08"),
    # 2: the whole
    "model": Module(2, "06"),
    # 3: drivers
    "sampling": Module(3, "08"),
    "generate": Module(3, "08", beside=("sampling",)),
    "prefix": Module(3, beside=("generate", "sampling")),
    "speculate": Module(3, beside=("generate", "prefix", "sampling")),
    "data": Module(3, "07"),
    "train": Module(3, "07", beside=("data",)),
    # 4: changes
    "names": Module(4, "09"),
    "formats": Module(4, "09"),
    "weights": Module(4, "09", beside=("fast", "formats", "names", "quantize", "swap")),
    "swap": Module(4, "10"),
    "quantize": Module(4, "10", beside=("swap",)),
    "native": Module(4),
    "fast": Module(4, beside=("native", "quantize", "swap")),
    "packed": Module(4, beside=("quantize", "swap")),
    "compiled": Module(4, beside=("fast", "native", "packed")),
    "lora": Module(4, "14", beside=("swap",)),
    "parallel": Module(4, "19", beside=("swap",)),
    "capture": Module(4, "11"),
    # 5: surface
    "fetch": Module(5),
    "hub": Module(5, "09", beside=("fetch",)),
    "api": Module(5, "00", beside=("hub",)),
    "plan": Module(5, "09", beside=("api", "hub")),
    "doctor": Module(5, "00", beside=("hub", "plan")),
    "bench": Module(5, "10", beside=("api", "hub", "plan")),
    "widgets": Module(5),
    "recipe": Module(5, "07", beside=("course",)),
    "course": Module(5, beside=("recipe", "api", "hub", "widgets")),
    "cli": Module(
        5,
        "00",
        beside=("api", "bench", "course", "doctor", "fetch", "hub", "plan", "recipe"),
    ),
    "__main__": Module(5, beside=("cli",)),
}

# Definitions that another notebook than their module's explains, or none does: reading
# files of others, and the limits of a faster engine.
NOTEBOOK_OF = {
    "minillama.splitting.read_segments": None,
    "minillama.splitting.meta_blocks": None,
    "minillama.splitting.meta_cuts": None,
    "minillama.splitting.has_run": None,
    "minillama.model.Block": "05",
}

# The core: each part of it fits into one cell of a notebook.
CORE = ("norm", "rope", "attention", "feed_forward", "cache", "model")
