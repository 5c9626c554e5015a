"""Draw what was published, from options/published.json: CIFAR-100 in 10, 20 and 50 steps, users' curves, and ImageNet.

python images/draw_published.py --out images/published.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from drawing import tidy

PUBLISHED = Path(__file__).resolve().parent.parent / "options" / "published.json"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"
STEPS = (10, 20, 50)

# Rows of the file -> how they are drawn: label, colour, line.
OURS = {
    "DyTox+, 1000 on each of two GPUs (erratum)": ("DyTox+, 2 × 1000", ORANGE, "-"),
    "DyTox, 1000 on each of two GPUs (erratum)": ("DyTox, 2 × 1000", BLUE, "-"),
    "DyTox, one memory of 2000 (erratum)": ("DyTox, 1 × 2000", GREEN, "-"),
    "DyTox+, first version, 2000 on each of two GPUs": ("DyTox+, first version, 2 × 2000", ORANGE, ":"),
    "DyTox, first version, 2000 on each of two GPUs": ("DyTox, first version, 2 × 2000", BLUE, ":"),
}
RIVALS = {"DER without pruning": "s", "WA": "^", "BiC": "v", "iCaRL": "D", "UCIR": "P", "PODNet": "X"}
IMAGENET = {  # name in the file -> label; from the top
    "DyTox+, one memory (erratum, 8 GPUs)": ("DyTox+, one memory", ORANGE),
    "DyTox, one memory (erratum, 8 GPUs)": ("DyTox, one memory", GREEN),
    "DyTox+, first version": ("DyTox+, first version", "#EFC3A4"),
    "DyTox, first version": ("DyTox, first version", "#A9CCE3"),
    "DER without pruning": ("DER without pruning", GREY),
    "WA": ("WA", GREY),
    "iCaRL": ("iCaRL", GREY),
}


def series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Number of steps and average incremental accuracy of one row."""
    found = sorted((row["steps"], row["average"]) for row in rows if row["name"] == name and row["average"] is not None)
    return [steps for steps, _ in found], [average for _, average in found]


def draw_steps(ax: plt.Axes, published: dict[str, Any]) -> None:
    """Average incremental accuracy over the number of steps that CIFAR-100 comes in."""
    places = {steps: place for place, steps in enumerate(STEPS)}
    for name, marker in RIVALS.items():
        steps, averages = series(published["cifar100_rivals"], name)
        ax.plot([places[each] for each in steps], averages, color=GREY, lw=1, marker=marker, ms=5, label=name)
    for name, (label, colour, line) in OURS.items():
        steps, averages = series(published["cifar100"], name)
        ax.plot([places[each] for each in steps], averages, line, color=colour, lw=2, marker="o", ms=5, label=label)
    users = [row for row in published["cifar100"] if row["name"].startswith("a user")]
    ax.plot(
        [places[row["steps"]] for row in users],
        [row["average"] for row in users],
        "k_",
        ms=11,
        mew=1.6,
        label="users of the released code",
    )
    ax.set_xticks(list(places.values()), [str(steps) for steps in STEPS])
    ax.set_xlim(-0.15, len(STEPS) - 0.85)
    tidy(ax, "CIFAR-100", xlabel="steps", ylabel="average incremental accuracy (%)")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02), labelspacing=0.55)


def draw_curves(ax: plt.Axes, published: dict[str, Any]) -> None:
    """Accuracy after every step, where a user told it."""
    for row, colour in zip([row for row in published["cifar100"] if row.get("curve")], (GREEN, BLUE), strict=False):
        classes = [100 // row["steps"] * (step + 1) for step in range(len(row["curve"]))]
        ax.plot(classes, row["curve"], color=colour, lw=2, marker="o", ms=4, label=row["name"])
    tidy(ax, "CIFAR-100 in 10 steps, as users ran it", xlabel="classes seen", ylabel="accuracy on them (%)", ylim=(0, 100))
    ax.legend(frameon=False, fontsize=8, loc="lower left")


def draw_imagenet(ax: plt.Axes, rows: list[dict[str, Any]], title: str, *, names: bool) -> None:
    """Average incremental accuracy (bar) and last accuracy (line across it), top-1, in 10 steps."""
    known = {row["name"]: row for row in rows}
    for place, (name, (_, colour)) in enumerate(reversed(IMAGENET.items())):
        row = known.get(name, {})
        if row.get("top1_average") is None:
            ax.text(1, place, "not told", va="center", fontsize=8, color=GREY)
            continue
        ax.barh(place, row["top1_average"], color=colour, height=0.7)
        ax.text(row["top1_average"] + 1, place, f"{row['top1_average']:.1f}", va="center", fontsize=8)
        ax.plot([row["top1_last"]] * 2, [place - 0.35, place + 0.35], color="black", lw=1.6)
    ax.set_yticks(range(len(IMAGENET)), [label for label, _ in reversed(IMAGENET.values())] if names else [])
    ax.tick_params(axis="y", length=0)
    tidy(ax, title, xlabel="top-1 (%): average, and | last", xlim=(0, 92), ylim=(-0.6, len(IMAGENET) - 0.4))
    ax.grid(visible=False, axis="y")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the picture to write (png, pdf or svg)")
    args = parser.parse_args()
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    figure = plt.figure(figsize=(12, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    draw_steps(above.subplots(), published)
    curves, small, large = below.subplots(1, 3, width_ratios=(1.15, 1, 1))
    draw_curves(curves, published)
    draw_imagenet(small, published["imagenet100"], "ImageNet-100 in 10 steps", names=True)
    draw_imagenet(large, published["imagenet1000"], "ImageNet-1000 in 10 steps", names=False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
