"""The state of a run: all of it, in a form that can be loaded without executing anything."""

import io
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jobs import assert_equal
from torch import nn

from continual.errors import CheckpointError
from continual.methods import Method, method_of
from continual.options import parse
from continual.rehearsal import Memory
from continual.runs.experiment import Experiment
from continual.runs.opening import newest_task
from continual.runs.record import Report
from continual.runs.run import EVALUATING, Position, Run
from continual.tasks import FINETUNING, REMEMBERING, TRAINING, Task


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
    again.load_state_dict(stored(memory.state_dict()))
    assert again.x.dtype == memory.x.dtype and len(again) == 3
    for ours, theirs in zip(again.x, memory.x, strict=True):
        assert np.array_equal(ours, theirs) and np.shape(ours) == np.shape(theirs)
    for name in ("y", "t", "replica"):
        assert np.array_equal(getattr(again, name), getattr(memory, name))
    again.add(x[:1], np.array([2]), np.array([1]))
    assert len(again) == 4


def test_an_empty_memory_comes_back():
    memory = Memory(9)
    memory.load_state_dict(stored(Memory(9).state_dict()))
    assert memory.x is None and len(memory) == 0


TASKS = (Task(0, 0, 2), Task(1, 2, 4), Task(2, 6, 1))


class Growing(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.classes, self.layers, self.width = [], nn.ModuleList(), width

    def add_task(self, nb_new):
        self.classes.append(nb_new)
        self.layers.append(nn.Linear(self.width, nb_new))


class Learning(Method):
    """Makes such models, and notes whether they might begin with published weights."""

    def __init__(self, width=3):
        super().__init__(parse(["--finetuning", "balanced"]), TASKS)
        self.width, self.asked = width, []

    def build(self):
        self.asked.append(self.fetches_weights)
        return Growing(self.width)


def run_of(method=None):
    run = Run(method or Learning(), Memory(0), Report(None, nb_tasks=3, console=False), torch.device("cpu"))
    run.model = run.method.build()
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
    again.method.asked.clear()
    again.load_state_dict(stored(run.state_dict()), seconds=5.0)
    assert_equal(again.state_dict(), run.state_dict())
    assert again.position == Position(1, "training", 3, 2) and again.seconds() >= 5.0
    assert not again.teacher.training and not any(p.requires_grad for p in again.teacher.parameters())
    assert again.method.asked == [False] * 2  # published weights would only be overwritten
    assert again.method.fetches_weights


def test_weights_of_another_model_are_refused():
    run = run_of()
    run.begin(Task(0, 0, 2))
    with pytest.raises(CheckpointError, match=r"the weights of the checkpoint are of another model: .*size mismatch"):
        run_of(Learning(width=5)).load_state_dict(stored(run.state_dict()))


def test_position():
    assert str(Position(1, "training", 2, 3)) == "task-2-training-epoch-3-step-3"
    assert str(Position(0, "a stage of ones own")) == "task-1-a-stage-of-ones-own-epoch-1-step-0"


def test_a_method_without_a_teacher_keeps_none():
    method = Learning()
    method.keeps_teacher = False
    run = run_of(method)
    for task in TASKS[:2]:
        run.begin(task)
    assert run.teacher is None and run.model.classes == [2, 4]


def test_what_a_method_keeps_comes_back():
    run, again = run_of(), run_of()
    run.method.state_dict = lambda: {"counts": torch.tensor([1, 2]), "word": "x"}
    taken = []
    again.method.load_state_dict = taken.append
    again.load_state_dict(stored(run.state_dict()))
    assert_equal(taken, [{"counts": torch.tensor([1, 2]), "word": "x"}])
    state = run.state_dict()
    del state["method"]  # as checkpoints were, once
    again.load_state_dict(stored(state))
    assert taken[1:] == [{}]


# --------------------------------------------------------------------------------------------------------------- stages


def names(steps):
    return [step.name for step in steps]


def test_a_task_is_gone_through_step_by_step():
    run, stages = run_of(), []
    assert run.first_step(TASKS[1]) == TRAINING == run.position.stage
    for step in run.steps_left(TASKS[1]):
        run.move(epoch=3, step=2)
        run.step_done(TASKS[1], step)
        assert (run.position.epoch, run.position.step) == (0, 0)
        stages.append((run.position.stage, names(run.steps_left(TASKS[1]))))
    assert stages == [(REMEMBERING, [REMEMBERING, FINETUNING]), (FINETUNING, [FINETUNING]), (EVALUATING, [])]


def test_a_stage_forgets_the_phase_that_ended():
    run = run_of()
    run.trainer = SimpleNamespace()
    run.move(epoch=1, step=1)
    assert run.trainer is not None
    run.step_done(TASKS[1], run.steps_left(TASKS[1])[0])
    assert run.trainer is None


def test_a_stage_that_the_method_does_not_have_leaves_no_steps():
    """In old checkpoints of the first task, which is not finetuned, "finetuning" was what came after the memory."""
    run = run_of()
    assert names(run.steps_left(TASKS[0])) == [TRAINING, REMEMBERING]
    run.move(stage=FINETUNING)
    assert run.steps_left(TASKS[0]) == [] and names(run.steps_left(TASKS[1])) == [FINETUNING]
    run.move(stage="a stage of another method")
    assert run.steps_left(TASKS[1]) == []


# -------------------------------------------------------------------------------------------------------------- opening


def test_the_newest_task_that_a_model_knows():
    run = run_of()
    for classes, index in (([2], 0), ([2, 4], 1), ([7], 2)):
        run.model.classes = classes
        assert newest_task(TASKS, run) == TASKS[index]
    with pytest.raises(CheckpointError, match=r"the model knows 7 classes; 2 tasks \(max_task\) have fewer"):
        newest_task(TASKS[:2], run)
    run.model.classes = []
    with pytest.raises(CheckpointError, match="of the very start: there is no task yet to evaluate"):
        newest_task(TASKS, run)


def experiment(*argv):
    options, benchmark = parse(argv), SimpleNamespace(nb_classes=10, train=list)
    known = {"options": options, "method": method_of(options, ()), "benchmark": benchmark, "replicas": 4}
    return Experiment(**dict.fromkeys(each.name for each in fields(Experiment)) | known)


def test_an_empty_memory_of_the_options():
    made = experiment("--memory-size", "100").empty_memory()
    assert (made.memory_size, made.nb_classes, made.nb_replicas, made.quota(5)) == (100, None, 1, 20)
    made = experiment("--memory-size", "100", "--fixed-memory", "--distributed-memory").empty_memory()
    assert (made.memory_size, made.nb_classes, made.nb_replicas, made.quota(5)) == (100, 10, 4, 2)


@pytest.mark.parametrize(
    ("argv", "augmented"),
    [
        ([], False),
        (["--distributed-memory"], True),
        (["--distributed-memory", "--rehearsal-test-trsf"], False),
        (["--no-rehearsal-test-trsf"], True),
    ],
)
def test_exemplars_are_chosen_on_augmented_images_where_each_replica_chooses(argv, augmented):
    assert experiment(*argv).selects_on_augmented is augmented
