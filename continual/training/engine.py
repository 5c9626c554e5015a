"""Batches: one epoch of training, evaluation, and the extraction of features.

Letters:  B batch   T tasks seen   D embed_dim   C_all classes seen
"""

import errno
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from continual.data.mixing import Mixing
from continual.data.samplers import StepSampler
from continual.dytox import Outputs
from continual.errors import DataError, LoadingFailed, NonFiniteLoss
from continual.jobs import distributed, faults
from continual.losses import Objective
from continual.metrics import Scores
from continual.randomness import seed_of
from continual.tasks import Task
from continual.training.optim import Sam, gradient_norm, trained

FORK = "fork" if sys.platform == "linux" else None  # at once, and without a server between, which a signal could end


@dataclass(frozen=True)
class Loading:
    """How images reach the device."""

    device: torch.device
    num_workers: int = 0
    pin_mem: bool = False
    amp: bool = False  # bfloat16 autocast

    def loader(self, dataset: Dataset, batches: Sampler | Sequence, *, persistent: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            pin_memory=self.pin_mem and self.device.type == "cuda",
            persistent_workers=persistent and self.num_workers > 0,
            generator=torch.Generator(),  # its own: a loader must not draw from the global one
            multiprocessing_context=FORK if self.num_workers else None,
        )

    def start(self, loader: DataLoader) -> Iterator[list[Tensor]]:
        """The loader's batches, from workers that no SIGTERM or Ctrl-C reaches. Raises LoadingFailed if they cannot start.

        A scheduler or a terminal sends these to every process of a job, and they must go on until their own one has saved.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, distributed.STOP_SIGNALS)  # which the workers inherit
        try:
            return iter(loader)
        except (OSError, RuntimeError) as error:
            if self.num_workers and not isinstance(error, torch.OutOfMemoryError):
                raise _of_workers(error, self.num_workers) from error
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def to_device(self, batch: Sequence[Tensor]) -> list[Tensor]:
        return [part.to(self.device, non_blocking=True) for part in batch]

    def precision(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp)


WORKERS_FAILED = re.compile(
    r"DataLoader worker \(pid|DataLoader timed out|pin memory thread|</?torch_|shared memory (object|file)|shared memory\(shm\)"
    r"|too many open files|ancdata|can't start new thread|(?s:in DataLoader worker process.*(MemoryError|allocate memory))",
    re.IGNORECASE,
)  # what PyTorch says when a worker is killed, or out of memory, of room in /dev/shm, or of files
TOO_LITTLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


@contextmanager
def naming_workers(num_workers: int) -> Iterator[None]:
    """A failure of data loading's workers, which PyTorch may raise at any moment, becomes a LoadingFailed."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, DataError) as error:
        little = isinstance(error, OSError) and error.errno in TOO_LITTLE
        if num_workers and (little or WORKERS_FAILED.search(str(error))):
            raise _of_workers(error, num_workers) from error
        raise


def _of_workers(error: Exception, num_workers: int) -> LoadingFailed:
    *_, reason = str(error).strip().splitlines() or [type(error).__name__]
    reason = reason.partition(". ")[0].rstrip(".")[:300]
    return LoadingFailed(
        f"data loading failed: {reason}; try fewer workers than --num-workers {num_workers} (0: none), "
        "or give them more memory, room in /dev/shm, or open files (ulimit -n)"
    )


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


class Batch(NamedTuple):
    """One pass through the model: images of one or more replicas, and how much their loss counts."""

    replica: int  # the first of them
    name: str  # which of the step's passes this is
    images: Tensor  # (B, 3, S, S)
    targets: Tensor  # (B,) labels or (B, C_all) soft
    weight: float


