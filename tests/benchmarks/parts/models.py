"""The project's models on made-up images: grown to any number of tasks, with whole training steps through its Trainer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import continual
from continual.data.images import InMemory
from continual.data.material import Material
from continual.data.samples import Samples
from continual.jobs.reduction import Reduction
from continual.methods import Method
from continual.options import Options
from continual.randomness import seeded
from continual.rehearsal import Memory
from continual.runs.experiment import images_of
from continual.tasks import Task
from continual.training import precision
from continual.training.loading import Loading
from continual.training.trainer import Trainer
from parts.setting import OPTIONS, Setting

FILES = {
    "cifar": ("data/cifar100_10-10.yaml", "model/cifar_dytox.yaml"),
    "imagenet": ("data/imagenet100_10-10.yaml", "model/imagenet_dytox.yaml"),
    "digits": ("data/digits_2-2.yaml", "model/digits_dytox.yaml"),
}
TINY = {"embed_dim": 16, "num_heads": 4, "depth": 2, "local_up_to_layer": 1}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
WITHOUT_END = 10_000  # epochs


def options_of(name: str, setting: Setting, **changes: Any) -> Options:
    """The options of a model; of its small likeness in a tiny setting."""
    if setting.tiny and name != "digits":
        changes = {**TINY, **({"input_size": 32, "patch_size": 8} if name == "imagenet" else {"patch_size": 8}), **changes}
    return continual.configure(*(OPTIONS / file for file in FILES[name]), **changes)


def tasks_of(nb_tasks: int, nb_classes: int) -> tuple[Task, ...]:
    """Tasks of `nb_classes` classes each."""
    return tuple(Task(index, index * nb_classes, nb_classes) for index in range(nb_tasks))


def grown(method: Method, tasks: tuple[Task, ...], device: torch.device) -> nn.Module:
    """The method's model after it has met these tasks, with random weights."""
    with seeded("speed"):
        model = method.build().to(device)
        for task in tasks:
            model = method.grow(model, task)
    return model


def method_for(options: Options, tasks: tuple[Task, ...]) -> Method:
    return continual.method(options, tasks)


def made_up(nb: int, side: int, tasks: tuple[Task, ...]) -> Samples:
    """Images of noise, of all classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, tasks[-1].nb_seen, nb)
    t = np.searchsorted([task.nb_seen for task in tasks], y, side="right")
    return Samples(rng.integers(0, 256, (nb, side, side, 3), dtype=np.uint8), y, t)


class Steps:
    """Whole training steps of a model on made-up images: each call takes one, from the augmentation to the update.

    batch: images of one replica. together: steps whose images are augmented in one go, as the project does with as many
    images as have a million pixels. distils: with the model of one task less as teacher. amp: precision. replicas: of the
    recipe; on several processes each carries its share.
    """

    def __init__(
        self,
        options: Options,
        tasks: tuple[Task, ...],
        device: torch.device,
        *,
        batch: int,
        together: int = 1,
        amp: str = "off",
        distils: bool = True,
        replicas: int = 1,
        nb_images: int = 0,
    ):
        method = method_for(options, tasks)
        self.batch, side = batch, options.model.input_size
        precision.set_products(amp)
        self.model = grown(method, tasks, device)
        self.teacher = None
        if distils and len(tasks) > 1:
            self.teacher = grown(method_for(options, tasks[:-1]), tasks[:-1], device).eval().requires_grad_(False)
        phase = replace(method.training(tasks[-1]), epochs=WITHOUT_END, batch_size=batch, scheduled=False, lr=1e-6)
        samples = made_up(nb_images or max(256, 32 * batch * replicas), side, tasks)
        pixels = SimpleNamespace(mean=MEAN, std=STD, root=None, upright=True)
        images = images_of(options, pixels, device)
        loading = Loading(device, amp=amp, channels_last=options.optim.channels_last)
        empty = Memory.of(options.rehearsal, tasks[-1].nb_seen, replicas)
        material = Material(samples, empty, replicas)
        self.trainer = Trainer(
            self.model, phase, material, images=images, loading=loading, teacher=self.teacher, key=("speed",)
        )
        dataset = self.trainer.batches.loader.dataset
        if isinstance(dataset, InMemory):
            dataset.AT_ONCE = max(1, together * batch * side * side)
        self._steps = self._without_end()

    def _without_end(self) -> Iterator[None]:
        for epoch in range(WITHOUT_END):
            for _ in self.trainer.steps(epoch):
                yield
            self.trainer.end_epoch(epoch)

    def __call__(self, nb: int = 1) -> None:
        for _ in range(nb):
            next(self._steps)


PARTS = ("data", "forward", "teacher", "backward", "optimizer")


class Parts:
    """Seconds of the parts of steps, by name."""

    def __init__(self, setting: Setting):
        self.setting, self.seconds = setting, dict.fromkeys(PARTS, 0.0)

    def timed(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = self.setting.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += self.setting.now() - begun

        return call


@contextmanager
def in_parts(steps: Steps, setting: Setting) -> Iterator[Parts]:
    """Inside, new epochs of `steps` are timed part by part (on CUDA each part waits for the device)."""
    parts, trainer = Parts(setting), steps.trainer
    objective, batches = trainer.objective, trainer.batches
    ask, backward = objective._ask, Reduction.backward

    class Timed:
        def __iter__(self) -> Iterator[Any]:
            drawn = iter(batches)
            following = parts.timed("data", lambda: next(drawn, None))
            while (step := following()) is not None:
                yield step

    def asked(model: nn.Module, images: torch.Tensor) -> Any:
        return parts.timed("teacher" if model is objective.teacher else "forward", ask)(model, images)

    with ExitStack() as stack:
        stack.enter_context(patch.object(objective, "_ask", asked))
        stack.enter_context(patch.object(Reduction, "backward", parts.timed("backward", backward)))
        stack.enter_context(patch.object(trainer.optimizer, "step", parts.timed("optimizer", trainer.optimizer.step)))
        stack.enter_context(patch.object(trainer, "batches", Timed()))
        steps._steps = steps._without_end()
        yield parts
    steps._steps = steps._without_end()
