"""What a run says of itself."""

import numpy as np
import pytest

from continual.rehearsal import Memory
from continual.runs.greeting import budget, in_short
from continual.tasks import Task


def test_the_budget_in_words():
    shared, apart, task = Memory(8), Memory(8, nb_replicas=2), Task(0, 0, 4)
    labels = np.array([0, 0, 1, 1])
    shared.add(labels, labels, labels)
    for replica in range(2):
        apart.add(labels[::2], labels[::2], labels[::2], replica=replica)
    assert budget(shared, task) == "memory: 4 exemplars of 4 classes, at most 2 of each"
    expected = "memory: 4 exemplars of 4 classes, at most 1 of each for each of 2 replicas (2 for the first)"
    assert budget(apart, task) == expected


@pytest.mark.parametrize(
    ("sizes", "text"), [([2, 2, 2], "2 each"), ([50, 10, 10], "50, then 10 each"), ([5, 3, 2], "5, 3, 2"), ([7], "7 each")]
)
def test_sizes_in_words(sizes, text):
    assert in_short(sizes) == text
