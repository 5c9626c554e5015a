"""An evaluation that is only looked at (`--eval`): by task and by class on the screen, and by image as CSV."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from continual.command import keep_out_of
from continual.errors import OptionsError
from continual.files import replacing
from continual.metrics import Scores
from continual.options import Options
from continual.runs import folders
from continual.runs.experiment import Experiment
from continual.runs.folders import Place
from continual.runs.predictions import Predictions
from continual.runs.record import Report
from continual.seeing.answers import csv_line
from continual.seeing.tables import text_table
from continual.tasks import Task

TOP = 5
COLUMNS = ("place", "path", "class", "task", "answer", "answer_known", "probability", "probability_known")


def check(options: Options, place: Place) -> None:
    """Raise OptionsError if the file of `predictions` lies in a folder of the run or its series, or cannot be written."""
    if options.run.predictions:
        own = [place.logs, place.checkpoints]
        own += [each.parent for each in own if (each.parent / folders.PLACE).exists()]
        keep_out_of(own, options.run.predictions, "predictions")


def show(report: Report, scores: Scores, found: Predictions | None, exp: Experiment, task: Task) -> dict[str, Any]:
    """Print one evaluation, and write it to the file of `predictions`. found: None on all processes but the main one.

    Returns the figures that are printed, in percent; those of every class, on the main process, under "per_class".
    """
    shown = report.show(scores, task=task)
    if found is None:
        return shown
    ranked = torch.from_numpy(found.logits).topk(min(TOP, found.logits.shape[1]), dim=1).indices.numpy()  # (n, 5)
    names = [str(row["name"]) for row in exp.benchmark.classes()]
    per_class = list(of_classes(found, ranked, names))
    header = ["class", "task", "images", "task unknown", "top-5", "task known"]
    rows = [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()] for row in per_class]
    report.say(f"\n{text_table(header, rows)}")
    if exp.options.run.predictions:
        path = Path(exp.options.run.predictions)
        write(path, found, ranked, names, exp.benchmark.test_samples.x)
        report.say(f"\nthe answers on {len(found.labels):,} test images are in {path}")
    return {**shown, "per_class": per_class}


def of_classes(found: Predictions, ranked: np.ndarray, names: list[str]) -> Iterator[dict[str, Any]]:
    """Of every class seen: name, task, number of images, and accuracies in percent. ranked: (n, 5), the likeliest labels."""
    hits = {
        "acc": found.answers == found.labels,
        "acc5": (ranked == found.labels[:, None]).any(1),
        "acc_known": found.answers_known == found.labels,
    }
    for label, task in enumerate(found.task_of.tolist()):
        of_class = found.labels == label
        shares = {name: round(100 * float(hit[of_class].mean()), 4) for name, hit in hits.items()}
        yield {"class": names[label], "task": task, "images": int(of_class.sum()), **shares}


def write(path: Path, found: Predictions, ranked: np.ndarray, names: list[str], x: np.ndarray) -> None:
    """One line an image; x: all test images, or their paths. Raises OptionsError where that cannot be written."""
    try:
        with replacing(path.absolute()) as file:
            file.write(csv_line([*COLUMNS, *(f"top_{rank}" for rank in range(1, TOP + 1))]))
            for cells in _lines(found, ranked, names, x):
                file.write(csv_line(cells))
    except OSError as error:
        raise OptionsError(f"predictions: {path} cannot be written: {error.strerror or error}") from None


def _lines(found: Predictions, ranked: np.ndarray, names: list[str], x: np.ndarray) -> Iterator[list[object]]:
    """Place among the test images, path (if they are files), class, its task (from 0), answers and their probabilities."""
    files, tasks = x.dtype.kind == "U", found.tasks
    elsewhere = found.task_of != tasks[:, None]  # (n, C_all)
    sure = _probabilities(found.logits, found.answers)
    sure_known = _probabilities(np.where(elsewhere, -np.inf, found.logits), found.answers_known)
    for row, place in enumerate(found.places.tolist()):
        labels = [int(each[row]) for each in (found.labels, found.answers, found.answers_known)]
        name, answer, known = (names[label] for label in labels)
        best = [names[label] for label in ranked[row].tolist()]
        cells = [place, str(x[place]) if files else "", name, int(tasks[row]), answer, known]
        yield [*cells, f"{sure[row]:.6f}", f"{sure_known[row]:.6f}", *best, *[""] * (TOP - len(best))]


def _probabilities(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The softmax of each row (n, C_all), at one label: (n,)."""
    log = torch.from_numpy(logits).log_softmax(1)
    return log.exp().gather(1, torch.from_numpy(labels.astype(np.int64))[:, None])[:, 0].numpy()
