"""Augmentation of whole batches: equal to Pillow's and timm's image by image, and no image knows of the others."""

import math
import pickle
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from tiny import PUBLISHED
from torch import Tensor
from torch.nn import functional as F

from continual.data import augmentation, layers, resizing, transforms
from continual.data.augmentation import plain_view, train_view
from continual.data.erasing import Erasing
from continual.data.layers import INDEX, KINDS, OPERATIONS, ColorJitter, Plan, RandAugment, planned
from continual.errors import OptionsError
from continual.randomness import row_keys

MEAN, STD = PUBLISHED["mean"], PUBLISHED["std"]
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
    for _ in range(2):
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
    far = {"Rotate": 180.0, "ShearX": 0.873, "ShearY": 0.873}.get(name, 1.1)
    for _ in range(2):
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


@pytest.mark.parametrize("name", OPERATIONS)
def test_strengths_are_timms(name: str, monkeypatch):
    ours = RandAugment("rand-m9", input_size=32, interpolation="bicubic", first=0)
    ours.table = layers._table([name])
    for draw, magnitude in product((0.2, 0.8), (0.0, 0.3, 4.9, 9.0, 10.0, 25.0)):
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
    count = 10_000
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
    count, ops, rng = 3_000, len(theirs.ops), np.random.RandomState(0)
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
    rng, count = random.Random(aa), 10_000
    made = RandAugment(aa, input_size=32, interpolation="bicubic", first=0)
    ours = made._magnitude(augmentation.uniform(keys(count, aa), 0)).sort().values
    theirs = torch.tensor([magnitude(rng) for _ in range(count)], dtype=torch.float64).sort().values
    grid = torch.linspace(-1, 21, 200, dtype=torch.float64) + 1e-9
    shares = [torch.searchsorted(each, grid).double() / count for each in (ours, theirs)]
    assert (shares[0] - shares[1]).abs().max() < 2.0 / math.sqrt(count)  # Kolmogorov and Smirnov at 1e-3


def test_signs_and_random_interpolations_are_even():
    count = 10_000
    made = RandAugment("rand-m9-n1-p1", input_size=32, interpolation="random", first=0)
    plan = made(keys(count, "signs"))
    for name in ("rows", "columns", "rotate"):
        linear, cubic = ((plan.kinds[:, 0] == INDEX[f"{name} {each}"]).sum().item() for each in ("bilinear", "bicubic"))
        assert near({0: linear, 1: cubic}, {0: 0.5, 1: 0.5}, linear + cubic) and linear > 200
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
    plan = ColorJitter(0.4, first=0)(keys(10_000))
    orders = Counter(map(tuple, plan.kinds.tolist()))
    assert len(orders) == 6 and near(orders, dict.fromkeys(orders, 1 / 6), 10_000)
    factors = plan.numbers[..., 0]
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert near(Counter(((factors - 0.6) * 10).long().flatten().tolist()), dict.fromkeys(range(8), 1 / 8), 30_000)
    assert ColorJitter(1.5, first=0)(keys(10_000)).numbers[..., 0].min() >= 0.0


# --- Where images are cut ---

NOTHING = {"aa": None, "color_jitter": 0.0, "hflip": 0.0, "reprob": 0.0}
UNCHANGED = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # so that grey levels come out


def levels(view: Tensor) -> Tensor:
    return view.round().to(torch.uint8)


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 32), (28, 35, 28), (5, 5, 5)])
def test_small_images_are_shifted_and_flipped_evenly(height: int, width: int, side: int):
    count, padding = 10_000, side // 8
    image = torch.arange(height * width).view(height, width)
    image = torch.stack([image % 251 + 1, image // 251 + 1, image * 0 + 7], -1).to(torch.uint8)  # no two pixels are equal
    view = train_view(**(PUBLISHED | NOTHING | UNCHANGED | {"input_size": side, "hflip": 0.3}))
    few = keys(60, "windows")
    padded = F.pad(image.permute(2, 0, 1), [padding] * 4)
    windows = {}
    for i in range(height + 2 * padding - side + 1):
        for j in range(width + 2 * padding - side + 1):
            window = padded[:, i : i + side, j : j + side]
            windows |= {window.numpy().tobytes(): (i, j, False), window.flip(2).numpy().tobytes(): (i, j, True)}
    assert all(each.numpy().tobytes() in windows for each in levels(view(image.expand(60, -1, -1, -1), few)))
    small = levels(view(image.expand(count, -1, -1, -1), keys(count)))
    drawn = Counter(windows[each.tobytes()] for each in small.numpy())
    chance = 2 / len(windows)
    assert near(drawn, {each: chance * (0.3 if each[2] else 0.7) for each in windows.values()}, count)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (200, 20), (20, 300)])
