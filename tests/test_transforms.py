"""Augmentations: which steps there are, and that a key decides what they draw."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import PUBLISHED
from torchvision.transforms import functional as F

from continual.data import transforms
from continual.datasets import CIFAR_MEAN, CIFAR_STD
from continual.errors import OptionsError
from continual.randomness import seeded

NOTHING = {"aa": None, "color_jitter": 0.0, "hflip": 0.0, "reprob": 0.0}


def train(**changes: object) -> transforms.Transform:
    return transforms.train_transform(**(PUBLISHED | changes))


def picture(width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


def names(transform: transforms.Transform) -> list[str]:
    return [type(step).__name__ for step in transform.transforms]


def normalised(image: Image.Image) -> torch.Tensor:
    return F.normalize(F.to_tensor(image), CIFAR_MEAN, CIFAR_STD)


def test_steps_of_the_published_recipe():
    augmented = ["RandomHorizontalFlip", "RandAugment", "ToTensor", "Normalize", "RandomErasing"]
    assert names(train()) == ["Resize", "RandomCrop", *augmented]
    assert names(train(input_size=224)) == ["RandomResizedCropAndInterpolation", *augmented]
    assert train().transforms[1].padding == 4
    assert train(input_size=8).transforms[1].padding == 1
    assert train(input_size=64).transforms[0].scale == (0.08, 1.0)


def test_steps_of_no_strength_are_left_out():
    assert names(train(**NOTHING)) == ["Resize", "RandomCrop", "ToTensor", "Normalize"]
    for no_aa in (None, "", "none", "None"):
        assert "ColorJitter" in names(train(aa=no_aa)) and "RandAugment" not in names(train(aa=no_aa))


def test_small_training_images_are_only_shifted():
    image = picture()
    padded = F.pad(F.to_tensor(image), 4)
    with seeded("shift"):
        shifted = train(**NOTHING)(image)
    windows = [padded[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    assert any(torch.equal(F.normalize(window, CIFAR_MEAN, CIFAR_STD), shifted) for window in windows)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (40, 60), (3, 90)])
@pytest.mark.parametrize("input_size", [8, 32, 48])
def test_any_image_becomes_a_square_of_the_input_size(size: tuple[int, int], input_size: int):
    plain = transforms.test_transform(input_size=input_size, mean=CIFAR_MEAN, std=CIFAR_STD)
    for transform in (plain, train(input_size=input_size)):
        out = transform(picture(*size))
        assert out.shape == (3, input_size, input_size) and out.dtype == torch.float32 and out.isfinite().all()


def test_evaluation_leaves_small_images_of_the_right_size_alone():
    plain = transforms.test_transform(input_size=32, mean=CIFAR_MEAN, std=CIFAR_STD)
    assert torch.equal(plain(picture()), normalised(picture()))


def test_evaluation_resizes_and_crops_the_centre():
    plain = transforms.test_transform(input_size=224, mean=CIFAR_MEAN, std=CIFAR_STD)
    wide = picture(300, 256)  # the shorter side is 256 already, so the centre is what is left
    assert torch.equal(plain(wide), normalised(wide.crop((38, 16, 262, 240))))


@pytest.mark.parametrize(
    "changes",
    [
        {"reprob": 1.0},
        {"reprob": 1.0, "remode": "rand", "recount": 3},
        {"aa": None, "reprob": 0.0},
        {"input_size": 48, "interpolation": "random", "reprob": 1.0},
    ],
)
def test_the_key_decides_every_draw(changes: dict):
    def view(key: int) -> torch.Tensor:
        with seeded("view", key):
            return transform(image)

    transform, image = train(**changes), picture(50, 40)
    views = [view(key) for key in range(20)]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # whatever was drawn elsewhere
    assert all(torch.equal(view(key), views[key]) for key in reversed(range(20)))
    assert all(not torch.equal(views[i], views[j]) for i in range(20) for j in range(i))
    copy = pickle.loads(pickle.dumps(transform))
    with seeded("view", 7):
        assert torch.equal(copy(image), views[7])


def test_a_key_leaves_the_generators_as_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded("view"):
        train(reprob=1.0)(picture())
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1] and torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("aa", ["rand-foo", "rnd-m9", "rand-m9-", "rand-mx", "rand-m9-tnothing", "original", "rand-m9.5"])
def test_a_setting_that_is_no_randaugment_is_refused(aa: str):
    with pytest.raises(OptionsError, match=r"^aa: ") as caught:
        train(aa=aa)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"interpolation": "cubic"}, {"remode": "noise"}])
def test_unknown_names_are_refused(changes: dict):
    with pytest.raises(OptionsError, match="is none of"):
        train(**changes)


def test_other_randaugment_settings_work():
    for aa in ("rand", "rand-m5-n3", "rand-m9-mstd0.5", "rand-m9-p0.3-mmax10-inc0", "rand-m9-tweights", "rand-t3a-p1"):
        with seeded("settings"):
            assert train(aa=aa)(picture()).shape == (3, 32, 32)


def test_randaugment_fills_with_imagenets_mean_colour_on_any_data():
    made = transforms.rand_augment("rand-m9-mstd0.5-inc1", input_size=32, interpolation="bicubic")
    assert {op.hparams["img_mean"] for op in made.ops} == {(124, 116, 104)}
    shifted = Image.new("RGB", (32, 32))
    for op in (op for op in made.ops if op.name == "TranslateXRel"):
        op.prob = 1.0
        shifted = op(shifted)
    assert {tuple(pixel) for row in np.asarray(shifted).tolist() for pixel in row} == {(0, 0, 0), (124, 116, 104)}
