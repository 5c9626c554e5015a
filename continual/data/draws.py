"""Tables that turn uniform draws into draws of other distributions.

A table, and not its formula, because torch's functions may give another last bit at another place in a batch.
"""

import math
from functools import cache

import torch
from torch import Tensor

FINE = 1 << 16  # entries of a table


def entries(draws: Tensor) -> Tensor:
    """Where uniform draws from [0, 1) lie in a table: float64 (...) -> int64 (...)."""
    return (draws * FINE).long()


@cache
def quantiles() -> Tensor:
    """The standard normal distribution in equally likely values: float64 (FINE,), from -4.3 to 4.3."""
    return torch.special.ndtri(_middles())


@cache
def ratios(low: float, high: float) -> Tensor:
    """From low to high in equal ratios, so that the logarithm of what is drawn is uniform: float64 (FINE,)."""
    return (_middles() * (math.log(high) - math.log(low)) + math.log(low)).exp()


def _middles() -> Tensor:
    return (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE
