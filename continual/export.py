"""A trained model for others to run: `python -m continual.export RUN [--out FOLDER]`.

RUN is the log or the checkpoint folder of a run. The folder gets model.onnx (ONNX Runtime), model.pt2 (torch.export), both for
batches of any size, model.safetensors (weights), released.pth (weights as the released DyTox names them, where it has such a
model) and config.json: classes, their tasks, and how an image is prepared. It is kept once the logits of every file were within
1e-4 of the model's on up to 200 real images, together and one by one: the run's test images if its data are there, else its
exemplars. Nothing of the run is touched.

What is in it is the model, which gives logits; a method's rule on top of it, such as the nearest mean of exemplars, is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from continual.command import Parser, answered, keep_out_of, quick_imports
from continual.errors import OptionsError, plain
from continual.files import absolute

KINDS = ("onnx", "torch", "weights", "released")


def arguments() -> Parser:
    """What can be asked for."""
    parser = Parser("export", __doc__)
    parser.add_argument("run", metavar="RUN", help="log or checkpoint folder of a run, or one checkpoint of it, FILE.pt")
    parser.add_argument("--out", default="", metavar="FOLDER", help="a folder that is not there yet (exports/NAME)")
    parser.add_argument("--task", type=int, metavar="T", help="as it was at the end of task T (from 0), if that was kept")
    parser.add_argument("--formats", nargs="+", choices=KINDS, help="what to write (all that the model allows)")
    parser.add_argument("--data-path", default="", help="where the run's data lie now")
    return parser


def main(argv: Sequence[str]) -> int:
    """Export, and return the exit code."""
    return answered(_export, argv)


def _export(argv: Sequence[str]) -> int:
    asked = arguments().parse_args(argv)
    if asked.task is not None and asked.task < 0:
        raise OptionsError(f"--task: {asked.task} is below 0")

    with quick_imports():  # of torch with it, now that what was asked for makes sense
        from continual.runs import bundle, loading

    run = Path(asked.run)
    own = loading.folders_of(run)
    out = keep_out_of(own, asked.out or f"exports/{_name(own, asked.task)}", "--out")
    if out.exists():
        raise OptionsError(f"--out: {out} is there already; choose another folder, or remove it")
    trained = loading.load(run, task=asked.task, say=_warn)
    images, what = bundle.real_images(trained, data_path=absolute(asked.data_path))
    apart = bundle.write(trained, out, images, asked.formats or bundle.kinds_of(trained))
    print(f"{out}: {trained.checkpoint}, {len(trained.classes)} classes; on {len(images)} {what}")
    for name, distance in apart.items():
        print(f"  {name:<17}  gives logits within {distance:.1e} of the model's")
    if lacking := bundle.missing(trained):
        print(f"not in here: {lacking}")
    return 0


def _name(own: Sequence[Path], task: int | None) -> str:
    """Of the folder to make: that of the run, with its series before it and the task behind it."""
    run = own[0]
    name = f"{run.parent.name}-{run.name}" if run.parent in own else run.name
    return name if task is None else f"{name}-task-{task}"


def _warn(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
