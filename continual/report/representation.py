"""What features know, and how they move: from arrays of features alone.

Letters:  n images   F features   C classes   T tasks
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

STEPS = 100  # of L-BFGS, at most; the penalty makes them enough


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Similarity of two representations of the same images, (n, F) and (n, F'): 1 for equal up to rotation and scale.

    Linear CKA (Kornblith et al., ICML 2019, equation 5), its three terms by the unbiased estimator of HSIC (Song et al., JMLR
    2012, equation 5; Nguyen et al., ICLR 2021): with the plain one, few images of many features look alike even if they have
    nothing in common. It is 0 on average for unrelated features, and may be a little below. NaN for fewer than four images, or
    features that are all the same.
    """
    if len(x) < 4:
        return float("nan")
    of_x, of_y = _gram(x), _gram(y)
    scale = _hsic(of_x, of_x) * _hsic(of_y, of_y)
    return float(_hsic(of_x, of_y) / np.sqrt(scale)) if scale > 0 else float("nan")


def _gram(x: np.ndarray) -> np.ndarray:
    """Inner products of centred features without the diagonal, (n, n)."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(k: np.ndarray, other: np.ndarray) -> float:
    n, rows, columns = len(k), k.sum(0), other.sum(0)
    found = (k * other).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 * (rows @ columns) / (n - 2)
    return float(found / (n * (n - 3)))


def standardised(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Features with mean 0 and deviation 1 on `train` (n, F), these first; a feature that is constant there becomes 0."""
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    scale = np.where(std > 1e-8 * max(1.0, float(np.abs(mean).max(initial=0))), std, np.inf)
    return [(each - mean) / scale for each in (train, *others)]


def linear_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The classes that a logistic regression on the features of training images answers, (n_test,) (Alain & Bengio 2016).

    train: (n, F), labels: (n,), test: (n_test, F). Features are standardised; the L2 penalty is 1 on the sum of losses.
    """
    if len(np.unique(labels)) < 2:
        return np.full(len(test), labels[0] if len(labels) else -1)
    train, test = standardised(train, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=STEPS).fit(train, labels).predict(test)


def nearest_mean(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The class whose mean of the training images' features is nearest, (n_test,), Euclidean on standardised features."""
    train, test = standardised(train, test)
    classes = np.unique(labels)
    means = np.stack([train[labels == label].mean(0) for label in classes])
    return classes[_distances(test, means).argmin(1)]


def per_task(hits: np.ndarray, tasks: np.ndarray, nb_tasks: int) -> np.ndarray:
    """Percent of right answers of each task's images, (T,); NaN for a task without images."""
    nb = np.bincount(tasks, minlength=nb_tasks)
    return 100 * np.bincount(tasks, weights=hits, minlength=nb_tasks) / np.where(nb, nb, np.nan)


def likeness(features: np.ndarray, labels: np.ndarray, task_of: np.ndarray) -> np.ndarray:
    """Mean cosine between class means of features, for classes of task i and of task j: (T, T), diagonal: other classes of i.

    features: (n, F). labels: (n,). task_of: (C,), the task of each class. Means are taken from the mean over all classes, so
    that classes which have nothing in common are at 0 or below. NaN where a task has no pair of classes.
    """
    means = np.stack([features[labels == label].mean(0, dtype=np.float64) for label in range(len(task_of))])
    means -= means.mean(0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    cosines = means @ means.T
    np.fill_diagonal(cosines, np.nan)
    nb_tasks = int(task_of.max()) + 1
    found = np.full((nb_tasks, nb_tasks), np.nan)
    for i, j in np.ndindex(nb_tasks, nb_tasks):
        block = cosines[np.ix_(task_of == i, task_of == j)]
        if not np.isnan(block).all():
            found[i, j] = np.nanmean(block)
    return found


def distances(vectors: np.ndarray) -> np.ndarray:
    """Euclidean distances between vectors (T, F): (T, T)."""
    return _distances(vectors.astype(np.float64), vectors.astype(np.float64))


def plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Vectors (m, F) in the plane that keeps most of their distances, (m, 2), and the share of their variance that it keeps.

    Classical multidimensional scaling of Euclidean distances (Torgerson 1952), which is PCA of the vectors.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(vectors), 2))
    flat[:, : min(2, len(lengths))] = (left * lengths)[:, :2]
    total = float((lengths**2).sum())
    return flat, float((lengths[:2] ** 2).sum()) / total if total else 1.0


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(squares, 0))
