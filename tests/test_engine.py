"""One epoch of training, on random images and a model of one SAB and one TAB."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny import CPU, TASKS, dytox, images, sampler_of
from torch import Tensor, nn

from continual.data.images import Images
from continual.data.mixing import mixing
from continual.data.samplers import MemorySampler, StepSampler
from continual.dytox import Classifier, DyTox
from continual.errors import NonFiniteLoss
from continual.losses import Objective, binary_cross_entropy, paper_objective
from continual.options import AugmentOptions
from continual.sam import Sam
from continual.training import engine
from continual.training.batches import Batches, FromMemory
from continual.training.engine import train_one_epoch
from continual.training.loading import Loading
from continual.training.optim import trained

LR = 0.1


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained(model), lr=LR)


def objective_of(model: nn.Module) -> Objective:
    return paper_objective(model, binary_cross_entropy, task=TASKS[1])


def steps_of(
    model: nn.Module,
    dataset: Images,
    sampler: StepSampler,
    how: dict | None = None,
    *,
    objective: Objective | None = None,
    loading: Loading = CPU,
    **settings,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """The steps of one epoch, on Batches made as `how` says."""
    batches = Batches(loading.loader(dataset, sampler), **(how or {}))
    return train_one_epoch(objective or objective_of(model), batches, sgd(model), loading=loading, **settings)


def epoch_of(model: DyTox, nb: int = 16, *, replicas: int = 1, batch_size: int = 4, loading: Loading = CPU, **settings) -> list:
    """The named losses of every step of one epoch, which moves the model."""
    sampler = sampler_of(nb, replicas=replicas, batch_size=batch_size)
    how = {name: settings.pop(name) for name in ("mixing", "replicas_at_once") if name in settings}
    steps = steps_of(model, images(nb), sampler, how, loading=loading, **settings)
    return [{name: float(value) for name, value in losses.items()} for losses, _ in steps]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: DyTox, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By plain autograd, leaving nothing behind."""
    parameters = dict(model.named_parameters())
    loss = binary_cross_entropy(model(x).logits, y)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def batches_of(sampler, dataset: Images) -> list[tuple[Tensor, Tensor]]:
    taken = [dataset.__getitems__(draw) for draw in sampler]
    return [(torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])) for batch in taken]


