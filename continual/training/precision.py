"""In what precision a model computes: float32, TensorFloat-32, bfloat16 or float16."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from continual.sam import gradient_norm

MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}  # products in it, under autocast; weights and sums stay in float32


def chosen(amp: str, device: torch.device) -> str:
    """The precision of that device for the option `amp`: "auto" is bf16, or fp16 where CUDA has no units for bfloat16."""
    if amp != "auto":
        return amp
    return "fp16" if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False) else "bf16"


def set_products(amp: str) -> None:
    """Have float32 products and convolutions on CUDA use TensorFloat-32 with "tf32", and full precision otherwise."""
    precision = "tf32" if amp == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision


@contextmanager
def products_of_torch() -> Iterator[None]:
    """Inside, settings are as torch begins with them: its exporters (2.14) do not understand what `set_products` leaves."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [place.fp32_precision for place in places]
    try:
        for place, precision in zip(places, ("none", "tf32", "tf32"), strict=True):
            place.fp32_precision = precision
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def autocast(amp: str, device: torch.device) -> AbstractContextManager:
    """What a forward pass runs in."""
    return torch.autocast(device.type, dtype=MIXED.get(amp, torch.bfloat16), enabled=amp in MIXED)


class LossScale:
    """A factor that keeps small gradients above float16's smallest number (Micikevicius et al., ICLR 2018).

    It halves when a gradient overflows, whose step is left out, and doubles after `patience` steps without.
    """

    def __init__(self, scale: float = 2.0**16, *, patience: int = 2000):
        self.scale, self.patience, self.nb_good = scale, patience, 0

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale

    def unscale(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> bool:
        """Take the factor out of the gradients; returns whether they can be followed. loss: without the factor.

        A gradient that overflows without any factor, or a loss that is not finite, is no matter of the scale: True.
        """
        with torch.no_grad():
            for p in parameters:
                if p.grad is not None:
                    p.grad.div_(self.scale)
        overflows = not bool(gradient_norm(parameters).isfinite()) and bool(loss.isfinite()) and self.scale > 1
        self.nb_good = 0 if overflows else self.nb_good + 1
        if overflows:
            self.scale /= 2
        elif self.nb_good >= self.patience:
            self.scale, self.nb_good = min(2 * self.scale, 2.0**24), 0
        return not overflows

    def state_dict(self) -> dict:
        return {"scale": self.scale, "nb_good": self.nb_good}

    def load_state_dict(self, state: dict) -> None:
        self.scale, self.nb_good = state["scale"], state["nb_good"]
