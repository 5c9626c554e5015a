"""What people read of a run's figures: aligned tables, and several runs as one.

Accuracies, forgetting and backward transfer are in percent; metrics from outside (`registry.METRICS`) as they were given,
with four significant digits. "Task unknown" is class-incremental, "task known" task-incremental; names of figures with task
known end in `_known`.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from continual.registry import METRICS
from continual.seeing.progress import duration

# The figures of a run, as named in evaluations.jsonl and summary.json, and as people read them.
FIGURES = {
    "acc": "last accuracy",
    "avg_acc": "average incremental accuracy",
    "forgetting": "forgetting",
    "bwt": "backward transfer",
}
KINDS = {"task unknown": "", "task known": "_known"}  # how their names end

COLUMNS = 10  # tasks side by side in a table; ten keep it within 100 characters


def summarise(summaries: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Several runs (seeds, class orders) as one: a text table, and for every figure {"mean", "std", "values"}.

    A metric from outside is told when every run has it: those done before it was registered do not.
    std is the sample standard deviation (n - 1), None for one run. Raises ValueError when there is no run.
    """
    if not summaries:
        raise ValueError("no run to sum up")
    own = _metrics(summaries)
    names = [name + suffix for suffix in KINDS.values() for name in FIGURES]
    names += ["acc5", "mean_acc5", "n_parameters", "n_exemplars", "time"]
    names += [name + suffix for suffix in KINDS.values() for name in own]
    series = {name: spread([summary[name] for summary in summaries]) for name in names}
    rows = [[words, *(mean_std(series[name + suffix]) for suffix in KINDS.values())] for name, words in FIGURES.items()]
    rows += [[name, *(mean_std(series[name + suffix], ".4g") for suffix in KINDS.values())] for name in own]
    nb_runs = len(summaries)
    title = f"Mean ± standard deviation over {nb_runs} runs, in percent" if nb_runs > 1 else "One run, in percent"
    text = [
        title,
        text_table(["", *KINDS], rows),
        f"parameters {series['n_parameters']['mean']:,.0f}, exemplars kept {series['n_exemplars']['mean']:,.0f}, "
        f"time {duration(series['time']['mean'])} per run",
    ]
    return "\n".join(text), {"nb_runs": nb_runs, **series}


def summary_text(summary: Mapping[str, Any]) -> str:
    """The figures of `Report.finish` as text: accuracy matrices, figures, size and time."""
    blocks = []
    for name, kind in (("matrix", "unknown"), ("matrix_known", "known")):
        blocks.append(f"Accuracy (%) on each task's test images, task {kind}\n{matrix_table(summary[name])}")
    if summary["nb_tasks"] > COLUMNS:
        blocks.append("The whole matrices are in summary.json.")
    blocks.append(figures_table(summary))
    blocks.append(
        f"parameters {summary['n_parameters']:,}, exemplars kept {summary['n_exemplars']:,}, time {duration(summary['time'])}"
        + (f"\n{cost_text(summary['cost'])}" if "cost" in summary else "")
    )
    return "\n" + "\n\n".join(blocks) + "\n"


def report_command(logs: Path) -> str:
    """What to type for the page of a run or a series."""
    return f"python -m continual.report {shlex.quote(str(logs))}"


def cost_text(cost: Mapping[str, Any]) -> str:
    """What a run cost (see `Ledger.cost`) in three lines."""
    held = "paths" if cost["exemplars_are_paths"] else amount(cost["exemplar_bytes"], "B")
    device = cost["peak_device_memory"]
    lines = [
        f"{cost['images']:,} images in {cost['steps']:,} training steps; {amount(cost['flops'], 'FLOP')}, "
        f"{amount(cost['flops_training'], 'FLOP')} of them in training",
        "seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in cost["seconds"].items()),
        f"memory: host {amount(cost['peak_host_memory'], 'B')}"
        + ("" if device is None else f", device {amount(device, 'B')}")
        + f"; model {amount(cost['model_bytes'], 'B')}, teacher {amount(cost['teacher_bytes'], 'B')}, exemplars {held}",
    ]
    return "\n".join(lines)


def amount(number: float, unit: str) -> str:
    """Three digits and a decimal prefix: 1234567 B -> 1.23 MB."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"]
    while number >= 999.5 and len(prefixes) > 1:
        number, prefixes = number / 1000, prefixes[1:]
    return f"{number:.3g} {prefixes[0]}{unit}"


def matrix_table(matrix: Sequence[Sequence[float]]) -> str:
    """An accuracy matrix in percent: row i after task i, column j task j.

    Beyond ten tasks the two rows that tell most: each task when it was learned (the diagonal), and at the end.
    """
    if len(matrix) <= COLUMNS:
        header = ["task", *(str(j + 1) for j in range(len(matrix)))]
        rows = [[f"after task {i + 1}", *(f"{share:.1f}" for share in row)] for i, row in enumerate(matrix)]
        return text_table(header, rows)
    return _blocks({"when learned": [row[-1] for row in matrix], "at the end": matrix[-1]})


def per_task_table(record: Mapping[str, Any]) -> str:
    """The accuracies per task of one evaluation's record, ten tasks side by side; last, how far apart its task tokens are."""
    rows = {"task unknown": "acc_per_task", "top-5": "acc5_per_task", "task known": "acc_known_per_task"}
    table = _blocks({words: record[key] for words, key in rows.items() if key in record})
    if "token_mean_dist" not in record:
        return table
    mean, least, most = (record[f"token_{name}_dist"] for name in ("mean", "min", "max"))
    return f"{table}\ndistance between task tokens: mean {mean:.3f}, min {least:.3f}, max {most:.3f}"


def figures_table(figures: Mapping[str, Any]) -> str:
    """The four figures of a record or a summary, in percent, and its metrics from outside, with task unknown and known."""
    own = _metrics([figures])
    rows = []
    for words, suffix in KINDS.items():
        cells = [f"{figures[name + suffix]:.2f}" for name in FIGURES]
        rows.append([words, *cells, *(f"{figures[name + suffix]:.4g}" for name in own)])
    return text_table(["", "accuracy", *list(FIGURES.values())[1:], *own], rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: first column to the left, the others to the right, a rule below the header. Rows may end early."""
    widths = [max(len(row[i]) for row in [header, *rows] if i < len(row)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))
        return "  ".join([row[0].ljust(widths[0]), *others]).rstrip()

    return "\n".join([line(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *(line(row) for row in rows)])


def _blocks(rows: Mapping[str, Sequence[float]]) -> str:
    """Rows of one number per task as tables of at most ten columns, below each other."""
    nb_tasks = max(len(row) for row in rows.values())
    tables = []
    for first in range(0, nb_tasks, COLUMNS):
        tasks = range(first, min(first + COLUMNS, nb_tasks))
        cells = [[words, *(f"{row[j]:.1f}" for j in tasks)] for words, row in rows.items()]
        tables.append(text_table(["task", *(str(j + 1) for j in tasks)], cells))
    return "\n\n".join(tables)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of one value), and the values."""
    std = round(stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(fmean(values), 4), "std": std, "values": list(values)}


def _metrics(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics from outside that all of these records have."""
    return [name for name in METRICS.outside() if all(name in record for record in records)]


def mean_std(spread: Mapping[str, Any], form: str = ".2f") -> str:
    """What `spread` gave, as text: the deviation only where there is one."""
    numbers = [spread["mean"]] if spread["std"] is None else [spread["mean"], spread["std"]]
    return " ± ".join(format(number, form) for number in numbers)
