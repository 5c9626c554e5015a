"""Faults on purpose: how the tests show what a run survives. `install` wraps the places at which a process can meet one.

DYTOX_FAULT=KIND:PLACE:N[:rankR] makes the process (of rank R, or every one) meet a fault the N-th time that it reaches a
place; several are separated by commas.

    kill    SIGKILL, as by an out-of-memory killer      term    SIGTERM, as from a scheduler
    raise   an error nobody expects                     int     SIGINT, as by Ctrl-C
    nan     the value that passes there becomes NaN     hang    no answer any more

With DYTOX_COUNTS=FILE each process keeps in FILE-RANK how often it reached each place. A job that torchrun starts again meets
no second fault. As a script, in place of main.py, this runs main.py with the wraps and few digits:
MAIN=tests/faults.py bash train.sh ...
"""

import json
import os
import runpy
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

VARIABLE, COUNTS = "DYTOX_FAULT", "DYTOX_COUNTS"
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
KINDS = (*SIGNALS, "raise", "hang", "nan")
PLACES = (
    *("data", "forward", "backward", "step"),  # in a step of training
    *("evaluation", "exemplars", "phase", "finetuning", "task change", "end"),  # between steps
    *("writing", "rename", "manifest", "cleaning"),  # of a checkpoint
)

_reached: Counter = Counter()


def reach(place: str, value: T = None) -> T:
    """Meet the fault of this place, if its turn has come. Gives `value` back, or value times NaN."""
    _reached[place] += 1
    if os.environ.get(COUNTS):
        Path(f"{os.environ[COUNTS]}-{os.environ.get('RANK', '0')}").write_text(json.dumps(_reached))
    wanted = os.environ.get(VARIABLE)
    if not wanted or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return value
    for fault in wanted.split(","):
        kind, where, number, *rank = fault.split(":")
        if kind not in KINDS or where not in PLACES or place not in PLACES:
            raise ValueError(f"{VARIABLE}={wanted}, at {place!r}: kinds are {KINDS}, places {PLACES}")
        mine = not rank or rank[0] == f"rank{os.environ.get('RANK', '0')}"
        if place == where and _reached[place] == int(number) and mine:
            value = _meet(kind, place, value)
    return value


def _meet(kind: str, place: str, value: T) -> T:
    if kind == "nan":
        return value * float("nan")
    if kind == "raise":
        raise RuntimeError(f"a fault on purpose at {place!r}")
    if kind == "hang":
        while True:
            time.sleep(3600)
    os.kill(os.getpid(), SIGNALS[kind])
    return value


def _around(
    owner: Any, name: str, *, before: str = "", after: str = "", where: Callable[..., bool] = lambda *a, **k: True
) -> None:
    """Wrap a function of a module or class: calls for which `where` holds reach a place before or after it."""
    inner = getattr(owner, name)

    @wraps(inner)
    def outer(*args: Any, **named: Any) -> Any:
        meets = where(*args, **named)
        if meets and before:
            reach(before)
        result = inner(*args, **named)
        if meets and after:
            reach(after)
        return result

    setattr(owner, name, outer)


class _Halves:
    """A file whose content arrives in two halves."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def write(self, content: bytes) -> None:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        reach("writing")
        self.file.write(content[half:])
        self.file.flush()
        reach("rename")


def install() -> None:
    """Wrap every place of PLACES, in this process."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from continual.losses import Objective
    from continual.rehearsal import Memory
    from continual.runs import checkpoint
    from continual.runs.experiment import Experiment
    from continual.runs.run import Run
    from continual.training import evaluation
    from continual.training.batches import Batches
    from continual.training.trainer import Trainer

    _reached.clear()
    _around(Batches, "_next", after="data")
    _around(torch.Tensor, "backward", after="backward")
    register_optimizer_step_pre_hook(lambda *_: reach("step"))
    losses_of = Objective.__call__

    def poisoned(objective: Objective, *batch: Any) -> dict[str, torch.Tensor]:
        losses = losses_of(objective, *batch)
        return {**losses, "total": reach("forward", losses["total"])}

    Objective.__call__ = poisoned
    _around(Trainer, "__init__", before="phase")
    _around(Trainer, "__init__", before="finetuning", where=lambda trainer, model, phase, *_, **__: phase.name == "finetuning")
    _around(Memory, "cut", before="exemplars")
    _around(Run, "move", before="task change", where=lambda run, **changes: "task" in changes)
    _around(Experiment, "save", after="end", where=lambda exp, run, task, finished=False: finished)

    looks: list[str] = []  # what the model is looked at for
    evaluating = evaluation.evaluating

    @contextmanager
    def reaching(model: torch.nn.Module) -> Iterator[None]:
        if looks:
            reach(looks[-1])
        with evaluating(model):
            yield

    evaluation.evaluating = reaching
    for name, place in (("evaluate", "evaluation"), ("extract_features", "exemplars")):
        setattr(evaluation, name, _noting(getattr(evaluation, name), looks, place))

    replacing = checkpoint.replacing

    @contextmanager
    def in_halves(path: Path) -> Iterator[_Halves]:
        with replacing(path) as file:
            yield _Halves(file)

    checkpoint.replacing = in_halves
    _around(checkpoint, "_write", before="manifest", where=lambda path, content: path.suffix == ".json")
    _around(Path, "unlink", after="cleaning", where=lambda path, **_: path.suffix == ".json" and path.name[:1].isdigit())


def _noting(inner: Callable, looks: list[str], place: str) -> Callable:
    @wraps(inner)
    def outer(*args: Any, **named: Any) -> Any:
        looks.append(place)
        try:
            return inner(*args, **named)
        finally:
            looks.pop()

    return outer


if __name__ == "__main__":
    if "DYTOX_CHECK" not in os.environ:
        from continual.command import quick_imports

        with quick_imports():
            from digits import few_digits

            few_digits()
            install()
    runpy.run_path(str(Path(__file__).parent.parent / "main.py"), run_name="__main__")
