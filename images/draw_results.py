"""Draw our own results from images/results.json and images/attention.npz, which images/collect.py gathers from runs.

python images/draw_results.py results --out images/results.png
python images/draw_results.py errors --out images/errors.png
python images/draw_results.py attention --out images/attention.png
python images/draw_results.py cost --out images/cost.png
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from drawing import tidy

HERE = Path(__file__).resolve().parent
COLOURS = {
    "DyTox": "#0072B2",
    "rehearsal": "#D55E00",
    "DyTox without distillation": "#009E73",
    "DyTox+": "#CC79A7",
    "DyTox++": "#E69F00",
}
TAKEN_APART = ("DyTox", "DyTox without distillation", "rehearsal")  # whose errors are shown
KINDS = {
    "within": ("within the task", "#56B4E9"),
    "newer": ("towards newer tasks", "#D55E00"),
    "older": ("towards older tasks", "#8A8A8A"),
}
TIGHT = {"layout": "constrained"}
Runs = list[dict[str, Any]]


def experiments() -> dict[str, dict[str, Runs]]:
    """Data set -> method -> its runs."""
    found: dict[str, dict[str, Runs]] = {}
    for name, runs in json.loads((HERE / "results.json").read_text(encoding="utf-8")).items():
        data_set, _, method = name.partition(": ")
        found.setdefault(data_set, {})[method] = runs
    return found


def told(runs: Runs) -> str:
    return f"{len(runs)} seeds" if len(runs) > 1 else "one seed"


def draw_results() -> plt.Figure:
    """Accuracy on all classes seen, and how much each task lost, mean over seeds with one standard deviation."""
    data_sets = experiments()
    figure, axes = plt.subplots(len(data_sets), 2, figsize=(11, 3.7 * len(data_sets)), squeeze=False, **TIGHT)
    for (name, methods), (left, right) in zip(data_sets.items(), axes, strict=True):
        width = 0.8 / len(methods)
        for place, (method, runs) in enumerate(methods.items()):
            colour = COLOURS[method]
            accs = np.array([run["accs"] for run in runs])
            lost = np.array([np.subtract(run["when_learned"], run["at_the_end"]) for run in runs])[:, :-1]
            mean, at = accs.mean(0), np.arange(lost.shape[1]) + 1 + (place - (len(methods) - 1) / 2) * width
            label = f"{method}: {mean.mean():.1f} ({told(runs)})"
            left.plot(runs[0]["nb_classes"], mean, color=colour, marker="o", ms=4, lw=2, label=label)
            spread = lost.std(0, ddof=1) if len(runs) > 1 else None
            right.bar(at, lost.mean(0), width, color=colour, yerr=spread, error_kw={"lw": 1}, label=method)
            if len(runs) > 1:
                std = accs.std(0, ddof=1)
                left.fill_between(runs[0]["nb_classes"], mean - std, mean + std, color=colour, alpha=0.2, lw=0)
        tidy(left, f"{name}: accuracy on all classes seen", xlabel="classes seen", ylabel="accuracy (%)", ylim=(60, 101))
        left.legend(title="mean over the steps", frameon=False, loc="lower left", alignment="left", fontsize=9)
        tidy(right, f"{name}: lost since it was learned", xlabel="task", ylabel="points of accuracy")
        right.axhline(0, color="0.4", lw=0.8)
        right.set_xticks(range(1, lost.shape[1] + 1))
    return figure


def draw_errors() -> plt.Figure:
    """The error after every task, in parts that add up to it."""
    found = experiments()["glyphs"]
    methods = {name: found[name] for name in TAKEN_APART}
    figure, axes = plt.subplots(
        1, len(methods), figsize=(4.2 * len(methods), 3.8), sharey=True, layout="constrained", squeeze=False
    )
    for ax, (method, runs) in zip(axes[0], methods.items(), strict=True):
        below = np.zeros(len(runs[0]["accs"]))
        tasks = np.arange(len(below)) + 1
        for kind, (label, colour) in KINDS.items():
            share = np.mean([run["errors"][kind] for run in runs], axis=0)
            ax.bar(tasks, share, 0.8, bottom=below, color=colour, label=label)
            below += share
        tidy(ax, f"glyphs: {method} ({told(runs)})", xlabel="after task", xticks=tasks)
    axes[0, 0].set_ylabel("wrong answers (%)")
    axes[0, 0].margins(y=0.3)
    axes[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def draw_attention() -> plt.Figure:
    """The same images through the eyes of every task token."""
    with np.load(HERE / "attention.npz") as kept:
        pixels, maps, names, tasks = (kept[key] for key in ("pixels", "maps", "names", "tasks"))
    nb_images, nb_tokens = maps.shape[:2]
    figure, axes = plt.subplots(nb_images, nb_tokens + 1, figsize=(0.98 * (nb_tokens + 1) + 0.9, 1.02 * nb_images + 0.3))
    figure.subplots_adjust(left=0.09, right=0.995, top=0.94, bottom=0.01, wspace=0.05, hspace=0.05)
    for row in range(nb_images):
        for column in range(nb_tokens + 1):
            ax = axes[row, column]
            ax.set(xticks=[], yticks=[])
            if column:
                ax.imshow(pixels[row].mean(-1), cmap="gray", vmin=0, vmax=255)
                ax.imshow(maps[row, column - 1].astype(float), cmap="inferno", alpha=0.65, interpolation="bilinear")
            else:
                ax.imshow(pixels[row])
            if column == tasks[row] + 1:
                ax.spines[:].set(color="#0072B2", linewidth=3)
            if row == 0:
                ax.set_title("image" if not column else f"token {column}", fontsize=9)
        axes[row, 0].set_ylabel(f"{names[row]}\n(task {tasks[row] + 1})", rotation=0, ha="right", va="center", fontsize=9)
    return figure


def draw_cost() -> plt.Figure:
    """Accuracy against what training took, where there is more than one method."""
    several = {name: methods for name, methods in experiments().items() if len(methods) > 1}
    figure, axes = plt.subplots(1, len(several), figsize=(5.6 * len(several), 3.6), squeeze=False, **TIGHT)
    for ax, (name, methods) in zip(axes[0], several.items(), strict=True):
        for method, runs in methods.items():
            accs, flops = ([run[key] for run in runs] for key in ("avg_acc", "flops_training"))
            spread = np.std(accs, ddof=1) if len(runs) > 1 else None
            x, y = np.mean(flops) / 1e12, np.mean(accs)
            ax.errorbar(x, y, yerr=spread, fmt="o", color=COLOURS[method], ms=8, capsize=3, label=f"{method} ({told(runs)})")
        ax.margins(0.25)
        tidy(ax, f"{name}: accuracy and cost", xlabel="TFLOP in training", ylabel="average accuracy (%)")
        ax.set_xlim(left=0)
        ax.legend(frameon=False, fontsize=9, loc="best")
    return figure


PICTURES: dict[str, Callable[[], plt.Figure]] = {
    "results": draw_results,
    "errors": draw_errors,
    "attention": draw_attention,
    "cost": draw_cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("--out", type=Path, required=True, help="the picture to write (png, pdf or svg)")
    args = parser.parse_args()
    PICTURES[args.picture]().savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
