"""Learning rates, optimizers and schedules: against stored numbers and formulas written out."""

import copy

import pytest
import torch
from stored import table
from torch import nn
from torch.nn import functional as F

from continual.convit import ConViT
from continual.dytox import DyTox, freeze
from continual.options import OptimOptions
from continual.training.optim import Schedule, build_optimizer, scaled_lr, trained


def dytox() -> DyTox:
    encoder = ConViT(input_size=8, patch_size=4, embed_dim=8, num_heads=2, drop_path_rates=[0.0])
    model = DyTox(encoder, num_heads=2, drop_path_rates=[0.0], ind_clf="1-1", head_div=True)
    model.add_task(2)
    model.add_task(2)
    return model


def test_rates_are_those_of_512_images():
    assert scaled_lr(5e-4, 128, 1) == 1.25e-4
    assert scaled_lr(5e-4, 128, 2) == 2.5e-4
    assert scaled_lr(1e-3, 512, 1) == 1e-3


# Optimizer


def test_weights_decay_in_two_and_more_dimensions_only():
    model = dytox()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimOptions(weight_decay=0.3), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.3 if p.ndim > 1 else 1.0
        assert torch.allclose(p, factor * before[name], atol=1e-7), name
    assert {"encoder.pos_embed", "task_tokens.0"} <= {name for name, p in model.named_parameters() if p.ndim == 3}


def test_what_is_frozen_is_not_optimised():
    model = dytox()
    freeze(model, ("sab", "old_heads"))
    optimizer = build_optimizer(model, OptimOptions(), lr=0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    expected = [p for name, p in model.named_parameters() if not name.startswith(("encoder.", "heads.0."))]
    assert len(held) == len(expected)
    assert {id(p) for p in held} == {id(p) for p in expected} == {id(p) for p in trained(model)}
    freeze(model, ("sab", "tab", "task_tokens"))  # heads alone
    assert len(build_optimizer(model, OptimOptions(), lr=0.1).param_groups) == 2


def test_options_reach_the_optimizer():
    model = nn.Linear(2, 2)
    adamw = build_optimizer(model, OptimOptions(opt_eps=1e-6, opt_betas=(0.8, 0.9), weight_decay=0.02), lr=0.5)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.02, 0.0]
    for group in adamw.param_groups:
        assert (group["lr"], group["eps"], tuple(group["betas"])) == (0.5, 1e-6, (0.8, 0.9))
    sgd = build_optimizer(model, OptimOptions(opt="sgd", momentum=0.7), lr=0.5)
    assert isinstance(sgd, torch.optim.SGD) and sgd.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("opt", OptimOptions.__dataclass_fields__["opt"].metadata["choices"])
@pytest.mark.parametrize("eps", [1e-8, None])
def test_every_optimizer_on_offer_takes_a_step_down(opt, eps):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = build_optimizer(model, OptimOptions(opt=opt, opt_eps=eps, weight_decay=0.0), lr=1e-3)
    x, y = torch.randn(16, 3), torch.randn(16, 1) + 3
    losses = []
    for _ in range(6):
        loss = F.mse_loss(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


# Schedule

# timm announces the end of its plateau schedule, which the published options offer.
pytestmark = pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")


def rates(options: OptimOptions, *, lr: float, epochs: int, warmup_lr: float, loss: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = Schedule(optimizer, options, epochs=epochs, warmup_lr=warmup_lr)
    used = []
    for epoch in range(epochs):
        used.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch, loss)
    return used


@pytest.mark.parametrize("name", table("schedule"))
def test_rates_of_the_released_code(name):
    stored = table("schedule")[name]
    options = OptimOptions(sched="cosine", min_lr=stored["min_lr"], warmup_epochs=stored["warmup_epochs"])
    used = rates(options, lr=stored["lr"], epochs=stored["epochs"], warmup_lr=stored["warmup_lr"])
    assert used == pytest.approx(stored["lr_used_in_epoch"], rel=1e-9)


def test_the_first_two_epochs_run_at_the_first_rate():
    used = rates(OptimOptions(warmup_epochs=4), lr=1e-3, epochs=10, warmup_lr=1e-5)
    assert used[0] == used[1] == 1e-5
    assert used[2] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 4)


@pytest.mark.parametrize("sched", OptimOptions.__dataclass_fields__["sched"].metadata["choices"])
def test_every_schedule_on_offer_ends_below_its_peak(sched):
    options = OptimOptions(
        sched=sched, warmup_epochs=2, decay_epochs=4, decay_milestones=(4, 9), decay_rate=0.5, patience_epochs=1
    )
    used = rates(options, lr=1e-2, epochs=20, warmup_lr=1e-4)
    assert used[0] == 1e-4 and max(used) == pytest.approx(1e-2, rel=0.2)
    assert used[-1] < 0.5 * max(used)


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step", "poly", "multistep"])
def test_a_schedule_that_begins_late(sched):
    options = OptimOptions(sched=sched, warmup_epochs=2, decay_epochs=4, decay_milestones=(5,), decay_rate=0.5)
    used = rates(options, lr=1e-2, epochs=9, warmup_lr=1e-4)
    for done, rate in enumerate(used):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
        Schedule(optimizer, options, epochs=9, warmup_lr=1e-4, epochs_done=done)
        assert optimizer.param_groups[0]["lr"] == rate


def test_the_rate_falls_after_its_milestones():
    options = OptimOptions(sched="multistep", warmup_epochs=0, decay_milestones=(2, 4), decay_rate=0.1)
    used = rates(options, lr=1.0, epochs=7, warmup_lr=0.0)
    assert used == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01])  # after two epochs, after four


def test_a_plateau_is_seen_in_the_loss():
    options = OptimOptions(sched="plateau", warmup_epochs=0, patience_epochs=2, decay_rate=0.1)

    def last(losses: list[float]) -> float:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = Schedule(optimizer, options, epochs=len(losses), warmup_lr=0.0)
        for epoch, loss in enumerate(losses):
            schedule.step(epoch, loss)
        return optimizer.param_groups[0]["lr"]

    assert last([1.0] * 8) < 1.0
    assert last([1.0 - 0.1 * i for i in range(8)]) == 1.0


@pytest.mark.parametrize("sched", OptimOptions.__dataclass_fields__["sched"].metadata["choices"])
@pytest.mark.parametrize("noise", [None, (0.2, 0.9)])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_a_schedule_goes_on_where_it_stood(sched, noise, warmup_epochs):
    decays = {"patience_epochs": 3, "decay_epochs": 3, "decay_milestones": (4, 9)}
    options = OptimOptions(sched=sched, warmup_epochs=warmup_epochs, lr_noise=noise, **decays)

    def start() -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, Schedule(optimizer, options, epochs=14, warmup_lr=0.01)

    def used(*, stop_before: int | None) -> list[float]:
        optimizer, schedule = start()
        found = []
        for epoch in range(14):
            if epoch == stop_before:
                states = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
                optimizer, schedule = start()
                optimizer.load_state_dict(states[0])
                schedule.load_state_dict(states[1])
            found.append(optimizer.param_groups[0]["lr"])
            schedule.step(epoch, 1.0)
        return found

    expected = used(stop_before=None)
    assert len(set(expected)) > 2
    for epoch in (1, 5, 9):
        assert used(stop_before=epoch) == expected
