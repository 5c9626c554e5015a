"""What stays of a run on disk: evaluations, accuracy matrix, summary, status. What is said of them is in continual/seeing.

A run's folder holds
    evaluations.jsonl   one line per evaluation; free of times, so that a resumed run gives the same bytes
    summary.json        the figures, the accuracy matrices and what the run cost, at the end
    status.json         how the run stands: preparing, running, done, preempted or failed

Accuracies, forgetting and backward transfer are in percent here (fractions in `metrics`); losses are means per image
or batch as they were given; times are seconds. "Task unknown" is class-incremental, "task known" task-incremental;
names of figures with task known end in `_known`.

A metric from outside (`registry.METRICS`) is a function `metric(matrix) -> float` of the accuracy matrix so far: fractions,
a list of rows, row i with i + 1 entries. Its value is kept as it gives it (not times 100), to 4 digits: under its name for
the matrix with task unknown, as NAME_known for that with task known. It must give the same for the same matrix, always.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from continual import metrics
from continual.errors import OptionsError, Preempted, one_line, plain
from continual.files import UNREADABLE, write_json
from continual.metrics import Matrix, Scores
from continual.registry import METRICS
from continual.seeing import progress
from continual.seeing.live import Live
from continual.seeing.progress import EpochBar, Pace
from continual.seeing.tables import FIGURES, KINDS, figures_table, per_task_table, report_command, summary_text
from continual.tasks import Task

EVALUATIONS, SUMMARY, STATUS = "evaluations.jsonl", "summary.json", "status.json"

STATUS_WORDS = ("preparing", "running", "done", "preempted", "failed")

# Every name of evaluations.jsonl, summary.json and a series' series.json; and how the names of losses begin.
KEYS = frozenset(
    [
        *(figure + suffix for figure in FIGURES for suffix in KINDS.values()),
        *("task", "epoch", "phase", "final", "acc_per_task", "acc_known_per_task", "test_acc1", "test_acc5", "mean_acc5"),
        *("test_loss", "train_lr", "train_loss", "n_parameters", "n_exemplars"),
        *("token_mean_dist", "token_min_dist", "token_max_dist"),
        *("nb_tasks", "nb_classes", "acc5", "accs", "accs_known", "matrix", "matrix_known", "time", "time_saving", "cost"),
        *("runs", "nb_runs"),
    ]
)
LOSS = "loss_"

Metric = Callable[[Matrix], float]


class Report:
    """Keeps the figures of one run; prints them when `console`, writes them when there is a `folder`.

    Every process of a run makes one and calls it alike; all but the main process with folder None and console False,
    which keeps the same figures in silence. nb_tasks: 0 until it is known. live: what else hears of them at once. where: what a
    failure's status gives as its place.

    Raises OptionsError when a metric from outside has a name that the record already has.
    """

    def __init__(self, folder: Path | None, *, nb_tasks: int = 0, console: bool, live: Live | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.nb_tasks = nb_tasks
        self.console = console
        self.live = live or Live()
        self._metrics = _metrics_from_outside()
        self.where: Callable[[], object] = lambda: "preparing"
        self._status = ""  # the last word that was written
        self._ends: list[Scores] = []  # the evaluation at the end of each task learned
        self._nb_seen: list[int] = []  # classes seen at the end of each task learned
        self._nb_bytes = 0  # of evaluations.jsonl, counted on every process alike
        self._pace = Pace("")
        if self.folder is not None and (self.folder / EVALUATIONS).exists():
            self._nb_bytes = (self.folder / EVALUATIONS).stat().st_size

    # What is said.

    def say(self, text: str) -> None:
        """Print text, where there is a console."""
        if self.console:
            progress.say(text)

    def epoch(self, title: str, *, epoch: int, nb_epochs: int, **how: Any) -> EpochBar:
        """The bar of one epoch: `with report.epoch("task 2/5 training", ...) as bar: bar.step(...)`.

        title: names the phase; epochs of equal title share one estimate of the time left. epoch: counts from 0.
        how: as `EpochBar` takes it.
        """
        if self._pace.title != title:
            self._pace = Pace(title)
        said = self.say if self.console else None
        return EpochBar(said, self._pace, epoch=epoch, nb_epochs=nb_epochs, **how)

    # What is measured.

    def evaluation(
        self,
        scores: Scores,
        *,
        task: Task,
        epoch: int,
        phase: str,
        final: bool,
        lr: float,
        train_losses: Mapping[str, float],
        nb_parameters: int,
        nb_exemplars: int,
        token_distances: Sequence[float] | None = None,
        step: int = 0,
    ) -> dict[str, Any]:
        """Take in one evaluation on the test images of tasks 0..task.index; append its line and return what it says.

        epoch: of its phase, counted from 0; step: of training, in the whole run. final: the last of this task; it enters the
        accuracy matrix for good, while any other stands in for its task's row in this one record only. train_losses: means
        over the epoch just done, `total` among them; empty when nothing was trained. token_distances: between the task
        tokens, one for every pair; None for a model without task tokens.

        Raises ValueError when the scores are not of this task, or tasks end out of order; OptionsError when a metric fails.
        """
        if task.index != len(self._ends) or scores.nb_tasks != task.index + 1:
            raise ValueError(
                f"scores of {scores.nb_tasks} tasks came for task {task.index} when {len(self._ends)} tasks had ended"
            )
        evaluations = [*self._ends, scores]
        record = {
            "task": task.index,
            "epoch": epoch,
            "phase": phase,
            "final": final,
            **_figures(evaluations),
            **_measured(self._metrics, evaluations),
            **_of_the_tests(evaluations),
            "train_lr": lr,
            **_mean_losses(train_losses),
            "n_parameters": nb_parameters,
            "n_exemplars": nb_exemplars,
            **_token_figures(token_distances),
        }
        self._append(record)
        if final:
            self._ends.append(scores)
            self._nb_seen.append(task.nb_seen)
        self._tell(record)
        self.live.evaluation(step, record, self._matrices() if final else {})
        return record

    def epoch_done(self, step: int, *, losses: Mapping[str, float], lr: float, speed: float | None, **_: object) -> None:
        """Hand on the means of an epoch of training. step: in the whole run, at its end. speed: images a second."""
        self.live.epoch(step, losses=losses, lr=lr, speed=speed)

    def _tell(self, record: Mapping[str, Any]) -> None:
        """Print one evaluation: tables at the end of a task, else one line."""
        task = f"{record['task'] + 1}/{self.nb_tasks}"
        if record["final"]:
            self.say(f"\nTask {task} learned, {self._nb_seen[-1]} classes seen. Accuracy (%)")
            self.say(per_task_table(record) + "\n\n" + figures_table(record) + "\n")
        else:
            self.say(
                f"task {task} {record['phase']} epoch {record['epoch'] + 1}  accuracy {record['acc']:.2f} "
                f"(task known {record['acc_known']:.2f})"
            )

    def finish(
        self,
        *,
        nb_parameters: int,
        nb_exemplars: int,
        seconds: float,
        seconds_saving: float = 0.0,
        cost: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Print the run's figures, write summary.json and return what it holds. seconds_saving: on checkpoints, of `seconds`.

        cost: see `Ledger.cost`; None leaves it out.

        Raises ValueError when no task has ended; OptionsError when a metric from outside fails.
        """
        if not self._ends:
            raise ValueError("no task has ended: nothing to sum up")
        summary = {
            **self.measured(),
            "n_parameters": nb_parameters,
            "n_exemplars": nb_exemplars,
            "time": round(seconds, 1),
            "time_saving": round(seconds_saving, 2),
            **({"cost": dict(cost)} if cost else {}),
        }
        self.live.end()
        if self.folder is not None:
            write_json(self.folder / SUMMARY, summary)
        self.say(summary_text(summary))
        if self.folder is not None:
            self.say(f"to look at it: {report_command(self.folder)}")
        return summary

    def measured(self) -> dict[str, Any]:
        """What a summary says of the accuracies at the end of every task so far."""
        return {
            "nb_tasks": len(self._ends),
            "nb_classes": list(self._nb_seen),
            **_figures(self._ends),
            **_measured(self._metrics, self._ends),
            "acc5": _percent(metrics.accuracy_top5(self._ends[-1])),
            "mean_acc5": _percent(fmean(metrics.accuracy_top5(scores) for scores in self._ends)),
            "accs": [_percent(metrics.accuracy(scores)) for scores in self._ends],
            "accs_known": [_percent(metrics.accuracy(scores, known=True)) for scores in self._ends],
            **{f"matrix{KINDS[words]}": matrix for words, matrix in self._matrices().items()},
        }

    def measured_at_ends(self) -> list[dict[str, Any]]:
        """What the record of the evaluation at the end of every task says of its accuracies, but for metrics from outside."""
        ends = [self._ends[: nb + 1] for nb in range(len(self._ends))]
        return [{**_figures(each), **_of_the_tests(each)} for each in ends]

    def _matrices(self) -> dict[str, list[list[float]]]:
        """The accuracy matrices of the tasks that have ended, with task unknown and known, in percent."""
        return {words: _percents(metrics.accuracy_matrix(self._ends, known=bool(end))) for words, end in KINDS.items()}

    def show(self, scores: Scores, *, task: Task) -> dict[str, Any]:
        """Print one evaluation without keeping it; returns its figures."""
        shown = {
            **_per_task(scores),
            "acc5_per_task": [_percent(right / nb) for right, nb in zip(scores.top5, scores.nb, strict=True)],
            "acc": _percent(metrics.accuracy(scores)),
            "acc_known": _percent(metrics.accuracy(scores, known=True)),
            "acc5": _percent(metrics.accuracy_top5(scores)),
        }
        self.say(f"\nTask {task.index + 1}/{self.nb_tasks}, {task.nb_seen} classes seen. Accuracy (%)")
        self.say(per_task_table(shown))
        self.say(
            f"all classes seen: {shown['acc']:.2f} with the task unknown, {shown['acc_known']:.2f} with it known; "
            f"top-5 {shown['acc5']:.2f}"
        )
        return shown

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep status.json: preparing inside; at the end done, or preempted or failed with the reason and the exit code.

        A run that was done stays done, unless it is told to be running.
        """
        if self.folder is not None and read_summary(self.folder) is None:
            self.status("preparing")
        try:
            yield
        except BaseException as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
            word = "preempted" if isinstance(error, Preempted) else "failed"
            if self._status:
                self.status(word, exit_code=code, message=f"{type(error).__name__}: {error}", where=str(self.where()))
            self.live.close(code)
            raise
        if self._status:
            self.status("done", exit_code=0)
        self.live.close(0)

    def status(self, word: str, *, exit_code: int | None = None, message: str = "", where: str = "") -> None:
        """Write status.json: word is preparing, running, done, preempted or failed.

        A disk that refuses it is only warned of: something else may already have gone wrong, and must not be hidden.
        """
        if word not in STATUS_WORDS:
            raise ValueError(f"status {word!r} is none of {', '.join(STATUS_WORDS)}")
        self._status = word
        if self.folder is None:
            return
        content = {"status": word, "exit_code": exit_code, "message": plain(message), "where": where}
        try:
            write_json(self.folder / STATUS, content)
        except OSError as error:
            self.say(f"warning: the status {word!r} could not be written: {error}")

    @property
    def nb_bytes(self) -> int:
        """Of the evaluations that were written to the folder."""
        return 0 if self.folder is None else self._nb_bytes

    def digest(self) -> str:
        """SHA-256 of the evaluations written so far; empty without a folder."""
        path = None if self.folder is None else self.folder / EVALUATIONS
        content = path.read_bytes()[: self._nb_bytes] if path and path.exists() else b""
        return hashlib.sha256(content).hexdigest() if path else ""

    # What a checkpoint keeps.

    def state_dict(self) -> dict[str, Any]:
        """Lists and numbers alone; equal on every process."""
        return {
            "scores": [scores.to_lists() for scores in self._ends],
            "nb_seen": list(self._nb_seen),
            "nb_bytes": self._nb_bytes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; `cut_off` then removes the evaluations written after it.

        When lines are missing from evaluations.jsonl, this is said, and the file goes on from what there is.
        """
        self._ends = [Scores.from_lists(rows) for rows in state["scores"]]
        self._nb_seen = list(state["nb_seen"])
        self._nb_bytes = state["nb_bytes"]
        if self.folder is None:
            return
        path = self.folder / EVALUATIONS
        content = path.read_bytes() if path.exists() else b""
        if len(content) < self._nb_bytes:
            whole_lines = content.rfind(b"\n") + 1
            self.say(f"warning: {path} lost {self._nb_bytes - whole_lines} of {self._nb_bytes} bytes; going on without them")
            self._nb_bytes = whole_lines

    def cut_off(self) -> None:
        """Remove the evaluations written after the state that was loaded: the resumed run makes them again."""
        if self.folder is not None and (path := self.folder / EVALUATIONS).exists() and path.stat().st_size > self._nb_bytes:
            os.truncate(path, self._nb_bytes)

    def _append(self, record: Mapping[str, Any]) -> None:
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        if self.folder is not None:
            with open(self.folder / EVALUATIONS, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())  # a checkpoint will count on these bytes
        self._nb_bytes += len(line)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What `Report.finish` wrote in a run's folder, once the run is done; else None."""
    try:
        if json.loads((folder / STATUS).read_text(encoding="utf-8"))["status"] != "done":
            return None
        return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except UNREADABLE:
        return None


