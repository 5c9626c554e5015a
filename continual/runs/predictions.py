"""What a model answered on every test image at the end of each task, kept beside the logs: `predictions/task-3.npz`.

Whoever asks later where errors come from, or whether two runs differ, needs neither the model nor the data. The digest of
each file stands in the manifest of every checkpoint that comes after it.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from continual.data.samples import Samples
from continual.errors import CheckpointError, one_line
from continual.files import write_arrays
from continual.tasks import Task

FOLDER = "predictions"
NAME = re.compile(r"task-([1-9]\d*)\.npz")
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers after one task on the n test images of all classes seen, C_all of them.

    logits: (n, C_all) float16, what the method scores by. answers, answers_known: (n,) the labels answered with task unknown
    and known, as they were before the scores were rounded. labels: (n,) the true ones. places: (n,) where each image stands
    among all test images, whatever the class order. sizes: (T,) classes of each task. digest: of the test images.
    """

    logits: np.ndarray
    answers: np.ndarray
    answers_known: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    sizes: np.ndarray
    digest: str

    @property
    def task_of(self) -> np.ndarray:
        """The task of each label, (C_all,)."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def tasks(self) -> np.ndarray:
        """The task of each image, (n,)."""
        return self.task_of[self.labels]

    def packed(self) -> "Predictions":
        """As it is kept: its scores as float16."""
        return replace(self, logits=packed(self.logits))


def of_rows(rows: np.ndarray, samples: Samples, tasks: Sequence[Task], digest: str = "") -> Predictions:
    """What `evaluation.evaluate` has kept of these tasks, (n, C_all + 2) in the order of the images; scores are float32.

    samples: all test images of the data set, those of later tasks included.
    """
    places = np.flatnonzero(samples.t <= tasks[-1].index)
    answers, known = rows[:, :2].astype(np.int32).T
    return Predictions(
        logits=rows[:, 2:],
        answers=answers,
        answers_known=known,
        labels=samples.y[places].astype(np.int32),
        places=places.astype(np.int32),
        sizes=np.array([task.nb_new for task in tasks], dtype=np.int32),
        digest=digest,
    )


def packed(scores: np.ndarray) -> np.ndarray:
    """Scores as float16; what is beyond its range becomes the largest number in it."""
    return np.clip(scores, -LARGEST, LARGEST).astype(np.float16)


def path_of(logs: Path, task: int) -> Path:
    """The file of a task, counted from 0."""
    return logs / FOLDER / f"task-{task + 1}.npz"


def write(logs: Path, task: int, found: Predictions) -> str:
    """Keep the answers of a task; returns the file's SHA-256. Equal answers give equal bytes. Raises CheckpointError."""
    path = path_of(logs, task)
    try:
        path.parent.mkdir(exist_ok=True)
        return write_arrays(path, {key: np.asarray(value) for key, value in asdict(found).items()})
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from None


def read(path: Path, *, sha256: str = "") -> Predictions:
    """Read a file back. sha256: what it must be. Raises CheckpointError for one that is gone, damaged or of another kind."""
    try:
        content = path.read_bytes()
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise CheckpointError(f"{path} is damaged (its SHA-256 does not fit)")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            found = Predictions(**{each.name: stored[each.name] for each in fields(Predictions)})
        _check(found)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no predictions were kept there") from None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each fail in their own ways
        raise CheckpointError(f"{path} does not hold predictions ({one_line(error)[:200]})") from None
    return Predictions(**{**vars(found), "digest": str(found.digest)})


def cut_off(logs: Path, kept: Mapping[str, str]) -> None:
    """Remove the files of tasks that a resumed run is yet to learn; kept: the digests by file name of the others."""
    for path in (logs / FOLDER).glob("task-*.npz"):
        if NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def _check(found: Predictions) -> None:
    nb, nb_classes = found.logits.shape
    if int(found.sizes.sum()) != nb_classes:
        raise ValueError(f"{nb_classes} columns for tasks of {found.sizes.tolist()} classes")
    for name in ("answers", "answers_known", "labels", "places"):
        values = getattr(found, name)
        if values.shape != (nb,) or values.dtype.kind != "i" or (name != "places" and nb and values.max() >= nb_classes):
            raise ValueError(f"{name} does not fit {nb} images of {nb_classes} classes")
