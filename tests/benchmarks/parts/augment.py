"""Images a second through the augmentation of training and the plain view: whole batches of tensors, and Pillow's images."""

from types import SimpleNamespace

import numpy as np
import torch

from continual.data.samplers import Draw
from continual.randomness import row_keys
from continual.runs.experiment import images_of
from parts.models import MEAN, STD, made_up, options_of, tasks_of
from parts.setting import Row, Setting, alternating

PIXELS = SimpleNamespace(mean=MEAN, std=STD, root=None, upright=True)


def augment(setting: Setting) -> Row:
    """CIFAR's recipe and the plain view, in batches of 32, 128 and 1,024, alternating with Pillow's."""
    nb = 64 if setting.tiny else 2048
    samples = made_up(nb, 32, tasks_of(1, 10))
    batched = images_of(options_of("cifar", setting), PIXELS, setting.device)
    pillow = images_of(options_of("cifar", setting, augment="pillow"), PIXELS)
    rows = []
    for recipe, random in (("training", True), ("plain", False)):
        tensors, one_by_one = batched(samples, augment=random), pillow(samples, augment=random)
        few = np.arange(16 if setting.tiny else 256)

        def through(size: int, tensors=tensors, random=random) -> None:
            for start in range(0, nb, size):
                at = torch.arange(start, min(start + size, nb))
                tensors.view(tensors.pixels[at.to(setting.device)], row_keys("speed", rows=at) if random else None)

        def by_pillow(one_by_one=one_by_one, few=few) -> None:
            one_by_one.__getitems__(Draw(few, ("speed",), few))

        sizes = (32,) if setting.tiny else (32, 128, 1024)
        variants = {f"{size}": lambda size=size, call=through: call(size) for size in sizes}
        seconds = alternating(setting, {**variants, "Pillow": by_pillow})
        row = {"view": recipe}
        row |= {f"batches of {size} (images/s)": nb / seconds[f"{size}"] for size in sizes}
        row["Pillow (images/s)"] = len(few) / seconds["Pillow"]
        row["batched / Pillow"] = row[f"batches of {sizes[-1]} (images/s)"] / row["Pillow (images/s)"]
        rows.append(row)
    where = "the device" if setting.on_cuda else f"{setting.threads} core(s)"
    return {"rows": rows, "notes": [f"batched on {where}; Pillow on one core"]}
