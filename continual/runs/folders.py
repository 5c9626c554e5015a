"""Where a run lives on disk: a log folder and a checkpoint folder of the same name, which know each other."""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from continual.errors import CheckpointError
from continual.files import UNREADABLE, absolute, write_json
from continual.jobs import distributed
from continual.options import STORED, Options, dump, replace, resumed

PLACE = "run.json"
CLASSES = "classes.json"
PARTS = ("seed-", "order-", "point-")  # how the runs of a series are called
BRANCH = "branch.json"  # in the checkpoint folder: where a branch is from


@dataclass(frozen=True)
class Place:
    """The two folders of a run; series: the checkpoint folder of the series that it is part of."""

    logs: Path
    checkpoints: Path
    series: Path | None = None

    @property
    def to_resume(self) -> Path:
        """What to give to --resume, to go on with all that was begun."""
        return self.series or self.checkpoints


def prepare(options: Options) -> tuple[Options, Place]:
    """Make (or, with `resume`, find) the folders of a run, and keep the options in both.

    A job that torchrun starts again goes on with the run it began, so the options may come back changed.
    Raises CheckpointError if a folder cannot be made, or if there is nothing to resume.
    """
    places = {"data_path": absolute(options.data.data_path), "branch": absolute(options.run.branch)}
    options = replace(options, **places)  # wherever it is resumed
    begun = distributed.kept("run")
    if begun is not None:
        if distributed.kept("went back") or not os.path.exists(options.run.resume):
            return replace(options, resume=begun, start_task=0), reopen(Path(begun))
        return options, _to_resume(options.run.resume)
    if options.run.resume:
        place = _to_resume(options.run.resume, only_look=options.run.eval)
    else:
        place = new_place(options, today=date.today())
        _furnish(place, options)
    distributed.keep("run", str(place.checkpoints))
    return options, place


def _to_resume(path: str, *, only_look: bool = False) -> Place:
    """The place of a run, from one of its folders or from one of its checkpoints. Raises CheckpointError."""
    folder, file = resumed(path)
    if file and not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint")
    place = reopen(Path(folder), only_look=only_look)
    if file and place.checkpoints != Path(folder):
        raise CheckpointError(f"{path}: the checkpoints of this run are in {place.checkpoints}")
    return place


def new_place(options: Options, *, today: date) -> Place:
    """Make the folders of a new run: data_set/log_category/yy-mm/week-n/yy-mm-dd-name below log_path and output_basedir.

    n is the week of the month. A second run of that name and day gets `-2`, a third `-3`, and so on: neither side is ever a
    folder that was there before, and runs that start at once get different ones, because making a folder is atomic.
    None of the names leads elsewhere: the options have seen to that. Raises CheckpointError if a folder cannot be made.
    """
    run = options.run
    below = Path(options.data.data_set.lower(), run.log_category, f"{today:%y-%m}", f"week-{(today.day - 1) // 7 + 1}")
    parents = [Path(base).resolve() / below for base in (run.output_basedir, run.log_path)]
    with _one_line():
        for parent in parents:
            parent.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(1):
            last = f"{today:%y-%m-%d}-{run.name or 'run'}" + (f"-{attempt}" if attempt > 1 else "")
            checkpoints, logs = (parent / last for parent in parents)
            made = []
            try:
                for folder in dict.fromkeys((checkpoints, logs)):  # both bases may be the same
                    folder.mkdir()
                    made.append(folder)
                return Place(logs, checkpoints)
            except FileExistsError:
                for folder in made:
                    folder.rmdir()


def begun(place: Place) -> bool:
    """Whether the folders of a run have been made."""
    return (place.checkpoints / PLACE).exists()


def prepare_inside(options: Options, place: Place) -> Options:
    """Make the folders of one run of a series; returns its options, told to resume if it has begun already."""
    if begun(place):
        return replace(options, resume=str(place.checkpoints), start_task=0)
    _furnish(place, options)
    return replace(options, resume="", start_task=0, resume_anyway=False)


