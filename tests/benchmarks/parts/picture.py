"""A picture of what was measured: the step against the published way, its parts, its cost by tasks, and the augmentation."""

from collections.abc import Callable
from pathlib import Path

import matplotlib

from parts.models import PARTS
from parts.setting import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OURS, OTHER = "#2b6cb0", "#a0aec0"


def draw(report: Row, path: Path) -> None:
    """One panel for each section that has something to show; nothing if none has."""
    sections = report["sections"]
    panels: list[tuple[Callable, list[Row]]] = []
    for name, panel in (("step", steps), ("step", parts), ("tasks", tasks), ("augment", augmentation)):
        rows = sections.get(name, {}).get("rows", [])
        if rows:
            panels.append((panel, rows))
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for (panel, rows), axis in zip(panels, axes[0], strict=True):
        panel(rows, axis)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def steps(rows: list[Row], axis) -> None:
    """Images a second of both ways."""
    names = [f"{row['tasks']}\n{row['precision']}" for row in rows]
    at = range(len(rows))
    axis.bar([i - 0.2 for i in at], [row["images/s"] for row in rows], 0.4, color=OURS, label="this code")
    theirs = [1e3 * row["batch"] / row["published way (ms)"] for row in rows]
    axis.bar([i + 0.2 for i in at], theirs, 0.4, color=OTHER, label="the published way")
    axis.set_xticks(list(at), names, fontsize=8)
    axis.set(title="training step of the CIFAR model", xlabel="tasks", ylabel="images / s")
    axis.legend(frameon=False)


def parts(rows: list[Row], axis) -> None:
    """What a step is made of, in milliseconds an image."""
    base = [0.0] * len(rows)
    for name in (*PARTS, "rest"):
        heights = [max(0.0, row[f"{name} (ms)"]) / row["batch"] for row in rows]
        axis.bar(range(len(rows)), heights, bottom=base, label=name)
        base = [a + b for a, b in zip(base, heights, strict=True)]
    axis.set_xticks(range(len(rows)), [f"{row['tasks']}\n{row['precision']}" for row in rows], fontsize=8)
    axis.set(title="its parts", xlabel="tasks", ylabel="ms / image")
    axis.legend(frameon=False, fontsize=7)


def tasks(rows: list[Row], axis) -> None:
    """Cost against one task."""
    at = [row["tasks"] for row in rows]
    axis.plot(at, [row["forward / first"] for row in rows], "o-", color=OTHER, label="forward")
    axis.plot(at, [row["step / first"] for row in rows], "o-", color=OURS, label="training step")
    axis.set(xscale="log", title="cost by the number of tasks", xlabel="tasks", ylabel="times one task", ylim=(0, None))
    axis.legend(frameon=False)


def augmentation(rows: list[Row], axis) -> None:
    """Images a second, batched and by Pillow."""
    keys = [key for key in rows[0] if key.endswith("(images/s)")]
    for number, row in enumerate(rows):
        where = [i + 0.4 * number for i in range(len(keys))]
        axis.bar(where, [row[key] for key in keys], 0.4, label=row["view"], color=(OURS, OTHER)[number % 2])
    names = [key.removesuffix(" (images/s)").replace("batches of ", "") for key in keys]
    axis.set_xticks([i + 0.2 for i in range(len(keys))], names)
    axis.set(title="augmentation, one core", xlabel="batch", ylabel="images / s", yscale="log")
    axis.set_ylim(top=4 * axis.get_ylim()[1])
    axis.legend(frameon=False, ncols=2)
