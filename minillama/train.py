"""Training: the loss, the optimiser, the learning rate, and the loop around them."""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minillama.data import Batches, Pair


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train: how long, how fast, and how often to look and to save.

    `final_ratio`: the cosine ends at this share of the peak (Llama 3: 0.01).
    `anneal_steps`: over so many last steps the rate goes straight to zero.
    `evaluate_every` and `save_every` count steps; 0 is at the end alone.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    final_ratio: float = 0.01
    anneal_steps: int = 0
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    evaluate_every: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        used = self.warmup_steps + self.anneal_steps
        if self.steps < 1 or used > self.steps:
            raise ValueError(
                f"{self.steps} steps cannot hold {self.warmup_steps} of warm-up and "
                f"{self.anneal_steps} of annealing: train longer"
            )
        for name, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, as {value} is")


@dataclass(frozen=True)
class Progress:
    """What one step did; `held_out_loss` is None on most steps."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    held_out_loss: float | None
    seconds: float


def next_token_loss(
    model: nn.Module, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """The mean surprise at the next token: -log p(target), in nats.

    A model that knows nothing has log(vocab_size). In float32 whatever the model's
    dtype: bfloat16 sums lose too much.
    """
    logits: Tensor = model(tokens)  # B T V
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def init_weights(model: nn.Module, n_layers: int, seed: int = 0) -> None:
    """Begin with random matrices that keep the size of what passes through them.

    Standard deviation 1 / sqrt(inputs). Each layer adds two outputs to the residual
    stream: theirs are smaller by sqrt(2 n_layers), so that the stream is as large in a
    deep model as in a shallow one (GPT-2, section 2.3). The output matrix begins small:
    no token is preferred, and the first loss is log(vocab_size). Norms begin at one.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)
                continue
            std = 0.02 if name == "output.weight" else weight.shape[1] ** -0.5
            if name.endswith(("wo.weight", "w_down.weight")):
                std /= math.sqrt(2 * n_layers)
            # Drawn on the CPU: the same numbers on every device.
            weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=generator))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norm weights and embeddings do not.

    Decay pulls towards zero. A norm weight's rest is one, not zero; and the row of a
    rare token would decay at every step but be taught at few.
    """
    rows = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    taught = [p for p in model.parameters() if p.requires_grad]
    decays = [p for p in taught if p.dim() > 1 and id(p) not in rows]
    kept = [p for p in taught if p.dim() <= 1 or id(p) in rows]
    return [
        {"params": decays, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with Llama's betas. Source: arXiv 1711.05101; arXiv 2302.13971, 2.3."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The learning rate of a step: up in a line, down a cosine, at last to zero.

    Warm-up: peak (step + 1) / warmup. Then half a cosine from the peak to
    `final_ratio` of it at the last step. Annealing: over the last `anneal_steps`, a
    line from where the cosine stands to zero. Source: arXiv 2407.21783, 3.4.1, 3.4.3.
    """
    s = settings
    if step < s.warmup_steps:
        return s.learning_rate * (step + 1) / s.warmup_steps
    anneal_from = s.steps - s.anneal_steps
    if step > anneal_from:
        left = (s.steps - step) / s.anneal_steps
        return left * learning_rate(anneal_from, settings)
    done = (step - s.warmup_steps) / max(1, s.steps - s.warmup_steps)
    cosine = (1 + math.cos(math.pi * done)) / 2  # 1 at the peak, 0 at the end
    return s.learning_rate * (s.final_ratio + (1 - s.final_ratio) * cosine)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Pair, clip: float
) -> tuple[float, float]:
    """One step downhill: the loss before it, and the norm of the gradient.

    A gradient longer than `clip` is shortened to it: one strange batch must not throw
    the weights far away. Raises ValueError before the weights are touched if the loss
    or the gradient is no number.
    """
    device = next(model.parameters()).device
    tokens, targets = (ids.to(device) for ids in batch)
    optimizer.zero_grad()
    loss = next_token_loss(model, tokens, targets)
    torch.autograd.backward(loss)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    if not (loss.isfinite() and norm.isfinite()):
        raise ValueError(
            f"the loss is {loss.item():.4g} and its gradient {norm.item():.4g}: "
            "lower the learning rate, or warm up for longer"
        )
    optimizer.step()
    return loss.item(), norm.item()


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: Iterable[Pair]) -> float:
    """The mean loss over text that the model never trained on."""
    device = next(model.parameters()).device
    total, count, was_training = 0.0, 0, model.training
    model.eval()
    for tokens, targets in batches:
        loss = next_token_loss(model, tokens.to(device), targets.to(device))
        total += loss.item() * targets.numel()
        count += targets.numel()
    model.train(was_training)
    return total / count


