"""What happens to an image before the model sees it: the augmentations of training, and the plain view of evaluation.

The published recipe (arXiv 2111.11326, and its released code, which follows DeiT). S is the side of the model's input.
Every transform takes a PIL image in RGB and gives a float32 tensor (3, S, S). All of them draw from Python's, NumPy's
and torch's CPU generators only, so that `randomness.seeded` decides the outcome.
"""

import re
from collections.abc import Callable

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from continual.errors import OptionsError

Transform = Callable[[Image.Image], torch.Tensor]

SMALL = 32  # px; up to this side, images are shifted by a few pixels instead of cropped and resized at random
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
ERASINGS = ("const", "rand", "pixel")
UNCOVERED = tuple(round(255 * channel) for channel in IMAGENET_DEFAULT_MEAN)  # (124, 116, 104), a grey level per channel

# timm passes over what it cannot read (`rand-foo`, `rand-tfoo`) without a word, hence a check of our own.
_RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw|3a)))*")


def train_transform(
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
) -> Transform:
    """Crop, flip, RandAugment (or colour jitter where `aa` is empty or "none"), normalisation, random erasing.

    Up to 32 px the crop is a shift: an image, its shorter side resized to S if it is not S already, is padded by an
    eighth of S (4 pixels at 32, as published), then S × S pixels are cut from it. Larger inputs get a random part of
    8 to 100 % of the image's area, resized. A step whose strength is 0 is left out.

    Raises:
        OptionsError: `aa`, `interpolation` or `remode` is not a name that timm knows.
    """
    check_names(interpolation=interpolation, remode=remode)
    if input_size <= SMALL:
        steps = [_shorter_side(input_size), transforms.RandomCrop(input_size, padding=input_size // 8)]
    else:
        steps = [RandomResizedCropAndInterpolation(input_size, scale=(0.08, 1.0), interpolation=interpolation)]
    if hflip:
        steps.append(transforms.RandomHorizontalFlip(hflip))
    if is_named(aa):
        steps.append(rand_augment(aa, input_size=input_size, interpolation=interpolation))
    elif color_jitter:
        steps.append(transforms.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter))
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    if reprob:
        steps.append(RandomErasing(reprob, mode=remode, max_count=recount, device="cpu"))
    return transforms.Compose(steps)


def test_transform(*, input_size: int, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Transform:
    """The middle of the image, normalised; nothing is random.

    Larger than 32 px: the shorter side is resized to 256/224 of S, then S × S pixels are cut from the centre. Up to
    32 px the shorter side is resized to S itself, which leaves an image of S × S pixels as it is.
    """
    steps = [_shorter_side(plain_side(input_size)), transforms.CenterCrop(input_size)]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def unfinished(transform: transforms.Compose) -> Transform | None:
    """The transform without its normalisation: PIL image -> uint8 (3, S, S). None if something random comes after it."""
    *steps, to_tensor, normalise = transform.transforms
    if not isinstance(to_tensor, transforms.ToTensor) or not isinstance(normalise, transforms.Normalize):
        return None
    return transforms.Compose([*steps, transforms.PILToTensor()])


def check_names(*, interpolation: str, remode: str) -> None:
    """Passes over names that timm knows.

    Raises:
        OptionsError: `interpolation` or `remode` is none of them.
    """
    if interpolation not in INTERPOLATIONS:
        raise OptionsError(f"train_interpolation: {interpolation!r} is none of {', '.join(INTERPOLATIONS)}")
    if remode not in ERASINGS:
        raise OptionsError(f"remode: {remode!r} is none of {', '.join(ERASINGS)}")


def is_named(aa: str | None) -> bool:
    """Whether there is a RandAugment at all: not where `aa` is empty or "none"."""
    return bool(aa) and aa.lower() != "none"


def plain_side(input_size: int) -> int:
    """What the shorter side is resized to, in pixels, before the plain view is cut out of the centre."""
    return input_size if input_size <= SMALL else input_size * 256 // 224


def _shorter_side(side: int) -> Transform:
    """Resizes, keeping the aspect ratio, so that the shorter side has `side` pixels; the identity where it has."""
    return transforms.Resize(side, interpolation=InterpolationMode.BICUBIC)


def rand_augment(aa: str, *, input_size: int, interpolation: str) -> RandAugment:
    """timm's RandAugment: shifts up to 0.45 S pixels; uncovered pixels get ImageNet's mean colour on any data, as released.

    Raises:
        OptionsError: `aa` is no setting of it.
    """
    if not _RAND_AUGMENT.fullmatch(aa):
        raise OptionsError(f"aa: {aa!r} is no RandAugment setting such as rand-m9-mstd0.5-inc1, nor none")
    settings = {
        "translate_const": int(input_size * 0.45),
        "img_mean": UNCOVERED,
    }
    if interpolation != "random":  # without this key timm draws one of bilinear and bicubic for each image
        settings["interpolation"] = str_to_pil_interp(interpolation)
    return rand_augment_transform(aa, settings)
