"""A Trainer: what it makes of a phase, and what it keeps from step to step."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from tiny import CPU, TASKS, dytox, images
from torch import Tensor

from continual.data import material as sets
from continual.data.images import Images
from continual.data.material import Material, hold_out
from continual.data.samples import Samples
from continual.losses import HeldOut, Seen, Term
from continual.methods import method_of
from continual.options import parse
from continual.rehearsal import Memory
from continual.tasks import FINETUNING, Phase
from continual.training.optim import trained
from continual.training.trainer import Sums, Trainer

PLAIN = ("--mixup", "0", "--cutmix", "0", "--batch-size", "2", "--finetuning", "balanced", "--warmup-epochs", "0")
SAM_ON_MEMORY = ("--sam-rho", "1", "--sam-second", "memory")
REPLAY = ("--sep-memory", "--replay-memory", "2")


def marked(first: int, *labels: int) -> Samples:
    """Images of one brightness each: `first`, and one more for every next one."""
    y = np.array(labels, dtype=np.int64)
    x = np.zeros((len(y), 8, 8, 3), np.uint8) + np.arange(first, first + len(y), dtype=np.uint8)[:, None, None, None]
    return Samples(x, y, (y >= TASKS[0].nb_new).astype(np.int64))


def marks(batch: Tensor) -> list[int]:
    """The brightness of each image, from 0 to 255."""
    return ((batch[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().int().tolist()


def memory_of(nb_replicas: int = 2, nb_each: int = 2) -> Memory:
    """Brightness 100 and more in the memory of the first replica, 150 and more in that of the second."""
    memory = Memory(80, nb_replicas=nb_replicas)
    for replica in range(nb_replicas):
        memory.add(*marked(100 + 50 * replica, *np.repeat(range(4), nb_each)), replica=replica)
    return memory


NEW = marked(0, *[4, 5, 6] * 8)


def as_images(asked: list):
    """Samples as Images, noting how they were asked for."""
    transform = images(1).transform

    def made(samples: Samples, *, augment: bool) -> Images:
        asked.append(augment)
        return Images(samples, transform)

    return made


def phase_of(*argv: str, of: str = "training", task: int = 1) -> Phase:
    method = method_of(parse([*PLAIN, *argv]), TASKS, replicas=2)
    (phase,) = [step for step in method.steps(TASKS[task]) if step.name == of]
    return phase


def trainer_of(phase: Phase, material: Material | None = None, asked: list | None = None, **how) -> Trainer:
    material = material or Material(NEW, memory_of(), replicas=2)
    made = as_images([] if asked is None else asked)
    return Trainer(how.pop("model", None) or dytox(), phase, material, images=made, loading=CPU, key=(0, phase.name, 1), **how)


# --------------------------------------------------------------------------------------------------------------- phases


def test_used_on_its_own():
    """As its docstring says."""
    model, asked = dytox(), []
    trainer = trainer_of(phase_of("--epochs", "3", "--lr", "0.1"), asked=asked, model=model)
    rates, totals = [], []
    for epoch in range(3):
        rates.append(trainer.lr)
        steps = list(trainer.steps(epoch))
        assert len(steps) == trainer.nb_steps and all(nb_images == 4 for _, nb_images in steps)
        mean = sum(float(losses["total"]) for losses, _ in steps) / len(steps)
        assert trainer.sums.means()["total"] == pytest.approx(mean)
        totals.append(mean)
        trainer.end_epoch(epoch)
    assert totals[-1] < totals[0] and rates[0] == rates[1] > rates[2] and asked == [True]


def test_a_phase_goes_on_where_it_stood():
    phase = phase_of("--sam-rho", "0.5", "--look-sam-k", "2", "--opt", "adamw")
    model = dytox()
    whole = trainer_of(phase, model=model)
    list(whole.steps(0)), whole.end_epoch(0)
    begun = whole.steps(1)
    next(begun), next(begun)
    state, again = copy.deepcopy(whole.state_dict()), copy.deepcopy(model)
    rest = [float(losses["total"]) for losses, _ in begun]
    resumed = trainer_of(phase, model=again, epochs_done=1)
    resumed.load_state_dict(state)
    assert [float(losses["total"]) for losses, _ in resumed.steps(1, 2)] == rest and len(rest) > 2
    assert resumed.sums.means() == whole.sums.means() and resumed.lr == whole.lr
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_what_is_frozen_is_not_trained_nor_perturbed():
    model = dytox()
    argv = ("--freeze-task", "sab", "--sam-rho", "3", "--sam-adaptive", "--look-sam-k", "4", "--look-sam-alpha", "0.2")
    trainer = trainer_of(phase_of(*argv), model=model)
    frozen = {id(p) for p in model.encoder.parameters()}
    assert not any(p.requires_grad for p in model.encoder.parameters()) and model.encoder.training
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == {id(p) for p in trained(model)}
    sam = trainer.sam
    assert len(sam.parameters) == len(trained(model)) and not {id(p) for p in sam.parameters} & frozen
    assert (sam.rho, sam.adaptive, sam.look_every, sam.look_alpha) == (3.0, True, 4, 0.2)
    assert trainer_of(phase_of()).sam is None
    trainer_of(phase_of("--freeze-task", "sab", "--freeze-eval"), model=model)
    assert not model.encoder.training and model.training


def test_a_constant_rate():
    trainer = trainer_of(phase_of("--finetuning-lr", "1e-3", of=FINETUNING))
    list(trainer.steps(0)), trainer.end_epoch(0)
    assert (
        trainer.schedule is None and trainer.lr == pytest.approx(1e-3 * 2 * 2 / 512) and "schedule" not in trainer.state_dict()
    )


# --------------------------------------------------------------------------------------------------------------- memory


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
    for of, expected in (("training", tr), (FINETUNING, ft)):
        assert (trainer_of(phase_of(*argv, of=of)).batches.memory is not None) is expected
    first, empty = phase_of(*argv, task=0), Material(NEW, Memory(8), replicas=2)
    assert trainer_of(first).batches.memory is None
    assert trainer_of(phase_of(*argv), empty).batches.memory is None


def test_replayed_exemplars_are_each_replicas_own():
    asked = []
    trainer = trainer_of(phase_of(*REPLAY), asked=asked)
    beside = trainer.batches.memory
    assert (beside.nb_replays, beside.weight_new) == (2, 0.5) and not beside.sam_first and not beside.sam_second
    assert asked == [True, True]  # augmented
    drawn = [marks(x) for x, _ in islice(beside.loader, trainer.nb_steps * 2 * 2)]  # replicas, draws
    expected = [range(100, 108) if i // 2 % 2 == 0 else range(150, 158) for i in range(len(drawn))]
    assert all(set(found) <= set(own) for found, own in zip(drawn, expected, strict=True))


def test_sam_is_told_its_batches():
    beside = trainer_of(phase_of(*SAM_ON_MEMORY)).batches.memory
    assert (beside.sam_first, beside.sam_second, beside.nb_replays) == (False, True, 0)
    both = trainer_of(phase_of(*REPLAY, *SAM_ON_MEMORY, of=FINETUNING)).batches.memory
    assert both.nb_replays == 0 and both.sam_second


# ------------------------------------------------------------------------------------------------------------- held out


def held(memory: Memory) -> Material:
    masks = hold_out(NEW, memory, 0.25, np.random.default_rng(0))
    return Material(NEW, memory, replicas=2, held_new=masks[0], held_memory=masks[1])


def with_loss(phase: Phase, loss: Callable[[Seen], Tensor]) -> Phase:
    """The same with this loss alone, which needs images held out."""
    return replace(phase, losses={"mine": Term(loss, frozenset({"held_out"}))})


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_loss_may_look_at_images_held_out_of_training(at_once):
    """Every replica gets a batch of its own; none of them is trained on, replayed, or SAM's."""
    argv = ("--replay-memory", "1", "--sep-memory", "--replicas-at-once", str(at_once))
    material = held(memory_of(nb_each=4))
    x, views = sets.held_out(material).samples.x, sets.held_out(material).views
    alone = [set(x[view, 0, 0, 0].tolist()) for view in views]
    assert [len(view) for view in alone] == [7, 7]  # one of each of the seven classes
    phase = with_loss(phase_of(*argv), lambda seen: seen.outputs.logits.mean())
    trainer = trainer_of(phase, material)
    nb_steps, trained_on = 0, set()
    for step in trainer.batches:
        nb_steps += 1
        for batch in step.main:
            trained_on |= set(marks(batch.images))
            if batch.name == "mixing 0":
                own = [marks(part) for part in batch.held_out[0].split(2)]
                for replica, found in enumerate(own, start=batch.replica):
                    assert len(found) == 2 and set(found) <= alone[replica]
            else:
                assert batch.held_out is None
    assert nb_steps == trainer.nb_steps and not trained_on & set.union(*alone)
    assert trained_on & set(range(50)) and trained_on & set(range(100, 120)) and trained_on & set(range(150, 170))


