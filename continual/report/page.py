"""One HTML page that needs nothing but itself, and beside it every exhibit as files for a paper.

Nothing is written but into the folder of the page: index.html, and `exhibits/` with PNG, SVG, CSV, Markdown and LaTeX.
"""

import html
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from continual.errors import OptionsError, Refused, plain
from continual.files import replacing
from continual.report import figures, one, several
from continual.report.exhibit import Chapter, Exhibit, Table
from continual.report.reading import Past, read_all
from continual.runs.folders import PLACE

INDEX, EXHIBITS, MARK = "index.html", "exhibits", '<meta name="generator" content="continual.report">'
CELLS = 2500  # of a table that the page shows; the rest is in the files
OPEN_ROWS = 12  # of a table that needs no click
LINES = 8  # on what is missing, that need no click
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. watch: seconds between two looks; None: write the page once."""

    runs: list[str]
    out: str = ""
    deep: bool = False
    watch: float | None = None


def make(wanted: Wanted) -> Path:
    """Write the page, with `watch` again and again until the runs have ended or Ctrl-C; returns where it is.

    Raises CheckpointError for what is no run, OptionsError if the page cannot be written there.
    """
    before = None
    try:
        while True:
            pasts = read_all(wanted.runs)
            ended = wanted.watch is None or not any(map(_going, pasts))
            now = _stamps(pasts)
            if now != before:
                index = _write(wanted, pasts, refresh=None if ended else wanted.watch)
                if before is None and not ended:
                    print(plain(f"{index} is written again whenever the run has something new; Ctrl-C ends that"), flush=True)
            if ended:
                return index
            before = now
            time.sleep(wanted.watch)
    except KeyboardInterrupt:
        if before is None:
            raise
        return _folder(wanted, pasts) / INDEX


def _going(past: Past) -> bool:
    """Whether there is more to come: of the run, or of the series that it is the last one of so far."""
    between = past.series is not None and past.done and not (past.series / "series.json").exists()
    return one.going(past) or between


def _stamps(pasts: Sequence[Past]) -> list[tuple]:
    """Changes whenever a file of the runs does."""
    files: set[Path] = set()
    for past in pasts:
        for folder in filter(None, (past.logs, past.checkpoints)):
            files |= set(folder.rglob("*"))
        if past.series:
            files |= {*past.series.glob("*.json"), *past.series.glob(f"*/{PLACE}")}
    stamps = []
    for path in sorted(files):
        try:
            found = path.stat()
        except OSError:  # it was just removed
            continue
        stamps.append((str(path), found.st_mtime_ns, found.st_size))
    return stamps


def _folder(wanted: Wanted, pasts: Sequence[Past]) -> Path:
    """Where the page goes. Raises OptionsError for the folder of a run."""
    if wanted.out:
        folder = Path(os.path.abspath(os.path.expanduser(wanted.out)))
    else:
        first = pasts[0]
        whole = first.series if first.series and Path(wanted.runs[0]).resolve() != first.folder else first.folder
        folder = whole.with_name(f"{whole.name}-{'report' if len(wanted.runs) == 1 else 'comparison'}")
    for past in pasts:
        inside = [own for own in (past.logs, past.checkpoints) if own and (own == folder or own in folder.resolve().parents)]
        if inside or folder.resolve() == past.series:
            raise OptionsError(f"--out: {folder} is in the folder of a run, which is not touched")
    return folder


def _write(wanted: Wanted, pasts: Sequence[Past], *, refresh: float | None) -> Path:
    chapters = one.chapters(pasts[0]) if len(pasts) == 1 else several.chapters(pasts)
    if wanted.deep:
        chapters += _deep(pasts)
    chapters = _named_apart(chapters)
    title = one.title(pasts[0]) if len(pasts) == 1 else several.heading(pasts)
    folder = _folder(wanted, pasts)
    try:
        return write(folder, title, chapters, refresh=refresh)
    except OSError as error:
        hint = "" if wanted.out else "; --out takes another folder"
        raise OptionsError(f"--out: {error.filename or folder} cannot be written: {error.strerror or error}{hint}") from None


def _deep(pasts: Sequence[Past]) -> list[Chapter]:
    """Where errors come from: of one run; or of every experiment, by its run of the lowest seed."""
    from continual.report import deep  # here, because it needs minutes, not seconds

    firsts = [("", pasts[0])] if len(pasts) == 1 else several.first_of_each(pasts)
    found = []
    for name, past in firsts:
        of = f" ({name}: {one.title(past)}, its lowest seed)" if name else ""
        try:
            found += [replace(chapter, title=chapter.title + of) for chapter in deep.chapters(past)]
        except Refused as refused:
            found.append(Chapter(f"Where errors come from{of}", [], [str(refused)]))
    return found


def _named_apart(chapters: Sequence[Chapter]) -> list[Chapter]:
    """The same, with a number behind the names of exhibits that others have too."""
    taken: dict[str, int] = {}
    found = []
    for chapter in chapters:
        exhibits = []
        for exhibit in chapter.exhibits:
            number = taken[exhibit.name] = taken.get(exhibit.name, 0) + 1
            exhibits.append(replace(exhibit, name=f"{exhibit.name}-{number}") if number > 1 else exhibit)
        found.append(replace(chapter, exhibits=exhibits))
    return found


def write(folder: Path, title: str, chapters: Sequence[Chapter], *, refresh: float | None = None) -> Path:
    """Write the page and its files, each whole or not at all; files of the page that was there before give way to them.

    refresh: seconds after which a browser looks again. Raises OSError, and OptionsError for a folder with a page of others.
    """
    index, inside = folder / INDEX, folder / EXHIBITS
    before = _own_files(index, inside)
    inside.mkdir(parents=True, exist_ok=True)
    bodies, files = [], {}
    for number, chapter in enumerate(chapters, start=1):
        shown = []
        for exhibit in chapter.exhibits:
            found, svg = figures.files(exhibit)
            files |= found
            shown.append(_exhibit(exhibit, svg, list(found)))
        bodies.append(_chapter(number, chapter, shown))
    for name, content in files.items():
        _keep(inside / name, content)
    _keep(index, _page(title, chapters, bodies, refresh).encode())
    for name in before - files.keys():
        (inside / name).unlink(missing_ok=True)
    return index


def _own_files(index: Path, inside: Path) -> set[str]:
    """The exhibits of the page that is there. Raises OptionsError if what is there is not a page of ours."""
    try:
        text = index.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        if inside.is_dir() and any(inside.iterdir()):
            raise OptionsError(f"--out: {inside} is there already, without a page of this program; choose another") from None
        return set()
    if MARK not in text:
        raise OptionsError(f"--out: {index} is no page of this program, and is left alone; choose another folder")
    return set(re.findall(rf'href="{EXHIBITS}/([a-z0-9-]+\.[a-z]+)"', text))


def _keep(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        with replacing(path) as file:
            file.write(content)


# What the page is made of.


def _page(title: str, chapters: Sequence[Chapter], bodies: Sequence[str], refresh: float | None) -> str:
    again = f'<meta http-equiv="refresh" content="{max(5, round(refresh))}">\n' if refresh is not None else ""
    links = "\n".join(
        f'<li><a href="#chapter-{number}">{html.escape(chapter.title)}</a>{_sublinks(chapter)}</li>'
        for number, chapter in enumerate(chapters, start=1)
    )
    shown = html.escape(title)
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
{again}<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{MARK}
<title>{shown}</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
</head>
<body>
<header><h1>{shown}</h1></header>
<nav aria-label="Contents"><details open><summary>Contents</summary><ol>
{links}
</ol></details></nav>
<main>
{"".join(bodies)}</main>
</body>
</html>
"""
    return plain(text)


