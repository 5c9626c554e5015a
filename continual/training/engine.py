"""The steps of an epoch: gradients of every batch, SAM, the update."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual.errors import NonFiniteLoss
from continual.jobs import distributed
from continual.jobs.reduction import Reduction
from continual.losses import Objective
from continual.randomness import drawing, row_keys, seed_of
from continual.sam import Sam, gradient_norm
from continual.training.batches import Batch, Step
from continual.training.compiling import Compiled
from continual.training.loading import Loading
from continual.training.optim import trained
from continual.training.precision import LossScale


class Listener:
    """What the host hears of the steps: whether all was finite, and whether some process was asked to stop.

    late: hear it one step later, when the device has long been done, instead of waiting for it. The update of a step that is
    not finite, and all after it, are then left out on the device (the optimizer's `found_inf`).
    requested: whether this process was asked to stop.
    """

    def __init__(self, *, late: bool = False, requested: Callable[[], bool] = lambda: False):
        self.late, self.requested = late, requested
        self.asked = False  # whether any process was asked to stop, as far as is heard; the same on every process
        self._open: list[tuple[str, dict[str, Tensor], _Sent]] = []
        self._bad: Tensor | None = None

    def hear(self, losses: dict[str, Tensor], asked: Tensor, norm: Tensor, where: str, optimizer: Optimizer) -> None:
        """Of one gradient, reduced, and its norm. Raises NonFiniteLoss, of this step or if `late` of the one before."""
        figures = torch.stack([losses["total"].float(), norm.float(), asked.float()])
        if self.late:
            bad = (~figures.isfinite().all()).float()
            self._bad = bad if self._bad is None else torch.maximum(self._bad, bad)
            optimizer.found_inf = self._bad
        self._open.append((where, losses, _Sent(figures)))
        self.settle(still_open=1 if self.late else 0)

    def settle(self, still_open: int = 0) -> None:
        """Wait for what was not heard yet. Raises NonFiniteLoss."""
        while len(self._open) > still_open:
            where, losses, sent = self._open.pop(0)
            total, norm, asked = sent.arrived()
            self.asked |= asked > 0
            if not math.isfinite(total + norm):
                named = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
                what = "gradient" if math.isfinite(total) else "loss"
                raise NonFiniteLoss(f"the {what} is not finite at {where}: {named}")


class _Sent:
    """Numbers on their way from the device to the host."""

    def __init__(self, values: Tensor):
        self.values, self.event = values, None
        if values.is_cuda:
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def arrived(self) -> list[float]:
        if self.event is not None:
            self.event.synchronize()
        return self.values.tolist()


def train_one_epoch(
    objective: Objective,
    steps: Iterable[Step],
    optimizer: Optimizer,
    *,
    loading: Loading,
    sam: Sam | None = None,
    clip_grad: float | None = None,
    scale: LossScale | None = None,
    listener: Listener | None = None,
    compiled: Compiled | None = None,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Train on the steps that are left of an epoch; yields the named losses and the number of images after every update.

    scale: of the loss, for float16; a step whose gradient overflows is left out. listener, compiled: of the whole phase.
    Raises NonFiniteLoss on every process, before the update.
    """
    parameters = trained(objective.model)
    how = {"scale": scale, "listener": listener or Listener(), "compiled": compiled}
    passes = Passes(objective, Reduction(parameters), loading=loading, **how)
    for step in steps:
        climbs = sam is not None and sam.perturbs()
        losses, norm = passes(step.first if climbs else step.main, step.key, step.where, optimizer)
        if climbs and norm is not None:
            sam.perturb()
            _, norm = passes(step.second, (*step.key, "sam"), f"{step.where}, at SAM's perturbed point", optimizer)
            sam.restore()
        elif sam is not None and norm is not None:
            sam.reuse()
        if norm is not None:
            if clip_grad:
                nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm if sam is None else gradient_norm(parameters))
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield losses, step.nb_images


class Passes:
    """Forward and backward passes of one epoch: calling it leaves the mean gradient of a step's batches in `p.grad`."""

    def __init__(
        self,
        objective: Objective,
        reduction: Reduction,
        *,
        loading: Loading,
        listener: Listener,
        scale: LossScale | None = None,
        compiled: Compiled | None = None,
    ):
        self.objective, self.reduction, self.loading = objective, reduction, loading
        self.scale, self.listener, self.compiled = scale, listener, compiled
        self.norms = [m for m in distributed.batch_norms(objective.model) if m.training and m.track_running_stats]

    def __call__(
        self, batches: list[Batch], key: tuple, where: str, optimizer: Optimizer
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The losses, averaged over batches and processes, and the norm of the gradient.

        The norm is None if the loss's scale was too large for float16, and there is no gradient to follow. Every pass seeds
        the model's random draws with its own key, so that they do not depend on which process carries it.
        """
        mean, words = {}, None
        for number, batch in enumerate(batches, start=1):
            losses = self._forward(batch, key)
            for loss, value in losses.items():
                mean[loss] = mean.get(loss, 0.0) + value.detach() * batch.weight
            total = losses["total"] * batch.weight
            if self.scale is not None:
                total = self.scale.scaled(total)
            if number < len(batches):
                total.backward()
            else:
                asked = mean["total"].new_tensor(float(self.listener.requested()))
                words = self.reduction.backward(total, torch.stack([*mean.values(), asked]))
        *values, asked = words.unbind()
        losses = dict(zip(mean, values, strict=True))
        parameters = self.reduction.parameters
        follows = self.scale is None or self.scale.unscale(parameters, losses["total"])
        norm = gradient_norm(parameters) if follows else torch.zeros_like(losses["total"])
        self.listener.hear(losses, asked, norm, where, optimizer)
        return losses, norm if follows else None

    def _forward(self, batch: Batch, key: tuple) -> dict[str, Tensor]:
        seed_generators(batch.images.device, seed_of(*key, "model", batch.name, batch.replica))
        keys = [_row_keys(batch, batch.rows, key)]
        if batch.held_out is not None:
            nb = len(batch.rows)
            keys.append(_row_keys(batch, [len(batch.held_out[1]) // nb] * nb, (*key, "held out")))
        objective = self.compiled if self.compiled is not None and self.compiled.fits(batch.rows) else self.objective
        with self.loading.precision(), drawing(*keys), gathering_statistics(self.norms, batch.replica == 0):
            return objective(batch.images, batch.targets, batch.held_out)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's generators of the host and of that device; `torch.manual_seed` also looks for all other devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _row_keys(batch: Batch, rows: Sequence[int], key: tuple) -> Tensor:
    """The key of every image's draws in the model, whatever batch it stands in. rows: images of each replica."""
    of_replicas = [
        row_keys(*key, "model", batch.name, replica, rows=torch.arange(nb)) for replica, nb in enumerate(rows, batch.replica)
    ]
    return torch.cat(of_replicas).to(batch.images.device, non_blocking=True)


@contextmanager
def gathering_statistics(norms: list[nn.Module], gathers: bool) -> Iterator[None]:
    """Whether batch norms' running statistics take in the batches inside: those of replica 0 alone do, whatever carries it."""
    for norm in norms if not gathers else ():
        norm.track_running_stats = False  # it still normalises by the batch
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
