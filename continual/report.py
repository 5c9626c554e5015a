"""What people see of a run, and what stays of it on disk: progress, evaluations, accuracy matrix, summary, status.

A run's folder holds
    evaluations.jsonl   one line per evaluation; free of times, so that a resumed run gives the same bytes
    summary.json        the figures and the accuracy matrices, at the end
    status.json         how the run stands: preparing, running, done, preempted or failed

Accuracies, forgetting and backward transfer are in percent here (fractions in `metrics`); losses are means per image
or batch as they were given; times are seconds. "Task unknown" is class-incremental, "task known" task-incremental;
names of figures with task known end in `_known`.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from time import monotonic
from typing import Any

from tqdm import tqdm

from continual import metrics
from continual.errors import Preempted, plain
from continual.files import UNREADABLE, write_json
from continual.metrics import Scores
from continual.tasks import Task

Losses = Mapping[str, float] | Callable[[], Mapping[str, float]]

EVALUATIONS, SUMMARY, STATUS = "evaluations.jsonl", "summary.json", "status.json"

STATUS_WORDS = ("preparing", "running", "done", "preempted", "failed")

# The figures of a run, as named in evaluations.jsonl and summary.json, and as people read them.
FIGURES = {
    "acc": "last accuracy",
    "avg_acc": "average incremental accuracy",
    "forgetting": "forgetting",
    "bwt": "backward transfer",
}

COLUMNS = 10  # tasks side by side in a table; ten keep it within 100 characters
REFRESH = 0.3  # seconds between two refreshes of a progress bar
SHORT_EPOCH = 1.0  # seconds; shorter epochs do not get a line each
MANY_EPOCHS = 100  # nor do epochs of longer phases
LINES_PER_PHASE = 10  # for those
SILENCE = 600.0  # seconds; after this long without a line, an epoch gets one anyway


def say(text: str) -> None:
    """Print text as plain lines, above a progress bar if there is one; a narrow encoding must not stop a run over a ± sign."""
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(plain(text).encode(encoding, errors="replace").decode(encoding), file=sys.stdout)
    sys.stdout.flush()


class Report:
    """Keeps the figures of one run; prints them when `console`, writes them when there is a `folder`.

    Every process of a run makes one and calls it alike; all but the main process with folder None and console False,
    which keeps the same figures in silence. nb_tasks: 0 until it is known. where: what a failure's status gives as its place.
    """

    def __init__(self, folder: Path | None, *, nb_tasks: int = 0, console: bool) -> None:
        self.folder = None if folder is None else Path(folder)
        self.nb_tasks = nb_tasks
        self.console = console
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
            say(text)

    def epoch(self, title: str, *, epoch: int, nb_epochs: int, nb_steps: int, first_step: int = 0) -> "EpochBar":
        """The bar of one epoch: `with report.epoch("task 2/5 training", ...) as bar: bar.step(...)`.

        title: names the phase; epochs of equal title share one estimate of the time left. epoch: counts from 0.
        nb_steps: steps of a whole epoch. first_step: steps done before, when an epoch is resumed.
        """
        if self._pace.title != title:
            self._pace = Pace(title)
        return EpochBar(self, self._pace, epoch=epoch, nb_epochs=nb_epochs, nb_steps=nb_steps, first_step=first_step)

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
    ) -> dict[str, Any]:
        """Take in one evaluation on the test images of tasks 0..task.index; append its line and return what it says.

        epoch: of its phase, counted from 0. final: the last of this task; it enters the accuracy matrix for good,
        while any other stands in for its task's row in this one record only. train_losses: means over the epoch just
        done, `total` among them; empty when nothing was trained. token_distances: between the task tokens, one for every
        pair; None for a model without task tokens.

        Raises ValueError when the scores are not of this task, or tasks end out of order.
        """
        if task.index != len(self._ends) or scores.nb_tasks != task.index + 1:
            raise ValueError(
                f"scores of {scores.nb_tasks} tasks came for task {task.index} when {len(self._ends)} tasks had ended"
            )
        evaluations = [*self._ends, scores]
        figures = _figures(evaluations)
        top5 = [metrics.accuracy_top5(each) for each in evaluations]
        record = {
            "task": task.index,
            "epoch": epoch,
            "phase": phase,
            "final": final,
            **figures,
            "acc_per_task": [_percent(share) for share in metrics.accuracy_per_task(scores)],
            "acc_known_per_task": [_percent(share) for share in metrics.accuracy_per_task(scores, known=True)],
            "test_acc1": figures["acc"],
            "test_acc5": _percent(top5[-1]),
            "mean_acc5": _percent(metrics.average_incremental_accuracy(top5)),
            "test_loss": _rounded(metrics.mean_loss(scores), 6),
            "train_lr": lr,
            "train_loss": _rounded(train_losses["total"], 6) if "total" in train_losses else None,
            **{f"loss_{name}": _rounded(loss, 6) for name, loss in train_losses.items() if name != "total"},
            "n_parameters": nb_parameters,
            "n_exemplars": nb_exemplars,
            **_token_figures(token_distances),
        }
        self._append(record)
        if final:
            self._ends.append(scores)
            self._nb_seen.append(task.nb_seen)
            self.say(f"\nTask {task.index + 1}/{self.nb_tasks} learned, {self._nb_seen[-1]} classes seen. Accuracy (%)")
            self.say(per_task_table(record) + "\n\n" + figures_table(record) + "\n")
        else:
            self.say(
                f"task {task.index + 1}/{self.nb_tasks} {phase} epoch {epoch + 1}  accuracy {record['acc']:.2f} "
                f"(task known {record['acc_known']:.2f})"
            )
        return record

    def finish(self, *, nb_parameters: int, nb_exemplars: int, seconds: float, seconds_saving: float = 0.0) -> dict[str, Any]:
        """Print the run's figures, write summary.json and return what it holds. seconds_saving: on checkpoints, of `seconds`.

        Raises ValueError when no task has ended.
        """
        if not self._ends:
            raise ValueError("no task has ended: nothing to sum up")
        summary = {
            "nb_tasks": len(self._ends),
            "nb_classes": list(self._nb_seen),
            **_figures(self._ends),
            "acc5": _percent(metrics.accuracy_top5(self._ends[-1])),
            "mean_acc5": _percent(fmean(metrics.accuracy_top5(scores) for scores in self._ends)),
            "accs": [_percent(metrics.accuracy(scores)) for scores in self._ends],
            "accs_known": [_percent(metrics.accuracy(scores, known=True)) for scores in self._ends],
            "matrix": _percents(metrics.accuracy_matrix(self._ends)),
            "matrix_known": _percents(metrics.accuracy_matrix(self._ends, known=True)),
            "n_parameters": nb_parameters,
            "n_exemplars": nb_exemplars,
            "time": round(seconds, 1),
            "time_saving": round(seconds_saving, 2),
        }
        if self.folder is not None:
            write_json(self.folder / SUMMARY, summary)
        self.say(summary_text(summary))
        return summary

    def show(self, scores: Scores, *, task: Task) -> dict[str, Any]:
        """Print one evaluation without keeping it; returns its figures."""
        shown = {
            "acc_per_task": [_percent(share) for share in metrics.accuracy_per_task(scores)],
            "acc_known_per_task": [_percent(share) for share in metrics.accuracy_per_task(scores, known=True)],
            "acc": _percent(metrics.accuracy(scores)),
            "acc_known": _percent(metrics.accuracy(scores, known=True)),
        }
        self.say(f"\nTask {task.index + 1}/{self.nb_tasks}, {task.nb_seen} classes seen. Accuracy (%)")
        self.say(per_task_table(shown))
        self.say(f"all classes seen: {shown['acc']:.2f} with the task unknown, {shown['acc_known']:.2f} with it known")
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
            raise
        if self._status:
            self.status("done", exit_code=0)

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
    def begun(self) -> bool:
        """Whether an evaluation was ever written to the folder."""
        return self.folder is not None and self._nb_bytes > 0

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


class Pace:
    """How fast the steps of one phase go, over its epochs: seconds inside epochs, without evaluations and the like."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.nb_steps = 0
        self.seconds = 0.0
        self.last_line = monotonic()


