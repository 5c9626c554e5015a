"""What a method makes of the options: the model, the steps of a task, and the phases among them."""

from dataclasses import replace as with_fields

import pytest
import torch
from timm.layers import DropPath as TimmDropPath
from torch import nn

from continual import methods
from continual.convit import ConViT, DropPath, ScaleNorm
from continual.data import material
from continual.dytox import DyTox, Outputs
from continual.encoders import TimmEncoder
from continual.errors import OptionsError
from continual.losses import Objective, Seen, Term, binary_cross_entropy
from continual.methods import Method, method_of
from continual.methods.classifier import GrowingClassifier
from continual.options import parse
from continual.registry import LOSSES, METHODS
from continual.tasks import FINETUNING, REMEMBERING, TRAINING, Phase, Remembering, Task

TASKS = (Task(0, 0, 4), Task(1, 4, 2), Task(2, 6, 2))
FINETUNED = ("--finetuning", "balanced")
DIVERGENCE = ("--dytox", "--class-attention", "--head-div", "0.1")


def method(*argv: str, tasks: tuple[Task, ...] = TASKS, replicas: int = 2) -> Method:
    return method_of(parse(argv), tasks, replicas=replicas)


def trained(*argv: str, replicas: int = 2) -> list[Phase]:
    """The training of every task."""
    made = method(*argv, replicas=replicas)
    return [made.training(task) for task in TASKS]


def finetuned(*argv: str, task: Task = TASKS[1], **how) -> Phase:
    (phase,) = method(*FINETUNED, *argv, **how).finetuning(task)
    return phase


def plain(phase: Phase) -> Phase:
    """Without the functions, which are equal to themselves alone."""
    return with_fields(phase, losses={}, data=None, mixing=None)


# --------------------------------------------------------------------------------------------------------------- phases


def test_training_as_the_options_give_it():
    first, second, third = trained("--base-epochs", "7", "--epochs", "3", "--lr", "1e-3", "--batch-size", "64", "--kd", "1")
    assert (first.name, first.epochs, first.batch_size, first.scheduled) == (TRAINING, 7, 64, True)
    assert first.lr == pytest.approx(1e-3 * 64 * 2 / 512) and first.warmup_lr == 1e-6
    assert plain(second) == with_fields(plain(first), epochs=3) == plain(third)
    assert [[*phase.losses] for phase in (first, second, third)] == [["clf"], ["clf", "kd"], ["clf", "kd"]]


def test_later_tasks_have_their_own_values_where_given():
    own = ["--incremental-lr", "2e-3", "--incremental-batch-size", "16", "--incremental-warmup-lr", "0", "--warmup-lr", "1e-5"]
    first, second, third = trained(*own, "--lr", "1e-3", "--batch-size", "64", replicas=4)
    assert (first.batch_size, second.batch_size) == (64, 16)
    assert first.lr == pytest.approx(1e-3 * 64 * 4 / 512) and second.lr == pytest.approx(2e-3 * 16 * 4 / 512)
    assert (first.warmup_lr, second.warmup_lr) == (1e-5, 0.0)  # an explicit 0 is a value
    assert plain(third) == plain(second)


def test_the_batch_scales_the_rate_of_later_tasks_without_a_rate_of_their_own():
    first, second, _ = trained("--incremental-batch-size", "32", "--lr", "1e-3", "--batch-size", "128", replicas=1)
    assert first.lr == pytest.approx(1e-3 / 4) and second.lr == pytest.approx(1e-3 / 16)


def test_finetuning_as_the_options_give_it():
    argv = ["--finetuning-lr", "1e-4", "--finetuning-epochs", "5", "--freeze-ft", "sab", "--batch-size", "64", "--kd", "1"]
    argv += ["--incremental-batch-size", "32"]
    second, whole = finetuned(*argv), Task(0, 0, 8)
    assert (second.name, second.epochs, second.batch_size, second.scheduled) == (FINETUNING, 5, 32, False)
    assert second.lr == pytest.approx(1e-4 * 32 * 2 / 512) and second.frozen == ("sab",) and "kd" not in second.losses
    assert finetuned(*argv, task=whole, tasks=(whole,)).batch_size == 64
    assert "kd" in finetuned(*argv, "--finetuning-teacher").losses


def test_parts_are_frozen_from_the_second_task_on():
    first, second, _ = trained("--freeze-task", "old_heads", "sab", "--freeze-ft", "tab", "--dytox", "--class-attention")
    assert first.frozen == () and second.frozen == ("old_heads", "sab")


