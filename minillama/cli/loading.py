"""How the commands load a model: the options they share, and what is said of it."""

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from minillama.cli import screen

if TYPE_CHECKING:
    from minillama.model import Llama

Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bf16 or float16. Without it, as in the file."),
]
Quantize = Annotated[
    str | None,
    typer.Option(help="int8 or int4: fewer bytes for each weight, so more tokens."),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the step of one token first. Without it: if --quantize is given.",
        show_default=False,
    ),
]


class How(NamedTuple):
    """The options of loading, as they were typed."""

    dtype: str | None = None
    device: str | None = None
    quantize: str | None = None
    compile: bool | None = None


def load(name: str, how: How) -> Any:
    """A model and its tokenizer; what was compiled is said on the side."""
    from minillama import hub

    hub.resolve(name)  # the likeliest mistake, said before torch is imported
    from minillama import api

    model, tokenizer = api.load(name, **_options(how))
    compile_if_asked(model, how)
    return model, tokenizer


def load_model(name: str, how: How) -> "Llama":
    """The weights alone."""
    from minillama import hub

    hub.resolve(name)
    from minillama import api

    model = api.load_model(name, **_options(how))
    compile_if_asked(model, how)
    return model


def compile_if_asked(model: "Llama", how: How) -> None:
    """Compile by the options, and say how, or why not, and how long it took."""
    if how.compile or (how.compile is None and how.quantize):
        from minillama.compiled import compile_model

        compiled = compile_model(model, wait=bool(how.compile))
        if how.compile or not compiled.done:
            screen.note(str(compiled))


def _options(how: How) -> dict[str, Any]:
    return {
        "dtype": torch_dtype(how.dtype),
        "device": how.device,
        "quantize": how.quantize,
        "compile": False,
    }


def torch_dtype(name: str | None) -> Any:
    """The torch dtype of that name; None stays None."""
    if name is None:
        return None
    import torch

    from minillama.plan import dtype_name

    dtype = getattr(torch, dtype_name(name))
    if not hasattr(dtype, "is_floating_point") or not dtype.is_floating_point:
        raise ValueError(
            f"a model cannot run in {name}: choose float32, bf16 or float16, or "
            f"--quantize {name}"
        )
    return dtype
