"""Draw the method: one encoder, one task-attention block that every task's token goes through, one classifier per task; and
below it which parts are trained, and which are frozen, in the two phases of a task.

python images/draw_method.py --out images/method.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, GREY = "#222222", "#666666"
ENCODER, DECODER = "#DCE9F5", "#E4F1E4"
TASKS = {"1": "#0072B2", "2": "#00805E", "t": "#D55E00"}  # name of a task -> its colour
ROWS = {"1": 5.15, "2": 4.05, "t": 1.85}  # height of each task's row; between 2 and t there is room for dots
WIDTH, HEIGHT, BELOW = 14.0, 6.4, 2.3  # in inches and in drawing units alike; BELOW: what is frozen when

PARTS = ("encoder", "TAB", "old task tokens", "new task token", "old classifiers", "new classifier", "divergence head")
# As the published option files have it: freeze_task, freeze_ft and head_div_mode; the first task has no old parts.
PHASES = {
    "training on task $t$": ("trained", "trained", "frozen", "trained", "frozen", "trained", "trained"),
    "finetuning on the memory": ("frozen", "trained", "trained", "trained", "trained", "trained", "unused"),
}
STATES = {"trained": ("#F6D9C4", INK), "frozen": ("#DCE3EA", INK), "unused": ("white", GREY)}  # fill and ink


def box(ax: plt.Axes, x: float, y: float, width: float, height: float, *, text: str, fill: str, size: float = 13) -> None:
    """A rounded box with its text in the middle; (x, y) is the lower left corner."""
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=fill, edgecolor=INK)
    )
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.5)


def token(ax: plt.Axes, x: float, y: float, *, text: str, colour: str) -> None:
    """A token: a small filled square around (x, y)."""
    ax.add_patch(Rectangle((x - 0.27, y - 0.27), 0.54, 0.54, facecolor=colour, edgecolor=INK))
    ax.text(x, y, text, ha="center", va="center", fontsize=15, color="white")


def arrow(ax: plt.Axes, start: tuple[float, float], end: tuple[float, float], *, colour: str = INK) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, linewidth=1.4, color=colour))


def draw(ax: plt.Axes) -> None:
    middle = 3.4

    # The image, cut into patches.
    for row in range(3):
        for column in range(3):
            corner = (0.35 + 0.4 * column, middle - 0.6 + 0.4 * row)
            ax.add_patch(Rectangle(corner, 0.36, 0.36, facecolor="#F3F0E6", edgecolor=INK))
    ax.text(0.93, middle - 0.95, "image,\nin patches", ha="center", va="top", fontsize=12, color=GREY)
    arrow(ax, (1.62, middle), (2.1, middle))

    # The encoder, and the patch tokens it gives.
    box(ax, 2.1, middle - 1.2, 1.7, 2.4, text="Encoder\n5 × SAB\n(ConViT)", fill=ENCODER)
    ax.text(2.95, middle - 1.35, "self-attention\namong patches", ha="center", va="top", fontsize=12, color=GREY)
    arrow(ax, (3.8, middle), (4.3, middle))
    for i in range(6):
        ax.add_patch(Rectangle((4.4, middle - 1.17 + 0.4 * i), 0.34, 0.34, facecolor="#9FB8CE", edgecolor=INK))
    ax.text(4.57, middle + 1.4, "patch\ntokens", ha="center", va="bottom", fontsize=12, color=GREY)
    arrow(ax, (4.84, middle), (7.0, middle))
    ax.text(5.92, middle - 0.12, "keys, values", ha="center", va="top", fontsize=12, color=GREY)

    # The task-attention block: the same weights for every task's token.
    bottom, top = ROWS["t"] - 0.6, ROWS["1"] + 0.6
    box(
        ax,
        7.0,
        bottom,
        1.9,
        top - bottom,
        text="Task-\nattention\nblock\n(TAB)\n\nshared by\nall tasks",
        fill=DECODER,
    )

    for name, y in ROWS.items():
        colour = TASKS[name]
        token(ax, 5.92, y, text=rf"$\theta_{name}$", colour=colour)
        arrow(ax, (6.22, y), (7.0, y), colour=colour)
        arrow(ax, (8.9, y), (9.4, y), colour=colour)
        token(ax, 9.7, y, text=f"$e_{name}$", colour=colour)
        arrow(ax, (10.0, y), (10.45, y), colour=colour)
        box(ax, 10.45, y - 0.34, 1.6, 0.68, text=f"Classifier ${name}$", fill="white", size=12.5)
        arrow(ax, (12.05, y), (12.5, y), colour=colour)
        for i in range(4):
            ax.add_patch(Rectangle((12.58 + 0.28 * i, y - 0.14), 0.28, 0.28, facecolor=colour, edgecolor=INK, alpha=0.75))

    for x in (5.92, 9.7, 11.25, 13.14):
        ax.text(x, 2.6, "⋮", ha="center", va="center", fontsize=20, color=GREY)
    ax.text(7.95, bottom - 0.12, "a token sees the\npatches and itself", ha="center", va="top", fontsize=12, color=GREY)

    # Column heads, and what learning a task adds.
    for x, text in (
        (5.92, "task\ntokens"),
        (9.7, "task\nembeddings"),
        (11.25, "one classifier\nper task"),
        (13.14, "logits"),
    ):
        ax.text(x, top + 0.08, text, ha="center", va="bottom", fontsize=12, color=GREY)
    for x in (5.92, 11.25):
        ax.annotate(
            "new with task $t$",
            xy=(x, ROWS["t"] - 0.36),
            xytext=(x, 0.62),
            ha="center",
            va="center",
            fontsize=12,
            color=TASKS["t"],
            arrowprops={"arrowstyle": "-|>", "color": TASKS["t"], "linewidth": 1.2, "linestyle": (0, (3, 2))},
        )


def draw_phases(ax: plt.Axes) -> None:
    """A row for each phase of a task, a column for each part of the model."""
    left, width, height = 2.55, 1.62, 0.52
    for column, part in enumerate(PARTS):
        x = left + (column + 0.5) * width
        ax.text(x, -0.42, part, ha="center", va="center", fontsize=11.5, color=GREY)
    for row, (phase, states) in enumerate(PHASES.items()):
        y = -0.75 - (row + 1) * (height + 0.12)
        ax.text(left - 0.15, y + height / 2, phase, ha="right", va="center", fontsize=12, color=INK)
        for column, state in enumerate(states):
            fill, ink = STATES[state]
            corner = (left + column * width + 0.06, y)
            ax.add_patch(
                FancyBboxPatch(corner, width - 0.12, height, boxstyle="round,pad=0,rounding_size=0.08", fc=fill, ec="#999999")
            )
            ax.text(corner[0] + width / 2 - 0.06, y + height / 2, state, ha="center", va="center", fontsize=11.5, color=ink)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the method's diagram, 1400 pixels wide.")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write (png, pdf or svg)")
    args = parser.parse_args()
    figure = plt.figure(figsize=(WIDTH, HEIGHT + BELOW))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(-BELOW, HEIGHT))
    ax.axis("off")
    draw(ax)
    draw_phases(ax)
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
