"""Where a run lives on disk: a log folder and a checkpoint folder of the same name, which know each other."""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from continual.errors import CheckpointError
from continual.options import Options, dump
from continual.report import run_folder, write_json

PLACE = "run.json"


@dataclass(frozen=True)
class Place:
    logs: Path
    checkpoints: Path


def prepare(options: Options, *, suffix: str = "") -> Place:
    """Make (or, with `resume`, find) the folders of a run, and keep the options in both.

    Raises OSError if a folder cannot be made, CheckpointError if there is nothing to resume.
    """
    run = options.run
    if run.resume:
        return reopen(Path(run.resume))
    logs = run_folder(run.log_path, options.data.data_set, run.log_category, (run.name or "run") + suffix, today=date.today())
    checkpoints = Path(run.output_basedir) / logs.relative_to(run.log_path)
    checkpoints.mkdir(parents=True, exist_ok=True)
    place = Place(logs.resolve(), checkpoints.resolve())
    for folder in (place.logs, place.checkpoints):
        dump(options, folder / "options.yaml")
        write_json(folder / PLACE, {"logs": str(place.logs), "checkpoints": str(place.checkpoints)})
    return place


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