@dataclass(frozen=True)
class Beside:
    """Batches of the memory that go with every step: for SAM's two gradients, and for replay.

    loader: over a MemorySampler with max(1, nb_replays) draws. weight_new: how much the step's own loss counts beside the
    replayed ones, which share the rest.
    """

    loader: DataLoader
    sam_first: bool = False  # SAM climbs along the memory's gradient
    sam_second: bool = False  # SAM steps along the memory's gradient
    nb_replays: int = 0
    weight_new: float = 1.0


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    loading: Loading,
    mixing: Mixing | None = None,
    sam: Sam | None = None,
    beside: Beside | None = None,
    clip_grad: float | None = None,
    at_once: int = 1,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Train on what is left of the loader's epoch; yields the named losses and the number of images after every update.

    model: the one that `objective` calls. loader: over a StepSampler, whose batches come replica by replica. at_once: how
    many of the process's replicas go through the model in one batch; the rest follow one after another, their gradients added
    up. Raises NonFiniteLoss on every process, before the update.
    """
    sampler: StepSampler = loader.batch_sampler
    share, key = len(sampler.mine), (*sampler.key, sampler.epoch)
    own, from_memory = loading.start(loader), loading.start(beside.loader) if beside else None
    nb_draws = max(1, beside.nb_replays) if beside else 0

    def take(batches: Iterator, nb_draws: int, what: str, step: int, weight: float) -> list[Batch]:
        """The next batches of every replica, mixed, `at_once` replicas in one."""
        drawn = [[(r, *loading.to_device(next(batches))) for _ in range(nb_draws)] for r in sampler.mine]
        faults.reach("data")
        taken = []
        for draw, of_replicas in enumerate(zip(*drawn, strict=True)):
            mixed = [(r, *(mixing(x, y, (*key, what, r, step, draw)) if mixing else (x, y))) for r, x, y in of_replicas]
            for start in range(0, share, at_once):
                replicas, images, targets = zip(*mixed[start : start + at_once], strict=True)
                part = weight * len(replicas) / share
                taken.append(Batch(replicas[0], f"{what} {draw}", torch.cat(images), torch.cat(targets), part))
        return taken

    for step in range(sampler.first_step, sampler.nb_steps):
        main = take(own, 1, "mixing", step, beside.weight_new if beside and beside.nb_replays else 1.0)
        nb_images = sum(len(each.images) for each in main)
        memory = take(from_memory, nb_draws, "memory mixing", step, 1 / nb_draws) if beside else []
        if beside and beside.nb_replays:
            main += [each._replace(weight=each.weight * (1 - beside.weight_new)) for each in memory]
        climbs = sam is not None and sam.looks()
        first = memory if climbs and beside and beside.sam_first else main
        second = memory if climbs and beside and beside.sam_second else main

        losses = backward(model, objective, first, loading=loading, key=(*key, step))
        where = f"epoch {sampler.epoch + 1}, step {step + 1}"
        stop_if_not_finite(losses, model, where)
        if climbs:
            sam.perturb()
            perturbed = backward(model, objective, second, loading=loading, key=(*key, step, "sam"))
            stop_if_not_finite(perturbed, model, f"{where}, at SAM's perturbed point")
            sam.restore()
        elif sam is not None:
            sam.reuse()
        if clip_grad:
            nn.utils.clip_grad_norm_(trained(model), clip_grad)
        faults.reach("step")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield losses, nb_images


def backward(
    model: nn.Module, objective: Objective, batches: list[Batch], *, loading: Loading, key: tuple
) -> dict[str, Tensor]:
    """Add up the gradients of the process's batches, then average over processes. Returns the losses of all, so weighed.

    Every pass seeds the model's random draws with its own key, so that they do not depend on which process carries it.
    Whether they are finite is the caller's to look at.
    """
    mean: dict[str, Tensor] = {}
    for replica, name, images, targets, weight in batches:
        torch.manual_seed(seed_of(*key, "model", name, replica))
        with loading.precision(), gathering_statistics(model, replica == 0):
            losses = objective(images, targets)
        losses["total"] = faults.reach("forward", losses["total"])
        (losses["total"] * weight).backward()
        faults.reach("backward")
        for loss, value in losses.items():
            mean[loss] = mean.get(loss, 0.0) + value.detach() * weight
    together = torch.stack(list(mean.values()))
    distributed.average([together, *(p.grad for p in trained(model) if p.grad is not None)])
    return dict(zip(mean, together, strict=True))


@contextmanager
def gathering_statistics(model: nn.Module, gathers: bool) -> Iterator[None]:
    """Whether batch norm's running statistics take in the batches inside: those of replica 0 alone do, whatever carries it."""
    norms = [m for m in distributed.batch_norms(model) if m.training and m.track_running_stats and not gathers]
    for norm in norms:
        norm.track_running_stats = False  # it still normalises by the batch
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def stop_if_not_finite(losses: dict[str, Tensor], model: nn.Module, where: str) -> None:
    """Raise NonFiniteLoss if the loss or its gradient, the same on every process, is NaN or infinite."""
    if math.isfinite(float(losses["total"] + gradient_norm(trained(model)))):
        return
    what = "gradient" if math.isfinite(float(losses["total"])) else "loss"
    named = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
    raise NonFiniteLoss(f"the {what} is not finite at {where}: {named}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside every module is in the mode it was in, frozen parts included."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def rounds(nb_samples: int, batch_size: int, *, spread: bool, rank: int | None = None) -> list[list[int]]:
    """Consecutive batches, the same for any number of processes.

    spread: round-robin over processes; returns the batches of process `rank` (this one), padded with empty ones.
    """
    batches = [list(range(i, min(i + batch_size, nb_samples))) for i in range(0, nb_samples, batch_size)]
    if not spread:
        return batches
    processes = distributed.nb_processes()
    batches += [[]] * (-len(batches) % processes)
    return batches[distributed.rank() if rank is None else rank :: processes]


def one_pass(
    dataset: Dataset,
    batch_size: int,
    *,
    loading: Loading,
    spread: bool,
    key: tuple | None = None,
    between: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Indices, images and labels of this process's batches, in order.

    key: what the augmentation depends on, besides the position, if the data set augments. between: called before every
    round, by all processes together, so that they can agree to leave.
    """
    own = rounds(len(dataset), batch_size, spread=spread)
    items = [[i if key is None else (i, (*key, i)) for i in batch] for batch in own if batch]
    loaded = loading.start(loading.loader(dataset, items))
    for indices in own:
        between()
        if indices:
            yield indices, *loading.to_device(next(loaded))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    tasks: Sequence[Task],
    *,
    loading: Loading,
    batch_size: int,
    spread: bool,
    score: Callable[[Outputs], Tensor] = Outputs.scores,
    between: Callable[[], None] = lambda: None,
) -> Scores:
    """Score the model, as it stands, on images of the given tasks, all of them seen. The counts are over all processes.

    spread: each process evaluates its share (`dist_eval`); else every process evaluates everything.
    score: Outputs -> (B, C_all), the higher the likelier. between: see `one_pass`.
    """
    of_task = torch.repeat_interleave(
        torch.arange(len(tasks), device=loading.device),
        torch.tensor([task.nb_new for task in tasks], device=loading.device),
    )  # (C_all,), the task of each class
    distributed.share_buffers(model)
    counts = torch.zeros(5, len(tasks), dtype=torch.float64, device=loading.device)
    for _, images, labels in one_pass(dataset, batch_size, loading=loading, spread=spread, between=between):
        faults.reach("evaluation")
        with evaluating(model), loading.precision():
            outputs = model(images)
        logits = score(outputs).float()
        task = of_task[labels]  # (B,)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = ranked == labels[:, None]
        known = logits.masked_fill(of_task[None, :] != task[:, None], -torch.inf).argmax(1) == labels
        loss = F.cross_entropy(logits, labels, reduction="none")
        for row, value in enumerate((torch.ones_like(loss), hits[:, 0], hits.any(1), known, loss)):
            counts[row].index_add_(0, task, value.double())
    if spread:
        distributed.sum_over_processes(counts)
    return Scores.from_lists(counts.tolist())


@torch.no_grad()
def extract_features(
    model: nn.Module,
    dataset: Dataset,
    *,
    loading: Loading,
    batch_size: int,
    key: tuple,
    newest_only: bool = False,
    between: Callable[[], None] = lambda: None,
) -> np.ndarray | None:
    """Task embeddings of every image in float32, on the main process; None on the others, which compute their share.

    (n, T D), e_1 .. e_T one behind the other; newest_only: (n, D), e_T alone. Never in mixed precision, as in the released
    code. key, between: see `one_pass`.
    """
    distributed.share_buffers(model)
    own = []
    for _, images, _ in one_pass(dataset, batch_size, loading=loading, spread=True, key=key, between=between):
        faults.reach("exemplars")
        with evaluating(model):
            tokens = model(images).tokens
        own.append((tokens[:, -1] if newest_only else tokens.flatten(1)).float().cpu())
    gathered = distributed.gather_rows(torch.cat(own) if own else torch.empty(0, 0))
    if gathered is None:
        return None
    features = np.empty((len(dataset), gathered[0].shape[1]), dtype=np.float32)
    for rank, rows in enumerate(gathered):
        of_rank = [index for batch in rounds(len(dataset), batch_size, spread=True, rank=rank) for index in batch]
        features[of_rank] = rows.numpy()
    return features
