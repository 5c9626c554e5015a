"""iCaRL (Rebuffi et al., CVPR 2017, arXiv 1611.07725): distillation, herding, and the nearest mean of exemplars.

Distillation is this project's (softmax, lambda = C_old / C_all), where iCaRL's own used sigmoids.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.dytox import Outputs
from continual.methods import Moment
from continual.methods.rehearsal import Rehearsal


class ICaRL(Rehearsal):
    """Rehearsal with distillation that answers by the nearest mean of exemplars in place of the classifier."""

    settings: ClassVar[dict[str, Any]] = {
        **Rehearsal.settings,
        "bce_loss": True,
        "auto_kd": True,
        "nme": True,
        "rehearsal": "icarl_all",
    }

    def answer(self, moment: Moment) -> Callable[[Outputs], Tensor]:
        """The nearest mean of exemplars; classes not yet in memory are out of its reach. While it is empty, the classifier."""
        memory = moment.memory
        if not self.options.rehearsal.nme or not len(memory):
            return Outputs.scores
        features = moment.features(memory.samples)
        means = class_means(features, torch.from_numpy(memory.y).to(features.device), moment.task.nb_seen)
        return partial(nearest_mean_scores, means=means)


def class_means(features: Tensor, labels: Tensor, nb_classes: int) -> Tensor:
    """Means of L2-normalised exemplars, normalised again (iCaRL, section 3.1). (n, D), (n,) -> (nb_classes, D)"""
    features = F.normalize(features, dim=1)
    sums = torch.zeros(nb_classes, features.shape[1], dtype=features.dtype, device=features.device)
    return F.normalize(sums.index_add_(0, labels, features), dim=1)


def nearest_mean_scores(outputs: Outputs, means: Tensor) -> Tensor:
    """Minus the distance of each image's embedding to each class mean; the highest is iCaRL's answer. (B, C)

    A class without exemplars has a mean of 0; it lies further away than any other, which is 2 at most.
    """
    scores = -torch.cdist(F.normalize(outputs.tokens.flatten(1).float(), dim=1), means.float())
    return scores.masked_fill((means == 0).all(dim=1), -3.0)
