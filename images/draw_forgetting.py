"""Draw how much is remembered: accuracy while classes arrive, and the accuracy matrices of the first two methods.

    python images/draw_forgetting.py --out images/forgetting.png "DyTox=a/summary.json" "Without memory=b.json,c.json"

Each method is a label and the summary.json of one run, or of several separated by commas: then lines and matrices show
the mean over runs, and a band of one sample standard deviation on each side.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # told apart by colour-blind eyes too
MARKERS = "osD^vP"
NUMBERS_UP_TO = 10  # tasks; in larger matrices the numbers would be too small to read


def method(text: str) -> tuple[str, list[dict]]:
    """ "label=path,path" -> label, summaries. Raises argparse.ArgumentTypeError when they cannot be drawn together."""
    label, equals, paths = text.partition("=")
    if not (label and equals and paths):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form label=summary.json[,summary.json...]")
    try:
        runs = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths.split(",")]
        if any(run["nb_classes"] != runs[0]["nb_classes"] for run in runs):
            raise argparse.ArgumentTypeError(f"{label}: the runs learned other numbers of classes")
    except (OSError, ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{label}: no summary of a run: {error}") from error
    return label, runs


def draw_lines(ax: plt.Axes, methods: list[tuple[str, list[dict]]]) -> None:
    """Accuracy on all classes seen so far, over the number of classes seen."""
    for i, (label, runs) in enumerate(methods):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        seen = runs[0]["nb_classes"]
        accs = np.array([run["accs"] for run in runs])  # (runs, steps)
        mean = accs.mean(0)
        size = 5 if len(seen) <= 20 else 2.5  # beads on a line, however many steps
        ax.plot(
            seen,
            mean,
            color=colour,
            marker=marker,
            markersize=size,
            linewidth=2,
            clip_on=False,
            label=f"{label} ({mean.mean():.1f})",
        )
        if len(runs) > 1:
            std = accs.std(0, ddof=1)
            ax.fill_between(seen, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
    ax.set(title="Accuracy on all classes seen", xlabel="classes seen", ylabel="accuracy (%)", ylim=(0, 100))
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(title="method (mean over steps)", frameon=False, loc="best", alignment="left")


def draw_matrix(ax: plt.Axes, label: str, runs: list[dict]) -> matplotlib.image.AxesImage:
    """Accuracy on each task (columns) after each task (rows), mean over runs."""
    nb_tasks = len(runs[0]["matrix"])
    matrix = np.full((nb_tasks, nb_tasks), np.nan)
    for i in range(nb_tasks):
        matrix[i, : i + 1] = np.mean([run["matrix"][i] for run in runs], axis=0)
    image = ax.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
    if nb_tasks <= NUMBERS_UP_TO:
        for i, j in zip(*np.tril_indices(nb_tasks), strict=True):
            colour = "white" if matrix[i, j] < 60 else "black"
            ax.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    every = -(-nb_tasks // 10)
    ticks = range(every - 1, nb_tasks, every)
    ax.set_xticks(ticks, [tick + 1 for tick in ticks])
    ax.set_yticks(ticks, [tick + 1 for tick in ticks])
    ax.set(title=label, xlabel="test images of task", ylabel="after task")
    ax.spines[:].set_visible(False)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the picture to write (png, pdf or svg)")
    parser.add_argument("methods", nargs="+", type=method, metavar="label=summary.json[,...]")
    args = parser.parse_args()

    matrices = args.methods[:2]
    widths = [1.25] + [1] * len(matrices)
    figure, (left, *rights) = plt.subplots(
        1, len(widths), figsize=(4.5 * sum(widths), 4.6), width_ratios=widths, layout="constrained"
    )
    draw_lines(left, args.methods)
    for ax, (label, runs) in zip(rights, matrices, strict=True):
        image = draw_matrix(ax, label, runs)
    figure.colorbar(image, ax=rights, label="accuracy (%)", shrink=0.8)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