class EpochBar:
    """One epoch: a bar on a terminal that vanishes at the end, and a plain line at the end of (some) epochs everywhere.

    Every epoch of a phase gets its line, unless epochs are short or many: then about ten per phase do. The last one
    always does, and so does any that ends a silence of ten minutes.
    """

    def __init__(self, report: Report, pace: Pace, *, epoch: int, nb_epochs: int, nb_steps: int, first_step: int = 0) -> None:
        self._report = report
        self._pace = pace
        self._epoch, self._nb_epochs, self._nb_steps = epoch, nb_epochs, nb_steps
        self._first_step = self._done = first_step
        self._nb_images = 0
        self._losses: Losses = {}
        self._title = f"{pace.title} epoch {epoch + 1}/{nb_epochs}"
        self._bar: tqdm | None = None
        self._start = self._refreshed = monotonic()

    def __enter__(self) -> "EpochBar":
        self._start = self._refreshed = monotonic()
        if self._report.console and sys.stderr.isatty():
            self._bar = tqdm(
                desc=self._title,
                total=self._nb_steps,
                initial=self._first_step,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} |{bar:12}| {n_fmt}/{total_fmt}{postfix}",
            )
        return self

    def step(self, nb_images: int, losses: Losses) -> None:
        """One step is done. nb_images: of all processes together. losses: name -> mean so far, or a function that
        gives these. It is called only when a line is shown, so it may wait for an accelerator.
        """
        self._done += 1
        self._nb_images += nb_images
        self._losses = losses
        if self._bar is not None and monotonic() - self._refreshed >= REFRESH:
            self._bar.n = self._done
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.refresh()
            self._refreshed = monotonic()

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if error_type is not None or not self._report.console:
            return
        if self._line_due():
            self._report.say(f"{self._title}  {self._state()}".rstrip())
            self._pace.last_line = monotonic()
        self._pace.seconds += self._seconds()
        self._pace.nb_steps += self._done - self._first_step

    def _seconds(self) -> float:
        return monotonic() - self._start

    def _line_due(self) -> bool:
        number = self._epoch + 1
        few = self._nb_epochs >= MANY_EPOCHS or self._seconds() < SHORT_EPOCH
        every = math.ceil(self._nb_epochs / LINES_PER_PHASE) if few else 1
        silence = monotonic() - self._pace.last_line
        return number % every == 0 or number == self._nb_epochs or silence >= SILENCE

    def _state(self) -> str:
        """clf 0.1234 kd 0.0456 total 0.168  812 img/s  left 0:01:23"""
        losses = self._losses() if callable(self._losses) else self._losses
        parts = [" ".join(f"{name} {loss:.4g}" for name, loss in losses.items())]
        seconds = self._seconds()
        if seconds > 0 and self._nb_images:
            parts.append(f"{self._nb_images / seconds:.0f} img/s")
        left = (self._nb_epochs - self._epoch) * self._nb_steps - self._done  # steps of the phase
        steps = self._pace.nb_steps + self._done - self._first_step
        if left > 0 and steps:
            parts.append(f"left {duration((self._pace.seconds + seconds) / steps * left)}")
        return "  ".join(part for part in parts if part)


