"""All numbers of "where errors come from" of one run, computed once: answers, probes, similarities, and the evidence.

Letters:  n images   T tasks learned   V checkpoints looked into
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from continual.report import errors, representation
from continual.report.diagnosis import NONE, Evidence, Verdict, diagnosis
from continual.report.inside import FEATURES, Inside, Reader
from continual.report.reading import Past
from continual.runs.predictions import Predictions

Probe = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # training features, labels, test features -> answers
AFTER, OF = "after task", "test images of task"  # axes
KINDS = {"patches": "encoder (mean of the last map)", "embeddings": "task embeddings"}


@dataclass(eq=False)
class Study:
    """answers: what was answered after each task (from 0). inside: what the checkpoints give. options: of the run."""

    answers: dict[int, Predictions]
    inside: Inside
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def splits(self) -> dict[int, errors.Split]:
        return {task: errors.split(found) for task, found in self.answers.items()}

    @cached_property
    def shifted(self) -> dict[int, tuple[float, float]]:
        """Accuracy with the best constant on the newest task's logits, and that constant."""
        return {task: errors.with_constants(found) for task, found in self.answers.items()}

    @cached_property
    def shifted_each(self) -> dict[int, float]:
        """Accuracy with the best constant on every task's logits."""
        return {task: errors.with_constants(found, newest_only=False)[0] for task, found in self.answers.items()}

    @property
    def views(self) -> list[int]:
        """Tasks whose checkpoints see images."""
        return [task for task, view in self.inside.views.items() if view.embeddings is not None]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if self.inside.features(kind)]

    @property
    def nb_tasks(self) -> int:
        """Tasks of the images chosen."""
        return 0 if self.inside.samples is None else int(self.inside.samples.t.max()) + 1

    @cached_property
    def own(self) -> dict[int, np.ndarray]:
        """Percent of the chosen test images that the model answers rightly, by task, (T,) each; NaN for tasks to come."""
        found = {}
        for task in self.views:
            if (answers := self.answers.get(task)) is not None:
                hits = np.full(1 + max(self.inside.places.max(), answers.places.max()), False)
                hits[answers.places] = answers.answers == answers.labels
                found[task] = self._per_task(hits[self.inside.places[self._test(task)]], self._test(task))
        return found

    def _test(self, task: int | None = None) -> np.ndarray:
        """Which of the chosen images are for testing, of the tasks seen."""
        return self.inside.is_test & (self.inside.samples.t <= (self.nb_tasks if task is None else task))

    def _per_task(self, hits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return representation.per_task(hits, self.inside.samples.t[rows], self.nb_tasks)

    def _probed(self, features: np.ndarray, task: int | None, probe: Probe = representation.linear_probe) -> np.ndarray:
        """Percent by task of what a probe answers rightly that was trained on the classes of tasks up to `task` (None: all)."""
        samples, rows = self.inside.samples, self._test(task)
        train = ~self.inside.is_test & (samples.t <= (self.nb_tasks if task is None else task))
        answers = probe(features[train], samples.y[train], features[rows])
        return self._per_task(answers == samples.y[rows], rows)

    @cached_property
    def probes(self) -> dict[str, dict[int, np.ndarray]]:
        """By kind of features and task: accuracy of a linear probe for the classes seen."""
        return {kind: {t: self._probed(x, t) for t, x in self.inside.features(kind).items()} for kind in self.kinds}

    @cached_property
    def means(self) -> dict[str, dict[int, np.ndarray]]:
        """By kind of features and task: accuracy of the nearest class mean for the classes seen."""
        nearest = representation.nearest_mean
        return {kind: {t: self._probed(x, t, nearest) for t, x in self.inside.features(kind).items()} for kind in self.kinds}

    @cached_property
    def fixed(self) -> dict[int, np.ndarray]:
        """Accuracy of a linear probe for all classes of the run so far, at every checkpoint; -1: of untrained features."""
        if not self.kinds:
            return {}
        features = dict(self.inside.features(self.kinds[0]))
        if self.inside.untrained is not None:
            features[-1] = getattr(self.inside.untrained, self.kinds[0])
        return {task: self._probed(x, None) for task, x in features.items() if x is not None}

    @cached_property
    def cka(self) -> dict[str, np.ndarray]:
        """By kind: similarity of task j's test images' features after task t and after task j itself, (V, T); else NaN."""
        found = {}
        for kind in self.kinds:
            features = self.inside.features(kind)
            found[kind] = np.full((len(self.views), self.nb_tasks), np.nan)
            for row, task in enumerate(self.views):
                for then in [each for each in self.views if each <= task]:
                    images = self.inside.is_test & (self.inside.samples.t == then)
                    x, y = features[then][images], features[task][images]
                    if y.shape[1] < FEATURES:
                        y = y[:, : x.shape[1]]  # the same tokens' embeddings
                    found[kind][row, then] = representation.linear_cka(x, y)
        return found

    def evidence(self, task: int) -> Evidence:
        """What is known after a task."""
        parts = self.splits[task].overall()
        known = dict(zip(("shifted", "constant"), self.shifted[task], strict=True))
        if task in self.own:
            rows = self._test(task)
            weights = np.bincount(self.inside.samples.t[rows], minlength=self.nb_tasks)
            probes = [_mean(self.probes[kind][task], weights) for kind in self.kinds]
            known |= {"own": _mean(self.own[task], weights), "probe": max(probes, default=NONE)}
        old = [then for then in self.views if then < task]
        if task in self.views and old and -1 in self.fixed:
            then = np.nanmean([self.fixed[each][each] for each in old])
            now, untrained = (np.nanmean(self.fixed[each][old]) for each in (task, -1))
            cka = self.cka[self.kinds[0]][self.views.index(task)][old]
            cka = float(np.nanmean(cka)) if not np.isnan(cka).all() else NONE
            known |= {"then": float(then), "now": float(now), "untrained": float(untrained), "cka": cka}
        return Evidence(parts["within"], parts["newer"], parts["older"], **known)

    @cached_property
    def verdicts(self) -> dict[int, tuple[Evidence, Verdict]]:
        return {task: (found, diagnosis(found)) for task in self.answers for found in [self.evidence(task)]}


def study(past: Past) -> Study:
    return Study(*Reader(past).read(), past.options)


def _mean(shares: np.ndarray, weights: np.ndarray) -> float:
    known = ~np.isnan(shares) & (weights > 0)
    return float((shares[known] * weights[known]).sum() / weights[known].sum()) if known.any() else NONE


def numbered(tasks: list[int]) -> list[int]:
    return [task + 1 for task in tasks]


def cells(*numbers: float) -> list[float | None]:
    """NaN is an empty cell."""
    return [None if number != number else float(number) for number in numbers]
