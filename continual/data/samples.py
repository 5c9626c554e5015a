"""Images with their labels, as plain arrays; and which of them to hold out.

Letters: n images, H height and W width in pixels.
A *class id* is what the data set calls a class (0, 1, ...); a *label* is its rank in the class order, which is what the
model predicts.
"""

from typing import NamedTuple

import numpy as np

from continual.errors import DataError
from continual.randomness import seed_of


class Samples(NamedTuple):
    """Images with their labels, in a fixed order.

    x: uint8 array (n, H, W, 3); or, where sizes vary, an object array (n,) of uint8 arrays (H, W), (H, W, 1) or
        (H, W, 3); or a string array (n,) of paths below the data folder, with forward slashes.
    y: int64 array (n,), labels, counted in the class order.
    t: int64 array (n,), the task each label belongs to.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray

    def take(self, indices: np.ndarray) -> "Samples":
        """Those samples, in that order; `indices` are integers (k,) or a mask (n,)."""
        return Samples(self.x[indices], self.y[indices], self.t[indices])


class Split(NamedTuple):
    """The training or the test images of a data set, as its source has them; to read one, the other is not looked at.

    x: as in `Samples`. y: (n,) what the source calls the class of each, integers or words. names: the name of every class,
        in the sorted order of what `y` holds; empty if the source has none. left_out: paths of files that are no images.
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def held_out(y: np.ndarray, fraction: float, *key: int | str) -> np.ndarray:
    """A mask (n,), true for `fraction` of each class's images, at least one; the key and the class id decide which.

    Raises:
        DataError: a class that would be left with none.
    """
    mask = np.zeros(len(y), dtype=bool)
    for class_id in np.unique(y).tolist():
        where = np.flatnonzero(y == class_id)
        nb_held = max(1, round(fraction * len(where)))
        if nb_held >= len(where):
            raise DataError(f"class {class_id} has {len(where)} training images: {fraction} of them leaves none to train on")
        # RandomState, because NumPy promises that its stream never changes.
        shuffled = np.random.RandomState(seed_of(*key, class_id) % 2**32).permutation(where)
        mask[shuffled[:nb_held]] = True
    return mask
