"""The page of several runs: those that differ in seed and class order alone are one experiment, a mean with its spread.

Runs of other data or other tasks cannot be compared, and stand apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

import numpy as np

from continual.report import figures, one
from continual.report.course import flops_of, seconds_of
from continual.report.exhibit import Chapter, Exhibit, Table, chapter
from continual.report.figures import Curve
from continual.report.one import plain_value, progress, status, title
from continual.report.reading import Past
from continual.report.results import Outcome, matrix_of, reached

ABOUT_IMAGES = ("data_set", "initial_increment", "increment", "validation")  # where these differ, accuracies do not compare
COLUMNS = {  # of a table of runs or methods
    **{"avg_acc": "average", "acc": "last", "forgetting": "forgetting", "bwt": "backward transfer"},
    **{"avg_acc_known": "average, task known", "acc_known": "last, task known"},
}
SAID = 3  # options that name a group


@dataclass(frozen=True)
class Group:
    """The runs of one experiment. name: what tells it from the others."""

    name: str
    runs: list[Past]

    @cached_property
    def ahead(self) -> list[tuple[Past, Outcome]]:
        """The runs that have learned as many tasks as any of them: those that means are taken over."""
        found = [(past, outcome) for past in self.runs if (outcome := reached(past))]
        most = max((outcome.nb_tasks for _, outcome in found), default=0)
        return [(past, outcome) for past, outcome in found if outcome.nb_tasks == most]

    @property
    def nb_tasks(self) -> int:
        return self.ahead[0][1].nb_tasks if self.ahead else 0

    def over(self, of: Callable[[Past, Outcome], float | None]) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation over the runs ahead; None for what is not known, and of one run."""
        values = [value for past, outcome in self.ahead if (value := of(past, outcome)) is not None]
        return (fmean(values) if values else None), (stdev(values) if len(values) > 1 else None)

    def per_task(self, of: Callable[[Outcome], Sequence[float]]) -> tuple[list[float], list[float] | None]:
        """Mean and standard deviation (None: one run) of what each run ahead has for every task."""
        values = np.array([of(outcome) for _, outcome in self.ahead], dtype=float)
        return values.mean(axis=0).tolist(), values.std(axis=0, ddof=1).tolist() if len(values) > 1 else None


@dataclass(frozen=True)
class Setting:
    """Groups whose accuracies compare: the same images, cut into the same tasks."""

    name: str
    groups: list[Group]

    @property
    def learned(self) -> list[tuple[int, Group]]:
        """The groups that have learned something, each with its place among all."""
        return [(place, group) for place, group in enumerate(self.groups) if group.ahead]


def settings(pasts: Sequence[Past]) -> list[Setting]:
    apart: dict[tuple, list[Past]] = {}
    for past in pasts:
        apart.setdefault(tuple(repr(past.options.get(key)) for key in ABOUT_IMAGES), []).append(past)
    found = []
    for runs in apart.values():
        best = next((past for past in runs if past.sizes), runs[0])
        found.append(Setting(f"{best.options.get('data_set')}, tasks: {one.tasks(best)}", grouped(runs)))
    return found


def grouped(pasts: Sequence[Past]) -> list[Group]:
    """The experiments among runs, in the order given, named by their methods and, where these are equal, by their options."""
    found: dict[tuple, list[Past]] = {}
    for past in pasts:
        found.setdefault(past.experiment(), []).append(past)
    firsts = [told(runs[0]) for runs in found.values()]
    methods = [runs[0].method for runs in found.values()]
    names = []
    for options, method in zip(firsts, methods, strict=True):
        alike = [other for other, theirs in zip(firsts, methods, strict=True) if theirs == method]
        keys = [key for key in sorted({key for each in alike for key in each}) if len({each.get(key) for each in alike}) > 1]
        words = [f"{key} {options.get(key, 'none')}" for key in keys]
        more = f" and {len(words) - SAID} more" if len(words) > SAID else ""
        name = ", ".join([method, *words[:SAID]]) + more
        names.append(f"{name} ({names.count(name) + 1})" if name in names else name)
    return [Group(name, runs) for name, runs in zip(names, found.values(), strict=True)]


def told(past: Past) -> dict[str, str]:
    """The options that make a run's experiment, as words."""
    return {key: plain_value(value) or "none" for key, value in past.told.items()}


def names_of(pasts: Sequence[Past]) -> list[str]:
    """What each run is called: within one series by its part in that."""
    alone = len({past.series for past in pasts}) == 1
    return [past.label if alone else title(past) for past in pasts]


