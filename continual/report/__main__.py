"""A page about runs: `python -m continual.report RUN [RUN ...]`. See continual/report/__init__.py."""

import argparse
import sys
from collections.abc import Sequence

from continual.command import Parser, answered, quick_imports
from continual.errors import plain


def seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise argparse.ArgumentTypeError(f"takes seconds above 0, not {text!r}; RUN goes before --watch")
    return found


def parser() -> Parser:
    found = Parser("report", "A page of pictures and tables about runs.")
    found.add_argument(
        "runs", nargs="+", metavar="RUN", help="log or checkpoint folder of a run or a series; several: a comparison"
    )
    found.add_argument("--out", default="", metavar="DIR", help="folder of the page; default: beside the run, RUN-report")
    found.add_argument("--deep", action="store_true", help="also where errors come from, which needs the kept checkpoints")
    found.add_argument(
        "--watch",
        nargs="?",
        type=seconds,
        const=10.0,
        metavar="SECONDS",
        help="look every SECONDS (10), and write the page again when there is something new, until the run ends",
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where it is. Returns the exit code."""
    return answered(_report, argv)


def _report(argv: Sequence[str] | None) -> int:
    wanted = parser().parse_args(argv)
    with quick_imports():  # now, so that a wrong option is answered before torch is imported
        from continual.report.page import Wanted, make

    print(plain(f"the page: {make(Wanted(**vars(wanted)))}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
