"""One epoch of training, evaluation and features, on random images and a model of one SAB and one TAB."""

import copy
import errno
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continual.convit import ConViT
from continual.data.mixing import mixing
from continual.data.samplers import MemorySampler, StepSampler
from continual.data.transforms import test_transform as plain_transform
from continual.datasets import Images, Samples
from continual.dytox import Classifier, DyTox, freeze
from continual.errors import DataError, LoadingFailed, NonFiniteLoss
from continual.jobs import distributed
from continual.losses import Objective, binary_cross_entropy, paper_objective
from continual.options import Augmentation
from continual.randomness import seeded
from continual.tasks import Task
from continual.training import engine
from continual.training.engine import Beside, Loading, evaluating, extract_features, train_one_epoch
from continual.training.optim import Sam, trained

CPU = Loading(torch.device("cpu"))
CLASSES = (4, 3)
TASKS = (Task(0, 0, 4), Task(1, 4, 3))
LR = 0.1


def dytox(*, drop_path: float = 0.0, ind_clf: str = "1-1") -> DyTox:
    with seeded("model"):
        encoder = ConViT(input_size=8, patch_size=4, embed_dim=8, num_heads=2, drop_path_rates=[drop_path])
        model = DyTox(encoder, num_heads=2, drop_path_rates=[drop_path], ind_clf=ind_clf)
        for nb_new in CLASSES:
            model.add_task(nb_new)
    return model.train()


def images(nb: int, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    y = np.arange(nb) % sum(CLASSES)
    x = rng.integers(0, 256, (nb, 8, 8, 3), dtype=np.uint8)
    plain = plain_transform(input_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Images(Samples(x, y, (y >= CLASSES[0]).astype(np.int64)), plain)


def sampler_of(nb: int, *, replicas: int = 1, batch_size: int = 4, mine: range | None = None) -> StepSampler:
    views = [np.arange(nb)] * replicas
    return StepSampler("shuffled", views, mine=mine or range(replicas), batch_size=batch_size, key=(0, "training", 1))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained(model), lr=LR)


def objective_of(model: nn.Module) -> Objective:
    return paper_objective(model, binary_cross_entropy, task=TASKS[1])


def epoch_of(model: DyTox, nb: int = 16, *, replicas: int = 1, batch_size: int = 4, loading: Loading = CPU, **settings) -> list:
    """The named losses of every step of one epoch, which moves the model."""
    loader = loading.loader(images(nb), sampler_of(nb, replicas=replicas, batch_size=batch_size))
    steps = train_one_epoch(model, loader, objective_of(model), sgd(model), loading=loading, **settings)
    return [{name: float(value) for name, value in losses.items()} for losses, _ in steps]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: DyTox, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By plain autograd, leaving nothing behind."""
    parameters = dict(model.named_parameters())
    loss = binary_cross_entropy(model(x).logits, y)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def batches_of(sampler, dataset: Images) -> list[tuple[Tensor, Tensor]]:
    taken = [[dataset[item] for item in batch] for batch in sampler]
    return [(torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])) for batch in taken]


def assert_step(model: DyTox, before: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The model is one step of plain gradient descent along `expected` away from `before`."""
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - LR * expected[name], rtol=1e-4, atol=1e-7, msg=name)


def named(model: DyTox) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------------------------- training


def test_an_epoch_yields_after_each_update():
    model = dytox()
    loader = CPU.loader(images(16), sampler_of(16))
    expected = batches_of(sampler_of(16), images(16))
    steps = train_one_epoch(model, loader, objective_of(model), sgd(model), loading=CPU)
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
    loader = CPU.loader(images(16), sampler)
    steps = train_one_epoch(halves, loader, objective_of(halves), sgd(halves), loading=CPU)
    next(steps), next(steps)
    sampler.set_epoch(0, 2)
    rest = list(train_one_epoch(halves, loader, objective_of(halves), sgd(halves), loading=CPU))
    assert len(rest) == 2 and torch.equal(weights(whole), weights(halves))


def test_replicas_one_after_another_equal_replicas_side_by_side():
    mix = mixing(Augmentation(mixup=0.8, cutmix=0.0), nb_classes=7, smoothing=0.1)
    one, two, four = dytox(), dytox(), dytox()
    settings = {"nb": 48, "replicas": 4, "batch_size": 3, "mixing": mix}
    losses = epoch_of(one, at_once=1, **settings)
    assert len(losses) == 4
    for model, at_once in ((two, 2), (four, 4)):
        for ours, theirs in zip(epoch_of(model, at_once=at_once, **settings), losses, strict=True):
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
    loader = CPU.loader(images(16), sampler_of(16))
    bad = {"step": 2, "now": 0}

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        bad["now"] += 1
        return binary_cross_entropy(logits, targets) * (torch.nan if bad["now"] > bad["step"] else 1.0)

    steps = train_one_epoch(model, loader, paper_objective(model, criterion, task=TASKS[1]), sgd(model), loading=CPU)
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
        next(train_one_epoch(model, CPU.loader(images(16), sampler_of(16)), objective, sgd(model), loading=CPU))
    assert torch.equal(weights(model), before)


