"""Which classes are known in the end, and what the others are taken for; from the answers kept of the last task learned."""

import numpy as np

from continual.errors import CheckpointError
from continual.report import figures
from continual.report.exhibit import Chapter, Exhibit, Table, chapter
from continual.report.reading import Past
from continual.report.results import outcome
from continual.runs.predictions import Predictions


def classes(past: Past) -> Chapter:
    return chapter("Classes", past, per_class, confusion, between_tasks)


def answered(past: Past) -> Predictions:
    """The answers after the last task learned. Raises CheckpointError where they are not to be had."""
    found = past.predictions(outcome(past).nb_tasks - 1)
    if found is None:
        raise CheckpointError(past.faults[-1])
    return found


def counts(labels: np.ndarray, answers: np.ndarray, nb: int) -> np.ndarray:
    """(nb, nb): images of the row's label that were answered with the column's."""
    found = np.zeros((nb, nb), dtype=np.int64)
    np.add.at(found, (labels, answers), 1)
    return found


def shares(found: np.ndarray) -> np.ndarray:
    """Counts as percent of their row; NaN for one without images."""
    with np.errstate(invalid="ignore"):
        return 100 * found / found.sum(axis=1, keepdims=True)


def names_of(past: Past, nb: int) -> list[str]:
    """The names of labels; those that are not told are called by their labels."""
    names = past.names()
    return [names[label] if label < len(names) else f"label {label}" for label in range(nb)]


def per_class(past: Past) -> Exhibit:
    found = answered(past)
    nb = found.logits.shape[1]
    table = counts(found.labels, found.answers, nb)
    unknown = np.diagonal(shares(table))
    known = np.diagonal(shares(counts(found.labels, found.answers_known, nb)))
    wrong = table - np.diag(np.diagonal(table))
    names = names_of(past, nb)
    rows = []
    for label in range(nb):
        other = int(wrong[label].argmax())
        taken = [names[other], int(wrong[label, other])] if wrong[label, other] else ["", None]
        shown = [None if np.isnan(each[label]) else float(each[label]) for each in (unknown, known)]
        rows.append([names[label], label, int(found.task_of[label]) + 1, int(table[label].sum()), *shown, *taken])
    worst = int(np.nanargmin(unknown))
    return Exhibit(
        "per-class",
        "Accuracy of every class",
        "Classes in the order in which they came, colours change with the task; the dot is the accuracy with the task known.",
        Table(
            ["class", "label", "task", "images", "task unknown", "task known", "mostly taken for", "images so taken"],
            rows,
            digits=1,
        ),
        figures.columns(
            names,
            [("task unknown", np.nan_to_num(unknown).tolist())],
            xlabel="class",
            ylabel="accuracy (%)",
            percent=True,
            places=(found.task_of % 2 * 5).tolist(),
            marks=("task known", np.nan_to_num(known).tolist()),
        ),
        f"Least known is {names[worst]}: {unknown[worst]:.1f} %.",
    )


def confusion(past: Past) -> Exhibit:
    found = answered(past)
    nb = found.logits.shape[1]
    table, names = counts(found.labels, found.answers, nb), names_of(past, nb)
    wrong = table - np.diag(np.diagonal(table))
    pairs = [np.unravel_index(at, wrong.shape) for at in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    told = [f"{names[i]} as {names[j]} ({wrong[i, j]} of {table[i].sum()})" for i, j in pairs if wrong[i, j]]
    return Exhibit(
        "confusion",
        "What is taken for what",
        "Rows are the true classes, columns the answers, both in the order in which they came, with lines between tasks; "
        "colours are the share of the row, the table counts images.",
        Table(["true class", *names], [[names[i], *map(int, row)] for i, row in enumerate(table)]),
        figures.heat(
            shares(table),
            names=names,
            xlabel="answer",
            ylabel="true class",
            label="of the true class (%)",
            breaks=np.cumsum(found.sizes)[:-1].tolist(),
            faint=True,
        ),
        f"Most often: {'; '.join(told)}." if told else "Nothing is taken for anything else.",
    )


def between_tasks(past: Past) -> Exhibit:
    found = answered(past)
    nb = len(found.sizes)
    part = shares(counts(found.tasks, found.task_of[found.answers], nb))
    right = 100 * (found.answers == found.labels).mean()
    own = 100 * (found.tasks == found.task_of[found.answers]).mean()
    rows = [[i + 1, *(None if np.isnan(each) else float(each) for each in row)] for i, row in enumerate(part)]
    return Exhibit(
        "between-tasks",
        "To which task images are given",
        "Row i: of the test images of task i, the share answered with a class of each task; left of the diagonal is a pull to "
        "old tasks, right of it to new ones.",
        Table(["images of task", *(f"as task {j + 1}" for j in range(nb))], rows, digits=1),
        figures.heat(
            part, xlabel="answered with a class of task", ylabel="images of task", label="of the images (%)", faint=True
        ),
        f"{own:.1f} % of the images are given to their own task, and {right:.1f} % to their class.",
    )
