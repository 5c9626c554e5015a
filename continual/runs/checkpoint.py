"""Checkpoints that survive: written atomically, checked by SHA-256, loaded without executing anything in them.

A checkpoint is two files: NAME.pt, tensors and plain values in torch's weights-only format, and NAME.json, its manifest: the
SHA-256 of the first, what experiment it belongs to, where in the run it was made, and what that took. Without a valid
manifest a payload does not count. Beside them the file `newest` names the last one written: so a checkpoint that was deleted
is missed, and a run that never wrote one is told from a run that lost them all.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from continual.errors import CheckpointError
from continual.files import UNREADABLE, replacing
from continual.options import MAY_DIFFER, Options, flat, method_of

Say = Callable[[str], None]

DIGESTS = {"training_digest": "training", "test_digest": "test"}
OF_THE_DATA = {"classes", "normalisation", *DIGESTS}  # keys of an identity that the first runs did not write down

ORIGIN = "branched_from"  # in the identity of a branch
EARLIER = "earlier"  # in a manifest: the SHA-256 of the other checkpoints that were there

_LOCKS: weakref.WeakSet[IO] = weakref.WeakSet()  # held by this process


def _let_go() -> None:
    """In a child, such as a loading worker, which may outlive this process."""
    for lock in list(_LOCKS):
        lock.close()


def own_lock(file: IO) -> None:
    """Have a lock end with this process, whatever children it has."""
    _LOCKS.add(file)


os.register_at_fork(after_in_child=_let_go)


def _write(path: Path, content: bytes) -> None:
    """Replace a file. Raises OSError, and then leaves no half file."""
    with replacing(path) as file:
        file.write(content)


def _as_text(manifest: dict[str, Any]) -> str:
    """The one way to write a manifest down: a byte that differs is damage, even where JSON would not mind."""
    return json.dumps(manifest, indent=1)


def seal(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own seal."""
    plain = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def as_identity(options: Options) -> dict[str, Any]:
    """The options that make an experiment what it is, as JSON gives them back; `method` by its name in any case."""
    identity = {key: value for key, value in flat(options).items() if key not in MAY_DIFFER}
    return json.loads(json.dumps({**identity, "method": options.method}))


def differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys in which two identities differ.

    A run begun before its data were part of it is silent about them; an option that came later was then at its default.
    """
    unknown = OF_THE_DATA - stored.keys()
    keys = [key for key in {**now, **stored} if key not in unknown]
    return [key for key in keys if _was(stored, key) != now.get(key)]


def _was(stored: dict[str, Any], key: str) -> Any:
    """What a key was when the identity was stored; a run begun before there was such an option tells it by others."""
    if key in stored:
        return stored[key]
    then = {"method": method_of(stored), "registered": [], "augment": "pillow"}
    then["amp"] = "off" if stored.get("no_amp") else "auto"
    return {**as_identity(Options()), **then}.get(key)


def refuse_another(stored: dict[str, Any], now: dict[str, Any], *, anyway: bool = False) -> None:
    """Raise CheckpointError naming the first differences between two identities; `anyway` lets them pass."""
    if (told := told_differences(stored, now)) and not anyway:
        raise CheckpointError(f"the checkpoint is of another experiment: {told} (--resume-anyway goes on nevertheless)")


def told_differences(stored: dict[str, Any], now: dict[str, Any]) -> str:
    """The first differences between two identities in words; empty if there are none."""
    keys = differences(stored, now)
    told = "; ".join(_told(key, _was(stored, key), now.get(key)) for key in keys[:5])
    return told + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _told(key: str, was: Any, now: Any) -> str:
    """One difference in words; of class names, the first label whose class is another."""
    if key in DIGESTS:
        return f"the {DIGESTS[key]} images, their labels or their order differ"
    if key == "classes" and isinstance(was, list) and isinstance(now, list):
        for label, (before, after) in enumerate(zip(was, now, strict=False)):
            if before != after:
                return f"the class of label {label} was {_short(repr(before))}, is {_short(repr(after))}"
    return f"{key} was {_short(was)}, is {_short(now)}"


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

    keep: newest checkpoints kept; keep_tasks: also keep the one at the end of every task. seconds: time spent saving.
    """

    NEWEST = "newest"

    def __init__(self, folder: Path, *, keep: int = 2, keep_tasks: bool = True):
        self.folder, self.keep, self.keep_tasks = Path(folder), keep, keep_tasks
        self.seconds = 0.0
        self._lock = None
        self._damaged: set[int] = set()  # serials of those that were passed over
        self._saved_at, self._cost = time.monotonic(), 0.0

    def lock(self) -> None:
        """Keep every other process out until `close`, or the end of this one; and remove what a killed one left half written.

        Raises CheckpointError if another process is in, or the folder cannot be written.
        """
        try:
            self._lock = open(self.folder / "lock", "a")  # noqa: SIM115 - held as long as the process lives
            own_lock(self._lock)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"{self.folder}: another run is writing here; wait for it, or choose another --name"
            ) from None
        for half_written in self.folder.glob(".*.tmp"):
            half_written.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other processes in again."""
        if self._lock is not None:
            self._lock.close()

    def save(
        self,
        state: dict[str, Any],
        *,
        name: str,
        identity: dict[str, Any],
        task: int,
        finished_task: bool,
        seconds: float = 0.0,
        spent: dict[str, Any] | None = None,
        beside: dict[str, Any] | None = None,
    ) -> Path:
        """Write a checkpoint, then remove those not worth keeping.

        state: tensors, numbers, strings, lists and dicts of these. identity: what must be equal to resume. task, finished_task:
        the task it belongs to, and whether it is its last. In the manifest, as equal runs have equal states, are seconds: how
        long the run took up to here; spent: what it cost; beside: what else is known then, by name; all plain values.
        Raises CheckpointError if it cannot be written; the older ones are then untouched.
        """
        begun = time.monotonic()
        payload = _as_bytes(state)
        before, serial = self.stored(), self._next_serial()
        manifest = {
            "serial": serial,
            "name": name,
            "task": task,
            "finished_task": finished_task,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            **{"seconds": seconds, "seconds_saving": self.seconds, "spent": spent or {}},
            **(beside or {}),
            EARLIER: {each.path.name: each.manifest["sha256"] for each in before},
            "identity": identity,
        }
        manifest["seal"] = seal(manifest)
        path = self.folder / f"{serial:06d}-{name}.pt"
        self._write_pair(path, payload, manifest)
        self._clean([*before, Stored(path, manifest)])
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - begun
        self.seconds += self._cost
        return path

    def _write_pair(self, path: Path, payload: bytes, manifest: dict[str, Any]) -> None:
        try:
            _write(path, payload)
            _write(self._manifest_path(path), _as_text(manifest).encode())
            _write(self.folder / self.NEWEST, path.name.encode())
        except OSError as error:
            if not self._manifest_path(path).exists():
                path.unlink(missing_ok=True)
            known = self.stored()
            older = f"the last checkpoint is {known[-1].path}" if known else "there is no earlier checkpoint"
            raise CheckpointError(f"could not write {path}: {error.strerror or error}; {older}") from None

    def _next_serial(self) -> int:
        known = [] if self.untouched() else self.folder.glob("[0-9]*-*")
        return 1 + max(map(_serial, known), default=0)

    def due(self, minutes: float) -> bool:
        """Whether the last save was so many minutes ago, and saving would cost less than 1 % of the time since."""
        return time.monotonic() - self._saved_at >= max(60 * minutes, 100 * self._cost)

    def stored(self, say: Say = lambda text: None) -> list[Stored]:
        """Checkpoints with a valid manifest, oldest first. `say` hears of the others."""
        found = []
        for path in sorted(self.folder.glob("*.pt")):
            try:
                found.append(Stored(path, _read_manifest(self._manifest_path(path))))
            except FileNotFoundError:
                say(f"warning: {path.name} has no manifest (writing it was interrupted): passed over")
            except UNREADABLE as error:
                say(f"warning: the manifest of {path.name} is damaged ({error}): passed over")
        newest = self._newest()
        if newest and not (self.folder / newest).exists():
            say(f"warning: the newest checkpoint, {newest}, is gone")
        return sorted(found, key=lambda each: each.serial)

    def examined(self) -> Iterator[tuple[str, dict[str, Any] | None, dict[str, Any] | None, str]]:
        """Every payload's name, manifest and state, oldest first, None for what cannot be had, and what is wrong, in words.

        The halves of a pair whose writing was interrupted are nothing wrong.
        """
        newest = self._newest()
        for path in sorted({*self.folder.glob("[0-9]*.pt"), *([self.folder / newest] if newest else [])}):
            manifest = state = None
            told = ""
            try:
                manifest = _read_manifest(self._manifest_path(path))
                state = self._read(Stored(path, manifest))
            except FileNotFoundError:
                told = f"{path.name}: its manifest is gone" if path.name == newest else ""
            except UNREADABLE:
                told = f"{path.name}: its manifest was altered or is damaged"
            except CheckpointError as error:
                told = str(error)
            yield path.name, manifest, state, told

    def untouched(self) -> bool:
        """Whether no checkpoint was ever written here, as far as can be told: no file of any, but for half of a first one."""
        files = [path for path in self.folder.glob("[0-9]*-*.*") if _serial(path)]
        half = [path for path in files if _serial(path) == 1 and path.suffix == ".pt"]
        return not self._newest() and (not files or files == half)

    def load(
        self, *, start_task: int = 0, file: str = "", say: Say = lambda text: None
    ) -> tuple[dict[str, Any], dict[str, Any]] | tuple[None, None]:
        """State and manifest of the newest valid checkpoint, or with `start_task` > 0 of the one at the end of the task before.

        With `file` of that very one. Raises CheckpointError if it is gone or damaged.

        Two times None if the run ended before it wrote any. Damaged ones are named to `say` and passed over. Raises
        CheckpointError if there were some and none is valid: a run never starts afresh in silence.
        """
        if file:
            return self._load_file(self.folder / file)
        if not start_task and self.untouched():
            return None, None
        candidates = self.stored(say)
        ends = sorted({c.manifest["task"] for c in candidates if c.finished_task})
        if start_task:
            candidates = [c for c in candidates if c.finished_task and c.manifest["task"] == start_task - 1]
        for candidate in reversed(candidates):
            try:
                state = self._read(candidate)
            except CheckpointError as error:
                say(f"warning: {error}: passed over")
                self._damaged.add(candidate.serial)
                continue
            self.seconds = candidate.manifest["seconds_saving"]
            return state, candidate.manifest
        wanted = "to resume from"
        if start_task:
            kept = f"; kept are the ends of tasks {', '.join(map(str, ends))}" if ends else ""
            wanted = f"of the end of task {start_task - 1} (--start-task {start_task}){kept}"
        raise CheckpointError(f"{self.folder}: no valid checkpoint {wanted}")

    def _load_file(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            stored = Stored(path, _read_manifest(self._manifest_path(path)))
        except FileNotFoundError:
            told = "it has no manifest: it is not of a run, or writing it was interrupted"
            raise CheckpointError(f"{path} is no valid checkpoint: {told}") from None
        except UNREADABLE as error:
            raise CheckpointError(f"{path}: its manifest is damaged ({error})") from None
        state = self._read(stored)
        self.seconds = stored.manifest["seconds_saving"]
        return state, stored.manifest

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
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{stored.path.name} holds more than tensors and plain values, or is no checkpoint: {reason}"
            ) from None

    def _newest(self) -> str:
        """The name of the payload that was written last; empty if none was."""
        try:
            return Path((self.folder / self.NEWEST).read_text(errors="replace").replace("\0", "?")).name
        except FileNotFoundError:
            return ""

    def _clean(self, stored: list[Stored]) -> None:
        """Remove what is not worth keeping of those stored: manifests first, so that what is left of a pair does not count."""
        good = [each for each in stored if each.serial not in self._damaged]
        ends = {each.manifest["task"]: each for each in good if each.finished_task}  # the newest of each task
        kept = {each.serial for each in [*good[-self.keep :], *(ends.values() if self.keep_tasks else ())]}
        with contextlib.suppress(OSError):
            for each in stored:
                if each.serial not in kept:
                    self._manifest_path(each.path).unlink()
                    each.path.unlink()
            for path in self.folder.glob("[0-9]*-*"):  # halves of pairs that an interruption left
                if not path.with_suffix({".pt": ".json", ".json": ".pt"}.get(path.suffix, path.suffix)).exists():
                    path.unlink()

    @staticmethod
    def _manifest_path(path: Path) -> Path:
        return path.with_suffix(".json")


def _as_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _serial(path: Path) -> int:
    """The number that a file's name begins with; 0 without one."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < 12 else 0


MANIFEST = {
    **{"serial": int, "name": str, "task": int, "finished_task": bool, "sha256": str},
    **{"seconds": float, "seconds_saving": float, "identity": dict},
}


def _read_manifest(path: Path) -> dict[str, Any]:
    """Raises ValueError or OSError unless it is whole, to the byte."""
    text = path.read_bytes().decode()
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("seal") != seal(manifest) or text != _as_text(manifest):
        raise ValueError("its SHA-256 does not fit")
    for key, kind in MANIFEST.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"it has no {key}")
    return manifest
