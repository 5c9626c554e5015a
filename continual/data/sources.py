"""Where data sets come from: readers of digits, glyphs, CIFAR, folders, ImageNet and Continuum's data sets, and their table.

A reader finds the images of one split and checks them; it opens none that lie in files of their own.
"""

# Continuum and scikit-learn are imported where they are used: they take seconds to import.

import difflib
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo

from continual.data import given, listing
from continual.data.images import full_path
from continual.data.opening import images_among, refuse_wide, wide_among
from continual.data.samples import Split, held_out
from continual.data.scenario import NB_CLASSES
from continual.errors import DataError, OptionsError, one_line, some
from continual.files import absolute
from continual.options import MEAN, STD, Range, per_channel
from continual.randomness import seeded
from continual.registry import DATA_SETS

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
GLYPHS_MEAN, GLYPHS_STD = 0.1975, 0.3370  # of all training pixels; grey
GLYPHS_FILE = Path(__file__).parent / "glyphs" / "glyphs50.npz"
IMAGENET100_WNIDS = Path(__file__).parents[2] / "options" / "data" / "imagenet100_wnids.txt"
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte before a download is given up


@dataclass(frozen=True)
class Source:
    """Where a data set comes from. read(root, train, download) gives one split of it."""

    name: str
    read: Callable[[str | None, bool, bool], Split]
    mean: float | Sequence[float] = IMAGENET_DEFAULT_MEAN
    std: float | Sequence[float] = IMAGENET_DEFAULT_STD
    nb_classes: int | None = None
    needs_path: bool = True
    upright: bool = True
    describe: Callable[[Sequence[str]], tuple[str, ...]] = lambda names: ()


def with_channels(source: Source) -> Source:
    """The source with its mean and std as one number per channel.

    Raises:
        OptionsError: what the options of these names would refuse.
    """
    channels = {
        key: _channels(source.name, key, getattr(source, key), within) for key, within in (("mean", MEAN), ("std", STD))
    }
    return replace(source, **channels)


def _channels(name: str, key: str, value: float | Sequence[float], within: Range) -> tuple[float, float, float]:
    try:
        values = [float(each) for each in np.atleast_1d(value)]
    except (TypeError, ValueError):
        values = []
    if len(values) not in (1, 3) or not all(map(within[1], values)):
        raise OptionsError(f"{name}: {key}: must be one number or three, {within[0]}, not {value!r}")
    return per_channel(values)


def find(data_set: str) -> Source:
    """The source of that name, in small letters or capitals: one from outside, of this table, or of Continuum.

    Raises:
        OptionsError: there is none; the message names the nearest.
    """
    name = data_set.lower()
    sources = {**SOURCES, **DATA_SETS.outside()}
    if name in sources:
        return sources[name]
    offered = {cls.__name__.lower(): cls for cls in _continuum_classes()}
    if name in offered:
        return Source(offered[name].__name__, partial(_continuum, offered[name]))
    known = {known.lower(): known for known in [*(s.name for s in sources.values()), *(c.__name__ for c in offered.values())]}
    near = [known[match] for match in difflib.get_close_matches(name, known, n=3)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known.values(), key=str.lower))}"
    raise OptionsError(f"data_set: unknown {data_set!r}; {hint}")


def upright(data_set: str) -> bool:
    """Whether the files of a data set are turned as EXIF says; so are those of one that is not registered here."""
    known = {**SOURCES, **DATA_SETS.outside()}.get(data_set.lower())
    return known is None or known.upright


def root_of(source: Source, data_path: str | None) -> str | None:
    """The folder of the data as an absolute path, or None. Raises OptionsError when the source needs one and there is none."""
    if data_path:
        return absolute(data_path)
    if source.needs_path:
        raise OptionsError(f"data_path: {source.name} needs the folder that holds it (or may be downloaded to)")
    return None


def read_split(source: Source, root: str | None, *, train: bool, download: bool) -> Split:
    """One split, checked for shape. Raises DataError for what cannot be read, or is not what the data set's format says."""
    with seeded("data set", source.name):  # readers that shuffle do so alike on every process, and leave no trace
        split = source.read(root, train, download)
    x, y = split.x, split.y
    what = f"the {'training' if train else 'test'} images of {source.name}"
    if y.ndim != 1 or y.dtype.kind not in "iuU":
        raise DataError(f"{what}: labels must be one integer or word each, got {y.dtype} of shape {y.shape}")
    if len(x) != len(y) or not len(x):
        raise DataError(f"{what}: {len(x)} images and {len(y)} labels")
    if x.dtype.kind == "U":
        refuse_wide(full_path(path, root) for path in wide_among(x))
    return split