def assert_step(model: DyTox, before: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The model is one step of plain gradient descent along `expected` away from `before`."""
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - LR * expected[name], rtol=1e-4, atol=1e-7, msg=name)


def named(model: DyTox) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_an_epoch_yields_after_each_update():
    model = dytox()
    expected = batches_of(sampler_of(16), images(16))
    steps = steps_of(model, images(16), sampler_of(16))
    for x, y in expected:
        before = named(model)
        loss, wanted = binary_cross_entropy(model(x).logits, y).item(), gradient(model, x, y)
        losses, nb_images = next(steps)
        assert losses["clf"].item() == pytest.approx(loss, rel=1e-5) == losses["total"].item()
        assert nb_images == 4
        assert_step(model, before, wanted)
        assert all(p.grad is None for p in model.parameters())
    assert next(steps, None) is None


def test_an_epoch_goes_on_in_the_middle():
    whole, halves = dytox(), dytox()
    epoch_of(whole)
    sampler = sampler_of(16)
    steps = steps_of(halves, images(16), sampler)
    next(steps), next(steps)
    sampler.set_epoch(0, 2)
    rest = list(steps_of(halves, images(16), sampler))
    assert len(rest) == 2 and torch.equal(weights(whole), weights(halves))


def test_replicas_one_after_another_equal_replicas_side_by_side():
    mix = mixing(AugmentOptions(mixup=0.8, cutmix=0.0), nb_classes=7, smoothing=0.1)
    one, two, four = dytox(), dytox(), dytox()
    settings = {"nb": 48, "replicas": 4, "batch_size": 3, "mixing": mix}
    losses = epoch_of(one, replicas_at_once=1, **settings)
    assert len(losses) == 4
    for model, at_once in ((two, 2), (four, 4)):
        for ours, theirs in zip(epoch_of(model, replicas_at_once=at_once, **settings), losses, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        torch.testing.assert_close(weights(model), weights(one), rtol=1e-4, atol=1e-6)


def test_stochastic_depth_depends_on_the_step_alone():
    def after(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = dytox(drop_path=0.5)
        epoch_of(model)
        return weights(model)

    assert torch.equal(after(1), after(2))
    plain = dytox()
    epoch_of(plain)
    assert not torch.equal(after(1), weights(plain))


def test_a_loss_that_is_not_finite_stops_before_the_update():
    model = dytox()
    bad = {"step": 2, "now": 0}

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        bad["now"] += 1
        return binary_cross_entropy(logits, targets) * (torch.nan if bad["now"] > bad["step"] else 1.0)

    steps = steps_of(model, images(16), sampler_of(16), objective=paper_objective(model, criterion, task=TASKS[1]))
    next(steps), next(steps)
    before = weights(model)
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step 3: clf nan, total nan"):
        next(steps)
    assert torch.equal(weights(model), before) and torch.isfinite(before).all()


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    """The loss of the next step would show it, but by then a checkpoint may hold it."""
    model = dytox()

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy(logits, targets) + (logits - logits).sum().sqrt()  # 0, with an infinite slope

    objective = paper_objective(model, criterion, task=TASKS[1])
    before = weights(model)
    with pytest.raises(NonFiniteLoss, match=r"the gradient is not finite at epoch 1, step 1: clf 0\.\d+, total 0\.\d+$"):
        next(steps_of(model, images(16), sampler_of(16), objective=objective))
    assert torch.equal(weights(model), before)


def test_a_loss_that_is_not_finite_where_sam_looks_stops_too():
    model = dytox()
    nb_calls = []

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        nb_calls.append(1)
        return binary_cross_entropy(logits, targets) * (torch.inf if len(nb_calls) == 2 else 1.0)

    objective = paper_objective(model, criterion, task=TASKS[1])
    sam = Sam(trained(model), rho=0.1)
    with pytest.raises(NonFiniteLoss, match="step 1, at SAM's perturbed point"):
        next(steps_of(model, images(16), sampler_of(16), objective=objective, sam=sam))


def test_gradients_are_clipped():
    model = dytox()
    before = weights(model)
    epoch_of(model, nb=4, clip_grad=1e-3)
    assert (weights(model) - before).norm().item() == pytest.approx(LR * 1e-3, rel=1e-3)


# ---------------------------------------------------------------------------------------- sharpness-aware minimisation


def perturbed(model: DyTox, first: dict[str, Tensor], rho: float) -> DyTox:
    there = copy.deepcopy(model)
    length = torch.stack([g.norm() for g in first.values()]).norm()
    with torch.no_grad():
        for name, p in there.named_parameters():
            p.add_(rho * first[name] / length)
    return there


def test_sam_steps_along_the_gradient_of_the_perturbed_point():
    model = dytox()
    ((x, y),) = batches_of(sampler_of(4), images(4))
    before, first = named(model), gradient(model, x, y)
    second = gradient(perturbed(model, first, 0.5), x, y)
    assert any((second[name] - first[name]).norm() > 0.01 * first[name].norm() for name in first)
    epoch_of(model, nb=4, sam=Sam(trained(model), rho=0.5))
    assert_step(model, before, second)


@pytest.mark.parametrize(("first_of", "second_of"), [("memory", "main"), ("main", "memory"), ("memory", "memory")])
def test_sam_takes_the_batches_it_is_told(first_of, second_of):
    model, dataset, exemplars = dytox(), images(4), images(12, seed=1)
    sampler = sampler_of(4)
    memory = MemorySampler(sampler, [np.arange(12)], nb_draws=1)
    batch = {"main": batches_of(sampler, dataset)[0], "memory": batches_of(memory, exemplars)[0]}
    assert not torch.equal(batch["main"][0], batch["memory"][0])
    before, first = named(model), gradient(model, *batch[first_of])
    second = gradient(perturbed(model, first, 0.5), *batch[second_of])

    beside = FromMemory(CPU.loader(exemplars, memory), sam_first=first_of == "memory", sam_second=second_of == "memory")
    list(steps_of(model, dataset, sampler, {"memory": beside}, sam=Sam(trained(model), rho=0.5)))
    assert_step(model, before, second)


def test_looksam_looks_every_k_steps(monkeypatch):
    nb_calls = []
    real = engine.Passes.__call__
    monkeypatch.setattr(engine.Passes, "__call__", lambda *args: nb_calls.append(args[2][-1]) or real(*args))
    model = dytox()
    losses = epoch_of(model, nb=20, sam=Sam(trained(model), rho=0.5, look_every=3))
    assert len(losses) == 5 and nb_calls == [0, "sam", 1, 2, 3, "sam", 4]


def test_replayed_batches_share_what_the_new_batch_leaves():
    model, dataset, exemplars = dytox(), images(4), images(12, seed=1)
    sampler = sampler_of(4)
    memory = MemorySampler(sampler, [np.arange(12)], nb_draws=2)
    (new,), replayed = batches_of(sampler, dataset), batches_of(memory, exemplars)
    parts = [(1 / 3, gradient(model, *new)), *((1 / 3, gradient(model, *each)) for each in replayed)]
    before = named(model)
    expected = {name: sum(weight * each[name] for weight, each in parts) for name in before}

    beside = FromMemory(CPU.loader(exemplars, memory), nb_replays=2, weight_new=1 / 3)
    list(steps_of(model, dataset, sampler, {"memory": beside}))
    assert_step(model, before, expected)


# ------------------------------------------------------------------------------------------------------------ precision


def test_bfloat16_trains_close_to_float32():
    half = Loading(torch.device("cpu"), amp="bf16")
    full_model, half_model = dytox(), dytox()
    expected, losses = epoch_of(full_model), epoch_of(half_model, loading=half)
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=2e-2)
        assert ours["total"] != theirs["total"]  # it was another precision
    assert all(p.dtype == torch.float32 for p in half_model.parameters())
    assert (weights(full_model) - weights(half_model)).abs().max() < 1e-2


@pytest.mark.parametrize("kind", ["1-1", "n-n", ""])
def test_classifiers_and_divergence_are_float32_under_mixed_precision(kind):
    model = dytox(ind_clf=kind)
    model.head_div = Classifier(8, 3)
    x = torch.stack([images(4)[i][0] for i in range(4)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(x)
        assert torch.nn.functional.linear(x.flatten(1), torch.ones(2, x[0].numel())).dtype == torch.bfloat16
    assert outputs.logits.dtype == outputs.div.dtype == torch.float32
    exact = model.head_div(outputs.tokens[:, -1].float())
    assert torch.equal(outputs.div, exact)


def test_sam_works_in_bfloat16():
    half = Loading(torch.device("cpu"), amp="bf16")
    full_model, half_model = dytox(), dytox()
    before = weights(full_model)
    for model, loading in ((full_model, CPU), (half_model, half)):
        epoch_of(model, loading=loading, sam=Sam(trained(model), rho=0.5, adaptive=True))
    moved = weights(full_model) - before
    assert (weights(half_model) - weights(full_model)).norm() < 0.1 * moved.norm()
