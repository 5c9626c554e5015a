"""The augmentations of training and the plain view of evaluation, for whole batches of images that lie in memory.

The same recipe as in `transforms`, which works image by image on Pillow's; here torch does it, on the device of the images.
Every draw comes from a key, one per image, by its number (`randomness.uniform`): it depends neither on the other images nor
on the image's place among them. All draws are made on the host, which never waits for the device.

Letters:  B images in a batch   S side of the model's input   H, W sides of the images
"""

from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.data import transforms
from continual.data.draws import entries, ratios
from continual.data.erasing import Erasing
from continual.data.layers import CHUNK, ColorJitter, RandAugment
from continual.data.pixels import send
from continual.data.resizing import crops_resized, resized
from continual.data.transforms import SMALL
from continual.errors import OptionsError
from continual.randomness import uniform

# The numbers of the draws.
CROP, FLIP, ERASING, LAYERS = 0, 90, 100, 1 << 20

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random part of an image: its share, and its width by its height
TRIES = 10  # to draw a part that fits
WARPING = ("bilinear", "bicubic", "random")  # the interpolations that an image can be warped by


class View(Protocol):
    """What makes batches of a model's input of images."""

    def prepared(self, images: Tensor) -> Tensor:
        """What can be done once for all images: uint8 (n, H, W, 3) -> uint8 (n, h, w, 3), what a call takes."""

    def __call__(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Prepared images (B, h, w, 3) uint8, one key each (B,) int64 on the host -> float32 (B, 3, S, S), normalised."""


def train_view(
    *,
    input_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    aa: str | None,
    color_jitter: float | None,
    hflip: float,
    interpolation: str,
    reprob: float,
    remode: str,
    recount: int,
) -> View:
    """The steps of `transforms.train_transform`, which has the meaning of every argument.

    Raises:
        OptionsError: `aa`, `interpolation` or `remode` is not a name that timm knows, or images cannot be warped by it.
    """
    transforms.check_names(interpolation=interpolation, remode=remode)
    layers = None
    if transforms.is_named(aa):
        if interpolation not in WARPING:
            raise OptionsError(f"train_interpolation: with aa, {interpolation!r} is none of {', '.join(WARPING)}")
        layers = RandAugment(aa, input_size=input_size, interpolation=interpolation, first=LAYERS)
    elif color_jitter:
        layers = ColorJitter(color_jitter, first=LAYERS)
    crop = Shift(input_size) if input_size <= SMALL else Part(input_size, interpolation)
    erasing = Erasing(reprob, mode=remode, most=recount, first=ERASING) if reprob else None
    return TrainView(crop, hflip, layers, Normalisation(mean, std), erasing)


def plain_view(*, input_size: int, mean: tuple[float, float, float], std: tuple[float, float, float]) -> View:
    """The steps of `transforms.test_transform`: the middle of the image, normalised. Keys are not needed."""
    return PlainView(input_size, Normalisation(mean, std))


class TrainView:
    """A part of the image, perhaps flipped, changed in layers, normalised, and perhaps erased in places."""

    def __init__(
        self,
        crop: "Shift | Part",
        hflip: float,
        layers: RandAugment | ColorJitter | None,
        normalisation: "Normalisation",
        erasing: Erasing | None,
    ):
        self.crop, self.hflip, self.layers = crop, hflip, layers
        self.normalisation, self.erasing = normalisation, erasing

    def prepared(self, images: Tensor) -> Tensor:
        return self.crop.prepared(images)

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        if not len(images):
            return images.new_zeros(0, 3, self.crop.side, self.crop.side, dtype=torch.float32)
        flipped = uniform(keys, FLIP) < self.hflip
        x = self.crop(images, keys, flipped)
        if self.layers:
            x = self.layers(keys).applied(x)
        y = self.normalisation(x)
        return self.erasing(y, keys) if self.erasing else y


class PlainView:
    """The middle of the image, normalised."""

    def __init__(self, side: int, normalisation: "Normalisation"):
        self.side, self.normalisation = side, normalisation

    def prepared(self, images: Tensor) -> Tensor:
        images = shorter_side(images, transforms.plain_side(self.side))
        top, left = (round((size - self.side) / 2) for size in images.shape[1:3])
        return images[:, top : top + self.side, left : left + self.side].contiguous()

    def __call__(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        return self.normalisation(images.permute(0, 3, 1, 2))


class Normalisation:
    """Grey levels to numbers, by the mean and deviation of each channel: uint8 (B, 3, H, W) -> float32 (B, 3, H, W)."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.empty(x.shape, device=x.device)
        mean, std = _channels(self.mean, x.device), _channels(self.std, x.device)
        for part, out in zip(_chunks(x), _chunks(y), strict=True):
            out.copy_(part).div_(255).sub_(mean).div_(std)
        return y


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    """The images in groups that a processor's cache holds; all in one elsewhere."""
    return x.split(CHUNK if x.device.type == "cpu" else max(len(x), 1))


def shorter_side(images: Tensor, side: int) -> Tensor:
    """Resized by the cubic so that the shorter side has `side` pixels: uint8 (n, H, W, 3) -> (n, h, w, 3)."""
    height, width = images.shape[1:3]
    short, long = min(height, width), max(height, width)
    if short == side:
        return images
    other = int(side * long / short)
    new = (side, other) if height <= width else (other, side)
    parts = [resized(part.permute(0, 3, 1, 2), *new).permute(0, 2, 3, 1) for part in images.split(CHUNK)]
    return torch.cat(parts).contiguous() if parts else images.new_zeros(0, *new, 3)


class Shift:
    """S × S pixels of an image whose shorter side has S, padded with black by an eighth of S."""

    def __init__(self, side: int):
        self.side, self.padding = side, side // 8

    def prepared(self, images: Tensor) -> Tensor:
        return shorter_side(images, self.side)

    def __call__(self, images: Tensor, keys: Tensor, flipped: Tensor) -> Tensor:
        """images (B, H, W, 3), keys (B,), flipped bool (B,) -> uint8 (B, 3, S, S)"""
        free = [size + 2 * self.padding - self.side + 1 for size in images.shape[1:3]]
        draws = uniform(keys[:, None], torch.arange(2) + CROP) * torch.tensor(free)
        top, left = draws.long().unbind(1)
        rows = top[:, None] + torch.arange(self.side)
        columns = torch.arange(self.side).expand(len(keys), -1)
        columns = left[:, None] + torch.where(flipped[:, None], self.side - 1 - columns, columns)
        where = send(torch.stack([rows, columns]), images.device)
        parts = [
            self._cut(part, *at.unbind(1)) for part, at in zip(_chunks(images), _chunks(where.transpose(0, 1)), strict=True)
        ]
        return torch.cat(parts)

    def _cut(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """rows and columns int64 (b, S), counted with the padding."""
        p = self.padding
        padded = F.pad(images, (0, 0, p, p, p, p))
        b, height, width, _ = padded.shape
        lines = rows + torch.arange(0, b * height, height, device=rows.device)[:, None]
        cut = padded.view(b * height, width * 3).index_select(0, lines.flatten())  # whole rows are copied fast
        cut = cut.view(b, self.side, width, 3).permute(0, 3, 1, 2)
        return cut.gather(3, columns[:, None, None].expand(-1, 3, self.side, -1))


class Part:
    """A random part of the image of 8 to 100 % of its area, resized to S × S pixels."""

    def __init__(self, side: int, interpolation: str):
        self.side, self.interpolation = side, interpolation

    def prepared(self, images: Tensor) -> Tensor:
        return images

    def __call__(self, images: Tensor, keys: Tensor, flipped: Tensor) -> Tensor:
        """images (B, H, W, 3), keys (B,), flipped bool (B,) -> uint8 (B, 3, S, S)"""
        boxes = part_boxes(keys, *images.shape[1:3])
        names = [self.interpolation] * len(boxes)
        if self.interpolation == "random":
            names = [("bilinear", "bicubic")[bicubic] for bicubic in (uniform(keys, CROP + 4 * TRIES) >= 0.5).tolist()]
        step, out = 8 if images.device.type == "cpu" else CHUNK, []
        for a in range(0, len(boxes), step):
            x = images[a : a + step].permute(0, 3, 1, 2)
            out.append(crops_resized(x, boxes[a : a + step], self.side, names[a : a + step]))
        x = torch.cat(out)
        columns = torch.arange(self.side).expand(len(x), -1)
        columns = send(torch.where(flipped[:, None], self.side - 1 - columns, columns), x.device)
        return x.gather(3, columns[:, None, None].expand_as(x))


def part_boxes(keys: Tensor, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The parts of images that keys draw: top, left, height and width in pixels."""
    draws = uniform(keys[:, None], torch.arange(4 * TRIES) + CROP).view(len(keys), TRIES, 4)
    area = (draws[..., 0] * (AREA[1] - AREA[0]) + AREA[0]) * (height * width)
    ratio = ratios(*RATIO)[entries(draws[..., 1])]
    wide, high = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide <= width) & (high <= height)
    top, left = (draws[..., 2] * (height - high + 1)).floor(), (draws[..., 3] * (width - wide + 1)).floor()
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    boxes = torch.stack([top, left, high, wide], 2).gather(1, first[..., None].expand(-1, -1, 4)).squeeze(1)
    middle = torch.tensor(_middle(height, width), dtype=torch.float64)
    return [tuple(box) for box in torch.where(fits.any(1)[:, None], boxes, middle).long().tolist()]


def _middle(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest part in the middle that is neither too wide nor too high."""
    high = min(height, round(width / RATIO[0])) if width / height < RATIO[0] else height
    wide = min(width, round(height * RATIO[1])) if width / height > RATIO[1] else width
    return (height - high) // 2, (width - wide) // 2, high, wide