def test_a_loss_that_is_not_finite_where_sam_looks_stops_too():
    model = dytox()
    nb_calls = []

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        nb_calls.append(1)
        return binary_cross_entropy(logits, targets) * (torch.inf if len(nb_calls) == 2 else 1.0)

    loader = CPU.loader(images(16), sampler_of(16))
    objective = paper_objective(model, criterion, task=TASKS[1])
    sam = Sam(trained(model), rho=0.1)
    with pytest.raises(NonFiniteLoss, match="step 1, at SAM's perturbed point"):
        next(train_one_epoch(model, loader, objective, sgd(model), loading=CPU, sam=sam))


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

    beside = Beside(CPU.loader(exemplars, memory), sam_first=first_of == "memory", sam_second=second_of == "memory")
    loader, sam = CPU.loader(dataset, sampler), Sam(trained(model), rho=0.5)
    list(train_one_epoch(model, loader, objective_of(model), sgd(model), loading=CPU, sam=sam, beside=beside))
    assert_step(model, before, second)


def test_looksam_looks_every_k_steps(monkeypatch):
    nb_calls = []
    real = engine.backward
    monkeypatch.setattr(engine, "backward", lambda *args, **kwargs: nb_calls.append(kwargs["key"][-1]) or real(*args, **kwargs))
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

    beside = Beside(CPU.loader(exemplars, memory), nb_replays=2, weight_new=1 / 3)
    loader = CPU.loader(dataset, sampler)
    list(train_one_epoch(model, loader, objective_of(model), sgd(model), loading=CPU, beside=beside))
    assert_step(model, before, expected)


# ----------------------------------------------------------------------------------------------------------- evaluation


def brute_force(model: nn.Module, dataset: Images) -> list[list[float]]:
    """Images, top-1, top-5, correct with the task known, sum of losses; per task. One image at a time, in plain loops."""
    counts = [[0.0] * len(TASKS) for _ in range(5)]
    for i in range(len(dataset)):
        x, label = dataset[i]
        scores = model(x[None]).logits[0].tolist()
        task = 0 if label < CLASSES[0] else 1
        mine = range(TASKS[task].nb_old, TASKS[task].nb_seen)
        ranked = sorted(range(len(scores)), key=lambda c: -scores[c])
        values = (1, ranked[0] == label, label in ranked[:5], max(mine, key=lambda c: scores[c]) == label)
        for row, value in enumerate(values):
            counts[row][task] += value
        counts[4][task] += float(F.cross_entropy(torch.tensor([scores]), torch.tensor([label])))
    return counts


@pytest.mark.parametrize("spread", [False, True])
def test_evaluation_counts(spread):
    model, dataset = dytox(), images(50)
    with torch.no_grad():  # away from the start, where all scores are much alike
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        expected = brute_force(copy.deepcopy(model).eval(), dataset)
    scores = engine.evaluate(model, dataset, TASKS, loading=CPU, batch_size=16, spread=spread)
    for ours, theirs in zip(scores.to_lists(), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert sum(scores.top1) < sum(scores.known) < 50 and sum(scores.top1) < sum(scores.top5) < 50
    assert model.training


def test_evaluation_takes_another_score():
    model, dataset = dytox(), images(14)
    right = torch.eye(7)[torch.from_numpy(dataset.samples.y)]
    scores = engine.evaluate(model, dataset, TASKS, loading=CPU, batch_size=14, spread=False, score=lambda _: right)
    assert scores.top1 == scores.nb == (8, 6)


@pytest.mark.parametrize("nb_processes", [1, 2, 3])
def test_evaluation_batches_are_dealt_out_once(monkeypatch, nb_processes):
    monkeypatch.setattr(distributed, "nb_processes", lambda: nb_processes)
    shares = []
    for rank in range(nb_processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(engine.rounds(50, 8, spread=True))
        assert sum(map(len, engine.rounds(50, 8, spread=False))) == 50
    assert {len(share) for share in shares} == {-(-7 // nb_processes)}  # all take part in every round
    together = [batch for share in shares for batch in share if batch]
    assert sorted(map(tuple, together)) == [tuple(range(i, min(i + 8, 50))) for i in range(0, 50, 8)]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_can_leave_between_batches(monkeypatch, rank):
    """Seven batches for two processes: the second one has none in the last round, but is asked nevertheless."""
    monkeypatch.setattr(distributed, "nb_processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    asked = []
    take = partial(engine.one_pass, images(50), 8, loading=CPU, spread=True)
    seen = [index for indices, *_ in take(between=lambda: asked.append(0)) for index in indices]
    assert len(asked) == 4 and len(seen) == (26, 24)[rank]

    def leave():
        asked.append(0)
        if len(asked) == 3:
            raise KeyboardInterrupt

    asked.clear()
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for indices, *_ in take(between=leave):
            seen.append(indices[0])
    assert seen == [8 * rank, 16 + 8 * rank]


WRAPPED = "Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n{}: {}"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are"),
        RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        RuntimeError("unable to open shared memory object </torch_7_1> in read-write mode: Too many open files (24)"),
        RuntimeError(
            WRAPPED.format(*["RuntimeError"] * 2, "unable to write to file </torch_7_1>: No space left on device (28)")
        ),
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        RuntimeError("received 0 items of ancdata"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        OSError(WRAPPED.format(*["OSError"] * 2, "[Errno 24] Too many open files: 'a.jpg'")),
        MemoryError(WRAPPED.format(*["MemoryError"] * 2, "")),
        DataError("cannot read the image a.jpg (index 3): OSError: [Errno 24] Too many open files: 'a.jpg'"),
    ],
    ids=str,
)
def test_a_failure_of_the_workers_names_them(error):
    with pytest.raises(LoadingFailed) as caught, engine.naming_workers(3):
        raise error
    told = str(caught.value)
    assert told.startswith("data loading failed: ") and "--num-workers 3 " in told and "\n" not in told
    with pytest.raises(type(error)), engine.naming_workers(0):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), OSError(errno.ENOSPC, "full"), DataError("no image")])
def test_another_failure_is_left_as_it_is(error):
    with pytest.raises(type(error), match=str(error.args[-1])), engine.naming_workers(3):
        raise error


def test_workers_that_cannot_start(monkeypatch):
    """As with a full /dev/shm, or at the limit of processes."""

    def none_left():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", none_left)
    loading = Loading(torch.device("cpu"), num_workers=2)
    with pytest.raises(LoadingFailed, match="Resource temporarily unavailable; try fewer workers than --num-workers 2"):
        loading.start(loading.loader(images(4), [[0, 1]]))
    assert not {signal.SIGTERM, signal.SIGINT} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_evaluating_restores_every_mode():
    model = dytox()
    freeze(model, ("sab",), eval_mode=True)
    modes = [module.training for module in model.modules()]
    assert True in modes and False in modes
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_features_are_the_embeddings():
    model, dataset = dytox(drop_path=0.5), images(20)
    features = extract_features(model, dataset, loading=CPU, batch_size=8, key=())
    x = torch.stack([dataset[i][0] for i in range(20)])
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x).tokens
    assert features.shape == (20, 16) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected.flatten(1).numpy(), rtol=1e-5, atol=1e-6)
    newest = extract_features(model, dataset, loading=CPU, batch_size=8, key=(), newest_only=True)
    np.testing.assert_array_equal(newest, features[:, 8:])
    assert model.training


