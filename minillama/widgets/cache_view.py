"""What a KV cache takes: bytes under sliders, beside the memories it has to fit."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from minillama.widgets.view import View

GIB = 2**30
LLAMA3_8B = {"n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128}
_LIMITS = {"n_layers": 1000, "n_heads": 1024, "n_kv_heads": 1024, "head_dim": 4096}
WIDTHS = (4, 2, 1, 0.5)  # bytes a number: float32, bfloat16, 8 bits, 4 bits


class CacheView(View):
    """KV-cache memory of a model, under sliders, beside memories of given sizes.

    `models` maps a name to a dictionary with `n_layers`, `n_heads`, `n_kv_heads`,
    `head_dim`, and `weight_bytes` where the weights shall be counted too; other keys
    are passed over, so `dataclasses.asdict(config)` will do. `memories` are in GiB.
    The same formula as `LlamaConfig.kv_cache_bytes`:
    2 x layers x KV heads x head_dim x tokens x batch x bytes a number.
    """

    name = "cache_view"
    title = "KV cache"

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        memories: Sequence[float] = (8, 16, 24, 80),
        *,
        tokens: int = 8192,
        batch: int = 1,
        number_bytes: float = 2,
    ) -> None:
        given = {"Llama 3 8B": LLAMA3_8B} if models is None else models
        start = {"tokens": tokens, "batch": batch, "number_bytes": number_bytes}
        super().__init__(lambda: _data(given, memories, start))

    def words(self) -> str:
        name, model = next(iter(self.data["models"].items()))
        size = cache_bytes(model, **self.data["start"]) / GIB
        start = self.data["start"]
        return (
            f"KV cache of {name}, {start['tokens']:,} tokens, batch {start['batch']}: "
            f"{size:.3g} GiB"
        )

    def draw(self) -> Any:
        """The cache of each model with all its heads, with its own, and with one."""
        from matplotlib.figure import Figure

        models, start = self.data["models"], self.data["start"]
        figure = Figure(figsize=(8, 1 + 0.75 * len(models)), layout="constrained")
        axes = figure.add_subplot()
        kinds = (("all heads (MHA)", "#9ecae1"), ("its KV heads (GQA)", "#0060a0"))
        for k, (label, colour) in enumerate((*kinds, ("one head (MQA)", "#a84300"))):
            sizes = [
                cache_bytes({**m, "n_kv_heads": _kinds(m)[k]}, **start) / GIB
                for m in models.values()
            ]
            y = [row + 0.27 * (k - 1) for row in range(len(models))]
            bars = axes.barh(y, sizes, height=0.25, color=colour, label=label)
            axes.bar_label(bars, [f" {size:.3g}" for size in sizes], fontsize=8)
        axes.set_yticks(range(len(models)), list(models), parse_math=False)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(
            f"GiB for {start['tokens']:,} tokens x {start['batch']}, "
            f"{start['number_bytes']:g} bytes a number"
        )
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def cache_bytes(
    model: Mapping[str, int], tokens: int, batch: int, number_bytes: float
) -> float:
    """Keys and values of all layers."""
    a_token = 2 * model["n_layers"] * model["n_kv_heads"] * model["head_dim"]
    return a_token * number_bytes * tokens * batch


def _kinds(model: Mapping[str, int]) -> tuple[int, int, int]:
    return model["n_heads"], model["n_kv_heads"], 1


def _data(
    models: Mapping[str, Mapping[str, Any]],
    memories: Sequence[float],
    start: dict[str, Any],
) -> dict[str, Any]:
    if not models:
        raise ValueError('no model is given: CacheView({"name": {"n_layers": ...}})')
    if not len(memories) or not all(_within(m, 1e-6, 1e6) for m in memories):
        raise ValueError(
            f"memories are {list(memories)}: give sizes in GiB, above 0, such as 24"
        )
    for name, most in (("tokens", 10_000_000), ("batch", 10_000)):
        _whole("the start", name, start[name], most)
    if start["number_bytes"] not in WIDTHS:
        raise ValueError(
            f"number_bytes is {start['number_bytes']}: it is one of {WIDTHS}"
        )
    return {
        "models": {str(name): _model(name, model) for name, model in models.items()},
        "memories": [float(m) for m in memories],
        "start": start,
    }


def _model(name: str, model: Mapping[str, Any]) -> dict[str, int]:
    missing = [key for key in _LIMITS if key not in model]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    numbers = {k: _whole(name, k, model[k], most) for k, most in _LIMITS.items()}
    if numbers["n_heads"] % numbers["n_kv_heads"]:
        raise ValueError(
            f"{name} has {numbers['n_heads']} heads for {numbers['n_kv_heads']} KV "
            "heads: as many must share each"
        )
    if weights := model.get("weight_bytes"):
        numbers["weight_bytes"] = _whole(name, "weight_bytes", weights, 10**15)
    return numbers


def _whole(owner: str, key: str, value: Any, most: int) -> int:
    if not _within(value, 1, most):
        raise ValueError(f"{owner} has {key} {value}: it lies between 1 and {most:,}")
    if int(value) != value:
        raise ValueError(f"{owner} has {key} {value}: give a whole number")
    return int(value)


def _within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, Real) and least <= float(value) <= most