def summarise(summaries: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Several runs (seeds, class orders) as one: a text table, and for every figure {"mean", "std", "values"}.

    std is the sample standard deviation (n - 1), None for one run. Raises ValueError when there is no run.
    """
    if not summaries:
        raise ValueError("no run to sum up")
    names = [name + suffix for suffix in ("", "_known") for name in FIGURES]
    names += ["acc5", "mean_acc5", "n_parameters", "n_exemplars", "time"]
    series = {name: _spread([summary[name] for summary in summaries]) for name in names}
    rows = [[words, *(_mean_std(series[name + suffix]) for suffix in ("", "_known"))] for name, words in FIGURES.items()]
    nb_runs = len(summaries)
    title = f"Mean ± standard deviation over {nb_runs} runs, in percent" if nb_runs > 1 else "One run, in percent"
    text = [
        title,
        text_table(["", "task unknown", "task known"], rows),
        f"parameters {series['n_parameters']['mean']:,.0f}, exemplars kept {series['n_exemplars']['mean']:,.0f}, "
        f"time {duration(series['time']['mean'])} per run",
    ]
    return "\n".join(text), {"nb_runs": nb_runs, **series}


def summary_text(summary: Mapping[str, Any]) -> str:
    """The figures of `Report.finish` as text: accuracy matrices, figures, size and time."""
    blocks = []
    for name, kind in (("matrix", "unknown"), ("matrix_known", "known")):
        blocks.append(f"Accuracy (%) on each task's test images, task {kind}\n{matrix_table(summary[name])}")
    if summary["nb_tasks"] > COLUMNS:
        blocks.append(f"The whole matrices are in {SUMMARY}.")
    blocks.append(figures_table(summary))
    blocks.append(
        f"parameters {summary['n_parameters']:,}, exemplars kept {summary['n_exemplars']:,}, time {duration(summary['time'])}"
    )
    return "\n" + "\n\n".join(blocks) + "\n"


def matrix_table(matrix: Sequence[Sequence[float]]) -> str:
    """An accuracy matrix in percent: row i after task i, column j task j.

    Beyond ten tasks the two rows that tell most: each task when it was learned (the diagonal), and at the end.
    """
    if len(matrix) <= COLUMNS:
        header = ["task", *(str(j + 1) for j in range(len(matrix)))]
        rows = [[f"after task {i + 1}", *(f"{share:.1f}" for share in row)] for i, row in enumerate(matrix)]
        return text_table(header, rows)
    return _blocks({"when learned": [row[-1] for row in matrix], "at the end": matrix[-1]})


def per_task_table(record: Mapping[str, Any]) -> str:
    """The accuracies per task of one evaluation's record, ten tasks side by side; last, how far apart its task tokens are."""
    table = _blocks({"task unknown": record["acc_per_task"], "task known": record["acc_known_per_task"]})
    if "token_mean_dist" not in record:
        return table
    mean, least, most = (record[f"token_{name}_dist"] for name in ("mean", "min", "max"))
    return f"{table}\ndistance between task tokens: mean {mean:.3f}, min {least:.3f}, max {most:.3f}"


def figures_table(figures: Mapping[str, Any]) -> str:
    """The four figures of a record or a summary, in percent, with task unknown and known."""
    kinds = (("task unknown", ""), ("task known", "_known"))
    rows = [[words, *(f"{figures[name + suffix]:.2f}" for name in FIGURES)] for words, suffix in kinds]
    return text_table(["", "accuracy", *list(FIGURES.values())[1:]], rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: first column to the left, the others to the right, a rule below the header. Rows may end early."""
    widths = [max(len(row[i]) for row in [header, *rows] if i < len(row)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))
        return "  ".join([row[0].ljust(widths[0]), *others]).rstrip()

    return "\n".join([line(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *(line(row) for row in rows)])


def duration(seconds: float) -> str:
    """h:mm:ss, with days before it once there are any: 3661 -> 1:01:01, 90061 -> 1 d 1:01:01."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d " * (days > 0) + f"{hour}:{minute:02}:{second:02}"


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
    for suffix, known in (("", False), ("_known", True)):
        accuracies = [metrics.accuracy(scores, known=known) for scores in evaluations]
        matrix = metrics.accuracy_matrix(evaluations, known=known)
        figures[f"acc{suffix}"] = _percent(accuracies[-1])
        figures[f"avg_acc{suffix}"] = _percent(metrics.average_incremental_accuracy(accuracies))
        figures[f"forgetting{suffix}"] = _percent(metrics.forgetting(matrix))
        figures[f"bwt{suffix}"] = _percent(metrics.backward_transfer(matrix))
    return figures


def _token_figures(distances: Sequence[float] | None) -> dict[str, float]:
    """Mean, least and largest distance between two task tokens, under the released log's names; 0 with one task."""
    if distances is None:
        return {}
    figures = {"mean": fmean, "min": min, "max": max}
    return {f"token_{name}_dist": _rounded(figure(distances or [0.0]), 6) for name, figure in figures.items()}


def _blocks(rows: Mapping[str, Sequence[float]]) -> str:
    """Rows of one number per task as tables of at most ten columns, below each other."""
    nb_tasks = max(len(row) for row in rows.values())
    tables = []
    for first in range(0, nb_tasks, COLUMNS):
        tasks = range(first, min(first + COLUMNS, nb_tasks))
        cells = [[words, *(f"{row[j]:.1f}" for j in tasks)] for words, row in rows.items()]
        tables.append(text_table(["task", *(str(j + 1) for j in tasks)], cells))
    return "\n\n".join(tables)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = round(stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(fmean(values), 4), "std": std, "values": list(values)}


def _mean_std(spread: Mapping[str, Any]) -> str:
    return f"{spread['mean']:.2f}" if spread["std"] is None else f"{spread['mean']:.2f} ± {spread['std']:.2f}"


def _percent(share: float) -> float:
    return round(100 * share, 4) + 0.0  # no -0.0


def _percents(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[_percent(share) for share in row] for row in matrix]


def _rounded(number: float, digits: int) -> float | None:
    """None for what JSON cannot hold (a test loss may overflow without anything being wrong with the training)."""
    return round(number, digits) if math.isfinite(number) else None
