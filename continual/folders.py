"""Where a run lives on disk: a log folder and a checkpoint folder of the same name, which know each other."""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from continual.errors import CheckpointError
from continual.options import Options, dump, replace
from continual.report import run_folder, write_json

PLACE = "run.json"


@dataclass(frozen=True)
class Place:
    logs: Path
    checkpoints: Path


def prepare(options: Options) -> Place:
    """Make (or, with `resume`, find) the folders of a run, and keep the options in both.

    Raises OSError if a folder cannot be made, CheckpointError if there is nothing to resume.
    """
    run = options.run
    if run.resume:
        return reopen(Path(run.resume))
    logs = run_folder(run.log_path, options.data.data_set, run.log_category, run.name or "run", today=date.today())
    place = Place(logs.resolve(), (Path(run.output_basedir) / logs.relative_to(run.log_path)).resolve())
    _furnish(place, options)
    return place


def prepare_inside(options: Options, place: Place) -> Options:
    """Make the folders of one run of a series; returns its options, told to resume if it has begun already."""
    if any(place.checkpoints.glob("*.pt")):
        return replace(options, resume=str(place.checkpoints), start_task=0)
    _furnish(place, options)
    return replace(options, resume="", start_task=0, eval=False, resume_anyway=False)


def _furnish(place: Place, options: Options) -> None:
    for folder in (place.logs, place.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
        dump(options, folder / "options.yaml")
        write_json(folder / PLACE, {"logs": str(place.logs), "checkpoints": str(place.checkpoints)})


def reopen(folder: Path) -> Place:
    """The place of a run, from its log folder or its checkpoint folder, moved or not."""
    try:
        stored = json.loads((folder / PLACE).read_text())
        place = Place(Path(stored["logs"]), Path(stored["checkpoints"]))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is not the folder of a run: its {PLACE} cannot be read ({error})") from None
    if not place.checkpoints.is_dir() and any(folder.glob("*.pt")):
        place = Place(place.logs, folder.resolve())
    if not place.checkpoints.is_dir():
        raise CheckpointError(f"{folder}: its checkpoints were in {place.checkpoints}, which is gone")
    if not place.logs.is_dir():
        place.logs.mkdir(parents=True)
    return place
