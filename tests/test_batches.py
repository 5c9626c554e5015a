"""The batches of a step: whose they are, and how much each counts."""

import numpy as np
import pytest
import torch
from tiny import CPU, images, sampler_of

from continual.data.mixing import mixing
from continual.data.samplers import MemorySampler, StepSampler
from continual.options import AugmentOptions
from continual.training.batches import Batch, Batches, FromMemory

REPLICAS = 4


def memory(sampler: StepSampler, *, nb: int = 12, nb_draws: int = 1, name: str = "memory"):
    """A loader of `nb` other images beside a step's own."""
    return CPU.loader(images(nb, seed=1), MemorySampler(sampler, [np.arange(nb)] * REPLICAS, nb_draws=nb_draws, name=name))


def batches(*, beside: dict | None = None, held_out: bool = False, **how) -> Batches:
    """Two steps of four replicas with three images each."""
    sampler = sampler_of(24, replicas=REPLICAS, batch_size=3)
    if beside is not None:
        how["memory"] = FromMemory(memory(sampler, nb_draws=max(1, beside.get("nb_replays", 0))), **beside)
    if held_out:
        how["held_out"] = memory(sampler, name="held out")
    return Batches(CPU.loader(images(24), sampler), **how)


def weighed(taken: list[Batch]) -> list[tuple[int, int, float]]:
    """(first replica, images, weight) of each."""
    return [(batch.replica, len(batch.images), pytest.approx(batch.weight)) for batch in taken]


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [
        (1, [(replica, 3, 1 / 4) for replica in range(4)]),
        (2, [(0, 6, 1 / 2), (2, 6, 1 / 2)]),
        (3, [(0, 9, 3 / 4), (3, 3, 1 / 4)]),
        (8, [(0, 12, 1.0)]),
        (None, [(0, 12, 1.0)]),
    ],
)
def test_replicas_go_together_and_count_alike(at_once, expected):
    steps = list(batches(replicas_at_once=at_once))
    assert [(step.key, step.where) for step in steps] == [
        ((0, "training", 1, 0, 0), "epoch 1, step 1"),
        ((0, "training", 1, 0, 1), "epoch 1, step 2"),
    ]
    for step, one_by_one in zip(steps, batches(), strict=True):
        assert weighed(step.main) == expected and step.nb_images == 12
        assert step.first is step.main is step.second
        assert torch.equal(torch.cat([each.images for each in step.main]), torch.cat([each.images for each in one_by_one.main]))


def test_batches_begin_in_the_middle():
    made = batches()
    _, second = made
    made.sampler.set_epoch(0, 1)
    again = next(iter(made))
    assert again.key == second.key and torch.equal(again.main[0].images, second.main[0].images)
    made.sampler.set_epoch(1)
    assert [step.where for step in made] == ["epoch 2, step 1", "epoch 2, step 2"]


def test_every_batch_is_mixed_by_a_key_of_its_own():
    mix = mixing(AugmentOptions(mixup=0.8, cutmix=0.0), nb_classes=7, smoothing=0.1)
    whole, one_by_one = batches(mixing=mix, replicas_at_once=4), batches(mixing=mix)
    for step, apart in zip(whole, one_by_one, strict=True):
        assert torch.equal(step.main[0].targets, torch.cat([each.targets for each in apart.main]))
        assert step.main[0].targets.shape == (12, 7)
        assert len({float(each.targets.max()) for each in apart.main}) > 1


def test_replayed_batches_share_what_the_new_batch_leaves():
    (step, _) = batches(beside={"nb_replays": 2, "weight_new": 0.4}, replicas_at_once=4)
    assert weighed(step.main) == [(0, 12, 0.4), (0, 12, 0.3), (0, 12, 0.3)] and step.nb_images == 12
    assert [each.name for each in step.main] == ["mixing 0", "memory mixing 0", "memory mixing 1"]
    assert step.first is step.main is step.second


def test_sam_gets_the_memory_where_told():
    (step, _) = batches(beside={"sam_second": True}, replicas_at_once=2)
    assert step.first is step.main and weighed(step.main) == weighed(step.second) == [(0, 6, 0.5), (2, 6, 0.5)]
    assert [each.name for each in step.second] == ["memory mixing 0"] * 2
    (step, _) = batches(beside={"sam_first": True}, replicas_at_once=2)
    assert step.second is step.main and [each.name for each in step.first] == ["memory mixing 0"] * 2


@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
def test_every_replica_has_a_batch_of_the_images_held_out(at_once):
    made = batches(held_out=True, replicas_at_once=at_once, beside={"nb_replays": 1, "weight_new": 0.5})
    drawn = [(x, y) for x, y in made.held_out]  # three images for every replica and step
    for index, step in enumerate(made):
        own = [each for each in step.main if each.name == "mixing 0"]
        x, y = (torch.cat(parts) for parts in zip(*(each.held_out for each in own), strict=True))
        expected = [torch.cat(parts) for parts in zip(*drawn[4 * index : 4 * index + 4], strict=True)]
        assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])
        assert all(len(each.held_out[0]) == len(each.images) for each in own)
        assert all(each.held_out is None for each in step.main if each not in own)
