"""Mixup and cutmix of a batch (timm's, imported where it is used), with a keyed draw and for any batch size."""

import torch
from torch import Tensor

from continual.options import AugmentOptions
from continual.randomness import seeded


class Mixing:
    """Mix a batch with its reverse: images (B, 3, S, S), labels (B,) -> images, soft targets (B, nb_classes).

    An odd batch, which timm refuses, is mixed with its first image as one more, left out again.
    """

    def __init__(self, options: AugmentOptions, *, nb_classes: int, smoothing: float):
        from timm.data import Mixup

        self.mixup = Mixup(
            mixup_alpha=options.mixup,
            cutmix_alpha=options.cutmix,
            cutmix_minmax=options.cutmix_minmax,
            prob=options.mixup_prob,
            switch_prob=options.mixup_switch_prob,
            mode=options.mixup_mode,
            label_smoothing=smoothing,
            num_classes=nb_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, key: tuple) -> tuple[Tensor, Tensor]:
        nb = len(images)
        if nb % 2:
            images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
        with seeded(*key):
            images, targets = self.mixup(images, labels)
        return images[:nb], targets[:nb]


def mixing(options: AugmentOptions, *, nb_classes: int, smoothing: float) -> Mixing | None:
    """A Mixing if the options ask for mixup or cutmix, else None."""
    if options.mixup > 0 or options.cutmix > 0 or options.cutmix_minmax:
        return Mixing(options, nb_classes=nb_classes, smoothing=smoothing)
    return None