def test_features_of_augmented_images_depend_on_the_key_alone():
    dataset = images(20)
    dataset.transform = lambda image, plain=dataset.transform: plain(image) + torch.randn(3, 1, 1)
    take = partial(extract_features, dytox(), dataset, loading=CPU)
    first = take(batch_size=8, key=(0, "exemplars"))
    np.testing.assert_allclose(take(batch_size=20, key=(0, "exemplars")), first, rtol=1e-4, atol=1e-6)
    assert np.abs(take(batch_size=8, key=(1, "exemplars")) - first).max() > 1e-3


# ------------------------------------------------------------------------------------------------------------ precision


def test_bfloat16_trains_and_evaluates_close_to_float32():
    half = Loading(torch.device("cpu"), amp=True)
    full_model, half_model = dytox(), dytox()
    expected, losses = epoch_of(full_model), epoch_of(half_model, loading=half)
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=2e-2)
        assert ours["total"] != theirs["total"]  # it was another precision
    assert all(p.dtype == torch.float32 for p in half_model.parameters())
    assert (weights(full_model) - weights(half_model)).abs().max() < 1e-2

    dataset = images(40)
    full, halved = (
        engine.evaluate(full_model, dataset, TASKS, loading=loading, batch_size=16, spread=False) for loading in (CPU, half)
    )
    assert sum(halved.loss_sum) == pytest.approx(sum(full.loss_sum), rel=2e-2) and halved.loss_sum != full.loss_sum
    features = [extract_features(full_model, dataset, loading=loading, batch_size=16, key=()) for loading in (CPU, half)]
    assert np.array_equal(*features)  # always float32


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
    half = Loading(torch.device("cpu"), amp=True)
    full_model, half_model = dytox(), dytox()
    before = weights(full_model)
    for model, loading in ((full_model, CPU), (half_model, half)):
        epoch_of(model, loading=loading, sam=Sam(trained(model), rho=0.5, adaptive=True))
    moved = weights(full_model) - before
    assert (weights(half_model) - weights(full_model)).norm() < 0.1 * moved.norm()


# ----------------------------------------------------------------------------------------------------------------- sums


def test_sums_are_means_that_can_be_kept():
    sums = engine.Sums()
    assert sums.means() == {}
    sums.add({"clf": torch.tensor(1.0), "total": torch.tensor(2.0)})
    sums.add({"clf": torch.tensor(3.0), "total": torch.tensor(6.0)})
    again = engine.Sums()
    again.load_state_dict(sums.state_dict())
    again.add({"clf": torch.tensor(5.0), "total": torch.tensor(1.0)})
    assert sums.means() == {"clf": 2.0, "total": 4.0} and again.means() == {"clf": 3.0, "total": 3.0}
