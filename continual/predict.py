"""What a run answers on images: `python -m continual.predict RUN IMAGE|FOLDER|- ...`.

RUN is the log or the checkpoint folder of a run. Images are files, or folders with all images in and below them, sorted; `-`
reads paths from standard input, one a line. They are prepared as the run's test images were, and answered by its method's own
rule: class, probability among the classes it knows, and the task (from 0) that brought the class. How probabilities are
made stands in continual/runs/answering.py. Nothing of the run is touched.

Images that cannot be read are named on standard error, the others answered, and the exit code is then 3; of what is refused
as a whole it is 2 (arguments), 3 (data) or 4 (checkpoint).
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from continual.command import Parser, answered, keep_out_of, quick_imports
from continual.errors import DataError, OptionsError, plain
from continual.files import absolute, replacing

if TYPE_CHECKING:
    import torch

    from continual.runs.answering import Answer, Score
    from continual.runs.loading import Trained


def arguments() -> Parser:
    """What can be asked for."""
    parser = Parser("predict", __doc__)
    parser.add_argument("run", metavar="RUN", help="log or checkpoint folder of a run, or one checkpoint of it, FILE.pt")
    parser.add_argument("images", metavar="IMAGE|FOLDER|-", nargs="+")
    parser.add_argument("--top", type=int, default=5, help="answers an image, the likeliest first (5)")
    parser.add_argument("--task", type=int, help="the task of all these images (from 0), if it is known: only its classes")
    parser.add_argument("--format", choices=("text", "csv", "jsonl"), default="text")
    parser.add_argument("--out", default="", metavar="FILE", help="write there, in the place of standard output")
    parser.add_argument("--batch-size", type=int, default=64, help="images computed together (64)")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--checkpoint-task", type=int, metavar="T", help="as it was at the end of task T (from 0), if kept")
    kept.add_argument("--start-task", type=int, metavar="T", help="the same as main.py counts it: at the end of task T - 1")
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--data-path", default="", help="where the run's data lie now, if its rule needs exemplars from there")
    parser.add_argument("--classifier", action="store_true", help="answer by the classifier, whatever the method's own rule is")
    return parser


def main(argv: Sequence[str]) -> int:
    """Answer, and return the exit code."""
    return answered(_predict, argv)


def _predict(argv: Sequence[str]) -> int:
    asked = _checked(arguments().parse_args(argv))

    with quick_imports():  # of torch with it, now that what was asked for makes sense
        from continual.runs import answering, loading

    run = Path(asked.run)
    out = keep_out_of(loading.folders_of(run), asked.out, "--out") if asked.out else None
    paths, unreadable = list(_paths(asked.images)), []
    trained = loading.load(run, task=asked.checkpoint_task, say=_say)
    trained.model.to(_device(trained, asked.device))

    def refused(path: str, error: DataError) -> None:
        unreadable.append(path)
        _say(str(error))

    rule = answering.by_classifier if asked.classifier else _own_rule(trained, asked)
    how = {"top": asked.top, "task": asked.task, "batch_size": asked.batch_size, "score": rule, "refused": refused}
    top = min(asked.top, len(answering.labels_of(trained, asked.task)))
    with _output(out) as file:
        _write(file, asked.format, top, paths, answering.answers(trained, paths, **how))
    if unreadable:
        _say(f"{len(unreadable):,} of {len(paths):,} images could not be read")
    return DataError.exit_code if unreadable else 0


def _checked(asked: Namespace) -> Namespace:
    """With `start_task` put in terms of `checkpoint_task`. Raises OptionsError for numbers that make no sense."""
    if asked.start_task is not None:
        if asked.start_task < 1:
            raise OptionsError(f"--start-task: before task {asked.start_task} nothing was learned")
        asked.checkpoint_task = asked.start_task - 1
    for name, least in {"top": 1, "batch_size": 1, "checkpoint_task": 0, "task": 0}.items():
        value = getattr(asked, name)
        if value is not None and value < least:
            raise OptionsError(f"--{name.replace('_', '-')}: {value} is below {least}")
    return asked


def _paths(given: Sequence[str]) -> Iterator[str]:
    """The paths of all images. Raises DataError for a folder that cannot be read or holds none."""
    from continual.data import listing, opening

    for path in given:
        if path == "-":
            yield from filter(None, (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer))
        elif os.path.isdir(path):
            images, _ = opening.images_among(listing.files_below(path)[0])
            if not images:
                raise DataError(f"{path}: there is no image in this folder, nor below it")
            yield from (os.path.join(path, image) for image in images)
        else:
            yield path


def _device(trained: Trained, name: str) -> torch.device:
    """The device that was asked for; a small model is computed with one thread, as when it was trained."""
    from continual.jobs import distributed, launch
    from continual.options import replace

    device = distributed.device_of(replace(trained.options, device=name).run.device)
    launch.spare_threads(device, trained.options)
    return device


def _own_rule(trained: Trained, asked: Namespace) -> Score:
    from continual.runs import answering

    try:
        return answering.own_rule(trained, root=absolute(asked.data_path) or trained.root)
    except DataError as error:
        raise DataError(f"{error}; --data-path says where they lie, and --classifier does without") from error


def _say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


@contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    """Standard output; or a file, which is then there whole or not at all."""
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise OptionsError(f"--out: {path} cannot be written: {error.strerror}") from None


def _write(file: BinaryIO, kind: str, top: int, paths: Sequence[str], told: Iterator[list[Answer]]) -> None:
    from continual.seeing.answers import FORMATS, counted, csv_header

    write = FORMATS[kind]
    if kind == "csv":
        file.write(csv_header(top))
    for path, found in zip(paths, counted(told, len(paths), "images"), strict=True):
        if found:
            file.write(write(path, found))
    file.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
