"""Random images, and a model of one SAB and one TAB that knows two tasks."""

import numpy as np
import torch

from continual.convit import ConViT
from continual.data.images import Images
from continual.data.samplers import StepSampler
from continual.data.samples import Samples
from continual.data.transforms import test_transform as plain_transform
from continual.datasets import CIFAR_MEAN, CIFAR_STD
from continual.dytox import DyTox
from continual.randomness import seeded
from continual.tasks import Task
from continual.training.loading import Loading

CPU = Loading(torch.device("cpu"))
CLASSES = (4, 3)
PUBLISHED = {  # the augmentations that are the defaults of the options, for CIFAR
    "input_size": 32,
    "mean": CIFAR_MEAN,
    "std": CIFAR_STD,
    "aa": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "hflip": 0.5,
    "interpolation": "bicubic",
    "reprob": 0.25,
    "remode": "pixel",
    "recount": 1,
}
TASKS = (Task(0, 0, 4), Task(1, 4, 3))


def dytox(*, drop_path: float = 0.0, ind_clf: str = "1-1") -> DyTox:
    with seeded("model"):
        encoder = ConViT(input_size=8, patch_size=4, embed_dim=8, num_heads=2, drop_path_rates=[drop_path])
        model = DyTox(encoder, num_heads=2, drop_path_rates=[drop_path], ind_clf=ind_clf)
        for nb_new in CLASSES:
            model.add_task(nb_new)
    return model.train()


def images(nb: int, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    y = np.arange(nb) % sum(CLASSES)
    x = rng.integers(0, 256, (nb, 8, 8, 3), dtype=np.uint8)
    plain = plain_transform(input_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Images(Samples(x, y, (y >= CLASSES[0]).astype(np.int64)), plain)


def dealt(draws) -> list[list[tuple[int, tuple]]]:
    """The images of every batch, each with its key."""
    return [[(int(i), (*draw.key, int(at))) for i, at in zip(draw.indices, draw.positions, strict=True)] for draw in draws]


def sampler_of(nb: int, *, replicas: int = 1, batch_size: int = 4, mine: range | None = None) -> StepSampler:
    views = [np.arange(nb)] * replicas
    return StepSampler("shuffled", views, own_replicas=mine or range(replicas), batch_size=batch_size, key=(0, "training", 1))
