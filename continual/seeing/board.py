"""TensorBoard while a run goes on: one event file in the log folder, without a thread, and exact after every resume.

    tensorboard/events.out.tfevents.000001

Every point is one record, written whole or not at all. A checkpoint's manifest holds how many bytes belong to it, all of them
on the disk by then; a resume cuts off what came after these, and the run writes it again. The file then gets the next number:
a TensorBoard that was open all the while (with its default, fast loading) reads it afresh, where it would stumble over a
file that became shorter.
Tags are those of continual/seeing/live.py. What belongs to tensorboard is imported with the first record.
"""

import io
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from continual.errors import one_line

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

FOLDER, STEM = "tensorboard", "events.out.tfevents"
AROUND = 16  # bytes of a record besides its content: 8 of its length, and 4 for the checksum of each

CELL = 30  # pixels of a task in a picture of the matrix
WITH_NUMBERS = 20  # tasks whose accuracies can be read in it; beyond, cells are smaller
LOW, HIGH = np.array([255.0, 255.0, 255.0]), np.array([31.0, 119.0, 180.0])  # colours of 0 and 100 %


class Board:
    """The event file of one run. say: hears of what goes wrong, once; nothing of it ends the run."""

    name = "tensorboard"

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = logs / FOLDER, say
        self._path = self._folder / f"{STEM}.{1:06d}"
        self._nb_bytes = 0  # of whole records
        self._on_disk = 0  # of these, what a crash of the machine would leave
        self._warned = False

    def start(self, position: int, hparams: Mapping[str, Any]) -> None:
        """Go on behind the first `position` bytes, without what comes after them; 0: from the start, with these options."""
        try:
            self._cut_off(position)
        except OSError as error:
            self._warn(error)
        if not self._nb_bytes:
            self._write(lambda: _session_start(hparams), step=0)

    def add(self, step: int, scalars: Mapping[str, float], matrices: Mapping[str, Sequence[Sequence[float]]] | None = None):
        """One point of each. step: of training, in the whole run. matrices: of accuracies in percent."""
        self._write(lambda: _summary(scalars, matrices or {}), step=step)

    def position(self) -> int:
        """How many bytes belong to what a checkpoint saves now; they are on the disk when this returns."""
        try:
            if self._on_disk < self._nb_bytes:
                with open(self._path, "rb") as file:
                    os.fsync(file.fileno())
                self._on_disk = self._nb_bytes
        except OSError as error:
            self._warn(error)
        return self._nb_bytes

    def end(self) -> None:
        """The run is done."""
        self._write(_session_end, step=0)

    def close(self, exit_code: int) -> None:
        """Nothing is open."""

    def _cut_off(self, position: int) -> None:
        found = sorted(self._folder.glob(f"{STEM}.{'[0-9]' * 6}"))
        self._path = found[-1] if found else self._path
        size = self._path.stat().st_size if found else 0
        self._nb_bytes = self._on_disk = _whole_records(self._path, min(position, size)) if found else 0
        if self._nb_bytes < position:
            lost = position - self._nb_bytes
            self._say(f"warning: {self._path} lost {lost} of {position} bytes; going on without them")
        if size > self._nb_bytes:
            os.truncate(self._path, self._nb_bytes)
            following = self._folder / f"{STEM}.{int(self._path.name[-6:]) + 1:06d}"
            os.replace(self._path, following)
            self._path = following

    def _write(self, summary: Callable[[], "Summary"], *, step: int) -> None:
        """Append one record, and before the first one the file's version. A disk that refuses it leaves a gap."""
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter

            self._folder.mkdir(exist_ok=True)
            with open(self._path, "ab") as file:
                self._nb_bytes = min(self._nb_bytes, file.tell())  # less if somebody has emptied the folder
                self._on_disk = min(self._on_disk, self._nb_bytes)
                file.truncate(self._nb_bytes)  # what is left of a record that did not fit
                records = RecordWriter(content := io.BytesIO())
                if not self._nb_bytes:
                    records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
                records.write(Event(wall_time=time.time(), step=step, summary=summary()).SerializeToString())
                file.write(content.getvalue())
                file.flush()
                self._nb_bytes += len(content.getvalue())
        except Exception as error:  # a full disk, a library that is not there: no reason to end a run
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._say(f"warning: TensorBoard: not everything is written to {self._folder}: {one_line(error)}")
        self._warned = True


def _whole_records(path: Path, nb_bytes: int) -> int:
    """How many of the first bytes of a file are whole records."""
    at = 0
    with open(path, "rb") as file:
        while at + AROUND <= nb_bytes:
            file.seek(at)
            (length,) = struct.unpack("<Q", file.read(8))
            if at + AROUND + length > nb_bytes:
                break
            at += AROUND + length
    return at


def _summary(scalars: Mapping[str, float], matrices: Mapping[str, Sequence[Sequence[float]]]) -> "Summary":
    """Numbers as they are; a matrix as a picture and as a table."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    for tag, matrix in matrices.items():
        drawn = picture(matrix)
        drawn.save(png := io.BytesIO(), format="PNG")
        image = Summary.Image(height=drawn.height, width=drawn.width, colorspace=3, encoded_image_string=png.getvalue())
        text = {"metadata": metadata.create_summary_metadata(None, None), "tensor": make_tensor_proto([markdown(matrix)])}
        values += [Summary.Value(tag=f"{tag}/picture", image=image), Summary.Value(tag=f"{tag}/table", **text)]
    return Summary(value=values)


def _session_start(hparams: Mapping[str, Any]) -> "Summary":
    """The options, for the tab that compares runs: it finds by itself which differ, and the newest value of every scalar."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    info = SessionStartInfo(start_time_secs=time.time())
    for key, value in hparams.items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[key].number_value = value
        else:
            info.hparams[key].string_value = "none" if value is None else str(value)
    return _of_hparams("SESSION_START_INFO_TAG", HParamsPluginData(session_start_info=info))


def _session_end() -> "Summary":
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    info = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
    return _of_hparams("SESSION_END_INFO_TAG", HParamsPluginData(session_end_info=info))


def _of_hparams(tag: str, data: Any) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    told = {"metadata": metadata.create_summary_metadata(data), "tensor": metadata.NULL_TENSOR}
    return Summary(value=[Summary.Value(tag=getattr(metadata, tag), **told)])


def picture(matrix: Sequence[Sequence[float]]) -> Image.Image:
    """An accuracy matrix in percent as a picture: row i after task i, the darker the more, with numbers if there is room."""
    nb_tasks = len(matrix)
    cell = CELL if nb_tasks <= WITH_NUMBERS else CELL // 3
    colours = np.full((nb_tasks, nb_tasks, 3), 235, dtype=np.uint8)  # grey where there is no task yet
    for i, row in enumerate(matrix):
        shares = np.array(row)[:, None] / 100
        colours[i, : len(row)] = np.rint(LOW + shares * (HIGH - LOW))
    drawn = Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1))
    if nb_tasks <= WITH_NUMBERS:
        pen = ImageDraw.Draw(drawn)
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                middle = ((j + 0.5) * cell, (i + 0.5) * cell)
                pen.text(middle, f"{value:.0f}", fill="white" if value > 60 else "black", anchor="mm")
    return drawn


def markdown(matrix: Sequence[Sequence[float]]) -> str:
    """The same as a table."""
    header = ["after task", *(f"task {j + 1}" for j in range(len(matrix)))]
    rows = [[str(i + 1), *(f"{value:.1f}" for value in row), *[""] * (len(matrix) - len(row))] for i, row in enumerate(matrix)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
