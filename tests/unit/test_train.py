"""Training against formulas, torch's own schedulers, and itself cut in two."""

import math
import os
import pickle
import signal
import threading
from dataclasses import asdict

import numpy as np
import pytest
import torch
from loud import loud_model, small_config
from torch import nn

from minillama.data import Batches, all_windows
from minillama.model import Llama, Parts
from minillama.norm import RMSNorm
from minillama.train import (
    TrainSettings,
    held_out_loss,
    init_weights,
    interrupt_after_step,
    learning_rate,
    make_optimizer,
    next_token_loss,
    parameter_groups,
    save_checkpoint,
    train,
    train_step,
)


@pytest.fixture(autouse=True)
def one_thread():
    """For tensors this small, a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


VOCAB = 131


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, VOCAB, 2000).astype(np.uint16)


@pytest.fixture
def data(ids):
    return Batches(ids, batch_size=4, context=24, seed=3)


def fresh(seed=0, parts=None, **changes):
    config = small_config(n_layers=2, **changes)
    model = Llama(config, parts or Parts())
    init_weights(model, config.n_layers, seed)
    return model


# Loss and beginning


def test_loss_is_the_mean_surprise_in_float64():
    model = loud_model().double()
    tokens = torch.randint(
        0, VOCAB, (2, 30), generator=torch.Generator().manual_seed(1)
    )
    targets = torch.randint(0, VOCAB, (2, 30))
    logits = model(tokens)
    surprise = 0.0
    for row in range(2):
        for place in range(30):
            scores = logits[row, place]
            surprise -= scores[targets[row, place]] - scores.exp().sum().log()
    torch.testing.assert_close(
        next_token_loss(model, tokens, targets), (surprise / 60).float()
    )


def test_loss_is_float32_for_a_bfloat16_model():
    model = loud_model().bfloat16()
    tokens = torch.randint(0, VOCAB, (1, 20))
    exact = nn.functional.cross_entropy(model(tokens)[0].double(), tokens[0])
    loss = next_token_loss(model, tokens, tokens)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-5 * exact.item()


def test_a_fresh_model_knows_nothing(data):
    loss = next_token_loss(fresh(), *data.at(0)).item()
    assert loss == pytest.approx(math.log(VOCAB), abs=0.02)
    # Tied, each token's own row answers to it: a little worse than knowing nothing.
    tied = next_token_loss(fresh(tied_embeddings=True), *data.at(0)).item()
    assert math.log(VOCAB) < tied < math.log(VOCAB) + 1


def test_initial_sizes():
    model = fresh(dim=96, ffn_dim=200)
    block = model.layers[1]
    sizes = [
        (model.tok_embeddings, 96**-0.5),
        (model.output, 0.02),
        (block.attention.wq, 96**-0.5),
        (block.attention.wo, 96**-0.5 / 2),  # sqrt(2 x 2 layers)
        (block.feed_forward.w_up, 96**-0.5),
        (block.feed_forward.w_down, 200**-0.5 / 2),
    ]
    for module, std in sizes:
        assert module.weight.std().item() == pytest.approx(std, rel=0.03)
        assert abs(module.weight.mean().item()) < 0.05 * std
    assert (model.norm.weight == 1).all()
    assert same(model, fresh(dim=96, ffn_dim=200))
    assert not same(model, fresh(seed=1, dim=96, ffn_dim=200))


def test_the_residual_stream_is_as_large_in_a_deep_model(data):
    def stream(n_layers):
        config = small_config(n_layers=n_layers, dim=96)
        model = Llama(config)
        init_weights(model, n_layers)
        seen = []
        model.norm.register_forward_pre_hook(lambda m, x: seen.append(x[0].std()))
        model(data.at(0)[0])
        return seen[0].item()

    assert stream(16) == pytest.approx(stream(2), rel=0.2)


# Optimiser and schedule


def test_only_matrices_decay():
    model = fresh()
    decays, kept = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    decays = {names[id(p)] for p in decays["params"]}
    kept = {names[id(p)] for p in kept["params"]}
    assert decays | kept == set(names.values())
    assert not decays & kept
    assert kept == {n for n in names.values() if "norm" in n or "embeddings" in n}
    assert make_optimizer(model, settings()).param_groups[0]["weight_decay"] == 0.1
    assert make_optimizer(model, settings()).param_groups[1]["weight_decay"] == 0


def test_tied_embeddings_do_not_decay_and_frozen_weights_are_left_out():
    model = fresh(tied_embeddings=True)
    model.layers[0].requires_grad_(False)
    both = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert len(both) == len({id(p) for p in both})
    frozen = {id(p) for p in model.layers[0].parameters()}
    assert not frozen & {id(p) for p in both}
    decays = {id(p) for p in parameter_groups(model, 0.1)[0]["params"]}
    assert id(model.tok_embeddings.weight) not in decays


def settings(**changes):
    return TrainSettings(**({"steps": 20, "learning_rate": 3e-3} | changes))


def rates(**changes):
    s = settings(**changes)
    return [learning_rate(step, s) for step in range(s.steps)]


def torch_rates(steps, make):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def test_warm_up_and_cosine_are_torchs():
    s = torch.optim.lr_scheduler

    def make(optimizer):
        up = s.LinearLR(optimizer, start_factor=1 / 10, total_iters=9)
        down = s.CosineAnnealingLR(optimizer, T_max=90, eta_min=0.01)
        return s.SequentialLR(optimizer, [up, down], milestones=[10])

    wanted = torch_rates(100, make)
    ours = rates(steps=100, learning_rate=1.0, warmup_steps=10)
    assert ours == pytest.approx(wanted, abs=1e-9)


def test_annealing_is_a_line_to_zero():
    # Nothing but annealing: torch's LinearLR from 1 to 0.
    make = lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=40)  # noqa: E731
    ours = rates(steps=40, learning_rate=1.0, anneal_steps=40)
    assert ours == pytest.approx(torch_rates(40, make), abs=1e-9)
    # After a cosine: it leaves where the cosine stands, and each step takes the same.
    plain = rates(steps=100, warmup_steps=10)
    annealed = rates(steps=100, warmup_steps=10, anneal_steps=20)
    assert annealed[:81] == plain[:81]
    assert annealed[80:] == pytest.approx(
        [plain[80] * (20 - i) / 20 for i in range(20)]
    )


def test_the_rate_is_never_zero_nor_above_the_peak():
    for warm in (0, 1, 5):
        for anneal in (0, 1, 15):
            for rate in rates(warmup_steps=warm, anneal_steps=anneal):
                assert 0 < rate <= 3e-3


def test_steps_are_adamw_by_hand():
    """Three steps in float64: clipped gradients, decoupled decay, Adam's averages."""
    model = loud_model(n_layers=2).double()
    s = settings(learning_rate=0.01, weight_decay=0.3, max_grad_norm=0.5)
    optimizer = make_optimizer(model, s)
    twin = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = {n: torch.zeros_like(p) for n, p in twin.items()}
    second = {n: torch.zeros_like(p) for n, p in twin.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        tokens = torch.randint(0, VOCAB, (2, 25), generator=generator)
        pair = tokens[:, :-1], tokens[:, 1:]
        optimizer.zero_grad()
        next_token_loss(model, *pair).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        _, returned = train_step(model, optimizer, pair, s.max_grad_norm)
        assert norm > 0.5
        assert returned == pytest.approx(norm, rel=1e-6)
        for name, w in twin.items():
            gradient = gradients[name] * 0.5 / (norm + 1e-6)
            decays = not ("norm" in name or "embeddings" in name)
            w -= 0.01 * (0.3 if decays else 0.0) * w
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            mean = first[name] / (1 - 0.9**step)
            square = second[name] / (1 - 0.95**step)
            w -= 0.01 * mean / (square.sqrt() + 1e-8)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), twin[name], atol=1e-9, rtol=1e-7)


