"""How weights move: learning rates, optimizer and schedule (timm's), and sharpness-aware minimisation (DyTox++)."""

import math
from collections.abc import Iterable

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from continual.options import Optimisation


def scaled_lr(lr: float, batch_size: int, replicas: int) -> float:
    """The options give the rate of a total batch of 512; it grows linearly with the batch."""
    return lr * batch_size * replicas / 512


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def build_optimizer(model: nn.Module, options: Optimisation, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer `opt` on what is not frozen; weight decay on tensors of two or more dimensions only."""
    parameters = trained(model)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    extra = {}
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
        options: Optimisation,
        *,
        epochs: int,
        warmup_lr: float,
        epochs_done: int = 0,
    ):
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=options.sched,
            num_epochs=epochs,
            decay_epochs=options.decay_epochs,
            decay_rate=options.decay_rate,
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


def gradient_norm(parameters: Iterable[nn.Parameter], *, adaptive: bool = False) -> Tensor:
    """Euclidean norm of the gradient of all parameters together; adaptive: of |p| * g."""
    gradients = [p.grad * p.detach().abs() if adaptive else p.grad for p in parameters if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


class Sam:
    """Sharpness-aware minimisation on the gradients that lie in `p.grad` (DyTox++).

    SAM (Foret et al., ICLR 2021): move by rho * g / |g|, take the gradient there, come back, and step along it.
    Adaptive SAM (Kwon et al., ICML 2021): move by p^2 * g * rho / | |p| g |. Norms are over all trained parameters.
    LookSAM (Liu et al., CVPR 2022): the second gradient only every `look_every` steps; in between add
        look_alpha * |g| / |g_v| * g_v, where g_v is the part of the last SAM gradient orthogonal to g. 0 = plain SAM.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        rho: float,
        adaptive: bool = False,
        look_every: int = 0,
        look_alpha: float = 0.7,
    ):
        self.parameters, self.rho, self.adaptive = parameters, rho, adaptive
        self.look_every, self.look_alpha = look_every, look_alpha
        self.nb_steps = 0
        self.orthogonal: list[Tensor] = []  # g_v, one per parameter
        self._before: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # parameter, value, gradient

    def looks(self) -> bool:
        """Whether this step takes the second gradient."""
        return not self.look_every or self.nb_steps % self.look_every == 0

    @torch.no_grad()
    def perturb(self) -> None:
        """Climb to the perturbed point, and forget the gradient."""
        moved = [p for p in self.parameters if p.grad is not None]
        scale = self.rho / (gradient_norm(moved, adaptive=self.adaptive) + 1e-12)
        self._before = [(p, p.detach().clone(), p.grad.clone()) for p in moved]
        for p in moved:
            p.add_((p**2 if self.adaptive else 1.0) * p.grad * scale)
            p.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Come back, keeping the gradient of the perturbed point."""
        for p, value, _ in self._before:
            p.copy_(value)
        if self.look_every:
            first = torch.cat([g.flatten() for _, _, g in self._before])
            second = torch.cat([p.grad.flatten() for p, _, _ in self._before])
            along = (first @ second) / (first @ first + 1e-12)
            self.orthogonal = [p.grad - along * g for p, _, g in self._before]
        self._before = []
        self.nb_steps += 1

    @torch.no_grad()
    def reuse(self) -> None:
        """A step of LookSAM without the second gradient: add what the last one taught."""
        moved = [p for p in self.parameters if p.grad is not None]
        length = nn.utils.get_total_norm(self.orthogonal)
        scale = self.look_alpha * gradient_norm(moved) / (length + 1e-12)
        for p, g in zip(moved, self.orthogonal, strict=True):
            p.grad.add_(scale * g)
        self.nb_steps += 1

    def state_dict(self) -> dict:
        return {"nb_steps": self.nb_steps, "orthogonal": self.orthogonal}

    def load_state_dict(self, state: dict) -> None:
        self.nb_steps = state["nb_steps"]
        self.orthogonal = [g.to(p.device) for g, p in zip(state["orthogonal"], self.parameters, strict=False)]
