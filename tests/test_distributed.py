"""One recipe on any number of processes: the same losses, exemplars, metrics and weights."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from jobs import (
    SERVER,
    THREE_TASKS,
    TIMEOUT,
    TINY,
    assert_close,
    assert_close_logits,
    assert_equal,
    finish,
    folders,
    results,
    run,
    what_counts,
)

from continual import rehearsal
from continual.errors import LostProcess, OptionsError
from continual.jobs import distributed, watch
from continual.jobs.reduction import Reduction

# Few exemplars: the more are herded of a class, the more often two images are so nearly as good that rounding decides.
FOUR = [*THREE_TASKS, "--replicas", "4", "--replicas-at-once", "1", "--memory-size", "20"]


@pytest.mark.parametrize(
    "several, more",
    [
        ((2, 4), ["--drop-path", "0.3", "--distributed-memory", "--dist-eval", "--memory-size", "80"]),
        ((4,), ["--max-task", "2", "--drop-path", "0", "--sam-rho", "0.05", "--clip-grad", "1"]),
        ((4,), ["--max-task", "2", "--model", "timm:test_resnet", "--input-size", "32", "--freeze-ft", "sab", "--freeze-eval"]),
    ],
    ids=["distributed memory, drop path", "SAM", "batch norm"],
)
def test_one_two_and_four_processes(several, more, tmp_path):
    """Two of them with every method in test_contract.py."""
    found = {}
    for processes in (1, *several):
        folder = tmp_path / str(processes)
        finish([*FOUR, *more, *folders(folder)], folder, processes=processes)
        found[processes] = what_counts(folder)
    for processes in several:
        assert_close(found[processes], found[1], f"{processes} processes")
        assert_close_logits(tmp_path / str(processes), tmp_path / "1")
        exemplars = [[state["memory"] for state in found[p]["states"].values()] for p in (1, processes)]
        assert_equal(*exemplars)


@pytest.mark.parametrize("processes", [1, 2])
def test_batch_norm_never_meets_one_image_alone(processes, tmp_path):
    """Finetuning on 28 exemplars in batches of 9 would end in a step of one; the last map of this network is one cell."""
    network = ["--model", "timm:test_resnet", "--input-size", "16", "--no-debug", "--batch-size", "9", "--memory-size", "28"]
    short = ["--epochs", "1", "--base-epochs", "1", "--finetuning-epochs", "1", "--eval-every", "none"]
    finish([*TINY, *network, *short, *folders(tmp_path)], tmp_path, processes=processes)


def choose_together(rank: int, store: str, said: str) -> None:
    """One of three processes: gathers features, and hears which exemplars the main one chose."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3, timeout=timedelta(seconds=60))
    rows = torch.arange(2 * rank, dtype=torch.float32).view(-1, 2) if rank else torch.empty(0, 0)
    gathered = distributed.gather_rows(rows)
    calls = []
    rehearsal.RULES.add("mine", lambda features, k, rng: calls.append(1) or features[:, 0].argsort()[:k])
    features, labels = (None if rank else np.array([[3.0], [2.0], [1.0], [9.0]])), np.array([0, 1, 0, 1])
    chosen = distributed.on_main(lambda: rehearsal.choose("mine", features, labels, k=1, seed=int))
    distributed.stop()
    found = [gathered and [part.tolist() for part in gathered], len(calls), [rows.tolist() for rows in chosen]]
    Path(said).write_text(json.dumps(found))


def test_the_main_process_gathers_features_and_chooses_for_all(tmp_path):
    files = [tmp_path / str(rank) for rank in range(3)]
    started = [SERVER.Process(target=choose_together, args=(r, str(tmp_path / "store"), str(f))) for r, f in enumerate(files)]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT)
    main, *others = [json.loads(file.read_text()) for file in files]
    assert main == [[[], [[0.0, 1.0]], [[0.0, 1.0], [2.0, 3.0]]], 2, [[2], [1]]]
    assert others == [[None, 0, [[2], [1]]]] * 2


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    finish([*FOUR, "--drop-path", "0.3", *folders(folder)], folder)
    return folder


@pytest.mark.parametrize("at_once", ["2", "none"])
def test_replicas_at_once(at_once, plain, tmp_path):
    finish([*FOUR, "--drop-path", "0.3", "--replicas-at-once", at_once, *folders(tmp_path)], tmp_path)
    assert_close(what_counts(tmp_path), what_counts(plain))


def test_augmented_in_bfloat16_on_one_and_two_processes(tmp_path):
    """Bit by bit where replicas go one by one: the sum of two gradients does not depend on who added them."""
    argv = [*THREE_TASKS, "--max-task", "2", "--amp", "bf16", "--aa", "rand-m9-mstd0.5-inc1", "--reprob", "0.5"]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        finish([*argv, *folders(folder)], folder, processes=processes)
    assert_equal(what_counts(tmp_path / "1"), what_counts(tmp_path / "2"))


