"""Learning rates, optimizers, schedules and sharpness-aware steps: against stored numbers and formulas written out."""

import copy
from collections.abc import Callable

import pytest
import torch
from stored import arrays, distance, table, tensors
from torch import Tensor, nn
from torch.nn import functional as F

from continual.convit import ConViT
from continual.dytox import DyTox, freeze
from continual.options import Optimisation
from continual.training.optim import Sam, Schedule, build_optimizer, gradient_norm, scaled_lr, trained


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
    optimizer = build_optimizer(model, Optimisation(weight_decay=0.3), lr=0.1)
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
    optimizer = build_optimizer(model, Optimisation(), lr=0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    expected = [p for name, p in model.named_parameters() if not name.startswith(("encoder.", "heads.0."))]
    assert len(held) == len(expected)
    assert {id(p) for p in held} == {id(p) for p in expected} == {id(p) for p in trained(model)}
    freeze(model, ("sab", "tab", "task_tokens"))  # heads alone
    assert len(build_optimizer(model, Optimisation(), lr=0.1).param_groups) == 2


def test_options_reach_the_optimizer():
    model = nn.Linear(2, 2)
    adamw = build_optimizer(model, Optimisation(opt_eps=1e-6, opt_betas=(0.8, 0.9), weight_decay=0.02), lr=0.5)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.02, 0.0]
    for group in adamw.param_groups:
        assert (group["lr"], group["eps"], tuple(group["betas"])) == (0.5, 1e-6, (0.8, 0.9))
    sgd = build_optimizer(model, Optimisation(opt="sgd", momentum=0.7), lr=0.5)
    assert isinstance(sgd, torch.optim.SGD) and sgd.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("opt", Optimisation.__dataclass_fields__["opt"].metadata["choices"])
@pytest.mark.parametrize("eps", [1e-8, None])
def test_every_optimizer_on_offer_takes_a_step_down(opt, eps):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = build_optimizer(model, Optimisation(opt=opt, opt_eps=eps, weight_decay=0.0), lr=1e-3)
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


def rates(options: Optimisation, *, lr: float, epochs: int, warmup_lr: float, loss: float = 1.0) -> list[float]:
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
    options = Optimisation(sched="cosine", min_lr=stored["min_lr"], warmup_epochs=stored["warmup_epochs"])
    used = rates(options, lr=stored["lr"], epochs=stored["epochs"], warmup_lr=stored["warmup_lr"])
    assert used == pytest.approx(stored["lr_used_in_epoch"], rel=1e-9)


def test_the_first_two_epochs_run_at_the_first_rate():
    used = rates(Optimisation(warmup_epochs=4), lr=1e-3, epochs=10, warmup_lr=1e-5)
    assert used[0] == used[1] == 1e-5
    assert used[2] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 4)


@pytest.mark.parametrize("sched", Optimisation.__dataclass_fields__["sched"].metadata["choices"])
def test_every_schedule_on_offer_ends_below_its_peak(sched):
    options = Optimisation(sched=sched, warmup_epochs=2, decay_epochs=4, decay_rate=0.5, patience_epochs=1)
    used = rates(options, lr=1e-2, epochs=20, warmup_lr=1e-4)
    assert used[0] == 1e-4 and max(used) == pytest.approx(1e-2, rel=0.2)
    assert used[-1] < 0.5 * max(used)


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step", "poly"])
def test_a_schedule_that_begins_late(sched):
    options = Optimisation(sched=sched, warmup_epochs=2, decay_epochs=4, decay_rate=0.5)
    used = rates(options, lr=1e-2, epochs=9, warmup_lr=1e-4)
    for done, rate in enumerate(used):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
        Schedule(optimizer, options, epochs=9, warmup_lr=1e-4, epochs_done=done)
        assert optimizer.param_groups[0]["lr"] == rate


def test_a_plateau_is_seen_in_the_loss():
    options = Optimisation(sched="plateau", warmup_epochs=0, patience_epochs=2, decay_rate=0.1)

    def last(losses: list[float]) -> float:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = Schedule(optimizer, options, epochs=len(losses), warmup_lr=0.0)
        for epoch, loss in enumerate(losses):
            schedule.step(epoch, loss)
        return optimizer.param_groups[0]["lr"]

    assert last([1.0] * 8) < 1.0
    assert last([1.0 - 0.1 * i for i in range(8)]) == 1.0


@pytest.mark.parametrize("sched", Optimisation.__dataclass_fields__["sched"].metadata["choices"])
@pytest.mark.parametrize("noise", [None, (0.2, 0.9)])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_a_schedule_goes_on_where_it_stood(sched, noise, warmup_epochs):
    options = Optimisation(sched=sched, warmup_epochs=warmup_epochs, patience_epochs=3, decay_epochs=3, lr_noise=noise)

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


