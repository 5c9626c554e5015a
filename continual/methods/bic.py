"""Bias Correction (BiC; Wu et al., Large Scale Incremental Learning, CVPR 2019, arXiv 1905.13260).

A classifier trained on many new images and few exemplars leans towards the new classes. A few images of every class, as many
of a new one as of an old one, are kept out of training; on them two numbers a task put scale and offset of its logits right:

    stage 1   L = lambda L_d + (1 - lambda) L_c,   lambda = C_old / C_all          (equations 1 to 3)
              L_d = -sum_k p_k(teacher / T) log p_k(student / T),  k old, the teacher's logits corrected, T = 2
    stage 2   q_k = alpha_t o_k + beta_t,  k of task t > 1                         (equation 4)
              L_b = cross entropy of q, on the held-out images, for alpha_t and beta_t of the newest task alone (equation 5)
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from continual.data import material
from continual.losses import Criterion, Seen, Term, cross_entropy, soft_cross_entropy
from continual.methods.classifier import GrowingClassifier, pooled
from continual.methods.rehearsal import Rehearsal
from continual.options import BELOW_ONE, COUNT, POSITIVE, Section, option, require
from continual.options import Options as AllOptions
from continual.tasks import Phase, Remembering, Step, Task
from continual.training.optim import scaled_lr

BIAS = "bias"  # the second stage


class CorrectedClassifier(GrowingClassifier):
    """A growing classifier whose logits of every task but the first are scaled and shifted."""

    def __init__(self, encoder: nn.Module, **how: Any):
        super().__init__(encoder, **how)
        self.corrections = nn.ParameterList()  # of each task (alpha, beta); the first task's stay as they are

    def add_task(self, nb_new: int) -> None:
        """Add the rows of `nb_new` classes, not corrected yet."""
        super().add_task(nb_new)
        self.corrections.append(nn.Parameter(torch.tensor([1.0, 0.0], device=self.heads[-1].weight.device)))

    def classify(self, embedding: Tensor) -> Tensor:
        """(B, D) -> corrected logits q (B, C_all)."""
        logits = super().classify(embedding).split(self.classes, dim=1)
        return torch.cat([alpha * o + beta for o, (alpha, beta) in zip(logits, self.corrections, strict=True)], dim=1)

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """Those of a growing classifier, and the corrections; "network" is all that they correct."""
        network = [self.encoder, self.blocks, self.norm, self.heads]
        if self.pooling != "mean":
            network.append(self.class_token)
        corrections = list(self.corrections)
        own = {"network": network, "corrections": corrections, "old_corrections": corrections[:-1]}
        return {**super().parts(), **own}


class BiC(Rehearsal):
    """Rehearsal with distillation, and a second stage that corrects the bias towards the newest classes."""

    settings: ClassVar[dict[str, Any]] = {**Rehearsal.settings, "bce_loss": False, "smoothing": 0, "distillation_tau": 2}

    @dataclass(frozen=True)
    class Options(Section):
        """BiC (method: bic)"""

        bic_held_out: float = option(0.1, "share of the exemplars, and as many new images, that correct the bias", BELOW_ONE)
        bic_epochs: int = option(30, "epochs of bias correction", COUNT)
        bic_lr: float = option(1.0, "constant rate of alpha and beta; scaled as lr is", POSITIVE)

    @classmethod
    def check(cls, options: AllOptions) -> None:
        """Raise a Conflict about options that would do nothing, or without which there is nothing to correct on."""
        for key in ("auto_kd", "kd", "pod"):
            require(not getattr(options.loss, key), f"{key}, method", f"bic distils in its own way; {key} would do nothing")
        require(not options.finetune.finetuning, "finetuning, method", "bic corrects the bias instead of finetuning")
        require(options.rehearsal.memory_size > 0, "memory_size, method", "bic needs a memory")

    def build(self) -> nn.Module:
        """Make a CorrectedClassifier on the encoder of the options."""
        return CorrectedClassifier(**pooled(self.options.model, *self.encoder()))

    def held_out(self, task: Task) -> float:
        """What the second stage learns from."""
        return self.own.bic_held_out

    def steps(self, task: Task) -> list[Step]:
        """Training; from the second task on bias correction; then the memory."""
        training = self.training(task, stage_one(self.criterion(), task, self.options.loss.distillation_tau))
        training = replace(training, frozen=(*training.frozen, "corrections"))
        return [training, *self.correction(task, training), Remembering()]

    def correction(self, task: Task, training: Phase) -> list[Phase]:
        """Stage 2: alpha and beta of the newest task, on the held-out images."""
        if task.first or not self.own.bic_held_out:
            return []
        phase = replace(
            training,
            name=BIAS,
            losses={"bias": Term(lambda seen: cross_entropy(seen.outputs.logits.float(), seen.targets))},
            data=material.held_out,
            epochs=self.own.bic_epochs,
            lr=scaled_lr(self.own.bic_lr, training.batch_size, self.replicas),
            scheduled=False,
            sampler="shuffled",
            frozen=("network", "old_corrections"),
            freeze_eval=True,
            mixing=None,
            sam=None,
            nb_replays=0,
            weight_new=1.0,
        )
        return [self._on_trial(phase)]


def stage_one(criterion: Criterion, task: Task, tau: float) -> dict[str, Term]:
    """(1 - lambda) L_c and lambda L_d, lambda = C_old / C_all."""
    share = task.nb_old / task.nb_seen

    def clf(seen: Seen) -> Tensor:
        return (1 - share) * criterion(seen.outputs.logits.float(), seen.targets)

    def kd(seen: Seen) -> Tensor:
        return share * soft_cross_entropy(seen.outputs.logits[:, : task.nb_old].float(), seen.taught.logits.float(), tau)

    terms = {"clf": Term(clf)}
    if not task.first:
        terms["kd"] = Term(kd, frozenset({"teacher"}))
    return terms