def chapters(pasts: Sequence[Past]) -> list[Chapter]:
    apart = settings(pasts)
    found = []
    for setting in apart:
        behind = _behind(setting)
        where = f": {setting.name}" if len(apart) > 1 else ""
        if len(apart) > 1:
            behind.insert(0, "runs of other data or other tasks are in chapters of their own: accuracies do not compare")
        found.append(
            chapter(f"Results{where}", setting, methods, curves, forgetting, matrix, against_cost, differing, missing=behind)
        )
    return [*found, chapter("Each run in short", pasts, each_run, each_curve, missing=_faults(pasts))]


def heading(pasts: Sequence[Past]) -> str:
    """What the page is called."""
    groups = [group for setting in settings(pasts) for group in setting.groups]
    series = {past.series for past in pasts}
    name = next(iter(series)).name if len(series) == 1 and None not in series else "Comparison"
    return f"{name}: {len(pasts)} runs of {len(groups)} experiment{'s' if len(groups) != 1 else ''}"


def first_of_each(pasts: Sequence[Past]) -> list[tuple[str, Past]]:
    """Of every experiment its name and the run of the lowest seed, of the natural or the first class order."""
    groups = [group for setting in settings(pasts) for group in setting.groups]
    return [(group.name, min(group.runs, key=lambda past: past.options.get("seed") or 0)) for group in groups]


def _behind(setting: Setting) -> list[str]:
    """What the means leave out, in words."""
    lines = []
    for group in setting.groups:
        ahead = [past for past, _ in group.ahead]
        left = [past for past in group.runs if past not in ahead]
        if left:
            where = f"has learned {group.nb_tasks} tasks" if group.nb_tasks > 1 else "has learned a task"
            names = ", ".join(
                f"{title(past)} ({progress(past)} tasks, {past.status.get('status', 'unknown')})" for past in left
            )
            lines.append(f"{group.name}: means are over what {where}; not in them: {names}")
    return lines


def _faults(pasts: Sequence[Past]) -> list[str]:
    return [f"{title(past)}: {line}" for past in pasts for line in past.faults]


