"""The images of one set of samples: opened and transformed one by one, or many at once where they lie in memory."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from continual.data.opening import open_rgb
from continual.data.samplers import Draw
from continual.data.samples import Samples, Split
from continual.errors import DataError, one_line
from continual.randomness import row_keys, seeded_in_turn


class Images(Dataset):
    """Opens and transforms samples, one by one.

    `images[index]` gives (the transform's output, label), `images.__getitems__(draw)` a list of them, for which whatever the
    transform draws depends on the image's key alone. upright: files are turned as their EXIF orientation says. finish: what
    is still to be done to a batch of the transform's outputs, on the device.

    Raises:
        DataError: an image that cannot be read; the message names its path and index.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        root: str | None = None,
        upright: bool = True,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.samples, self.finish = samples, finish or nn.Identity()
        self.transform = transform
        self.root = root
        self.upright = upright

    def __len__(self) -> int:
        return len(self.samples.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._transformed(index)
        return self.finish(image[None])[0], label

    def __getitems__(self, draw: Draw | list[int]) -> list[tuple[Tensor, int]]:
        """Those of a Draw are not finished: the device does it for the whole batch."""
        if not isinstance(draw, Draw):
            return [self[index] for index in draw]
        if draw.key is None:
            return [self._transformed(index) for index in draw.indices]
        opened = ((self.opened(int(index)), int(self.samples.y[index])) for index in draw.indices)
        keys = [(*draw.key, int(position)) for position in draw.positions]
        return [(self.transform(image), label) for (image, label), _ in zip(opened, seeded_in_turn(keys), strict=True)]

    def _transformed(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.opened(int(index))), int(self.samples.y[index])

    def opened(self, index: int) -> Image.Image:
        """As it is, in RGB."""
        x = self.samples.x[index]
        if not isinstance(x, str):
            return Image.fromarray(x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else x).convert("RGB")
        path = full_path(x, self.root)
        try:
            return open_rgb(path, upright=self.upright)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"cannot read the image {path} (index {index}): {one_line(error)}") from error


class InMemory(Dataset):
    """Samples that lie in memory, all of one size: on the device as uint8 pixels, transformed many at once.

    view: (pixels (B, H, W, 3) uint8, keys (B,) int64 on the CPU or None) -> images (B, 3, S, S) float32; see
    continual/data/augmentation.py. What a view draws for an image depends on the image's key alone, so it does not matter
    which images are transformed together.
    """

    AT_ONCE = 2**20  # pixels transformed together, at least: calls of few images would take as long

    def __init__(self, samples: Samples, view: Callable[[Tensor, Tensor | None], Tensor], *, device: torch.device):
        self.samples, self.view = samples, view
        self.pixels = view.prepared(torch.from_numpy(np.ascontiguousarray(samples.x)).to(device))
        self.labels = torch.from_numpy(samples.y).to(device)

    def __len__(self) -> int:
        return len(self.samples.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image, its random draws new each time, and its label."""
        keys = torch.randint(2**63 - 1, (1,))
        return self.view(self.pixels[index][None], keys)[0], int(self.samples.y[index])

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of every draw, on the device."""
        room = max(1, self.AT_ONCE // (self.pixels.shape[1] * self.pixels.shape[2]))
        together: list[Draw] = []
        nb_images = 0
        for draw in draws:
            together.append(draw)
            nb_images += len(draw.indices)
            if nb_images >= room:
                yield from self._transformed(together)
                together, nb_images = [], 0
        if together:
            yield from self._transformed(together)

    def _transformed(self, draws: list[Draw]) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.from_numpy(np.concatenate([draw.indices for draw in draws])).to(self.labels.device, non_blocking=True)
        keys = None
        if draws[0].key is not None:
            keys = torch.cat([row_keys(*draw.key, rows=torch.from_numpy(draw.positions)) for draw in draws])
        sizes = [len(draw.indices) for draw in draws]
        return zip(self.view(self.pixels[rows], keys).split(sizes), self.labels[rows].split(sizes), strict=True)


def full_path(path: str, root: str | None) -> str:
    """Where an image lies: `path` with forward slashes, from the folder `root` if there is one."""
    return os.path.join(root or "", *path.split("/"))


def without_unreadable(name: str, split: Split, root: str | None) -> tuple[Split, tuple[str, ...]]:
    """Decodes every file once: the split with those that can be read, and the paths of the others. name: of the data set.

    Raises:
        DataError: a class of which no image can be read.
    """
    x, y = split.x, split.y
    if x.dtype.kind != "U":
        return split, ()
    with ThreadPoolExecutor() as pool:  # threads are enough: Pillow decodes outside of Python's lock
        blocks = pool.map(partial(_readable, root), np.array_split(x, 1 + len(x) // 256))
        readable = np.array([answer for block in blocks for answer in block])
    lost = np.setdiff1d(y, y[readable])
    if len(lost):
        path = x[y == lost[0]][0]
        raise DataError(f"{name}: no image can be read of {len(lost)} classes, such as that of {full_path(path, root)}")
    return split._replace(x=x[readable], y=y[readable]), tuple(x[~readable].tolist())


def _readable(root: str | None, paths: np.ndarray) -> list[bool]:
    """Whether each of these images can be decoded. Raises DataError for one that is refused on purpose."""
    readable = []
    for path in paths:
        try:
            open_rgb(full_path(path, root), upright=False)
            readable.append(True)
        except DataError:
            raise
        except Exception:
            readable.append(False)
    return readable
