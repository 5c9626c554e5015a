"""Which image goes where: against the released code's repeated augmentation, and for any number of replicas and processes."""

import numpy as np
import pytest
from stored import table
from tiny import dealt

from continual.data.samplers import (
    SAMPLERS,
    MemorySampler,
    StepSampler,
    released_drop_last,
    repeated_augmentation,
    sequential,
    shuffled,
)

# Orders


@pytest.mark.parametrize(
    "stored",
    table("repeated_augmentation"),
    ids=lambda e: f"{e['dataset_size']} images, {e['replicas']} replicas, epoch {e['epoch']}",
)
def test_repeated_augmentation_of_the_released_code(stored):
    order = repeated_augmentation(stored["dataset_size"], stored["replicas"], stored["epoch"])
    assert order.shape == (stored["replicas"], stored["length_per_replica"])
    assert len(stored["first_30"]) == stored["replicas"]
    assert order[:, :30].tolist() == stored["first_30"]


LENGTHS = [(255, 1, 255), (100, 3, 33), (2, 4, 1), (1, 1, 1), (256, 1, 256)]


@pytest.mark.parametrize(("nb_samples", "nb_replicas", "length"), LENGTHS)
def test_repeated_augmentation_of_few_images(nb_samples, nb_replicas, length):
    order = repeated_augmentation(nb_samples, nb_replicas, 0)
    assert order.shape == (nb_replicas, length)
    assert order.min() >= 0 and order.max() < nb_samples


def test_variants_of_an_image_go_to_different_replicas():
    order = repeated_augmentation(100, 3, 0)
    assert (order == order[:1]).all()
    assert len(set(order[0].tolist())) == 33