# The loop


def test_one_batch_is_learned_by_heart(ids):
    data = Batches(ids[:25], batch_size=1, context=24)
    model = fresh()
    history = train(model, data, settings(steps=80, learning_rate=1e-2, warmup_steps=5))
    assert history[0].loss == pytest.approx(math.log(VOCAB), abs=0.1)
    assert history[-1].loss < 0.05
    tokens, targets = data.at(0)
    assert (model(tokens).argmax(-1) == targets).float().mean() > 0.95


def test_the_loop_reports_what_it_does(data, ids):
    seen = []
    s = settings(warmup_steps=4, anneal_steps=4, evaluate_every=8)
    outside = list(all_windows(ids[:200], 4, 24))
    model = fresh()
    history = train(model, data, s, held_out=outside, on_step=seen.append)
    assert history == seen
    assert [p.step for p in history] == list(range(20))
    assert [p.learning_rate for p in history] == [
        learning_rate(i, s) for i in range(20)
    ]
    looked = [p.step for p in history if p.held_out_loss is not None]
    assert looked == [7, 15, 19]
    assert history[-1].held_out_loss == held_out_loss(model, outside)
    assert all(p.grad_norm > 0 and p.seconds >= 0 for p in history)
    assert not model.training


def test_held_out_loss_weighs_each_token_alike_and_changes_nothing(ids):
    model = fresh().train()
    batches = list(all_windows(ids[:200], 5, 24))
    assert [len(tokens) for tokens, _ in batches] == [5, 3]
    before = {n: p.clone() for n, p in model.state_dict().items()}
    losses = [next_token_loss(model, *pair).item() for pair in batches]
    wanted = (losses[0] * 5 + losses[1] * 3) / 8
    assert held_out_loss(model, iter(batches)) == pytest.approx(wanted, rel=1e-6)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all((before[n] == p).all() for n, p in model.state_dict().items())


