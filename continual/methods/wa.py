"""Weight Aligning (Zhao et al., CVPR 2020, arXiv 1911.07053).

L = (1 - lambda) L_CE + lambda L_KD, lambda = C_old / C_all, L_KD at temperature 2 (section 3.2); after each task
W_new <- W_new * mean(|w_old|) / mean(|w_new|) (equation 6). L_KD is this project's, `losses.distillation`: tau^2 KL, mean over
images and old classes, where the paper sums over the classes.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from continual.methods import Moment
from continual.methods.rehearsal import Rehearsal
from continual.tasks import TRAINING, Phase


class WA(Rehearsal):
    """Rehearsal with distillation; after training, the new classes' weights are brought to the norm of the old ones."""

    settings: ClassVar[dict[str, Any]] = {
        **Rehearsal.settings,
        "bce_loss": False,
        "smoothing": 0,
        "auto_kd": True,
        "distillation_tau": 2,
        "weight_align": True,
    }

    def after(self, phase: Phase, moment: Moment) -> str:
        """Align the newest classes' weights."""
        if phase.name != TRAINING or moment.task.first or not self.options.loss.weight_align:
            return ""
        *old, new = (head.weight for head in moment.model.heads)
        return f"weight aligning: new classes' weights times {align(torch.cat(old), new):.3f}"


@torch.no_grad()
def align(old: Tensor, new: Tensor) -> float:
    """Scale new classes' weights (C_new, D), in place, to the mean norm of the old ones' (C_old, D). Returns the factor."""
    factor = old.norm(dim=1).mean() / new.norm(dim=1).mean()
    new.mul_(factor)
    return float(factor)
