"""Exhibits of what was answered on the test images: the error in parts, the bias towards the newest task, calibration."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from continual.report import errors, plots
from continual.report.exhibit import Exhibit, Table
from continual.report.study import AFTER, OF, Study, cells, numbered


def parts(found: Study) -> Exhibit:
    tasks = list(found.splits)
    shares = [found.splits[task].overall() for task in tasks]
    names = {"within": "within the task", "newer": "in a newer task", "older": "in an older task"}
    figure = plots.columns(
        numbered(tasks),
        [(words, [share[name] for share in shares]) for name, words in names.items()],
        xlabel=AFTER,
        ylabel="error (% of test images)",
    )
    rows = [
        [task + 1, 100 - share["right"], *(share[name] for name in names)] for task, share in zip(tasks, shares, strict=True)
    ]
    last = shares[-1]
    between = last["newer"] + last["older"]
    return Exhibit(
        "error-parts",
        "The error after every task, in parts",
        "An error is within the task if another class of the same task is answered; else the answer lies in a task that was "
        "learned later (newer) or earlier (older). The parts add up to the error.",
        Table(["after task", "error", *names.values()], rows, digits=2),
        figure,
        f"At the end {last['within']:.1f} of {100 - last['right']:.1f} points of error are within tasks and {between:.1f} "
        f"between them, {last['newer']:.1f} towards newer and {last['older']:.1f} towards older tasks.",
    )


def parts_now(found: Study) -> Exhibit:
    task = max(found.splits)
    split = found.splits[task]
    shares, names = split.shares(), {"within": "within the task", "newer": "in a newer task", "older": "in an older task"}
    tasks = list(range(len(split.nb)))
    figure = plots.columns(numbered(tasks), [(words, shares[name]) for name, words in names.items()], xlabel=OF)
    rows = [
        [after + 1, of + 1, int(each.nb[of]), *cells(*(each.shares()[name][of] for name in ("right", *names)))]
        for after, each in found.splits.items()
        for of in range(len(each.nb))
    ]
    worst = int(np.nanargmin(shares["right"]))
    return Exhibit(
        "error-parts-per-task",
        f"The error of every task after task {task + 1}, in parts",
        "As above, for the test images of each task at the last evaluation; the table has all evaluations.",
        Table(["after task", "of task", "images", "right", *names.values()], rows, digits=2),
        figure,
        f"Task {worst + 1} has most errors, {100 - shares['right'][worst]:.1f} %: {shares['within'][worst]:.1f} within it, "
        f"{shares['newer'][worst]:.1f} towards newer and {shares['older'][worst]:.1f} towards older tasks.",
    )


def confusions(found: Study) -> Exhibit:
    task = max(found.answers)
    counts = errors.confusion(found.answers[task])
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = numbered(list(range(len(counts))))
    figure = plots.matrices(
        [("", shares)], rows=names, columns=names, ylabel=OF, xlabel="answered with a class of task", label="%", limits=(0, 100)
    )
    wrong = counts - np.diag(np.diag(counts))
    said = "No image is answered with a class of another task."
    if wrong.any():
        i, j = np.unravel_index(wrong.argmax(), wrong.shape)
        said = (
            f"Most often images of task {i + 1} are answered with classes of task {j + 1}: {wrong[i, j]} of {counts[i].sum()}."
        )
    return Exhibit(
        "task-confusion",
        f"Which task the answers lie in, after task {task + 1}",
        "Rows are the tasks of the images and add up to 100 %; left of the diagonal are older tasks, right of it newer ones.",
        Table(["of task", *(f"task {name}" for name in names)], [[i + 1, *map(float, row)] for i, row in enumerate(shares)]),
        figure,
        said,
    )


# Bias.


def newest(found: Study) -> Exhibit:
    tasks = list(found.answers)
    shares = [errors.share_of_newest(found.answers[task]) for task in tasks]
    said, there = zip(*shares, strict=True)
    known = [100 - found.verdicts[task][0].error for task in tasks]
    with_one, with_each = [found.shifted[task][0] for task in tasks], [found.shifted_each[task] for task in tasks]
    figure = plots.lines(
        numbered(tasks),
        [("answers in the newest task", said), ("images of the newest task", there)],
        xlabel=AFTER,
        ylabel="%",
        limits=(0, 103),
        dashed=[1],
    )
    rows = [
        [task + 1, *cells(*row), *cells(found.shifted[task][1])]
        for task, row in zip(tasks, zip(said, there, known, with_one, with_each, strict=True), strict=True)
    ]
    last = rows[-1]
    gain = "" if last[4] is None else f" One constant on its logits changes the accuracy from {last[3]:.1f} to {last[4]:.1f} %."
    header = [
        "after task",
        "answers in it",
        "images of it",
        "accuracy",
        "with one constant",
        "with one per task",
        "the constant",
    ]
    return Exhibit(
        "newest-task",
        "How often the newest task is answered",
        "Where answers lie above images, new classes are preferred. The table holds what the accuracy would be if the best "
        "constant were subtracted from the newest task's logits, or one from every task's: found on one half of the test "
        "images and judged on the other, a diagnosis and no result of the method.",
        Table(header, rows, digits=2),
        figure,
        f"At the end {last[1]:.1f} % of the answers are in the newest task, where {last[2]:.1f} % of the images are.{gain}",
    )


def logits(found: Study) -> Exhibit | None:
    levels = {task: errors.levels(answers) for task, answers in found.answers.items() if len(answers.sizes) > 1}
    if not levels:
        return None
    names = {
        "old_on_old": "best old class, old images",
        "new_on_old": "best new class, old images",
        "old_on_new": "best old class, new images",
        "new_on_new": "best new class, new images",
    }
    figure = plots.lines(
        numbered(list(levels)),
        [(words, [getattr(level, name) for level in levels.values()]) for name, words in names.items()],
        xlabel=AFTER,
        ylabel="mean logit",
        dashed=[1, 2],
    )
    rows = [
        [task + 1, of + 1, *cells(level.true[of], *(getattr(level, name) for name in names))]
        for task, level in levels.items()
        for of in range(len(level.true))
    ]
    last = list(levels.values())[-1]
    old, new = last.old_on_old - last.new_on_old, last.new_on_new - last.old_on_new
    return Exhibit(
        "logits",
        "How high old and new classes score",
        "Solid lines should lie above dashed ones of the same images, by as much for old images as for new ones: else a "
        "constant shift stands between them. The table has the mean logit of the true class for the images of every task.",
        Table(["after task", "of task", "true class", *names.values()], rows, digits=2),
        figure,
        f"At the end the right side, old or new, leads by {old:.2f} on old images and by {new:.2f} on new ones.",
    )


def norms(found: Study) -> Exhibit | None:
    views = {task: view.norms for task, view in found.inside.views.items() if view.norms is not None}
    if not views:
        return None
    sizes = found.answers[max(found.answers)].sizes
    matrix = np.full((len(views), len(sizes)), np.nan)
    for row, each in enumerate(views.values()):
        of_task = np.repeat(np.arange(len(sizes)), sizes)[: len(each)]
        for task in np.unique(of_task):
            matrix[row, task] = each[of_task == task].mean()
    rows, columns = numbered(list(views)), numbered(list(range(len(sizes))))
    figure = plots.matrices(
        [("", matrix)], rows=rows, columns=columns, ylabel=AFTER, xlabel="classes of task", label="mean norm", digits=2
    )
    last = matrix[-1][~np.isnan(matrix[-1])]
    said = f"At the end the newest classes have a mean norm of {last[-1]:.2f}"
    said += f", the old ones of {last[:-1].mean():.2f} ({last[-1] / last[:-1].mean():.2f} times)." if len(last) > 1 else "."
    return Exhibit(
        "weight-norms",
        "Norms of the classifiers' weights",
        "Mean length of the classes' rows of weights, with the scale of the LayerNorm before them: longer ones score higher on "
        "features of equal length (Zhao et al., CVPR 2020).",
        Table(
            ["after task", *(f"task {name}" for name in columns)],
            [[r, *cells(*m)] for r, m in zip(rows, matrix, strict=True)],
            3,
        ),
        figure,
        said,
    )


# Calibration.


def _binned(found: Study, task: int) -> dict[str, errors.Reliability]:
    answers = found.answers[task]
    right, sure = answers.answers == answers.labels, errors.softmax(answers.logits).max(1)
    new = answers.tasks == len(answers.sizes) - 1
    binned = {"all": errors.reliability(sure, right)}
    if len(answers.sizes) > 1:
        binned |= {"old": errors.reliability(sure[~new], right[~new]), "new": errors.reliability(sure[new], right[new])}
    return binned | {"sigmoid": errors.reliability(errors.sigmoid(answers.logits).max(1), right)}


def calibration(found: Study) -> Exhibit:
    task = max(found.answers)
    binned = _binned(found, task)
    names = {"all": "all images", "old": "of old tasks", "new": "of the newest task"}
    figure = plots.reliability([(words, binned[name]) for name, words in names.items() if name in binned])
    bins = binned["all"]
    rows = [
        [
            f"{k / len(bins.nb):.2f} to {(k + 1) / len(bins.nb):.2f}",
            int(bins.nb[k]),
            *cells(bins.confidence[k], bins.accuracy[k]),
        ]
        for k in range(len(bins.nb))
    ]
    sure = float(np.nansum(bins.confidence * bins.nb) / max(1, bins.nb.sum()))
    right = float(np.nansum(bins.accuracy * bins.nb) / max(1, bins.nb.sum()))
    way = "more" if sure > right else "less"
    return Exhibit(
        "reliability",
        f"How sure and how right, after task {task + 1}",
        "Below the dotted line answers are surer than right. Confidence is the highest softmax of the scores. "
        + _trained(found.options),
        Table(["confidence", "images", "mean confidence", "share right"], rows, digits=3),
        figure,
        f"Answers are {way} sure than right: {100 * sure:.1f} % sure, {100 * right:.1f} % right; ECE is {100 * bins.ece:.1f} "
        "points.",
    )


def _trained(options: Mapping[str, Any]) -> str:
    """What softmax means for this run."""
    if options.get("nme"):
        return "This run scores by distances to class means: their softmax is no probability and is shown for its order alone."
    if options.get("bce_loss"):
        return (
            "This run is trained with binary cross entropy, each class for itself; softmax is taken all the same, as it adds "
            "up to 1 over the classes that compete for the answer, and the table of the next picture has the sigmoid beside it."
        )
    return "The run is trained with it."


def ece(found: Study) -> Exhibit:
    tasks, names = list(found.answers), {"all": "all images", "old": "old tasks", "new": "newest task"}
    binned = [_binned(found, task) for task in tasks]
    nan = float("nan")
    values = {name: [100 * each[name].ece if name in each else nan for each in binned] for name in (*names, "sigmoid")}
    curves = [(words, values[name]) for name, words in names.items() if not np.isnan(values[name]).all()]
    figure = plots.lines(numbered(tasks), curves, xlabel=AFTER, ylabel="ECE (points)", limits=None)
    rows = [[task + 1, *cells(*row)] for task, row in zip(tasks, zip(*values.values(), strict=True), strict=True)]
    return Exhibit(
        "calibration-error",
        "Expected calibration error after every task",
        f"Mean distance between confidence and share of right answers over {errors.BINS} bins (Guo et al., ICML 2017); "
        "lower is better.",
        Table(["after task", *names.values(), "all, by sigmoid"], rows, digits=2),
        figure,
        f"It goes from {values['all'][0]:.1f} to {values['all'][-1]:.1f} points.",
    )
