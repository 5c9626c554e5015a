"""What the options mean for one task."""

from dataclasses import replace as with_fields
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from continual.data.samplers import StepSampler
from continual.datasets import Samples
from continual.dytox import Outputs
from continual.losses import binary_cross_entropy
from continual.options import Options, parse
from continual.rehearsal import Memory
from continual.tasks import Phase, Task
from continual.training import recipe
from continual.training.engine import Loading
from continual.training.recipe import FINETUNING, TRAINING, finetunes, finetuning, sam_rho, training, training_set

TASKS = (Task(0, 0, 4), Task(1, 4, 2), Task(2, 6, 2))
FINETUNED = ("--finetuning", "balanced")
PLAN = {"nb_tasks": 3, "replicas": 2}


def phases(*argv: str, replicas: int = 2, of: str = TRAINING) -> list[Phase]:
    plan = partial(training if of == TRAINING else finetuning, parse(argv), nb_tasks=3, replicas=replicas)
    return [plan(task) for task in TASKS]


# --------------------------------------------------------------------------------------------------------------- phases


def test_training_as_the_options_give_it():
    first, second, third = phases("--base-epochs", "7", "--epochs", "3", "--lr", "1e-3", "--batch-size", "64")
    assert (first.name, first.epochs, first.batch_size, first.scheduled) == (TRAINING, 7, 64, True)
    assert first.lr == pytest.approx(1e-3 * 64 * 2 / 512) and first.warmup_lr == 1e-6
    assert second == with_fields(first, epochs=3, distil=True) == third


def test_later_tasks_have_their_own_values_where_given():
    own = ["--incremental-lr", "2e-3", "--incremental-batch-size", "16", "--incremental-warmup-lr", "0", "--warmup-lr", "1e-5"]
    first, second, third = phases(*own, "--lr", "1e-3", "--batch-size", "64", replicas=4)
    assert (first.batch_size, second.batch_size) == (64, 16)
    assert first.lr == pytest.approx(1e-3 * 64 * 4 / 512) and second.lr == pytest.approx(2e-3 * 16 * 4 / 512)
    assert (first.warmup_lr, second.warmup_lr) == (1e-5, 0.0)  # an explicit 0 is a value
    assert third == second


def test_the_batch_scales_the_rate_of_later_tasks_without_a_rate_of_their_own():
    first, second, _ = phases("--incremental-batch-size", "32", "--lr", "1e-3", "--batch-size", "128", replicas=1)
    assert first.lr == pytest.approx(1e-3 / 4) and second.lr == pytest.approx(1e-3 / 16)


def test_finetuning_as_the_options_give_it():
    argv = [*FINETUNED, "--finetuning-lr", "1e-4", "--finetuning-epochs", "5", "--freeze-ft", "sab", "--batch-size", "64"]
    first, second, _ = phases(*argv, "--incremental-batch-size", "32", of=FINETUNING)
    assert (second.name, second.epochs, second.batch_size, second.scheduled) == (FINETUNING, 5, 32, False)
    assert second.lr == pytest.approx(1e-4 * 32 * 2 / 512) and second.frozen == ("sab",) and not second.distil
    assert first.batch_size == 64
    assert phases(*argv, "--finetuning-teacher", of=FINETUNING)[1].distil


def test_parts_are_frozen_from_the_second_task_on():
    first, second, _ = phases("--freeze-task", "old_heads", "sab", "--freeze-ft", "tab", "--dytox", "--class-attention")
    assert first.frozen == () and second.frozen == ("old_heads", "sab")


@pytest.mark.parametrize(("mode", "tr", "ft"), [("tr", True, False), ("ft", False, True), (("tr", "ft"), True, True)])
def test_the_divergence_head_rests_outside_its_modes(mode, tr, ft):
    argv = ["--head-div-mode", *([mode] if isinstance(mode, str) else mode), *FINETUNED]
    for phase, on in ((phases(*argv)[1], tr), (phases(*argv, of=FINETUNING)[1], ft)):
        assert phase.divergence is on and "head_div" not in phase.frozen


