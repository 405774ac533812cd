"""Look inside a running model without changing what it computes.

`with capture(model, "attention", "residual") as seen:` records while the model runs.
Everything is put back at the end, whatever happens in between.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minillama.model import Llama

NAMES = ("attention", "residual", "attention_out", "feed_forward_out")


def explicit_attend(
    q: Float[Tensor, "B H T Dh"],
    k: Float[Tensor, "B K S Dh"],
    v: Float[Tensor, "B K S Dh"],
    mask: Bool[Tensor, "... T S"] | None,
) -> tuple[Float[Tensor, "B H T Dh"], Float[Tensor, "B H T S"]]:
    """`attend` written out, which returns its probabilities as well.

    Each KV head is repeated for the query heads that share it, one after another; the
    softmax is taken in float32 at least.
    """
    n_rep = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(n_rep, dim=1) for x in (k, v))  # B H S Dh
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT / math.sqrt(q.shape[-1])  # B H T S
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    probs = scores.softmax(-1)
    return (probs @ v.to(wide)).to(q.dtype), probs


class Seen:
    """What `capture` recorded: `seen.attention` is a list with a tensor a layer.

    `attention`: probabilities, B H T S, float32 at least. `residual`: the stream,
    B T D, after the embeddings and after each block, so one more than there are layers.
    `attention_out` and `feed_forward_out`: what each part added to it, B T D.

    The model may run many times, once a token while it decodes. `seen.calls` has one
    dictionary of such lists a run, in order; the attributes are those of the last run.
    Tensors are copies, without gradients.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.calls: list[dict[str, list[Tensor]]] = []

    def __getattr__(self, name: str) -> list[Tensor]:
        if name not in NAMES:
            raise AttributeError(f"no {name!r} in what was seen")
        if name not in self.names:
            raise AttributeError(
                f"{name!r} was not captured: ask for it, capture(model, {name!r})"
            )
        if not self.calls:
            raise AttributeError(
                f"nothing was seen, so no {name!r}: run the model inside `with capture`"
            )
        return self.calls[-1][name]

    def record(self, name: str, value: Tensor) -> None:
        """Keep a copy. Inference mode is left for it, so that it can be changed."""
        with torch.inference_mode(False):
            self.calls[-1][name].append(value.detach().clone())


@contextmanager
def capture(model: Llama, *names: str) -> Iterator[Seen]:
    """Record what is named while the model runs in the `with` block.

    The logits stay the same to the last bit: `attend` still does the work, and the
    probabilities are computed beside it. Captures may be nested. Raises ValueError for
    an unknown name, and while running if a layer's `attend` computes something else
    than softmax attention: it has no such probabilities then.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        what = f"cannot capture {unknown[0]!r}" if unknown else "nothing to capture"
        raise ValueError(f"{what}: choose from {', '.join(NAMES)}")
    seen = Seen(names)
    with ExitStack() as undo:

        def read(module: nn.Module, name: str) -> None:
            def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
                seen.record(name, out)

            undo.callback(module.register_forward_hook(hook).remove)

        def begin(_module: nn.Module, _args: Any) -> None:
            seen.calls.append({name: [] for name in names})

        undo.callback(model.register_forward_pre_hook(begin).remove)
        if "residual" in names:
            read(model.tok_embeddings, "residual")
        for number, layer in enumerate(cast("Iterable[Any]", model.layers)):
            if "attention" in names:
                _watch_attend(_attention(layer, number), number, seen, undo)
            if "residual" in names:
                read(layer, "residual")
            if "attention_out" in names:
                read(layer.attention, "attention_out")
            if "feed_forward_out" in names:
                read(layer.feed_forward, "feed_forward_out")
        yield seen


def _attention(layer: Any, number: int) -> Any:
    if not hasattr(layer, "attention"):
        raise ValueError(
            f"layer {number} is one fused step, with no attention to look into: load "
            "the model without quantize and compile"
        )
    return layer.attention


def _watch_attend(attention: Any, number: int, seen: Seen, undo: ExitStack) -> None:
    if not callable(getattr(attention, "attend", None)):
        raise ValueError(
            f"the attention of layer {number} has no `attend` to look through: let its "
            "forward call self.attend(q, k, v, mask), as Attention does"
        )
    attend: Callable[..., Tensor] = attention.attend

    def watching(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = attend(q, k, v, mask)
        with torch.no_grad():
            again, probs = explicit_attend(q, k, v, mask)
            error = float((again - out).abs().max() / v.abs().max())
        # Probabilities that do not explain the output would be a picture of nothing.
        if error > torch.finfo(q.dtype).eps ** 0.5:
            raise ValueError(
                f"`attend` of layer {number} is not softmax attention (its output is "
                f"{error:.2g} off): there are no probabilities to show"
            )
        seen.record("attention", probs)
        return out

    attention.attend = watching
    undo.callback(setattr, attention, "attend", attend)
