"""What a run is cut into: tasks, each a few new classes; and the steps of a task: phases of training, and remembering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.data.material import Material, TrainingSet
    from continual.data.mixing import Mixing
    from continual.losses import Term
    from continual.options import OptimOptions
    from continual.sam import SamSettings

TRAINING, REMEMBERING, FINETUNING = "training", "remembering", "finetuning"


@dataclass(frozen=True)
class Task:
    """One step of the class-incremental scenario: the classes nb_old .. nb_old + nb_new - 1 arrive."""

    index: int
    nb_old: int  # C_old, classes before this task
    nb_new: int  # |C^t|, classes of this task

    @property
    def nb_seen(self) -> int:
        """C_all: classes up to and including this task."""
        return self.nb_old + self.nb_new

    @property
    def first(self) -> bool:
        """Whether it begins without old classes."""
        return self.nb_old == 0


@dataclass(frozen=True)
class Phase:
    """One phase of training, whatever its purpose: all phases of all methods are values of this type, run by one function."""

    name: str
    losses: Mapping[str, Term]  # by name; their sum is what the phase minimises
    data: Callable[[Material], TrainingSet]  # what it trains on; see continual/data/material.py
    epochs: int
    batch_size: int  # of one replica
    lr: float  # peak (or constant) learning rate, already scaled to the batch
    optim: OptimOptions  # optimizer and schedule
    scheduled: bool = True  # follow the schedule of `optim`, or keep lr constant
    warmup_lr: float = 0.0  # read when scheduled
    sampler: str = "shuffled"  # "repeated", "shuffled" or "sequential"; see continual/data/samplers.py
    frozen: tuple[str, ...] = ()  # names of the model's parts
    freeze_eval: bool = False  # frozen parts also leave train mode
    mixing: Mixing | None = None  # mixup and cutmix
    sam: SamSettings | None = None
    nb_replays: int = 0  # batches of the memory whose loss joins that of every batch
    weight_new: float = 1.0  # how much the batch itself counts beside these
    drop_last: bool = False  # sequential order: drop the last partial batch as the released code does
    most_steps: int | None = None  # of an epoch, for a trial


@dataclass(frozen=True)
class Remembering:
    """The step at which the memory takes in exemplars of the task's classes."""

    name: str = REMEMBERING


Step = Phase | Remembering
