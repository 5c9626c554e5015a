"""The losses, against their formulas written out, and the Objective that sums them."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual.dytox import Outputs
from continual.errors import OptionsError
from continual.losses import (
    Objective,
    Term,
    binary_cross_entropy,
    cross_entropy,
    distillation,
    divergence_targets,
    one_hot,
    paper_objective,
    pod,
    pod_embedding,
)
from continual.tasks import Task

approx = pytest.approx


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


# Classification


def test_one_hot_leaves_soft_targets_alone():
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    soft = torch.tensor([[0.3, 0.7]])
    assert one_hot(soft, 2) is soft


def test_binary_cross_entropy_is_the_mean_over_all_entries():
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -2.0]])
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    q = np.array([[0, 1, 0], [1, 0, 0]])
    expected = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean()
    assert binary_cross_entropy(logits, torch.tensor([1, 0])).item() == approx(expected, rel=1e-6)
    soft = np.array([[0.2, 0.8, 0.0], [0.1, 0.3, 0.6]])
    expected = -(soft * np.log(p) + (1 - soft) * np.log(1 - p)).mean()
    assert binary_cross_entropy(logits, torch.tensor(soft).float()).item() == approx(expected, rel=1e-6)


def test_cross_entropy_smooths_labels_only():
    logits = noise(2, 4)
    log_p = log_softmax(logits.numpy().astype(float))
    hard = np.eye(4)[[3, 1]]
    labels = torch.tensor([3, 1])
    assert cross_entropy(logits, labels).item() == approx(-(hard * log_p).sum(1).mean(), rel=1e-6)
    smooth = 0.8 * hard + 0.2 / 4
    assert cross_entropy(logits, labels, 0.2).item() == approx(-(smooth * log_p).sum(1).mean(), rel=1e-6)
    soft = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 0, 0, 0]])
    expected = -(soft * log_p).sum(1).mean()
    assert cross_entropy(logits, torch.tensor(soft).float(), 0.2).item() == approx(expected, rel=1e-6)


# Distillation


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_from_the_teacher_over_all_entries(tau):
    student, teacher = noise(3, 4), noise(3, 4, seed=1)
    log_s, log_t = (log_softmax(x.numpy().astype(float) / tau) for x in (student, teacher))
    kl = (np.exp(log_t) * (log_t - log_s)).sum()
    assert distillation(student, teacher, tau).item() == approx(tau**2 * kl / (3 * 4), rel=1e-5)


def test_distillation_of_the_same_logits_up_to_a_shift_is_nothing():
    logits = noise(3, 4)
    assert distillation(logits + 5, logits).item() == approx(0, abs=1e-6)
    assert distillation(logits.flip(1), logits).item() > 0.01


# Divergence


def test_divergence_targets_of_labels():
    targets = divergence_targets(torch.tensor([0, 4, 5, 6, 9, 3]), nb_old=5)
    assert targets.tolist() == [0, 0, 1, 2, 5, 0]


def test_divergence_targets_of_soft_targets():
    soft = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.25, 0.75]])
    expected = torch.tensor([[0.3, 0.3, 0.4], [0.0, 0.25, 0.75]])
    assert torch.allclose(divergence_targets(soft, nb_old=2), expected)


def test_hard_and_soft_divergence_targets_agree():
    labels = torch.tensor([0, 3, 1, 4])
    soft = one_hot(labels, 5)
    assert torch.equal(divergence_targets(soft, 2), one_hot(divergence_targets(labels, 2), 1 + 3))


# POD


def pooled(maps: np.ndarray, scale: int) -> np.ndarray:
    """(B, N, D) -> (B, L): mean over the width and over the height of the scale x scale cells of the map."""
    nb, n, dim = maps.shape
    side = int(n**0.5)
    cells = maps.reshape(nb, scale, side // scale, scale, side // scale, dim)  # (B, row cell, row, column cell, column, D)
    return np.concatenate([cells.mean(4).reshape(nb, -1), cells.mean(2).reshape(nb, -1)], axis=1)


def pod_by_hand(student: list[Tensor], teacher: list[Tensor], scales: list[int]) -> float:
    distances = []
    for layer in zip(student, teacher, strict=True):
        a, b = (np.concatenate([pooled(x.double().numpy(), s) for s in scales], axis=1) for x in layer)
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        distances.append(np.linalg.norm(a - b, axis=1).mean())
    return float(np.mean(distances))


@pytest.mark.parametrize("scales", [[1], [2], [1, 2, 4]])
def test_pod_equals_its_formula(scales):
    student = [noise(3, 64, 5, seed=i) for i in range(2)]
    teacher = [noise(3, 64, 5, seed=i) + 0.3 for i in range(2, 4)]
    loss = pod(student, teacher, scales).item()
    assert math.isfinite(loss) and loss > 0
    assert loss == approx(pod_by_hand(student, teacher, scales), rel=1e-5)


def test_pod_pools_places_and_not_channels():
    maps = noise(2, 16, 3)
    embedding = pod_embedding(maps.transpose(1, 2).unflatten(2, (4, 4)), [1])
    assert embedding.shape == (2, 3 * 4 + 3 * 4)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2))
    # A shuffle inside rows leaves the means of rows as they were: only half of the embedding may change.
    shuffled = maps.unflatten(1, (4, 4)).flip(2).flatten(1, 2)
    other = pod_embedding(shuffled.transpose(1, 2).unflatten(2, (4, 4)), [1])
    assert torch.allclose(embedding[:, :12], other[:, :12], atol=1e-6)
    assert not torch.allclose(embedding[:, 12:], other[:, 12:], atol=1e-3)


def test_pod_of_equal_maps_is_nothing_and_has_a_gradient():
    maps = [noise(2, 16, 3).requires_grad_()]
    loss = pod(maps, [maps[0].detach().clone()], [1, 2, 4])
    assert loss.item() == 0
    loss.backward()
    assert torch.isfinite(maps[0].grad).all()


def test_pod_of_empty_maps_has_a_gradient():
    maps = [torch.zeros(2, 16, 3, requires_grad=True)]
    pod(maps, [noise(2, 16, 3)], [1]).backward()
    assert torch.isfinite(maps[0].grad).all()


def test_pod_cells_cannot_be_smaller_than_a_patch():
    maps = [noise(2, 16, 3)]
    assert math.isfinite(pod(maps, [maps[0] + noise(2, 16, 3, seed=1)], [4]).item())
    with pytest.raises(OptionsError, match="pod_scales"):
        pod(maps, maps, [1, 8])


# Objective


class Model(nn.Module):
    """Outputs and maps that are parameters, whatever the images."""

    def __init__(self, nb_classes: int, nb_div: int | None, seed: int):
        super().__init__()
        self.logits = nn.Parameter(noise(4, nb_classes, seed=seed))
        self.div = nn.Parameter(noise(4, nb_div, seed=seed + 1)) if nb_div else None
        self.maps = nn.Parameter(noise(4, 16, 3, seed=seed + 2))

    def forward(self, images: Tensor, *, maps: bool = False) -> tuple[Outputs, list[Tensor]]:
        div = None if self.div is None else 1 * self.div
        outputs = Outputs(1 * self.logits, div, torch.zeros(4, 2, 8))
        return (outputs, [1 * self.maps]) if maps else outputs


TASK = Task(1, 6, 2)
LABELS = torch.tensor([0, 5, 6, 7])
IMAGES = torch.zeros(4, 3, 8, 8)


@pytest.fixture
def model() -> Model:
    return Model(8, 3, seed=10)


@pytest.fixture
def teacher() -> Model:
    return Model(6, None, seed=20)


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


def test_without_a_teacher_there_is_classification_alone(model):
    losses = values(paper_objective(model, binary_cross_entropy, task=TASK, kd=None, pod_weight=1.0)(IMAGES, LABELS))
    expected = binary_cross_entropy(model.logits, LABELS).item()
    assert losses == {"clf": approx(expected), "total": approx(expected)}


def test_distillation_weighs_by_the_share_of_old_classes(model, teacher):
    losses = values(paper_objective(model, binary_cross_entropy, task=TASK, teacher=teacher, kd=None, tau=2.0)(IMAGES, LABELS))
    clf = 0.25 * binary_cross_entropy(model.logits, LABELS).item()
    kd = 0.75 * distillation(model.logits[:, :6], teacher.logits, 2.0).item()
    assert losses == {"clf": approx(clf), "kd": approx(kd), "total": approx(clf + kd)}


def test_a_weight_of_distillation_leaves_classification_alone(model, teacher):
    losses = values(paper_objective(model, binary_cross_entropy, task=TASK, teacher=teacher, kd=3.0)(IMAGES, LABELS))
    clf = binary_cross_entropy(model.logits, LABELS).item()
    kd = 3 * distillation(model.logits[:, :6], teacher.logits).item()
    assert losses == {"clf": approx(clf), "kd": approx(kd), "total": approx(clf + kd)}


def test_divergence(model):
    losses = values(paper_objective(model, binary_cross_entropy, task=TASK, head_div=0.1)(IMAGES, LABELS))
    expected = 0.1 * binary_cross_entropy(model.div, torch.tensor([0, 0, 1, 2])).item()
    assert losses["div"] == approx(expected)
    assert losses["total"] == approx(losses["clf"] + expected)
    assert "div" not in paper_objective(model, binary_cross_entropy, task=TASK)(IMAGES, LABELS)
    without_head = Model(8, None, seed=10)
    assert "div" not in paper_objective(without_head, binary_cross_entropy, task=TASK, head_div=0.1)(IMAGES, LABELS)


def test_pod_needs_no_distillation_of_logits(model, teacher):
    objective = paper_objective(model, binary_cross_entropy, task=TASK, teacher=teacher, pod_weight=5.0, pod_scales=(1, 2))
    losses = values(objective(IMAGES, LABELS))
    assert set(losses) == {"clf", "pod", "total"}
    assert losses["pod"] == approx(5 * pod([model.maps], [teacher.maps], [1, 2]).item())
    assert losses["clf"] == approx(binary_cross_entropy(model.logits, LABELS).item())
    assert losses["total"] == approx(losses["clf"] + losses["pod"])


def test_the_teacher_gets_no_gradient_and_the_model_does(model, teacher):
    objective = paper_objective(model, binary_cross_entropy, task=TASK, teacher=teacher, kd=None, head_div=0.1, pod_weight=1.0)
    before = copy.deepcopy(teacher.state_dict())
    objective(IMAGES, LABELS)["total"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_soft_targets_reach_both_heads(model):
    objective = paper_objective(model, binary_cross_entropy, task=TASK, head_div=1.0)
    hard, soft = values(objective(IMAGES, LABELS)), values(objective(IMAGES, one_hot(LABELS, 8)))
    assert hard == approx(soft)


@pytest.mark.parametrize("needs", [(), ("maps",), ("teacher",), ("teacher", "maps")])
def test_a_loss_gets_what_it_needs_and_nothing_is_computed_for_nobody(model, teacher, needs):
    seen = []

    def loss(what):
        seen.append(what)
        return what.outputs.logits.sum()

    losses = Objective(model, {"mine": Term(loss, frozenset(needs))}, teacher=teacher)(IMAGES, LABELS)
    assert set(losses) == {"mine", "total"} and losses["total"] == losses["mine"]
    (what,) = seen
    assert (what.maps is not None) == ("maps" in needs)
    assert (what.taught is not None) == ("teacher" in needs)
    assert (what.taught_maps is not None) == (set(needs) == {"teacher", "maps"})
    assert what.taught is None or not what.taught.logits.requires_grad


def test_a_loss_that_needs_the_teacher_waits_for_the_second_task(model):
    terms = {"mine": Term(lambda seen: seen.taught.logits.sum(), frozenset({"teacher"})), "other": Term(lambda seen: None)}
    assert Objective(model, terms)(IMAGES, LABELS) == {"total": 0}


def test_a_need_that_nobody_meets_is_refused():
    for needs in ({"pupil"}, {"teacher", "pupil"}):
        with pytest.raises(ValueError, match=r"a loss can need held_out, maps, teacher, not pupil$"):
            Term(lambda seen: None, frozenset(needs))
    assert Term(lambda seen: None).needs == frozenset()


def test_a_loss_that_needs_images_held_out_gets_them_with_the_models_outputs(model):
    seen = []
    term = Term(lambda what: seen.append(what.held_out) or what.outputs.logits.sum(), frozenset({"held_out"}))
    assert Objective(model, {"mine": term})(IMAGES, LABELS) == {"total": 0}  # there are none
    objective = Objective(model, {"mine": term, "other": Term(lambda what: None)}, held_out=True)
    labels = torch.tensor([1, 2, 6, 7])
    assert objective.held_out and set(objective(IMAGES, LABELS, (IMAGES, labels))) == {"mine", "total"}
    (held,) = seen
    assert torch.equal(held.targets, labels) and torch.equal(held.outputs.logits, model.logits)
    assert held.outputs.logits.requires_grad
    assert not Objective(model, {"other": Term(lambda what: None)}, held_out=True).held_out  # for nobody