@pytest.mark.parametrize(
    ("argv", "tr", "ft"),
    [
        ([], "repeated", "repeated"),
        (["--no-repeated-aug"], "shuffled", "shuffled"),
        (["--ft-no-sampling"], "repeated", "sequential"),
    ],
)
def test_samplers(argv, tr, ft):
    assert phases(*FINETUNED, *argv)[1].sampler == tr and phases(*FINETUNED, *argv, of=FINETUNING)[1].sampler == ft


def test_a_trial_takes_two_epochs_at_most():
    assert [p.epochs for p in phases("--debug", "--base-epochs", "1")] == [1, 2, 2]
    assert phases("--debug", *FINETUNED, of=FINETUNING)[1].epochs == 2


def test_finetuning_happens_from_the_second_task_on_or_when_one_holds_all():
    assert [finetunes(parse(FINETUNED), task, 8) for task in TASKS] == [False, True, True]
    assert finetunes(parse(FINETUNED), Task(0, 0, 8), 8)
    assert not any(finetunes(parse([]), task, 8) for task in TASKS)


# ------------------------------------------------------------------------------------------------------------------ SAM


def test_the_radius_goes_linearly_from_first_to_last_task():
    options = parse(["--sam-rho", "3", "--sam-final", "1"])
    assert [sam_rho(options, task, 3, "tr") for task in TASKS] == [3.0, 2.0, 1.0]
    assert sam_rho(options, TASKS[0], 1, "tr") == 3.0
    assert [sam_rho(parse(["--sam-rho", "3"]), task, 3, "ft") for task in TASKS] == [3.0] * 3
    assert [sam_rho(parse(["--sam-rho", "3", "--sam-final", "0"]), task, 3, "tr") for task in TASKS] == [3.0, 1.5, 0.0]


def test_sam_in_its_modes_and_tasks():
    options = parse(["--sam-rho", "3", "--sam-mode", "tr", "--sam-skip-first"])
    assert [training(options, task, **PLAN).sam_rho for task in TASKS] == [0.0, 3.0, 3.0]
    assert [finetuning(options, task, **PLAN).sam_rho for task in TASKS] == [0.0] * 3
    options = parse(["--sam-rho", "3", "--sam-mode", "ft"])
    assert training(options, TASKS[1], **PLAN).sam_rho == 0.0 and finetuning(options, TASKS[1], **PLAN).sam_rho == 3.0


def test_sam_is_on_what_is_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    options = parse(["--sam-rho", "3", "--sam-adaptive", "--look-sam-k", "4", "--look-sam-alpha", "0.2"])
    sam = recipe.sam(options, model, training(options, TASKS[1], **PLAN))
    assert sam.parameters == list(model[1].parameters())
    assert (sam.rho, sam.adaptive, sam.look_every, sam.look_alpha) == (3.0, True, 4, 0.2)
    assert recipe.sam(parse([]), model, training(parse([]), TASKS[1], **PLAN)) is None


# -------------------------------------------------------------------------------------------------------------- losses


def objective(*argv: str, task: Task = TASKS[2], of: str = TRAINING, teacher: str | None = "teacher"):
    options = parse([*FINETUNED, *argv])
    phase = (training if of == TRAINING else finetuning)(options, task, **PLAN)
    return recipe.objective(options.loss, "model", teacher, task, phase)


