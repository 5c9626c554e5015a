"""What a run has reached: its figures, accuracy as classes arrive, the accuracy matrix, and how far every task has fallen."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from continual import published
from continual.errors import CheckpointError, OptionsError
from continual.options import DataOptions
from continual.report import figures
from continual.report.exhibit import Chapter, Exhibit, Table, chapter
from continual.report.figures import Curve
from continual.report.reading import Past
from continual.runs.record import KEYS, LOSS
from continual.seeing.tables import FIGURES, KINDS


@dataclass(frozen=True)
class Outcome:
    """What a run has reached after its last task so far, in percent; from the summary of one that is done.

    figures: as in summary.json or in the last record. accs, accs_known: on all classes seen, after every task.
    """

    figures: dict[str, Any]
    accs: list[float]
    accs_known: list[float]
    matrix: list[list[float]]
    matrix_known: list[list[float]]
    seen: list[int]  # classes, after every task; empty if unknown

    @property
    def nb_tasks(self) -> int:
        return len(self.accs)

    def per_task(self) -> tuple[list[float], list[float], list[float]]:
        """Of every task: the best accuracy it ever had, the one when it was learned, the last one."""
        best = [max(row[j] for row in self.matrix[j:]) for j in range(self.nb_tasks)]
        return best, [row[-1] for row in self.matrix], self.matrix[-1]

    def forgetting(self) -> list[float]:
        """How far each task but the last lies below its best."""
        best, _, last = self.per_task()
        return [high - low for high, low in zip(best[:-1], last, strict=False)]

    def axis(self) -> tuple[list[int], str]:
        """Where the tasks stand on an axis, and what that is."""
        return (self.seen, "classes seen") if self.seen else (list(range(1, self.nb_tasks + 1)), "tasks learned")


def outcome(past: Past) -> Outcome:
    """Raises CheckpointError while no task is learned, and UNREADABLE for damaged records."""
    told = past.summary
    if told:
        names = ("accs", "accs_known", "matrix", "matrix_known", "nb_classes")
        return Outcome(told, *(list(told[name]) for name in names))
    if not past.ends:
        raise CheckpointError("no task has been learned yet")
    accs, known = ([record[name] for record in past.ends] for name in ("acc", "acc_known"))
    return Outcome(past.ends[-1], accs, known, past.matrix(), past.matrix(known=True), past.nb_classes())


def reached(past: Past) -> Outcome | None:
    """What a run has reached, or None for one that has learned nothing, or whose records are damaged."""
    try:
        return outcome(past)
    except (CheckpointError, ValueError, KeyError, TypeError):
        return None


def results(past: Past) -> Chapter:
    return chapter("Results", past, all_figures, accuracy, beside_published, matrix, matrix_known, falls)


def all_figures(past: Past) -> Exhibit:
    found = outcome(past).figures
    own = [key for key, value in found.items() if key not in KEYS and not key.startswith(LOSS) and isinstance(value, float)]
    names = {**FIGURES, **{key: key for key in own if not (key.endswith("_known") and key.removesuffix("_known") in own)}}
    rows = [[words, *(found.get(name + suffix) for suffix in KINDS.values())] for name, words in names.items()]
    rows += [
        ["last accuracy, top 5", found.get("acc5", found.get("test_acc5")), None],
        ["top 5, mean", found.get("mean_acc5"), None],
    ]
    nb = outcome(past).nb_tasks
    return Exhibit(
        "figures",
        "The figures of the run",
        f"In percent, after {nb} task{'s' if nb > 1 else ''}; task unknown: the answer is one of all classes seen, task known: "
        "one of those of the image's own task.",
        Table(["", *KINDS], rows, digits=4),
    )


def accuracy(past: Past) -> Exhibit:
    found = outcome(past)
    x, xlabel = found.axis()
    lines = [
        Curve(f"task unknown (average {fmean(found.accs):.1f})", x, found.accs),
        Curve(f"task known (average {fmean(found.accs_known):.1f})", x, found.accs_known, place=1),
    ]
    rows = [[task + 1, *row] for task, row in enumerate(zip(x, found.accs, found.accs_known, strict=True))]
    return Exhibit(
        "accuracy",
        "Accuracy as classes arrive",
        "Each point is the accuracy on the test images of all classes seen so far, after one more task; their mean is the "
        "average incremental accuracy.",
        Table(["task", xlabel, "task unknown", "task known"], rows, digits=2),
        figures.curves(lines, xlabel=xlabel),
    )


def beside_published(past: Past) -> Exhibit | None:
    """Of CIFAR-100 in one of the published scenarios; else None."""
    data = {key: past.options.get(key) for key in ("data_set", "initial_increment", "increment")}
    try:
        steps = published.nb_steps(DataOptions(**data))
    except (OptionsError, AttributeError):
        return None
    found, rows = outcome(past), published.published(steps)
    mean, last = fmean(found.accs), found.accs[-1]
    drawn = [row for row in rows if row.get("curve")]
    lines = [Curve("this run", found.axis()[0], found.accs)]
    for place, row in enumerate(drawn, start=1):
        x = [(step + 1) * 100 // steps for step in range(len(row["curve"]))]
        lines.append(Curve(row["name"], x, row["curve"], place=place, quiet=True))
    whole = found.nb_tasks == steps
    table = [["this run", mean, last, None, None, ""]]
    for row in rows:
        apart = [told - row[name] if whole and row[name] else None for name, told in (("average", mean), ("last", last))]
        table.append([row["name"], row["average"], row["last"], *apart, f"{row['model']} {row['options']}".strip()])
    return Exhibit(
        "published",
        f"Beside what was published of CIFAR-100 in {steps} steps",
        "The numbers are the authors' and users', not ours; differences are this run's less theirs, once all is learned.",
        Table(["", "average", "last", "difference", "difference of last", "options"], table, digits=2),
        figures.curves(lines, xlabel="classes seen") if drawn else None,
    )


def square(rows: list[list[float]]) -> np.ndarray:
    """A triangle of rows as a square, NaN above it."""
    found = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        found[i, : i + 1] = row
    return found


def matrix(past: Past) -> Exhibit:
    return matrix_of(outcome(past).matrix, "matrix", "Accuracy matrix, task unknown")


def matrix_known(past: Past) -> Exhibit:
    return matrix_of(outcome(past).matrix_known, "matrix-known", "Accuracy matrix, task known")


def matrix_of(rows: list[list[float]], name: str, title: str) -> Exhibit:
    header = ["after task", *(f"task {j + 1}" for j in range(len(rows)))]
    table = [[i + 1, *row, *[None] * (len(rows) - len(row))] for i, row in enumerate(rows)]
    return Exhibit(
        name,
        title,
        "Row i is what the model knew after task i; going down a column shows one task being remembered or forgotten.",
        Table(header, table, digits=1),
        figures.heat(square(rows), xlabel="test images of task", ylabel="after task"),
    )


def falls(past: Past) -> Exhibit:
    found = outcome(past)
    best, learned, last = found.per_task()
    known = outcome(past).matrix_known[-1]
    lost = [*found.forgetting(), None]
    rows = [[task + 1, *row] for task, row in enumerate(zip(learned, best, last, lost, known, strict=True))]
    said = ""
    if len(lost) > 1:
        worst = int(np.argmax(lost[:-1]))
        said = f"Task {worst + 1} lost most: {lost[worst]:.1f} points below its best."
    return Exhibit(
        "forgetting",
        "What became of every task",
        "The line of a task goes from its best accuracy down to its present one: that is what it lost, and the mean over all "
        "tasks but the last is the forgetting of the run.",
        Table(["task", "when learned", "best", "now", "lost", "now, task known"], rows, digits=2),
        figures.falls(best, last, learned),
        said,
    )
