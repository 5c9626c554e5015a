"""Where a model's answers go wrong, from the answers alone (see continual/runs/predictions.py). Arrays in, arrays out.

    error  =  within the task  +  between tasks,   between tasks  =  towards newer tasks  +  towards older tasks

An error is *within the task* if the answer is another class of the image's own task, and *between tasks* if it is a class of
another task. It goes towards *newer* tasks if that one was learned later.

Letters:  n test images   C classes seen   T tasks seen   K bins
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from continual.runs.predictions import Predictions

BINS = 15
ROUNDS = 3  # of going through the tasks, one constant after the other


class Split(NamedTuple):
    """The images of every task, (T,) each, by what became of them: the last four add up to `nb`, exactly."""

    nb: np.ndarray
    right: np.ndarray
    within: np.ndarray
    newer: np.ndarray
    older: np.ndarray

    def shares(self) -> dict[str, np.ndarray]:
        """Percent of each task's images, (T,) each; NaN for a task without images."""
        nb = np.where(self.nb, self.nb, np.nan)
        return {name: 100 * getattr(self, name) / nb for name in ("right", "within", "newer", "older")}

    def overall(self) -> dict[str, float]:
        """Percent of all images."""
        nb = max(1, int(self.nb.sum()))
        return {name: 100 * int(getattr(self, name).sum()) / nb for name in ("right", "within", "newer", "older")}


class Levels(NamedTuple):
    """How high logits are. true: (T,) mean logit of the true class, of each task's images. The rest are means of the highest
    logit among the old classes and among the newest task's, on images of either; NaN with one task."""

    true: np.ndarray
    old_on_old: float
    new_on_old: float
    old_on_new: float
    new_on_new: float


