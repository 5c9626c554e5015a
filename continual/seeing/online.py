"""Weights & Biases, where it is asked for: the points of continual/seeing/live.py, in one run there for each run here.

    wandb.json   beside the logs: the run's id there, its project, and how many rows it was given
    wandb/       what wandb itself writes

Every point is a row, and its step there is its number in the run, the same however often the run was resumed; charts go by the
column `step`, the training steps. A resumed run makes again what came after its checkpoint: what was given before is not given
twice. Whatever fails, of the network or of wandb, is said once, and the run goes on without.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from continual.errors import one_line
from continual.files import UNREADABLE, write_json
from continual.seeing.board import picture

KEPT = "wandb.json"
SETTINGS = {"init_timeout": 30.0, "login_timeout": 30.0, "finish_timeout": 60.0, "console": "off"}  # at most so many seconds
PREEMPTED = 75


class WeightsAndBiases:
    """One run of W&B. project: or entity/project. label: of the run; group: the series that it is part of."""

    name = "wandb"

    def __init__(self, logs: Path, say: Callable[[str], None], *, project: str, label: str, group: str | None = None) -> None:
        self._logs, self._say = logs, say
        self._project, self._label, self._group = project, label, group
        self._id, self._row, self._nb_given = "", 0, 0
        self._wandb: ModuleType | None = None
        self._run: Any = None

    def start(self, position: int, hparams: Mapping[str, Any]) -> None:
        """Begin, or go on behind so many rows."""
        self._row = position
        try:
            self._id, self._nb_given = self._known()
            self._keep()
            self._run = self._begin(hparams)
            self._run.define_metric("*", step_metric="step")
            self._nb_given = max(self._nb_given, self._run.step)  # 0 where it is new, or offline
        except Exception as error:
            self._warn(error)

    def add(self, step: int, scalars: Mapping[str, float], matrices: Mapping[str, Sequence[Sequence[float]]] | None = None):
        """One row, unless it was given before the run was resumed."""
        row, self._row = self._row, self._row + 1
        if self._run is None or row < self._nb_given:
            return
        try:
            pictures = {tag: self._wandb.Image(picture(matrix)) for tag, matrix in (matrices or {}).items()}
            self._run.log({"step": step, **scalars, **pictures}, step=row, commit=True)
            self._nb_given = row + 1
            self._keep()
        except Exception as error:
            self._warn(error)

    def position(self) -> int:
        """How many rows belong to what a checkpoint saves now."""
        return self._row

    def end(self) -> None:
        """`close` says how the run ended."""

    def close(self, exit_code: int) -> None:
        """Send what is left, for a minute at most."""
        if self._run is None:
            return
        try:
            if exit_code == PREEMPTED:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            self._warn(error)
        self._run = None

    def _begin(self, hparams: Mapping[str, Any]) -> Any:
        import wandb

        self._wandb = wandb
        entity, _, project = self._project.rpartition("/")
        known = getattr(wandb.Settings, "model_fields", {})  # older versions have fewer
        return wandb.init(
            entity=entity or None,
            project=project,
            id=self._id,
            name=self._label,
            group=self._group,
            config=dict(hparams),
            allow_val_change=True,
            dir=str(self._logs),
            resume="allow",
            settings={key: value for key, value in SETTINGS.items() if key in known},
        )

    def _known(self) -> tuple[str, int]:
        """The run's id there, and how many rows it was given; a new one if it has none in this project."""
        try:
            kept = json.loads((self._logs / KEPT).read_text(encoding="utf-8"))
            if kept["project"] == self._project:
                return str(kept["id"]), int(kept["rows"])
        except UNREADABLE:
            pass
        return secrets.token_hex(4), 0

    def _keep(self) -> None:
        write_json(self._logs / KEPT, {"id": self._id, "project": self._project, "rows": self._nb_given})

    def _warn(self, error: Exception) -> None:
        """Once: nothing is given after this."""
        self._say(f"warning: Weights & Biases: the run goes on without: {one_line(error)[:200]}")
        self._run = None
