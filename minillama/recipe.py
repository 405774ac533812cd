"""A whole training run in one TOML file: texts, tokenizer, model, and how to train.

`data/tales.toml` is such a file: `train_from_toml("data/tales.toml", "my-tiny")` tells
the tales, learns a vocabulary, trains, and writes a folder that `load` opens. The
bundled model `tiny` was made by this call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillama.course.tales import World, tales
from minillama.course.tales.world import tomllib

if TYPE_CHECKING:
    from minillama.config import LlamaConfig
    from minillama.data import Batches, Pair
    from minillama.model import Llama
    from minillama.tokenizer import Tokenizer
    from minillama.train import Progress, TrainSettings

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

# The sections that a recipe needs, and the keys in each; the world's own are not ours.
_KEYS = {
    "corpus": {"seed", "stories", "held_out_seed", "held_out_stories"},
    "tokenizer": {"vocab_size", "stories"},
    "model": {
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "ffn_dim",
        "max_seq_len",
        "rope_theta",
        "tied_embeddings",
        "seed",
    },
    "batches": {"batch_size", "context", "seed"},
    "training": {
        "steps",
        "learning_rate",
        "warmup_steps",
        "final_ratio",
        "anneal_steps",
        "weight_decay",
        "max_grad_norm",
        "evaluate_every",
        "save_every",
    },
}
# These have defaults in `TrainSettings`.
_OPTIONAL = _KEYS["training"] - {"steps", "learning_rate"}


@dataclass(frozen=True)
class Trained:
    """What a run made: the model in float32, its tokenizer, and the history.

    `finished` is False after Ctrl-C: the same call then goes on where it stopped.
    """

    model: "Llama"
    tokenizer: "Tokenizer"
    history: "list[Progress]"
    finished: bool


@dataclass(frozen=True)
class Prepared:
    """All that training takes, made from a recipe."""

    config: "LlamaConfig"
    model: "Llama"
    tokenizer: "Tokenizer"
    data: "Batches"
    held_out: "list[Pair]"
    settings: "TrainSettings"


def is_recipe(path: str | Path) -> bool:
    """Whether a TOML file says how to train, and not only what a world is made of."""
    return "training" in tomllib.loads(Path(path).read_text("utf-8"))


def read_recipe(path: str | Path, changes: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The sections of a recipe; `changes` replaces values, {"training.steps": 100}.

    Raises ValueError for a section or a key that is missing or unknown.
    """
    raw = tomllib.loads(Path(path).read_text("utf-8"))
    recipe = {name: dict(raw.get(name, {})) for name in _KEYS}
    for dotted, value in changes.items():
        section, _, key = dotted.partition(".")
        recipe.setdefault(section, {})[key] = value
    for name, section in recipe.items():
        if unknown := sorted(set(section) - _KEYS.get(name, set())):
            raise ValueError(f"{path}: [{name}] does not know {', '.join(unknown)}")
        if not section:
            raise ValueError(f"{path} has no section [{name}]: see data/tales.toml")
        if missing := sorted(_KEYS[name] - set(section) - _OPTIONAL):
            raise ValueError(f"{path}: [{name}] lacks {', '.join(missing)}")
    return recipe


def train_from_toml(
    path: str | Path,
    out: str | Path,
    on_step: "Callable[[Progress], None] | None" = None,
    changes: Mapping[str, Any] = {},
) -> Trained:
    """Make a model from a recipe, and save it in the folder `out` in bfloat16.

    A checkpoint lies beside the folder until the run has finished; Ctrl-C leaves it,
    and a model that can be used, and the same call then goes on. Raises ValueError for
    a recipe that cannot be, before any work is done.
    """
    import torch

    from minillama.model import Llama
    from minillama.train import train
    from minillama.weights import save_weights

    made, out = prepare(path, changes), Path(out)
    checkpoint = out.with_name(out.name + ".checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    history = train(
        made.model,
        made.data,
        made.settings,
        held_out=made.held_out,
        on_step=on_step,
        checkpoint=checkpoint,
    )
    rounded = Llama(made.config).to(torch.bfloat16)
    rounded.load_state_dict(made.model.state_dict())
    save_weights(rounded, out, made.tokenizer)
    finished = not history or history[-1].step + 1 == made.settings.steps
    if finished:
        checkpoint.unlink(missing_ok=True)
    return Trained(made.model, made.tokenizer, history, finished)


def prepare(path: str | Path, changes: Mapping[str, Any] = {}) -> Prepared:
    """All that a recipe asks for, up to the first step.

    The tales are told, the vocabulary is learnt, the model has its first weights.
    """
    from minillama.config import LlamaConfig
    from minillama.data import Batches, all_windows, encode_texts
    from minillama.model import Llama
    from minillama.tokenizer import train_bpe
    from minillama.train import TrainSettings, init_weights

    recipe, world = read_recipe(path, changes), World.load(path)
    settings = TrainSettings(**recipe["training"])
    texts, outside = _texts(world, **recipe["corpus"])
    learnt_from = "\n\n".join(texts[: recipe["tokenizer"]["stories"]])
    tokenizer = train_bpe(learnt_from, recipe["tokenizer"]["vocab_size"], (BEGIN, END))
    sizes = dict(recipe["model"])
    seed = sizes.pop("seed")
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, **sizes)
    model = Llama(config)
    init_weights(model, config.n_layers, seed)
    ids = encode_texts(texts, tokenizer)
    data = Batches(ids, begin_id=tokenizer.bos_id, **recipe["batches"])
    held_out = all_windows(
        encode_texts(outside, tokenizer), data.batch_size, data.context, data.begin_id
    )
    return Prepared(config, model, tokenizer, data, list(held_out), settings)


def _texts(
    world: World, seed: int, stories: int, held_out_seed: int, held_out_stories: int
) -> tuple[list[str], list[str]]:
    """Tales to learn from, and others that are not among them."""
    texts = list(tales(world, seed, stories))
    known = set(texts)
    outside = tales(world, held_out_seed, held_out_stories)
    return texts, [text for text in outside if text not in known]
