"""Where a run lives on disk: a log folder and a checkpoint folder of the same name, which know each other."""

import json
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from continual import distributed
from continual.errors import CheckpointError
from continual.files import write_json
from continual.options import Options, dump, replace
from continual.report import run_folder

PLACE = "run.json"


@dataclass(frozen=True)
class Place:
    logs: Path
    checkpoints: Path


def prepare(options: Options) -> tuple[Options, Place]:
    """Make (or, with `resume`, find) the folders of a run, and keep the options in both.

    A job that torchrun starts again goes on with the run it began, so the options may come back changed.
    Raises OSError if a folder cannot be made, CheckpointError if there is nothing to resume.
    """
    run, begun = options.run, distributed.kept("run")
    if begun is not None:
        return replace(options, resume=begun, start_task=0), reopen(Path(begun))
    if run.resume:
        place = reopen(Path(run.resume))
    else:
        logs = run_folder(run.log_path, options.data.data_set, run.log_category, run.name or "run", today=date.today())
        place = Place(logs.resolve(), (Path(run.output_basedir) / logs.relative_to(run.log_path)).resolve())
        _furnish(place, options)
    distributed.keep("run", str(place.checkpoints))
    return options, place


def begun(place: Place) -> bool:
    """Whether the folders of a run have been made."""
    return (place.checkpoints / PLACE).exists()


def prepare_inside(options: Options, place: Place) -> Options:
    """Make the folders of one run of a series; returns its options, told to resume if it has begun already."""
    if begun(place):
        return replace(options, resume=str(place.checkpoints), start_task=0)
    _furnish(place, options)
    return replace(options, resume="", start_task=0, resume_anyway=False)


def _furnish(place: Place, options: Options) -> None:
    for side, folder in (("logs", place.logs), ("checkpoints", place.checkpoints)):
        folder.mkdir(parents=True, exist_ok=True)
        dump(options, folder / "options.yaml")
        write_json(folder / PLACE, {"side": side, "logs": str(place.logs), "checkpoints": str(place.checkpoints)})


def reopen(folder: Path) -> Place:
    """The place of a run, from its log folder or its checkpoint folder, moved or copied or not.

    The other folder counts only if it knows this one: a folder from a stranger cannot point anywhere. Checkpoints without
    their logs get new ones, in a folder `logs` among them.
    Raises CheckpointError if `folder` is not of a run, or is the log folder of checkpoints that are gone.
    """
    folder = folder.resolve()
    try:
        side, stored = _read(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not the folder of a run: its {PLACE} cannot be read ({error})") from None
    other = "checkpoints" if side == "logs" else "logs"
    copied = folder != stored[side] and _same_run(stored[side], stored)
    beside = Path(os.path.normpath(folder / os.path.relpath(stored[other], stored[side])))  # both moved together
    found = [path for path in (beside, stored[other]) if _same_run(path, stored) and not (copied and path == stored[other])]
    if found:
        partner = found[0]
    elif other == "checkpoints":
        raise CheckpointError(f"{folder}: its checkpoints were in {stored[other]}, which is gone")
    else:
        partner = folder / "logs"
        partner.mkdir(exist_ok=True)
    return Place(folder, partner) if side == "logs" else Place(partner, folder)


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
    except (OSError, ValueError, KeyError, TypeError):
        return False