def inside_series(folder: Path) -> bool:
    """Whether a run's folder lies in that of a series."""
    return (folder.parent / PLACE).exists()


def origin(place: Place) -> tuple[dict[str, Any] | None, int]:
    """Where a run branched from, None if it did not; and the bytes of evaluations that it began with.

    Raises CheckpointError if that was written down and cannot be read.
    """
    path = place.checkpoints / BRANCH
    if not path.exists():
        return None, 0
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["origin"]), int(content["nb_bytes"])
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None


def _furnish(place: Place, options: Options) -> None:
    with _one_line():
        for folder in (place.checkpoints, place.logs):
            folder.mkdir(parents=True, exist_ok=True)
            dump(options, folder / STORED)
        for side, folder in (("checkpoints", place.checkpoints), ("logs", place.logs)):
            content = {"side": side, "logs": str(place.logs), "checkpoints": str(place.checkpoints)}
            write_json(folder / PLACE, content)


def keep_options(place: Place, options: Options) -> None:
    """Have the next `--resume` go on with these options, which may not be those that the run was begun with."""
    with _one_line():
        for folder in (place.checkpoints, place.logs):
            dump(options, folder / STORED)


def keep_classes(place: Place, classes: list[dict[str, int | str]]) -> None:
    """Write down, beside the logs, what every label stands for."""
    with _one_line():
        write_json(place.logs / CLASSES, classes)


@contextmanager
def _one_line() -> Iterator[None]:
    """A folder or file that cannot be made becomes a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or 'the folder of the run'} cannot be written: {error.strerror}") from None


def reopen(folder: Path, *, only_look: bool = False) -> Place:
    """The place of a run, from its log folder or its checkpoint folder, moved or copied or not.

    The other folder counts only if it knows this one: a folder from a stranger cannot point anywhere. Checkpoints without
    their logs get new ones, in a folder `logs` among them; with `only_look` that folder is not made.
    Raises CheckpointError if `folder` is not of a run, or is the log folder of checkpoints that are gone.
    """
    side, folder, partner = find(folder)
    if partner is None and side == "logs":
        raise CheckpointError(f"{folder}: its checkpoints are no longer in {_read(folder)[1]['checkpoints']}")
    if partner is None:
        partner = folder / "logs"
        if not only_look:
            partner.mkdir(exist_ok=True)
    return Place(folder, partner) if side == "logs" else Place(partner, folder)


def find(folder: Path) -> tuple[str, Path, Path | None]:
    """Which side of a run a folder is, logs or checkpoints; itself; and the other folder, None if that is gone.

    Makes nothing. Raises CheckpointError if `folder` is not of a run.
    """
    folder = folder.resolve()
    try:
        side, stored = _read(folder)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder} is not the folder of a run: its {PLACE} cannot be read ({error})") from None
    other = "checkpoints" if side == "logs" else "logs"
    copied = folder != stored[side] and _same_run(stored[side], stored)
    beside = Path(os.path.normpath(folder / os.path.relpath(stored[other], stored[side])))  # both moved together
    found = [path for path in (beside, stored[other]) if _same_run(path, stored) and not (copied and path == stored[other])]
    return side, folder, found[0] if found else None


def runs_inside(folder: Path) -> list[str]:
    """The runs of a series that have begun, by name; empty for a single run."""
    parts = [path.parent.name for path in folder.glob(f"*/{PLACE}") if path.parent.name.startswith(PARTS)]
    return sorted(parts, key=lambda name: [int(word) if word.isdecimal() else word for word in name.split("-")])


def _read(folder: Path) -> tuple[str, dict[str, Path]]:
    """Which of the two folders of a run this is, and where both were made."""
    content = json.loads((folder / PLACE).read_text())
    stored = {name: Path(content[name]) for name in ("logs", "checkpoints")}
    if content["side"] not in stored:
        raise ValueError(f"side {content['side']!r}")
    return content["side"], stored


def _same_run(folder: Path, stored: dict[str, Path]) -> bool:
    try:
        return _read(folder)[1] == stored
    except UNREADABLE:
        return False
