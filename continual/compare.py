"""Is the difference between two methods real? `python -m continual.compare A B`.

A and B are each the log or the checkpoint folder of a run or of a series; the runs of two series are paired by seed and class
order. What they answered on every test image is held against each other, task by task and over all; one sentence ends it. Only
the logs are read, and nothing of the runs is touched.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from continual.command import Parser, answered
from continual.errors import CheckpointError, OptionsError, plain
from continual.files import replacing
from continual.report import pairs
from continual.report.exhibit import Exhibit
from continual.report.pairs import Comparison
from continual.report.reading import Past, read
from continual.seeing.tables import text_table


def parser() -> Parser:
    found = Parser("compare", __doc__)
    for name in "AB":
        found.add_argument(name.lower(), metavar=name, type=Path, help="log or checkpoint folder of a run or a series")
    found.add_argument("--out", type=Path, metavar="DIR", help="also write tables (CSV, Markdown, LaTeX) and a picture there")
    found.add_argument("--json", action="store_true", help="print JSON in place of tables")
    found.add_argument("--samples", type=_count(100, 1_000_000), default=pairs.SAMPLES, metavar="N", help="draws (%(default)s)")
    found.add_argument("--seed", type=_count(0, 2**63), default=0, metavar="S", help="of the draws (%(default)s)")
    return found


def text(found: Comparison, a: Sequence[Past], b: Sequence[Past]) -> str:
    """What the command prints."""
    blocks = ["\n".join([*(f"{name}: {_told(side)}" for name, side in (("A", a), ("B", b))), *found.notes])]
    for kind in pairs.KINDS:
        header = ["", "A", "B", "A - B", "95 % interval", "only A", "only B", "p", "Holm"]
        rows = [
            [
                row.name,
                *(f"{value:.1f}" for value in (row.a, row.b)),
                pairs.signed(row.difference),
                f"{pairs.signed(row.low)} to {pairs.signed(row.high)}",
                *("" if count is None else str(count) for count in (row.only_a, row.only_b)),
                *map(pairs.probability, (row.p, row.p_holm)),
            ]
            for row in found.rows_of(kind)
        ]
        blocks.append(f"Accuracy (%) after task {found.nb_tasks}, {kind}\n{text_table(header, rows)}")
    if found.seeds:
        table = pairs.over_seeds(found)
        rows = [[table.shown(cell) for cell in row] for row in table.rows]
        blocks.append(
            f"Over the runs, mean ± standard deviation\n{text_table([word.replace('−', '-') for word in table.header], rows)}"
        )
    return "\n\n".join([*blocks, found.verdict])


def write(found: Sequence[Exhibit], folder: Path) -> None:
    """Every table as CSV, Markdown and LaTeX, every picture as PNG and SVG. Raises CheckpointError if one cannot be written."""
    from continual.report import figures  # here, for matplotlib, which few who compare need

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for exhibit in found:
            for name, content in figures.files(exhibit)[0].items():
                with replacing(folder / name) as file:
                    file.write(content)
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison. Returns the exit code, which does not depend on the verdict."""
    return answered(_compare, argv)


def _compare(argv: Sequence[str] | None) -> int:
    wanted = parser().parse_args(argv)
    a, b = read(wanted.a), read(wanted.b)
    if wanted.out is not None:
        _check_apart(wanted.out, [*a, *b])
    found = pairs.compare(a, b, samples=wanted.samples, seed=wanted.seed)
    if wanted.out is not None:
        write(pairs.shown(found), wanted.out)
    if wanted.json:
        runs = {name: [str(past.folder) for past in side] for name, side in (("runs_a", a), ("runs_b", b))}
        print(json.dumps({"verdict": found.verdict, **runs, **asdict(found)}, indent=1, allow_nan=False))
    else:
        print(plain(text(found, a, b)))
    return 0


def _check_apart(out: Path, runs: Sequence[Past]) -> None:
    """Raise OptionsError if the tables would lie among what a run has written."""
    kept = {path.resolve() for past in runs for path in (past.logs, past.checkpoints, past.series) if path}
    inside = kept & {out.resolve(), *out.resolve().parents}
    if inside:
        raise OptionsError(f"--out: {out} lies in the folder of a run, {min(inside)}, in which nothing is written")


def _told(runs: Sequence[Past]) -> str:
    folder = runs[0].series or runs[0].folder
    return f"{folder} ({runs[0].method}, {len(runs)} run{'s' if len(runs) > 1 else ''})"


def _count(least: int, most: int):
    def count(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text[:30]) <= most:
            raise argparse.ArgumentTypeError(f"takes a whole number from {least:,} to {most:,}, not {text[:40]!r}")
        return int(text)

    return count


if __name__ == "__main__":
    sys.exit(main())
