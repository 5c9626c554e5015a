"""What the methods minimise, through their own phases, against NumPy from the equations of the papers, in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import continual
from continual.dytox import Outputs
from continual.losses import Objective, Seen, pod_embedding
from continual.methods.bic import CorrectedClassifier
from continual.methods.icarl import class_means
from continual.methods.wa import align
from continual.rehearsal import choose
from continual.tasks import Task

TASKS = (Task(0, 0, 2), Task(1, 2, 3), Task(2, 5, 2))
FIRST, SECOND, THIRD = TASKS
exactly = pytest.approx
NEAR = {"rel": 1e-10, "abs": 1e-12}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Losses take float32 from mixed precision; here they stay in the precision of the numbers they are checked against."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def method(name, **changes):
    files = "options/data/digits_2-2.yaml", "options/model/digits_dytox.yaml"
    return continual.method(continual.configure(*files, method=name, **changes), TASKS)


def phase(name, task, which=0, **changes):
    return method(name, **changes).steps(task)[which]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def outputs(logits, div=None, tokens=None):
    logits, div, tokens = (None if x is None else torch.from_numpy(x) for x in (logits, div, tokens))
    return Outputs(logits, div, tokens)


def seen(logits, targets, teacher=None, **more):
    taught = None if teacher is None else outputs(teacher)
    return Seen(outputs(logits, more.pop("div", None)), torch.as_tensor(targets), taught=taught, **more)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def ce(logits, targets):
    """Mean over the batch of -log softmax at the label, or at soft targets."""
    targets = np.asarray(targets)
    soft = np.eye(logits.shape[1])[targets] if targets.ndim == 1 else targets
    return -(soft * np.log(softmax(logits))).sum(1).mean()


def bce(logits, targets):
    """Mean over all entries."""
    p, hot = 1 / (1 + np.exp(-logits)), np.eye(logits.shape[1])[targets]
    return -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).mean()


def old_answers(student, teacher, tau):
    """-sum over old classes of p_k(teacher / tau) log p_k(student / tau), mean over the batch."""
    return -(softmax(teacher / tau) * np.log(softmax(student / tau))).sum(1).mean()


def divergence(student, teacher, tau):
    """tau^2 KL(teacher || student), mean over all entries, as `losses.distillation` says."""
    p, q = softmax(teacher / tau), softmax(student / tau)
    return tau**2 * (p * np.log(p / q)).mean()


LABELS = np.array([0, 4, 2, 1, 3, 4])
LOGITS, TEACHER = 2 * numbers(6, 5), 2 * numbers(6, 2, seed=1)
SOFT = softmax(numbers(6, 5, seed=2))

# -------------------------------------------------------------------------------------------------------------------- BiC


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_bic_weighs_both_losses_by_the_share_of_old_classes(targets):
    losses = phase("bic", SECOND).losses
    assert set(losses) == {"clf", "kd"}
    batch = seen(LOGITS, targets, TEACHER)
    assert losses["clf"].loss(batch).item() == exactly((1 - 2 / 5) * ce(LOGITS, targets), **NEAR)
    assert losses["kd"].loss(batch).item() == exactly(2 / 5 * old_answers(LOGITS[:, :2], TEACHER, 2), **NEAR)


def test_bic_only_classifies_in_the_first_task():
    losses = phase("bic", FIRST).losses
    assert set(losses) == {"clf"}
    assert losses["clf"].loss(seen(LOGITS, LABELS)).item() == exactly(ce(LOGITS, LABELS), **NEAR)


class Fixed(nn.Module):
    """An encoder that gives the pixels back as patches."""

    embed_dim = 3

    def forward(self, images):
        return [images.flatten(2).transpose(1, 2)]


def corrected(sizes, seed):
    torch.manual_seed(seed)
    model = CorrectedClassifier(Fixed(), num_heads=1, drop_path_rates=[], pooling="mean")
    for nb_new in sizes:
        model.add_task(nb_new)
    with torch.no_grad():
        for alpha_beta in list(model.corrections)[1:]:
            alpha_beta.copy_(torch.tensor([0.75, -0.5]))
    return model.double()


def by_hand(model, images):
    """Uncorrected logits o, task by task."""
    x = images.mean((2, 3))
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + model.norm.eps)
    return [x @ head.weight.detach().numpy().T + head.bias.detach().numpy() for head in model.heads]


def test_bic_learns_from_a_corrected_teacher():
    """In the third task: the teacher's second task, and the student's, are corrected; the newest classes are not yet."""
    teacher, student, images = corrected([2, 3], 0), corrected([2, 3, 2], 1), numbers(4, 3, 2, 2)
    with torch.no_grad():
        student.corrections[1].copy_(torch.tensor([1.25, 0.25]))
        student.corrections[2].copy_(torch.tensor([1.0, 0.0]))
    a, b = by_hand(teacher, images)
    taught = np.concatenate([a, 0.75 * b - 0.5], axis=1)
    a, b, c = by_hand(student, images)
    logits, labels = np.concatenate([a, 1.25 * b + 0.25, c], axis=1), [6, 0, 3, 5]
    found = Objective(student, phase("bic", THIRD).losses, teacher=teacher)(torch.from_numpy(images), torch.tensor(labels))
    clf, kd = 2 / 7 * ce(logits, labels), 5 / 7 * old_answers(logits[:, :5], taught, 2)
    expected = {"clf": clf, "kd": kd, "total": clf + kd}
    assert {name: loss.item() for name, loss in found.items()} == exactly(expected, **NEAR)
    assert not np.allclose(taught[:, 2:], by_hand(teacher, images)[1])


def test_bic_corrects_by_scale_and_offset_of_the_newest_task():
    model, images, labels = corrected([2, 3, 2], 3), numbers(5, 3, 2, 2, seed=4), [0, 6, 5, 2, 3]
    bias = phase("bic", THIRD, which=1)
    assert bias.name == "bias" and set(bias.losses) == {"bias"}
    a, b, c = by_hand(model, images)
    alpha, beta = (x.item() for x in model.corrections[2])
    old = [x.item() for x in model.corrections[1]]

    def loss(alpha, beta):
        return ce(np.concatenate([a, old[0] * b + old[1], alpha * c + beta], axis=1), labels)

    found = Objective(model, bias.losses)(torch.from_numpy(images), torch.tensor(labels))["total"]
    assert found.item() == exactly(loss(alpha, beta), **NEAR)
    found.backward()
    h = 1e-5
    slopes = [
        (loss(alpha + h, beta) - loss(alpha - h, beta)) / (2 * h),
        (loss(alpha, beta + h) - loss(alpha, beta - h)) / (2 * h),
    ]
    assert model.corrections[2].grad.tolist() == exactly(slopes, rel=1e-7)


# -------------------------------------------------------------------------------------------------------------------- DER


def test_der_adds_a_loss_of_the_auxiliary_classifier():
    """Its classes: any old one, then the new ones."""
    div = numbers(6, 4, seed=5)
    for weight in (1.0, 0.3):
        losses = phase("der", SECOND, der_auxiliary=weight).losses
        assert set(losses) == {"clf", "auxiliary"}
        batch = seen(LOGITS, LABELS, div=div)
        assert losses["clf"].loss(batch).item() == exactly(ce(LOGITS, LABELS), **NEAR)
        assert losses["auxiliary"].loss(batch).item() == exactly(weight * ce(div, [0, 3, 1, 0, 2, 3]), **NEAR)
    mixed = np.concatenate([SOFT[:, :2].sum(1, keepdims=True), SOFT[:, 2:]], axis=1)
    found = phase("der", SECOND).losses["auxiliary"].loss(seen(LOGITS, SOFT, div=div))
    assert found.item() == exactly(ce(div, mixed), **NEAR)
    assert set(phase("der", FIRST).losses) == set(phase("der", SECOND, der_auxiliary=0).losses) == {"clf"}


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_der_finetunes_at_a_temperature(temperature):
    finetuning = phase("der", SECOND, which=2, der_temperature=temperature)
    assert finetuning.name == "finetuning" and set(finetuning.losses) == {"clf"}
    found = finetuning.losses["clf"].loss(seen(LOGITS, LABELS))
    assert found.item() == exactly(ce(LOGITS / temperature, LABELS), **NEAR)


# ----------------------------------------------------------------------------------------------------------------- PODNet


def pooled(maps, side):
    """Mean over the width, then over the height, of (B, N, D); scaled to length 1."""
    maps = maps.transpose(0, 2, 1).reshape(len(maps), maps.shape[2], side, side)
    vector = np.concatenate([maps.mean(3).reshape(len(maps), -1), maps.mean(2).reshape(len(maps), -1)], axis=1)
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)


def test_podnet_compares_maps_pooled_over_width_and_over_height():
    """The Euclidean distance, mean over images and layers, times pod; after finetuning no distillation of logits."""
    sizes = [(16, 3), (4, 5)]  # of two layers: N, D
    mine, theirs = ([numbers(3, *size, seed=seed + i) for i, size in enumerate(sizes)] for seed in (0, 10))
    distances = [
        np.linalg.norm(pooled(a, side) - pooled(b, side), axis=1).mean()
        for a, b, side in zip(mine, theirs, (4, 2), strict=True)
    ]
    batch = seen(LOGITS[:3], LABELS[:3], TEACHER[:3])._replace(
        maps=[torch.from_numpy(x) for x in mine], taught_maps=[torch.from_numpy(x) for x in theirs]
    )
    for scaling, factor in ((False, 1.0), (True, (3 / 5) ** 0.5)):
        losses = phase("podnet", SECOND, pod_scaling=scaling).losses
        assert set(losses) == {"clf", "pod"}
        assert losses["pod"].loss(batch).item() == exactly(3 * factor * np.mean(distances), **NEAR)
        assert losses["clf"].loss(batch).item() == exactly(ce(LOGITS[:3], LABELS[:3]), **NEAR)


def test_local_pod_pools_every_cell():
    maps = numbers(2, 3, 4, 4)
    parts = []
    for cell in (maps, maps[..., :2, :2], maps[..., :2, 2:], maps[..., 2:, :2], maps[..., 2:, 2:]):
        parts += [cell.mean(3).reshape(2, -1), cell.mean(2).reshape(2, -1)]
    expected = np.concatenate(parts, axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(pod_embedding(torch.from_numpy(maps), [1, 2]).numpy(), expected, rtol=1e-10, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------------- WA


def test_wa_weighs_both_losses_by_the_share_of_old_classes():
    losses = phase("wa", SECOND).losses
    assert set(losses) == {"clf", "kd"}
    batch = seen(LOGITS, LABELS, TEACHER)
    assert losses["clf"].loss(batch).item() == exactly((1 - 2 / 5) * ce(LOGITS, LABELS), **NEAR)
    assert losses["kd"].loss(batch).item() == exactly(2 / 5 * divergence(LOGITS[:, :2], TEACHER, 2), **NEAR)


def test_wa_aligns_the_norms_after_training_alone():
    heads = [nn.Linear(4, nb).double() for nb in (2, 3, 2)]
    before = [head.weight.detach().numpy().copy() for head in heads]
    wa, model = method("wa"), SimpleNamespace(heads=heads)
    training = wa.steps(THIRD)[0]
    assert wa.after(training, SimpleNamespace(task=FIRST, model=model)) == ""
    assert wa.after(SimpleNamespace(name="finetuning"), SimpleNamespace(task=THIRD, model=model)) == ""
    assert "weight aligning" in wa.after(training, SimpleNamespace(task=THIRD, model=model))
    factor = np.linalg.norm(np.concatenate(before[:2]), axis=1).mean() / np.linalg.norm(before[2], axis=1).mean()
    for head, weight, times in zip(heads, before, (1, 1, factor), strict=True):
        assert np.allclose(head.weight.detach().numpy(), times * weight, rtol=1e-10, atol=0)
    assert align(torch.from_numpy(3 * before[0]), torch.from_numpy(before[0].copy())) == exactly(3, **NEAR)


# ------------------------------------------------------------------------------------------------------------------ iCaRL


def test_icarl_distils_beside_binary_cross_entropy():
    losses = phase("icarl", SECOND).losses
    assert set(losses) == {"clf", "kd"}
    batch = seen(LOGITS, LABELS, TEACHER)
    assert losses["clf"].loss(batch).item() == exactly((1 - 2 / 5) * bce(LOGITS, LABELS), **NEAR)
    assert losses["kd"].loss(batch).item() == exactly(2 / 5 * divergence(LOGITS[:, :2], TEACHER, 1), **NEAR)


def test_icarl_answers_by_the_nearest_mean_of_exemplars():
    features, labels = numbers(9, 4), np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[labels == label].mean(0) for label in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    memory = type("Exemplars", (), {"samples": None, "y": labels, "__len__": lambda self: len(labels)})()
    moment = SimpleNamespace(task=SECOND, memory=memory, features=lambda samples: torch.from_numpy(features))
    queries = numbers(7, 1, 4, seed=1)
    scores = method("icarl").answer(moment)(outputs(numbers(7, 5), tokens=queries)).numpy()
    near = queries[:, 0] / np.linalg.norm(queries[:, 0], axis=1, keepdims=True)
    distances = np.linalg.norm(near[:, None] - means[None], axis=2)
    assert np.allclose(-scores[:, :3], distances, rtol=1e-10, atol=1e-12)
    assert (scores[:, 3:] < -2).all()  # without exemplars yet: out of reach
    found = class_means(torch.from_numpy(features), torch.from_numpy(labels), 3)
    assert np.allclose(found.numpy(), means, rtol=1e-10, atol=1e-12)


def herded(features, k):
    """iCaRL, algorithm 4, as its authors' code has it: each step takes the image most in line with (step) times the mean
    less the sum of all takes so far; one that comes up again counts once more in that sum, and takes no place.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, taken = unit.mean(0), []
    while len(set(taken)) < k:
        lacking = (len(taken) + 1) * mean - (unit[taken].sum(0) if taken else 0)
        taken.append(int((unit @ lacking).argmax()))
    return list(dict.fromkeys(taken))


def test_icarl_herds_every_class():
    features, labels = numbers(40, 6, seed=3) + 0.5, np.repeat([0, 1], 20)
    found = choose("icarl", features, labels, k=7, seed=lambda label: label)
    for label, chosen in enumerate(found):
        assert labels[chosen].tolist() == [label] * 7
        assert (chosen - 20 * label).tolist() == herded(features[labels == label], 7)
