"""Data sets cut into tasks, and the images of one set of samples.

`load` gives a Benchmark: which images each task brings, under which labels. Continuum applies the class order and cuts
the classes into tasks; this room finds the images, checks them, and opens them.

Letters: n images, H height and W width in pixels, S the side of the model's input.
A *class id* is what the data set calls a class (0, 1, ...); a *label* is its rank in the class order, which is what the
model predicts.
"""

# Continuum and scikit-learn are imported where they are used: they take seconds to import, and a DataLoader's worker,
# which imports this room for `Images`, needs neither.

import difflib
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torch.utils.data import Dataset

from continual.data import given
from continual.data.opening import is_image, may_be_wide, open_rgb, refuse_wide
from continual.data.scenario import NB_CLASSES, by_name, checked_order, task_sizes
from continual.errors import DataError, OptionsError, Refused, one_line
from continual.errors import some as _some
from continual.files import absolute
from continual.options import MEAN, STD, Range, per_channel
from continual.randomness import seed_of, seeded
from continual.tasks import Task

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET100_WNIDS = Path(__file__).parent.parent / "options" / "data" / "imagenet100_wnids.txt"
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte before a download is given up


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


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A data set as a sequence of tasks.

    class_order: the class id behind every label. root: the folder that paths in `x` start from, None without a folder.
    mean, std: per channel, for pixels in [0, 1]. skipped: the unreadable files that were left out. left_out: files beside the
    images that are none. class_names: the name of every class id; descriptions: what it means, where a source can tell.
    upright: see `Images`.
    """

    name: str
    tasks: tuple[Task, ...]
    class_order: tuple[int, ...]
    root: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_samples: Samples = field(repr=False)
    test_samples: Samples = field(repr=False)
    skipped: tuple[str, ...] = field(default=(), repr=False)
    left_out: tuple[str, ...] = field(default=(), repr=False)
    class_names: tuple[str, ...] = field(default=(), repr=False)
    upright: bool = True
    descriptions: tuple[str, ...] = field(default=(), repr=False)

    @property
    def nb_classes(self) -> int:
        return len(self.class_order)

    def classes(self) -> list[dict[str, int | str]]:
        """What every label stands for: label, class id, name, task, and the description if there is one."""
        rows = []
        for task in self.tasks:
            for label in range(task.nb_old, task.nb_seen):
                class_id = self.class_order[label]
                row = {"label": label, "class": class_id, "name": self.class_names[class_id], "task": task.index}
                description = self.descriptions[class_id] if self.descriptions else ""
                rows.append({**row, "description": description} if description else row)
        return rows

    @property
    def nb_skipped(self) -> int:
        return len(self.skipped)

    def train(self, task_index: int) -> Samples:
        """The training images of the classes that this task brings."""
        return self.train_samples.take(self.train_samples.t == task_index)

    def test(self, upto: int) -> Samples:
        """The evaluation images of every class seen up to and including task `upto`."""
        return self.test_samples.take(self.test_samples.t <= upto)


def load(
    *,
    data_set: str,
    data_path: str | None,
    initial_increment: int,
    increment: int | Sequence[int],
    class_order: Sequence[int] | Sequence[str] | None = None,
    validation: float = 0.0,
    seed: int = 0,
    download: bool = True,
    skip_corrupt: bool = False,
) -> Benchmark:
    """Finds a data set and cuts it into tasks.

    With several processes, call this on one of them first, and on the others with `download=False` once it is back.
    Nothing touches the network when the files are there.

    data_set: digits, CIFAR100 (or CIFAR), CIFAR10, ImageNet100, ImageNet1000, folder, a name given to `register`, or
        the name of one of Continuum's image data sets; upper and lower case are the same.
    initial_increment, increment, class_order: see `task_sizes` and `checked_order`; class ids, or names of the data set.
    validation: this fraction of each class's training images is evaluated on, instead of the test images. The seed and
        the class id decide which; the class order does not.
    skip_corrupt: decode every file once, now, and leave out those that cannot be read.

    Raises:
        OptionsError: unknown data set; increments or class order that do not fit it.
        DataError: files that are missing, unreadable or not what the data set's format says.
    """
    if not 0 <= validation < 1:
        raise OptionsError(f"validation: {validation} is not a fraction in [0, 1)")
    source = _find(data_set)
    if source.nb_classes is not None:  # wrong options are refused before any file is touched
        task_sizes(source.nb_classes, initial_increment, increment)
        checked_order(None if by_name(class_order) else class_order, source.nb_classes)
    mean, std = (_channels(source.name, key, getattr(source, key), within) for key, within in (("mean", MEAN), ("std", STD)))
    root = _root(source, data_path)

    x, raw, names, left_out = _read(source, root, train=True, download=download)
    classes = np.unique(raw)
    if source.nb_classes not in (None, len(classes)):
        raise DataError(f"{source.name} in {root} has {len(classes)} classes in its training images, not {source.nb_classes}")
    y = np.searchsorted(classes, raw)
    sizes = task_sizes(len(classes), initial_increment, increment)
    names = names or tuple(map(str, classes.tolist()))
    order = checked_order(class_order, len(classes), names)

    if validation:
        held = held_out(y, validation, "validation", seed)
        (x, y), (test_x, test_y) = (x[~held], y[~held]), (x[held], y[held])
    else:
        test_x, raw, _, more = _read(source, root, train=False, download=download)
        left_out += more
        _compare(f"the test images of {source.name}", np.unique(raw).tolist(), classes.tolist())
        test_y = np.searchsorted(classes, raw)

    skipped: tuple[str, ...] = ()
    if skip_corrupt:
        x, y, skipped = _without_unreadable(source.name, x, y, root)
        test_x, test_y, more = _without_unreadable(source.name, test_x, test_y, root)
        skipped += more

    return Benchmark(
        name=source.name,
        tasks=tuple(Task(index, sum(sizes[:index]), size) for index, size in enumerate(sizes)),
        class_order=order,
        root=root,
        mean=mean,
        std=std,
        train_samples=_cut(x, y, sizes, order),
        test_samples=_cut(test_x, test_y, sizes, order),
        skipped=skipped,
        left_out=left_out,
        class_names=names,
        descriptions=source.describe(names),
        upright=source.upright,
    )


def register(
    name: str,
    function: Callable[[str | None, bool], tuple[Sequence, Sequence] | Dataset],
    *,
    mean: float | Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: float | Sequence[float] = IMAGENET_DEFAULT_STD,
) -> None:
    """Makes `--data-set name` read a data set of one's own.

    function(data_path, train) returns (x, y) of the training or the test images, or a data set of (image, label) pairs, such as
    one of torchvision (with `samples`, as ImageFolder has, its files are opened here, without its transforms).

    x: images (n, H, W), (n, H, W, C) or (n, C, H, W), uint8 or uint16 (scaled to 8 bits), as an array or a tensor, where C is 1
    or 3, or with alpha 2 or 4; a list of such images of varying size, or of Pillow images; or paths (absolute, or from the data
    folder). y: n labels, integers (or whole floats, booleans) or words; the class ids are their ranks in sorted order. Columns
    of a table go by their order, without their index. Anything else is refused, in one line.
    mean, std: to normalise by, for pixels in [0, 1]; one number, or one per channel. The options `mean` and `std` go before.

        def stripes(data_path, train):
            return (images, labels) if train else (test_images, test_labels)

        register("stripes", stripes)
    """

    def read(root: str | None, train: bool, download: bool) -> Split:
        try:
            found = function(root, train)
        except Refused:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"line {frame.lineno} of {frame.filename}"
            raise DataError(f"{name}: the registered function failed at {where}: {one_line(error)}") from error
        return Split(*given.split(name, found, root))

    _SOURCES[name.lower()] = _Source(name, read, mean, std, needs_path=False)
    NB_CLASSES.pop(name.lower(), None)  # it may take the place of a data set whose size was known


# ---------------------------------------------------------------------------------------------------------------- tasks


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


def _cut(x: np.ndarray, y: np.ndarray, sizes: Sequence[int], order: Sequence[int]) -> Samples:
    """Class ids to labels and tasks, by Continuum's class-incremental scenario."""
    from continuum import ClassIncremental
    from continuum.datasets import InMemoryDataset

    # Plain numbers stand in for the images: the scenario decides, `Images` opens.
    scenario = ClassIncremental(InMemoryDataset(np.arange(len(x)), y), increment=list(sizes), class_order=list(order))
    _, labels, tasks = scenario.dataset
    return Samples(x, labels.astype(np.int64), tasks.astype(np.int64))


