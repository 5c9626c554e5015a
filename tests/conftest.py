"""One thread in every process that the tests start: equal to the last bit means equal sums, and so equal numbers of threads."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in every process started from here

LONG = (
    "test_contract",
    "test_faults",
    "test_train_sh",
    "test_distributed",
    "test_outside",
    "test_report",
    "test_verify",
    "test_sweep",
    "test_branch",
    "test_board",
    "test_deep",
    "test_main",
    "test_export",
    "test_experiment",
)  # minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