def _figures(evaluations: Sequence[Scores]) -> dict[str, float]:
    """The figures after the last of these evaluations, with task unknown and known, in percent."""
    figures = {}
    for suffix in KINDS.values():
        accuracies = [metrics.accuracy(scores, known=bool(suffix)) for scores in evaluations]
        matrix = metrics.accuracy_matrix(evaluations, known=bool(suffix))
        figures[f"acc{suffix}"] = _percent(accuracies[-1])
        figures[f"avg_acc{suffix}"] = _percent(metrics.average_incremental_accuracy(accuracies))
        figures[f"forgetting{suffix}"] = _percent(metrics.forgetting(matrix))
        figures[f"bwt{suffix}"] = _percent(metrics.backward_transfer(matrix))
    return figures


def _metrics_from_outside() -> dict[str, Metric]:
    """The metrics of a user's script by name. Raises OptionsError for names that would meet others in the record."""
    found = METRICS.outside()
    for name in found:
        for key in (name, f"{name}_known"):
            if key in KEYS or key.startswith(LOSS) or (key != name and key in found):
                raise OptionsError(f"metric {name}: the record has something else by the name {key}; choose another name")
    return found


def _measured(functions: Mapping[str, Metric], evaluations: Sequence[Scores]) -> dict[str, float]:
    """What metrics from outside give after the last of these evaluations, with task unknown and known, as they give it."""
    return {
        name + suffix: _value(name, metric, metrics.accuracy_matrix(evaluations, known=bool(suffix)))
        for suffix in KINDS.values()
        for name, metric in functions.items()
    }