def test_held_out_images_go_through_the_model_like_any():
    seen: list[HeldOut] = []

    def loss(what: Seen) -> Tensor:
        seen.append(what.held_out)
        return what.outputs.logits.mean() + what.held_out.outputs.logits.mean()

    phase = with_loss(phase_of(), loss)
    trainer = trainer_of(phase, held(memory_of(nb_each=4)))
    losses, nb_images = next(trainer.steps(0))
    assert set(losses) == {"mine", "total"} and nb_images == 4 and len(seen) == 2  # replicas
    assert all(what.outputs.logits.shape == (2, 7) and what.targets.shape == (2,) for what in seen)
    assert all(what.outputs.logits.requires_grad for what in seen)


def test_without_images_held_out_such_a_loss_is_left_out():
    phase = phase_of()
    phase = replace(phase, losses=phase.losses | with_loss(phase, lambda seen: 1 / 0).losses)
    for material in (Material(NEW, memory_of(), replicas=2), held(Memory(8))):
        trainer = trainer_of(phase, material)
        assert trainer.batches.held_out is None and [*trainer.objective.terms] == ["clf"]
        losses, _ = next(trainer.steps(0))
        assert set(losses) == {"clf", "total"}


def test_images_held_out_for_nobody_are_not_loaded():
    trainer = trainer_of(phase_of(), held(memory_of(nb_each=4)))
    assert trainer.batches.held_out is None


# ----------------------------------------------------------------------------------------------------------------- sums


def test_sums_are_means_that_can_be_kept():
    sums = Sums()
    assert sums.means() == {}
    sums.add({"clf": torch.tensor(1.0), "total": torch.tensor(2.0)})
    sums.add({"clf": torch.tensor(3.0), "total": torch.tensor(6.0)})
    again = Sums()
    again.load_state_dict(sums.state_dict())
    again.add({"clf": torch.tensor(5.0), "total": torch.tensor(1.0)})
    assert sums.means() == {"clf": 2.0, "total": 4.0} and again.means() == {"clf": 3.0, "total": 3.0}
