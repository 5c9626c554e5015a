"""The first epochs of CIFAR-100 in 10 steps, on made-up images of its shape, through main.py; and the whole, projected.

This file starts such a run, and is what the run is: a script that registers the images and notes how long epochs take.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

import continual
from continual.training.trainer import Trainer
from parts.models import TINY
from parts.setting import OPTIONS, ROOT, OutOfTime, Row, Setting, guarded, of_python

FAST = {"amp": "bf16", "compile": True, "deterministic": False}  # where options/speed/fast.yaml is not there
FIRST, LATER = 500 * 5000, 9 * 500 * 7000  # images of the published schedule: the first task, and the other nine together
EPOCHS = 4


def cifar100(setting: Setting) -> list[Row]:
    """As published, and with the options for speed; without finetuning, one image in a hundred of the whole."""
    rows = []
    for name in ("as published", "fast"):
        rows.append({"options": name, **guarded(lambda name=name: projected(setting, name))})
    return rows


def projected(setting: Setting, name: str) -> Row:
    """Images a second in the first and in the second task, and what the whole would take at that."""
    setting.need(5 if setting.tiny else 60)
    folder = Path(tempfile.mkdtemp(prefix="epochs-"))
    start, environment = of_python("epochs")
    command = [*start, str(folder), setting.device.type, "tiny" if setting.tiny else "whole", name]
    try:
        limit = min(270.0, setting.seconds_left() - 5)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, env=environment)
        if done.returncode:
            raise RuntimeError(f"the run ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
        epochs = json.loads((folder / "epochs.json").read_text())
        (summary,) = (folder / "logs").rglob("summary.json")
        whole = json.loads(summary.read_text())["time"]
    except subprocess.TimeoutExpired:
        raise OutOfTime(f"not measured: it had not ended after {limit:.0f} s") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "compile:" in line][:1]
    return {**of_epochs(epochs), "run (s)": whole, **({"said": said[0][:300]} if said else {})}


def of_epochs(epochs: list[Row]) -> Row:
    """The median rate of each task's epochs after the first, and the projection."""
    training = [each for each in epochs if each["phase"] == "training"]
    rates, row, begins = [], {}, 0.0  # what the first epoch of a task takes longer, such as to compile
    for task in (0, 1):
        own = [each for each in training if each["task"] == task]
        rates.append(median(each["images"] / each["seconds"] for each in own[1:]))
        row[f"task {task + 1} (images/s)"] = rates[-1]
        row[f"task {task + 1}, first epoch (s)"] = own[0]["seconds"]
        begins += (1, 9)[task] * max(0.0, own[0]["seconds"] - own[0]["images"] / rates[-1])
    row["34 million images, projected (minutes)"] = (FIRST / rates[0] + LATER / rates[1] + begins) / 60
    return row


def made_up_cifar(size: str):
    """A function that gives 50,000 images of noise in 100 classes, and 10,000 to test; few of them if `size` is tiny."""
    per_class = {"tiny": (4, 1), "whole": (500, 100)}[size]

    def read(data_path: str | None, train: bool) -> tuple[np.ndarray, np.ndarray]:
        nb = 100 * per_class[not train]
        rng = np.random.default_rng(int(train))
        return rng.integers(0, 256, (nb, 32, 32, 3), dtype=np.uint8), np.arange(nb) % 100

    return read


def note_epochs(path: Path) -> None:
    """From now on every epoch of training leaves its seconds, and the file holds them all."""
    steps, noted = Trainer.steps, []

    def timed(self: Trainer, epoch: int, first_step: int = 0) -> Iterator:
        synchronize = torch.cuda.synchronize if self.loading.device.type == "cuda" else lambda: None
        synchronize()
        begun, images = time.perf_counter(), 0
        for losses, nb in steps(self, epoch, first_step):
            images += nb
            yield losses, nb
        synchronize()
        seconds = time.perf_counter() - begun
        noted.append({"phase": self.phase.name, "task": self._key[2], "epoch": epoch, "images": images, "seconds": seconds})
        path.write_text(json.dumps(noted))

    Trainer.steps = timed


def main(folder: Path, device: str, size: str, name: str) -> int:
    """The run itself: two tasks of the published recipe, a few epochs each."""
    continual.register_data_set("made_up_cifar", made_up_cifar(size))
    note_epochs(folder / "epochs.json")
    files = [OPTIONS / "data/cifar100_10-10.yaml", OPTIONS / "data/cifar100_order1.yaml", OPTIONS / "model/cifar_dytox.yaml"]
    fast, changes = OPTIONS / "speed/fast.yaml", {}
    if name == "fast":
        files += [fast] if fast.exists() else []
        changes = {} if fast.exists() else dict(FAST)
    if size == "tiny":
        changes |= {**TINY, "patch_size": 8, "batch_size": 8, "incremental_batch_size": 8, "memory_size": 100, "compile": False}
    short = {"base_epochs": EPOCHS, "epochs": EPOCHS, "finetuning": "", "eval_every": None, "max_task": 2}
    place = {"log_path": str(folder / "logs"), "output_basedir": str(folder / "checkpoints"), "name": "speed", "device": device}
    options = continual.configure(*files, **changes, **short, **place, data_set="made_up_cifar")
    return continual.story().main(options)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