# --------------------------------------------------------------------------------------------------------------- images


class Images(Dataset):
    """Opens and transforms samples.

    `images[index]` and `images[index, key]` give (the transform's output, label). With a key, a tuple of integers and
    words, whatever the transform draws depends on that key alone. `upright`: files are turned as their EXIF orientation says.

    Raises:
        DataError: an image that cannot be read; the message names its path and index.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        root: str | None = None,
        upright: bool = True,
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.root = root
        self.upright = upright

    def __len__(self) -> int:
        return len(self.samples.y)

    def __getitem__(self, item: int | tuple[int, tuple[int | str, ...]]) -> tuple[torch.Tensor, int]:
        index, key = item if isinstance(item, tuple) else (item, None)
        image, label = self._open(int(index)), int(self.samples.y[index])
        if key is None:
            return self.transform(image), label
        # NumPy's integers print differently from Python's, and a key counts by how it prints.
        with seeded(*(part if isinstance(part, str) else int(part) for part in key)):
            return self.transform(image), label

    def _open(self, index: int) -> Image.Image:
        x = self.samples.x[index]
        if not isinstance(x, str):
            return Image.fromarray(x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else x).convert("RGB")
        path = _full_path(x, self.root)
        try:
            return open_rgb(path, upright=self.upright)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"cannot read the image {path} (index {index}): {one_line(error)}") from error


def _full_path(path: str, root: str | None) -> str:
    return os.path.join(root or "", *path.split("/"))


def _without_unreadable(
    name: str, x: np.ndarray, y: np.ndarray, root: str | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decodes every file once: the images and labels of those that can be read, and the paths of the others."""
    if x.dtype.kind != "U":
        return x, y, ()

    def decode_all(paths: np.ndarray) -> list[bool]:
        readable = []
        for path in paths:
            try:
                open_rgb(_full_path(path, root), upright=False)
                readable.append(True)
            except DataError:
                raise
            except Exception:
                readable.append(False)
        return readable

    with ThreadPoolExecutor() as pool:  # threads are enough: Pillow decodes outside of Python's lock
        blocks = pool.map(decode_all, np.array_split(x, 1 + len(x) // 256))
        readable = np.array([answer for block in blocks for answer in block])
    lost = np.setdiff1d(y, y[readable])
    if len(lost):
        path = x[y == lost[0]][0]
        raise DataError(f"{name}: no image can be read of {len(lost)} classes, such as that of {_full_path(path, root)}")
    return x[readable], y[readable], tuple(x[~readable].tolist())


# -------------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class _Source:
    """Where a data set comes from. read(root, train, download) gives one split of it."""

    name: str
    read: Callable[[str | None, bool, bool], Split]
    mean: float | Sequence[float] = IMAGENET_DEFAULT_MEAN
    std: float | Sequence[float] = IMAGENET_DEFAULT_STD
    nb_classes: int | None = None
    needs_path: bool = True
    upright: bool = True
    describe: Callable[[Sequence[str]], tuple[str, ...]] = lambda names: ()


def _channels(name: str, key: str, given: float | Sequence[float], within: Range) -> tuple[float, float, float]:
    """The mean or std of a source, checked as the options of these names are."""
    try:
        values = [float(value) for value in np.atleast_1d(given)]
    except (TypeError, ValueError):
        values = []
    if len(values) not in (1, 3) or not all(map(within[1], values)):
        raise OptionsError(f"{name}: {key}: must be one number or three, {within[0]}, not {given!r}")
    return per_channel(values)


def _find(data_set: str) -> _Source:
    name = data_set.lower()
    if name in _SOURCES:
        return _SOURCES[name]
    offered = {cls.__name__.lower(): cls for cls in _continuum_classes()}
    if name in offered:
        return _Source(offered[name].__name__, partial(_continuum, offered[name]))
    known = {known.lower(): known for known in [*(s.name for s in _SOURCES.values()), *(c.__name__ for c in offered.values())]}
    near = [known[match] for match in difflib.get_close_matches(name, known, n=3)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known.values(), key=str.lower))}"
    raise OptionsError(f"data_set: unknown {data_set!r}; {hint}")


