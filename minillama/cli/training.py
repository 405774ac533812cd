"""The command that trains a small Llama of one's own: train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minillama.cli import screen

if TYPE_CHECKING:
    from minillama.train import Progress

    OnStep = Callable[[Progress], None]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(rich_help_panel="Training", epilog=_TRAIN)(train)


_TRAIN = "Example: minillama train data/tales.toml my-model"

# What a text file is trained with; a recipe says it all itself.
_DEFAULTS: dict[str, Any] = {
    "training.steps": 500,
    "training.learning_rate": 3e-3,
    "tokenizer.vocab_size": 1024,
    "model.dim": 128,
    "model.n_layers": 4,
    "model.n_heads": 4,
    "model.n_kv_heads": 2,
    "model.seed": 0,
    "batches.batch_size": 16,
    "batches.context": 128,
}


def train(
    corpus: Annotated[
        Path,
        typer.Argument(
            help="A recipe such as data/tales.toml, or a text file with a blank line "
            "between two texts."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder for the model.")],
    steps: Annotated[int | None, typer.Option(help="Batches to learn from.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Tokens to learn.")] = None,
    dim: Annotated[int | None, typer.Option(help="Width of the model.")] = None,
    layers: Annotated[int | None, typer.Option(help="Blocks in a row.")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Heads that are cached.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a window.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same model.")] = None,
) -> None:
    """Train a small Llama and its tokenizer on texts of your own.

    What is not given is as the recipe says. Ctrl-C ends after the present step with a
    model that works; the same command then goes on from there.
    """
    asked = {
        "training.steps": steps,
        "training.learning_rate": learning_rate,
        "tokenizer.vocab_size": vocab_size,
        "model.dim": dim,
        "model.n_layers": layers,
        "model.n_heads": heads,
        "model.n_kv_heads": kv_heads,
        "model.seed": seed,
        "batches.batch_size": batch,
        "batches.context": context,
    }
    changes = {key: value for key, value in asked.items() if value is not None}
    refuse_other_folder(out)
    if corpus.suffix == ".toml":
        from minillama.recipe import train_from_toml

        _require_file(corpus)
        changes |= rescaled(corpus, steps)
        with _watched() as watch:
            finished = train_from_toml(corpus, out, watch, changes).finished
    else:
        with _watched() as watch:
            finished = train_on_text(corpus, out, watch, _DEFAULTS | changes)
    if finished:
        screen.say(f'Saved. Try: minillama generate {out} "It was" --temperature 0.8')
    else:
        screen.say(f"Saved as it is in {out}; the same command goes on from there.")


def rescaled(recipe: Path, steps: int | None) -> dict[str, int]:
    """Warm-up and annealing in the recipe's proportion to another number of steps."""
    from minillama.recipe import read_recipe

    if steps is None:
        return {}
    training = read_recipe(recipe)["training"]
    return {
        f"training.{key}": training[key] * steps // training["steps"]
        for key in ("warmup_steps", "anneal_steps")
        if key in training
    }


def train_on_text(
    corpus: Path, out: Path, on_step: "OnStep", settings: dict[str, Any]
) -> bool:
    """Train on a file of texts, and save; False if it was ended early."""
    texts = read_texts(corpus)
    get = settings.__getitem__
    dim, heads, steps = get("model.dim"), get("model.n_heads"), get("training.steps")
    if dim % heads:
        raise ValueError(f"dim {dim} is no multiple of {heads} heads: choose another")
    from minillama.config import LlamaConfig
    from minillama.data import Batches, all_windows, encode_texts, split
    from minillama.model import Llama
    from minillama.tokenizer import train_bpe
    from minillama.train import TrainSettings, init_weights
    from minillama.train import train as run
    from minillama.weights import save_weights

    specials = ("<|begin_of_text|>", "<|end_of_text|>")
    tokenizer = train_bpe("\n\n".join(texts), get("tokenizer.vocab_size"), specials)
    ids, outside = split(encode_texts(texts, tokenizer), 0.1)
    config = LlamaConfig(
        dim=dim,
        n_layers=get("model.n_layers"),
        n_heads=heads,
        n_kv_heads=get("model.n_kv_heads"),
        head_dim=dim // heads,
        ffn_dim=-(-dim * 8 // 3 // 32) * 32,
        vocab_size=tokenizer.vocab_size,
        max_seq_len=get("batches.context"),
        tied_embeddings=True,
    )
    model, seed = Llama(config), get("model.seed")
    init_weights(model, config.n_layers, seed)
    data = Batches(ids, get("batches.batch_size"), get("batches.context"), seed)
    plan = TrainSettings(
        steps=steps,
        learning_rate=get("training.learning_rate"),
        warmup_steps=steps // 20,
        anneal_steps=steps // 10,
        evaluate_every=max(1, steps // 10),
        save_every=max(1, steps // 10),
    )
    tests = list(all_windows(outside, data.batch_size, data.context))[:8]
    checkpoint = out.with_name(out.name + ".checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    history = run(
        model, data, plan, held_out=tests, on_step=on_step, checkpoint=checkpoint
    )
    save_weights(model, out, tokenizer)
    finished = not history or history[-1].step + 1 == steps
    if finished:
        checkpoint.unlink(missing_ok=True)
    return finished


def read_texts(corpus: Path) -> list[str]:
    """The texts of a UTF-8 file, with blank lines between them."""
    _require_file(corpus)
    try:
        text = corpus.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{corpus} is not UTF-8 text (byte {error.start}): save it as UTF-8 first"
        ) from None
    texts = [part.strip() for part in text.split("\n\n") if part.strip()]
    if not texts:
        raise ValueError(f"{corpus} is empty: there is nothing to learn from")
    return texts


def _require_file(corpus: Path) -> None:
    if not corpus.is_file():
        raise ValueError(f"there is no file {corpus}: name one to learn from")


def refuse_other_folder(out: Path) -> None:
    """Say now, not after minutes of training, that nothing will be written there."""
    if out.is_file():
        raise ValueError(f"{out} is a file: name a folder for the model")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise ValueError(f"{out} holds other things: name a new folder for the model")


@contextmanager
def _watched() -> "Iterator[OnStep]":
    """One line that follows the loss; a line that stays at each held-out loss."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("telling, counting, preparing") as status:

        def on_step(now: "Progress") -> None:
            status.update(f"step {now.step + 1}: loss {now.loss:.3f}")
            if now.held_out_loss is not None:
                console.print(
                    f"step {now.step + 1}: loss {now.loss:.3f}, held out "
                    f"{now.held_out_loss:.3f}, {now.seconds:.0f} s"
                )

        yield on_step
