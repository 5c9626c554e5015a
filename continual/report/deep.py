"""Where the errors of a run come from, after every task: within tasks or between them, heads or features, bias or none.

`chapters` looks into the kept predictions and checkpoints; nothing is trained but linear probes. What each number is stands in
errors.py, representation.py, attention.py and diagnosis.py; where it comes from, in inside.py and study.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from continual.errors import one_line
from continual.report import answers, features, plots
from continual.report.diagnosis import Evidence
from continual.report.exhibit import Chapter, Exhibit, Table
from continual.report.inside import FAILS, describe
from continual.report.reading import Past
from continual.report.study import AFTER, Study, cells, numbered, study

SHADES = [plots.COLOURS[5], plots.COLOURS[4], "#7d7d7d"]
SMALL = 20_000_000  # bytes of a checkpoint, up to which several threads only wait for each other


def chapters(past: Past) -> list[Chapter]:
    """The analysis of one run. What does not apply or cannot be had is told in `missing`."""
    with _threads(past), np.errstate(invalid="ignore"):
        found = study(past)
        if not found.answers:
            missing = [*found.inside.missing, "no answers on test images are to be had"]
            return [Chapter("Where the errors come from", [], missing)]
        without = _no_features(found)
        bias, know = (answers.newest, answers.logits, answers.norms), (features.probes, features.over_time, features.drift)
        return [
            _chapter("Where the errors come from", found, verdict, missing=found.inside.missing),
            _chapter("Errors within and between tasks", found, answers.parts, answers.parts_now, answers.confusions),
            _chapter("Bias towards the newest classes", found, *bias, missing=_no_norms(found)),
            _chapter("Calibration", found, answers.calibration, answers.ece),
            _chapter("What the features know", found, *know, missing=without),
            _chapter("Task tokens", found, features.distances, features.token_plane, features.gaze, missing=_no_tokens(found)),
            _chapter("Which tasks are alike", found, features.alike, missing=without),
        ]


def _chapter(title: str, found: Study, *makers: Callable[[Study], Exhibit | None], missing: Sequence[str] = ()) -> Chapter:
    """What each maker makes; None of a maker is nothing to show, and what fails on an odd run or model is told."""
    exhibits, told = [], list(missing)
    for maker in makers:
        try:
            exhibits.append(maker(found))
        except (*FAILS, LookupError, ArithmeticError) as error:
            told.append(f"{maker.__name__.strip('_').replace('_', ' ')}: could not be made ({one_line(error)[:200]})")
    return Chapter(title, [exhibit for exhibit in exhibits if exhibit is not None], told)


@contextmanager
def _threads(past: Past) -> Iterator[None]:
    """One thread for small models: on a machine with other work, more of them wait for each other most of the time."""
    if not past.stored or past.stored[-1].manifest.get("bytes", 0) > SMALL:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _no_norms(found: Study) -> list[str]:
    views = found.inside.views
    if views and all(view.norms is None for view in views.values()):
        return ["weight norms: this model has no linear layers that give each class once"]
    return []


def _no_features(found: Study) -> list[str]:
    if not found.views:
        return ["features: neither checkpoints nor images are to be had, see above"]
    if "patches" not in found.kinds:
        return ["the model has no `encoder` whose maps could be read: its embeddings alone are looked at"]
    return []


def _no_tokens(found: Study) -> list[str]:
    if found.inside.views and all(view.tokens is None for view in found.inside.views.values()):
        return ["this model has no task tokens"]
    if found.inside.attention is None:
        return ["attention: the newest checkpoint or the images are not to be had, see above"]
    return []


def verdict(found: Study) -> Exhibit:
    tasks = list(found.verdicts)
    evidence, told = zip(*found.verdicts.values(), strict=True)
    header = ["after task", "verdict", "error", "within", "newer", "older", "with constant", "own, probed images", "new heads"]
    header += ["probe then", "probe now", "untrained", "CKA"]
    rows = []
    for task, e, name in zip(tasks, evidence, [each.name for each in told], strict=True):
        numbers = [e.error, e.within, e.newer, e.older, e.shifted, e.own, e.probe, e.then, e.now, e.untrained, e.cka]
        rows.append([task + 1, name, *cells(*numbers)])
    pieces = np.array([_undone(each) for each in evidence]).T
    names = ["undone by one constant", "undone by new heads beyond that", "left"]
    figure = plots.columns(
        numbered(tasks), list(zip(names, pieces, strict=True)), xlabel=AFTER, ylabel="error (%)", colours=SHADES
    )
    seen = describe(found.inside)
    return Exhibit(
        "verdict",
        "Which fault dominates",
        "Each column is the error after a task: the part that one constant on the newest task's logits would undo, what new "
        "linear heads on the same features would undo beyond that, and the rest; a diagnosis, since both are fitted for it. "
        "New heads are known for the checkpoints looked into.",
        Table(header, rows),
        figure,
        f"After task {tasks[-1] + 1}: {told[-1].name}. {told[-1].sentence} "
        f"(Probes: {seen['training']} training and {seen['test']} test images, {seen['checkpoints']} checkpoints.)",
    )


def _undone(e: Evidence) -> tuple[float, float, float]:
    constant, heads = (np.nan_to_num(part) for part in (e.by_constant, e.by_heads))
    constant = min(constant, e.error)
    heads = min(max(0.0, heads - constant), e.error - constant)
    return constant, heads, e.error - constant - heads
