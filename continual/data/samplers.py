"""Which image goes where: an epoch's indices for every replica, as arrays, and the batches made from them.

A replica is one lane of data parallelism in the recipe, whatever process carries it. All functions return an int array
(nb_replicas, length): row r is what replica r sees, in order.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from continual.randomness import seed_of
from continual.tasks import Phase

REPEATS = 3  # repeated augmentation: copies of an image in a row (Hoffer et al., CVPR 2020; DeiT)


def _permutation(nb_samples: int, epoch: int) -> np.ndarray:
    return torch.randperm(nb_samples, generator=torch.Generator().manual_seed(epoch)).numpy()


def repeated_augmentation(nb_samples: int, nb_replicas: int, epoch: int) -> np.ndarray:
    """Each index three times in a row, dealt out to the replicas in turn, and cut to about one epoch's length.

    The length is (nb_samples // 256 * 256) / nb_replicas, or nb_samples / nb_replicas below 256 samples; at least 1.
    """
    indices = np.repeat(_permutation(nb_samples, epoch), REPEATS)
    dealt = np.resize(indices, -(-len(indices) // nb_replicas) * nb_replicas).reshape(-1, nb_replicas).T
    return dealt[:, : _repeated_length(nb_samples, nb_replicas)]


def _repeated_length(nb_samples: int, nb_replicas: int) -> int:
    """Images of one replica in an epoch of repeated augmentation."""
    kept = nb_samples // 256 * 256 if nb_samples >= 256 else nb_samples
    return max(1, kept // nb_replicas)


def shuffled(nb_samples: int, nb_replicas: int, epoch: int) -> np.ndarray:
    """Every index once, dealt out to the replicas in turn, padded from the start to equal lengths."""
    indices = _permutation(nb_samples, epoch)
    return np.resize(indices, -(-len(indices) // nb_replicas) * nb_replicas).reshape(-1, nb_replicas).T


def sequential(nb_samples: int, nb_replicas: int, epoch: int) -> np.ndarray:
    """Every replica sees everything, in order; the epoch changes nothing."""
    return np.tile(np.arange(nb_samples), (nb_replicas, 1))


def released_drop_last(nb_samples: int, nb_replicas: int, batch_size: int) -> bool:
    """Whether the released code drops the last partial batch of an epoch over `nb_samples` images.

    It asks whether a sampler of repeated augmentation would give a replica more images than one batch, whatever sampler the
    epoch really uses. In finetuning, in memory order, what it drops are always the newest exemplars.
    """
    return _repeated_length(nb_samples, nb_replicas) > batch_size


SAMPLERS = {"repeated": repeated_augmentation, "shuffled": shuffled, "sequential": sequential}


class Draw(NamedTuple):
    """The images of one batch, and what their augmentation depends on.

    indices: int array (B,), into the data set. key, positions: the augmentation of image i is drawn by (*key, positions[i]);
    positions int array (B,). A key of None: nothing is random.
    """

    indices: np.ndarray
    key: tuple[int | str, ...] | None
    positions: np.ndarray


class StepSampler(Sampler[Draw]):
    """The batches of one process: for each step, one batch for each of its replicas, in turn.

    sampler: a name in SAMPLERS.
    views: for each replica of the recipe, the indices of the data set it may see (all views of one length).
    own_replicas: the replicas that this process carries.
    key: what the augmentation depends on, besides the epoch, the replica and the position in the epoch.
    nb_epochs: how many there are to deal out, one after another without a pause.
    most_steps: end an epoch early, for a trial.
    drop_last: drop the last partial batch of a sequential epoch, too, where the released code does (`released_drop_last`).
    no_single: for models whose batch norm trains, which cannot on one image alone: a last batch of one image joins the batch
        before it, and an epoch of one image per replica takes a second, that of the next replica.

    The last partial batch is dropped when there is more than one, except in sequential order, where the same images would be
    missed in every epoch. Call `set_epoch` before each epoch.
    """

    def __init__(
        self,
        sampler: str,
        views: Sequence[np.ndarray],
        *,
        own_replicas: Sequence[int],
        batch_size: int,
        key: tuple,
        nb_epochs: int = 1,
        most_steps: int | None = None,
        drop_last: bool = False,
        no_single: bool = False,
    ):
        self.sampler, self.views, self.own_replicas = sampler, views, list(own_replicas)
        self.batch_size, self.key, self.nb_epochs = batch_size, key, nb_epochs
        self.epoch, self.first_step = 0, 0
        nb_samples, nb_replicas = len(views[0]), len(views)
        length = SAMPLERS[sampler](nb_samples, nb_replicas, 0).shape[1]
        if sampler == "sequential":
            drops = drop_last and released_drop_last(nb_samples, nb_replicas, batch_size)
        else:
            drops = length > batch_size
        bounds = list(range(0, length + 1 if drops else length + batch_size, batch_size))
        bounds[-1] = min(bounds[-1], length)
        self.doubled = no_single and length == 1
        if self.doubled:
            bounds = [0, 2]
        elif no_single and batch_size > 1 and len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
            del bounds[-2]
        self.bounds = bounds  # step i takes the positions bounds[i] to bounds[i + 1] of the epoch
        self.nb_steps = len(bounds) - 1
        if most_steps is not None:
            self.nb_steps = min(self.nb_steps, most_steps)

    @classmethod
    def of(cls, phase: Phase, views: Sequence[np.ndarray], **where: Any) -> "StepSampler":
        """The batches of a phase; `where`: the arguments that it does not tell."""
        return cls(
            phase.sampler,
            views,
            batch_size=phase.batch_size,
            nb_epochs=phase.epochs,
            most_steps=phase.most_steps,
            drop_last=phase.drop_last,
            **where,
        )

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """The epoch to deal out next, and the step to begin it at."""
        self.epoch, self.first_step = epoch, first_step

    def steps_left(self) -> Iterator[tuple[int, int]]:
        """Epoch and step of all that is to be dealt out, from where `set_epoch` says; later calls of it change nothing here."""
        epoch, first = self.epoch, self.first_step
        left = [(epoch, first), *((later, 0) for later in range(epoch + 1, self.nb_epochs))]
        return ((epoch, step) for epoch, first in left for step in range(first, self.nb_steps))

    def __iter__(self) -> Iterator[Draw]:
        order, of_epoch = None, None
        for epoch, step in self.steps_left():
            if epoch != of_epoch:
                order, of_epoch = self._order(epoch), epoch
            positions = np.arange(self.bounds[step], self.bounds[step + 1])
            for replica in self.own_replicas:
                yield Draw(self.views[replica][order[replica, positions]], (*self.key, epoch, replica), positions)

    def _order(self, epoch: int) -> np.ndarray:
        order = SAMPLERS[self.sampler](len(self.views[0]), len(self.views), epoch)
        return np.concatenate([order, np.roll(order, -1, axis=0)], axis=1) if self.doubled else order


class MemorySampler(Sampler[Draw]):
    """Batches of exemplars beside those of a StepSampler: for each step and replica, `nb_draws` batches.

    Each is drawn without replacement (if there are enough exemplars) from the replica's memory, by the step's key alone.
    views: for each replica, the indices of its exemplars. name: of these draws, which tells them from others of the same step.
    """

    def __init__(self, main: StepSampler, views: Sequence[np.ndarray], *, nb_draws: int, name: str = "memory"):
        self.main, self.views, self.nb_draws, self.name = main, views, nb_draws, name

    def __iter__(self) -> Iterator[Draw]:
        main = self.main
        positions = np.arange(main.batch_size)
        for epoch, step in main.steps_left():
            for replica in main.own_replicas:
                for draw in range(self.nb_draws):
                    key = (*main.key, self.name, epoch, replica, step, draw)
                    view = self.views[replica]
                    rng = np.random.default_rng(seed_of(*key))
                    yield Draw(rng.choice(view, size=main.batch_size, replace=len(view) < main.batch_size), key, positions)