def test_parts_of_large_images_are_drawn_as_timms(height: int, width: int):
    count, image = 2_500, Image.new("RGB", (width, height))
    ours = torch.tensor(augmentation.part_boxes(keys(count, "parts"), height, width)).double()
    random.seed(5)
    drawn = [RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]
    theirs = torch.tensor(drawn).double()
    for column in range(4):
        a, b = ours[:, column].sort().values, theirs[:, column].sort().values
        grid = torch.arange(-1, 301, dtype=torch.float64) + 0.5
        shares = [torch.searchsorted(each, grid).double() / count for each in (a, b)]
        assert (shares[0] - shares[1]).abs().max() < 2.0 * math.sqrt(2 / count)
    assert (ours[:, 0] + ours[:, 2]).max() <= height and (ours[:, 1] + ours[:, 3]).max() <= width
    assert {tuple(row) for row in theirs.tolist()} & {tuple(row) for row in ours.tolist()}  # the fallback among them


@pytest.mark.parametrize("interpolation", transforms.INTERPOLATIONS[:-1])
def test_parts_are_resized_as_pillow_does(interpolation: str):
    images = pictures(50, 61)
    boxes = augmentation.part_boxes(keys(24, interpolation), 50, 61)
    boxes[:3] = [(0, 0, 50, 61), (1, 2, 40, 40), (49, 60, 1, 1)]
    for side in (40, 75):
        ours = resizing.crops_resized(planar(images), boxes, side, [interpolation] * 24)
        crops = [pillow(image).crop((x, y, x + w, y + h)) for image, (y, x, h, w) in zip(images, boxes, strict=True)]
        theirs = [crop.resize((side, side), str_to_pil_interp(interpolation)) for crop in crops]
        assert difference(ours, theirs).max() == 0


def test_large_images_are_cut_resized_and_flipped():
    images, some = pictures(70, 90), keys(24)
    settings = PUBLISHED | NOTHING | UNCHANGED | {"input_size": 48, "interpolation": "random"}
    boxes = augmentation.part_boxes(some, 70, 90)
    crops = [pillow(image).crop((x, y, x + w, y + h)) for image, (y, x, h, w) in zip(images, boxes, strict=True)]
    modes = [str_to_pil_interp(each) for each in ("bilinear", "bicubic")]
    by_linear, by_cubic = ([crop.resize((48, 48), mode) for crop in crops] for mode in modes)
    ours = levels(train_view(**settings)(images, some))
    linear, cubic = (difference(ours, each).amax((1, 2, 3)) == 0 for each in (by_linear, by_cubic))
    assert (linear | cubic).all() and linear.any() and cubic.any() and not (linear & cubic)[:20].all()
    assert torch.equal(levels(train_view(**(settings | {"hflip": 1.0}))(images, some)), ours.flip(3))


@pytest.mark.parametrize("size", [(32, 32), (40, 60), (90, 9), (300, 256)])
@pytest.mark.parametrize("input_size", [8, 32, 48, 224])
def test_the_plain_view_equals_pillows(size: tuple[int, int], input_size: int):
    images = pictures(*size)[6:9]
    settings = {"input_size": input_size, "mean": MEAN, "std": STD}
    theirs = transforms.test_transform(**settings)
    view = plain_view(**settings)
    prepared = view.prepared(images)
    assert prepared.dtype == torch.uint8 and prepared.is_contiguous()
    assert torch.equal(view(prepared), torch.stack([theirs(pillow(image)) for image in images]))


def test_small_training_images_are_prepared_by_resizing():
    images = pictures(40, 61)
    theirs = [transforms.train_transform(**PUBLISHED).transforms[0](pillow(image)) for image in images]
    assert difference(planar(train_view(**PUBLISHED).prepared(images)), theirs).max() == 0


# --- Erasing ---


@pytest.mark.parametrize("most", [1, 3])
def test_blocks_are_drawn_as_timms(most: int):
    count, side = 2_500, 24
    erased = Erasing(1.0, mode="const", most=most, first=0)(torch.ones(count, 3, side, side), keys(count, "blocks")) == 0
    theirs = RandomErasing(1.0, mode="const", max_count=most, device="cpu")
    random.seed(most)
    others = torch.stack([theirs(torch.ones(3, side, side)) for _ in range(count)]) == 0
    assert (erased == erased[:, :1]).all()
    share = [each[:, 0].double().mean(0) for each in (erased, others)]  # by pixel
    assert (share[0] - share[1]).abs().max() < 5.5 * math.sqrt(2 * 0.25 / count)
    for measured in (lambda x: x.sum((1, 2)), lambda x: x.any(1).sum(1), lambda x: x.any(2).sum(1)):
        shares = [torch.bincount(measured(each[:, 0]), minlength=600).double().cumsum(0) / count for each in (erased, others)]
        assert (shares[0] - shares[1]).abs().max() < 2.0 * math.sqrt(2 / count)


