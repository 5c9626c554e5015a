"""The state of a run: all of it, in a form that can be loaded without executing anything."""

import io
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from jobs import assert_equal
from torch import nn

from continual.errors import CheckpointError
from continual.rehearsal import Memory
from continual.report import Report
from continual.runs.run import Position, Run, load_memory, memory_state
from continual.tasks import Task


def stored(state):
    """What a checkpoint gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def ragged(*shapes):
    images = np.empty(len(shapes), dtype=object)
    for i, shape in enumerate(shapes):
        images[i] = np.full(shape, i, dtype=np.uint8)
    return images


@pytest.mark.parametrize(
    "x",
    [
        np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3),
        ragged((2, 5, 3), (4, 4), (3, 1, 1)),
        ragged((2, 2), (2, 2), (2, 2)),
        np.array(["train/é/a.jpg", "train/" + 300 * "b", "c"]),
    ],
    ids=["one size", "many sizes", "many sizes that are one", "paths"],
)
def test_exemplars_come_back(x):
    memory, again = Memory(9, nb_replicas=2), Memory(9, nb_replicas=2)
    memory.add(x[:2], np.array([1, 0]), np.array([0, 0]), replica=1)
    memory.add(x[2:], np.array([1]), np.array([0]), replica=0)
    load_memory(again, stored(memory_state(memory)))
    assert again.x.dtype == memory.x.dtype and len(again) == 3
    for ours, theirs in zip(again.x, memory.x, strict=True):
        assert np.array_equal(ours, theirs) and np.shape(ours) == np.shape(theirs)
    for name in ("y", "t", "replica"):
        assert np.array_equal(getattr(again, name), getattr(memory, name))
    again.add(x[:1], np.array([2]), np.array([1]))
    assert len(again) == 4


def test_an_empty_memory_comes_back():
    memory = Memory(9)
    load_memory(memory, stored(memory_state(Memory(9))))
    assert memory.x is None and len(memory) == 0


class Growing(nn.Module):
    def __init__(self, width=3, weights=True):
        super().__init__()
        self.classes, self.layers, self.width = [], nn.ModuleList(), width

    def add_task(self, nb_new):
        self.classes.append(nb_new)
        self.layers.append(nn.Linear(self.width, nb_new))


def run_of(build=Growing):
    run = Run(build, Memory(0), Report(None, nb_tasks=3, console=False), torch.device("cpu"))
    run.model = build()
    return run


def test_a_task_is_begun_once():
    run = run_of()
    run.begin(Task(0, 0, 2))
    assert run.teacher is None and run.model.classes == [2]
    run.begin(Task(1, 2, 4))
    assert run.teacher.classes == [2] and run.model.classes == [2, 4]
    assert not run.teacher.training and not any(p.requires_grad for p in run.teacher.parameters())
    teacher, weights = run.teacher, run.model.state_dict()
    run.begin(Task(1, 2, 4))
    assert run.teacher is teacher
    assert_equal(run.model.state_dict(), weights)


def test_model_and_teacher_come_back():
    run, again = run_of(), run_of()
    for task in (Task(0, 0, 2), Task(1, 2, 4)):
        run.begin(task)
    run.move(task=1, epoch=3, step=2)
    again.build = asked = Mock(side_effect=Growing)
    again.load_state_dict(stored(run.state_dict()), seconds=5.0)
    assert_equal(again.state_dict(), run.state_dict())
    assert again.position == Position(1, "training", 3, 2) and again.seconds() >= 5.0
    assert not again.teacher.training and not any(p.requires_grad for p in again.teacher.parameters())
    assert asked.call_args_list == [call(weights=False)] * 2  # of published ones, which would only be overwritten


def test_weights_of_another_model_are_refused():
    run = run_of()
    run.begin(Task(0, 0, 2))
    with pytest.raises(CheckpointError, match=r"the weights of the checkpoint are of another model: .*size mismatch"):
        run_of(lambda weights=True: Growing(width=5)).load_state_dict(stored(run.state_dict()))


def test_position():
    assert str(Position(1, "training", 2, 3)) == "task-2-training-epoch-3-step-3"