@pytest.mark.parametrize(("mode", "tr", "ft"), [("tr", True, False), ("ft", False, True), (("tr", "ft"), True, True)])
def test_the_divergence_head_rests_outside_its_modes(mode, tr, ft):
    argv = [*DIVERGENCE, "--head-div-mode", *([mode] if isinstance(mode, str) else mode)]
    for phase, on in ((trained(*argv)[1], tr), (finetuned(*argv), ft)):
        assert ("div" in phase.losses) is on and "head_div" not in phase.frozen


@pytest.mark.parametrize(
    ("argv", "tr", "ft"),
    [
        ([], "repeated", "repeated"),
        (["--no-repeated-aug"], "shuffled", "shuffled"),
        (["--ft-no-sampling"], "repeated", "sequential"),
    ],
)
def test_samplers(argv, tr, ft):
    assert trained(*argv)[1].sampler == tr and finetuned(*argv).sampler == ft


def test_a_trial_takes_two_epochs_of_two_steps_at_most():
    phases = trained("--debug", "--base-epochs", "1")
    assert [phase.epochs for phase in phases] == [1, 2, 2] and {phase.most_steps for phase in phases} == {2}
    assert (finetuned("--debug").epochs, finetuned("--debug").most_steps) == (2, 2)
    assert {phase.most_steps for phase in (*trained(), finetuned())} == {None}


def test_finetuning_happens_from_the_second_task_on_or_when_one_holds_all():
    whole = Task(0, 0, 8)
    assert [len(method(*FINETUNED).finetuning(task)) for task in TASKS] == [0, 1, 1]
    assert len(method(*FINETUNED, tasks=(whole,)).finetuning(whole)) == 1
    assert not any(method().finetuning(task) for task in TASKS)


def test_the_steps_of_a_task():
    made = method(*FINETUNED)
    names = [[step.name for step in made.steps(task)] for task in TASKS[:2]]
    assert names == [[TRAINING, REMEMBERING], [TRAINING, REMEMBERING, FINETUNING]]
    assert isinstance(made.steps(TASKS[0])[1], Remembering)


def test_a_method_may_change_a_phase():
    (phase,) = method(*FINETUNED).finetuning(TASKS[1], epochs=9, scheduled=True)
    assert phase.epochs == 9 and phase.scheduled
    assert method("--debug").training(TASKS[1], epochs=9).epochs == 2  # a trial all the same


# ------------------------------------------------------------------------------------------------------------------ SAM


def radii(*argv: str) -> list[float | None]:
    return [phase.sam and phase.sam.rho for phase in trained(*argv)]


def test_the_radius_goes_linearly_from_first_to_last_task():
    assert radii("--sam-rho", "3", "--sam-final", "1") == [3.0, 2.0, 1.0]
    assert method("--sam-rho", "3", "--sam-final", "1", tasks=TASKS[:1]).training(TASKS[0]).sam.rho == 3.0
    assert [finetuned("--sam-rho", "3", task=task).sam.rho for task in TASKS[1:]] == [3.0] * 2
    assert radii("--sam-rho", "3", "--sam-final", "0") == [3.0, 1.5, None]


def test_sam_in_its_modes_and_tasks():
    skips = ("--sam-rho", "3", "--sam-mode", "tr", "--sam-skip-first")
    assert radii(*skips) == [None, 3.0, 3.0]
    assert finetuned(*skips).sam is None
    assert radii("--sam-rho", "3", "--sam-mode", "ft") == [None] * 3
    assert finetuned("--sam-rho", "3", "--sam-mode", "ft").sam.rho == 3.0
    assert radii() == [None] * 3


def test_sam_as_the_options_give_it():
    sam = trained("--sam-rho", "3", "--sam-adaptive", "--look-sam-k", "4", "--look-sam-alpha", "0.2")[1].sam
    assert (sam.rho, sam.adaptive, sam.look_every, sam.look_alpha) == (3.0, True, 4, 0.2)
    assert not sam.first_on_memory and not sam.second_on_memory
    first, second, _ = trained("--sam-rho", "1", "--sam-second", "memory")
    assert (second.sam.first_on_memory, second.sam.second_on_memory) == (False, True)
    assert not first.sam.second_on_memory  # there is no memory yet


def test_a_replayed_task_counts_as_much_as_any():
    argv = ("--sep-memory", "--replay-memory", "2")
    told = [(phase.nb_replays, phase.weight_new) for phase in trained(*argv)]
    assert told == [(0, 1.0), (2, pytest.approx(1 / 2)), (2, pytest.approx(1 / 3))]
    assert (finetuned(*argv).nb_replays, finetuned(*argv).weight_new) == (0, 1.0)


