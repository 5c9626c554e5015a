"""The mean and standard deviation that pixels are normalised by: given, the data set's own, or measured."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from continual.data import transforms
from continual.datasets import Benchmark, Images
from continual.errors import OptionsError
from continual.jobs import distributed
from continual.options import AUTO, STD, DataOptions, per_channel

BLOCK = 256  # images that a thread adds up


def normalised(benchmark: Benchmark, options: DataOptions, *, input_size: int) -> Benchmark:
    """The benchmark with the mean and std of the options, each where it is given; `auto` is measured by one process for all.

    Raises:
        DataError: an image that cannot be read.
        OptionsError: a measured std too small to divide by.
    """
    given = {key: value for key, value in (("mean", options.mean), ("std", options.std)) if value is not None}
    if AUTO in given.values():
        measured = distributed.on_main(lambda: _measured(benchmark, input_size))
        given = {key: measured[key] if value == AUTO else value for key, value in given.items()}
    if options.std == AUTO and not all(map(STD[1], given["std"])):
        raise OptionsError(f"std: auto found {list(given['std'])}, which is too little to divide by; give one number or three")
    return replace(benchmark, **{key: per_channel(value) for key, value in given.items()})


def _measured(benchmark: Benchmark, input_size: int) -> dict[str, tuple[float, ...]]:
    """Mean and std per channel of the training images of the first task, as large as the model sees them when tested.

    Pixels are added up as whole numbers, so that the sum is exact and the order does not matter.
    """
    plain = transforms.test_transform(input_size=input_size, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = Images(benchmark.train(0), plain, root=benchmark.root, upright=benchmark.upright)

    def add_up(indices: Sequence[int]) -> np.ndarray:
        """Sums of the pixels of each channel, and of their squares: (2, 3)."""
        sums = np.zeros((2, 3), dtype=np.int64)
        for index in indices:
            pixels = np.rint(images[index][0].numpy() * 255).astype(np.int64)  # (3, S, S), from 0 to 255
            sums += [pixels.sum(axis=(1, 2)), (pixels**2).sum(axis=(1, 2))]
        return sums

    with ThreadPoolExecutor() as pool:  # as when files are checked: Pillow works outside of Python's lock
        sums = sum(pool.map(add_up, [range(i, min(i + BLOCK, len(images))) for i in range(0, len(images), BLOCK)]))
    mean, square = sums / (len(images) * input_size**2)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return {key: tuple(np.round(values / 255, 6).tolist()) for key, values in (("mean", mean), ("std", std))}
