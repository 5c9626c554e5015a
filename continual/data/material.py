"""What a phase trains on: new images, the memory, images held out of both, or all of a run so far.

Each function takes a Material and gives a TrainingSet; a phase names one of them, or one of a method's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from continual.data.samples import Samples
from continual.rehearsal import Memory


class TrainingSet(NamedTuple):
    """Samples, and for each replica the indices (n,) of those it sees; all replicas see equally many."""

    samples: Samples
    views: list[np.ndarray]


@dataclass(frozen=True)
class Material:
    """The images that a task may be trained on.

    new: training images of the task's classes. memory: exemplars of the classes before. replicas: of the recipe. everything:
    gives the training images of all classes so far. held_new (n_new,), held_memory (n_memory,): masks of what is kept out of
    training, see `hold_out`; None: nothing is.
    """

    new: Samples
    memory: Memory
    replicas: int = 1
    everything: Callable[[], Samples] | None = None
    held_new: np.ndarray | None = None
    held_memory: np.ndarray | None = None

    @cached_property
    def nb_held(self) -> int:
        return 0 if self.held_new is None else int(self.held_new.sum() + self.held_memory.sum())


def concatenated(parts: Sequence[Samples]) -> Samples:
    """Several sets of samples, one behind the other."""
    return Samples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def hold_out(new: Samples, memory: Memory, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a balanced set to keep out of training (BiC, section 3.3): masks over the new images and over the memory.

    Of every class in the memory, in every replica's part of it, `share` of the exemplars, at least one; of every new class as
    many as of an old one. One exemplar of each class always stays. Nothing while the memory is empty.
    """
    held_new, held_memory = np.zeros(len(new.y), dtype=bool), np.zeros(len(memory), dtype=bool)
    if not len(memory) or not share:
        return held_new, held_memory
    nb_held = 0
    for replica, label in sorted(set(zip(memory.replica.tolist(), memory.y.tolist(), strict=True))):
        rows = np.flatnonzero((memory.replica == replica) & (memory.y == label))
        nb_held = min(max(1, round(share * len(rows))), len(rows) - 1)
        held_memory[rng.permutation(rows)[:nb_held]] = True
    for label in np.unique(new.y):
        rows = np.flatnonzero(new.y == label)
        held_new[rng.permutation(rows)[: min(nb_held, len(rows) - 1)]] = True
    return held_new, held_memory


def new_and_memory(material: Material, times: int = 1) -> TrainingSet:
    """The new images and behind them the memory, so many times; without what is held out."""
    return _together(material, times, held=False)


def memory_alone(material: Material, times: int = 1) -> TrainingSet:
    """The memory, so many times; without what is held out, and the new images instead while it is empty."""
    if not len(material.memory):
        return new_and_memory(material)
    views = [np.concatenate([rows_of_memory(material, replica)] * times) for replica in range(material.replicas)]
    return TrainingSet(material.memory.samples, views)


def held_out(material: Material) -> TrainingSet:
    """What is kept out of training. Raises ValueError if nothing is."""
    if not material.nb_held:
        raise ValueError("no image is held out of training")
    return _together(material, 1, held=True)


def everything(material: Material) -> TrainingSet:
    """The training images of all classes so far, whatever the memory holds."""
    samples = material.everything()
    return TrainingSet(samples, [np.arange(len(samples.y))] * material.replicas)


def _together(material: Material, times: int, *, held: bool) -> TrainingSet:
    new, memory = material.new, material.memory
    mask = np.zeros(len(new.y), dtype=bool) if material.held_new is None else material.held_new
    rows = np.flatnonzero(mask == held)
    views = [
        np.concatenate([rows, *[len(new.y) + rows_of_memory(material, replica, held=held)] * times])
        for replica in range(material.replicas)
    ]
    return TrainingSet(concatenated([new, *([memory.samples] if len(memory) else [])]), views)


def rows_of_memory(material: Material, replica: int, *, held: bool = False) -> np.ndarray:
    """Rows (n,) of the memory that a replica sees, in its order: those held out, or the others."""
    view = material.memory.view(replica)
    return view if material.held_memory is None else view[material.held_memory[view] == held]