def _value(name: str, metric: Metric, matrix: Matrix) -> float:
    """metric(matrix), to 4 digits. Raises OptionsError when it fails or gives what is no finite number."""
    try:
        given = metric(matrix)
        value = math.nan if isinstance(given, str | bytes) else float(given)
    except Exception as error:
        raise OptionsError(f"metric {name}: it failed: {one_line(error)}") from error
    if not math.isfinite(value):
        raise OptionsError(f"metric {name}: it failed: {ascii(given)[:80]} is no finite number")
    return round(value, 4) + 0.0  # no -0.0


def _of_the_tests(evaluations: Sequence[Scores]) -> dict[str, Any]:
    """What else the test images tell after the last of these evaluations: accuracies per task, top-5 (percent), loss."""
    top5 = [metrics.accuracy_top5(each) for each in evaluations]
    return {
        **_per_task(evaluations[-1]),
        "test_acc1": _percent(metrics.accuracy(evaluations[-1])),
        "test_acc5": _percent(top5[-1]),
        "mean_acc5": _percent(metrics.average_incremental_accuracy(top5)),
        "test_loss": _rounded(metrics.mean_loss(evaluations[-1]), 6),
    }


def _per_task(scores: Scores) -> dict[str, list[float]]:
    """The accuracies on every task's test images, in percent, with task unknown and known."""
    per_task = {suffix: metrics.accuracy_per_task(scores, known=bool(suffix)) for suffix in KINDS.values()}
    return {f"acc{suffix}_per_task": [_percent(share) for share in shares] for suffix, shares in per_task.items()}


def _mean_losses(losses: Mapping[str, float]) -> dict[str, float | None]:
    """The training's losses under the names of the record."""
    return {
        "train_loss": _rounded(losses["total"], 6) if "total" in losses else None,
        **{f"{LOSS}{name}": _rounded(loss, 6) for name, loss in losses.items() if name != "total"},
    }


def _token_figures(distances: Sequence[float] | None) -> dict[str, float]:
    """Mean, least and largest distance between two task tokens, under the released log's names; 0 with one task."""
    if distances is None:
        return {}
    figures = {"mean": fmean, "min": min, "max": max}
    return {f"token_{name}_dist": _rounded(figure(distances or [0.0]), 6) for name, figure in figures.items()}


def _percent(share: float) -> float:
    return round(100 * share, 4) + 0.0  # no -0.0


def _percents(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[_percent(share) for share in row] for row in matrix]


def _rounded(number: float, digits: int) -> float | None:
    """None for what JSON cannot hold (a test loss may overflow without anything being wrong with the training)."""
    return round(number, digits) if math.isfinite(number) else None
