"""Sharpness-aware minimisation (DyTox++)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SamSettings:
    """How a phase uses SAM; see `Sam`.

    first_on_memory, second_on_memory: take the gradient that perturbs, or the one stepped along, on batches of the memory.
    """

    rho: float
    adaptive: bool = False
    look_every: int = 0
    look_alpha: float = 0.7
    first_on_memory: bool = False
    second_on_memory: bool = False


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

    def perturbs(self) -> bool:
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
