"""What changes while training: the Run. Its `state_dict` is the checkpoint, and what it leaves out is derived."""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from continual.errors import CheckpointError, one_line
from continual.rehearsal import Memory
from continual.report import Report
from continual.tasks import TRAINING, Task
from continual.training.engine import Sums
from continual.training.optim import Sam, Schedule


@dataclass(frozen=True)
class Position:
    """How far a run has come: the next update is step `step` of epoch `epoch` of this stage of this task."""

    task: int = 0
    stage: str = TRAINING
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"task-{self.task + 1}-{self.stage}-epoch-{self.epoch + 1}-step-{self.step}"


@dataclass
class Progress:
    """What one phase of training remembers from step to step."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule | None
    sam: Sam | None
    sums: Sums = field(default_factory=Sums)

    def restart_sums(self) -> Sums:
        """Forget the losses of the epoch that ended."""
        self.sums = Sums()
        return self.sums

    def state_dict(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "sam": self.sam, "sums": self.sums}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


class Run:
    """One experiment on one class order: model, memory, report, teacher, position, and the phase under way.

    build: makes a model without tasks; told `weights=False`, one whose weights will be loaded. The model is for the caller to
    make, or to load. Random states are not kept: every draw has a key (see continual/randomness.py).
    """

    model: nn.Module

    def __init__(self, build: Callable[..., nn.Module], memory: Memory, report: Report, device: torch.device):
        self.build, self.memory, self.report, self.device = build, memory, report, device
        self.teacher: nn.Module | None = None
        self.position = Position()
        self.progress: Progress | None = None
        self.last: dict[str, Any] = {}  # the last epoch that ended: epoch, phase, lr, losses
        self._seconds_before, self._begun = 0.0, time.monotonic()
        self._resumed: dict[str, Any] | None = None  # of the phase under way, until it is entered

    def begin(self, task: Task, *, afresh: bool = False) -> None:
        """Second task on: teacher = the model as it stands. Then grow the model. Nothing if that was done before.

        afresh: make a new model in its place, which meets all of `nb_seen` classes at once, and has no teacher.
        """
        if sum(self.model.classes) == task.nb_seen:
            return
        if afresh:
            self.model = self.build().to(self.device)
            self.model.add_task(task.nb_seen)
            return
        if not task.first:
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model.add_task(task.nb_new)

    def seconds(self) -> float:
        """Time this run took, up to now and before it was resumed."""
        return self._seconds_before + time.monotonic() - self._begun

    def enter(self, progress: Progress) -> None:
        """Begin a phase, or go on inside it after a resume."""
        self.progress = progress
        if self._resumed is not None:
            progress.load_state_dict(self._resumed)
            self._resumed = None

    def move(self, **changes: Any) -> None:
        """Change the position; a new task or stage forgets the phase that ended."""
        self.position = replace(self.position, **changes)
        if "task" in changes or "stage" in changes:
            self.progress = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dicts of these; bit by bit those of an uninterrupted run."""
        return {
            "position": asdict(self.position),
            "model": _model_state(self.model),
            "teacher": _model_state(self.teacher) if self.teacher is not None else None,
            "memory": memory_state(self.memory),
            "report": self.report.state_dict(),
            "progress": self._resumed if self.progress is None else self.progress.state_dict(),
            "last": self.last,
        }

    def load_state_dict(self, state: dict[str, Any], *, seconds: float = 0.0) -> None:
        """Go on from `state_dict`. seconds: how long the run took up to there; it is no part of the state.

        Raises CheckpointError if it is not of a run, or if the weights or the memory do not fit.
        """
        try:
            self.position = Position(**state["position"])
            self.model = self._grown(state["model"])
            self.teacher = None
            if state["teacher"] is not None:
                self.teacher = self._grown(state["teacher"]).eval().requires_grad_(False)
            load_memory(self.memory, state["memory"])
            self.report.load_state_dict(state["report"])
            self._resumed = state["progress"]
            self.last = state["last"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint does not hold the state of a run ({one_line(error)[:300]})") from error
        self._seconds_before, self._begun = seconds, time.monotonic()

    def restart_epoch(self) -> None:
        """After `load_state_dict`: begin the epoch under way again, without what its phase remembers."""
        self._resumed = None
        self.move(step=0)

    def _grown(self, state: dict[str, Any]) -> nn.Module:
        model = self.build(weights=False)
        for nb_new in state["classes"]:
            model.add_task(nb_new)
        try:
            model.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights of the checkpoint are of another model: {' '.join(str(error).split())[:300]}"
            ) from None
        return model.to(self.device)


def _model_state(model: nn.Module) -> dict[str, Any]:
    return {"classes": list(model.classes), "weights": model.state_dict()}


def memory_state(memory: Memory) -> dict[str, Any]:
    """Exemplars as tensors, or as paths below the data folder, valid wherever the data lies."""
    x = memory.x
    if x is not None:
        x = (
            x.tolist()
            if x.dtype.kind == "U"
            else [torch.from_numpy(each) for each in x]
            if x.dtype == object
            else torch.from_numpy(x)
        )
    return {"x": x, **{name: torch.from_numpy(getattr(memory, name)) for name in ("y", "t", "replica")}}


def load_memory(memory: Memory, state: dict[str, Any]) -> None:
    """The inverse of `memory_state`, into `memory`. Raises CheckpointError if that is kept apart for more or fewer replicas."""
    replicas = sorted(set(state["replica"].tolist()))
    if replicas and replicas != list(range(memory.nb_replicas)):
        raise CheckpointError(f"its memories are those of {len(replicas)} replica(s); the options ask for {memory.nb_replicas}")
    x = state["x"]
    if isinstance(x, torch.Tensor):
        x = x.numpy()
    elif x and isinstance(x[0], torch.Tensor):
        images, x = x, np.empty(len(x), dtype=object)
        x[:] = [image.numpy() for image in images]
    elif x is not None:
        x = np.array(x, dtype=str)
    memory.x = x
    for name in ("y", "t", "replica"):
        setattr(memory, name, state[name].numpy())
