"""What a run has still to do, and how long that may take, going by what the like has taken so far. Nothing depends on it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from continual.data import material
from continual.data.material import Material
from continual.data.samplers import StepSampler
from continual.data.samples import Samples
from continual.datasets import Benchmark
from continual.methods import Method
from continual.options import Options
from continual.rehearsal import Memory
from continual.runs.ledger import EVALUATION, EXEMPLARS, Ledger
from continual.tasks import Phase, Remembering, Task


class Work(NamedTuple):
    """One step of a task: how much of each kind, as the ledger's lines call it: steps of a phase, else images."""

    task: int
    step: str
    amounts: Mapping[str, int]


def works(method: Method, tasks: Sequence[Task], benchmark: Benchmark, memory: Memory, options: Options) -> list[Work]:
    """All that a run will do, in order: the method's steps on images without content, of as many as there will be.

    memory: an empty one; it takes in the first images of every class. Empty if the method cannot plan without content.
    """
    try:
        return list(_works(method, tasks, benchmark, memory, options))
    except Exception:  # of a method of one's own; an estimate is no reason to stop
        return []


def _works(method: Method, tasks: Sequence[Task], benchmark: Benchmark, memory: Memory, options: Options) -> Iterator[Work]:
    labels, of_task, tested = benchmark.train_samples.y, benchmark.train_samples.t, benchmark.test_samples.t
    every = options.run.eval_every
    for task in tasks:
        new, nb_tested = _blank(labels[of_task == task.index]), int((tested <= task.index).sum())
        for step in method.steps(task):
            if isinstance(step, Remembering):
                choices = options.rehearsal.rehearsal_modes * memory.nb_replicas if memory.memory_size else 0
                yield Work(task.index, step.name, {EXEMPLARS: len(new.y) * choices * (options.rehearsal.rehearsal != "random")})
                _fill(memory, new, task)
            else:
                known = _blank(labels[of_task <= task.index])
                nb_steps = step.epochs * _steps_of_an_epoch(method, task, step, new, known, memory)
                nb_between = (step.epochs - 1) // every if every else 0
                yield Work(task.index, step.name, {step.name: nb_steps, EVALUATION: nb_between * nb_tested})
        yield Work(task.index, "", {EVALUATION: nb_tested})


class Left(NamedTuple):
    """Seconds that are still to come."""

    task: float
    run: float


def seconds_left(plan: Sequence[Work], ledger: Ledger, *, task: int, step: str, share: float) -> Left | None:
    """For all that comes after `share` (0 to 1) of this step of this task; None if nothing like it was done so far.

    Time that belongs to no line, such as saving, is taken to go on at the same proportion.
    """
    here = next((at for at, work in enumerate(plan) if (work.task, work.step) == (task, step)), None)
    booked = sum(line.seconds for line in ledger.lines.values())
    if here is None or not booked:
        return None
    of_task = of_run = 0.0
    for at, work in enumerate(plan[here:]):
        each = sum(amount * (1.0 if at else 1 - share) * _pace(ledger, kind) for kind, amount in work.amounts.items())
        of_run += each
        of_task += each if work.task == task else 0.0
    return Left(of_task * ledger.total() / booked, of_run * ledger.total() / booked)


def _pace(ledger: Ledger, kind: str) -> float:
    """Seconds for each step, or for each image of a kind without steps: those of the two newest tasks that did any of it.

    What was never done goes at the pace of training.
    """
    done = [(name, line) for (_, name), line in reversed(ledger.lines.items()) if line.images]
    lines = [line for name, line in done if name == kind] or [line for _, line in done if line.steps]
    amount = sum(line.images if kind in (EVALUATION, EXEMPLARS) else line.steps for line in lines[:2])
    return sum(line.seconds for line in lines[:2]) / amount if amount else 0.0


def _blank(labels: np.ndarray) -> Samples:
    """Images of these labels without content."""
    return Samples(np.zeros(len(labels), dtype=np.uint8), labels, np.zeros_like(labels))


def _fill(memory: Memory, new: Samples, task: Task) -> None:
    """The memory after the task: cut, and with the first images of each new class."""
    if not memory.memory_size:
        return
    quota = memory.quota(task.nb_seen)
    memory.cut(quota)
    for replica in range(memory.nb_replicas):
        for label in range(task.nb_old, task.nb_seen):
            memory.add(*new.take(np.flatnonzero(new.y == label)[:quota]), replica=replica)


def _steps_of_an_epoch(method: Method, task: Task, phase: Phase, new: Samples, known: Samples, memory: Memory) -> int:
    share = 0.0 if memory.knows(task) else method.held_out(task)
    held = material.hold_out(new, memory, share, np.random.default_rng(0)) if share else (None, None)
    _, views = phase.data(Material(new, memory, method.replicas, lambda: known, *held))
    return StepSampler.of(phase, views, own_replicas=range(len(views)), key=()).nb_steps