def _digits(root: str | None, train: bool, download: bool) -> Split:
    """scikit-learn's 1,797 handwritten digits, 8 × 8; the same fifth of each class is always the test set."""
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    grey = np.rint(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)  # 0..16 -> 0..255
    test = held_out(y, 0.2, "digits")
    chosen = ~test if train else test
    return Split(given.three_channels(grey[chosen]), y[chosen], tuple("0123456789"))


def _glyphs(root: str | None, train: bool, download: bool) -> Split:
    """50 characters in 240 fonts, 16 × 16, of a file that comes with the code; families of fonts are of one split only."""
    split, nb_classes = "train" if train else "test", NB_CLASSES["glyphs"]
    try:
        with np.load(GLYPHS_FILE, allow_pickle=False) as arrays:
            x, y, names = arrays[f"{split}_x"], arrays[f"{split}_y"], tuple(arrays["characters"].tolist())
        if x.dtype != np.uint8 or x.shape[1:] != (16, 16) or y.dtype != np.uint8 or y.max(initial=0) >= len(names):
            raise ValueError(f"images {x.dtype} {x.shape}, labels {y.dtype} {y.shape}")
        if len(names) != nb_classes or not all(isinstance(name, str) for name in names):
            raise ValueError(f"characters are not {nb_classes} words")
    except Exception as error:  # a broken archive can raise nearly anything
        raise DataError(
            f"{GLYPHS_FILE} is missing or broken ({one_line(error)}); it is a file of the repository: git restores it"
        ) from error
    return Split(given.three_channels(x), y.astype(np.int64), names)


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
    compare(os.path.join(root, test), _subfolders(os.path.join(root, test)), classes)
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
    compare(os.path.join(root, split), names, classes)
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
    left_out = [f"{split}/{name}" for name in listing.files_below(top, deep=False)[0]]
    counts = []
    for name, files in zip(classes, listing.files_in(top, classes), strict=True):
        images, others = images_among(files)
        x += [f"{split}/{name}/{file}" for file in images]
        left_out += [f"{split}/{name}/{file}" for file in others]
        counts.append(len(images))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty or not x:
        raise DataError(f"{top}: no image in {some(empty) if empty else 'it'}")
    return Split(np.array(x), np.repeat(np.arange(len(classes)), counts), tuple(classes), tuple(left_out))


def compare(where: str, found: Sequence, expected: Sequence) -> None:
    """Raises DataError, which begins with `where`, unless both hold the same classes."""
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or surplus:
        told = [f"{len(missing)} of {len(expected)} classes missing ({some(missing)})"] if missing else []
        told += [f"{len(surplus)} too many ({some(surplus)})"] if surplus else []
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


def _imagenet_source(name: str) -> Source:
    """Its images are taken as they lie in their files, as published: no EXIF orientation is applied."""
    nb_classes = NB_CLASSES[name.lower()]
    return Source(name, partial(_imagenet, nb_classes), nb_classes=nb_classes, upright=False, describe=_wordnet)


def _wordnet(wnids: Sequence[str]) -> tuple[str, ...]:
    """What WordNet ids mean; empty for those that are not of ImageNet-1k."""
    known = ImageNetInfo("imagenet-1k")
    described = set(known.label_names())
    return tuple(known.label_name_to_description(wnid) if wnid in described else "" for wnid in wnids)


SOURCES = {
    "digits": Source("digits", _digits, nb_classes=NB_CLASSES["digits"], needs_path=False),
    "glyphs": Source("glyphs", _glyphs, GLYPHS_MEAN, GLYPHS_STD, NB_CLASSES["glyphs"], needs_path=False),
    "cifar100": Source("CIFAR100", _CIFAR100, CIFAR_MEAN, CIFAR_STD, NB_CLASSES["cifar100"]),
    "cifar10": Source("CIFAR10", _CIFAR10, CIFAR_MEAN, CIFAR_STD, NB_CLASSES["cifar10"]),
    "imagenet100": _imagenet_source("ImageNet100"),
    "imagenet1000": _imagenet_source("ImageNet1000"),
    "folder": Source("folder", _folder),
}
SOURCES["cifar"] = SOURCES["cifar100"]  # the published name