@pytest.mark.parametrize("mode", transforms.ERASINGS)
def test_what_blocks_are_filled_with(mode: str):
    count = 3_000
    x = torch.full((count, 3, 16, 16), 9.0)
    y = Erasing(0.25, mode=mode, most=2, first=0)(x.clone(), keys(count, "filling"))
    erased = y != 9.0
    assert near(Counter(erased.flatten(1).any(1).tolist()), {True: 0.25, False: 0.75}, count)
    values = y[erased]
    if mode == "const":
        assert (values == 0).all()
        return
    images = y.flatten(2).unbind(0)
    colours = [len(each[0][each[0] != 9.0].unique()) for each in images]
    assert max(colours) == 2 if mode == "rand" else max(colours) > 40
    single = values if mode == "pixel" else torch.cat([each[each != 9.0].unique() for each in images])
    assert abs(single.mean()) < 5 / math.sqrt(len(single)) and abs(single.std() - 1) < 5 / math.sqrt(2 * len(single))
    if mode == "pixel":  # channels and neighbours know nothing of one another
        a, b, c = (y[:, k][erased[:, 0]] for k in range(3))
        assert max(abs((p * q).mean()) for p, q in ((a, b), (b, c), (a, c), (a[1:], a[:-1]))) < 5 / math.sqrt(len(a))


# --- The whole recipe ---

RECIPES = [
    {"reprob": 0.5},
    {"aa": "rand-m9-mstd0.5-inc1-n4-p0.9", "interpolation": "random", "remode": "rand", "recount": 3, "reprob": 0.5},
    {"aa": "rand-t3a-n3-p1", "interpolation": "bilinear", "remode": "const"},
    {"aa": "none", "color_jitter": 0.4},
    {"input_size": 48, "interpolation": "random", "reprob": 0.5},
    {"input_size": 13},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_image_knows_of_the_others(recipe: dict):
    view = train_view(**(PUBLISHED | recipe))
    side = (PUBLISHED | recipe)["input_size"]
    images = torch.cat([pictures(side, side + 4)] * 6)
    images, some = view.prepared(images), keys(len(images))
    whole = view(images, some)
    assert whole.shape == (len(images), 3, side, side) and whole.dtype == torch.float32 and whole.isfinite().all()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert torch.equal(view(images[order], some[order]), whole[order])
    singles = range(0, len(images), 5)
    assert all(torch.equal(view(images[i : i + 1], some[i : i + 1]), whole[i : i + 1]) for i in singles)
    assert torch.equal(view(images[3:20], some[3:20]), whole[3:20])
    assert view(images[:0], some[:0]).shape == (0, 3, side, side)
    other = view(images, keys(len(images), "other"))
    assert (other != whole).flatten(1).any(1)[:8].all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_host_reads_nothing_from_the_device(recipe: dict):
    view = train_view(**(PUBLISHED | recipe))
    side = (PUBLISHED | recipe)["input_size"]
    images = torch.empty(200, side, side, 3, dtype=torch.uint8, device="meta")  # holds no numbers; to read one is an error
    seen = view(view.prepared(images), keys(200))
    assert seen.is_meta and seen.shape == (200, 3, side, side) and seen.dtype == torch.float32


def test_a_view_can_be_sent_to_another_process():
    images, some = pictures(32, 32), keys(24)
    view = train_view(**PUBLISHED)
    assert torch.equal(pickle.loads(pickle.dumps(view))(images, some), view(images, some))


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_mixes_images(kind: str):
    images = torch.cat([planar(pictures(13, 13))] * 3)
    strength = torch.linspace(0.1, 1.9, len(images), dtype=torch.float64)[:, None]
    plan = planned(torch.full((len(images), 1), INDEX[kind]), strength, torch.zeros_like(strength), side=13)
    whole = plan.applied(images)
    singles = [KINDS[kind](images[i : i + 1], plan.numbers[i : i + 1, 0]) for i in range(len(images))]
    assert torch.equal(whole, torch.cat(singles))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    assert torch.equal(Plan(plan.kinds[order], plan.numbers[order]).applied(images[order]), whole[order])


def test_every_layer_follows_the_one_before():
    images = planar(pictures(32, 32))
    plan = RandAugment("rand-m9-n3-p0.9", input_size=32, interpolation="bicubic", first=0)(keys(24))
    ours, one = plan.applied(images), images
    for layer in range(3):
        one = Plan(plan.kinds[:, layer : layer + 1], plan.numbers[:, layer : layer + 1]).applied(one)
    assert torch.equal(ours, one) and not torch.equal(ours, images)


def test_views_have_the_averages_of_pillows():
    count = 800
    image = pictures(32, 32)[9]
    ours = train_view(**PUBLISHED)(image.expand(count, -1, -1, -1), keys(count, "averages"))
    theirs = transforms.train_transform(**PUBLISHED)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    others = torch.stack([theirs(pillow(image)) for _ in range(count)])
    for moment in (1, 2):
        a, b = ours.double() ** moment, others.double() ** moment
        error = ((a.var(0) + b.var(0)) / count).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() / error).max() < 6.0


# --- What is refused ---


REFUSED = [{"aa": "rand-foo"}, {"aa": "original"}, {"interpolation": "cubic"}, {"interpolation": "box"}, {"remode": "noise"}]


@pytest.mark.parametrize("changes", REFUSED)
def test_unknown_names_are_refused(changes: dict):
    with pytest.raises(OptionsError) as caught:
        train_view(**(PUBLISHED | changes))
    if changes != {"interpolation": "box"}:  # Pillow refuses that one when it warps the first image
        with pytest.raises(OptionsError) as other:
            transforms.train_transform(**(PUBLISHED | changes))
        assert str(caught.value) == str(other.value)
