"""The steps of an epoch: gradients of every batch, SAM, the update."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from continual.errors import NonFiniteLoss
from continual.jobs import distributed
from continual.losses import Objective
from continual.randomness import seed_of
from continual.sam import Sam, gradient_norm
from continual.training.batches import Batch, Step
from continual.training.loading import Loading
from continual.training.optim import trained


def train_one_epoch(
    objective: Objective,
    steps: Iterable[Step],
    optimizer: torch.optim.Optimizer,
    *,
    loading: Loading,
    sam: Sam | None = None,
    clip_grad: float | None = None,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Train on the steps that are left of an epoch; yields the named losses and the number of images after every update.

    Raises NonFiniteLoss on every process, before the update.
    """
    model = objective.model
    for step in steps:
        climbs = sam is not None and sam.perturbs()
        losses = backward(objective, step.first if climbs else step.main, loading=loading, key=step.key)
        stop_if_not_finite(losses, model, step.where)
        if climbs:
            sam.perturb()
            perturbed = backward(objective, step.second, loading=loading, key=(*step.key, "sam"))
            stop_if_not_finite(perturbed, model, f"{step.where}, at SAM's perturbed point")
            sam.restore()
        elif sam is not None:
            sam.reuse()
        if clip_grad:
            nn.utils.clip_grad_norm_(trained(model), clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield losses, step.nb_images


def backward(objective: Objective, batches: list[Batch], *, loading: Loading, key: tuple) -> dict[str, Tensor]:
    """Add up the gradients of the process's batches, then average over processes. Returns the losses of all, so weighed.

    Every pass seeds the model's random draws with its own key, so that they do not depend on which process carries it.
    Does not check for NaN; the caller does.
    """
    model, mean = objective.model, {}
    for replica, name, images, targets, weight, held_out in batches:
        torch.manual_seed(seed_of(*key, "model", name, replica))
        with loading.precision(), gathering_statistics(model, replica == 0):
            losses = objective(images, targets, held_out)
        (losses["total"] * weight).backward()
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
