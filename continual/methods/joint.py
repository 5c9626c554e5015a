"""The upper bound: at each task a new model is trained on all images of all classes seen."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from continual.data import material
from continual.methods import Method
from continual.methods.dytox import DyTox
from continual.methods.finetuning import Finetuning
from continual.tasks import Remembering, Step, Task


class Joint(Method):
    """The model of DyTox, or with `dytox: false` a growing classifier, which meets everything at once, anew at each task."""

    settings: ClassVar[dict[str, Any]] = {"retrain_scratch": True, "memory_size": 0, "finetuning": "", "auto_kd": False}
    keeps_teacher = False

    def build(self) -> nn.Module:
        """Make the model of DyTox, or a growing classifier."""
        return (DyTox if self.options.model.dytox else Finetuning).build(self)

    def grow(self, model: nn.Module, task: Task) -> nn.Module:
        """A new model, which knows all classes as those of one task."""
        model = self.build().to(next(model.parameters()).device)
        model.add_task(task.nb_seen)
        return model

    def classes_after(self, tasks: Sequence[Task]) -> list[int]:
        """All classes in one."""
        return [sum(task.nb_new for task in tasks)] if tasks else []

    def steps(self, task: Task) -> list[Step]:
        """One phase, as a first task has it, on the images of every class so far."""
        return [self.training(Task(task.index, 0, task.nb_seen), data=material.everything), Remembering()]