def _root(source: _Source, data_path: str | None) -> str | None:
    if data_path:
        return absolute(data_path)
    if source.needs_path:
        raise OptionsError(f"data_path: {source.name} needs the folder that holds it (or may be downloaded to)")
    return None


def _read(source: _Source, root: str | None, *, train: bool, download: bool) -> Split:
    """One split, checked for shape."""
    with seeded("data set", source.name):  # readers that shuffle do so alike on every process, and leave no trace
        split = source.read(root, train, download)
    x, y = split.x, split.y
    what = f"the {'training' if train else 'test'} images of {source.name}"
    if y.ndim != 1 or y.dtype.kind not in "iuU":
        raise DataError(f"{what}: labels must be one integer or word each, got {y.dtype} of shape {y.shape}")
    if len(x) != len(y) or not len(x):
        raise DataError(f"{what}: {len(x)} images and {len(y)} labels")
    if x.dtype.kind == "U":
        refuse_wide(_full_path(path, root) for path in x.tolist() if may_be_wide(path))
    return split


def _digits(root: str | None, train: bool, download: bool) -> Split:
    """scikit-learn's 1,797 handwritten digits, 8 × 8; the same fifth of each class is always the test set."""
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    grey = np.rint(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)  # 0..16 -> 0..255
    test = held_out(y, 0.2, "digits")
    chosen = ~test if train else test
    return Split(given.three_channels(grey[chosen]), y[chosen], tuple("0123456789"))


