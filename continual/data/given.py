"""What a function of one's own, or Continuum, gives for images and labels, to the arrays that `datasets` works with.

Letters: n images, H height and W width in pixels, C channels: 1 is grey, 3 is RGB, 2 and 4 are these with alpha.
"""

import numbers
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from continual.data.opening import as_rgb, eight_bits, is_image
from continual.errors import DataError, one_line
from continual.files import absolute

_CHANNELS = (1, 2, 3, 4)


def split(name: str, given: Any, root: str | None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(x, y, class names) of what a registered function gave: (x, y), or a data set of (image, label) pairs.

    Class names are those of the data set (`classes`), empty where it has none; x and y are as in `samples.Split`.

    Raises:
        DataError: anything else.
    """
    names: Sequence[str] = ()
    if isinstance(given, tuple | list) and len(given) == 2:
        x, y = given
    elif _is_map_style(given):
        x, y = _pairs(name, given)
        names = getattr(given, "classes", ())
    else:
        raise DataError(
            f"{name}: the registered function must give (images, labels), or a data set of (image, label) pairs with a length; "
            f"got {_told(given)}"
        )
    y = labels(name, y)
    return images(name, x, root), y, _class_names(names, y)


def images(name: str, x: Any, root: str | None) -> np.ndarray:
    """Images or paths of any accepted kind, as `samples.Samples.x` has them.

    x: an array or tensor (n, H, W), (n, H, W, C) or, where the last axis is too long for channels, (n, C, H, W); or a list,
    column or iterator of paths, of Pillow images, or of single such arrays, which may vary in size. Values are uint8; uint16
    is scaled to it, and booleans are black and white.
    """
    x = _plain(name, x)
    if isinstance(x, np.ndarray) and x.dtype.kind not in "OUST":
        return _pixels(name, "images", "n, ", x)
    if not isinstance(x, np.ndarray):
        if not isinstance(x, Iterable) or isinstance(x, str | bytes | dict | set | frozenset):
            raise DataError(f"{name}: images must be an array, or a list of images or paths, got {_told(x)}")
        x = list(x)
    if len(x) and isinstance(x[0], str | bytes | os.PathLike):
        return np.array([_below(name, path, root) for path in x])
    found = np.empty(len(x), dtype=object)
    for index, image in enumerate(x):
        found[index] = _image(name, index, image)
    return found


def labels(name: str, y: Any) -> np.ndarray:
    """Integers or words (n,) out of a list, array, tensor or column of integers, whole floats, booleans or words.

    Does not compare their number with that of the images; the caller does.
    """
    y = _plain(name, y)
    if not isinstance(y, np.ndarray):
        if not isinstance(y, Iterable) or isinstance(y, str | bytes | dict | set | frozenset):
            raise DataError(f"{name}: labels must be a list of one integer or word each, got {_told(y)}")
        y = _objects(y)
    if y.ndim != 1:
        raise DataError(f"{name}: labels must be one integer or word each, got {y.dtype} of shape {y.shape}")
    if y.dtype.kind in "OST":
        y = _of_one_kind(name, [_item(label) for label in y.tolist()])
    if y.dtype.kind == "b":
        return y.astype(np.int64)
    if y.dtype.kind == "f":
        return _whole(name, y)
    return y


def _is_map_style(given: Any) -> bool:
    """Has a length and items, and is none of the containers that hold something else."""
    others = tuple | list | dict | str | bytes | np.ndarray | torch.Tensor | Image.Image
    if isinstance(given, others) or hasattr(given, "to_numpy"):  # to_numpy: a table or a column
        return False
    return hasattr(given, "__len__") and hasattr(given, "__getitem__")


def _pairs(name: str, given: Any) -> tuple[list, list]:
    """Images and labels of a data set of pairs; paths instead of images where it lists its files, as ImageFolder does."""
    listed = getattr(given, "samples", None)
    if isinstance(listed, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in listed):
        paths = [pair[0] for pair in listed]
        if paths and all(isinstance(path, str) and is_image(path) for path in paths):
            change = getattr(given, "target_transform", None) or (lambda label: label)
            return [absolute(path) for path in paths], [change(label) for _, label in listed]
    x, y = [], []
    for index in range(len(given)):
        item = f"{name}: item {index} of the {type(given).__name__}"
        try:
            pair = given[index]
        except Exception as error:
            raise DataError(f"{item} cannot be read: {one_line(error)}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"{item} must be an (image, label) pair, got {_told(pair)}")
        x.append(pair[0])
        y.append(pair[1])
    return x, y


def _class_names(names: Any, y: np.ndarray) -> tuple[str, ...]:
    """The names of the classes in `y` where it holds places in the list `names`, as in torchvision; otherwise none."""
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)) or y.dtype.kind not in "iu":
        return ()
    present = np.unique(y).tolist()
    return tuple(names[label] for label in present) if present and present[0] >= 0 and present[-1] < len(names) else ()


def _plain(name: str, values: Any) -> Any:
    """Tensors and columns of a table (pandas, polars; without their index) as arrays; the rest as it is."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            raise DataError(f"{name}: got {_told(values)} with masked entries; fill them, or leave these images out")
        return values.data
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values.to_numpy()) if hasattr(values, "to_numpy") else values
    except Exception as error:  # sparse, quantised or without storage: each fails in its own way
        raise DataError(f"{name}: got {_told(values)}, which does not become an array: {one_line(error)}") from error


