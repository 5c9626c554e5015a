"""One thread in every process that the tests start: equal to the last bit means equal sums, and so equal numbers of threads."""

import gc
import os
import shutil
from fnmatch import fnmatchcase

import pytest

os.environ.pop("MAIN", None)  # a script that commands would run for what it registers
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in every process started from here
gc.disable()  # until all is imported

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


THOROUGH = "DYTOX_THOROUGH"  # the variable that asks for every case, minutes more
FURTHER_CASES = (  # of what other cases, which always run, show already
    "test_contract.py::test_it_learns_two_tasks[[][jfl]*ng]",
    "test_contract.py::test_it_learns_two_tasks[[]lwf]",
    "test_deep.py::test_other_methods_say_what_does_not_apply[[][ij]*]",
    "test_report.py::test_damaged_logs_are_told[[][cos]*]",
    "test_contract.py::test_killed_in_each_phase[[][!d]*]",  # der always, dytox in test_faults
    "test_contract.py::test_killed_in_each_phase[[]dytox]",
    "test_contract.py::test_one_process_and_two[[][!d]*]",
    "test_contract.py::test_one_process_and_two[[]dytox]",
    "test_contract.py::test_stopped_while_a_hook_looks_at_features[[]exemplars:3]",
    "test_contract.py::test_own_option_acts_from_its_place_on[[][dt]*]",
    "test_faults.py::test_killed_at_random*",
    "test_faults.py::test_train_sh_starts_a_failed_job_again[[]2]",
    "test_faults.py::test_killed_under_mixed_precision[[]fp16]",
    "test_faults.py::test_not_a_number[[]1]",
    "test_faults.py::test_running_statistics_of_two_processes",
    "test_faults.py::test_resumed_on_four_processes",
    "test_outside.py::test_a_script_by_train_sh",
    "test_readme.py::test_every_command_ends_well[[]python -m continual.report RUN*",
    "test_readme.py::test_every_command_ends_well[[]python -m continual.export*",
    "test_readme.py::test_every_command_ends_well[[]python -m continual.verify*",
    "test_readme.py::test_every_command_ends_well[[]MAIN=*fading.py*",
    "test_export.py::test_what_does_not_agree_is_not_kept[[]broken]",
    "test_sweep.py::test_the_array_of_the_readme",
    "test_sweep.py::test_killed_five_times[[]all]",
    "test_verify.py::test_two_processes[[]1]",
    "test_distributed.py::test_one_two_and_four_processes[[][Sb]*",
    "test_distributed.py::test_replicas_at_once[[]2]",
    "test_distributed.py::test_augmented_in_bfloat16_on_one_and_two_processes",
    "test_experiment.py::test_one_checkpoint[[]task-2*",
    "test_branch.py::test_killed_anywhere[[][fm]*",
    "test_compare.py::test_chance_is_taken_for_a_difference_one_time_in_twenty[[]3*",
    "test_launch.py::test_too_few_open_files",
    "test_option_effects.py::test_weights_part_where_the_option_begins_to_act[[][d-z]*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first, so that no worker is left with one at the end; further cases only if asked for."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    if THOROUGH not in os.environ:
        skip = pytest.mark.skip(reason=f"one of many cases; {THOROUGH}=1 runs them all")
        for item in items:
            name = item.nodeid[item.nodeid.index("test_") :]  # without its folder
            if any(fnmatchcase(name, pattern) for pattern in FURTHER_CASES):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What was imported is not looked through for garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """The folder of a run of three tasks of two digits, for all tests to look at."""
    from jobs import THREE_TASKS, finish, folders  # here, because torch is imported with it

    folder = tmp_path_factory.mktemp("done")
    finish([*THREE_TASKS, *folders(folder)], folder)
    return folder


@pytest.fixture
def copy(done, tmp_path):
    """That run, moved elsewhere, for one test to alter."""
    shutil.copytree(done, tmp_path / "moved")
    return tmp_path / "moved"
