"""What a phase trains on."""

from types import SimpleNamespace

import numpy as np
import pytest

from continual.data import material
from continual.data.material import Material, TrainingSet, hold_out
from continual.data.samples import Samples
from continual.methods import method_of
from continual.options import parse
from continual.rehearsal import Memory
from continual.runs.experiment import Experiment
from continual.tasks import FINETUNING, TRAINING, Task

TASKS = (Task(0, 0, 4), Task(1, 4, 2), Task(2, 6, 2))


def samples(*labels: int) -> Samples:
    y = np.array(labels, dtype=np.int64)
    return Samples(np.zeros((len(y), 2, 2, 3), np.uint8) + y[:, None, None, None].astype(np.uint8), y, y // 2)


def memory_of(replicas: int, per_replica: tuple[tuple[int, ...], ...]) -> Memory:
    memory = Memory(8, nb_replicas=replicas)
    for replica, labels in enumerate(per_replica):
        memory.add(*samples(*labels), replica=replica)
    return memory


SHARED = memory_of(1, ((0, 0, 1, 1),))
APART = memory_of(2, ((0, 1), (1, 0)))
NEW = samples(4, 4, 5)


def labels_of(made: TrainingSet) -> list[list[int]]:
    """The labels that each replica sees, in order."""
    assert (made.samples.x[:, 0, 0, 0] == made.samples.y).all() and (made.samples.t == made.samples.y // 2).all()
    return [made.samples.y[view].tolist() for view in made.views]


def seen(*argv: str, memory: Memory = SHARED, of: str = TRAINING) -> list[list[int]]:
    """The labels that each of two replicas sees in a phase of the options."""
    method = method_of(parse(["--finetuning", "balanced", *argv]), TASKS, replicas=2)
    (phase,) = [step for step in method.steps(TASKS[1]) if step.name == of]
    return labels_of(phase.data(Material(NEW, memory, replicas=2)))


def test_new_images_and_behind_them_the_memory():
    assert seen() == [[4, 4, 5, 0, 0, 1, 1]] * 2
    assert seen(memory=Memory(8)) == [[4, 4, 5]] * 2
    assert seen("--distributed-memory", memory=APART) == [[4, 4, 5, 0, 1], [4, 4, 5, 1, 0]]


def test_exemplars_stand_in_it_as_often_as_told():
    assert seen("--oversample-memory", "2") == [[4, 4, 5, 0, 0, 1, 1, 0, 0, 1, 1]] * 2
    assert seen("--oversample-memory", "2", memory=APART) == [[4, 4, 5, 0, 1, 0, 1], [4, 4, 5, 1, 0, 1, 0]]
    assert seen("--oversample-memory-ft", "2") == seen()


def test_a_memory_kept_out_or_alone():
    assert seen("--sep-memory") == [[4, 4, 5]] * 2
    assert seen("--only-ft") == [[0, 0, 1, 1]] * 2
    assert seen("--only-ft", "--oversample-memory", "2") == [[0, 0, 1, 1] * 2] * 2
    assert seen("--only-ft", memory=Memory(8)) == [[4, 4, 5]] * 2  # the first task


def test_finetuning_is_on_the_memory_alone():
    assert seen(of=FINETUNING) == seen("--sep-memory", of=FINETUNING) == [[0, 0, 1, 1]] * 2
    assert seen("--oversample-memory", "3", of=FINETUNING) == [[0, 0, 1, 1]] * 2
    assert seen("--oversample-memory-ft", "2", memory=APART, of=FINETUNING) == [[0, 1, 0, 1], [1, 0, 1, 0]]


def test_everything_so_far():
    made = material.everything(Material(NEW, SHARED, replicas=2, everything=lambda: samples(0, 1, 2, 3, 4, 5)))
    assert labels_of(made) == [[0, 1, 2, 3, 4, 5]] * 2


# ------------------------------------------------------------------------------------------------------------- held out


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def full(*, nb_each: int = 10, replicas: int = 1) -> Memory:
    """Four old classes with as many exemplars in each replica's memory."""
    return memory_of(replicas, (tuple(np.repeat(range(4), nb_each).tolist()),) * replicas)


MANY = samples(*np.tile([4, 5], 50).tolist())


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(("share", "nb"), [(0.1, 1), (0.3, 3), (0.01, 1), (0.99, 9)])
def test_as_many_are_held_out_of_every_class(share, nb, replicas):
    memory = full(replicas=replicas)
    held_new, held_memory = hold_out(MANY, memory, share, rng())
    made = Material(MANY, memory, replicas=replicas, held_new=held_new, held_memory=held_memory)
    assert made.nb_held == nb * (2 + 4 * replicas)
    for replica in range(replicas):
        of_replica = labels_of(material.held_out(made))[replica]
        assert np.bincount(of_replica).tolist() == [nb] * 6
        assert np.bincount(labels_of(material.new_and_memory(made))[replica]).tolist() == [10 - nb] * 4 + [50 - nb] * 2
        assert np.bincount(labels_of(material.memory_alone(made, times=2))[replica]).tolist() == [2 * (10 - nb)] * 4


def test_nothing_held_out_is_trained_on():
    memory = full()
    held_new, held_memory = hold_out(MANY, memory, 0.3, rng())
    made = Material(MANY, memory, replicas=2, held_new=held_new, held_memory=held_memory)
    held, kept = material.held_out(made), material.new_and_memory(made)
    assert np.array_equal(held.samples.y, kept.samples.y)
    for of_held, of_kept in zip(held.views, kept.views, strict=True):
        assert sorted([*of_held, *of_kept]) == list(range(len(MANY.y) + len(memory)))


def test_what_is_held_out_depends_on_the_draw_alone():
    first, again, other = (hold_out(MANY, full(), 0.3, rng(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_one_exemplar_and_one_image_of_every_class_stay():
    held_new, held_memory = hold_out(samples(4, 5, 5, 5), full(nb_each=2), 0.9, rng())
    assert held_memory.sum() == 4 and held_new.tolist()[0] is False and held_new.sum() == 1
    held_new, held_memory = hold_out(MANY, full(nb_each=1), 0.9, rng())
    assert not held_new.any() and not held_memory.any()


@pytest.mark.parametrize(("memory", "share"), [(Memory(8), 0.3), (full(), 0.0)])
def test_nothing_is_held_out_without_a_memory_or_a_share(memory, share):
    held_new, held_memory = hold_out(MANY, memory, share, rng())
    assert (len(held_new), len(held_memory)) == (len(MANY.y), len(memory)) and not held_new.any() and not held_memory.any()
    made = Material(MANY, memory, held_new=held_new, held_memory=held_memory)
    assert made.nb_held == 0 == Material(MANY, memory).nb_held
    for each in (made, Material(MANY, memory)):
        with pytest.raises(ValueError, match="no image is held out"):
            material.held_out(each)


class Around:
    """As much of an Experiment as `material` asks for."""

    replicas = 2
    material = Experiment.material

    def __init__(self, share: float):
        parts = (samples(0, 0, 1, 1, 2, 2, 3, 3), MANY, samples(6, 7))
        self.new_images = parts.__getitem__
        self.benchmark = SimpleNamespace(train=parts.__getitem__)
        self.method = SimpleNamespace(held_out=lambda task: share)

    def key(self, *parts: int | str) -> tuple:
        return (0, *parts)


def test_the_same_is_held_out_in_all_phases_of_a_task_and_back_afterwards():
    run = SimpleNamespace(memory=full(nb_each=5))
    first, again = (Around(0.2).material(run, TASKS[1]) for _ in range(2))
    assert first.nb_held == 6 and first.replicas == 2
    assert np.array_equal(first.held_new, again.held_new) and np.array_equal(first.held_memory, again.held_memory)
    run.memory.add(*samples(4, 5))
    assert Around(0.2).material(run, TASKS[1]).nb_held == 0  # the memory has taken in the task's classes
    assert Around(0.0).material(run, TASKS[2]).nb_held == 0


def test_everything_is_what_the_tasks_so_far_brought():
    made = Around(0.0).material(SimpleNamespace(memory=Memory(0)), TASKS[1])
    assert set(labels_of(material.everything(made))[0]) == {0, 1, 2, 3, 4, 5}