# CIFAR: pickled arrays. Unpickling a stranger's file executes what it says, so only arrays are let through.


def _plain_bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into an old pickle: as text, plus a call to encode it again."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_ARRAY_PARTS = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "encode": _plain_bytes,
}
_ARRAY_MODULES = {
    "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
    "ndarray": ("numpy",),
    "dtype": ("numpy",),
    "encode": ("_codecs",),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dicts and arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if module not in _ARRAY_MODULES.get(name, ()):
            raise DataError(f"it asks for {f'{module}.{name}'!r}, where a CIFAR file holds arrays only; nothing of it was run")
        return _ARRAY_PARTS[name]


@dataclass(frozen=True)
class _Cifar:
    """Reader of CIFAR's Python version (Krizhevsky, 2009)."""

    name: str
    folder: str
    url: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    labels: str
    names_file: str
    names: str

    def __call__(self, root: str, train: bool, download: bool) -> Split:
        folder, names = os.path.join(root, self.folder), self.train_files if train else self.test_files
        missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
        if missing:
            wanted = f"{self.name}: looked in {folder} for {', '.join(missing)}; download {self.url} and unpack it in {root}"
            if not download:
                raise DataError(wanted)
            _download(self.name, root, wanted)
        parts = [self._read_file(os.path.join(folder, name)) for name in names]
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Split(x, y, self._class_names(os.path.join(folder, self.names_file)))

    def _class_names(self, path: str) -> tuple[str, ...]:
        """The names of the classes by class id; none without the file that holds them."""
        if not os.path.isfile(path):
            return ()
        with self._refusing(path), open(path, "rb") as file:
            names = _ArrayUnpickler(file, encoding="latin1").load()[self.names]
            nb_classes = NB_CLASSES[self.name.lower()]
            if not isinstance(names, list) or len(names) != nb_classes or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{self.names} are not {nb_classes} words")
        return tuple(names)

    def _read_file(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """uint8 images (n, 32, 32, 3) and labels (n,) of one file, which holds rows of red, then green, then blue."""
        with self._refusing(path), open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
            rows, y = content["data"], np.array(content[self.labels])
            if rows.dtype != np.uint8 or rows.shape != (len(y), 3 * 32 * 32) or y.dtype.kind not in "iu":
                raise ValueError(f"data {rows.dtype} {rows.shape}, labels {y.dtype} {y.shape}")
        return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), y

    @contextmanager
    def _refusing(self, path: str) -> Iterator[None]:
        """Around the reading of one file: whatever is wrong with it becomes a DataError that names it."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{path} is refused: {error}") from error
        except Exception as error:  # a broken pickle can raise nearly anything
            raise DataError(
                f"{path} is broken or no {self.name} file ({one_line(error)}); delete its folder to have it downloaded again"
            ) from error


def _download(name: str, root: str, wanted: str) -> None:
    """Continuum's data set of that name fetches its files into `root`, and checks their MD5 sums."""
    import continuum.datasets

    try:
        with _impatient_sockets():
            getattr(continuum.datasets, name)(root, train=True, download=True)
    except Exception as error:  # network, disk, archive, checksum: in the end there is no data
        raise DataError(f"{wanted} (the download failed: {one_line(error)})") from error


@contextmanager
def _impatient_sockets() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# Folders of images: ROOT/SPLIT/CLASS/IMAGE.


def _folder(root: str, train: bool, download: bool) -> Split:
    """train/ and test/ (or val/), each with one folder per class; class ids follow the sorted names."""
    classes = _subfolders(os.path.join(root, "train"))
    if train:
        return _tree(root, "train", classes)
    test = next((name for name in ("test", "val") if os.path.isdir(os.path.join(root, name))), "test")
    _compare(os.path.join(root, test), _subfolders(os.path.join(root, test)), classes)
    return _tree(root, test, classes)


def _imagenet(nb_classes: int, root: str, train: bool, download: bool) -> Split:
    """train/ and val/ with one folder per WordNet id. Class ids follow the sorted names; ImageNet-100 has a list."""
    hint = "; ImageNet is not downloaded for you, see https://image-net.org/download-images"
    split = "train" if train else "val"
    names = _subfolders(os.path.join(root, split), hint)
    if nb_classes == 100:
        classes = IMAGENET100_WNIDS.read_text().split()
        names = [name for name in names if name in classes]
    else:
        classes = names if train else _subfolders(os.path.join(root, "train"), hint)
        if len(classes) != nb_classes:
            classes = sorted(ImageNetInfo("imagenet-1k").label_names())
    _compare(os.path.join(root, split), names, classes)
    return _tree(root, split, classes)


def _subfolders(folder: str, hint: str = "") -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"looked for one folder per class in {folder}: {error.strerror}; "
            f"data_path must hold train/CLASS/IMAGE and test/CLASS/IMAGE (or val/){hint}"
        ) from error


