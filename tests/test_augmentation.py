"""Augmentation of whole batches: equal to Pillow's and timm's image by image, and no image knows of the others."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from timm.data import auto_augment
from timm.data.transforms import str_to_pil_interp
from torch import Tensor

from continual.data import augmentation, layers, transforms
from continual.data.layers import INDEX, KINDS, OPERATIONS, ColorJitter, RandAugment, planned
from continual.randomness import row_keys

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PUBLISHED = {
    "input_size": 32,
    "mean": MEAN,
    "std": STD,
    "aa": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "hflip": 0.5,
    "interpolation": "bicubic",
    "reprob": 0.25,
    "remode": "pixel",
    "recount": 1,
}
FILL = (124, 116, 104)
COLORS = ("color", "contrast", "brightness", "sharpness")


def keys(count: int, *word: str) -> Tensor:
    return row_keys("augmentation", *word, rows=torch.arange(count))


def pictures(height: int, width: int) -> Tensor:
    """uint8 (24, height, width, 3): noise, smooth, dim, of one colour, grey, of two colours."""
    rng = np.random.RandomState(height * 100 + width)
    noise = rng.randint(0, 256, (8, height, width, 3))
    small = rng.randint(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC)) for each in small]
    dim = rng.randint(60, 130, (3, height, width, 3))
    single = np.broadcast_to(rng.randint(0, 256, (3, 1, 1, 3)), (3, height, width, 3))
    grey = np.broadcast_to(rng.randint(0, 256, (2, height, width, 1)), (2, height, width, 3))
    two = rng.choice([0, 255], (2, height, width, 3))
    return torch.from_numpy(np.concatenate([noise, smooth, dim, single, grey, two]).astype(np.uint8))


def planar(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.numpy())


def difference(ours: Tensor, theirs: list[Image.Image]) -> Tensor:
    """Absolute, in grey levels, by image (b, 3, H, W)."""
    return (ours.int() - planar(torch.from_numpy(np.stack([np.asarray(each) for each in theirs]))).int()).abs()


# --- Single operations ---

SIZES = [(32, 32), (28, 28), (17, 23)]
STRENGTHS = {
    "autocontrast": lambda rng: 0.0,
    "equalize": lambda rng: 0.0,
    "invert": lambda rng: 0.0,
    "posterize": lambda rng: rng.randint(-3, 12),
    "solarize": lambda rng: rng.choice([0, 1, 128, 255, 256, rng.randint(0, 256)]),
    "solarize_add": lambda rng: rng.randint(0, 128),
    **dict.fromkeys(COLORS, lambda rng: rng.choice([0.0, 0.1, 1.0, rng.uniform(0.1, 1.9), rng.uniform(0.0, 4.0)])),
    "blur": lambda rng: rng.uniform(0.1, 2.0),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", STRENGTHS)
def test_operations_on_colours_equal_pillows(kind: str, size: tuple[int, int]):
    images, rng = pictures(*size), random.Random(f"{kind} {size}")
    name = next(name for name, (other, _) in OPERATIONS.items() if other == kind)
    for _ in range(4):
        strengths = [STRENGTHS[kind](rng) for _ in images]
        numbers = torch.tensor(strengths, dtype=torch.float64)[:, None].expand(-1, layers.COLUMNS)
        operation, needed = auto_augment.NAME_TO_OP[name], auto_augment.LEVEL_TO_ARG[name] is not None
        theirs = [operation(pillow(i), *[s] * needed) for i, s in zip(images, strengths, strict=True)]
        assert difference(KINDS[kind](planar(images), numbers), theirs).max() == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateXRel", "TranslateYRel", "Rotate"])
def test_warps_equal_pillows(name: str, interpolation: str, size: tuple[int, int]):
    height, width = size
    if name == "Rotate" and height != width:
        pytest.skip("the recipe turns squares only")
    images, rng = pictures(height, width), random.Random(name + interpolation)
    kind = layers.WARPS[OPERATIONS[name][0]]
    far = {"Rotate": 180.0, "ShearX": 0.9, "ShearY": 0.9}.get(name, 1.1)
    for _ in range(3):
        strengths = [rng.choice([0.0, -0.25, far, rng.uniform(-far, far), rng.uniform(-far, far)]) for _ in images]
        strength = torch.tensor(strengths, dtype=torch.float64)
        shift = {"TranslateXRel": width, "TranslateYRel": height}.get(name, 0)
        index = torch.full((len(images), 1), INDEX[f"{kind} {interpolation}"])
        plan = planned(index, strength[:, None], torch.full((len(images), 1), float(shift)), side=width)
        ours = KINDS[f"{kind} {interpolation}"](planar(images), plan.numbers[:, 0])
        settings = {"resample": str_to_pil_interp(interpolation), "fillcolor": FILL}
        operation = auto_augment.NAME_TO_OP[name]
        theirs = [operation(pillow(i), s, **settings) for i, s in zip(images, strengths, strict=True)]
        apart = difference(ours, theirs)
        assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-4


@pytest.mark.parametrize("magnitude", [0.0, 0.3, 4.9, 9.0, 10.0, 25.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_strengths_are_timms(name: str, magnitude: float, monkeypatch):
    ours = RandAugment("rand-m9", input_size=32, interpolation="bicubic", first=0)
    ours.table = layers._table([name])
    for draw in (0.2, 0.8):
        monkeypatch.setattr(auto_augment.random, "random", lambda draw=draw: draw)
        level = auto_augment.LEVEL_TO_ARG[name]
        theirs = level(magnitude, {}) if level else (0.0,)
        if name == "Desaturate":  # its strength is what it takes away
            theirs = (min(1.0, max(0.0, 1.0 - theirs[0])),)
        one = torch.zeros(1, 1, dtype=torch.long)
        strength = ours._strength(one, torch.full((1, 1), magnitude, dtype=torch.float64), torch.tensor([[draw]]).double())
        assert strength.item() == pytest.approx(theirs[0], abs=1e-12)


def test_every_operation_of_timms_sets_is_known():
    sets = [auto_augment.rand_augment_choices(name, increasing=inc) for name in ("", "weights", "3a", "3aw") for inc in (0, 1)]
    assert {name for each in sets for name in each} == set(OPERATIONS)


# --- What is drawn ---


def near(counts: dict, expected: dict, total: int) -> bool:
    """Whether every count is within 5 standard deviations of what is expected of it (given as a share of the total)."""
    assert sum(expected.values()) == pytest.approx(1.0, abs=0.02)
    return not counts.keys() - expected.keys() and all(
        abs(counts.get(each, 0) - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1
        for each, share in expected.items()
    )


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "rand-m9-n3-p0.8", "rand-t3a-p1", "rand-n1-p0"])
def test_operations_are_drawn_as_often_as_timms(aa: str):
    count = 20_000
    made = RandAugment(aa, input_size=32, interpolation="bicubic", first=0)
    theirs = transforms.rand_augment(aa, input_size=32, interpolation="bicubic")
    plan = made(keys(count, aa))
    assert plan.kinds.shape == (count, theirs.num_layers)
    chance = theirs.ops[0].prob
    expected = Counter({"nothing": 1.0 - chance})
    for op in theirs.ops:
        kind = OPERATIONS[op.name][0]
        expected[f"{layers.WARPS[kind]} bicubic" if kind in layers.WARPS else kind] += chance / len(theirs.ops)
    names = list(KINDS)
    for layer in plan.kinds.unbind(1):
        assert near(Counter(names[kind] for kind in layer.tolist()), expected, count)
    if theirs.num_layers > 1:  # with replacement, and one layer knows nothing of the others
        both = Counter(map(tuple, plan.kinds[:, :2].tolist()))
        one = {INDEX[name]: share for name, share in expected.items()}
        assert near(both, {(a, b): one[a] * one[b] for a in one for b in one}, count)


@pytest.mark.parametrize("aa", ["rand-tweights", "rand-t3aw-n3"])
def test_weighted_operations_are_drawn_without_replacement_as_numpy_does(aa: str):
    made = RandAugment(aa, input_size=32, interpolation="bicubic", first=0)
    theirs = transforms.rand_augment(aa, input_size=32, interpolation="bicubic")
    assert torch.allclose(made.weights / made.weights.sum(), torch.tensor(theirs.choice_weights).float())
    count, ops, rng = 20_000, len(theirs.ops), np.random.RandomState(0)
    draws = augmentation.uniform(keys(count, aa)[:, None], torch.arange(theirs.num_layers))
    chosen = made._chosen(draws)
    drawn = np.stack([rng.choice(ops, theirs.num_layers, replace=False, p=theirs.choice_weights) for _ in range(count)])
    assert all(len(set(row)) == len(row) for row in chosen.tolist())
    for layer in range(theirs.num_layers):
        ours, other = (np.bincount(np.asarray(each)[:, layer], minlength=ops) for each in (chosen, drawn))
        assert (abs(ours - other) <= 5 * np.sqrt(ours + other) + 1).all()
    pairs, others = (Counter(map(tuple, np.asarray(each)[:, :2].tolist())) for each in (chosen, drawn))
    assert all(abs(pairs[p] - others[p]) <= 5 * math.sqrt(pairs[p] + others[p]) + 1 for p in pairs.keys() | others.keys())


@pytest.mark.parametrize(
    ("aa", "magnitude"),
    [
        ("rand-m9-mstd0.5", lambda rng: min(10.0, max(0.0, rng.gauss(9, 0.5)))),
        ("rand-m9-mstd3-mmax12", lambda rng: min(12.0, max(0.0, rng.gauss(9, 3)))),
        ("rand-m7-mstd101", lambda rng: rng.uniform(0, 7)),
        ("rand-m15", lambda rng: 10.0),
        ("rand-m15-mmax20", lambda rng: 15.0),
    ],
)
def test_magnitudes_are_distributed_as_timms(aa: str, magnitude):
    rng, count = random.Random(aa), 20_000
    made = RandAugment(aa, input_size=32, interpolation="bicubic", first=0)
    ours = made._magnitude(augmentation.uniform(keys(count, aa), 0)).sort().values
    theirs = torch.tensor([magnitude(rng) for _ in range(count)], dtype=torch.float64).sort().values
    grid = torch.linspace(-1, 21, 200, dtype=torch.float64) + 1e-9
    shares = [torch.searchsorted(each, grid).double() / count for each in (ours, theirs)]
    assert (shares[0] - shares[1]).abs().max() < 2.0 / math.sqrt(count)  # Kolmogorov and Smirnov at 1e-3


def test_signs_and_random_interpolations_are_even():
    count = 20_000
    made = RandAugment("rand-m9-n1-p1", input_size=32, interpolation="random", first=0)
    plan = made(keys(count, "signs"))
    for name in ("rows", "columns", "rotate"):
        linear, cubic = ((plan.kinds[:, 0] == INDEX[f"{name} {each}"]).sum().item() for each in ("bilinear", "bicubic"))
        assert near({0: linear, 1: cubic}, {0: 0.5, 1: 0.5}, linear + cubic) and linear > 500
    turned = plan.numbers[plan.kinds[:, 0] >= INDEX["rotate bilinear"], 0, 1]
    assert near(Counter((turned > 0).tolist()), {True: 0.5, False: 0.5}, len(turned))


# --- Colour jitter ---


def test_colour_jitter_equals_pillows_in_the_order_drawn():
    images, count = pictures(32, 32), 24
    plan = ColorJitter(0.4, first=0)(keys(count))
    ours = plan.applied(planar(images))
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "color": ImageEnhance.Color}
    theirs = []
    for image, kinds, numbers in zip(images, plan.kinds.tolist(), plan.numbers[..., 0].tolist(), strict=True):
        picture = pillow(image)
        for kind, factor in zip(kinds, numbers, strict=True):
            picture = enhance[list(KINDS)[kind]](picture).enhance(factor)
        theirs.append(picture)
    assert difference(ours, theirs).max() == 0


def test_colour_jitter_draws_every_order_and_factor():
    plan = ColorJitter(0.4, first=0)(keys(20_000))
    orders = Counter(map(tuple, plan.kinds.tolist()))
    assert len(orders) == 6 and near(orders, dict.fromkeys(orders, 1 / 6), 20_000)
    factors = plan.numbers[..., 0]
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert near(Counter(((factors - 0.6) * 10).long().flatten().tolist()), dict.fromkeys(range(8), 1 / 8), 60_000)
    assert ColorJitter(1.5, first=0)(keys(20_000)).numbers[..., 0].min() >= 0.0