def test_the_objective_of_the_options(monkeypatch):
    made = {}
    note = lambda model, criterion, **settings: made.update(settings, criterion=criterion)  # noqa: E731
    monkeypatch.setattr(recipe, "paper_objective", note)
    objective("--auto-kd", "--distillation-tau", "3", "--bce-loss", "--pod", "2", "--pod-scales", "1", "2")
    assert made["teacher"] == "teacher" and made["kd"] is None and made["tau"] == 3 and made["task"] == TASKS[2]
    assert made["pod_weight"] == 2 and made["pod_scales"] == (1, 2) and made["criterion"] is binary_cross_entropy
    objective("--kd", "0.5", "--smoothing", "0.2")
    assert made["kd"] == 0.5 and made["pod_weight"] == 0 and made["criterion"].keywords == {"smoothing": 0.2}
    objective("--pod", "2", "--pod-scaling")
    assert made["pod_weight"] == pytest.approx(2 * (2 / 8) ** 0.5)


def test_a_teacher_where_something_is_taught():
    assert objective().teacher is None and objective("--pod", "0").teacher is None
    for argv in (["--auto-kd"], ["--kd", "1"], ["--pod", "1"]):
        assert objective(*argv).teacher == "teacher"
        assert objective(*argv, task=TASKS[0], teacher=None).teacher is None
        assert objective(*argv, of=FINETUNING).teacher is None
        assert objective(*argv, "--finetuning-teacher", of=FINETUNING).teacher == "teacher"


def test_without_a_teacher_the_classification_counts_in_full():
    made = objective("--auto-kd", of=FINETUNING)
    logits = torch.randn(4, 8)
    made.model = lambda images: Outputs(logits, None, logits[:, None])
    y = torch.arange(4)
    assert made(None, y)["clf"].item() == pytest.approx(nn.functional.cross_entropy(logits, y, label_smoothing=0.1).item())


def test_the_divergence_loss_in_its_modes():
    dytox = ["--dytox", "--class-attention", "--head-div", "0.1", "--head-div-mode", "tr"]
    assert "div" in objective(*dytox).terms and "div" not in objective(*dytox, of=FINETUNING).terms


# -------------------------------------------------------------------------------------------------------------- memory


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


