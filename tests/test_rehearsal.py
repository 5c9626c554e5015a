"""The memory and the rules that fill it."""

import numpy as np
import pytest
from stored import arrays

from continual.errors import CheckpointError, OptionsError
from continual.registry import RULES
from continual.rehearsal import Memory, choose, closest, furthest, groups, icarl, in_turn, random
from continual.tasks import Task


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def features(nb: int = 12, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=(nb, 5)) + 1


# Rules


@pytest.mark.parametrize("rule", ["icarl", "closest", "furthest"])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_choices_of_the_released_code(rule, k):
    stored = arrays("herding")
    for label, expected in enumerate(stored[f"{rule}/{k}"]):
        of_class = np.flatnonzero(stored["targets"] == label)
        chosen = RULES.find(rule)(stored["features"][of_class].astype(np.float64), k, rng())
        assert of_class[chosen].tolist() == expected.tolist()


@pytest.mark.parametrize("rule", ["random", "closest", "furthest", "icarl"])
@pytest.mark.parametrize("k", [0, 1, 5, 12, 40])
def test_rules_give_as_many_different_images_as_there_are(rule, k):
    chosen = RULES.find(rule)(features(), k, rng())
    assert len(chosen) == min(k, 12)
    assert len(set(chosen.tolist())) == len(chosen)
    assert set(chosen.tolist()) <= set(range(12))


@pytest.mark.parametrize("rule", ["closest", "furthest", "icarl"])
def test_a_smaller_memory_is_the_beginning_of_a_larger_one(rule):
    assert RULES.find(rule)(features(), 4, rng()).tolist() == RULES.find(rule)(features(), 9, rng(1))[:4].tolist()


def test_closest_and_furthest_of_points_on_a_line():
    points = np.array([[0.0], [10.0], [4.0], [5.0], [1.0]])  # mean 4
    assert closest(points, 3, rng()).tolist() == [2, 3, 4]
    assert furthest(points, 3, rng()).tolist() == [1, 0, 4]  # not the three closest turned round


def test_random_is_drawn_without_replacement():
    draws = [random(features(), 6, rng(seed)).tolist() for seed in range(20)]
    assert all(len(set(draw)) == 6 for draw in draws)
    assert draws[0] == random(features(), 6, rng(0)).tolist()
    assert len({tuple(draw) for draw in draws}) > 15
    assert set().union(*draws) == set(range(12))


def test_herding_begins_with_the_most_central_direction():
    x = features()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    chosen = icarl(features() * rng(1).uniform(0.1, 10, size=(12, 1)), 3, rng())  # lengths do not matter
    assert chosen[0] == (x @ x.mean(axis=0)).argmax()
    assert chosen.tolist() == icarl(features(), 3, rng()).tolist()


@pytest.mark.parametrize("nb", [1, 6])
def test_herding_of_equal_images_ends(nb):
    assert sorted(icarl(np.ones((nb, 4)), nb, rng()).tolist()) == list(range(nb))
    assert sorted(icarl(np.zeros((nb, 4)), nb, rng()).tolist()) == list(range(nb))


@pytest.fixture
def own_rule():
    """Registers a rule for the length of a test."""
    yield lambda rule: RULES.add("mine", rule)
    RULES.remove("mine")


LABELS = np.array([7, 3, 7, 3, 7, 7])


def test_exemplars_of_every_class_as_rows():
    x = np.array([[0.0], [0.0], [10.0], [4.0], [4.0], [5.0]])
    assert [rows.tolist() for rows in choose("closest", x, LABELS, k=2, seed=lambda label: 0)] == [[1, 3], [5, 4]]
    drawn = [choose("random", None, LABELS, k=2, seed=lambda label, start=start: start + label) for start in range(30)]
    assert {tuple(sorted(rows.tolist())) for rows, _ in drawn} == {(1, 3)}
    assert {row for _, rows in drawn for row in rows.tolist()} == {0, 2, 4, 5}


def test_a_rule_of_ones_own(own_rule):
    asked = []

    def last(features, k, rng):
        asked.append((features.dtype, k))
        return np.arange(len(features))[::-1]  # more than were asked for

    own_rule(last)
    chosen = choose("mine", np.zeros((6, 2), np.float32), LABELS, k=3, seed=lambda label: 0)
    assert [rows.tolist() for rows in chosen] == [[3, 1], [5, 4, 2]] and asked == [(np.float64, 3)] * 2


@pytest.mark.parametrize(
    "nonsense",
    [[0, 9], [-1, 0], [0.0, 1.0], [[0], [1]], [True, False], 0, None, "a", ["0", "1"]],
    ids=repr,
)
def test_a_rule_that_gives_nonsense_is_refused(own_rule, nonsense):
    own_rule(lambda features, k, rng: nonsense)
    with pytest.raises(OptionsError, match="selection rule mine: gives no indices of the 2 images of a class"):
        choose("mine", np.zeros((6, 2)), LABELS, k=2, seed=lambda label: 0)


def test_an_unknown_rule_is_answered_with_the_nearest():
    with pytest.raises(OptionsError, match="no selection rule 'closets'; the nearest is closest"):
        choose("closets", np.zeros((6, 2)), LABELS, k=2, seed=lambda label: 0)


