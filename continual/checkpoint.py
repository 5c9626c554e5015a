"""Checkpoints that survive: written atomically, checked by SHA-256, loaded without executing anything in them.

A checkpoint is two files: NAME.pt, tensors and plain values in torch's weights-only format, and NAME.json, its manifest: the
SHA-256 of the first, what experiment it belongs to, and where in the run it was made. Without a valid manifest a payload
does not count.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from continual.errors import CheckpointError
from continual.options import MAY_DIFFER, Options, flat

Say = Callable[[str], None]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that after a crash there is the old one or the new one. Raises OSError, and then leaves no half file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _seal(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own seal."""
    plain = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def as_identity(options: Options) -> dict[str, Any]:
    """The options that make an experiment what it is, as JSON gives them back."""
    return json.loads(json.dumps({key: value for key, value in flat(options).items() if key not in MAY_DIFFER}))


def refuse_another(stored: dict[str, Any], now: dict[str, Any], *, anyway: bool = False) -> None:
    """Raise CheckpointError naming the first differences between two identities; `anyway` lets them pass."""
    keys = [key for key in {**now, **stored} if stored.get(key) != now.get(key)]
    if keys and not anyway:
        told = "; ".join(f"{key} was {_short(stored.get(key))}, is {_short(now.get(key))}" for key in keys[:5])
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise CheckpointError(f"the checkpoint is of another experiment: {told}{more} (--resume-anyway goes on nevertheless)")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Stored:
    """A valid manifest."""

    path: Path  # of the payload
    manifest: dict[str, Any]

    @property
    def serial(self) -> int:
        return self.manifest["serial"]

    @property
    def finished_task(self) -> bool:
        return self.manifest["finished_task"]


class Store:
    """The checkpoints of one run, in one folder.

    keep: newest checkpoints kept; keep_tasks: also keep the one at the end of every task.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_tasks: bool = True):
        self.folder, self.keep, self.keep_tasks = Path(folder), keep, keep_tasks
        self._lock = None
        self._saved_at, self._cost = time.monotonic(), 0.0

    def lock(self) -> None:
        """Keep every other process out until this one ends, however it ends. Raises CheckpointError if one is in."""
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 - held as long as the process lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"{self.folder}: another run is writing here; wait for it, or choose another --name"
            ) from None

    def save(self, state: dict[str, Any], *, name: str, identity: dict[str, Any], task: int, finished_task: bool) -> Path:
        """Write a checkpoint, then remove those not worth keeping.

        state: tensors, numbers, strings, lists and dicts of these. identity: what must be equal to resume. task: the task it
        belongs to; finished_task: whether it was the last of that task.
        Raises CheckpointError if it cannot be written; the older ones are then untouched.
        """
        begun = time.monotonic()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        known = self.stored()
        serial = 1 + max((each.serial for each in known), default=0)
        manifest = {
            "serial": serial,
            "name": name,
            "task": task,
            "finished_task": finished_task,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "identity": identity,
        }
        manifest["seal"] = _seal(manifest)
        path = self.folder / f"{serial:06d}-{name}.pt"
        try:
            write_atomically(path, payload)
            write_atomically(self._manifest_path(path), json.dumps(manifest, indent=1).encode())
        except OSError as error:
            older = f"the last checkpoint is {known[-1].path}" if known else "there is no earlier checkpoint"
            raise CheckpointError(f"could not write {path}: {error.strerror or error}; {older}") from None
        self._clean()
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - begun
        return path

    def due(self, minutes: float) -> bool:
        """Whether the last save was so many minutes ago, and saving would cost less than 1 % of the time since."""
        return time.monotonic() - self._saved_at >= max(60 * minutes, 100 * self._cost)

    def stored(self, say: Say = lambda text: None) -> list[Stored]:
        """Checkpoints with a valid manifest, oldest first. `say` hears of the others."""
        found = []
        for path in self.folder.glob("*.pt"):
            try:
                manifest = json.loads(self._manifest_path(path).read_text())
                if manifest["seal"] != _seal(manifest):
                    raise ValueError("its SHA-256 does not fit")
                found.append(Stored(path, manifest))
            except FileNotFoundError:
                say(f"warning: {path.name} has no manifest (writing it was interrupted): passed over")
            except (ValueError, KeyError, TypeError, OSError) as error:
                say(f"warning: the manifest of {path.name} is damaged ({error}): passed over")
        return sorted(found, key=lambda each: each.serial)

    def load(self, *, start_task: int = 0, say: Say = lambda text: None) -> tuple[dict[str, Any], dict[str, Any]]:
        """State and manifest of the newest valid checkpoint, or with `start_task` > 0 of the one at the end of the task before.

        Damaged ones are named to `say` and passed over. Raises CheckpointError if none is valid: a run never starts afresh
        in silence.
        """
        candidates = self.stored(say)
        if start_task:
            candidates = [c for c in candidates if c.finished_task and c.manifest["task"] == start_task - 1]
        for candidate in reversed(candidates):
            try:
                return self._read(candidate), candidate.manifest
            except CheckpointError as error:
                say(f"warning: {error}: passed over")
        wanted = f"of the end of task {start_task - 1} (--start-task {start_task})" if start_task else "to resume from"
        raise CheckpointError(f"{self.folder}: no valid checkpoint {wanted}")

    @staticmethod
    def _read(stored: Stored) -> dict[str, Any]:
        try:
            payload = stored.path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{stored.path.name} cannot be read ({error.strerror})") from None
        if hashlib.sha256(payload).hexdigest() != stored.manifest["sha256"]:
            raise CheckpointError(f"{stored.path.name} is damaged (its SHA-256 does not fit)")
        try:
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{stored.path.name} holds more than tensors and plain values, or is no checkpoint: {reason}"
            ) from None

    def _clean(self) -> None:
        stored = self.stored()
        ends = {each.manifest["task"]: each for each in stored if each.finished_task}  # the newest of each task
        kept = {each.serial for each in [*stored[-self.keep :], *(ends.values() if self.keep_tasks else ())]}
        for each in stored:
            if each.serial not in kept:
                with contextlib.suppress(OSError):
                    self._manifest_path(each.path).unlink()
                    each.path.unlink()

    @staticmethod
    def _manifest_path(path: Path) -> Path:
        return path.with_suffix(".json")
