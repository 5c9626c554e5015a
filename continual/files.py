"""Files that are there whole or not at all, and names that stay where they are put."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)  # what reading a file of anyone's can raise
SAFE_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]{0,127}")  # one folder name, nothing that a shell would act on


def absolute(path: str) -> str:
    """The same place from whatever folder it is looked for later; `~` is the home folder, and no path stays none."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that after a crash there is the old one or the new one. Raises OSError, and then leaves no half file."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Replace a JSON file. Raises OSError, and ValueError for NaN and infinity, which JSON does not know."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> str:
    """Replace a compressed .npz file; returns its SHA-256. Equal arrays give equal bytes. Raises OSError."""
    import numpy as np  # here, because options are read without it

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with replacing(path) as file:
        file.write(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