def train(
    model: nn.Module,
    data: Batches,
    settings: TrainSettings,
    *,
    held_out: Iterable[Pair] = (),
    on_step: Callable[[Progress], None] | None = None,
    checkpoint: str | Path | None = None,
) -> list[Progress]:
    """Train the model in place, and return what each step did.

    `held_out` is a list of batches to measure on. If the file `checkpoint` is there,
    the run goes on from it, bit for bit as if it had never stopped. Ctrl-C ends the run
    after the present step: the model is usable and the checkpoint is written.
    """
    held_out = list(held_out)
    optimizer, history = make_optimizer(model, settings), list[Progress]()
    first, began = resume(checkpoint, model, optimizer, settings, data), time.time()
    model.train()
    with interrupt_after_step() as interrupted:
        for step in range(first, settings.steps):
            rate = learning_rate(step, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, norm = train_step(
                model, optimizer, data.at(step), settings.max_grad_norm
            )
            last = step + 1 == settings.steps or interrupted()
            looked = held_out and (last or due(step, settings.evaluate_every))
            outside = held_out_loss(model, held_out) if looked else None
            seconds = time.time() - began
            history.append(Progress(step, loss, rate, norm, outside, seconds))
            if checkpoint and (last or due(step, settings.save_every)):
                save_checkpoint(checkpoint, model, optimizer, settings, data, step + 1)
            if on_step:
                on_step(history[-1])
            if last:
                break
    model.eval()
    return history


def due(step: int, every: int) -> bool:
    """Whether what comes every so many steps comes after this one; 0 is never."""
    return every > 0 and (step + 1) % every == 0


@contextmanager
def interrupt_after_step() -> Generator[Callable[[], bool]]:
    """Make Ctrl-C wait for the end of a step; a second one stops at once.

    A step changes one weight after another: stopped in the middle, it would leave a
    model that no number of steps makes.
    """
    asked = threading.Event()

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread hears of Ctrl-C
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    data: Batches,
    step: int,
) -> None:
    """Write all that the next step depends on; the file is whole or not there."""
    path = Path(path)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "step": step,
        "run": _run(settings, data),
    }
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        torch.save(state, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def resume(
    path: str | Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    data: Batches,
) -> int:
    """Restore a checkpoint, if there is one; return the number of the next step."""
    if path is None or not Path(path).exists():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        step, run = int(state["step"]), state["run"]
    except Exception as error:
        raise ValueError(
            f"{path} is no checkpoint of this library, or is damaged: delete it to "
            "begin anew"
        ) from error
    _same_run(str(path), run, _run(settings, data))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(
            f"{path} is of a model of other shapes: delete it to begin anew"
        ) from error
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return step


def _run(settings: TrainSettings, data: Batches) -> dict[str, Any]:
    cut = {k: getattr(data, k) for k in ("batch_size", "context", "seed", "begin_id")}
    return asdict(settings) | cut | {"tokens": len(data.ids)}


def _same_run(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [
        f"{k} {old.get(k)} then, {new[k]} now" for k in new if old.get(k) != new[k]
    ]
    if changed:
        raise ValueError(
            f"{path} is of another run ({'; '.join(changed)}): go on with its "
            "settings, or delete it to begin anew"
        )
