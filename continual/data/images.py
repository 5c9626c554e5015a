"""The images of one set of samples, opened and transformed one by one."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from continual.data.opening import open_rgb
from continual.data.samples import Samples, Split
from continual.errors import DataError, one_line
from continual.randomness import seeded


class Images(Dataset):
    """Opens and transforms samples.

    `images[index]` and `images[index, key]` give (the transform's output, label). With a key, a tuple of integers and
    words, whatever the transform draws depends on that key alone. `upright`: files are turned as their EXIF orientation says.

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
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.root = root
        self.upright = upright

    def __len__(self) -> int:
        return len(self.samples.y)

    def __getitem__(self, item: int | tuple[int, tuple[int | str, ...]]) -> tuple[torch.Tensor, int]:
        index, key = item if isinstance(item, tuple) else (item, None)
        image, label = self._open(int(index)), int(self.samples.y[index])
        if key is None:
            return self.transform(image), label
        # NumPy's integers print differently from Python's, and a key counts by how it prints.
        with seeded(*(part if isinstance(part, str) else int(part) for part in key)):
            return self.transform(image), label

    def _open(self, index: int) -> Image.Image:
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
