"""The losses, each a small pure function, and the Objective that names and sums them (DyTox, section 3.3 and appendix).

    L = (1 - alpha) L_clf + alpha L_kd + lambda L_div        alpha = C_old / C_all, lambda = head_div (0.1)

Letters:  B batch   D embed_dim   N patches   C_old, C_all classes before / including the current task
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continual.dytox import Outputs
from continual.errors import OptionsError
from continual.tasks import Task

Criterion = Callable[[Tensor, Tensor], Tensor]


def one_hot(targets: Tensor, nb_classes: int) -> Tensor:
    """Labels (B,) -> (B, C) float; soft targets (B, C) pass."""
    return targets if targets.ndim == 2 else F.one_hot(targets, nb_classes).float()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """BCE with logits, mean over all B x C entries. logits (B, C), targets (B,) labels or (B, C) soft."""
    return F.binary_cross_entropy_with_logits(logits, one_hot(targets, logits.shape[1]))


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, mean over B. Soft targets (B, C) as they are (mixup smooths them); labels (B,) with label smoothing."""
    return F.cross_entropy(logits, targets, label_smoothing=0.0 if targets.ndim == 2 else smoothing)


def distillation(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """tau^2 * KL(teacher || student) at temperature tau, mean over all B x C_old entries. Both (B, C_old)."""
    student, teacher = (F.log_softmax(logits / tau, dim=1) for logits in (student, teacher))
    return tau**2 * F.kl_div(student, teacher, reduction="none", log_target=True).mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """-sum_k p_k(teacher / tau) log p_k(student / tau), mean over B (Hinton et al., 2015; BiC, equation 2). Both (B, C_old)."""
    return -(F.softmax(teacher / tau, dim=1) * F.log_softmax(student / tau, dim=1)).sum(1).mean()


def divergence_targets(targets: Tensor, nb_old: int) -> Tensor:
    """Targets of the divergence head: 0 for any old class, 1 + j for the j-th new one.

    Labels (B,) -> (B,); soft targets (B, C_all) -> (B, 1 + |C^t|), column 0 the sum of the old classes.
    """
    if targets.ndim == 1:
        return (targets - nb_old + 1).clamp(min=0)
    return torch.cat([targets[:, :nb_old].sum(1, keepdim=True), targets[:, nb_old:]], dim=1)


def pod_embedding(maps: Tensor, scales: list[int]) -> Tensor:
    """Local POD of one layer (PODNet, eq. 3-5): cells of every scale, pooled over width and height. (B, D, s, s) -> (B, L)"""
    parts = []
    for scale in scales:
        side = maps.shape[-1] // scale
        if not side:
            raise OptionsError(f"pod_scales: a map of {maps.shape[-1]} x {maps.shape[-1]} cannot be cut into {scale} x {scale}")
        for row in range(scale):
            for col in range(scale):
                cell = maps[..., row * side : (row + 1) * side, col * side : (col + 1) * side]
                parts += [cell.mean(dim=-1).flatten(1), cell.mean(dim=-2).flatten(1)]
    return F.normalize(torch.cat(parts, dim=1), dim=1)


def pod(student: list[Tensor], teacher: list[Tensor], scales: list[int]) -> Tensor:
    """POD distillation (Douillard et al., ECCV 2020, arXiv 2004.13513), mean over layers and batch.

    student, teacher: one (B, N, D) per layer, N a square. Pooled over height and width, where the released code pooled the
    channels.
    """

    def as_map(x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        return x.transpose(1, 2).unflatten(2, (side, side)).float()  # (B, N, D) -> (B, D, s, s)

    distances = [
        (pod_embedding(as_map(mine), scales) - pod_embedding(as_map(theirs), scales)).norm(dim=1).mean()
        for mine, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(distances).mean()


class HeldOut(NamedTuple):
    """A batch of images that no phase trains on otherwise."""

    outputs: Outputs  # of the model
    targets: Tensor  # (B,) labels


class Seen(NamedTuple):
    """What a loss may look at, of one batch."""

    outputs: Outputs  # of the model
    targets: Tensor  # (B,) labels or (B, C_all) soft
    maps: list[Tensor] | None = None  # (B, N, D) of the encoder's layers but the last; None unless some loss needs "maps"
    taught: Outputs | None = None  # of the teacher, without gradient; None unless some loss needs "teacher"
    taught_maps: list[Tensor] | None = None  # of the teacher; None unless some loss needs both
    held_out: HeldOut | None = None  # None unless some loss needs "held_out"


NEEDS = frozenset({"teacher", "maps", "held_out"})


@dataclass(frozen=True)
class Term:
    """One loss of a phase, weight included, and what it needs to be computed.

    loss: Seen -> a scalar, or None where it does not apply. needs: "teacher", the model at the end of the previous task;
        "maps", the feature maps of the encoder; "held_out", a batch of the images held out of training (`Method.held_out`).
        A term whose teacher or held-out images do not exist is left out: in the first task. Raises ValueError on another need.
    """

    loss: Callable[[Seen], Tensor | None]
    needs: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := set(self.needs) - NEEDS:
            raise ValueError(f"a loss can need {', '.join(sorted(NEEDS))}, not {', '.join(sorted(unknown))}")


def paper_terms(
    criterion: Criterion,
    *,
    task: Task,
    kd: float | None = 0.0,
    tau: float = 1.0,
    head_div: float = 0.0,
    pod_weight: float = 0.0,
    pod_scales: Sequence[int] = (1,),
) -> dict[str, Term]:
    """(1 - alpha) L_clf + alpha L_kd + lambda L_div of the paper (section 3.3), and PODNet's loss, by name.

    criterion: (logits, labels or soft targets) -> loss, of the classifiers and of the divergence head.
    kd: None for the paper's alpha = C_old / C_all; a number weighs the distillation and leaves the classification alone.
    head_div: lambda, the weight of the divergence loss; 0 in phases without it.
    pod_weight: weight of POD, already scaled for the task.
    """
    nb_old = task.nb_old
    alpha = nb_old / task.nb_seen if kd is None else 0.0
    weight_kd = alpha if kd is None else kd

    def clf(seen: Seen) -> Tensor:
        return (1 - alpha) * criterion(seen.outputs.logits.float(), seen.targets)

    def distilled(seen: Seen) -> Tensor:
        return weight_kd * distillation(seen.outputs.logits[:, :nb_old].float(), seen.taught.logits.float(), tau)

    def div(seen: Seen) -> Tensor | None:
        if seen.outputs.div is None:
            return None
        return head_div * criterion(seen.outputs.div.float(), divergence_targets(seen.targets, nb_old))

    def pooled(seen: Seen) -> Tensor:
        return pod_weight * pod(seen.maps, seen.taught_maps, list(pod_scales))

    terms = {"clf": Term(clf)}
    if weight_kd:
        terms["kd"] = Term(distilled, frozenset({"teacher"}))
    if pod_weight:
        terms["pod"] = Term(pooled, frozenset({"teacher", "maps"}))
    if head_div:
        terms["div"] = Term(div)
    return terms


class Objective:
    """All losses of one phase: called on a batch, returns them by name, with their sum as "total".

    model: what is trained; images -> Outputs. teacher: the model at the end of the previous task, frozen and in eval mode, or
    None. It is asked only if some term needs it, and so are the maps. held_out: whether there are images held out of training.
    """

    def __init__(
        self, model: nn.Module, terms: Mapping[str, Term], *, teacher: nn.Module | None = None, held_out: bool = False
    ):
        absent = {need for need, there in {"teacher": teacher is not None, "held_out": held_out}.items() if not there}
        self.model = model
        self.terms = {name: term for name, term in terms.items() if not absent & term.needs}
        needs = frozenset().union(*(term.needs for term in self.terms.values()))
        self.maps, self.held_out = "maps" in needs, "held_out" in needs
        self.teacher = teacher if "teacher" in needs else None

    def __call__(self, images: Tensor, targets: Tensor, held_out: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        """images (B, 3, S, S), targets (B,) labels or (B, C_all) soft; held_out: images and labels, where some term needs them.

        Returns the losses that apply, and total.
        """
        outputs, maps = self._ask(self.model, images)
        with torch.no_grad():
            taught, taught_maps = self._ask(self.teacher, images) if self.teacher is not None else (None, None)
        held = HeldOut(self.model(held_out[0]), held_out[1]) if self.held_out else None
        seen = Seen(outputs, targets, maps, taught, taught_maps, held)
        losses = {name: term.loss(seen) for name, term in self.terms.items()}
        losses = {name: loss for name, loss in losses.items() if loss is not None}
        losses["total"] = sum(losses.values())
        return losses

    def _ask(self, model: nn.Module, images: Tensor) -> tuple[Outputs, list[Tensor] | None]:
        return model(images, maps=True) if self.maps else (model(images), None)


def paper_objective(
    model: nn.Module, criterion: Criterion, *, task: Task, teacher: nn.Module | None = None, **settings: Any
) -> Objective:
    """The Objective of `paper_terms`, which takes `settings`. Without a teacher there is nothing to distil."""
    if teacher is None:
        settings |= {"kd": 0.0, "pod_weight": 0.0}
    return Objective(model, paper_terms(criterion, task=task, **settings), teacher=teacher)