def _tree(root: str, split: str, classes: Sequence[str]) -> Split:
    """Paths of the images from `root`, sorted by class and name; and their class ids."""
    top = os.path.join(root, split)
    x: list[str] = []
    left_out = [f"{split}/{name}" for name in _files(top)]
    counts = []
    for name in classes:
        before = len(x)
        for file in _files(os.path.join(top, name), deep=True):
            (x if is_image(file) else left_out).append(f"{split}/{name}/{file}")
        counts.append(len(x) - before)
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty or not x:
        raise DataError(f"{top}: no image in {_some(empty) if empty else 'it'}")
    return Split(np.array(x), np.repeat(np.arange(len(classes)), counts), tuple(classes), tuple(left_out))


def _files(folder: str, *, deep: bool = False) -> list[str]:
    """The files in a folder (and if `deep` in those below it), sorted, as paths from it; but for hidden ones.

    Links are followed. Every folder is read once, under the name that sorts first, and none that holds `folder` itself: so
    links that lead in circles do no harm.
    """
    whole = os.path.realpath(folder)
    read = {whole, *map(str, Path(whole).parents), *map(str, Path(folder).parents)}
    files: list[str] = []

    def look(below: str) -> None:
        folders = []
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                if entry.name[0] != ".":
                    (folders if entry.is_dir() else files).append(below + entry.name)
        for inner in sorted(folders) if deep else ():
            place = os.path.realpath(os.path.join(folder, inner))
            if place not in read:
                read.add(place)
                look(inner + "/")

    try:
        look("")
    except OSError as error:
        raise DataError(f"cannot look into the folder {error.filename}: {error.strerror}") from error
    return sorted(files)


def _compare(where: str, found: Sequence, expected: Sequence) -> None:
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or surplus:
        told = [f"{len(missing)} of {len(expected)} classes missing ({_some(missing)})"] if missing else []
        told += [f"{len(surplus)} too many ({_some(surplus)})"] if surplus else []
        raise DataError(f"{where}: {', '.join(told)}")


# Continuum's other data sets, and people's own.

