"""How weights move: learning rates, optimizer and schedule, which are timm's.

timm is imported where it is used, here as in whatever a method imports: it takes longer than torch, and nothing of it is
needed to say which options the methods have.
"""

import math

import torch
from torch import nn

from continual.options import OptimOptions


def scaled_lr(lr: float, batch_size: int, replicas: int) -> float:
    """The options give the rate of a total batch of 512; it grows linearly with the batch."""
    return lr * batch_size * replicas / 512


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


FUSED = ("adamw", "adam", "sgd", "momentum", "nesterov")  # those that torch updates in one kernel, on every device


def build_optimizer(model: nn.Module, options: OptimOptions, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer `opt` on what is not frozen; weight decay on tensors of two or more dimensions only."""
    from timm.optim import create_optimizer_v2

    parameters = trained(model)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    extra = {"fused": True} if options.opt in FUSED else {}
    if options.opt_eps is not None and options.opt not in ("sgd", "momentum", "nesterov", "lion"):
        extra["eps"] = options.opt_eps
    if options.opt_betas:
        extra["betas"] = tuple(options.opt_betas)
    return create_optimizer_v2(
        [g for g in groups if g["params"]],
        opt=options.opt,
        lr=lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        **extra,
    )


class Schedule:
    """timm's schedule `sched`, stepped after each epoch with that epoch's index.

    So epochs 0 and 1 both run at the first rate, and epoch e at schedule(e - 1), as in DeiT and the released code. The rate
    of an epoch depends on its number alone, except for "plateau", which looks at the training loss.

    epochs_done: how many lie behind; whether the rate would have fallen on a plateau in them, it does not know.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        options: OptimOptions,
        *,
        epochs: int,
        warmup_lr: float,
        epochs_done: int = 0,
    ):
        from timm.scheduler import create_scheduler_v2

        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=options.sched,
            num_epochs=epochs,
            decay_epochs=options.decay_epochs,
            decay_rate=options.decay_rate,
            decay_milestones=options.decay_milestones,
            patience_epochs=options.patience_epochs,
            min_lr=options.min_lr,
            warmup_lr=warmup_lr,
            warmup_epochs=options.warmup_epochs,
            noise=options.lr_noise,
            noise_pct=options.lr_noise_pct,
            noise_std=options.lr_noise_std,
            plateau_mode="min",
        )
        self.plateau = options.sched == "plateau"
        if self.plateau and not options.warmup_epochs:
            self.scheduler.warmup_t = -1  # timm warms up in epoch 0 even so, and would stay at `warmup_lr`
        if epochs_done:
            self.step(epochs_done - 1, math.inf)

    def step(self, epoch: int, loss: float) -> None:
        """Call after epoch `epoch`, whose mean training loss was `loss`."""
        self.scheduler.step(epoch, loss)

    def state_dict(self) -> dict:
        state = self.scheduler.state_dict()
        if self.plateau:  # timm leaves out how long the loss has not fallen, and the rate below the noise
            state |= {"counters": self.scheduler.lr_scheduler.state_dict(), "restore_lr": self.scheduler.restore_lr}
        return state

    def load_state_dict(self, state: dict) -> None:
        self.scheduler.load_state_dict(state)
        if self.plateau:
            self.scheduler.lr_scheduler.load_state_dict(state["counters"])
            self.scheduler.restore_lr = state["restore_lr"]
