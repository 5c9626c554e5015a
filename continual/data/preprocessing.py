"""One image as evaluation saw those of its run: opened by the same rule, cut out of the middle, normalised.

Letters: S side of the model's input; B images in a batch.
"""

import os
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from continual.data import given, transforms
from continual.data.augmentation import Normalisation
from continual.data.images import Images
from continual.data.opening import as_rgb, open_rgb
from continual.data.samples import Samples
from continual.errors import DataError, one_line


class Preprocessing:
    """image -> float32 (3, S, S), the plain view that evaluations use.

    An image is a path, a Pillow image, or pixels as `datasets.register` takes them: uint8 or uint16, (H, W), (H, W, C) or
    (C, H, W). mean, std: per channel, for pixels in [0, 1]. upright: turned as its EXIF orientation says.
    """

    def __init__(self, *, input_size: int, mean: Sequence[float], std: Sequence[float], upright: bool = True):
        self.input_size, self.mean, self.std, self.upright = input_size, tuple(mean), tuple(std), upright
        whole = transforms.test_transform(input_size=input_size, mean=self.mean, std=self.std)
        self._cut = transforms.unfinished(whole)
        self.finish = Normalisation(self.mean, self.std)  # uint8 (B, 3, S, S) -> float32, on the device of its input

    def __call__(self, image: Any) -> Tensor:
        """Raises DataError for an image that cannot be read."""
        return self.finish(self.pixels(image)[None])[0]

    def pixels(self, image: Any) -> Tensor:
        """The same before it is normalised: uint8 (3, S, S). Raises DataError for an image that cannot be read."""
        return self._cut(self._opened(image))

    def images(self, samples: Samples, root: str | None) -> Images:
        """Samples as a data set. root: the folder that paths start from."""
        return Images(samples, self._cut, root=root, upright=self.upright, finish=self.finish)

    def _opened(self, image: Any) -> Image.Image:
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            try:
                return open_rgb(path, upright=self.upright)
            except DataError:
                raise
            except UnidentifiedImageError:
                raise DataError(f"cannot read the image {path}: it is of no kind that Pillow knows") from None
            except OSError as error:
                raise DataError(f"cannot read the image {path}: {error.strerror or one_line(error)}") from error
            except Exception as error:
                raise DataError(f"cannot read the image {path}: {one_line(error)}") from error
        if isinstance(image, Image.Image):
            try:
                return as_rgb(image, upright=self.upright)
            except DataError:
                raise
            except Exception as error:  # a file that is opened only now
                raise DataError(f"cannot read the image: {one_line(error)}") from error
        (pixels,) = given.images("preprocess", [image], None)
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")