_NOT_OFFERED = {
    *("PyTorchDataset", "InMemoryDataset", "H5Dataset", "ImageFolderDataset", "Fellowship", "CTRL"),  # need arguments
    *("EMNIST", "Synbols"),  # likewise
    "QMNIST",  # labels in eight columns
    *("PascalVOC2012", "MultiNLI", "FluentSpeech"),  # not images with one label each
    *("CTRLplus", "CTRLminus", "CTRLin", "CTRLout", "CTRLplastic", "ColoredMNIST"),  # tasks of their own making
    *("Omniglot", "MetaShift"),  # no test images
    "Stream51",  # only makes sense cropped to its boxes
}


def _continuum_classes() -> Iterable[type]:
    import continuum.datasets

    base = continuum.datasets._ContinuumDataset
    found = [cls for cls in vars(continuum.datasets).values() if isinstance(cls, type) and issubclass(cls, base)]
    return [cls for cls in found if not cls.__name__.startswith("_") and cls.__name__ not in _NOT_OFFERED]


def _continuum(cls: type, root: str, train: bool, download: bool) -> Split:
    if not download and not os.path.isdir(root):  # Continuum would make the folder
        raise DataError(f"{cls.__name__}: there is no folder {root}")
    try:
        with _impatient_sockets():
            data = cls(root, train=train, download=download)
            x, y, _ = data.get_data()
    except Exception as error:  # each data set of Continuum fails in its own way
        raise DataError(
            f"{cls.__name__}: looked in {root} (download {'allowed' if download else 'not allowed'}); "
            f"Continuum says: {one_line(error)}"
        ) from error
    if x.dtype == "S255" and max(map(len, x), default=0) == 255:
        raise DataError(f"{cls.__name__}: paths below {root} are longer than the 254 bytes that Continuum keeps; move it up")
    x, y = given.images(cls.__name__, x, root), np.asarray(y)
    return Split(x, y, _offered_names(data, x, y))


def _offered_names(data: object, x: np.ndarray, y: np.ndarray) -> tuple[str, ...]:
    """The class names that a data set of Continuum offers: those of torchvision, or of one folder for each."""
    ids = np.unique(y).tolist()
    names = getattr(getattr(data, "dataset", None), "classes", None) or ()
    if names and ids == list(range(len(names))) and all(isinstance(name, str) for name in names):
        return tuple(names)
    if x.dtype.kind != "U" or y.shape != x.shape:
        return ()
    folders = [{os.path.dirname(path) for path in x[y == class_id].tolist()} for class_id in ids]
    parts = [folder.split("/") for folder, *others in folders if not others]
    if len(parts) < len(ids) or len(set(map(len, parts))) > 1:
        return ()
    told_apart = [column for column in zip(*parts, strict=True) if len(set(column)) == len(ids)]
    return told_apart[-1] if told_apart else ()


_CIFAR100 = _Cifar(
    name="CIFAR100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    train_files=("train",),
    test_files=("test",),
    labels="fine_labels",
    names_file="meta",
    names="fine_label_names",
)
_CIFAR10 = _Cifar(
    name="CIFAR10",
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_files=("test_batch",),
    labels="labels",
    names_file="batches.meta",
    names="label_names",
)


def _imagenet_source(name: str) -> _Source:
    """Its images are taken as they lie in their files, as published: no EXIF orientation is applied."""
    nb_classes = NB_CLASSES[name.lower()]
    return _Source(name, partial(_imagenet, nb_classes), nb_classes=nb_classes, upright=False, describe=_wordnet)


def _wordnet(wnids: Sequence[str]) -> tuple[str, ...]:
    """What WordNet ids mean; empty for those that are not of ImageNet-1k."""
    known = ImageNetInfo("imagenet-1k")
    described = set(known.label_names())
    return tuple(known.label_name_to_description(wnid) if wnid in described else "" for wnid in wnids)


_SOURCES = {
    "digits": _Source("digits", _digits, nb_classes=NB_CLASSES["digits"], needs_path=False),
    "cifar100": _Source("CIFAR100", _CIFAR100, CIFAR_MEAN, CIFAR_STD, NB_CLASSES["cifar100"]),
    "cifar10": _Source("CIFAR10", _CIFAR10, CIFAR_MEAN, CIFAR_STD, NB_CLASSES["cifar10"]),
    "imagenet100": _imagenet_source("ImageNet100"),
    "imagenet1000": _imagenet_source("ImageNet1000"),
    "folder": _Source("folder", _folder),
}
_SOURCES["cifar"] = _SOURCES["cifar100"]  # the published name