# --------------------------------------------------------------------------------------------------------------- losses


def objective(*argv: str, task: Task = TASKS[2], of: str = TRAINING, teacher: str | None = "teacher") -> Objective:
    phase = finetuned(*argv, task=task) if of == FINETUNING else method(*argv).training(task)
    return Objective("model", phase.losses, teacher=teacher)


def test_the_losses_of_the_options(monkeypatch):
    made = {}
    note = lambda criterion, **settings: made.update(settings, criterion=criterion) or {}  # noqa: E731
    monkeypatch.setattr(methods, "paper_terms", note)
    method("--auto-kd", "--distillation-tau", "3", "--bce-loss", "--pod", "2", "--pod-scales", "1", "2").training(TASKS[2])
    assert made["kd"] is None and made["tau"] == 3 and made["task"] == TASKS[2]
    assert made["pod_weight"] == 2 and made["pod_scales"] == (1, 2) and made["criterion"] is binary_cross_entropy
    method("--kd", "0.5", "--smoothing", "0.2").training(TASKS[2])
    assert made["kd"] == 0.5 and made["pod_weight"] == 0 and made["criterion"].keywords == {"smoothing": 0.2}
    method("--pod", "2", "--pod-scaling").training(TASKS[2])
    assert made["pod_weight"] == pytest.approx(2 * (2 / 8) ** 0.5)


def test_a_teacher_where_something_is_taught():
    assert objective().teacher is None and objective("--pod", "0").teacher is None
    for argv in (["--auto-kd"], ["--kd", "1"], ["--pod", "1"]):
        assert objective(*argv).teacher == "teacher"
        assert objective(*argv, task=TASKS[0], teacher=None).teacher is None
        assert objective(*argv, of=FINETUNING).teacher is None
        assert objective(*argv, "--finetuning-teacher", of=FINETUNING).teacher == "teacher"


@pytest.mark.parametrize(("of", "task"), [(FINETUNING, TASKS[2]), (TRAINING, TASKS[0])])
def test_without_a_teacher_the_classification_counts_in_full(of, task):
    made = objective("--auto-kd", of=of, task=task, teacher=None)
    logits = torch.randn(4, 8)
    made.model = lambda images: Outputs(logits, None, logits[:, None])
    y = torch.arange(4)
    assert made(None, y)["clf"].item() == pytest.approx(nn.functional.cross_entropy(logits, y, label_smoothing=0.1).item())


def test_the_divergence_loss_in_its_modes():
    dytox = [*DIVERGENCE, "--head-div-mode", "tr"]
    assert "div" in objective(*dytox).terms and "div" not in objective(*dytox, of=FINETUNING).terms


@pytest.fixture
def spread():
    """A registered loss: the mean square of the logits, with soft targets none."""
    squares = Term(lambda seen: None if seen.targets.ndim == 2 else seen.outputs.logits.square().mean())
    LOSSES.add("spread", squares)
    yield squares
    LOSSES.remove("spread")


def test_registered_losses_join_training_with_their_weights(spread):
    seen = Seen(Outputs(torch.full((2, 4), 3.0), None, None), torch.tensor([0, 1]))
    for argv, weight in (((), 1.0), (("--extra-loss-weights", "0.5"), 0.5)):
        argv = ("--extra-losses", "spread", *argv)
        assert [[*phase.losses] for phase in trained(*argv)] == [["clf", "spread"]] * 3
        term = trained(*argv)[1].losses["spread"]
        assert term.loss(seen).item() == 9 * weight and term.needs == spread.needs
        assert term.loss(seen._replace(targets=torch.eye(2, 4))) is None  # it still may not apply
        assert "spread" not in finetuned(*argv).losses


# --------------------------------------------------------------------------------------------------------------- models

SMALL = ("--input-size", "16", "--patch-size", "4", "--embed-dim", "24", "--num-heads", "4", "--depth", "5")
DYTOX = ("--dytox", "--class-attention", "--ind-clf", "1-1")


def build(*argv: str) -> nn.Module:
    return method(*SMALL, *argv).build()


def rates(model: nn.Module) -> list[float]:
    """Of every block, in order: the encoder's, then the decoder's."""
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath | TimmDropPath)]


def test_dytox():
    model = build(*DYTOX, "--local-up-to-layer", "3", "--drop-path", "0.4", "--head-div", "0.1")
    assert isinstance(model, DyTox) and isinstance(model.encoder, ConViT)
    assert (len(model.encoder.sabs), len(model.tabs)) == (3, 2) and model.classes == []
    assert rates(model) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    for nb_new in (2, 2):
        model.add_task(nb_new)
    assert model.head_div is not None
    model = build(*DYTOX, "--local-up-to-layer", "3")
    for nb_new in (2, 2):
        model.add_task(nb_new)
    assert model.head_div is None


