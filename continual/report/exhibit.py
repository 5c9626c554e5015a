"""What a page shows: exhibits, each a picture with its table; and tables as HTML, CSV, Markdown and LaTeX.

A section of the page is a function from runs to exhibits. It makes no file and knows no page.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from continual.errors import Refused, one_line
from continual.files import UNREADABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | None

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$"},
    **{"×": r"$\times$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$", "|": "$|$"},
}


@dataclass(frozen=True)
class Table:
    """Rows under a header. Numbers stay numbers in CSV; elsewhere they show `digits` decimals, and None is empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: int = 1

    def shown(self, cell: Cell) -> str:
        if isinstance(cell, float):
            return f"{cell:.{self.digits}f}"
        return "" if cell is None else f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)

    def html(self) -> str:
        head = "".join(f"<th scope=col>{html.escape(word)}</th>" for word in self.header)
        rows = "".join(f"<tr>{self._cells(row)}</tr>\n" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"

    def _cells(self, row: Sequence[Cell]) -> str:
        cells = []
        for place, cell in enumerate(row):
            text = html.escape(self.shown(cell))
            kind = " class=n" if isinstance(cell, int | float) else " class=t" if len(text) > 24 else ""
            cells.append(f"<th scope=row{kind}>{text}</th>" if place == 0 else f"<td{kind}>{text}</td>")
        return "".join(cells)

    def csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([self.header, *(["" if cell is None else cell for cell in row] for row in self.rows)])
        return buffer.getvalue()

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        rule = "|" + "---|" * len(self.header)
        return "\n".join([line(self.header), rule, *(line([self.shown(cell) for cell in row]) for row in self.rows)]) + "\n"

    def latex(self) -> str:
        """A tabular for booktabs."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in cells) + r" \\"

        columns = "l" + "r" * (len(self.header) - 1)
        rows = [line([self.shown(cell) for cell in row]) for row in self.rows]
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(self.header), r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*body, r"\end{tabular}"]) + "\n"


@dataclass(frozen=True)
class Exhibit:
    """One picture with its table.

    name: of its files, small letters and hyphens. reads: one sentence, how to read it. figure: None where a table is all.
    found: what is seen in this run, one sentence; empty where nothing is to be said.
    """

    name: str
    title: str
    reads: str
    table: Table | None = None
    figure: Figure | None = None
    found: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"{self.name!r} is no name of a file")


@dataclass(frozen=True)
class Chapter:
    """Exhibits under one title; missing: what could not be shown, and why, one line each."""

    title: str
    exhibits: Sequence[Exhibit]
    missing: Sequence[str] = field(default=())


def chapter(title: str, of: Any, *makers: Callable[[Any], Exhibit | None], missing: Sequence[str] = ()) -> Chapter:
    """What each maker makes `of` a run, or of several; None of a maker is nothing to show.

    Where a file is missing or damaged (Refused, UNREADABLE), the chapter says so instead.
    """
    exhibits, missing = [], list(missing)
    for maker in makers:
        try:
            exhibits.append(maker(of))
        except Refused as refused:
            missing.append(str(refused))
        except (*UNREADABLE, LookupError, AttributeError) as error:
            what = maker.__name__.strip("_").replace("_", " ")
            missing.append(f"{what}: what was kept is damaged ({one_line(error)[:200]})")
    return Chapter(title, [exhibit for exhibit in exhibits if exhibit is not None], list(dict.fromkeys(missing)))
