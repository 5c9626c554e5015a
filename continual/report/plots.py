"""How the pictures of "where errors come from" are drawn, in the style of figures.py; up to fifty tasks."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from continual.report.figures import COLOURS, INK, MARKERS, NUMBERS_UP_TO, ON_BRIGHT, ON_DARK, WIDTH, key, sheet, styled


@styled
def columns(
    at: Sequence[int],
    parts: Sequence[tuple[str, Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str = "% of test images",
    top: float | None = None,
    colours: Sequence[str] = COLOURS,
) -> Figure:
    """Columns of parts on top of each other, one for each place; NaN counts as 0."""
    figure, ((ax,),) = sheet(2.9 + 0.09 * len(parts))
    below = np.zeros(len(at))
    for colour, (label, values) in zip(colours, parts, strict=False):
        values = np.nan_to_num(np.asarray(values, dtype=float))
        ax.bar(at, values, bottom=below, width=0.8, color=colour, label=label, linewidth=0)
        below = below + values
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, top or max(1.0, 1.08 * below.max(initial=0))))
    whole(ax, at)
    ax.grid(axis="x", visible=False)
    key(figure, least=1)
    return figure


@styled
def lines(
    at: Sequence[int],
    curves: Sequence[tuple[str, Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float] | None = None,
    dashed: Sequence[int] = (),
) -> Figure:
    """Lines over the same places. dashed: which of them."""
    figure, ((ax,),) = sheet(2.9 + 0.09 * len(curves))
    size = 4.5 if len(at) <= 25 else 2.2
    for place, (label, values) in enumerate(curves):
        style = {"color": COLOURS[place % 6], "marker": MARKERS[place % 6], "linestyle": "--" if place in dashed else "-"}
        ax.plot(at, np.asarray(values, dtype=float), label=label, markersize=size, clip_on=limits is None, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel, **({"ylim": limits} if limits else {}))
    whole(ax, at)
    key(figure, least=1)
    return figure


def whole(ax: Axes, at: Sequence[int]) -> None:
    """Ticks at whole numbers, and room for the first and the last."""
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    ax.set_xlim(min(at) - 0.6, max(at) + 0.6)


@styled
def matrices(
    values: Sequence[tuple[str, np.ndarray]],
    *,
    rows: Sequence[object],
    columns: Sequence[object],
    ylabel: str,
    xlabel: str,
    label: str,
    limits: tuple[float, float] | None = None,
    digits: int = 0,
    colours: str = "viridis",
) -> Figure:
    """Matrices (R, C) of one shape and scale below each other, each with its title; cells of NaN stay empty."""
    known = [each[~np.isnan(each)] for _, each in values]
    low, high = limits or (min(part.min() for part in known if len(part)), max(part.max() for part in known if len(part)))
    high = high if high > low else low + 1
    height = min(3.8, max(1.6, 0.9 + 3.2 * len(rows) / max(1, len(columns))))
    figure, axes = sheet(0.2 + height * len(values), len(values))
    for ax, (title, each) in zip(axes[:, 0], values, strict=True):
        image = ax.imshow(each, cmap=colours, vmin=low, vmax=high, interpolation="none", aspect="auto")
        ax.grid(False)
        if max(each.shape) <= NUMBERS_UP_TO:
            for i, j in zip(*np.nonzero(~np.isnan(each)), strict=True):
                shade = image.cmap(image.norm(each[i, j]))
                ink = ON_BRIGHT if 0.3 * shade[0] + 0.6 * shade[1] + 0.1 * shade[2] > 0.5 else ON_DARK
                ax.text(j, i, f"{each[i, j]:.{digits}f}", ha="center", va="center", fontsize=8, color=ink)
        some(ax.set_xticks, columns)
        some(ax.set_yticks, rows)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes[:, 0].tolist(), label=label, shrink=0.8)
    bar.outline.set_visible(False)
    return figure


def some(ticks: object, names: Sequence[object]) -> None:
    """A name for every place, or for some where they are many."""
    every = -(-len(names) // 12)
    ticks(range(0, len(names), every), [str(name) for name in names[::every]])


@styled
def reliability(parts: Sequence[tuple[str, object]]) -> Figure:
    """Accuracy over confidence, each dot as large as its share of the images, and below what this share is."""
    figure, axes = sheet(4.6, 2, 1, sharex=True, height_ratios=[3, 1])
    (ax,), (below,) = axes
    ax.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2, label="as sure as right")
    for place, (label, bins) in enumerate(parts):
        edges, share = np.linspace(0, 1, len(bins.nb) + 1), 100 * bins.nb / max(1, bins.nb.sum())
        style = {"color": COLOURS[place], "marker": MARKERS[place], "clip_on": False, "zorder": 3, "linewidths": 0}
        ax.scatter(bins.confidence, bins.accuracy, s=6 + 6 * share, alpha=0.85, **style)
        line = {"color": COLOURS[place], "linewidth": 0.8, "marker": MARKERS[place], "markersize": 3}
        ax.plot(bins.confidence, bins.accuracy, label=label, **line)
        below.stairs(share, edges, color=COLOURS[place], linewidth=1.5)
    ax.set(ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="confidence", ylabel="% of images", ylim=(0, None))
    key(figure, least=1)
    return figure


@styled
def paths(points: np.ndarray, tasks: np.ndarray, when: np.ndarray, *, kept: float) -> Figure:
    """Points (m, 2) of tokens in a plane, those of one task (m,) joined in the order of `when` (m,), the last one named."""
    figure, ((ax,),) = sheet(4.4)
    nb = int(tasks.max()) + 1
    shades = [matplotlib.colormaps["viridis"](0.15 + 0.75 * task / max(1, nb - 1)) for task in range(nb)]
    for task in np.unique(tasks):
        own = np.flatnonzero(tasks == task)
        own = own[np.argsort(when[own], kind="stable")]
        ax.plot(*points[own].T, color=shades[task], linewidth=1.2, marker="o", markersize=2)
        ax.plot(*points[own[-1]], color=shades[task], marker="o", markersize=9 if nb <= 20 else 4)
        shift = (6, 5) if nb <= 20 else (2, 2)
        ax.annotate(str(task + 1), points[own[-1]], xytext=shift, textcoords="offset points", fontsize=9 if nb <= 20 else 6.5)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.12)
    ax.set(xlabel=f"plane of the two largest variances ({100 * kept:.0f} % of all)", xticklabels=[], yticklabels=[])
    ax.tick_params(length=0)
    return figure


@styled
def gazes(pixels: np.ndarray, maps: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Images (B, S, S, 3) in rows; beside each, for every token of a column, its map (B, T, S, S) in colours over the image.

    Every map has its own scale, from its least to its most. rows, columns: what is written beside and above.
    """
    nb_rows, nb_columns = maps.shape[0], maps.shape[1] + 1
    cell = (WIDTH - 0.9) / nb_columns
    figure, axes = sheet(0.35 + nb_rows * (cell + 0.04), nb_rows, nb_columns)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    heat = matplotlib.colormaps["inferno"]
    for row in range(nb_rows):
        grey = pixels[row].mean(-1, keepdims=True)
        for column in range(nb_columns):
            ax = axes[row, column]
            shown = pixels[row]
            if column:
                each = maps[row, column - 1]
                spread = each.max() - each.min()
                level = (each - each.min()) / spread if spread > 0 else np.zeros_like(each)
                shown = np.clip(0.3 * grey + 0.7 * heat(level)[..., :3], 0, 1)
            ax.imshow(shown, interpolation="nearest" if not column else "bilinear")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
            if row == 0:
                ax.set_title(columns[column], fontsize=8 if nb_columns <= 8 else 6.5)
        axes[row, 0].set_ylabel(rows[row], fontsize=7.5, rotation=0, ha="right", va="center")
    return figure
