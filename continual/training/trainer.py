"""One phase of training, of any method: everything that is made for it, and what it remembers from step to step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continual.data import material as sets
from continual.data.images import Images, InMemory
from continual.data.material import Material
from continual.data.samplers import MemorySampler, StepSampler
from continual.data.samples import Samples
from continual.dytox import freeze
from continual.errors import OptionsError, some
from continual.jobs import distributed
from continual.losses import Objective
from continual.registry import LOSSES
from continual.sam import Sam
from continual.tasks import Phase
from continual.training import engine
from continual.training.batches import Batches, FromMemory
from continual.training.compiling import Compiled
from continual.training.engine import Listener
from continual.training.loading import Loader, Loading
from continual.training.optim import Schedule, build_optimizer, trained
from continual.training.precision import LossScale


@dataclass
class Sums:
    """Losses of one epoch so far: what a mean is made of, on the device until somebody looks."""

    nb_steps: int = 0
    by_name: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: dict[str, Tensor]) -> None:
        self.nb_steps += 1
        for name, value in losses.items():
            value = value.detach().double()
            self.by_name[name] = self.by_name[name] + value if name in self.by_name else value

    def means(self) -> dict[str, float]:
        return {name: float(value) / max(1, self.nb_steps) for name, value in self.by_name.items()}

    def state_dict(self) -> dict:
        return {"nb_steps": self.nb_steps, "by_name": {name: float(value) for name, value in self.by_name.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.nb_steps = state["nb_steps"]
        self.by_name = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["by_name"].items()}


class Trainer:
    """Trains a model for one phase, epoch by epoch.

    model: images -> Outputs; what the phase freezes is frozen here. images: (Samples, augment=bool) -> Images or InMemory.
    key: the start of the key of every random draw. teacher: for losses that need one. epochs_done: how many lie behind.
    requested: whether this process was asked to stop. say: told what a user should know.
    Raises OptionsError if the phase freezes a part that the model does not have.

        trainer = Trainer(model, phase, material, images=images, loading=Loading(torch.device("cpu")))
        for epoch in range(phase.epochs):
            for losses, nb_images in trainer.steps(epoch): ...
            trainer.end_epoch(epoch)
    """

    def __init__(
        self,
        model: nn.Module,
        phase: Phase,
        material: Material,
        *,
        images: Callable[..., Images | InMemory],
        loading: Loading,
        key: tuple = (),
        teacher: nn.Module | None = None,
        epochs_done: int = 0,
        requested: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = print,
    ):
        self.model, self.phase, self.loading, self._images, self._key = model, phase, loading, images, key
        if missing := set(phase.frozen) - model.parts().keys():
            raise OptionsError(f"phase {phase.name}: cannot freeze {some(sorted(missing))}; parts are {some(model.parts())}")
        freeze(model, phase.frozen, eval_mode=phase.freeze_eval)
        if phase.optim.channels_last:
            model.to(memory_format=torch.channels_last)
        distributed.share_buffers(model)  # what is frozen may use them from here on
        self.sums = Sums()
        self.optimizer = build_optimizer(model, phase.optim, phase.lr)
        self.schedule = None
        if phase.scheduled:
            how = {"epochs": phase.epochs, "warmup_lr": phase.warmup_lr, "epochs_done": epochs_done}
            self.schedule = Schedule(self.optimizer, phase.optim, **how)
        self.sam = None
        if phase.sam:
            how = {"look_every": phase.sam.look_every, "look_alpha": phase.sam.look_alpha}
            self.sam = Sam(trained(model), rho=phase.sam.rho, adaptive=phase.sam.adaptive, **how)
        self.scale = LossScale() if loading.amp == "fp16" else None
        late = loading.device.type == "cuda" and self.optimizer.defaults.get("fused", False)
        self.listener = Listener(late=late, requested=requested)
        self.objective = Objective(model, phase.losses, teacher=teacher, held_out=material.nb_held > 0)
        samples, views = phase.data(material)
        self.sampler = self._sampler(views)
        self.batches = Batches(
            self._loader(samples, self.sampler),
            mixing=phase.mixing,
            memory=self._from_memory(material),
            held_out=self._held_out(material) if self.objective.held_out else None,
            replicas_at_once=phase.optim.replicas_at_once or self._replicas_at_once(),
        )
        self.compiled = None
        if phase.optim.compile:
            self.compiled = Compiled(self.objective, nb_rows=self.sampler.bounds[1], say=say)

    @property
    def nb_steps(self) -> int:
        """Of a whole epoch."""
        return self.sampler.nb_steps

    @property
    def lr(self) -> float:
        """The rate of the epoch under way."""
        return self.optimizer.param_groups[0]["lr"]

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Train on an epoch from `first_step` on; yields the named losses and the number of images after every update.

        Raises NonFiniteLoss on every process, before the update.
        """
        self.sampler.set_epoch(epoch, first_step)
        if first_step == 0:
            self.sums = Sums()
        steps = engine.train_one_epoch(
            self.objective,
            self.batches,
            self.optimizer,
            loading=self.loading,
            sam=self.sam,
            clip_grad=self.phase.optim.clip_grad,
            scale=self.scale,
            listener=self.listener,
            compiled=self.compiled,
        )
        for losses, nb_images in steps:
            self.sums.add(losses)
            yield losses, nb_images

    def asked_to_stop(self) -> bool:
        """Whether any process was asked to stop, as the last steps told; the same on all processes after the same step."""
        return self.listener.asked or (distributed.nb_processes() == 1 and self.listener.requested())

    def end_epoch(self, epoch: int) -> None:
        """Move the learning rate on. Raises NonFiniteLoss, of a step that was not heard of yet."""
        self.listener.settle()
        if self.schedule is not None:
            self.schedule.step(epoch, self.sums.means()["total"])

    def state_dict(self) -> dict[str, Any]:
        """Raises NonFiniteLoss, of a step that was not heard of yet: such a state is not worth keeping."""
        self.listener.settle()
        parts = {name: getattr(self, name) for name in ("optimizer", "schedule", "sam", "scale", "sums")}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)

    def _sampler(self, views: list[np.ndarray]) -> StepSampler:
        return StepSampler.of(
            self.phase,
            views,
            own_replicas=distributed.replicas_of_this_process(len(views)),
            key=self._key,
            no_single=any(norm.training for norm in distributed.batch_norms(self.model)),
        )

    def _replicas_at_once(self) -> int | None:
        """None, all that the process carries and there is room for, if that changes no number but by rounding; else 1."""
        model, losses = self.model, self.phase.losses
        trains_norm = any(norm.training for norm in distributed.batch_norms(model))
        own_losses = {term.loss.__module__.partition(".")[0] for term in losses.values()} == {"continual"}
        apart = trains_norm or not own_losses or LOSSES.outside().keys() & losses.keys() or draws_by_batch(model)
        return 1 if apart else None

    def _loader(self, samples: Samples, batches: StepSampler | MemorySampler) -> Loader:
        return self.loading.loader(self._images(samples, augment=True), batches)

    def _from_memory(self, material: Material) -> FromMemory | None:
        """Batches of the memory for every step: for SAM, or to replay it."""
        sam, memory, nb_replays = self.phase.sam, material.memory, self.phase.nb_replays
        for_sam = sam is not None and (sam.first_on_memory or sam.second_on_memory)
        if not (for_sam or nb_replays) or not len(memory):
            return None
        views = [sets.rows_of_memory(material, replica) for replica in range(material.replicas)]
        return FromMemory(
            self._loader(memory.samples, MemorySampler(self.sampler, views, nb_draws=max(1, nb_replays))),
            sam_first=for_sam and sam.first_on_memory,
            sam_second=for_sam and sam.second_on_memory,
            nb_replays=nb_replays,
            weight_new=self.phase.weight_new,
        )

    def _held_out(self, material: Material) -> Loader:
        """One batch of the held-out images for every batch of the phase."""
        samples, views = sets.held_out(material)
        return self._loader(samples, MemorySampler(self.sampler, views, nb_draws=1, name="held out"))


def draws_by_batch(model: nn.Module) -> bool:
    """Whether what the model draws in training may depend on the batch that an image is in, not on the image's key alone."""
    for module in (module for module in model.modules() if module.training):
        home = type(module).__module__.partition(".")[0]
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        drops |= home == "timm" and bool(getattr(module, "drop_prob", 0))
        if drops or home not in ("continual", "torch", "timm"):
            return True
    return False