@pytest.mark.parametrize(("nb_samples", "nb_replicas"), [(12, 1), (12, 3), (13, 3), (2, 5)])
def test_shuffled_sees_every_image(nb_samples, nb_replicas):
    order = shuffled(nb_samples, nb_replicas, 0)
    length = -(-nb_samples // nb_replicas)
    assert order.shape == (nb_replicas, length)
    dealt = order.T.flatten()
    assert sorted(dealt[:nb_samples].tolist()) == list(range(nb_samples))
    padding = dealt[nb_samples:]
    assert padding.tolist() == np.resize(dealt[:nb_samples], len(padding)).tolist()


@pytest.mark.parametrize("order", [repeated_augmentation, shuffled])
def test_epochs_differ_and_come_back(order):
    assert not np.array_equal(order(50, 2, 0), order(50, 2, 1))
    assert np.array_equal(order(50, 2, 1), order(50, 2, 1))


def test_sequential_shows_everything_to_everyone_in_order():
    assert sequential(4, 2, 0).tolist() == sequential(4, 2, 9).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


# Batches


def step_sampler(
    sampler: str = "shuffled", *, nb_samples: int = 22, mine: tuple[int, ...] = (0, 1), replicas: int = 2, **options: object
) -> StepSampler:
    views = [100 + np.arange(nb_samples)] * replicas
    return StepSampler(sampler, views, own_replicas=mine, **({"batch_size": 4, "key": (7, "training")} | options))


def indices(batches: list) -> list[list[int]]:
    return [draw.indices.tolist() for draw in batches]


def test_batches_come_replica_by_replica():
    sampler = step_sampler()
    order = 100 + shuffled(22, 2, 0)  # 11 each: two full batches, the rest is dropped
    expected = [order[replica, start : start + 4].tolist() for start in (0, 4) for replica in (0, 1)]
    assert indices(list(sampler)) == expected
    assert sampler.nb_steps == 2


@pytest.mark.parametrize(
    ("sampler", "nb_samples", "sizes"),
    [
        ("shuffled", 12, [4, 4, 4]),
        ("shuffled", 11, [4, 4]),
        ("shuffled", 5, [4]),
        ("shuffled", 4, [4]),
        ("shuffled", 3, [3]),
        ("repeated", 11, [4, 4]),
        ("repeated", 3, [3]),
        ("sequential", 11, [4, 4, 3]),
        ("sequential", 5, [4, 1]),
        ("sequential", 3, [3]),
    ],
)
def test_the_last_batch_is_dropped_if_there_are_more_and_images_are_shuffled(sampler, nb_samples, sizes):
    batches = step_sampler(sampler, nb_samples=nb_samples, replicas=1, mine=(0,))
    assert [len(batch) for batch in dealt(batches)] == sizes
    assert batches.nb_steps == len(sizes)


def test_a_trial_ends_early():
    whole = dealt(step_sampler("sequential"))
    assert dealt(step_sampler("sequential", most_steps=2)) == whole[:4]
    assert dealt(step_sampler("sequential", most_steps=99)) == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mine", [(0, 1), (1,)])
def test_an_epoch_resumes_at_any_step(sampler, mine):
    batches = step_sampler(sampler, mine=mine)
    batches.set_epoch(3)
    whole = dealt(batches)
    for first_step in range(batches.nb_steps + 1):
        fresh = step_sampler(sampler, mine=mine)
        fresh.set_epoch(3, first_step)
        assert dealt(fresh) == whole[first_step * len(mine) :]
    batches.set_epoch(4)
    assert len(dealt(batches)) == len(whole) and dealt(batches) != whole


def test_epochs_follow_each_other_without_a_pause():
    batches = step_sampler(nb_epochs=3)
    batches.set_epoch(1, 1)
    rest = iter(batches)
    first = next(rest)
    batches.set_epoch(7)  # what is under way goes on
    of_epochs = []
    for epoch in (1, 2):
        fresh = step_sampler()
        fresh.set_epoch(epoch, 1 if epoch == 1 else 0)
        of_epochs += dealt(fresh)
    assert dealt([first, *rest]) == of_epochs


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_keys_are_unique(sampler):
    batches = step_sampler(sampler)
    keys = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        keys += [key for batch in dealt(batches) for _, key in batch]
    assert len(set(keys)) == len(keys)
    assert keys[0] == (7, "training", 0, 0, 0)
    assert all(key[:2] == (7, "training") for key in keys)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shares", [[(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)], [(0, 2), (1, 3)]])
def test_processes_together_see_what_one_sees(sampler, shares):
    options = {"nb_samples": 40, "replicas": 4, "batch_size": 3}
    alone = dealt(step_sampler(sampler, mine=(0, 1, 2, 3), **options))
    processes = [dealt(step_sampler(sampler, mine=mine, **options)) for mine in shares]
    for step in range(len(alone) // 4):
        by_replica = {}
        for mine, batches in zip(shares, processes, strict=True):
            width = len(mine)
            by_replica |= dict(zip(mine, batches[step * width : (step + 1) * width], strict=True))
        assert [by_replica[replica] for replica in range(4)] == alone[4 * step : 4 * step + 4]
    assert sum(map(len, processes)) == len(alone)


def test_a_replica_sees_its_own_view():
    views = [np.array([0, 1, 2, 8]), np.array([0, 1, 2, 9])]
    batches = StepSampler("sequential", views, own_replicas=(0, 1), batch_size=3, key=())
    assert indices(list(batches)) == [[0, 1, 2], [0, 1, 2], [8], [9]]


# Batches of the memory


def memory_sampler(*, mine: tuple[int, ...] = (0, 1), nb_each: int = 9, nb_draws: int = 2) -> MemorySampler:
    """Replica 0 has the exemplars 50 .. , replica 1 has 70 .. ."""
    views = [np.arange(50, 50 + nb_each), np.arange(70, 70 + nb_each)]
    return MemorySampler(step_sampler(mine=mine), views, nb_draws=nb_draws)


def test_exemplars_come_beside_every_batch():
    sampler = memory_sampler()
    batches = list(sampler)
    assert len(batches) == 2 * 2 * 2  # steps, replicas, draws
    for i, batch in enumerate(indices(batches)):
        first = (50, 70)[i // 2 % 2]
        assert len(set(batch)) == 4 and set(batch) <= set(range(first, first + 9))
    keys = [key for batch in dealt(batches) for _, key in batch]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & {key for batch in dealt(sampler.main) for _, key in batch}
    assert len({tuple(batch) for batch in indices(batches)}) > 4


def test_a_small_memory_fills_its_batches_all_the_same():
    batches = indices(list(memory_sampler(nb_each=2)))
    assert all(len(batch) == 4 and set(batch) <= {50, 51, 70, 71} for batch in batches)


def test_exemplars_resume_and_spread_over_processes():
    sampler = memory_sampler()
    sampler.main.set_epoch(2)
    whole = dealt(sampler)
    sampler.main.set_epoch(2, first_step=1)
    assert dealt(sampler) == whole[4:] and len(whole) == 8
    for replica in range(2):
        alone = memory_sampler(mine=(replica,))
        alone.main.set_epoch(2)
        assert dealt(alone) == [batch for i, batch in enumerate(whole) if i // 2 % 2 == replica]
    sampler.main.set_epoch(3)
    assert dealt(sampler) != whole


# -------------------------------------------------------------------------------------------- the last, partial batch


@pytest.mark.parametrize(
    "nb, replicas, batch, drops",
    [
        (2000, 2, 128, True),  # 1792 / 2 = 896
        (2000, 8, 128, True),  # 224
        (500, 4, 128, False),  # 64
        (20000, 8, 128, True),
        (1000, 2, 128, True),
        (512, 2, 256, False),  # not more than one batch
        (511, 1, 256, False),  # 511 counts as 256
        (200, 2, 99, True),  # below 256: 200 / 2
        (200, 2, 100, False),
    ],
)
def test_the_released_condition_of_dropping(nb, replicas, batch, drops):
    assert released_drop_last(nb, replicas, batch) is drops


@pytest.mark.parametrize(
    "memory, replicas, new, share",
    [(2000, 2, 200, 0.4), (1000, 2, 100, 1.0), (2000, 8, 200, 0.4), (500, 4, 50, 0.0)],  # last tasks of 10 steps
)
def test_the_share_of_the_newest_exemplars_that_finetuning_never_sees(memory, replicas, new, share):
    views = [np.arange(memory)] * replicas
    batches = StepSampler("sequential", views, own_replicas=[0], batch_size=128, key=(), drop_last=True)
    batches.set_epoch(0)
    seen = {index for batch in indices(batches) for index in batch}
    assert len(set(range(memory - new, memory)) - seen) / new == share
    whole = StepSampler("sequential", views, own_replicas=[0], batch_size=128, key=())
    assert {index for batch in indices(whole) for index in batch} == set(range(memory))


@pytest.mark.parametrize("name", ["sequential", "shuffled", "repeated"])
@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_no_step_holds_one_image_alone_where_batch_norm_trains(name, replicas, drop_last):
    for nb in range(1, 40):
        for batch_size in (2, 3, 11):
            settings = {"own_replicas": range(replicas), "batch_size": batch_size, "key": (), "drop_last": drop_last}
            sampler = StepSampler(name, [np.arange(nb)] * replicas, no_single=True, **settings)
            plain = StepSampler(name, [np.arange(nb)] * replicas, **settings)
            batches, expected = dealt(sampler), dealt(plain)
            assert min(map(len, batches)) > 1, (nb, batch_size)
            if min(map(len, expected)) > 1:
                assert batches == expected
            else:
                assert {i for batch in expected for i, _ in batch} <= {i for batch in batches for i, _ in batch}
            if len(batches) > 1:
                sampler.set_epoch(0, first_step=1)  # as after a resume
                assert dealt(sampler) == batches[len(sampler.own_replicas) :]