def seen(*argv: str, new: Samples | None = NEW, memory: Memory = SHARED) -> list[list[int]]:
    """The labels that each of two replicas sees, in order."""
    together, views = training_set(parse([*argv]).rehearsal, new, memory, 2)
    assert (together.x[:, 0, 0, 0] == together.y).all() and (together.t == together.y // 2).all()
    return [together.y[view].tolist() for view in views]


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
    assert seen("--only-ft", memory=Memory(8)) == [[4, 4, 5]] * 2  # the first task


def test_finetuning_is_on_the_memory_alone():
    assert seen(new=None) == seen("--sep-memory", new=None) == seen("--oversample-memory", "3", new=None) == [[0, 0, 1, 1]] * 2
    assert seen("--oversample-memory-ft", "2", new=None, memory=APART) == [[0, 1, 0, 1], [1, 0, 1, 0]]


def test_an_empty_memory_of_the_options():
    made = recipe.memory(parse(["--memory-size", "100"]).rehearsal, 10, 4)
    assert (made.memory_size, made.nb_classes, made.nb_replicas, made.quota(5)) == (100, None, 1, 20)
    made = recipe.memory(parse(["--memory-size", "100", "--fixed-memory", "--distributed-memory"]).rehearsal, 10, 4)
    assert (made.memory_size, made.nb_classes, made.nb_replicas, made.quota(5)) == (100, 10, 4, 2)


def test_the_budget_in_words():
    assert recipe.budget(SHARED, TASKS[0]) == "memory: 4 exemplars of 4 classes, at most 2 of each"
    expected = "memory: 4 exemplars of 4 classes, at most 1 of each for each of 2 replicas (2 for the first)"
    assert recipe.budget(APART, TASKS[0]) == expected


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
    assert recipe.selects_on_augmented(parse(argv).rehearsal) is augmented


SAM_ON_MEMORY = ("--sam-rho", "1", "--sam-second", "memory")
REPLAY = ("--sep-memory", "--replay-memory", "2")


@pytest.mark.parametrize(
    ("argv", "tr", "ft"),
    [
        ((), False, False),
        (SAM_ON_MEMORY, True, True),
        ((*SAM_ON_MEMORY, "--sam-mode", "tr"), True, False),
        (("--sam-rho", "1", "--sam-first", "memory"), True, True),
        (REPLAY, True, False),
    ],
)
def test_batches_of_the_memory_beside_a_step(argv, tr, ft):
    options = parse([*FINETUNED, *argv])
    for phase, expected in ((training, tr), (finetuning, ft)):
        made = phase(options, TASKS[1], **PLAN)
        assert recipe.draws_memory(options, made, TASKS[1], SHARED) is expected
        assert not recipe.draws_memory(options, made, TASKS[0], SHARED)
        assert not recipe.draws_memory(options, made, TASKS[1], Memory(8))


def beside_of(options: Options, phase: str = TRAINING, memory: Memory = APART) -> recipe.Beside:
    sampler = StepSampler("shuffled", [np.arange(8)] * 2, mine=range(2), batch_size=2, key=(0, phase, 2))

    def images(chosen: Samples, augment: bool) -> _ByIndex:
        return _ByIndex([(torch.tensor(augment), int(label)) for label in chosen.y])

    made = (training if phase == TRAINING else finetuning)(options, TASKS[2], **PLAN)
    place = {"sampler": sampler, "images": images, "loading": Loading(torch.device("cpu"))}
    return recipe.beside(options, made, TASKS[2], memory, **place)


class _ByIndex(torch.utils.data.Dataset):
    """The loader asks for (index, key)."""

    def __init__(self, items: list):
        self.items = items

    def __getitem__(self, item: tuple):
        return (*self.items[item[0]], item[0])


def test_a_replayed_task_counts_as_much_as_any():
    made = beside_of(parse(REPLAY))
    assert made.nb_replays == 2 and made.weight_new == pytest.approx(1 / 3)
    assert not made.sam_first and not made.sam_second
    batches = list(made.loader)
    assert len(batches) == 2 * 2 * 2  # steps, replicas, draws
    assert all(augmented.all() for augmented, _, _ in batches)
    seen = [{0, 1} if i // 2 % 2 == 0 else {2, 3} for i in range(8)]  # each replica's own exemplars
    assert [set(index.tolist()) for *_, index in batches] == seen


def test_sam_is_told_its_batches():
    made = beside_of(parse(SAM_ON_MEMORY))
    assert (made.sam_first, made.sam_second, made.nb_replays) == (False, True, 0) and len(list(made.loader)) == 4
    assert beside_of(parse([*REPLAY, *SAM_ON_MEMORY]), FINETUNING).nb_replays == 0


# ----------------------------------------------------------------------------------------------------------------- rest


def test_tasks_seen_so_far_as_one():
    class Two:
        tasks = TASKS

        def train(self, index):
            return samples(*(0, 1, 2, 3) if index == 0 else (4, 5))

    whole, everything = recipe.merged(Two(), TASKS[1])
    assert whole == Task(1, 0, 6) and everything.y.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_task_that_holds_everything_is_trained_as_a_first_task():
    options = parse(
        ["--retrain-scratch", "--memory-size", "0", "--base-epochs", "7", "--incremental-lr", "1", "--freeze-task", "sab"]
    )
    assert training(options, Task(1, 0, 6), **PLAN) == training(options, TASKS[0], **PLAN)


def test_the_newest_task_that_a_model_knows():
    model = nn.Module()
    for classes, index in (([4], 0), ([4, 2], 1), ([8], 2)):
        model.classes = classes
        assert recipe.newest_task(TASKS, model) == TASKS[index]


@pytest.mark.parametrize(
    ("sizes", "text"), [([2, 2, 2], "2 each"), ([50, 10, 10], "50, then 10 each"), ([5, 3, 2], "5, 3, 2"), ([7], "7 each")]
)
def test_sizes_in_words(sizes, text):
    assert recipe.in_short(sizes) == text