def _objects(values: Iterable) -> np.ndarray:
    values = list(values)
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _item(value: Any) -> Any:
    """Arrays and tensors of no axes as Python's numbers and words."""
    return value.item() if isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0 else value


def _of_one_kind(name: str, items: list) -> np.ndarray:
    for index, label in enumerate(items):
        if _is_missing(label):
            raise DataError(f"{name}: label {index} is missing ({label})")
        if not isinstance(label, str | bytes | numbers.Real):
            raise DataError(f"{name}: labels must be one integer or word each, got {_told(label)} as label {index}")
    words = [isinstance(label, str | bytes) for label in items]
    if all(words):
        return np.array([os.fsdecode(label) for label in items], dtype=str)
    if any(words):
        word, number = items[words.index(True)], items[words.index(False)]
        raise DataError(f"{name}: labels must be all integers or all words, got both, such as {number!r} and {word!r}")
    if all(isinstance(label, numbers.Integral) and -(2**63) <= label < 2**63 for label in items):
        return np.array(items, dtype=np.int64)
    return np.array(items, dtype=np.float64)


def _whole(name: str, y: np.ndarray) -> np.ndarray:
    missing, broken = np.flatnonzero(np.isnan(y)), np.flatnonzero(y != np.rint(y))
    if len(missing):
        raise DataError(f"{name}: label {missing[0]} is missing (nan)")
    if len(broken) or not np.all(np.abs(y) < 2**53):
        index = broken[0] if len(broken) else np.argmax(np.abs(y))
        raise DataError(f"{name}: labels must be one integer or word each, got {y[index]} as label {index}")
    return y.astype(np.int64)


def _is_missing(value: Any) -> bool:
    """None, NaN, and the marks of pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, numbers.Real) and bool(np.isnan(float(value)))


def _image(name: str, index: int, image: Any) -> np.ndarray:
    """One image as uint8 (H, W), (H, W, 1) or (H, W, 3)."""
    if isinstance(image, Image.Image):
        try:
            return np.asarray(as_rgb(image, upright=True))
        except DataError as error:
            raise DataError(f"{name}: image {index}: {error}") from error
        except Exception as error:  # a file that is opened only now
            raise DataError(f"{name}: cannot read image {index}: {one_line(error)}") from error
    image = _plain(name, image)
    if not isinstance(image, np.ndarray | list):
        raise DataError(f"{name}: image {index} must be uint8 pixels, a Pillow image or a path, got {_told(image)}")
    try:
        image = np.asarray(image)
    except ValueError as error:  # a list of lists of several lengths
        raise DataError(f"{name}: image {index} must be uint8 pixels: {one_line(error)}") from error
    return _pixels(name, f"image {index}", "", image)


def _pixels(name: str, what: str, batch: str, x: np.ndarray) -> np.ndarray:
    """Checks one image (`batch` is empty) or a batch of them ("n, "); gives uint8 with 1 or 3 channels, a batch with 3."""
    axes = x.ndim - bool(batch)
    if axes == 3 and x.shape[-1] not in _CHANNELS and x.shape[-3] in _CHANNELS:
        x = np.moveaxis(x, -3, -1)
    clear = axes == 2 or (axes == 3 and x.shape[-1] in _CHANNELS)
    if axes == 3 and x.shape[-1] in (2, 4) and x.shape[-3] in _CHANNELS:
        clear = False  # channels first in an image this narrow, or alpha in one this low
    kind = x.dtype.kind + str(x.dtype.itemsize)
    if not clear or kind not in ("b1", "u1", "u2") or 0 in x.shape[-axes:]:
        shapes = f"({batch}H, W), ({batch}H, W, C) or ({batch}C, H, W)"
        raise DataError(f"{name}: {what} must be uint8 (or uint16) {shapes} with 1 to 4 channels, got {x.dtype} {x.shape}")
    if kind != "u1":
        x = eight_bits(x) if kind == "u2" else x * np.uint8(255)
    x = np.ascontiguousarray(x)
    if axes == 3 and x.shape[-1] in (2, 4):
        x = np.stack([np.asarray(as_rgb(Image.fromarray(image), upright=False)) for image in (x if batch else x[None])])
        return x if batch else x[0]
    return three_channels(x) if batch else x


def three_channels(x: np.ndarray) -> np.ndarray:
    """Grey images (n, H, W) or (n, H, W, 1) to (n, H, W, 3); those in colour stay as they are."""
    x = x[..., None] if x.ndim == 3 else x
    return x if x.shape[-1] == 3 else np.repeat(x, 3, axis=-1)


def _below(name: str, path: Any, root: str | None) -> str:
    """A path as seen from `root`, with forward slashes."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise DataError(f"{name}: images must be all paths or none, got {_told(path)} among them")
    path = os.fsdecode(path)
    if root is None:
        raise DataError(f"{name}: gives paths such as {path!r}, which need a data_path to start from")
    full, start = os.path.normpath(os.path.join(root, path)), os.path.join(root, "")
    if not full.startswith(start):
        raise DataError(f"{name}: {path!r} is not inside the data folder {root}")
    return full[len(start) :].replace(os.sep, "/")


def _told(value: Any) -> str:
    """What something is, in a few words."""
    if value is None or isinstance(value, str | bytes | numbers.Number):
        return repr(value)[:60]
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return f"{type(value).__module__.split('.')[0]}.{type(value).__name__}" + (f" of shape {tuple(shape)}" if shape else "")
