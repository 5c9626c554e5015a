"""Dynamically Expandable Representation (DER; Yan et al., CVPR 2021, arXiv 2103.16788), without its pruning.

Every task adds an extractor, which starts as a copy of the last; old ones are frozen, and in eval mode. Features of all lie
side by side, u = [F_1(x), ..., F_T(x)] (equation 1), under one linear classifier:

    L = L_H + L_Ha     L_H: cross entropy of H(u) on all classes
                       L_Ha: cross entropy of H_a(F_T(x)) on the new classes and one for all old ones  (section 3.3)

Then the classifier is drawn anew and trained on the balanced memory, its logits divided by a temperature (section 3.5).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from continual.dytox import Outputs
from continual.losses import Criterion, Seen, Term, divergence_targets
from continual.methods import Moment
from continual.methods.classifier import Extractor, pooled
from continual.methods.rehearsal import Rehearsal
from continual.options import COUNT, NOT_NEGATIVE, POSITIVE, Section, option, require
from continual.options import Options as AllOptions
from continual.tasks import FINETUNING, TRAINING, Phase, Task


class Expanding(nn.Module):
    """Extractors of all tasks, one classifier on all their embeddings, an auxiliary one on the newest. Call `add_task` first.

    extractor: makes a new one; the first task's, others are copies.
    """

    def __init__(self, extractor: Callable[[], Extractor]):
        super().__init__()
        self.classes: list[int] = []
        self.extractors = nn.ModuleList([extractor()])
        self.head: nn.Linear | None = None
        self.auxiliary: nn.Linear | None = None

    def add_task(self, nb_new: int) -> None:
        """Add an extractor, its columns and the rows of `nb_new` classes to the classifier, and an auxiliary classifier."""
        dim, device = self.extractors[0].embed_dim, next(self.parameters()).device
        if self.classes:
            self.extractors.append(copy.deepcopy(self.extractors[-1]).requires_grad_(True))
            self.auxiliary = nn.Linear(dim, nb_new + 1).to(device)
        self.classes.append(nb_new)
        old, self.head = self.head, nn.Linear(dim * len(self.classes), sum(self.classes)).to(device)
        if old is not None:
            with torch.no_grad():
                self.head.weight[: old.out_features, : old.in_features] = old.weight
                self.head.bias[: old.out_features] = old.bias

    def forward(self, images: Tensor, *, maps: bool = False) -> Outputs | tuple[Outputs, list[Tensor]]:
        """images (B, 3, S, S) -> Outputs with embeddings (B, T, D); with `maps`, the newest encoder's maps but the last."""
        embeddings, features = zip(*(extractor.embed(images) for extractor in self.extractors), strict=True)
        with torch.autocast(images.device.type, enabled=False):
            tokens = torch.stack(embeddings, dim=1).to(self.head.weight.dtype)  # (B, T, D)
            auxiliary = None if self.auxiliary is None else self.auxiliary(tokens[:, -1])
            outputs = Outputs(self.head(tokens.flatten(1)), auxiliary, tokens)
        return (outputs, features[-1]) if maps else outputs

    def token_distances(self) -> None:
        """There are no task tokens."""

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """What can be frozen; "sab" are all extractors."""
        extractors, auxiliary = list(self.extractors), [] if self.auxiliary is None else [self.auxiliary]
        own = {"extractors": extractors, "old_extractors": extractors[:-1], "auxiliary": auxiliary}
        return {"all": [self], "sab": extractors, "heads": [self.head], "old_heads": [], "head_div": auxiliary, **own}

    def reset_classifiers(self) -> None:
        """Draw the classifiers anew."""
        for head in (self.head, self.auxiliary):
            if head is not None:
                head.reset_parameters()


class DER(Rehearsal):
    """Rehearsal with a new extractor for every task, and a classifier that is trained anew on the balanced memory."""

    settings: ClassVar[dict[str, Any]] = {
        **Rehearsal.settings,
        "bce_loss": False,
        "smoothing": 0,
        "finetuning": "balanced",
        "finetuning_resetclf": True,
    }
    keeps_teacher = False

    @dataclass(frozen=True)
    class Options(Section):
        """DER (method: der)"""

        der_auxiliary: float = option(1.0, "weight of the auxiliary classifier's loss", NOT_NEGATIVE)
        der_warmup: int = option(0, "draw the classifiers anew after so many epochs of training (published: 10)", NOT_NEGATIVE)
        der_temperature: float = option(5.0, "finetuning divides the logits by this", POSITIVE)
        der_milestones: tuple[int, ...] = option((15,), "epochs of finetuning after which its rate falls to a tenth", COUNT)

    @classmethod
    def check(cls, options: AllOptions) -> None:
        """Raise a Conflict about options that would do nothing."""
        for key in ("auto_kd", "kd", "pod"):
            require(not getattr(options.loss, key), f"{key}, method", f"der has no teacher; {key} would do nothing")
        require(not options.finetune.finetuning_teacher, "finetuning_teacher, method", "der has no teacher")

    def build(self) -> nn.Module:
        """Make an Expanding model of the options' encoder."""
        return Expanding(lambda: Extractor(**pooled(self.options.model, *self.encoder())))

    def training(self, task: Task, losses: dict[str, Term] | None = None, **changes: Any) -> Phase:
        """The newest extractor and both classifiers, old extractors frozen."""
        losses = stage_one(self.criterion(), task, self.own.der_auxiliary) if losses is None else losses
        phase = super().training(task, losses, **changes)
        return replace(phase, frozen=(*phase.frozen, "old_extractors"), freeze_eval=True)

    def finetuning(self, task: Task, losses: dict[str, Term] | None = None, **changes: Any) -> list[Phase]:
        """The classifier alone, with a temperature."""
        criterion, temperature = self.criterion(), self.own.der_temperature
        clf = Term(lambda seen: criterion(seen.outputs.logits.float() / temperature, seen.targets))
        optim = self.options.optim
        if self.own.der_milestones:
            steps = {"sched": "multistep", "decay_milestones": self.own.der_milestones, "decay_rate": 0.1}
            optim = replace(optim, **steps, warmup_epochs=0, lr_noise=None)
        how = {"frozen": ("extractors", "auxiliary", *self.options.finetune.freeze_ft), "freeze_eval": True, "optim": optim}
        how["scheduled"] = bool(self.own.der_milestones)
        return super().finetuning(task, losses or {"clf": clf}, **how, **changes)

    def after_epoch(self, phase: Phase, epoch: int, moment: Moment) -> None:
        """Draw the classifiers anew after the warm-up."""
        if phase.name == TRAINING and epoch + 1 == self.own.der_warmup < phase.epochs:
            moment.model.reset_classifiers()

    def before(self, phase: Phase, moment: Moment) -> None:
        """Draw the classifier anew before it is finetuned."""
        if phase.name == FINETUNING and self.options.finetune.finetuning_resetclf:
            moment.model.head.reset_parameters()


def stage_one(criterion: Criterion, task: Task, weight: float) -> dict[str, Term]:
    """L_H, and from the second task on L_Ha times its weight."""

    def clf(seen: Seen) -> Tensor:
        return criterion(seen.outputs.logits.float(), seen.targets)

    def auxiliary(seen: Seen) -> Tensor:
        return weight * criterion(seen.outputs.div.float(), divergence_targets(seen.targets, task.nb_old))

    return {"clf": Term(clf)} if task.first or not weight else {"clf": Term(clf), "auxiliary": Term(auxiliary)}
