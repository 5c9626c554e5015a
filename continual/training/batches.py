"""The batches of a step: the phase's own, and beside them those of the memory and of images held out; on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from continual.data.mixing import Mixing
from continual.data.samplers import StepSampler
from continual.training.loading import Loader

MOST_PIXELS = 2**20  # of several replicas in one batch: 1,024 images of 32 x 32, or 20 of 224 x 224


class Batch(NamedTuple):
    """One pass through the model: images of one or more replicas, and how much their loss counts."""

    replica: int  # the first of them
    name: str  # which of the step's passes this is
    images: Tensor  # (B, 3, S, S)
    targets: Tensor  # (B,) labels or (B, C_all) soft
    weight: float
    rows: tuple[int, ...]  # images of each replica
    held_out: tuple[Tensor, Tensor] | None = None  # images held out of training and their labels, for losses that need them


class Step(NamedTuple):
    """All batches of one step of this process."""

    key: tuple  # of its random draws
    where: str  # for an error
    main: list[Batch]  # with the replayed ones, if there are any
    first: list[Batch]  # of SAM's perturbation
    second: list[Batch]  # of the gradient at the perturbed point
    nb_images: int


@dataclass(frozen=True)
class FromMemory:
    """Batches of the memory that go with every step: for SAM's two gradients, and for replay.

    loader: over a MemorySampler with max(1, nb_replays) draws. weight_new: how much the step's own loss counts beside the
    replayed ones, which share the rest.
    """

    loader: Loader
    sam_first: bool = False  # SAM climbs along the memory's gradient
    sam_second: bool = False  # SAM steps along the memory's gradient
    nb_replays: int = 0
    weight_new: float = 1.0


class Batches:
    """The steps of an epoch, from wherever the sampler of `loader` begins.

    loader: over a StepSampler, whose batches come replica by replica. held_out: loader of one batch for each of them, of the
    images held out. replicas_at_once: how many of the process's replicas go through the model in one batch; the rest follow
    one after another, their gradients added up. None: as many as have a million pixels.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        mixing: Mixing | None = None,
        memory: FromMemory | None = None,
        held_out: Loader | None = None,
        replicas_at_once: int | None = 1,
    ):
        self.loader, self.mixing = loader, mixing
        self.memory, self.held_out, self.replicas_at_once = memory, held_out, replicas_at_once
        self.sampler: StepSampler = loader.batch_sampler
        self._streams: tuple[Iterator | None, ...] = ()  # of all epochs to come: what is prefetched outlives an epoch
        self._stands: tuple[int, int] | None = None  # epoch and step of what they give next

    def __iter__(self) -> Iterator[Step]:
        sampler, memory = self.sampler, self.memory
        key = (*sampler.key, sampler.epoch)
        own, exemplars, held_out = self._streams_from(sampler.epoch, sampler.first_step)
        replays = memory is not None and memory.nb_replays > 0
        for step in range(sampler.first_step, sampler.nb_steps):
            self._stands = None
            main = self._next(own, "mixing", step, weight=memory.weight_new if replays else 1.0, held_out=held_out)
            nb_images = sum(len(each.images) for each in main)
            drawn = []
            if memory:
                nb_draws = max(1, memory.nb_replays)
                drawn = self._next(exemplars, "memory mixing", step, nb_draws=nb_draws, weight=1 / nb_draws)
            if replays:
                main += [each._replace(weight=each.weight * (1 - memory.weight_new)) for each in drawn]
            first = drawn if memory and memory.sam_first else main
            second = drawn if memory and memory.sam_second else main
            last = step + 1 == sampler.nb_steps
            self._stands = (sampler.epoch + 1, 0) if last else (sampler.epoch, step + 1)
            yield Step((*key, step), f"epoch {sampler.epoch + 1}, step {step + 1}", main, first, second, nb_images)

    def _streams_from(self, epoch: int, step: int) -> tuple[Iterator | None, ...]:
        """Batches of the phase's images, of the memory, and of those held out, from there on."""
        if self._stands != (epoch, step) or epoch >= self.sampler.nb_epochs:
            loaders = self.loader, self.memory and self.memory.loader, self.held_out
            self._streams = tuple(iter(loader) if loader else None for loader in loaders)
        return self._streams

    def _next(
        self, batches: Iterator, what: str, step: int, *, nb_draws: int = 1, weight: float, held_out: Iterator | None = None
    ) -> list[Batch]:
        """The next batches of every replica, mixed, several replicas in one; they count `weight` in all for each draw."""
        key = (*self.sampler.key, self.sampler.epoch, what)
        replicas = self.sampler.own_replicas
        drawn = [[(r, *next(batches)) for _ in range(nb_draws)] for r in replicas]
        held = [next(held_out) for _ in replicas] if held_out else []
        at_once = self.replicas_at_once or max(1, MOST_PIXELS // drawn[0][0][1][:, 0].numel())
        taken = []
        for draw, of_replicas in enumerate(zip(*drawn, strict=True)):
            mixed = [(r, *(self.mixing(x, y, (*key, r, step, draw)) if self.mixing else (x, y))) for r, x, y in of_replicas]
            for start in range(0, len(mixed), at_once):
                group = slice(start, start + at_once)
                numbers, images, targets = zip(*mixed[group], strict=True)
                part = weight * len(numbers) / len(mixed)
                of_held = tuple(_joined(parts) for parts in zip(*held[group], strict=True)) if held else None
                rows = tuple(map(len, images))
                taken.append(Batch(numbers[0], f"{what} {draw}", _joined(images), _joined(targets), part, rows, of_held))
        return taken


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
