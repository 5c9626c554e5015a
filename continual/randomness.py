"""Keyed randomness: a random draw depends on its key alone, never on what was drawn before.

A key is a few integers and words, such as (seed, "train", task, epoch, replica, position). The same key gives the same draw
in any worker, on any process, before or after a resume; so no random state needs to be stored.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """A seed in [0, 2^63) from a key; equal keys give equal seeds on every machine and Python version."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's CPU generators are seeded from `key`; outside they are as they were.

    The generators of accelerators are not touched: seed those with `torch.manual_seed(seed_of(...))`.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
