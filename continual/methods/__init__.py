"""What a method of continual learning is: one class, in one file, that answers the questions a run asks.

    build       what is the model?
    grow        what does a task add to it?
    steps       which phases has a task, and when does the memory take in exemplars?
    before, after_epoch, after    what happens around a phase?
    answer      what classifies an image at test time?
    state_dict  what must a checkpoint keep beside model and memory?

To write one: derive from Method or from one of the methods here, override what differs, and `register` it. Everything else
(resuming, several processes, the report) works without its doing. A model must have

    forward(images, maps=False)   (B, 3, S, S) -> Outputs, or with `maps` (Outputs, the encoder's maps but the last)
    classes                       list of the numbers of classes it was grown by
    add_task(nb_new)              grow by a task
    parts()                       names -> what can be frozen
    reset_classifiers()           give the classifiers fresh weights
    token_distances()             between task tokens; None without any
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from continual.data import material
from continual.data.mixing import mixing
from continual.data.samples import Samples
from continual.dytox import Outputs
from continual.encoders import TimmEncoder, build_encoder
from continual.errors import OptionsError
from continual.losses import Criterion, Seen, Term, binary_cross_entropy, cross_entropy, paper_terms
from continual.options import Options, Section
from continual.registry import LOSSES, METHODS
from continual.rehearsal import Memory
from continual.sam import SamSettings
from continual.tasks import FINETUNING, TRAINING, Phase, Remembering, Step, Task
from continual.training.optim import scaled_lr

TRIAL = 2  # epochs and steps of a phase with `debug`


@dataclass(frozen=True)
class Moment:
    """What a method may look at between its phases.

    task, model, memory: as they stand. new: the training images of the task's classes. features: Samples -> embeddings (n, F)
    of unaugmented images, the same on every process. batches: Samples -> batches of unaugmented images (B, 3, S, S) and labels
    (B,), all of them on every process.
    """

    task: Task
    model: nn.Module
    memory: Memory
    new: Samples
    features: Callable[[Samples], Tensor]
    batches: Callable[[Samples], Iterator[tuple[Tensor, Tensor]]]


class Method:
    """One way to learn task by task. Derived classes override what differs.

    settings: options that choosing the method implies; those given beside `method`, or later, go before them. Options: its own
        options, a frozen dataclass derived from `continual.options.Section` whose fields begin with the method's name.
    keeps_teacher: whether the model at the end of a task is kept as the teacher of the next.
    """

    settings: ClassVar[Mapping[str, Any]] = {}
    Options: ClassVar[type[Section] | None] = None
    keeps_teacher: ClassVar[bool] = True

    def __init__(self, options: Options, tasks: Sequence[Task], *, replicas: int = 1):
        self.options, self.tasks, self.replicas = options, tuple(tasks), replicas
        self.own = options.own if options.own is not None else self.Options() if self.Options else None
        self.fetches_weights = True  # published ones, if the options ask for them; not where others will be loaded

    # The model.

    def build(self) -> nn.Module:
        """Make a model without tasks yet."""
        raise NotImplementedError

    def grow(self, model: nn.Module, task: Task) -> nn.Module:
        """The model with what a new task brings; it may be another one."""
        model.add_task(task.nb_new)
        return model

    def classes_after(self, tasks: Sequence[Task]) -> list[int]:
        """The `classes` of a model that has met these tasks."""
        return [task.nb_new for task in tasks]

    # The task.

    def steps(self, task: Task) -> list[Step]:
        """The phases of a task, and among them the step at which the memory takes in exemplars, by different names."""
        return [self.training(task), Remembering(), *self.finetuning(task)]

    def held_out(self, task: Task) -> float:
        """The share of every class's exemplars, and as many new images, to keep out of training; see `material.hold_out`."""
        return 0.0

    def before(self, phase: Phase, moment: Moment) -> None:
        """Called once before the first step of a phase, with seeded random draws."""
        if phase.name == FINETUNING and self.options.finetune.finetuning_resetclf:
            moment.model.reset_classifiers()

    def after_epoch(self, phase: Phase, epoch: int, moment: Moment) -> None:
        """Called once after each epoch (from 0) of a phase, with seeded random draws."""

    def after(self, phase: Phase, moment: Moment) -> str:
        """Called once after the last step of a phase, with seeded random draws. Returns a line for the log, or nothing."""
        return ""

    # The answer.

    def answer(self, moment: Moment) -> Callable[[Outputs], Tensor]:
        """What turns Outputs into scores (B, C_all), the higher the likelier; asked for before every evaluation."""
        return Outputs.scores

    # The state.

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep beside model, teacher and memory: tensors, numbers, words, lists and dicts of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    # Parts that methods share.

    def encoder(self) -> tuple[nn.Module, list[float]]:
        """The encoder of the options, and the DropPath rates of the blocks behind it.

        The rates rise linearly over all `depth` blocks, from 0 to `drop_path`.
        """
        model = self.options.model if self.fetches_weights else replace(self.options.model, pretrained=False)
        rates = torch.linspace(0, model.drop_path, model.depth).tolist()
        encoder, scales = build_encoder(model, rates[: model.local_up_to_layer]), self.options.loss.pod_scales
        if self.options.loss.pod and isinstance(encoder, TimmEncoder) and max(scales) > min(encoder.sides):
            sides = ", ".join(map(str, encoder.sides))
            raise OptionsError(f"pod_scales: the maps of {model.model} have sides {sides}: too small for {max(scales)}")
        return encoder, rates[model.local_up_to_layer :]

    def criterion(self) -> Criterion:
        """The classification loss of the options: (logits, targets) -> scalar."""
        loss = self.options.loss
        return binary_cross_entropy if loss.bce_loss else partial(cross_entropy, smoothing=loss.smoothing)

    def losses(self, task: Task, *, distil: bool, divergence: bool) -> dict[str, Term]:
        """The losses of the options: classification, distillation, POD, divergence (see `losses.paper_terms`)."""
        loss = self.options.loss
        pod = loss.pod or 0.0
        if loss.pod_scaling:
            pod *= (task.nb_new / task.nb_seen) ** 0.5
        return paper_terms(
            self.criterion(),
            task=task,
            kd=(None if loss.auto_kd else loss.kd) if distil else 0.0,
            tau=loss.distillation_tau,
            head_div=loss.head_div if divergence else 0.0,
            pod_weight=pod if distil else 0.0,
            pod_scales=loss.pod_scales,
        )

    def extra_losses(self) -> dict[str, Term]:
        """The registered losses that the options add to training, weighed."""
        loss = self.options.loss
        weights = loss.extra_loss_weights or (1.0,) * len(loss.extra_losses)
        return {name: _weighed(name, weight) for name, weight in zip(loss.extra_losses, weights, strict=True)}

    def training(self, task: Task, losses: Mapping[str, Term] | None = None, **changes: Any) -> Phase:
        """The main phase of a task as the options say it: new images and the memory. changes: to fields of the Phase."""
        options, optim, batch = self.options, self.options.optim, self._batch_size(task)
        lr, warmup_lr, epochs, frozen = optim.lr, optim.warmup_lr, optim.base_epochs, ()
        if not task.first:
            lr = optim.incremental_lr or optim.lr
            warmup_lr = optim.warmup_lr if optim.incremental_warmup_lr is None else optim.incremental_warmup_lr
            epochs, frozen = optim.epochs, options.finetune.freeze_task
        if losses is None:
            losses = self.losses(task, distil=not task.first, divergence="tr" in options.loss.head_div_mode)
        phase = Phase(
            name=TRAINING,
            losses={**losses, **self.extra_losses()},
            data=self._training_data(task),
            epochs=epochs,
            batch_size=batch,
            lr=scaled_lr(lr, batch, self.replicas),
            optim=optim,
            warmup_lr=warmup_lr,
            sampler=self._sampler(),
            frozen=tuple(frozen),
            freeze_eval=options.finetune.freeze_eval,
            mixing=mixing(options.augment, nb_classes=task.nb_seen, smoothing=options.loss.smoothing),
            sam=self._sam(task, "tr"),
            nb_replays=0 if task.first else options.rehearsal.replay_memory,
            weight_new=1 / (task.index + 1) if options.rehearsal.replay_memory and not task.first else 1.0,
        )
        return self._on_trial(replace(phase, **changes))

    def finetuning(self, task: Task, losses: Mapping[str, Term] | None = None, **changes: Any) -> list[Phase]:
        """The short phase on the balanced memory alone (section 4.1), if the options ask for it; else no phase.

        It comes from the second task on, or when one task holds all classes.
        """
        options, finetune, batch = self.options, self.options.finetune, self._batch_size(task)
        if not finetune.finetuning or (task.first and task.nb_new != self.tasks[-1].nb_seen):
            return []
        if losses is None:
            distil = finetune.finetuning_teacher and not task.first
            losses = self.losses(task, distil=distil, divergence="ft" in options.loss.head_div_mode)
        phase = Phase(
            name=FINETUNING,
            losses=losses,
            data=partial(material.memory_alone, times=options.rehearsal.oversample_memory_ft),
            epochs=finetune.finetuning_epochs,
            batch_size=batch,
            lr=scaled_lr(finetune.finetuning_lr, batch, self.replicas),
            optim=options.optim,
            scheduled=False,
            sampler="sequential" if finetune.ft_no_sampling else self._sampler(),
            frozen=tuple(finetune.freeze_ft),
            freeze_eval=finetune.freeze_eval,
            mixing=mixing(options.augment, nb_classes=task.nb_seen, smoothing=options.loss.smoothing),
            sam=self._sam(task, "ft"),
            drop_last=finetune.ft_drop_last,
        )
        return [self._on_trial(replace(phase, **changes))]

    def _batch_size(self, task: Task) -> int:
        """Images of one replica in a step."""
        optim = self.options.optim
        return optim.batch_size if task.first else optim.incremental_batch_size or optim.batch_size

    def _sampler(self) -> str:
        return "repeated" if self.options.augment.repeated_aug else "shuffled"

    def _training_data(self, task: Task) -> Callable[[material.Material], material.TrainingSet]:
        rehearsal = self.options.rehearsal
        if rehearsal.only_ft:
            return partial(material.memory_alone, times=rehearsal.oversample_memory)
        return partial(material.new_and_memory, times=0 if rehearsal.sep_memory else rehearsal.oversample_memory)

    def _sam(self, task: Task, mode: str) -> SamSettings | None:
        """SAM in this task and mode ("tr" or "ft"); its radius goes linearly from `sam_rho` to `sam_final`."""
        sam, last = self.options.sam, len(self.tasks) - 1
        rho = sam.sam_rho
        if mode not in sam.sam_mode or (sam.sam_skip_first and task.index == 0):
            return None
        if sam.sam_final is not None and last > 0:
            rho += (sam.sam_final - sam.sam_rho) * task.index / last
        if rho == 0:
            return None
        return SamSettings(
            rho,
            adaptive=sam.sam_adaptive,
            look_every=sam.look_sam_k,
            look_alpha=sam.look_sam_alpha,
            first_on_memory=sam.sam_first == "memory" and not task.first,
            second_on_memory=sam.sam_second == "memory" and not task.first,
        )

    def _on_trial(self, phase: Phase) -> Phase:
        if not self.options.run.debug:
            return phase
        return replace(phase, epochs=min(phase.epochs, TRIAL), most_steps=TRIAL)


def _weighed(name: str, weight: float) -> Term:
    """A registered loss times its weight. Raises OptionsError, when it is computed, if it is no scalar."""
    term = LOSSES.find(name)

    def loss(seen: Seen) -> Tensor | None:
        value = term.loss(seen)
        if value is None:
            return None
        if not isinstance(value, Tensor) or value.ndim:
            raise OptionsError(
                f"loss {name}: must give a scalar tensor or None, not {tuple(getattr(value, 'shape', ())) or value!r}"
            )
        return weight * value

    return Term(loss, term.needs)


def register(name: str, method: type[Method]) -> None:
    """Make `--method name` train with a method of one's own. Raises OptionsError on a bad or taken name, or no Method."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise OptionsError(f"method {name}: is no class derived from continual.methods.Method")
    METHODS.add(name, method)


def method_of(options: Options, tasks: Sequence[Task], *, replicas: int = 1) -> Method:
    """The method that the options name, for these tasks."""
    return METHODS.find(options.method)(options, tasks, replicas=replicas)
