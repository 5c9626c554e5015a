"""Few of the digits: all that a run of a dozen steps needs, in less time."""

import numpy as np
import pytest
import sklearn.datasets

NB_PER_CLASS = 64  # a fifth of which is for testing; the memory of the tests keeps at most 50 of a class
ALL = "DYTOX_ALL_DIGITS"  # the variable that asks for all of them, in a job that has to learn something


def few_digits() -> pytest.MonkeyPatch:
    """From now on the data set is the first digits of each class, until what this returns is undone."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    first = np.sort(np.concatenate([np.flatnonzero(y == digit)[:NB_PER_CLASS] for digit in range(10)]))
    patch = pytest.MonkeyPatch()
    patch.setattr(sklearn.datasets, "load_digits", lambda **_: (x[first], y[first]))
    return patch
