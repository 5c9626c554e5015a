"""Mixup and cutmix: equal to timm's, keyed, and for any number of images."""

import pytest
import torch
from timm.data import Mixup
from torch import Tensor

from continual.data.mixing import Mixing, mixing
from continual.options import AugmentOptions
from continual.randomness import seeded

NB_CLASSES, SMOOTHING, KEY = 6, 0.1, (0, "train", 3)


def batch(nb: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(nb, 3, 8, 8, generator=generator), torch.arange(nb) % NB_CLASSES


def mixed(nb: int, key: tuple = KEY, *, smoothing: float = SMOOTHING, **options: object) -> tuple[Tensor, Tensor]:
    return Mixing(AugmentOptions(**options), nb_classes=NB_CLASSES, smoothing=smoothing)(*batch(nb), key)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_even_batches_equal_timm(mode, mixup, cutmix):
    theirs = Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=0.9,
        switch_prob=0.3,
        mode=mode,
        label_smoothing=SMOOTHING,
        num_classes=NB_CLASSES,
    )
    for step in range(4):
        with seeded(0, step):
            x, y = theirs(*batch(6))
        options = {"mixup": mixup, "cutmix": cutmix, "mixup_prob": 0.9, "mixup_switch_prob": 0.3, "mixup_mode": mode}
        ours_x, ours_y = mixed(6, (0, step), **options)
        assert torch.equal(ours_x, x) and torch.equal(ours_y, y)


def test_cutmix_of_given_sizes_equals_timm():
    theirs = Mixup(cutmix_minmax=(0.2, 0.6), label_smoothing=SMOOTHING, num_classes=NB_CLASSES, mixup_alpha=0.0)
    with seeded(*KEY):
        x, y = theirs(*batch(4))
    ours_x, ours_y = mixed(4, mixup=0.0, cutmix=0.0, cutmix_minmax=(0.2, 0.6))
    assert torch.equal(ours_x, x) and torch.equal(ours_y, y)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("nb", [1, 2, 5, 6])
def test_soft_targets_sum_to_one_for_any_number_of_images(mode, nb):
    x, y = mixed(nb, mixup_mode=mode)
    assert x.shape == (nb, 3, 8, 8) and y.shape == (nb, NB_CLASSES)
    assert torch.allclose(y.sum(1), torch.ones(nb))
    assert (y >= SMOOTHING / NB_CLASSES - 1e-6).all()


def test_an_odd_batch_is_mixed_with_its_reverse():
    images, labels = batch(5)
    x, y = mixed(5, smoothing=0.0, cutmix=0.0)
    assert torch.allclose(x[0], images[0]) and torch.allclose(y[0], torch.eye(NB_CLASSES)[0])
    for i in range(1, 5):
        share = y[i, labels[i]]
        assert 0 < share < 1
        assert y[i, labels[5 - i]] == pytest.approx(1 - share.item(), abs=1e-6)
        assert torch.allclose(x[i], share * images[i] + (1 - share) * images[5 - i], atol=1e-6)


@pytest.mark.parametrize("nb", [5, 6])
def test_the_key_decides(nb):
    first = mixed(nb)
    torch.rand(7)  # what was drawn before does not matter
    again, other = mixed(nb), mixed(nb, (0, "train", 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_options_that_ask_for_nothing_give_nothing():
    assert mixing(AugmentOptions(mixup=0.0, cutmix=0.0), nb_classes=2, smoothing=0.0) is None
    for options in ({"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        assert isinstance(mixing(AugmentOptions(**options), nb_classes=2, smoothing=0.0), Mixing)
    box = AugmentOptions(mixup=0.0, cutmix=0.0, cutmix_minmax=(0.2, 0.8))
    assert isinstance(mixing(box, nb_classes=2, smoothing=0.0), Mixing)
