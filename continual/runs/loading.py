"""What a run has learned, for use: no data set is read, nothing is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from continual.errors import CheckpointError, one_line
from continual.files import UNREADABLE
from continual.methods import Method, method_of
from continual.options import STORED, Options, parse
from continual.rehearsal import Memory
from continual.runs import folders
from continual.runs.checkpoint import Store
from continual.runs.run import restored
from continual.tasks import Task


@dataclass(frozen=True)
class Trained:
    """A run as a checkpoint holds it; it unpacks into model, memory, options and classes.

    model: on the CPU, in eval mode; images (B, 3, S, S) -> Outputs. classes: the name behind every label that the model knows.
    tasks: those that it has met.
    """

    model: nn.Module
    method: Method
    memory: Memory
    options: Options
    classes: list[str]
    tasks: tuple[Task, ...]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.memory, self.options, self.classes))


def load(folder: Path, *, task: int | None = None) -> Trained:
    """Load the newest checkpoint of a run, or the one at the end of a task (from 0). Raises CheckpointError."""
    side, folder, partner = folders.find(Path(folder))
    checkpoints = folder if side == "checkpoints" else partner
    if checkpoints is None:
        raise CheckpointError(f"{folder}: its checkpoints are gone")
    options = parse(["--options", str(checkpoints / STORED)])
    state, manifest = Store(checkpoints).load(start_task=0 if task is None else task + 1)
    if state is None:
        raise CheckpointError(f"{checkpoints}: there is no checkpoint yet")
    try:
        return _trained(options, state, manifest["identity"])
    except UNREADABLE as error:
        raise CheckpointError(f"{checkpoints}: the checkpoint does not hold a run ({one_line(error)[:300]})") from error


def _trained(options: Options, state: dict[str, Any], identity: dict[str, Any]) -> Trained:
    sizes, replicas = identity["classes_per_task"], identity["replicas"]
    tasks = tuple(Task(index, sum(sizes[:index]), size) for index, size in enumerate(sizes))
    method = method_of(options, tasks, replicas=replicas)
    model = restored(method, state["model"]).eval()
    method.load_state_dict(state.get("method", {}))
    memory = Memory.of(options.rehearsal, sum(sizes), replicas)
    memory.load_state_dict(state["memory"])
    nb_known = sum(model.classes)
    names = [str(row["name"]) for row in state.get("classes", [])] or list(map(str, identity["class_order"]))
    return Trained(model, method, memory, options, names[:nb_known], tuple(t for t in tasks if t.nb_seen <= nb_known))
