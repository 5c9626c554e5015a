"""A run as it lies on disk, finished or going on, for whoever looks back at it. Nothing is written, and no data set is read.

What is missing or damaged does not stop the reading: it is told in `Past.faults`, in words.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from continual.errors import CheckpointError, Refused
from continual.files import UNREADABLE
from continual.options import MAY_DIFFER, STORED, Options, flat, method_of
from continual.runs import folders, predictions
from continual.runs.checkpoint import ORIGIN, Store, Stored
from continual.runs.folders import CLASSES
from continual.runs.predictions import Predictions
from continual.runs.record import EVALUATIONS, STATUS, SUMMARY

if TYPE_CHECKING:
    from continual.runs.loading import Trained


@dataclass(eq=False)
class Past:
    """One run, as far as it has come.

    logs, checkpoints: its folders, None for one that is gone. series: the log folder of its series; label: its name in
    there, or that of the folder. options: every key with its value, as YAML gives it. evaluations: the records, oldest first.
    summary: None until the run is done. status: empty if unknown. faults: what is missing or damaged, one line each.
    """

    logs: Path | None
    checkpoints: Path | None
    label: str
    series: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)  # options that differ from the defaults
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    status: dict[str, Any] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)  # label, class, name, task
    faults: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The log folder, or the checkpoint folder of a run that has lost it."""
        return self.logs or self.checkpoints

    @property
    def method(self) -> str:
        return method_of(self.options)

    @property
    def done(self) -> bool:
        return self.status.get("status") == "done" and self.summary is not None

    @cached_property
    def ends(self) -> list[dict[str, Any]]:
        """The record of the evaluation at the end of every task learned; from task 0 on, without a gap."""
        newest = {record["task"]: record for record in self.evaluations if record.get("final")}
        ends = []
        while len(ends) in newest:
            ends.append(newest[len(ends)])
        return ends

    @property
    def nb_tasks(self) -> int:
        """Tasks learned so far."""
        return len(self.ends)

    def matrix(self, *, known: bool = False) -> list[list[float]]:
        """The accuracy matrix in percent, row i after task i."""
        return [record["acc_known_per_task" if known else "acc_per_task"] for record in self.ends]

    @cached_property
    def sizes(self) -> list[int]:
        """Classes of every task, also of those to come; empty if unknown."""
        tasks = [row["task"] for row in self.classes]
        return [tasks.count(task) for task in range(max(tasks, default=-1) + 1)]

    def nb_classes(self) -> list[int]:
        """Classes seen after each task learned; without classes.json, what the summary tells; empty if unknown."""
        if self.sizes:
            return [sum(self.sizes[: task + 1]) for task in range(self.nb_tasks)]
        return list((self.summary or {}).get("nb_classes", []))

    def names(self) -> list[str]:
        """The name of every class, by label."""
        return [str(row["name"]) for row in self.classes]

    @cached_property
    def stored(self) -> list[Stored]:
        """The checkpoints with a valid manifest, oldest first."""
        return Store(self.checkpoints).stored() if self.checkpoints else []

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the newest checkpoint says that the experiment is; empty without one."""
        return self.stored[-1].manifest["identity"] if self.stored else {}

    @cached_property
    def _digests(self) -> dict[str, str]:
        """SHA-256 of the kept predictions, as the newest checkpoint vouches for them."""
        return self.stored[-1].manifest.get("predictions", {}) if self.stored else {}

    def predictions(self, task: int) -> Predictions | None:
        """What was answered at the end of a task (from 0); None, and a fault, where that is not to be had."""
        try:
            if self.logs is None:
                raise CheckpointError(f"{self.folder}: its logs are gone, and the predictions with them")
            path = predictions.path_of(self.logs, task)
            return predictions.read(path, sha256=self._digests.get(path.name, ""))
        except CheckpointError as error:
            self.fault(str(error))
            return None

    def load(self, task: int | None = None) -> "Trained":
        """The run as the checkpoint at the end of a task (from 0) holds it. Raises CheckpointError, OptionsError."""
        from continual.runs.loading import load

        if self.checkpoints is None:
            raise CheckpointError(f"{self.folder}: its checkpoints are gone")
        return load(self.checkpoints, task=task)

    def fault(self, line: str) -> None:
        """Remember something that is missing, once."""
        if line not in self.faults:
            self.faults.append(line)

    @cached_property
    def told(self) -> dict[str, Any]:
        """What makes the experiment, but for seed and class order: options, and of a branch those that were changed there."""
        apart = {*MAY_DIFFER, "seed", "seeds", "class_order"}
        begun = self.identity.get(ORIGIN, {}).get("changed", {})  # up to there it was another experiment
        options = {key: value for key, value in self.options.items() if key not in apart}
        return {**options, **({"branched with": begun} if begun else {})}

    def experiment(self) -> tuple:
        """Equal for runs that differ in seed and class order alone."""
        return tuple(sorted((key, repr(value)) for key, value in self.told.items()))


def read(path: str | Path) -> list[Past]:
    """The run whose log or checkpoint folder this is, or the runs of a series that have begun.

    Raises CheckpointError if the folder is of no run, or of a series of which no run has begun.
    """
    side, folder, partner = folders.find(Path(path))
    logs, checkpoints = (folder, partner) if side == "logs" else (partner, folder)
    inside = folders.runs_inside(folder)
    if not inside:
        return [_read(logs, checkpoints, folder.name)]
    return [
        _read(logs and logs / label, checkpoints and checkpoints / label, label, series=logs or checkpoints) for label in inside
    ]


def read_all(paths: list[str] | list[Path]) -> list[Past]:
    """The runs of several folders, each once. Raises CheckpointError."""
    found = {past.folder: past for path in paths for past in read(path)}
    return list(found.values())


def _read(logs: Path | None, checkpoints: Path | None, label: str, series: Path | None = None) -> Past:
    found = [path if path and path.is_dir() else None for path in (logs, checkpoints)]
    past = Past(*found, label=label, series=series)
    if past.logs is None and past.checkpoints is None:
        raise CheckpointError(f"{logs or checkpoints} is gone")
    for name, side in (("logs", past.logs), ("checkpoints", past.checkpoints)):
        if side is None:
            past.fault(f"the {name} of {past.folder} are gone")
    past.changed = _part(past, past.folder / STORED, _options, {})
    defaults = flat(Options())
    past.changed = {key: value for key, value in past.changed.items() if _plain(value) != _plain(defaults.get(key))}
    past.options = {key: _plain(value) for key, value in {**defaults, **past.changed}.items()}
    if past.logs:
        past.evaluations = list(_records(past))
        past.status = _part(past, past.logs / STATUS, json.loads, {})
        past.classes = _part(past, past.logs / CLASSES, _classes, [])
        if past.status.get("status") == "done":
            past.summary = _part(past, past.logs / SUMMARY, json.loads, None)
    return past


def _part(past: Past, path: Path, read: Callable[[str], Any], otherwise: Any) -> Any:
    """What a file of a run holds; where it cannot be read, that is a fault. Its kind is that of `otherwise`."""
    try:
        content = read(path.read_text(encoding="utf-8"))
        if otherwise is not None and not isinstance(content, type(otherwise)):
            raise ValueError(f"it holds no {type(otherwise).__name__}")
        return content
    except FileNotFoundError:
        past.fault(f"{path} is missing")
    except (*UNREADABLE, yaml.YAMLError, Refused) as error:
        past.fault(f"{path} cannot be read ({' '.join(str(error).split())[:200]})")
    return otherwise


def _options(text: str) -> dict[str, Any]:
    found = yaml.safe_load(text)
    if not isinstance(found, dict) or not found:
        raise ValueError("it holds no options")
    return found


def _classes(text: str) -> list[dict[str, Any]]:
    kinds = {"label": int, "name": str, "task": int}
    return [{**row, **{key: kind(row[key]) for key, kind in kinds.items()}} for row in json.loads(text)]


def _records(past: Past) -> Iterator[dict[str, Any]]:
    """The evaluations; a line that is no record is a fault, but for a last one that is being written."""
    path = past.logs / EVALUATIONS
    if not path.exists():
        past.fault(f"{path} is missing: nothing was evaluated yet, or it was deleted")
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            _ = [float(share) for share in record["acc_per_task"]], int(record["task"]), float(record["acc"])
            yield record
        except UNREADABLE:
            if line and number < len(lines):
                past.fault(f"line {number} of {path} is damaged")


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML gives them back."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