def test_several_choices_take_turns():
    choices = [np.array([4, 1, 2]), np.array([3]), np.array([1, 5])]
    assert in_turn(choices).tolist() == [4, 3, 1, 1, 5, 2]
    assert in_turn([]).tolist() == []


# Memory


def put(memory: Memory, labels: list[int], *, nb_each: int, task: int = 0, replica: int = 0) -> None:
    """Exemplars whose x tells label, replica and rank: 100 * label + 10 * replica + rank."""
    y = np.repeat(labels, nb_each)
    x = 100 * y + 10 * replica + np.tile(np.arange(nb_each), len(labels))
    memory.add(x, y, np.full(len(y), task), replica)


def test_the_quota_shares_the_memory_among_the_classes_seen():
    memory = Memory(20)
    assert [memory.quota(nb) for nb in (2, 5, 6)] == [10, 4, 3]
    assert Memory(20, nb_classes=10).quota(2) == 2


def test_memory_size_is_the_total_of_all_replicas():
    memory = Memory(20, nb_replicas=2)
    assert memory.quota(5) == 2
    for replica in range(2):
        put(memory, [0, 1, 2, 3, 4], nb_each=memory.quota(5), replica=replica)
    assert len(memory) == 20
    assert Memory(21, nb_classes=4, nb_replicas=3).quota(1) == 1


def test_a_cut_keeps_the_first_of_each_class():
    memory = Memory(12)
    put(memory, [3, 1], nb_each=4)
    put(memory, [2], nb_each=4, task=1)
    memory.cut(2)
    assert memory.x.tolist() == [300, 301, 100, 101, 200, 201]
    assert memory.y.tolist() == [3, 3, 1, 1, 2, 2]
    assert memory.t.tolist() == [0, 0, 0, 0, 1, 1]
    memory.cut(5)
    assert len(memory) == 6
    memory.cut(0)
    assert len(memory) == 0 and len(memory.x) == 0


def test_an_empty_memory_can_be_cut():
    memory = Memory(10)
    memory.cut(3)
    assert len(memory) == 0 and memory.view(0).tolist() == []


def test_replicas_keep_their_exemplars_apart():
    memory = Memory(8, nb_replicas=2)
    for replica in (0, 1):
        put(memory, [0], nb_each=3, replica=replica)
    memory.cut(2)
    for replica in (0, 1):
        put(memory, [1], nb_each=2, task=1, replica=replica)
    assert memory.replica.tolist() == [0] * 4 + [1] * 4
    assert memory.x[memory.view(0)].tolist() == [0, 1, 100, 101]
    assert memory.x[memory.view(1)].tolist() == [10, 11, 110, 111]
    assert memory.y[memory.view(1)].tolist() == [0, 0, 1, 1]
    assert memory.t[memory.view(1)].tolist() == [0, 0, 1, 1]


def test_one_memory_is_seen_by_every_replica():
    memory = Memory(4)
    put(memory, [0, 1], nb_each=2)
    assert all(memory.view(replica).tolist() == [0, 1, 2, 3] for replica in range(3))


def test_exemplars_are_samples_like_any():
    memory = Memory(4)
    with pytest.raises(ValueError, match="the memory is empty"):
        _ = memory.samples
    put(memory, [0, 1], nb_each=2)
    assert [part.tolist() for part in memory.samples] == [[0, 1, 100, 101], [0, 0, 1, 1], [0] * 4]


def test_it_knows_a_task_once_it_has_its_exemplars():
    memory = Memory(4)
    assert not memory.knows(Task(0, 0, 2))
    put(memory, [0, 1], nb_each=1)
    assert memory.knows(Task(0, 0, 2)) and not memory.knows(Task(1, 2, 2))


def test_memories_kept_apart_for_others_are_refused():
    memory = Memory(8, nb_replicas=2)
    for replica in (0, 1):
        put(memory, [0], nb_each=2, replica=replica)
    with pytest.raises(CheckpointError, match=r"those of 2 replica\(s\); the options ask for 1"):
        Memory(8).load_state_dict(memory.state_dict())


def test_a_memory_too_small_is_refused():
    Memory(100).check(100)
    Memory(0).check(100)
    Memory(200, nb_replicas=2).check(100)
    with pytest.raises(OptionsError, match="at least 100"):
        Memory(99).check(100)
    with pytest.raises(OptionsError, match=r"2 replicas.*at least 200"):
        Memory(199, nb_replicas=2).check(100)


@pytest.mark.parametrize("most", [1, 5, 7, 100])
def test_chosen_in_groups_of_classes_as_all_at_once(most):
    rng = np.random.default_rng(0)
    labels, features = rng.permutation(np.repeat([4, 5, 6, 7], [2, 3, 9, 1])), rng.normal(size=(15, 3))
    how = {"k": 2, "seed": lambda label: label}
    found = groups(labels, most)
    assert len(found) == {1: 4, 5: 3, 7: 2, 100: 1}[most]
    picks = [rows[pick] for rows in found for pick in choose("closest", features[rows], labels[rows], **how)]
    for ours, wanted in zip(picks, choose("closest", features, labels, **how), strict=True):
        assert np.array_equal(ours, wanted)