class Reliability(NamedTuple):
    """Bins of equal width over the confidence, (K,) each: mean confidence and share of right answers (NaN if empty), images.

    ece: the expected calibration error, in [0, 1] (Guo et al., ICML 2017, equation 3).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    nb: np.ndarray
    ece: float


def split(found: Predictions) -> Split:
    """The error of every task, in parts."""
    nb_tasks, own, answered = len(found.sizes), found.tasks, found.task_of[found.answers]
    right = found.answers == found.labels
    kinds = (np.ones_like(right), right, ~right & (answered == own), answered > own, answered < own)
    return Split(*(np.bincount(own[kind], minlength=nb_tasks) for kind in kinds))


def confusion(found: Predictions) -> np.ndarray:
    """Images of task i that are answered with a class of task j: counts, (T, T)."""
    nb_tasks = len(found.sizes)
    pairs = found.tasks * nb_tasks + found.task_of[found.answers]
    return np.bincount(pairs, minlength=nb_tasks**2).reshape(nb_tasks, nb_tasks)


def share_of_newest(found: Predictions) -> tuple[float, float]:
    """Percent of all answers that are classes of the newest task, and percent of all images that are of them."""
    newest, nb = len(found.sizes) - 1, max(1, len(found.labels))
    answered = found.task_of[found.answers]
    return 100 * float((answered == newest).sum()) / nb, 100 * float((found.tasks == newest).sum()) / nb


def levels(found: Predictions) -> Levels:
    """Mean logits of the true class, and of the best old and the best new one."""
    logits, own, nb_tasks = found.logits.astype(np.float64), found.tasks, len(found.sizes)
    of_true = logits[np.arange(len(logits)), found.labels]
    true = np.array([_mean(of_true[own == task]) for task in range(nb_tasks)])
    if nb_tasks < 2:
        return Levels(true, *[float("nan")] * 4)
    new = found.task_of == nb_tasks - 1
    is_new = own == nb_tasks - 1
    best_old, best_new = logits[:, ~new].max(1), logits[:, new].max(1)
    return Levels(true, *(_mean(best[rows]) for rows in (~is_new, is_new) for best in (best_old, best_new)))


def constant(margin: np.ndarray, right: np.ndarray, otherwise: np.ndarray) -> float:
    """The b for which most answers are right if an image takes the first answer where margin > b, and else the second.

    margin, right, otherwise: (n,), the last two whether the first and the second answer are right. Of several that are as
    good, the one nearest to 0. Exact: between two neighbouring margins nothing changes, so n + 1 places are looked at.
    """
    order = np.argsort(margin, kind="stable")
    margin = margin[order]
    gains = np.concatenate([[0], np.cumsum(otherwise[order].astype(int) - right[order].astype(int))])  # the k lowest: second
    low, high = np.concatenate([[-np.inf], margin]), np.concatenate([margin, [np.inf]])  # b of place k lies in [low, high)
    usable = low < high
    best = usable & (gains == gains[usable].max())
    with np.errstate(invalid="ignore"):
        middle = np.where(np.isinf(low), high - 1, np.where(np.isinf(high), low + 1, (low + high) / 2))
    middle = np.where((low <= 0) & (high > 0), 0.0, middle)[best]
    return float(middle[np.abs(middle).argmin()])


def constants(best: np.ndarray, right: np.ndarray, tasks: Sequence[int]) -> np.ndarray:
    """One constant for each of these tasks, to be subtracted from its logits, so that most answers are right; else 0. (T,)

    best: (n, T) the highest logit of each task's classes. right: (n, T) whether that class is the true one. One constant is
    found after the other, each the best for the others as they are; of several, from two beginnings: none, and medians alike.
    """
    if len(tasks) == 1:
        return _ascended(best, right, tasks, np.zeros(best.shape[1]))
    level = np.median(best, axis=0)
    begin = np.where(np.isin(np.arange(best.shape[1]), tasks), level - level[0], 0.0)
    ends = [_ascended(best, right, tasks, each) for each in (np.zeros(best.shape[1]), begin)]
    hits = [right[np.arange(len(best)), (best - each).argmax(1)].sum() for each in ends]
    return ends[int(np.argmax(hits))]


def _ascended(best: np.ndarray, right: np.ndarray, tasks: Sequence[int], found: np.ndarray) -> np.ndarray:
    rows = np.arange(len(best))
    for _ in range(ROUNDS if len(tasks) > 1 else 1):
        for task in tasks:
            rest = best - found
            rest[:, task] = -np.inf
            second = rest.argmax(1)
            found[task] = constant(best[:, task] - rest[rows, second], right[:, task], right[rows, second])
    return found


def with_constants(found: Predictions, *, newest_only: bool = True) -> tuple[float, float]:
    """Percent of right answers if a constant is subtracted from the logits of the newest task (else of every task but the
    first); and the constant of the newest. The accuracy is NaN with one task.

    A diagnosis, no method: the constants are fitted to test images. But they are fitted to one half of each class and
    judged on the other, and the other way round, so that what is told is no more than such constants bring.
    """
    nb_tasks, nb = len(found.sizes), len(found.labels)
    if nb_tasks < 2 or not nb:
        return float("nan"), 0.0
    logits, starts = found.logits.astype(np.float64), np.cumsum([0, *found.sizes[:-1]])
    best = np.maximum.reduceat(logits, starts, axis=1)  # (n, T)
    first = [start + logits[:, start : start + size].argmax(1) for start, size in zip(starts, found.sizes, strict=True)]
    right = np.stack(first, axis=1) == found.labels[:, None]
    tasks = [nb_tasks - 1] if newest_only else range(1, nb_tasks)
    half = _ranks(found.labels) % 2 == 0
    hits = 0
    for fitted, judged in ((half, ~half), (~half, half)):
        answers = (best[judged] - constants(best[fitted], right[fitted], tasks)).argmax(1) if fitted.any() else None
        hits += 0 if answers is None else int(right[judged][np.arange(len(answers)), answers].sum())
    judged = nb if half.any() and (~half).any() else int((half if not half.any() else ~half).sum())
    return 100 * hits / max(1, judged), float(constants(best, right, tasks)[-1])


def softmax(logits: np.ndarray) -> np.ndarray:
    """(n, C) -> probabilities (n, C)."""
    powers = np.exp(logits.astype(np.float64) - logits.astype(np.float64).max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """(n, C) -> in [0, 1], each class for itself (n, C)."""
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -60, 60)))


def reliability(confidence: np.ndarray, right: np.ndarray, nb_bins: int = BINS) -> Reliability:
    """confidence: (n,) in [0, 1]. right: (n,) whether the answer is."""
    place = np.clip(np.ceil(confidence * nb_bins).astype(int) - 1, 0, nb_bins - 1)  # bins ((k - 1) / K, k / K]
    nb = np.bincount(place, minlength=nb_bins)
    some = np.where(nb, nb, np.nan)
    mean = np.bincount(place, weights=confidence, minlength=nb_bins) / some
    accuracy = np.bincount(place, weights=right.astype(float), minlength=nb_bins) / some
    return Reliability(mean, accuracy, nb, float(np.nansum(nb * np.abs(accuracy - mean)) / max(1, nb.sum())))


def _ranks(labels: np.ndarray) -> np.ndarray:
    """How many images of its class stand before each image, (n,)."""
    ranks = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        of_class = labels == label
        ranks[of_class] = np.arange(of_class.sum())
    return ranks


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