@pytest.mark.parametrize("kind", ["1-1", "1-n", "n-1", "n-n", ""])
def test_classifiers(kind):
    assert build(*DYTOX[:-1], kind, "--local-up-to-layer", "3").ind_clf == kind


def test_scale_norm_everywhere_in_the_blocks():
    model = build(*DYTOX, "--local-up-to-layer", "3", "--norm", "scale")
    blocks = [*model.encoder.sabs, *model.tabs]
    assert all(isinstance(norm, ScaleNorm) for block in blocks for norm in (block.norm1, block.norm2))


@pytest.mark.parametrize(
    ("argv", "pooling", "nb_blocks"),
    [
        (("--local-up-to-layer", "3", "--class-attention"), "attention", 2),
        (("--local-up-to-layer", "3"), "token", 2),
        (("--local-up-to-layer", "5"), "mean", 0),
        (("--local-up-to-layer", "3", "--model", "vit"), "token", 2),
        (("--local-up-to-layer", "3", "--model", "timm:test_vit"), "mean", 0),
        (("--local-up-to-layer", "3", "--model", "timm:test_vit", "--class-attention"), "attention", 2),
    ],
)
def test_a_growing_classifier(argv, pooling, nb_blocks):
    model = build(*argv)
    assert isinstance(model, GrowingClassifier) and model.pooling == pooling and len(model.blocks) == nb_blocks
    assert isinstance(model.encoder, TimmEncoder if "timm:test_vit" in argv else ConViT)
    model.add_task(2)
    assert model(torch.randn(2, 3, 16, 16)).logits.shape == (2, 2)


# ---------------------------------------------------------------------------------------------------------------- joint

JOINT = ("--retrain-scratch", "--memory-size", "0")


@pytest.mark.parametrize(("argv", "kind"), [(DYTOX, DyTox), ((), GrowingClassifier)])
def test_joint_makes_a_new_model_at_each_task(argv, kind):
    made = method(*SMALL, "--local-up-to-layer", "3", *argv, *JOINT)
    assert not made.keeps_teacher
    model = made.build()
    for task, classes in ((TASKS[0], [4]), (TASKS[1], [6]), (TASKS[2], [8])):
        grown = made.grow(model, task)
        assert isinstance(grown, kind) and grown is not model and grown.classes == classes
        assert not {id(p) for p in grown.parameters()} & {id(p) for p in model.parameters()}
        model = grown


def test_a_model_grows_by_the_classes_of_each_task():
    made = method(*SMALL, "--local-up-to-layer", "3", *DYTOX)
    model = made.build()
    for task in TASKS[:2]:
        assert made.grow(model, task) is model
    assert model.classes == made.classes_after(TASKS[:2]) == [4, 2] and made.classes_after(()) == []


def test_joint_knows_all_classes_as_those_of_one_task():
    made = method(*JOINT)
    assert [made.classes_after(TASKS[:nb]) for nb in range(4)] == [[], [4], [6], [8]]


def test_joint_trains_on_everything_as_a_first_task():
    argv = ("--base-epochs", "7", "--incremental-lr", "1", "--freeze-task", "sab", *JOINT)
    made = method(*argv)
    for task in TASKS:
        training, remembering = made.steps(task)
        assert training.data is material.everything and isinstance(remembering, Remembering)
        assert plain(training) == plain(made.training(TASKS[0])) and [*training.losses] == ["clf"]
    assert training.mixing.mixup.num_classes == 8


# ------------------------------------------------------------------------------------------------------------- registry


def test_a_method_of_ones_own():
    class Mine(Method):
        def build(self):
            return nn.Linear(1, 1)

    methods.register("mine", Mine)
    try:
        made = method("--method", "mine")
        assert type(made) is Mine and made.tasks == TASKS and made.replicas == 2 and made.held_out(TASKS[1]) == 0
        with pytest.raises(NotImplementedError):
            Method(parse([]), TASKS).build()
    finally:
        METHODS.remove("mine")


@pytest.mark.parametrize("thing", [object, Method.build, "method", None])
def test_what_is_no_method_is_not_registered(thing):
    with pytest.raises(OptionsError, match=r"method mine: is no class derived from continual\.methods\.Method"):
        methods.register("mine", thing)
    assert "mine" not in METHODS.names()
