"""What a run's data are, in a few words: equal only for the same images under the same labels, in the same order."""

import hashlib
from typing import Any

import numpy as np

from continual.datasets import Benchmark, Samples

BLOCK = 4096  # images hashed at once


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
