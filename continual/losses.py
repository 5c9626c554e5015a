"""The losses, each a small pure function, and the Objective that names and sums them (DyTox, section 3.3 and appendix).

Letters:  B batch   D embed_dim   N patches   C_old, C_all classes before / including the current task
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Objective:
    """All losses of one phase: called on a batch, returns them by name, with their sum as "total".

    model: what is trained; images -> Outputs.
    criterion: (logits, labels or soft targets) -> loss, of the classifiers and of the divergence head.
    teacher: the model at the end of the previous task, frozen and in eval mode, or None.
    kd: weight of the distillation; None for the paper's lambda = C_old / C_all, which also scales the classification by
        1 - lambda.
    head_div: weight of the divergence loss, 0 in phases without it.
    pod: weight of POD, already scaled for the task.
    """

    def __init__(
        self,
        model: Callable,
        criterion: Criterion,
        *,
        task: Task,
        teacher: nn.Module | None = None,
        kd: float | None = 0.0,
        tau: float = 1.0,
        head_div: float = 0.0,
        pod: float = 0.0,
        pod_scales: tuple[int, ...] = (1,),
    ):
        self.model, self.criterion, self.task, self.teacher = model, criterion, task, teacher
        self.kd, self.tau, self.head_div, self.pod, self.pod_scales = kd, tau, head_div, pod, list(pod_scales)

    def __call__(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """images (B, 3, S, S), targets (B,) labels or (B, C_all) soft -> the losses that apply: clf, kd, div, pod, total."""
        losses = {}
        outputs, maps = self.model(images, maps=True)
        nb_old = self.task.nb_old

        lam = 0.0
        if self.teacher is not None and self.kd is None:
            lam = nb_old / self.task.nb_seen
        losses["clf"] = (1 - lam) * self.criterion(outputs.logits.float(), targets)

        if self.teacher is not None:
            with torch.no_grad():
                taught, taught_maps = self.teacher(images, maps=True)
            weight = lam if self.kd is None else self.kd
            if weight:
                losses["kd"] = weight * distillation(outputs.logits[:, :nb_old].float(), taught.logits.float(), self.tau)
            if self.pod:
                losses["pod"] = self.pod * pod(maps, taught_maps, self.pod_scales)

        if self.head_div and outputs.div is not None:
            losses["div"] = self.head_div * self.criterion(outputs.div.float(), divergence_targets(targets, nb_old))

        losses["total"] = sum(losses.values())
        return losses
