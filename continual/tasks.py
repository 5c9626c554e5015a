"""What a run is cut into: tasks, each a few new classes, and phases of training inside a task."""

from dataclasses import dataclass

TRAINING, REMEMBERING, FINETUNING = "training", "remembering", "finetuning"  # a task's stages; the outer ones are phases


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
    """One phase of training. Training and finetuning are two values of this type, run by one function."""

    name: str  # TRAINING or FINETUNING
    epochs: int
    batch_size: int  # of one replica
    lr: float  # peak (or constant) learning rate, already scaled to the batch
    scheduled: bool  # follow the schedule of the options, or keep lr constant
    sampler: str  # "repeated", "shuffled" or "sequential"; see continual/data/samplers.py
    frozen: tuple[str, ...] = ()  # names of parts; see DyTox.parts
    distil: bool = False  # learn from the teacher
    divergence: bool = False  # train the divergence head
    sam_rho: float = 0.0  # radius of SAM's perturbation, 0 for none
    warmup_lr: float = 0.0  # read when scheduled
    drop_last: bool = False  # sequential order: drop the last partial batch as the released code does
