"""The exemplars that a run keeps, as the newest checkpoint has them, and how typical each is of its class.

The only chapter of a run that needs its model.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from continual.data import sources
from continual.data.images import Images, full_path
from continual.errors import CheckpointError, Refused
from continual.rehearsal import Memory
from continual.report import figures
from continual.report.classes import names_of
from continual.report.exhibit import Chapter, Exhibit, Table, chapter
from continual.report.reading import Past
from continual.runs.experiment import images_of
from continual.runs.loading import Trained
from continual.training.evaluation import extract_features
from continual.training.loading import Loading

CLASSES, PER_CLASS = 25, 10  # shown
EMBEDDED = 600  # exemplars that the model looks at; a minute or two where images are large
LARGEST = 64  # pixels, the side of what is shown of an image


@dataclass(frozen=True)
class Place:
    """Where images come from and how they are normalised, as `images_of` asks for it."""

    root: str | None
    upright: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def exemplars(past: Past) -> Chapter:
    title = "Exemplars"
    try:
        trained = past.load()
        if not len(trained.memory):
            return Chapter(title, [], ["this run keeps no exemplars, or has not chosen any yet"])
        return chapter(title, Kept.of(past, trained), memory_of, gallery)
    except Refused as refused:
        return Chapter(title, [], [f"the exemplars lie in the checkpoints: {refused}"])


@dataclass(frozen=True)
class Kept:
    """The memory of a run. rows: of every class (and replica) in order of choice; names: by label."""

    trained: Trained
    rows: dict[tuple[int, int], np.ndarray]
    names: list[str]
    place: Place | None
    missing: str  # why no image can be seen

    @property
    def memory(self) -> Memory:
        return self.trained.memory

    @classmethod
    def of(cls, past: Past, trained: Trained) -> "Kept":
        memory = trained.memory
        keys = sorted(set(zip(memory.y.tolist(), memory.replica.tolist(), strict=True)))
        rows = {key: np.flatnonzero((memory.y == key[0]) & (memory.replica == key[1])) for key in keys}
        place, missing = None, ""
        try:
            place = _place(past)
            missing = _gone(memory, place.root)
        except Refused as refused:
            missing = str(refused)
        names = past.names() and names_of(past, len(trained.classes))
        return cls(trained, rows, names or trained.classes, place, missing)

    def some(self) -> dict[tuple[int, int], np.ndarray]:
        """Classes to show, from first to last, and of each as many as the model is to look at."""
        keys = list(self.rows)
        if len(keys) > CLASSES:
            keys = [keys[at] for at in np.linspace(0, len(keys) - 1, CLASSES).round().astype(int)]
        most = max(PER_CLASS, EMBEDDED // len(keys))
        return {key: self.rows[key][:most] for key in keys}


def _place(past: Past) -> Place:
    """Raises OptionsError for a data set that is not known here."""
    source = sources.with_channels(sources.find(str(past.options["data_set"])))
    mean, std = past.identity.get("normalisation") or (source.mean, source.std)
    return Place(sources.root_of(source, past.options["data_path"]), source.upright, tuple(mean), tuple(std))


def _gone(memory: Memory, root: str | None) -> str:
    """Why exemplars that are files cannot be opened; empty if they can."""
    if memory.x.dtype.kind != "U":
        return ""
    lost = [path for path in memory.x.tolist() if not os.path.isfile(full_path(path, root))]
    return f"{len(lost)} of {len(memory)} exemplars are files that are gone, such as {full_path(lost[0], root)}" if lost else ""


def memory_of(kept: Kept) -> Exhibit:
    memory, quotas = kept.memory, [len(rows) for rows in kept.rows.values()]
    per = f"{min(quotas)}" if min(quotas) == max(quotas) else f"{min(quotas)} to {max(quotas)}"
    rows = []
    for (label, replica), found in kept.rows.items():
        rows.append(
            [kept.names[label], label, int(memory.t[found[0]]) + 1, *([replica] if memory.nb_replicas > 1 else []), len(found)]
        )
    header = ["class", "label", "task", *(["replica"] if memory.nb_replicas > 1 else []), "exemplars"]
    apart = f", in {memory.nb_replicas} memories kept apart" if memory.nb_replicas > 1 else ""
    reads = f"{len(memory)} of at most {memory.memory_size} exemplars{apart}, {per} a class."
    return Exhibit("memory", "The memory", reads, Table(header, rows))


def gallery(kept: Kept) -> Exhibit:
    """Raises CheckpointError where the images cannot be seen."""
    if kept.missing:
        raise CheckpointError(f"exemplars cannot be shown: {kept.missing}")
    some = kept.some()
    away = _distances(kept, some)
    memory, several = kept.memory, kept.memory.nb_replicas > 1
    names = [f"{kept.names[label]}{f' ({replica})' if several else ''}" for label, replica in some]
    width = min(PER_CLASS, max(map(len, some.values())))
    under = np.full((len(some), width), np.nan)
    table: list[list[Any]] = []
    for at, ((label, replica), rows) in enumerate(some.items()):
        under[at, : len(rows[:width])] = away[label, replica][:width]
        for rank, (row, distance) in enumerate(zip(rows, away[label, replica], strict=True), start=1):
            path = [str(memory.x[row])] if memory.x.dtype.kind == "U" else []
            table.append([names[at], int(memory.t[row]) + 1, rank, float(distance), *path])
    header = ["class", "task", "rank", "distance to the mean", *(["file"] if memory.x.dtype.kind == "U" else [])]
    shown = f"{len(some)} of {len(kept.rows)} classes" if len(some) < len(kept.rows) else "Every class"
    return Exhibit(
        "exemplars",
        "The exemplars themselves",
        f"{shown} in a row of its own, at most {width} in order of choice, the most important first; the number is the "
        "distance of its embedding (of length 1, by the newest model) to the mean of those of its class in the table.",
        Table(header, table, digits=3),
        figures.gallery(_thumbnails(kept, [rows[:width] for rows in some.values()]), under, names),
        _told(away, kept),
    )


def _told(away: dict[tuple[int, int], np.ndarray], kept: Kept) -> str:
    """Which class is kept by the most different exemplars."""
    means = {key: float(found.mean()) for key, found in away.items() if len(found) > 1}
    if len(means) < 2:
        return ""
    wide, narrow = max(means, key=means.get), min(means, key=means.get)
    return (
        f"Most varied are the exemplars of {kept.names[wide[0]]} (mean distance {means[wide]:.2f}), least those of "
        f"{kept.names[narrow[0]]} ({means[narrow]:.2f})."
    )


def _distances(kept: Kept, some: dict[tuple[int, int], np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """From the embedding of every exemplar, of length 1, to the mean of its class, (k,) for each."""
    options = kept.trained.options
    images = images_of(options, kept.place)(kept.memory.samples.take(np.concatenate(list(some.values()))), augment=False)
    size = options.data.eval_batch_size
    found = extract_features(kept.trained.model, images, loading=Loading(torch.device("cpu")), batch_size=size, key=())
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    of_classes = np.split(found, np.cumsum([len(rows) for rows in some.values()])[:-1])
    return {key: np.linalg.norm(each - each.mean(axis=0), axis=1) for key, each in zip(some, of_classes, strict=True)}


def _thumbnails(kept: Kept, rows: list[np.ndarray]) -> np.ndarray:
    """(C, K, S, S, 4) uint8, see-through where there is nothing."""
    images = Images(kept.memory.samples, lambda image: image, root=kept.place.root, upright=kept.place.upright)
    width = max(map(len, rows))
    seen = [[_small(images, int(row)) for row in of_class] for of_class in rows]
    side = max(max(image.size) for of_class in seen for image in of_class)
    sheet = np.zeros((len(rows), width, side, side, 4), dtype=np.uint8)
    for at, of_class in enumerate(seen):
        for rank, image in enumerate(of_class):
            left, top = (side - image.width) // 2, (side - image.height) // 2
            sheet[at, rank, top : top + image.height, left : left + image.width] = np.array(image.convert("RGBA"))
    return sheet


def _small(images: Images, row: int) -> Image.Image:
    """An image as it is, if it is small."""
    image = images.opened(row).copy()
    image.thumbnail((LARGEST, LARGEST))
    return image
