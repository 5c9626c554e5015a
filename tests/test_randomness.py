"""Keys decide what is drawn, and nothing else does."""

import random

import numpy as np
import pytest
import torch

from continual import randomness
from continual.randomness import seed_of, seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_seeds_are_the_same_everywhere():
    assert seed_of(0, "train", 3) == 5684830522523107084


def test_seeds_fit_every_generator():
    assert all(0 <= seed_of(i) < 2**63 for i in range(200))
    assert max(seed_of(i) for i in range(200)) > 2**60


def test_different_keys_have_different_seeds():
    keys = [(), (1,), ("1",), (1, 2), (12,), ("1", "2"), ("12",), (2, 1), ("train", 1), ("test", 1)]
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_the_same_key_draws_the_same():
    with seeded(0, "a"):
        first = draw()
    draw()
    with seeded(0, "a"):
        again = draw()
    with seeded(0, "b"):
        other = draw()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def restarted() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def test_outside_everything_is_as_it_was():
    restarted()
    expected = draw()
    restarted()
    with seeded(5):
        draw()
    assert draw() == expected


def test_an_error_inside_changes_nothing_outside():
    restarted()
    expected = draw()
    restarted()
    with pytest.raises(ZeroDivisionError), seeded(5):
        draw()
        raise ZeroDivisionError
    assert draw() == expected


def test_keys_nest():
    with seeded(1):
        expected = [draw(), draw()]
    with seeded(1):
        first = draw()
        with seeded(2):
            draw()
        assert [first, draw()] == expected


def test_draws_of_a_batch_are_those_of_splitmix64():
    def reference(key: int, number: int) -> float:
        x = (key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> bits)) * factor % 2**64
        return ((x ^ (x >> 31)) >> 11) * 2.0**-53

    keys = randomness.row_keys(1, "train", rows=torch.arange(5))
    expected = [[reference(key, number) for number in (0, 1, 2**40)] for key in keys.tolist()]
    assert randomness.uniform(keys[:, None], torch.tensor([0, 1, 2**40])).tolist() == expected


def test_draws_of_a_batch_are_uniform_and_apart():
    keys = randomness.row_keys(0, "train", rows=torch.arange(50_000))
    draws = torch.stack([randomness.uniform(keys, number) for number in range(4)])
    assert keys.unique().numel() == 50_000
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (torch.histc(draws, 20, 0, 1) / 10_000 - 1).abs().max() < 0.05
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.02
    other = randomness.row_keys(1, "train", rows=torch.arange(50_000))
    assert torch.corrcoef(torch.stack([draws[0], randomness.uniform(other, 0)]))[0, 1].abs() < 0.02


def test_the_draw_of_a_row_does_not_depend_on_the_batch():
    keys = randomness.row_keys(0, "train", rows=torch.arange(100))
    assert torch.equal(
        randomness.uniform(keys, 3)[41:], randomness.uniform(randomness.row_keys(0, "train", rows=torch.arange(41, 100)), 3)
    )