def test_workers(tmp_path):
    """Bit by bit: what a worker does to an image hangs on nothing but the image's place."""
    augmented = [*FOUR, "--drop-path", "0", "--max-task", "2", "--reprob", "0.5", "--aa", "rand-m9-mstd0.5-inc1"]
    augmented += ["--augment", "pillow"]
    for workers in ("0", "2"):
        folder = tmp_path / workers
        finish([*augmented, "--num-workers", workers, *folders(folder)], folder)
    assert_equal(results(tmp_path / "0"), results(tmp_path / "2"))


def test_dist_eval(plain, tmp_path):
    finish([*FOUR, "--drop-path", "0.3", "--dist-eval", *folders(tmp_path)], tmp_path, processes=2)
    assert_close(what_counts(tmp_path), what_counts(plain))


def test_replicas_that_the_processes_do_not_divide(tmp_path):
    job = run([*TINY, "--replicas", "3", *folders(tmp_path)], tmp_path, processes=2)
    assert job.codes == [2, 2]
    assert "replicas: 3 cannot be shared by 2 processes; start 1, 3 of them" in job.said(0)
    assert "error" not in job.said(1)


def test_alone_everything_works_and_does_nothing():
    value = torch.tensor([1.0, 2.0])
    weight = torch.nn.Parameter(torch.ones(2))
    assert torch.equal(Reduction([weight]).backward((3 * weight).sum(), value), value)
    assert torch.equal(weight.grad, torch.tensor([3.0, 3.0]))
    assert torch.equal(distributed.sum_over_processes(value), torch.tensor([1.0, 2.0]))
    assert distributed.gather_rows(value[:, None])[0] is not None and len(distributed.gather_rows(value[:, None])) == 1
    assert distributed.from_main("x") == "x" and distributed.on_main(lambda: 3) == 3
    assert distributed.main_first(lambda first: first) is True
    assert list(distributed.replicas_of_this_process(3)) == [0, 1, 2]
    assert (distributed.rank(), distributed.nb_processes(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    distributed.share_buffers(torch.nn.BatchNorm1d(2))
    distributed.stop()


def test_replicas_of_a_process(monkeypatch):
    monkeypatch.setattr(distributed, "nb_processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert list(distributed.replicas_of_this_process(6)) == [3, 4, 5]
    with pytest.raises(OptionsError, match="start 1, 5 of them"):
        distributed.replicas_of_this_process(5)


def test_workers_of_a_process_share_the_cores_of_its_machine(monkeypatch):
    monkeypatch.setattr(distributed, "nb_processes", lambda: 4)  # on two machines
    for cores, processes, workers in ((8, 2, 4), (7, 2, 3), (2, 4, 1)):
        monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert distributed.workers_of_this_process() == workers
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert distributed.workers_of_this_process() == 2
    assert [distributed.workers_of_this_process(asked) for asked in (0, 3, 99)] == [0, 3, 99]


@pytest.mark.parametrize(
    "own, words, dead, said",
    [
        ("error: x", {0: "error: x", 2: "error: x"}, [], None),  # a lower rank says the same
        ("error: x", {0: "lost: y", 2: "error: x"}, [], "error: x"),
        (None, {0: "error: x", 2: "lost: y"}, [], None),  # who knows why speaks
        (None, {0: "lost: y", 2: "lost: y"}, [], None),
        (None, {2: "lost: y"}, [0], "error: rank 0 ended without a word (killed, or out of memory): z"),
        (None, {}, [0, 2], "error: ranks 0, 2 ended without a word (killed, or out of memory): z"),
        (None, {2: "lost: y"}, [], "error: rank 0 gave no answer in time: z"),
    ],
)
def test_who_speaks(own, words, dead, said, monkeypatch):
    class Notes:
        rank, size = 1, 3

        def leave(self, why):
            assert why == (own or "lost: z")
            return words, dead

    monkeypatch.setattr(watch.Notes, "of_job", Notes())
    assert watch.words_to_say(own, "z") == said


def test_lost_processes_are_told_in_short():
    with pytest.raises(LostProcess, match=r"^connection closed$"), watch.collective():
        raise RuntimeError("connection\n closed. This is typically caused by something else. Good luck!")


@pytest.mark.parametrize(
    "error", [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), torch.OutOfMemoryError("no room")]
)
def test_an_error_of_ones_own_is_no_lost_process(error):
    with pytest.raises(RuntimeError) as caught, watch.collective():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_that_add_up_in_a_fixed_order(deterministic, monkeypatch):
    """Strictly: with warnings alone torch would leave fused attention as it is."""
    strict = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only=False: strict.append((mode, warn_only)))
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert distributed.start("cuda", deterministic=deterministic) == torch.device("cuda", 0)
    assert strict == [(deterministic, False)]
    assert torch.backends.cudnn.benchmark is not deterministic and torch.backends.cudnn.deterministic is deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory is False