# Stopping and going on


class NoisyNorm(RMSNorm):
    """Draws from torch's global generator, as dropout does."""

    def forward(self, x):
        y = super().forward(x)
        return y * (1 + 0.05 * torch.randn_like(y)) if self.training else y


NOISY = Parts(norm=lambda c: NoisyNorm(c.dim, c.norm_eps))


class PowerCut(Exception):
    pass


def cut_at(step):
    def on_step(progress):
        if progress.step == step:
            raise PowerCut

    return on_step


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)


@pytest.mark.parametrize("stop", [9, 12])  # right after saving, and later
def test_a_resumed_run_is_the_same_to_the_last_bit(data, tmp_path, stop):
    s = settings(warmup_steps=3, anneal_steps=5, save_every=5)
    torch.manual_seed(5)
    straight = fresh(parts=NOISY)
    whole = train(straight, data, s)
    file = tmp_path / "run.pt"
    torch.manual_seed(5)
    with pytest.raises(PowerCut):
        train(fresh(parts=NOISY), data, s, checkpoint=file, on_step=cut_at(stop))
    torch.manual_seed(99)
    resumed = fresh(seed=8, parts=NOISY)
    rest = train(resumed, data, s, checkpoint=file)
    assert [p.step for p in rest] == list(range(10, 20))
    assert [(p.loss, p.grad_norm) for p in rest] == [
        (p.loss, p.grad_norm) for p in whole[10:]
    ]
    assert same(straight, resumed)
    assert not same(straight, fresh(parts=NOISY))


def test_a_finished_run_has_nothing_left_to_do(data, tmp_path):
    s, file = settings(steps=3), tmp_path / "run.pt"
    model = fresh()
    assert len(train(model, data, s, checkpoint=file)) == 3
    again = fresh(seed=1)
    assert train(again, data, s, checkpoint=file) == []
    assert same(model, again)


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(data, tmp_path):
    file, s = tmp_path / "run.pt", settings()
    before = signal.getsignal(signal.SIGINT)

    def press(progress):
        if progress.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    model = fresh()
    history = train(model, data, s, checkpoint=file, on_step=press)
    assert [p.step for p in history] == list(range(8))  # the step that heard it, ended
    assert signal.getsignal(signal.SIGINT) is before
    logits = model(torch.tensor([[1, 2, 3]]))
    assert logits.isfinite().all()
    resumed, straight = fresh(seed=2), fresh()
    train(straight, data, s)
    assert len(train(resumed, data, s, checkpoint=file)) == 12
    assert same(straight, resumed)


