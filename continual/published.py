"""Hold a run against what was published: `python -m continual.published RUN`.

RUN is the log or the checkpoint folder of a CIFAR-100 run or series, finished or not. The accuracy after every step is printed
beside what users of the released code got, with the difference; then average and last accuracy beside every published number.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from continual.command import answered
from continual.errors import CheckpointError, OptionsError
from continual.files import UNREADABLE
from continual.options import STORED, DataOptions, parse
from continual.runs import folders
from continual.runs.record import EVALUATIONS
from continual.seeing.tables import text_table

PUBLISHED = Path(__file__).parent.parent / "options" / "published.json"


def published(nb_steps: int) -> list[dict[str, Any]]:
    """What is known of CIFAR-100 in so many steps: name, options, average, last, and for some the curve, in percent."""
    return [row for row in json.loads(PUBLISHED.read_text())["cifar100"] if row["steps"] == nb_steps]


def accuracies(logs: Path) -> list[float]:
    """Accuracy on all classes seen, in percent, at the end of every task learned. Raises CheckpointError if there is none."""
    path = logs / EVALUATIONS
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found = [float(record["acc"]) for record in records if record["final"]]
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not found:
        raise CheckpointError(f"{logs}: no task has been learned yet")
    return found


def nb_steps(data: DataOptions) -> int:
    """The steps of a CIFAR-100 run whose tasks all have one size. Raises OptionsError for any other."""
    if data.data_set.lower() not in ("cifar100", "cifar"):
        raise OptionsError(f"data_set: nothing is stored of {data.data_set}; the published curves are those of cifar100")
    steps = {10: 10, 5: 20, 2: 50}.get(data.increment if isinstance(data.increment, int) else 0)
    if steps is None or data.initial_increment not in (0, data.increment):
        raise OptionsError("increment: CIFAR-100 was published in steps of 10, 5 and 2 classes, the first task included")
    return steps


def compare(ours: Sequence[float], rows: Sequence[Mapping[str, Any]], nb_steps: int) -> str:
    """Two tables: our accuracy after each step beside every curve of `rows`, and our average and last beside every row."""
    curves = [row for row in rows if row.get("curve")]
    blocks = []
    if curves:
        header = ["classes", "this run", *(word for number in range(1, len(curves) + 1) for word in (f"[{number}]", "diff"))]
        lines = []
        for step, accuracy in enumerate(ours):
            cells = [f"{accuracy:.2f}"]
            for row in curves:
                known = step < len(row["curve"])
                cells += [f"{row['curve'][step]:.2f}", f"{accuracy - row['curve'][step]:+.2f}"] if known else ["–", "–"]
            lines.append([str((step + 1) * 100 // nb_steps), *cells])
        legend = [f"[{number}] {row['name']}" for number, row in enumerate(curves, start=1)]
        blocks.append("\n".join(["Accuracy (%) after each step", text_table(header, lines), *legend]))

    average, last = sum(ours) / len(ours), ours[-1]
    done = len(ours) == nb_steps
    lines = [["this run", f"{average:.2f}", f"{last:.2f}", "", "", ""]]
    for row in rows:
        diffs = [
            f"{mine - row[key]:+.2f}" if done and row[key] is not None else "–"
            for key, mine in (("average", average), ("last", last))
        ]
        cells = [f"{row[key]:.2f}" if row[key] is not None else "–" for key in ("average", "last")]
        lines.append([row["name"], *cells, *diffs, f"{row['model']} {row['options']}".strip()])
    title = "Average incremental and last accuracy (%)"
    if not done:
        title += f"; this run has learned {len(ours)} of {nb_steps} steps"
    blocks.append(f"{title}\n" + text_table(["", "average", "last", "diff", "diff", "options"], lines))
    return "\n\n".join(blocks)


def logs_of(folder: Path) -> list[Path]:
    """The log folders of the run, or of every run of the series, of which `folder` is one side. Raises CheckpointError."""
    logs = folder if (folder / EVALUATIONS).exists() else folders.reopen(folder).logs
    return sorted(path.parent for path in logs.glob(f"*/{EVALUATIONS}")) or [logs]


def main(argv: Sequence[str]) -> int:
    """Print the comparison for one run, or for each run of a series. Returns the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    return answered(_compared, argv)


def _compared(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        raise OptionsError("usage: python -m continual.published RUN")
    for logs in logs_of(Path(argv[0])):
        steps = nb_steps(parse(["--options", str(logs / STORED)]).data)
        print(f"{logs}\n\n{compare(accuracies(logs), published(steps), steps)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