def _sublinks(chapter: Chapter) -> str:
    if len(chapter.exhibits) < 2:
        return ""
    items = "".join(f'<li><a href="#{each.name}">{html.escape(each.title)}</a></li>' for each in chapter.exhibits)
    return f"<ul>{items}</ul>"


def _chapter(number: int, chapter: Chapter, shown: Sequence[str]) -> str:
    missing = "".join(f"<li>{html.escape(line)}</li>" for line in chapter.missing)
    said = f'<ul class="missing" aria-label="What is missing">{missing}</ul>\n' if missing else ""
    if len(chapter.missing) > LINES:
        said = f"<details><summary>{len(chapter.missing)} remarks on what is missing</summary>{said}</details>\n"
    return (
        f'<section aria-labelledby="chapter-{number}">\n<h2 id="chapter-{number}">{html.escape(chapter.title)}</h2>\n{said}'
        f'<div class="exhibits">{"".join(shown)}</div>\n</section>\n'
    )


def _exhibit(exhibit: Exhibit, svg: str, files: Sequence[str]) -> str:
    label = f"{exhibit.title}. {exhibit.found}".strip()
    picture = f'<div class="picture">{figures.inline(svg, label=label)}</div>\n' if svg else ""
    links = " ".join(f'<a href="{EXHIBITS}/{name}">{name.rpartition(".")[2].upper()}</a>' for name in files)
    found = f'<p class="found">{html.escape(exhibit.found)}</p>\n' if exhibit.found else ""
    wide = " wide" if not svg and exhibit.table and len(exhibit.table.header) > 4 else ""
    return (
        f'<figure class="exhibit{wide}" id="{exhibit.name}">\n<figcaption><h3>{html.escape(exhibit.title)}</h3>\n'
        f"<p>{html.escape(exhibit.reads)}</p></figcaption>\n{picture}{found}{_table(exhibit, alone=not svg)}"
        f'<p class="files">{links}</p>\n</figure>\n'
    )


def _table(exhibit: Exhibit, *, alone: bool) -> str:
    table = exhibit.table
    if table is None:
        return ""
    if not table.rows:
        return "<p>none</p>\n"
    most = max(10, CELLS // len(table.header))
    part = Table(table.header, table.rows[:most], table.digits)
    more = f"<p>The first {most} of {len(table.rows)} rows; all of them are in the files.</p>" if len(table.rows) > most else ""
    label = html.escape(exhibit.title)
    body = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}, table">{part.html()}</div>{more}\n'
    if alone and len(table.rows) <= 3 * OPEN_ROWS:
        return body
    opened = " open" if len(table.rows) <= OPEN_ROWS and len(table.header) <= 8 else ""
    return f"<details{opened}><summary>Table, {len(table.rows)} rows</summary>{body}</details>\n"
