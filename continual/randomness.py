"""Keyed randomness: a random draw depends on its key alone, never on what was drawn before.

A key is a few integers and words, such as (seed, "train", task, epoch, replica, position). The same key gives the same draw
in any worker, on any process, before or after a resume; so no random state needs to be stored.

Two ways to draw: `seeded` for code that draws from the generators of Python, NumPy and torch; `row_keys` and `uniform` for
whole batches at once, by integer arithmetic alone, so that every device draws the same.
"""

import hashlib
import random
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio, as a signed number: the step of SplitMix64
TABLE = 4096  # draws of a row in one pass whose numbers lie ready


def seed_of(*key: int | str) -> int:
    """A seed in [0, 2^63) from a key; equal keys give equal seeds on every machine and Python version."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's CPU generators are seeded from `key`; outside they are as they were.

    The generators of accelerators are not touched: seed those with `torch.manual_seed(seed_of(...))`.
    """
    with closing(seeded_in_turn([key])) as turns:
        next(turns)
        yield


def seeded_in_turn(keys: Iterable[tuple[int | str, ...]]) -> Generator[None]:
    """`seeded` for one key after another, whose states are kept and put back only once: exhaust or close it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        for key in keys:
            seed = seed_of(*key)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def row_keys(*key: int | str, rows: Tensor) -> Tensor:
    """One key for each row: rows (n,) int64, such as positions in an epoch -> (n,) int64."""
    return _scrambled(rows * GOLDEN + seed_of(*key))


def uniform(keys: Tensor, number: int | Tensor) -> Tensor:
    """The draw of that number of every key, from [0, 1): float64, as keys and number broadcast (both int64).

    SplitMix64 (Steele et al., OOPSLA 2014) used as a counter-based generator: a draw needs no other before it.
    """
    step = (number + 1) * GOLDEN
    if isinstance(step, int):
        step = (step + 2**63) % 2**64 - 2**63
    return _shifted(_scrambled(keys + step), 11).double() * 2.0**-53


_rows: "_Rows | None" = None  # whose draws are being made


class _Rows:
    """Keys of the rows of a batch, and how many draws were made of them."""

    def __init__(self, keys: tuple[Tensor, ...]):
        self.keys = {len(each): each for each in keys}
        self.numbers = _numbers(keys[0].device) if keys else None
        self.nb_draws = 0

    def take(self, nb: int, device: torch.device) -> Tensor:
        """The numbers of the next draws: (nb,) int64."""
        first, self.nb_draws = self.nb_draws, self.nb_draws + nb
        if self.nb_draws <= TABLE:
            return self.numbers[first : self.nb_draws]
        return torch.arange(first, self.nb_draws, device=device)


@cache
def _numbers(device: torch.device) -> Tensor:
    """Numbers in memory: those of an `arange` torch.compile would multiply without wrapping around at 64 bits, and fail."""
    return torch.arange(TABLE, device=device)


@contextmanager
def drawing(*keys: Tensor) -> Iterator[None]:
    """Inside, `draws` takes what it draws for a row from the row's key: (n,) int64, for every number of rows that may come.

    So an image's draws do not depend on which other images, or whose replica's, are in its batch.
    """
    global _rows
    before, _rows = _rows, _Rows(keys)
    try:
        yield
    finally:
        _rows = before


def draws(nb_rows: int, nb: int, device: torch.device) -> Tensor:
    """Draw from [0, 1), `nb` times for each row: (nb_rows, nb). Outside of `drawing`, from torch's generator of that device."""
    if _rows is None or nb_rows not in _rows.keys:
        return torch.rand(nb_rows, nb, device=device)
    return uniform(_rows.keys[nb_rows][:, None], _rows.take(nb, device))


def _scrambled(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; integers wrap around at 64 bits."""
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of an unsigned number; torch's integers are signed."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
