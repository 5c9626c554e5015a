"""Small made-up data sets in the formats of the real ones. Images of a class share a colour, so they can be learnt."""

import io
import os
import pickle
import struct
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image


class _Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 did, and so as the CIFAR files are: byte strings wherever Python 3 tells str from bytes."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: str | bytes) -> None:
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def write_python2_pickle(path: str | os.PathLike, content: object) -> None:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(content)
    old_names = buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    with open(path, "wb") as file:
        file.write(old_names)


def coloured_images(y: np.ndarray, size: int | tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """uint8 images (n, H, W, 3): noise around one colour per class."""
    height, width = (size, size) if isinstance(size, int) else size
    colours = np.random.RandomState(1).randint(40, 216, size=(1000, 3))
    noise = rng.randint(-40, 40, size=(len(y), height, width, 3))
    return (colours[y][:, None, None] + noise).astype(np.uint8)


def _cifar_rows(nb_classes: int, nb_per_class: int, rng: np.random.RandomState) -> tuple[np.ndarray, list[int]]:
    """Rows of 3,072 bytes, channels first, as in the CIFAR files; and their labels, shuffled."""
    y = rng.permutation(np.repeat(np.arange(nb_classes), nb_per_class))
    x = coloured_images(y, 32, rng)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(len(y), 3072), y.tolist()


def write_cifar100(path: str | os.PathLike, *, nb_per_class: int = 4, nb_test_per_class: int = 2, seed: int = 0) -> str:
    """`path`/cifar-100-python with the files train, test and meta; returns that folder."""
    rng = np.random.RandomState(seed)
    folder = os.path.join(path, "cifar-100-python")
    os.makedirs(folder)
    for name, count in (("train", nb_per_class), ("test", nb_test_per_class)):
        data, labels = _cifar_rows(100, count, rng)
        content = {
            "filenames": [f"{name}_{index}.png" for index in range(len(labels))],
            "batch_label": "training batch 1 of 1" if name == "train" else "testing batch 1 of 1",
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
            "data": data,
        }
        write_python2_pickle(os.path.join(folder, name), content)
    names = {"fine_label_names": [f"class {c}" for c in range(100)], "coarse_label_names": [f"{c}" for c in range(20)]}
    write_python2_pickle(os.path.join(folder, "meta"), names)
    return folder


def write_cifar10(path: str | os.PathLike, *, nb_per_class: int = 10, nb_test_per_class: int = 2, seed: int = 0) -> str:
    """`path`/cifar-10-batches-py with data_batch_1 to _5, test_batch and batches.meta; returns that folder."""
    rng = np.random.RandomState(seed)
    folder = os.path.join(path, "cifar-10-batches-py")
    os.makedirs(folder)
    data, labels = _cifar_rows(10, nb_per_class, rng)
    parts = [(f"data_batch_{i + 1}", data[i::5], labels[i::5]) for i in range(5)]
    for name, rows, targets in [*parts, ("test_batch", *_cifar_rows(10, nb_test_per_class, rng))]:
        content = {"batch_label": name, "labels": targets, "data": np.ascontiguousarray(rows), "filenames": []}
        write_python2_pickle(os.path.join(folder, name), content)
    names = {"num_cases_per_batch": len(labels) // 5, "label_names": [f"class {c}" for c in range(10)], "num_vis": 3072}
    write_python2_pickle(os.path.join(folder, "batches.meta"), names)
    return folder


def write_image_tree(
    path: str | os.PathLike,
    classes: Sequence[str],
    nb_train: int,
    nb_val: int,
    size: int | tuple[int, int],
    *,
    test_folder: str = "val",
    seed: int = 0,
) -> None:
    """`path`/train/CLASS/*.JPEG and `path`/`test_folder`/CLASS/*.JPEG; size in pixels, one side or (height, width)."""
    rng = np.random.RandomState(seed)
    for split, count in (("train", nb_train), (test_folder, nb_val)):
        for label, name in enumerate(classes):
            folder = os.path.join(path, split, name)
            os.makedirs(folder)
            for index, image in enumerate(coloured_images(np.full(count, label), size, rng)):
                Image.fromarray(image).save(os.path.join(folder, f"{name}_{index}.JPEG"), quality=95)
