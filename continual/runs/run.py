"""What changes while training: the Run. Its `state_dict` is the checkpoint, and what it leaves out is derived."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from continual.errors import CheckpointError, OptionsError, one_line
from continual.methods import Method
from continual.rehearsal import Memory
from continual.runs.evidence import Fingerprint
from continual.runs.ledger import Ledger
from continual.runs.record import Report
from continual.tasks import TRAINING, Phase, Step, Task
from continual.training.trainer import Trainer

PREDICTIONS = "predictions"  # what a manifest calls their digests
LIVE = "live"  # and the positions of the boards
EVALUATING = "evaluating"  # the stage of a task whose steps are done
STEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")  # it becomes part of a checkpoint's name


@dataclass(frozen=True)
class Position:
    """How far a run has come: the next update is step `step` of epoch `epoch` of this stage of this task.

    stage: the name of one of the method's steps; any other says that all of them are done.
    """

    task: int = 0
    stage: str = TRAINING
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"task-{self.task + 1}-{self.stage.replace(' ', '-')}-epoch-{self.epoch + 1}-step-{self.step}"


class Run:
    """One experiment on one class order: method, model, teacher, memory, report, ledger, position, and the phase under way.

    The model is for the caller to make, or to load. Random states are not kept: every draw has a key (see
    continual/randomness.py).
    """

    model: nn.Module

    def __init__(self, method: Method, memory: Memory, report: Report, device: torch.device):
        self.method, self.memory, self.report, self.device = method, memory, report, device
        self.teacher: nn.Module | None = None
        self.position = Position()
        self.trainer: Trainer | None = None
        self.last: dict[str, Any] = {}  # the last epoch that ended: epoch, phase, lr, losses
        self.ledger = Ledger(device)
        self.predictions: dict[str, str] = {}  # the digest of every file of them, by name
        self.fingerprint: Fingerprint | None = Fingerprint()  # None of a run whose beginning nobody noted
        self.made_with: list[dict[str, Any]] = []  # environments, each with the position since which it is that; see evidence
        self.images = ""  # the digest of the file that holds those of single images
        self._resumed: dict[str, Any] | None = None  # of the phase under way, until it is entered

    def begin(self, task: Task) -> None:
        """Keep the model as it stands as the teacher, then grow it by a task. Nothing if that was done before."""
        if sum(self.model.classes) == task.nb_seen:
            return
        if not task.first and self.method.keeps_teacher:
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model = self.method.grow(self.model, task).to(self.device)

    def first_step(self, task: Task) -> str:
        """The name of the step that a task begins with. Raises OptionsError if a run cannot take the steps of the method."""
        steps = self.method.steps(task)
        names = [step.name for step in steps]
        what = f"method {self.method.options.method}: the steps of task {task.index + 1}"
        if not any(isinstance(step, Phase) and step.epochs > 0 for step in steps):
            raise OptionsError(f"{what} have no phase of training with an epoch or more")
        if len(set(names)) < len(names) or EVALUATING in names:
            raise OptionsError(f"{what} need names of their own, and none called {EVALUATING}: {', '.join(names)}")
        if bad := [name for name in names if not STEP_NAME.fullmatch(name)]:
            raise OptionsError(f"{what}: {bad[0]!r} is no name: letters, digits, spaces, - and _ only")
        return names[0]

    def steps_left(self, task: Task) -> list[Step]:
        """The method's steps of this task from where the run stands."""
        steps = self.method.steps(task)
        names = [step.name for step in steps]
        return steps[names.index(self.position.stage) :] if self.position.stage in names else []

    def step_done(self, task: Task, step: Step) -> None:
        """Move on to the method's next step, or past the last one."""
        names = [each.name for each in self.method.steps(task)]
        self.move(stage=[*names, EVALUATING][names.index(step.name) + 1], epoch=0, step=0)

    def noting(self, steps: Iterator[tuple[Any, int]], task: Task) -> Iterator[tuple[Any, int]]:
        """The same steps of training; the first ones of the run leave its fingerprint."""
        first = self.fingerprint is not None and task.index == 0 and self.position.stage == self.first_step(task)
        if first:
            self.fingerprint.begin(self.model)
        for losses, nb_images in steps:
            if first:
                self.fingerprint.note(losses["total"], self.model)
            yield losses, nb_images

    def nb_parameters(self) -> int:
        """Of the model as it stands, whatever is frozen."""
        return sum(p.numel() for p in self.model.parameters())

    def seconds(self) -> float:
        """Time this run took, up to now and before it was resumed."""
        return self.ledger.total()

    def enter(self, trainer: Trainer) -> None:
        """Begin a phase, or go on inside it after a resume."""
        self.trainer = trainer
        if self._resumed is not None:
            trainer.load_state_dict(self._resumed)
            self._resumed = None

    def move(self, **changes: Any) -> None:
        """Change the position; a new task or stage forgets the phase that ended."""
        self.position = replace(self.position, **changes)
        if "task" in changes or "stage" in changes:
            self.trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dicts of these; bit by bit those of an uninterrupted run."""
        return {
            "position": asdict(self.position),
            "model": _model_state(self.model),
            "teacher": _model_state(self.teacher) if self.teacher is not None else None,
            "method": self.method.state_dict(),
            "memory": self.memory.state_dict(),
            "report": self.report.state_dict(),
            "progress": self._resumed if self.trainer is None else self.trainer.state_dict(),
            "last": self.last,
        }

    def load_state_dict(self, state: dict[str, Any], *, seconds: float = 0.0, spent: Mapping[str, Any] | None = None) -> None:
        """Go on from `state_dict`. No part of it are seconds: how long the run took up to there, and spent: its ledger's state.

        Raises CheckpointError if it is not of a run, or if the weights or the memory do not fit.
        """
        try:
            self.position = Position(**state["position"])
            self.model = restored(self.method, state["model"]).to(self.device)
            self.teacher = None
            if state["teacher"] is not None:
                self.teacher = restored(self.method, state["teacher"]).to(self.device).eval().requires_grad_(False)
            self.method.load_state_dict(state.get("method", {}))
            self.memory.load_state_dict(state["memory"])
            self.report.load_state_dict(state["report"])
            self._resumed = state["progress"]
            self.last = state["last"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint does not hold the state of a run ({one_line(error)[:300]})") from error
        self.ledger.load_state_dict(spent or {}, seconds=seconds)

    def restart_epoch(self) -> None:
        """After `load_state_dict`: begin the epoch under way again, without what its phase remembers."""
        self._resumed = None
        self.move(step=0)


def restored(method: Method, state: dict[str, Any]) -> nn.Module:
    """A model as it was when its state was taken, on the CPU. Raises CheckpointError if its weights are of another model."""
    method.fetches_weights = False
    try:
        model = method.build()
        for nb_new in state["classes"]:
            model.add_task(nb_new)
        model.load_state_dict(state["weights"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the weights of the checkpoint are of another model: {reason}") from None
    finally:
        method.fetches_weights = True
    return model


def _model_state(model: nn.Module) -> dict[str, Any]:
    return {"classes": list(model.classes), "weights": model.state_dict()}
