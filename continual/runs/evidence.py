"""What a run writes down so that somebody else can vouch for it: what it was made with, how it began, which images it saw.

All of it stands in the manifest of every checkpoint, beside the state and not in it, but for the digests of single images,
which are a file of their own (`images.npz`) that the manifests vouch for; and the logs name the digest of each checkpoint.
"""

import contextlib
import hashlib
import io
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continual import command
from continual.data import identity
from continual.datasets import Benchmark
from continual.errors import CheckpointError, one_line
from continual.files import UNREADABLE, write_arrays
from continual.jobs import distributed
from continual.options import MAY_DIFFER, PATHS, PER_CALL, Options, flat

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("torch", "torchvision", "timm", "continuum", "numpy", "pillow", "scikit-learn", "PyYAML")
IMAGES = "images.npz"  # in the checkpoint folder
WITNESS = "checkpoints.jsonl"  # in the log folder
STEPS = 64  # of a run, whose losses are kept
MADE_WITH, FINGERPRINT, SEEN, EVALUATED, TOLD = "made_with", "fingerprint", "images", "evaluations", "told"  # in a manifest


def environment(device: torch.device) -> dict[str, Any]:
    """What computes here: code, packages, processor. Runs of equal options in equal environments give equal bits.

    Not where kernels may add up in any order (`deterministic: false` on CUDA).
    """
    return {"code": dict(_code()), "packages": dict(_packages()), "processor": _processor(device)}


def told(options: Options) -> dict[str, Any]:
    """The options that a resume may change, as JSON gives them back; without paths, which lead elsewhere on other machines."""
    values = flat(options)
    return json.loads(json.dumps({key: values[key] for key in sorted(MAY_DIFFER - PER_CALL - PATHS)}))


@cache
def _code() -> dict[str, Any]:
    """The commit of this repository, whether its files are as committed, and the SHA-256 of the sources that run."""
    found: dict[str, Any] = {"commit": None, "clean": None}
    try:
        top, commit = _git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() == ROOT:
            found = {"commit": commit, "clean": not _git("status", "--porcelain", "--untracked-files=no").strip()}
    except (OSError, ValueError, subprocess.SubprocessError):
        pass  # no git, or no repository
    sources = hashlib.sha256()
    for path in [ROOT / "main.py", *sorted((ROOT / "continual").rglob("*.py"))]:
        sources.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    script = _script()
    return {**found, "sources": sources.hexdigest(), "script": script and hashlib.sha256(script.read_bytes()).hexdigest()}


def _script() -> Path | None:
    """The user's script that takes the place of main.py, if one does; no program of an installed package."""
    path = Path(command.script() or getattr(sys.modules.get("__main__"), "__file__", None) or "").resolve()
    known = [ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    return path if path.is_file() and not set(known) & set(path.parents) else None


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


@cache
def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {
        "device": device.type,
        "name": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": distributed.nb_processes(),
    }


@cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def witness(logs: Path, checkpoint: Path) -> None:
    """Have the logs tell, too, what a checkpoint was when it was written. A disk that refuses it loses nothing else."""
    with contextlib.suppress(OSError):
        digest = json.loads(checkpoint.with_suffix(".json").read_text())["sha256"]
        with open(logs / WITNESS, "a") as file:
            file.write(json.dumps({"file": checkpoint.name, "sha256": digest}) + "\n")


def witnessed(logs: Path) -> dict[str, str]:
    """The SHA-256 of checkpoints by file, as the logs saw them; lines that are no such words do not count."""
    found = {}
    with contextlib.suppress(OSError):
        for line in (logs / WITNESS).read_text(errors="replace").splitlines():
            with contextlib.suppress(*UNREADABLE):
                word = json.loads(line)
                found[word["file"]] = word["sha256"]
    return found


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, kinds, shapes and bits of a state dict, in its order."""
    found = hashlib.sha256()
    for name, value in weights.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        if value.numel():
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Fingerprint:
    """How the training of a run began: its initial weights, its first losses, and its weights after 1, 2, 4, ... steps.

    initial: their digest; losses: the total of each of the first `STEPS` steps of the first phase, over all processes; weights:
    digests by the number of steps done. The digests are those of the main process, and empty on the others.
    """

    def __init__(self, initial: str = "", losses: tuple | list = (), weights: Mapping[str, str] | None = None):
        self.initial, self.losses, self.weights = initial, list(losses), dict(weights or {})

    def begin(self, model: nn.Module) -> None:
        """The model is about to take its first step."""
        if not self.losses:
            self.initial = _digest_on_main(model)

    def note(self, loss: Tensor, model: nn.Module) -> None:
        """A step was done."""
        if len(self.losses) >= STEPS:
            return
        self.losses.append(float(loss))
        done = len(self.losses)
        if done & (done - 1) == 0:
            self.weights[str(done)] = _digest_on_main(model)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial, "losses": list(self.losses), "weights": dict(self.weights)}


def _digest_on_main(model: nn.Module) -> str:
    return digest_of_weights(model.state_dict()) if distributed.is_main() else ""


def keep_images(folder: Path, benchmark: Benchmark, seed: int) -> str:
    """Write the digest of every image beside the checkpoints; returns the SHA-256 of the file. Raises CheckpointError."""
    path = folder / IMAGES
    try:
        return write_arrays(path, images_of(benchmark, seed))
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from None


def images_of(benchmark: Benchmark, seed: int) -> dict[str, np.ndarray]:
    """By split: which images, as rows, and the digest of each; see `identity.per_image`."""
    found = {}
    for split, samples in (("training", benchmark.train_samples), ("test", benchmark.test_samples)):
        rows = identity.looked_at(samples, seed, split)
        found[f"{split}_rows"], found[split] = rows, identity.per_image(samples.take(rows), benchmark.root)
    return found


def read_images(folder: Path, sha256: str) -> dict[str, np.ndarray]:
    """What `keep_images` wrote. Raises CheckpointError if it is gone or another file."""
    path = folder / IMAGES
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CheckpointError(f"{path.name} was altered (its SHA-256 does not fit)")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is gone from {folder}") from None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each fail in their own ways
        raise CheckpointError(f"{path.name} cannot be read ({one_line(error)[:200]})") from None