# Sharpness-aware minimisation


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def problem(seed: int = 0) -> tuple[nn.Sequential, Callable[[], Tensor]]:
    """A small network and its loss."""
    torch.manual_seed(seed)
    net, x, y = network(), torch.randn(7, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    return net, lambda: F.cross_entropy(net(x), y)


def gradient(net: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """d loss / d parameters in one vector, left in `p.grad` too."""
    net.zero_grad()
    loss().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize(("name", "rho", "adaptive"), [("sam", 0.05, False), ("asam", 3.0, True)])
def test_steps_of_the_released_code(name, rho, adaptive):
    stored = arrays("sam")
    net = network()
    net.load_state_dict(tensors(stored, f"{name}/init/"))
    x, y = torch.from_numpy(stored[f"{name}/x"]), torch.from_numpy(stored[f"{name}/y"])
    sam = Sam(list(net.parameters()), rho=rho, adaptive=adaptive)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-6)
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        assert sam.looks()
        sam.perturb()
        if step == 0:
            for key, value in tensors(stored, f"{name}/perturbed/").items():
                assert distance(net.state_dict()[key], value) < 1e-5, key
        F.cross_entropy(net(x), y).backward()
        sam.restore()
        optimizer.step()
    for key, value in tensors(stored, f"{name}/after3/").items():
        assert distance(net.state_dict()[key], value) < 1e-4, key


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_has_the_length_asked_for_and_is_undone(adaptive):
    net, loss = problem()
    g, before = gradient(net, loss), flat(list(net.parameters()))
    expected = before + 0.3 * (before**2 * g / (before.abs() * g).norm() if adaptive else g / g.norm())
    sam = Sam(list(net.parameters()), rho=0.3, adaptive=adaptive)
    sam.perturb()
    assert torch.allclose(flat(list(net.parameters())), expected, atol=1e-6)
    assert all(p.grad is None for p in net.parameters())
    at_the_point = gradient(net, loss)
    sam.restore()
    assert torch.equal(flat(list(net.parameters())), before)
    assert torch.equal(flat([p.grad for p in net.parameters()]), at_the_point)


def test_norms_are_over_all_parameters():
    net, loss = problem()
    g, p = gradient(net, loss), flat(list(net.parameters()))
    assert gradient_norm(net.parameters()).item() == pytest.approx(g.norm().item())
    assert gradient_norm(net.parameters(), adaptive=True).item() == pytest.approx((p * g).norm().item())


def test_parameters_without_a_gradient_stay():
    net, loss = problem()
    unused = nn.Parameter(torch.ones(2))
    gradient(net, loss)
    sam = Sam([unused, *net.parameters()], rho=0.3, look_every=2)
    sam.perturb()
    assert torch.equal(unused, torch.ones(2))
    loss().backward()
    sam.restore()
    gradient(net, loss)
    sam.reuse()
    assert unused.grad is None


# LookSAM


def look(net: nn.Module, loss: Callable[[], Tensor], sam: Sam) -> None:
    """One backward with SAM; the gradient to step along is left in `p.grad`."""
    gradient(net, loss)
    if sam.looks():
        sam.perturb()
        loss().backward()
        sam.restore()
    else:
        sam.reuse()


def test_looksam_keeps_what_is_orthogonal_to_the_gradient():
    net, loss = problem()
    g = gradient(net, loss)
    sam = Sam(list(net.parameters()), rho=0.5, look_every=3)
    look(net, loss, sam)
    g_v, g_sam = flat(sam.orthogonal), flat([p.grad for p in net.parameters()])
    assert g_v.norm() > 1e-3
    assert abs(g @ g_v) < 1e-5 * g.norm() * g_v.norm()
    along = g_sam - g_v
    assert torch.allclose(along, (along @ g) / (g @ g) * g, atol=1e-6), "g_sam = g_v + something along g"


def test_looksam_between_looks_adds_what_the_last_look_taught():
    net, loss = problem()
    sam = Sam(list(net.parameters()), rho=0.5, look_every=3, look_alpha=0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    looked = []
    for _ in range(7):
        looked.append(sam.looks())
        g_v = flat(sam.orthogonal) if sam.orthogonal else None
        g = gradient(net, loss)
        look(net, loss, sam)
        if not looked[-1]:
            expected = g + 0.6 * g.norm() / g_v.norm() * g_v
            assert torch.allclose(flat([p.grad for p in net.parameters()]), expected, atol=1e-6)
            assert torch.equal(flat(sam.orthogonal), g_v)
        optimizer.step()
    assert looked == [True, False, False, True, False, False, True]


def test_looksam_that_always_looks_is_sam():
    ends = []
    for look_every in (0, 1):
        net, loss = problem()
        sam = Sam(list(net.parameters()), rho=0.5, look_every=look_every)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            look(net, loss, sam)
            optimizer.step()
        ends.append(flat(list(net.parameters())))
    assert torch.equal(*ends)


def test_looksam_goes_on_where_it_stood():
    ends = []
    for stops in (False, True):
        net, loss = problem()
        sam = Sam(list(net.parameters()), rho=0.5, look_every=3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(5):
            if stops and step == 2:
                state = sam.state_dict()
                sam = Sam(list(net.parameters()), rho=0.5, look_every=3)
                sam.load_state_dict(state)
            look(net, loss, sam)
            optimizer.step()
        ends.append(flat(list(net.parameters())))
    assert torch.equal(*ends)
