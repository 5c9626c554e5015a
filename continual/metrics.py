"""What a continual learner is judged by: counts of one evaluation, and the figures computed from them.

Letters: T the index of the last task learned (tasks count from 0); i an evaluation, made after task i; j the task
whose test images are looked at, j <= i. `R[i][j]` is the accuracy on the test images of task j after task i was
learned, so the accuracy matrix is lower triangular: a list of rows, row i with i + 1 entries.

Every accuracy exists twice. *Task unknown* (class-incremental): an image is correct when its class scores highest
among all classes seen. *Task known* (task-incremental): when it scores highest among the classes of its own task.

Everything here is a fraction in [0, 1], not percent; forgetting and backward transfer are differences of such
fractions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Scores:
    """Counts of one evaluation after task i on the test images of tasks 0..i; entry j of every field is about task j.

    Raises ValueError when the fields are not equally long.
    """

    nb: tuple[int, ...]  # images
    top1: tuple[int, ...]  # correct among all classes seen
    top5: tuple[int, ...]  # among the five highest of all classes seen
    known: tuple[int, ...]  # correct among the classes of the image's own task
    loss_sum: tuple[float, ...]  # sum over images of the test loss

    def __post_init__(self) -> None:
        for name in ("nb", "top1", "top5", "known"):
            object.__setattr__(self, name, tuple(int(count) for count in getattr(self, name)))
        object.__setattr__(self, "loss_sum", tuple(float(loss) for loss in self.loss_sum))
        lengths = [len(field) for field in astuple(self)]
        if len(set(lengths)) != 1:
            raise ValueError(f"the fields of Scores speak of different numbers of tasks: {lengths}")

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[float]]) -> "Scores":
        """From what `to_lists` gave; counts may come as whole floats (from a float64 array summed over processes)."""
        return cls(*(tuple(row) for row in rows))

    def to_lists(self) -> list[list[float]]:
        """Five lists (nb, top1, top5, known, loss_sum), each with one number per task."""
        return [list(field) for field in astuple(self)]

    @property
    def nb_tasks(self) -> int:
        return len(self.nb)


def accuracy(scores: Scores, *, known: bool = False) -> float:
    """Correct images / images over all tasks seen: every image counts the same, so larger tasks weigh more.

    Raises ValueError when no image was scored.
    """
    return _share(sum(scores.known if known else scores.top1), sum(scores.nb))


def accuracy_top5(scores: Scores) -> float:
    """Share of the images whose class is among the five highest of all classes seen (of all, with fewer than five)."""
    return _share(sum(scores.top5), sum(scores.nb))


def mean_loss(scores: Scores) -> float:
    """Test loss, mean over all images."""
    return _share(sum(scores.loss_sum), sum(scores.nb))


def accuracy_per_task(scores: Scores, *, known: bool = False) -> list[float]:
    """Row i of the accuracy matrix: R[i][0..i]. Raises ValueError when a task has no image."""
    return [_share(right, nb) for right, nb in zip(scores.known if known else scores.top1, scores.nb, strict=True)]


def accuracy_matrix(evaluations: Iterable[Scores], *, known: bool = False) -> list[list[float]]:
    """R from the evaluations at the end of task 0, 1, ..., T. Raises ValueError when one is missing or out of order."""
    matrix = [accuracy_per_task(scores, known=known) for scores in evaluations]
    _check(matrix)
    return matrix


def average_incremental_accuracy(accuracies: Sequence[float]) -> float:
    """Mean over the steps i = 0..T of the accuracy on all classes seen then (iCaRL, Rebuffi et al., CVPR 2017).

    `accuracies`: one `accuracy` per step, the first task's included. Raises ValueError when there is none.
    """
    if not accuracies:
        raise ValueError("no evaluation to average")
    return fmean(accuracies)


def forgetting(matrix: Matrix) -> float:
    """mean over j < T of (max over i < T of R[i][j]) - R[T][j] (Chaudhry et al., ECCV 2018, section 3).

    How far each past task lies below its best; 0 after the first task; negative when the last task made past ones
    better than they had ever been.
    """
    _check(matrix)
    *past, last = matrix
    return fmean(max(row[j] for row in past[j:]) - last[j] for j in range(len(past))) if past else 0.0


def backward_transfer(matrix: Matrix) -> float:
    """mean over j < T of R[T][j] - R[j][j] (GEM, Lopez-Paz & Ranzato, NeurIPS 2017, equation 3).

    What learning later tasks did to each past one since it was learned; negative is loss; 0 after the first task.
    """
    _check(matrix)
    *past, last = matrix
    return fmean(last[j] - row[j] for j, row in enumerate(past)) if past else 0.0


def _share(part: float, nb: int) -> float:
    if nb == 0:
        raise ValueError("no test image: an accuracy of nothing is not defined")
    return part / nb


def _check(matrix: Matrix) -> None:
    lengths = [len(row) for row in matrix]
    if not lengths or lengths != list(range(1, len(lengths) + 1)):
        raise ValueError(f"row i of an accuracy matrix has i + 1 entries, these have {lengths}")
