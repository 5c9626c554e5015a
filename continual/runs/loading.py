"""What a run has learned, for use: no data set is read, nothing is written."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from continual.data import sources
from continual.data.preprocessing import Preprocessing
from continual.errors import CheckpointError, one_line
from continual.files import UNREADABLE, absolute
from continual.methods import Method, method_of
from continual.options import AUTO, STORED, Options, parse, per_channel, resumed
from continual.rehearsal import Memory
from continual.runs import answering, folders
from continual.runs.answering import Answer
from continual.runs.checkpoint import Store
from continual.runs.run import restored
from continual.runs.series import of_series
from continual.tasks import Task


@dataclass(frozen=True)
class Trained:
    """A run as a checkpoint holds it; it unpacks into model, memory, options and classes.

    model: on the CPU, in eval mode; images (B, 3, S, S) -> Outputs. classes: the name behind every label that the model knows.
    tasks: those that it has met. preprocess: a path, a Pillow image or pixels -> (3, S, S), as evaluation saw it.
    checkpoint: its name, and digest: the SHA-256 of its file.
    """

    model: nn.Module
    method: Method
    memory: Memory
    options: Options
    classes: list[str]
    tasks: tuple[Task, ...]
    preprocess: Preprocessing
    checkpoint: str = ""
    digest: str = ""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.memory, self.options, self.classes))

    @property
    def task_of(self) -> list[int]:
        """The task of every label."""
        return [task.index for task in self.tasks for _ in range(task.nb_new)]

    @property
    def root(self) -> str | None:
        """The folder of the run's data, where paths of exemplars start."""
        return absolute(self.options.data.data_path) or None

    def predict(
        self, images: Iterable[Any], *, top: int = 5, task: int | None = None, batch_size: int = 64
    ) -> list[list[Answer]]:
        """For every image its likeliest classes (name, task, probability, label), by the method's own rule.

        images: paths, Pillow images, or pixels (H, W), (H, W, C); one alone, if it is a path or Pillow's. task: if it is known,
        which one (from 0): only its classes are answered. Raises DataError for an image that cannot be read, OptionsError
        for a task that was not learned.
        """
        images = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
        score = answering.own_rule(self, root=self.root)
        return list(answering.answers(self, images, score=score, top=top, task=task, batch_size=batch_size))


def load(path: Path, *, task: int | None = None, say: Callable[[str], None] = lambda text: None) -> Trained:
    """Load the newest checkpoint of a run, the one at the end of a task (from 0), or the very one that `path` names.

    say: hears of damaged checkpoints, which are passed over. Raises CheckpointError, OptionsError.
    """
    folder, file = _folder_of(path)
    checkpoints = checkpoints_of(folder)
    options = parse(["--options", str(checkpoints / STORED)])
    if file and task is not None:
        raise CheckpointError(f"{path}: a checkpoint says by itself what was learned; give its folder, or no task")
    state, manifest = Store(checkpoints).load(start_task=0 if task is None else task + 1, file=file, say=say)
    if state is None:
        of = "this folder is that of a series of which no run has begun" if of_series(options) else "there is no checkpoint yet"
        raise CheckpointError(f"{checkpoints}: {of}")
    try:
        return trained_from(options, state, manifest)
    except UNREADABLE as error:
        raise CheckpointError(f"{checkpoints}: the checkpoint does not hold a run ({one_line(error)[:300]})") from error


def folders_of(path: Path) -> list[Path]:
    """The folders of the run that `path` names, and those of its series. Raises CheckpointError."""
    _, folder, partner = folders.find(_folder_of(path)[0])
    own = [each for each in (folder, partner) if each]
    return own + [each.parent for each in own if (each.parent / folders.PLACE).exists()]


def _folder_of(path: Path) -> tuple[Path, str]:
    """A folder of the run that `path` names, and the name of the checkpoint in it, if it names one."""
    folder, file = resumed(str(path))
    if file and not path.is_file():
        raise CheckpointError(f"{path}: no such folder, nor a checkpoint")
    return Path(folder), file


def checkpoints_of(folder: Path) -> Path:
    """The checkpoint folder of the run that a folder is of. Makes nothing. Raises CheckpointError."""
    side, folder, partner = folders.find(folder)
    if inside := folders.runs_inside(folder):
        raise CheckpointError(f"{folder} is a series; name one of its runs: {', '.join(inside)}")
    if side == "logs" and partner is None:
        raise CheckpointError(f"{folder}: its checkpoints are gone")
    return partner if side == "logs" else folder


def trained_from(options: Options, state: dict[str, Any], manifest: dict[str, Any]) -> Trained:
    """What a checkpoint holds. Without "memory" in its state that is empty. Raises CheckpointError, KeyError, TypeError."""
    identity = manifest["identity"]
    sizes, replicas = identity["classes_per_task"], identity["replicas"]
    tasks = tuple(Task(index, sum(sizes[:index]), size) for index, size in enumerate(sizes))
    method = method_of(options, tasks, replicas=replicas)
    model = restored(method, state["model"]).eval()
    method.load_state_dict(state.get("method", {}))
    memory = Memory.of(options.rehearsal, sum(sizes), replicas)
    if "memory" in state:
        memory.load_state_dict(state["memory"])
    nb_known = sum(model.classes)
    names = [str(row["name"]) for row in state.get("classes", [])] or list(map(str, identity["class_order"]))
    return Trained(
        model,
        method,
        memory,
        options,
        names[:nb_known],
        tuple(t for t in tasks if t.nb_seen <= nb_known),
        _preprocessing(options, identity),
        checkpoint=manifest["name"],
        digest=manifest["sha256"],
    )


def _preprocessing(options: Options, identity: dict[str, Any]) -> Preprocessing:
    """With the mean and std that the run was normalised by."""
    name, data = options.data.data_set, options.data
    if "normalisation" in identity:
        mean, std = identity["normalisation"]
    elif AUTO in (data.mean, data.std):
        raise CheckpointError("mean, std: auto, and the checkpoint is of a time when what was measured was not kept")
    else:  # of the first runs
        source = sources.with_channels(sources.find(name))
        mean = source.mean if data.mean is None else per_channel(data.mean)
        std = source.std if data.std is None else per_channel(data.std)
    return Preprocessing(input_size=options.model.input_size, mean=mean, std=std, upright=sources.upright(name))
