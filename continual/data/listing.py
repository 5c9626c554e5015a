"""The files of class folders: every folder is read, or else they are known from last time because no folder has changed.

What is known lies in the user's cache, `$XDG_CACHE_HOME/dytox/` or `~/.cache/dytox/`, and nothing beside the data. It is only
ever a short cut: where it cannot be read, is damaged, or cannot be written, the folders are read as if there were none.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from continual.errors import DataError
from continual.files import UNREADABLE

WORTH_KEEPING = 10_000  # files; reading the folders of fewer takes less than 0.1 s
SETTLED = 2 * 10**9  # nanoseconds; a folder changed more recently may change again and show the same time (FAT counts in twos)

Stamp = list[int]  # of a folder: its inode, and when its content and anything of it were last changed, in nanoseconds


def files_in(top: str, names: Sequence[str]) -> list[list[str]]:
    """The files below each of these folders of `top`, as `files_below` gives them, and as they are now.

    A file that was added, removed or renamed since the cache was written changes the time of its folder, and that folder and
    those beside it under the same name are read again; what a file holds is not looked at.

    Raises:
        DataError: a folder that cannot be read.
    """
    place, begun = _place(top), time.time_ns()
    known = _read(place)
    found = {}
    for name in names:
        folder, last = os.path.join(top, name), known.get(name)
        if last is None or any(_stamp(os.path.join(folder, inner)) != stamp for inner, stamp in last["folders"].items()):
            last = dict(zip(("files", "folders"), files_below(folder), strict=True))
        found[name] = last
    settled = {name: last for name, last in found.items() if _settled(last["folders"], begun)}
    if settled != known and sum(len(last["files"]) for last in settled.values()) >= WORTH_KEEPING:
        _write(place, settled)
    return [last["files"] for last in found.values()]


def files_below(folder: str, *, deep: bool = True) -> tuple[list[str], dict[str, Stamp]]:
    """The files in a folder (and if `deep` in those below it), sorted, as paths from it; but for hidden ones.

    And the stamps of the folders that were met, as they were before their files were read. Links are followed. Every folder is
    read once, under the name that sorts first, and none that holds `folder` itself: so links that lead in circles do no harm.

    Raises:
        DataError: a folder that cannot be read.
    """
    whole = os.path.realpath(folder)
    read = {whole, *map(str, Path(whole).parents), *map(str, Path(folder).parents)}
    files: list[str] = []
    stamps = {"": _stamp(folder)}

    def look(below: str) -> None:
        folders = []
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                if entry.name[0] != ".":
                    (folders if entry.is_dir() else files).append(below + entry.name)
        for inner in sorted(folders) if deep else ():
            place = os.path.realpath(os.path.join(folder, inner))
            stamps[inner] = _stamp(place)
            if place not in read:
                read.add(place)
                look(inner + "/")

    try:
        look("")
    except OSError as error:
        raise DataError(f"cannot look into the folder {error.filename}: {error.strerror}") from error
    return sorted(files), stamps


def _stamp(folder: str) -> Stamp | None:
    """None for a folder that is gone."""
    try:
        now = os.stat(folder)
    except OSError:
        return None
    return [now.st_ino, now.st_mtime_ns, now.st_ctime_ns]


def _settled(folders: Mapping[str, Stamp | None], begun: int) -> bool:
    """Whether any change from now on will show: what was changed just before `begun` may be changed again in the same tick."""
    return all(stamp is not None and max(stamp[1:]) < begun - SETTLED for stamp in folders.values())


def _place(top: str) -> Path | None:
    """The file of what is known of a folder; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.abspath(top))).hexdigest()[:32]
    return Path(base, "dytox", f"listing-1-{name}.json") if os.path.isabs(base) else None


def _read(place: Path | None) -> dict[str, Any]:
    """What was known last time; nothing if that is not, byte for byte, what `_write` wrote."""
    if place is None:
        return {}
    try:
        seal, _, body = place.read_bytes().partition(b"\n")
        return json.loads(body) if hashlib.sha256(body).hexdigest().encode() == seal else {}
    except UNREADABLE:
        return {}


def _write(place: Path | None, known: Mapping[str, Any]) -> None:
    """Keep it for the next time, whole or not at all, whoever else writes it now; nothing where that cannot be."""
    if place is None:
        return
    body = json.dumps(known).encode()
    unfinished = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            unfinished = file.name
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        os.replace(unfinished, place)
    except OSError:
        with contextlib.suppress(OSError, TypeError):
            os.unlink(unfinished)
