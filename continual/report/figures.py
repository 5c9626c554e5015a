"""Pictures for a page and for a paper: readable on white and on black, to colour-blind eyes, and on a small screen.

Colours are those of `COLOURS` and `INK`; in a page they follow its theme, see `inline`. Pictures are five inches wide, so that
a letter of nine points is one on a screen of 400 pixels.
"""

import html
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

from continual.errors import plain
from continual.report.exhibit import Exhibit
from continual.seeing.tables import amount

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]  # told apart by colour-blind eyes too
MARKERS = "osD^vPX"  # one more than colours, so that pairs of both do not come again soon
DASHES = ["-", "--", ":", "-."]
INK, FAINT = "#1b1f24", "#d8dce1"  # letters and axes; the grid
ON_DARK, ON_BRIGHT = "#fefefe", "#010101"  # letters on the cells of a map
THEME = {INK: "currentColor", FAINT: "var(--faint)", **{colour: f"var(--c{i})" for i, colour in enumerate(COLOURS)}}
WIDTH, PIXELS = 5.0, 200  # inches; pixels per inch
NUMBERS_UP_TO = 10  # rows of a map; in larger ones numbers would be too small to read
LETTERS = 14  # of a name beside an axis
STYLE = {
    **{"font.size": 9.0, "axes.titlesize": 9.0, "axes.labelsize": 9.0, "legend.fontsize": 8.5, "text.parse_math": False},
    **{"font.family": ["DejaVu Sans"], "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK},
    **{"xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "grid.color": FAINT},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "axes.linewidth": 0.8},
    **{"legend.frameon": False, "svg.fonttype": "none", "figure.constrained_layout.use": True, "lines.linewidth": 1.8},
}


@dataclass(frozen=True)
class Curve:
    """A line. band: up and down from every point, such as one standard deviation. place: decides colour, marker and dashes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[float] | None = None
    place: int = 0
    quiet: bool = False  # thin and dashed: what the others are held against


styled = matplotlib.rc_context(STYLE)  # a decorator: draws in the style of the page


@styled
def sheet(height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, **how: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, (rows, columns). how: for `Figure.subplots`."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def empty(height: float = 3.2, *, rows: int = 1, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure, and its axes below each other."""
    figure, axes = sheet(height, rows, width=width)
    return figure, list(axes[:, 0])


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def short(name: object, most: int = LETTERS) -> str:
    """A name as it fits beside an axis."""
    text = " ".join(str(name).split())
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    return text if len(text) <= most else text[: most - 1] + "…"


@styled
def curves(
    lines: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str = "accuracy (%)",
    percent: bool = True,
    log: bool = False,
    ends: Sequence[float] = (),
) -> Figure:
    """Lines over one axis. percent: from 0 to 100. ends: where on the x-axis tasks end, as thin lines."""
    figure, (ax,) = empty(2.9 + 0.18 * len(lines))
    for x in ends if len(ends) <= 50 else ():
        ax.axvline(x, color=FAINT, linewidth=1)
    for line in lines:
        many = len(line.x) > 25
        dash = ":" if line.quiet else DASHES[line.place // len(COLOURS) % len(DASHES)]
        marker = {"marker": MARKERS[line.place % len(MARKERS)], "markersize": 2.2 if many else 3 if line.quiet else 4.5}
        style = {"color": colour(line.place), "linestyle": dash, "linewidth": 1.2 if line.quiet else 1.8}
        ax.plot(line.x, line.y, label=short(line.label, 60), clip_on=False, **marker, **style)
        if line.band is not None:
            low, high = np.subtract(line.y, line.band), np.add(line.y, line.band)
            ax.fill_between(line.x, low, high, color=colour(line.place), alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        ax.set_ylim(0, 100)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    if not percent:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    key(figure)
    return figure


def key(figure: Figure, *, least: int = 2) -> None:
    """What stands for what, above the picture, where there are as many things or more."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) >= least:
        beside = max(1, min(4, 62 // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside upper left", ncols=beside, columnspacing=1.2, handlelength=1.8)


@styled
def heat(
    values: np.ndarray,
    *,
    names: Sequence[object] = (),
    xlabel: str,
    ylabel: str,
    label: str = "accuracy (%)",
    breaks: Sequence[int] = (),
    faint: bool = False,
) -> Figure:
    """A square map (n, n) of percent, NaN where nothing is. names: of rows and columns, else 1, 2, ...

    breaks: before which rows and columns a new task begins. faint: make small shares seen.
    """
    nb = len(values)
    figure, (ax,) = empty(4.4)
    ax.grid(False)
    norm = PowerNorm(0.5 if faint else 1.0, vmin=0, vmax=100)
    image = ax.imshow(values, cmap="viridis", norm=norm, interpolation="none")
    if nb <= NUMBERS_UP_TO:
        for i, j in zip(*np.nonzero(~np.isnan(values)), strict=True):
            bright = norm(values[i, j]) > 0.6
            text, ink = f"{values[i, j]:.0f}", ON_BRIGHT if bright else ON_DARK
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=ink, in_layout=False)
    for at in breaks if len(breaks) <= 20 else ():
        for line in (ax.axhline, ax.axvline):
            line(at - 0.5, color=ON_DARK, linewidth=0.6)
    _ticks(ax, [short(name) for name in names] or [str(i + 1) for i in range(nb)], both=True)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    bar.solids.set_rasterized(True)
    bar.outline.set_visible(False)
    return figure


def _ticks(ax: Axes, names: Sequence[str], *, both: bool = False) -> None:
    """A name for every place of the x-axis, or for some of them where they are many; upright where they are long."""
    wide = max(map(len, names), default=0) > 3
    most = 25 if wide else 17
    every = next((step for step in (1, 2, 5, 10, 20, 25, 50, 100) if step * most >= len(names)), -(-len(names) // most))
    ticks = range(0 if every == 1 or wide else every - 1, len(names), every)
    shown = [names[tick] for tick in ticks]
    long = sum(map(len, shown)) > 50 or max(map(len, shown), default=0) > 6
    ax.set_xticks(ticks, shown, rotation=90 if long else 0)
    if both:
        ax.set_yticks(ticks, shown)


@styled
def columns(
    names: Sequence[object],
    parts: Sequence[tuple[str, Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    percent: bool = False,
    places: Sequence[int] | None = None,
    marks: tuple[str, Sequence[float]] | None = None,
) -> Figure:
    """Columns, one for each name, of parts on top of each other. places: the colour of each column, where there is one part.

    marks: a second number of each column, as a dot, and what it means.
    """
    figure, (ax,) = empty(3.0)
    at, below = np.arange(len(names)), np.zeros(len(names))
    for place, (part, values) in enumerate(parts):
        shades = [colour(each) for each in places] if places else colour(place)
        ax.bar(at, values, bottom=below, width=0.8, color=shades, label=short(part, 40), linewidth=0)
        below = below + np.array(values)
    if marks:
        ax.plot(at, marks[1], "D", color=INK, markersize=4 if len(names) <= 30 else 2, label=marks[0], clip_on=False)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_xlim(-0.6, len(names) - 0.4)
    if percent:
        ax.set_ylim(0, 100)
    ax.grid(axis="x", visible=False)
    _ticks(ax, [short(name) for name in names])
    key(figure)
    return figure


@styled
def beams(names: Sequence[str], values: Sequence[float], *, xlabel: str) -> Figure:
    """Horizontal bars, the first on top, each with its number."""
    figure, (ax,) = empty(0.8 + 0.28 * len(names))
    ax.barh(range(len(names)), values, color=colour(0), height=0.7)
    for row, value in enumerate(values):
        ax.annotate(f"{value:,.1f}", (value, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_yticks(range(len(names)), [short(name, 24) for name in names])
    ax.invert_yaxis()
    ax.margins(x=0.14)
    ax.set(xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    return figure


@styled
def falls(best: Sequence[float], last: Sequence[float], learned: Sequence[float]) -> Figure:
    """How far every task has fallen: from its best accuracy down to the last one; and what it had when it was learned."""
    figure, (ax,) = empty(3.1)
    at, size = np.arange(1, len(best) + 1), 6 if len(best) <= 25 else 3
    ax.vlines(at, last, best, color=colour(1), linewidth=2 if len(best) <= 25 else 1.2)
    ax.plot(at, best, "^", color=colour(0), markersize=size, label="best so far", clip_on=False)
    ax.plot(at, learned, "_", color=INK, markersize=size + 3, label="when learned", clip_on=False)
    ax.plot(at, last, "o", color=colour(1), markersize=size, label="now", clip_on=False)
    ax.set(xlabel="task", ylabel="accuracy (%)", ylim=(0, 100), xlim=(0.4, len(best) + 0.6))
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    key(figure)
    return figure


@styled
def spreads(lines: Sequence[Curve], *, xlabel: str, ylabel: str) -> Figure:
    """Points with bars of one standard deviation, those of different lines side by side."""
    figure, (ax,) = empty(2.9 + 0.18 * len(lines))
    ax.axhline(0, color=INK, linewidth=0.8)
    for number, line in enumerate(lines):
        many = len(line.x) > 15
        apart = 0.0 if many else (number - (len(lines) - 1) / 2) * min(0.14, 0.6 / len(lines))
        x = np.array(line.x, dtype=float) + apart
        style = {"marker": MARKERS[line.place % len(MARKERS)], "color": colour(line.place), "markersize": 2.5 if many else 5}
        shown = {"linestyle": DASHES[line.place // len(COLOURS) % len(DASHES)] if many else "none", "linewidth": 1.2}
        ax.errorbar(x, line.y, yerr=line.band, label=short(line.label, 60), capsize=0 if many else 2.5, **style, **shown)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    key(figure)
    return figure


@styled
def against(panels: Sequence[tuple[str, str, Sequence[Curve]]], *, ylabel: str) -> Figure:
    """Clouds of points with their means: panels (x-label, unit, clouds) below each other, of equal clouds."""
    clouds = panels[0][2]
    figure, axes = empty(2.5 * len(panels) + 0.18 * len(clouds), rows=len(panels))
    for ax, (xlabel, unit, lines) in zip(axes, panels, strict=True):
        for line in lines:
            style = {"color": colour(line.place), "marker": MARKERS[line.place % len(MARKERS)], "linestyle": "none"}
            ax.plot(line.x, line.y, markersize=3.5, alpha=0.5, **style)
            ax.plot([np.mean(line.x)], [np.mean(line.y)], markersize=8, label=short(line.label, 60), **style)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.margins(0.12)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _, unit=unit: amount(x, unit) if x >= 0 else ""))
    key(figure)
    return figure


@styled
def gallery(images: np.ndarray, under: np.ndarray, names: Sequence[object]) -> Figure:
    """Images (C, K, S, S, 4) uint8 in rows, with alpha, as one picture; under each its number, `under` (C, K), NaN for none."""
    nb_rows, nb_columns, side = images.shape[:3]
    nb_places = max(nb_columns, 8)  # a few images are not blown up
    cell, gap = (WIDTH - 0.6) / nb_places, 0.17  # inches
    line = max(1, round(side * gap / cell))  # of letters, in pixels of an image
    sheet = np.zeros((nb_rows * (side + line), nb_columns * (side + 1), 4), dtype=np.uint8)
    for row, column in np.ndindex(nb_rows, nb_columns):
        top, left = row * (side + line), column * (side + 1)
        sheet[top : top + side, left : left + side] = images[row, column]
    figure, (ax,) = empty(0.2 + nb_rows * (side + line) / (side + 1) * cell)
    ax.grid(False)
    ax.imshow(sheet, extent=(0, sheet.shape[1], sheet.shape[0], 0), interpolation="none")
    for row, column in zip(*np.nonzero(~np.isnan(under)), strict=True):
        at = (column * (side + 1) + side / 2, row * (side + line) + side)
        ax.text(*at, f"{under[row, column]:.2f}", ha="center", va="top", fontsize=7.5, in_layout=False)
    ax.set(xlim=(0, nb_places * (side + 1)), ylim=(sheet.shape[0], 0), xticks=[])
    ax.set_yticks([row * (side + line) + side / 2 for row in range(nb_rows)], [short(name) for name in names])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def saved(figure: Figure, name: str) -> tuple[bytes, str]:
    """A figure as PNG on white and as SVG without a ground; equal figures give equal bytes.

    By the canvases themselves: `savefig` draws each of them twice.
    """
    png, svg = io.BytesIO(), io.StringIO()
    grounds = [figure.patch, *(ax.patch for ax in figure.axes)]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # signs that the font lacks
        screen, figure.dpi = FigureCanvasAgg(figure), PIXELS
        for ground in grounds:
            ground.set(facecolor="white", edgecolor="none")
        screen.draw()
        Image.fromarray(np.asarray(screen.buffer_rgba())).convert("RGB").save(png, "png", dpi=(PIXELS, PIXELS))
        figure.set_layout_engine("none")  # it is laid out
        for ground in grounds:
            ground.set(facecolor="none")
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def files(exhibit: Exhibit) -> tuple[dict[str, bytes], str]:
    """What an exhibit is as files, by name; and its picture as SVG, empty without one."""
    found, svg = {}, ""
    if exhibit.figure is not None:
        png, svg = saved(exhibit.figure, exhibit.name)
        found |= {"png": png, "svg": on_white(svg).encode("utf-8", "backslashreplace")}
    if exhibit.table is not None:
        table = exhibit.table
        texts = {"csv": table.csv(), "md": table.markdown(), "tex": table.latex()}
        found |= {kind: plain(text).encode() for kind, text in texts.items()}
    return {f"{exhibit.name}.{kind}": content for kind, content in found.items()}, svg


def on_white(svg: str) -> str:
    """An SVG as a file of its own, with a white ground."""
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
    return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)


def inline(svg: str, *, label: str) -> str:
    """An SVG as a part of a page: as wide as its room, in the colours and letters of the page."""
    head, body = re.fullmatch(r".*?<svg ([^>]*)>(.*)</svg>\s*", svg, re.DOTALL).groups()
    body = re.sub(r"\s*<metadata>.*?</metadata>\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # nobody refers to these, and two pictures have the same
    body = body.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    body = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda told: f"{told[1]}: {THEME.get(told[2], told[2])}", body)
    body = re.sub(r"\n\s*", "\n", body)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    return f'<svg {box} role="img" aria-label="{html.escape(label)}" xmlns="http://www.w3.org/2000/svg">{body}</svg>'
