"""Keys decide what is drawn, and nothing else does."""

import random

import numpy as np
import pytest
import torch

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
