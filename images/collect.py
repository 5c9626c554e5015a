"""Gather what images/draw_results.py draws, from the folders of runs: figures into a JSON file, attention into a .npz file.

    python images/collect.py --out images/results.json "digits: DyTox=RUN" "glyphs: DyTox=RUN,RUN" "glyphs: rehearsal=RUN"
    python images/collect.py --attention RUN --out images/attention.npz

RUN is the log or the checkpoint folder of a run or of a series. Nothing of a run is touched.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from continual.report import errors  # noqa: E402
from continual.report.attention import over_patches, upscaled  # noqa: E402
from continual.report.inside import Reader  # noqa: E402
from continual.report.reading import Past, read, read_all  # noqa: E402

PLACES = 3  # digits behind the point


def of_run(past: Past) -> dict[str, Any]:
    """What is drawn of one run: its figures in percent, its errors by kind after every task, and what it cost."""
    if not past.done:
        raise SystemExit(f"{past.folder}: this run is not done")
    kept, _ = Reader(past).read()  # what was answered then; of a run that has not kept it, what its checkpoints answer now
    if len(kept) < past.nb_tasks:
        raise SystemExit(f"{past.folder}: neither predictions nor checkpoints of all tasks are there")
    parts = [errors.split(kept[task]).overall() for task in range(past.nb_tasks)]
    summary = past.summary
    return {
        "seed": past.options["seed"],
        **{key: summary[key] for key in ("nb_classes", "accs", "avg_acc", "acc", "forgetting", "n_parameters")},
        "at_the_end": summary["matrix"][-1],
        "when_learned": [row[-1] for row in summary["matrix"]],
        "errors": {name: [round(part[name], PLACES) for part in parts] for name in ("within", "newer", "older")},
        "flops_training": summary["cost"]["flops_training"],
        "exemplar_bytes": summary["cost"]["exemplar_bytes"],
    }


def experiment(text: str) -> tuple[str, list[dict[str, Any]]]:
    """ "name=RUN,RUN" -> name, its runs."""
    name, equals, paths = text.partition("=")
    if not (name and equals and paths):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=RUN[,RUN...]")
    return name, [of_run(past) for past in read_all(paths.split(","))]


def attention(path: str) -> dict[str, np.ndarray]:
    """Test images, the map of every task token over each, and which class and task each is of, at the end of a run."""
    past = read(path)[0]
    kept, inside = Reader(past).read()
    if inside.attention is None:
        raise SystemExit(f"{path}: there is no attention to be had")
    itself, patches = over_patches(inside.attention)
    found = kept[past.nb_tasks - 1]
    of_place = dict(zip(found.places.tolist(), zip(found.labels, found.tasks, strict=True), strict=True))
    shown = [of_place[int(place)] for place in inside.shown]
    return {
        "pixels": np.round(255 * inside.pixels).astype(np.uint8),
        "maps": upscaled(patches, inside.pixels.shape[1]).astype(np.float16),
        "itself": itself.astype(np.float16),
        "names": np.array([str(past.classes[label]["name"]) for label, _ in shown]),
        "tasks": np.array([task for _, task in shown]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--attention", metavar="RUN", help="gather the attention of this run's task tokens instead")
    parser.add_argument("experiments", nargs="*", type=experiment, metavar="name=RUN[,...]")
    args = parser.parse_args()
    if args.attention:
        np.savez_compressed(args.out, **attention(args.attention))
    else:
        known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        known |= dict(args.experiments)
        args.out.write_text(json.dumps(known, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
