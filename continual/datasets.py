"""The door to data: data sets cut into tasks, and a data set of one's own.

`load` gives a Benchmark: which images each task brings, under which labels. continual/data finds the images, checks them, and
opens them (`Images`).

A *class id* is what the data set calls a class (0, 1, ...); a *label* is its rank in the class order, which is what the
model predicts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from continual.data import given, sources
from continual.data.images import Images, without_unreadable
from continual.data.samples import Samples, Split, held_out
from continual.data.scenario import NB_CLASSES, by_name, checked_order, task_sizes
from continual.data.sources import CIFAR_MEAN, CIFAR_STD, IMAGENET100_WNIDS, Source
from continual.errors import DataError, OptionsError, Refused, how_it_failed
from continual.registry import DATA_SETS
from continual.tasks import Task

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "IMAGENET100_WNIDS",
    "Benchmark",
    "Images",
    "Samples",
    "Split",
    "checked_order",
    "held_out",
    "load",
    "register",
    "task_sizes",
]


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

    data_set: digits, glyphs, CIFAR100 (or CIFAR), CIFAR10, ImageNet100, ImageNet1000, folder, a name given to `register`, or
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
    source = sources.find(data_set)
    if source.nb_classes is not None:  # wrong options are refused before any file is touched
        task_sizes(source.nb_classes, initial_increment, increment)
        checked_order(None if by_name(class_order) else class_order, source.nb_classes)
    source, root = sources.with_channels(source), sources.root_of(source, data_path)
    train, classes = _training_images(source, root, download=download)
    sizes = task_sizes(len(classes), initial_increment, increment)
    order = checked_order(class_order, len(classes), train.names)
    if validation:
        train, test = _validation_split(train, validation, seed)
    else:
        test = _test_images(source, root, classes, download=download)
    skipped: tuple[str, ...] = ()
    if skip_corrupt:
        train, skipped = without_unreadable(source.name, train, root)
        test, more = without_unreadable(source.name, test, root)
        skipped += more
    return _benchmark(source, root, train, test, sizes, order, skipped)


def _training_images(source: Source, root: str | None, *, download: bool) -> tuple[Split, np.ndarray]:
    """The training images with their class ids as y and a name for every class; and what the source calls the classes (C,)."""
    split = sources.read_split(source, root, train=True, download=download)
    classes = np.unique(split.y)
    if source.nb_classes not in (None, len(classes)):
        raise DataError(f"{source.name} in {root} has {len(classes)} classes in its training images, not {source.nb_classes}")
    names = split.names or tuple(map(str, classes.tolist()))
    return split._replace(y=np.searchsorted(classes, split.y), names=names), classes


def _test_images(source: Source, root: str | None, classes: np.ndarray, *, download: bool) -> Split:
    """The test images with their class ids as y; these must be of the training images' classes, all of them."""
    split = sources.read_split(source, root, train=False, download=download)
    sources.compare(f"the test images of {source.name}", np.unique(split.y).tolist(), classes.tolist())
    return split._replace(y=np.searchsorted(classes, split.y))


def _validation_split(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """What is left to train on, and what is held out to be evaluated on."""
    held = held_out(train.y, fraction, "validation", seed)
    return train._replace(x=train.x[~held], y=train.y[~held]), Split(train.x[held], train.y[held])


def _benchmark(
    source: Source,
    root: str | None,
    train: Split,
    test: Split,
    sizes: Sequence[int],
    order: tuple[int, ...],
    skipped: tuple[str, ...],
) -> Benchmark:
    """The images (y: class ids) cut into tasks of these sizes along the class order."""
    return Benchmark(
        name=source.name,
        tasks=tuple(Task(index, sum(sizes[:index]), size) for index, size in enumerate(sizes)),
        class_order=order,
        root=root,
        mean=source.mean,
        std=source.std,
        train_samples=_cut(train, sizes, order),
        test_samples=_cut(test, sizes, order),
        skipped=skipped,
        left_out=train.left_out + test.left_out,
        class_names=train.names,
        descriptions=source.describe(train.names),
        upright=source.upright,
    )


def _cut(split: Split, sizes: Sequence[int], order: Sequence[int]) -> Samples:
    """Class ids to labels, the ranks in the class order, and to the tasks that these fall into."""
    labels = np.argsort(order)[split.y].astype(np.int64)
    tasks = np.searchsorted(np.cumsum(sizes), labels, side="right").astype(np.int64)
    return Samples(split.x, labels, tasks)


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
            raise DataError(f"{name}: the registered function failed {how_it_failed(error)}") from error
        return Split(*given.split(name, found, root))

    DATA_SETS.put(name, Source(name, read, mean, std, needs_path=False))
    NB_CLASSES.pop(name.lower(), None)  # it may take the place of a data set whose size was known