def test_a_second_ctrl_c_stops_at_once():
    with interrupt_after_step() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_works_outside_the_main_thread(data):
    histories = []
    thread = threading.Thread(
        target=lambda: histories.append(train(fresh(), data, settings(steps=2)))
    )
    thread.start()
    thread.join()
    assert len(histories[0]) == 2


# Mistakes


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(data, tmp_path):
    model, file = fresh(), tmp_path / "run.pt"

    def spoil(progress):
        if progress.step == 4:
            with torch.no_grad():
                model.layers[0].attention.wq.weight[0, 0] = math.nan

    with pytest.raises(ValueError, match=r"the loss is nan.*lower the learning rate"):
        train(model, data, settings(save_every=2), checkpoint=file, on_step=spoil)
    others = [p for n, p in model.named_parameters() if "wq" not in n]
    assert all(p.isfinite().all() for p in others)
    saved = torch.load(file, weights_only=True)
    assert saved["step"] == 4
    assert all(p.isfinite().all() for p in saved["model"].values())


def test_a_wild_learning_rate_says_what_to_do(data):
    with pytest.raises(ValueError, match="lower the learning rate"):
        train(fresh(), data, settings(learning_rate=1e30))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "0 steps"),
        ({"steps": 10, "warmup_steps": 6, "anneal_steps": 5}, "10 steps cannot hold 6"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"learning_rate": -1.0}, "learning_rate must not be negative"),
    ],
)
def test_impossible_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_a_checkpoint_of_another_run_is_refused(data, ids, tmp_path):
    file = tmp_path / "run.pt"
    train(fresh(), data, settings(steps=2), checkpoint=file)
    with pytest.raises(ValueError, match=r"learning_rate 0.003 then, 0.1 now"):
        train(fresh(), data, settings(steps=2, learning_rate=0.1), checkpoint=file)
    other = Batches(ids, batch_size=4, context=24, seed=4)
    with pytest.raises(ValueError, match=r"seed 3 then, 4 now"):
        train(fresh(), other, settings(steps=2), checkpoint=file)
    with pytest.raises(ValueError, match=r"other shapes"):
        train(fresh(dim=32), data, settings(steps=2), checkpoint=file)


class Trap:
    def __reduce__(self):
        return (os.system, ("touch trapped",))


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps(Trap()), None])
def test_a_damaged_checkpoint_is_refused_and_runs_nothing(
    data, tmp_path, monkeypatch, content
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.pt"
    if content is None:
        train(fresh(), data, settings(steps=2), checkpoint=file)
        content = file.read_bytes()[:-200]
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: delete it"):
        train(fresh(), data, settings(), checkpoint=file)
    assert file.read_bytes() == content
    assert not (tmp_path / "trapped").exists()


def test_a_checkpoint_is_whole_or_not_there(data, tmp_path, monkeypatch):
    model, s, file = fresh(), settings(), tmp_path / "run.pt"
    optimizer = make_optimizer(model, s)
    save_checkpoint(file, model, optimizer, s, data, 1)
    before = file.read_bytes()

    def full_disk(state, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(file, model, optimizer, s, data, 2)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_holds_plain_values_alone(data, tmp_path):
    file, s = tmp_path / "run.pt", settings(steps=2)
    train(fresh(), data, s, checkpoint=file)
    state = torch.load(file, weights_only=True)
    assert state["step"] == 2
    assert state["run"] == asdict(s) | {
        "batch_size": 4,
        "context": 24,
        "seed": 3,
        "begin_id": None,
        "tokens": 2000,
    }
