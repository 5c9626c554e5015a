"""What a run's data are, in a few words: equal only for the same images under the same labels, in the same order."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from continual.datasets import Benchmark, Samples
from continual.randomness import seed_of

BLOCK = 4096  # images hashed at once
MOST_FILES = 10_000  # of a split, whose contents are looked at


def of_data(benchmark: Benchmark) -> dict[str, Any]:
    """What must be the same of the data, as JSON gives it back.

    The names of the classes in label order; how many images there are, and which (see `digest`); the pixels' mean and std.
    Training images are those trained on and test images those evaluated on, whether or not `validation` made them so.
    """
    return {
        "class_order": list(benchmark.class_order),
        "classes_per_task": [task.nb_new for task in benchmark.tasks],
        "training_images": len(benchmark.train_samples.y),
        "test_images": len(benchmark.test_samples.y),
        "classes": [benchmark.class_names[class_id] for class_id in benchmark.class_order],
        "training_digest": digest(benchmark.train_samples),
        "test_digest": digest(benchmark.test_samples),
        "normalisation": [list(benchmark.mean), list(benchmark.std)],
    }


def digest(samples: Samples) -> str:
    """SHA-256 over images and labels, label by label.

    Of images that are files it covers the paths below the data folder, which may move, and not what the files hold: reading
    all of ImageNet would take longer than many a run. Of images that are arrays it covers every pixel.
    """
    order = np.argsort(samples.y, kind="stable")
    found = hashlib.sha256(samples.y[order].astype("<i8").tobytes())
    for start in range(0, len(order), BLOCK):
        x = samples.x[order[start : start + BLOCK]]
        if x.dtype.kind == "U":
            found.update("".join(f"{path}\0" for path in x.tolist()).encode("utf-8", "surrogateescape"))
        elif x.dtype == object:
            for image in x:
                found.update(repr(image.shape).encode() + image.tobytes())
        else:
            found.update(repr(x.shape[1:]).encode() + x.tobytes())
    return found.hexdigest()


def looked_at(samples: Samples, seed: int, split: str) -> np.ndarray:
    """Rows (k,) of the images that `per_image` is to look at: all, or of too many files as many as `MOST_FILES`, drawn."""
    nb = len(samples.y)
    if samples.x.dtype.kind != "U" or nb <= MOST_FILES:
        return np.arange(nb)
    rng = np.random.default_rng(seed_of(seed, "looked at", split))
    return np.sort(rng.choice(nb, MOST_FILES, replace=False))


def per_image(samples: Samples, root: str | None) -> np.ndarray:
    """A digest of every image alone: (n,) uint64. Of a file it covers its path and what it holds; one that is gone has 0."""

    def of_file(path: str) -> int:
        try:
            with open(os.path.join(root or "", path), "rb") as file:
                return _short(f"{path}\0".encode("utf-8", "surrogateescape") + file.read())
        except OSError:
            return 0

    x = samples.x
    if x.dtype.kind == "U":
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(of_file, x.tolist()))
    else:
        found = [_short(repr(image.shape).encode() + image.tobytes()) for image in x]
    return np.array(found, dtype=np.uint64)


def _short(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
