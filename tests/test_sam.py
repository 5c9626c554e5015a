"""Sharpness-aware steps: against stored numbers and formulas written out."""

from collections.abc import Callable

import pytest
import torch
from stored import arrays, distance, tensors
from torch import Tensor, nn
from torch.nn import functional as F

from continual.sam import Sam, gradient_norm


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
        assert sam.perturbs()
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
    if sam.perturbs():
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
        looked.append(sam.perturbs())
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
