"""The page of one run: what it is, how it stands, and every chapter of it."""

import json
import os
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from typing import Any

from continual.errors import Refused, how_it_failed, some
from continual.options import PATHS, Options, flat
from continual.registry import EXHIBITS
from continual.report.classes import classes
from continual.report.course import cost, seconds_of, training
from continual.report.exhibit import Chapter, Exhibit, Table
from continual.report.reading import Past
from continual.report.results import reached, results
from continual.runs.record import STATUS
from continual.seeing.progress import duration

GOING = ("preparing", "running")


def chapters(past: Past) -> list[Chapter]:
    """Of one run; the first of them, which tells what is missing, is made last."""
    from continual.report.exemplars import exemplars  # here, because it takes seconds to import, for models

    rest = [results(past), classes(past), training(past), cost(past), exemplars(past), *registered(past), told(past)]
    found = reached(past)
    if found and found.nb_tasks > past.nb_tasks:
        past.fault(f"evaluations.jsonl tells of the ends of {past.nb_tasks} of {found.nb_tasks} tasks; lines are missing")
    return [Chapter("The run", [overview(past)], past.faults), *rest]


def registered(past: Past) -> list[Chapter]:
    """What scripts have added to the page; no chapter where none has."""
    from continual.report.figures import files

    exhibits, missing = [], []
    for name, make in EXHIBITS.outside().items():
        try:
            made = make(past)
            if not isinstance(made, Exhibit | None):
                missing.append(f"{name}: what was registered gives a {type(made).__name__} in the place of an Exhibit")
            elif made is not None:
                shown = replace(made, name=name.replace("_", "-"))
                files(shown)  # what cannot be drawn or written fails here
                exhibits.append(shown)
        except Refused as refused:
            missing.append(f"{name}: {refused}")
        except Exception as error:
            missing.append(f"{name}: what was registered failed {how_it_failed(error)}")
    return [Chapter("Registered by a script", exhibits, missing)] if exhibits or missing else []


def title(past: Past) -> str:
    return f"{past.series.name}, {past.label}" if past.series else past.label


def going(past: Past) -> bool:
    return past.status.get("status") in GOING


def status(past: Past) -> str:
    """How a run stands, in words: its reason and place where it did not end well."""
    word = past.status.get("status", "unknown")
    how = [str(past.status[key]) for key in ("message", "where") if past.status.get(key)]
    code = past.status.get("exit_code")
    return word + (f" (exit code {code})" if code else "") + (f": {', at '.join(how)}" if how else "")


def tasks(past: Past) -> str:
    """How many tasks of how many classes, such as "5 of 2 classes" or "1 of 50 classes, 5 of 10 classes"."""
    found = [(size, len(list(group))) for size, group in groupby(past.sizes)]
    if not found:
        return "not known yet"
    return some(f"{nb} of {size} class{'es' if size != 1 else ''}" for size, nb in found)


def progress(past: Past) -> str:
    """How many tasks are learned, of as many as the run is to learn where that is told."""
    most = past.options.get("max_task")
    whole = min(len(past.sizes), most) if most and past.sizes else len(past.sizes)
    found = reached(past)
    learned = found.nb_tasks if found else past.nb_tasks
    return f"{learned} of {whole}" if whole else str(learned)


def overview(past: Past) -> Exhibit:
    found = reached(past)
    record = found.figures if found else {}
    seconds = seconds_of(past)
    rows = [
        ["status", status(past)],
        ["method", past.method],
        ["data set", str(past.options.get("data_set", ""))],
        ["tasks", tasks(past)],
        ["tasks learned", progress(past)],
        ["seed", str(past.options.get("seed", ""))],
        ["parameters", _number(record.get("n_parameters"))],
        ["exemplars", _number(record.get("n_exemplars"))],
        ["time", None if seconds is None else duration(seconds)],
        ["checkpoints", f"{len(past.stored)}, the newest {past.stored[-1].path.name}" if past.stored else "none"],
        ["last heard of", last_heard(past)],
        ["logs", str(past.logs or "gone")],
        ["checkpoint folder", str(past.checkpoints or "gone")],
    ]
    said = ""
    if found:
        figures = {"average": "avg_acc", "last": "acc", "forgetting": "forgetting"}
        words = [f"{words} {record[name]:.2f}" for words, name in figures.items() if isinstance(record.get(name), float)]
        said = f"Accuracy in percent: {', '.join(words)}." if words else ""
    return Exhibit(
        "run", "What it is and how it stands", "As the files of the run tell.", Table(["", "this run"], rows), None, said
    )


def last_heard(past: Past) -> str:
    """When a log was last written; a run that says it is running and was killed says so for ever."""
    if past.logs is None:
        return ""
    files = [path for path in past.logs.iterdir() if path.is_file()]
    newest = max((os.path.getmtime(path) for path in files), default=0.0)
    return f"{datetime.fromtimestamp(newest):%Y-%m-%d %H:%M:%S}" if (past.logs / STATUS).exists() else ""


def told(past: Past) -> Chapter:
    """What the run was told, and what it learns."""
    defaults, hidden = flat(Options()), {*PATHS, "name", "log_category"}
    rows = [
        [key, plain_value(value), plain_value(defaults.get(key))]
        for key, value in sorted(past.changed.items())
        if key not in hidden
    ]
    reads = "What differs from the defaults, but for where files lie; the rest is in options.yaml, beside the logs."
    shown = [Exhibit("options", "Options", reads, Table(["option", "here", "default"], rows))]
    if past.classes:
        described = any(row.get("description") for row in past.classes)
        header = ["label", "class id", "name", "task", *(["what it is"] if described else [])]
        names = [
            [
                row["label"],
                row.get("class"),
                str(row["name"]),
                row["task"] + 1,
                *([row.get("description", "")] if described else []),
            ]
            for row in past.classes
        ]
        shown.append(Exhibit("classes", "Classes", "In the order in which they are learned.", Table(header, names)))
    return Chapter("What it was told", shown)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def plain_value(value: Any) -> str:
    """As in an options file."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, default=list)
