"""What is answered on images, written down: as text, CSV or JSON lines; and how far a long list has come.

All of it in UTF-8; bytes of paths that are not UTF-8 stay as they are, but in JSON, where they are escaped.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Protocol, TypeVar

from tqdm import tqdm

from continual.errors import plain
from continual.seeing.progress import duration

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines about progress, where there is no terminal
PATIENCE = 2.0  # seconds until a bar appears: short lists do without


class Answer(Protocol):
    """One class that an image may be of."""

    name: str
    task: int
    probability: float


def csv_line(cells: Iterable[object]) -> bytes:
    """One row, quoted where need be."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def as_text(path: str, answers: Sequence[Answer]) -> bytes:
    """`img.png: cat 97.1 % (task 2), dog 1.9 % (task 0)`"""
    told = ", ".join(f"{each.name} {100 * each.probability:.1f} % (task {each.task})" for each in answers)
    return "".join(c if c.isprintable() else plain(ascii(c)[1:-1]) for c in f"{path}: {told}").encode() + b"\n"


def as_csv(path: str, answers: Sequence[Answer]) -> bytes:
    """A row below `csv_header`."""
    return csv_line([path, *(cell for each in answers for cell in (each.name, each.task, f"{each.probability:.6f}"))])


def csv_header(top: int) -> bytes:
    """The names of the columns: path, then class, task and probability of the likeliest, of the next, ..."""
    return csv_line(["path", *(f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "task", "probability"))])


def as_json(path: str, answers: Sequence[Answer]) -> bytes:
    """`{"path": ..., "answers": [{"class": ..., "task": ..., "probability": ...}, ...]}`"""
    told = [{"class": each.name, "task": each.task, "probability": round(each.probability, 6)} for each in answers]
    return json.dumps({"path": path, "answers": told}).encode() + b"\n"


FORMATS: dict[str, Callable[[str, Sequence[Answer]], bytes]] = {"text": as_text, "csv": as_csv, "jsonl": as_json}


def counted(values: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same; on standard error is shown how many have come: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        yield from tqdm(values, total=total, unit=f" {what}", delay=PATIENCE, leave=False, dynamic_ncols=True)
        return
    begun = last = monotonic()
    for number, value in enumerate(values, start=1):
        yield value
        now = monotonic()
        if now - last >= EVERY and number < total:
            last, left = now, (now - begun) * (total - number) / number
            print(f"{number:,} of {total:,} {what}, {duration(left)} left", file=sys.stderr, flush=True)