def pm(spread: tuple[float | None, float | None], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    return " ± ".join(f"{value:,.{digits}f}" for value in spread if value is not None)


def methods(setting: Setting) -> Exhibit:
    rows = []
    for group in setting.groups:
        cells = [pm(group.over(lambda _, outcome, name=name: outcome.figures.get(name))) for name in COLUMNS]
        sizes = [
            pm(group.over(lambda _, outcome, name=name: outcome.figures.get(name)), 0)
            for name in ("n_parameters", "n_exemplars")
        ]
        seconds = pm(group.over(lambda past, _: seconds_of(past)), 0)
        flops, _ = group.over(lambda past, _: flops_of(past))
        whole = f"{len(group.ahead)} of {len(group.runs)}" if len(group.ahead) < len(group.runs) else str(len(group.runs))
        rows.append([group.name, whole, group.nb_tasks, *cells, *sizes, seconds, None if flops is None else f"{flops:.3g}"])
    header = ["method", "runs", "tasks", *COLUMNS.values(), "parameters", "exemplars", "seconds", "FLOPs"]
    reads = "Mean ± sample standard deviation (n − 1) over seeds and class orders, in percent; a single run has no deviation."
    said = ""
    if len(setting.learned) > 1 and len({group.nb_tasks for _, group in setting.learned}) == 1:
        best = max(setting.learned, key=lambda each: each[1].over(lambda _, outcome: outcome.figures["avg_acc"])[0])[1]
        said = f"Highest average incremental accuracy: {best.name}; whether that is more than chance, this table cannot say."
    return Exhibit(
        "methods",
        f"{'Methods' if len(rows) > 1 else 'The experiment'}, mean ± deviation",
        reads,
        Table(header, rows),
        None,
        said,
    )


def curves(setting: Setting) -> Exhibit | None:
    lines, rows, xlabel = [], [], ""
    for place, group in setting.learned:
        mean, std = group.per_task(lambda outcome: outcome.accs)
        known, std_known = group.per_task(lambda outcome: outcome.accs_known)
        x, xlabel = group.ahead[0][1].axis()
        lines.append(Curve(f"{group.name} ({fmean(mean):.1f})", x, mean, std, place))
        for task, seen in enumerate(x):
            spread = [each and each[task] for each in (std, std_known)]
            rows.append([group.name, task + 1, seen, mean[task], spread[0], known[task], spread[1], len(group.ahead)])
    if not lines:
        return None
    header = ["method", "task", xlabel, "task unknown", "± std", "task known", "± std, known", "runs"]
    reads = "Accuracy on all classes seen so far, mean over runs; bands are ± one standard deviation, in brackets the average."
    picture = figures.curves(lines, xlabel=xlabel)
    return Exhibit("accuracy", "Accuracy as classes arrive", reads, Table(header, rows, digits=2), picture)


def forgetting(setting: Setting) -> Exhibit | None:
    lines, rows = [], []
    for place, group in setting.learned:
        if group.nb_tasks < 2:
            continue
        mean, std = group.per_task(lambda outcome: outcome.forgetting())
        lines.append(Curve(group.name, list(range(1, group.nb_tasks)), mean, std, place))
        rows += [[group.name, task + 1, lost, std and std[task]] for task, lost in enumerate(mean)]
    if not lines:
        return None
    reads = "How far each task ends below its best accuracy, mean over runs; bars are ± one standard deviation."
    picture = figures.spreads(lines, xlabel="task", ylabel="points lost")
    return Exhibit(
        "forgetting", "Forgetting of every task", reads, Table(["method", "task", "lost", "± std"], rows, digits=2), picture
    )


def matrix(setting: Setting) -> Exhibit | None:
    """Of an experiment alone, over several runs."""
    if len(setting.groups) > 1 or len(setting.groups[0].ahead) < 2:
        return None
    rows = zip(*(outcome.matrix for _, outcome in setting.groups[0].ahead), strict=True)
    means = [[fmean(values) for values in zip(*row, strict=True)] for row in rows]
    return matrix_of(means, "matrix", "Accuracy matrix, task unknown, mean over runs")


def against_cost(setting: Setting) -> Exhibit | None:
    rows: list[list[Any]] = []
    panels: dict[str, list[Curve]] = {"seconds": [], "FLOPs": []}
    for place, group in setting.learned:
        points = [(outcome.figures.get("avg_acc"), seconds_of(past), flops_of(past)) for past, outcome in group.ahead]
        rows += [[group.name, title(past), *point] for (past, _), point in zip(group.ahead, points, strict=True)]
        for panel, at in (("seconds", 1), ("FLOPs", 2)):
            known = [point for point in points if None not in (point[0], point[at])]
            if known:
                panels[panel].append(
                    Curve(group.name, [point[at] for point in known], [point[0] for point in known], place=place)
                )
    drawn = [
        (f"{words} of a run", unit, panels[words]) for words, unit in (("seconds", "s"), ("FLOPs", "FLOP")) if panels[words]
    ]
    if not drawn:
        return None
    reads = "Small marks are runs, large ones their mean; up is better, left is cheaper. Seconds compare on one machine only."
    picture = figures.against(drawn, ylabel="average accuracy (%)")
    header = ["method", "run", "average", "seconds", "FLOPs"]
    return Exhibit("accuracy-and-cost", "Accuracy and what it costs", reads, Table(header, rows, digits=1), picture)


def differing(setting: Setting) -> Exhibit | None:
    """What the experiments were told differently; None for one."""
    options = [told(group.runs[0]) for group in setting.groups]
    keys = [key for key in sorted({key for each in options for key in each}) if len({each.get(key) for each in options}) > 1]
    if not keys:
        return None
    rows = [[key, *(each.get(key, "") for each in options)] for key in keys]
    reads = "Options in which the experiments differ, but for seeds, class orders and where files lie."
    return Exhibit(
        "differences", "What they were told differently", reads, Table(["option", *(g.name for g in setting.groups)], rows)
    )


def _groups_of(pasts: Sequence[Past]) -> list[tuple[Group, Past]]:
    return [(group, past) for setting in settings(pasts) for group in setting.groups for past in group.runs]


def each_run(pasts: Sequence[Past]) -> Exhibit:
    rows, names = [], dict(zip(pasts, names_of(pasts), strict=True))
    for group, past in _groups_of(pasts):
        found = reached(past)
        values = [found.figures.get(name) if found else None for name in COLUMNS]
        rows.append([names[past], group.name, status(past), progress(past), *values, seconds_of(past), str(past.folder)])
    header = ["run", "method", "status", "tasks", *COLUMNS.values(), "seconds", "folder"]
    reads = "In percent, after the last task that each has learned; a run's own page is that of its folder."
    return Exhibit("runs", "The runs", reads, Table(header, rows, digits=2))


def each_curve(pasts: Sequence[Past]) -> Exhibit | None:
    """Of one setting, and not of more runs than can be told apart."""
    found = [(name, outcome) for name, past in zip(names_of(pasts), pasts, strict=True) if (outcome := reached(past))]
    if not 1 < len(found) <= 12 or len(settings(pasts)) > 1:
        return None
    lines = [
        Curve(f"{name} ({fmean(outcome.accs):.1f})", outcome.axis()[0], outcome.accs, place=place)
        for place, (name, outcome) in enumerate(found)
    ]
    most = max(outcome.nb_tasks for _, outcome in found)
    rows = [[task + 1, *(o.accs[task] if task < o.nb_tasks else None for _, o in found)] for task in range(most)]
    reads = "Accuracy on all classes seen so far, one line for each run; in brackets the average."
    picture = figures.curves(lines, xlabel=found[0][1].axis()[1])
    table = Table(["task", *(name for name, _ in found)], rows, digits=2)
    return Exhibit("accuracy-of-runs", "Each run on its way", reads, table, picture)
