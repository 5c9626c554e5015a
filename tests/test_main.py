"""The experiment end to end: what a command computes and leaves behind, on real digits and on made-up data sets."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jobs import assert_close, what_counts
from made_up import write_cifar100, write_image_tree

import main
from continual.datasets import IMAGENET100_WNIDS
from continual.jobs import watch
from continual.options import MAY_DIFFER, flat, parse
from continual.runs.experiment import Here, benchmark_of
from continual.runs.run import Run
from continual.runs.series import Series
from continual.training import engine

ROOT = Path(main.__file__).parent
DIGITS = ("--options", "options/data/digits_2-2.yaml", "options/model/digits_dytox.yaml")
SMALL = ("--embed-dim", "24", "--num-heads", "4", "--depth", "2", "--local-up-to-layer", "1", "--num-workers", "0")
SHORT = ("--base-epochs", "6", "--epochs", "5", "--finetuning-epochs", "2", "--warmup-epochs", "0", "--batch-size", "16")
SHORT += ("--lr", "0.1", "--incremental-lr", "0.1", "--eval-every", "4", "--max-task", "2")
PUBLISHED = {"task", "epoch", "acc", "avg_acc", "forgetting", "acc_per_task", "bwt", "train_lr", "train_loss"}
PUBLISHED |= {"test_acc1", "test_acc5", "test_loss", "mean_acc5", "n_parameters"}


def shell(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed; what it printed."""
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_process(*argv: str) -> None:
    """What main.py does with this command line, in this process."""
    here, series = Here(torch.device("cpu"), watch.StopSignal()), Series(parse(argv))
    for part in series.to_evaluate() if series.options.run.eval else series.to_train():
        part.summary = main.evaluate_only(part, here) if series.options.run.eval else main.train(part, here)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def places(folder: Path) -> tuple[str, ...]:
    return ("--log-path", str(folder / "logs"), "--output-basedir", str(folder / "checkpoints"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


def logs_of(folder: Path) -> Path:
    return only(folder / "logs", "evaluations.jsonl").parent


def checkpoints_of(folder: Path) -> Path:
    return folder / "checkpoints" / logs_of(folder).relative_to(folder / "logs")


def newest_state(folder: Path) -> dict:
    path = max(checkpoints_of(folder).glob("*.pt"))
    return torch.load(path, weights_only=True)


# ------------------------------------------------------------------------------------------- digits, by the command line


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> tuple[Path, str]:
    """Two tasks of digits, trained by train.sh in one process: the folder it wrote to, and what it printed."""
    folder = tmp_path_factory.mktemp("digits")
    where = ("--data-path", str(folder / "a 'quoted' $HOME; folder"), "--name", "two")
    printed = shell("bash", "train.sh", "cpu", *DIGITS, *SMALL, *SHORT, *places(folder), *where, cwd=ROOT)
    return folder, printed


def test_what_a_run_prints(digits):
    _, printed = digits
    assert "digits: 4 classes in 2 tasks (2 each)" in printed and "2 replica(s) on 1 process(es), cpu, float32" in printed
    assert "memory: 100 exemplars of 4 classes, at most 25 of each" in printed
    assert "Task 1/2 learned, 2 classes seen" in printed and "Task 2/2 learned, 4 classes seen" in printed
    for figure in ("average incremental accuracy", "forgetting", "backward transfer", "task known", "exemplars kept 100"):
        assert figure in printed


def test_what_a_run_leaves(digits):
    folder, _ = digits
    logs = logs_of(folder)
    assert re.fullmatch(r"digits/2-2/\d\d-\d\d/week-\d/\d\d-\d\d-\d\d-two", logs.relative_to(folder / "logs").as_posix())

    evaluations = lines(logs / "evaluations.jsonl")
    told = [(each["task"], each["phase"], each["epoch"], each["final"]) for each in evaluations]
    expected = [(0, "training", 3, False), (0, "training", 5, True), (1, "training", 3, False), (1, "finetuning", 1, True)]
    assert told == expected  # epochs count from 0
    assert all(set(each) >= PUBLISHED for each in evaluations)
    assert evaluations[1]["acc"] > 80  # zeros and ones, after a few steps
    last = evaluations[-1]
    assert len(last["acc_per_task"]) == 2 and last["n_exemplars"] == 100
    assert set(last) >= {"loss_clf", "acc_known", "acc_known_per_task"} and "loss_kd" not in last  # finetuning: no teacher
    assert set(evaluations[2]) >= {"loss_clf", "loss_kd", "loss_div"}

    summary = json.loads((logs / "summary.json").read_text())
    assert summary["acc"] == last["acc"] and summary["avg_acc"] == last["avg_acc"]
    assert [len(row) for row in summary["matrix"]] == [1, 2] and summary["matrix"][1] == last["acc_per_task"]
    assert summary["n_exemplars"] == 100 and summary["n_parameters"] == last["n_parameters"] and summary["time"] > 0
    assert json.loads((logs / "status.json").read_text())["status"] == "done"

    names = sorted(path.name for path in checkpoints_of(folder).glob("*.pt"))
    assert len([name for name in names if "task-1-finished" in name or "task-2-finished" in name]) == 2
    state = newest_state(folder)
    assert state["position"]["task"] == 2 and state["model"]["classes"] == [2, 2]
    assert torch.bincount(state["memory"]["y"]).tolist() == [25, 25, 25, 25]


def test_the_kept_options_repeat_the_run(digits, tmp_path, monkeypatch):
    """From whatever folder."""
    folder, _ = digits
    kept = logs_of(folder) / "options.yaml"
    options, stored = parse(["--options", str(kept)]), parse([*DIGITS, *SMALL, *SHORT])
    differing = {key for key, value in flat(options).items() if value != flat(stored)[key]} - MAY_DIFFER
    assert not differing and options.data.data_path.endswith("a 'quoted' $HOME; folder")
    monkeypatch.chdir(tmp_path)
    in_process("--options", str(kept), *places(tmp_path))
    assert (logs_of(tmp_path) / "evaluations.jsonl").read_bytes() == (logs_of(folder) / "evaluations.jsonl").read_bytes()


def test_two_machines_give_what_one_gives(tmp_path):
    """Over some steps; in long training the last bits, in which sums in another order differ, grow on any one machine, too."""
    few = ["bash", "train.sh", "cpu", *DIGITS, *SMALL, "--debug", "--max-task", "2", "--eval-every", "1"]
    few += ["--memory-size", "20"]  # the more are herded, the more often two are so nearly as good that rounding decides
    in_process(*few[3:], *places(tmp_path / "one"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ThreadPoolExecutor(2) as machines:
        first, second = machines.map(
            lambda rank: shell(*few, *places(tmp_path / "two"), cwd=ROOT, **job, NODE_RANK=str(rank)), range(2)
        )
    assert "2 replica(s) on 2 process(es)" in first and second.strip() == ""
    assert_close(what_counts(tmp_path / "two"), what_counts(tmp_path / "one"))


@pytest.fixture
def copied(digits, tmp_path) -> Path:
    """A copy of that run, which a test may write to."""
    for side in ("logs", "checkpoints"):
        shutil.copytree(digits[0] / side, tmp_path / side)
    return tmp_path


def test_a_task_is_trained_again(copied):
    evaluations = logs_of(copied) / "evaluations.jsonl"
    before = evaluations.read_bytes()
    weights = newest_state(copied)["model"]["weights"]
    evaluations.write_bytes(before + b"what an interrupted run left\n")
    in_process("--resume", str(checkpoints_of(copied)), "--start-task", "1")
    assert evaluations.read_bytes() == before
    assert all(torch.equal(value, weights[name]) for name, value in newest_state(copied)["model"]["weights"].items())

    in_process("--resume", str(checkpoints_of(copied)), "--max-task", "3")  # and goes on where it had ended
    assert evaluations.read_bytes().startswith(before)
    assert [each["task"] for each in lines(evaluations) if each["final"]] == [0, 1, 2]


def test_evaluation_alone_changes_nothing(copied, capsys):
    files = [logs_of(copied) / "evaluations.jsonl", logs_of(copied) / "summary.json", *checkpoints_of(copied).glob("*.pt")]
    before = {path: path.read_bytes() for path in files}
    last = lines(files[0])[-1]
    capsys.readouterr()
    in_process("--resume", str(checkpoints_of(copied)), "--eval")
    printed = capsys.readouterr().out
    expected = f"all classes seen: {last['acc']:.2f} with the task unknown, {last['acc_known']:.2f} with it known"
    assert expected in printed and "clf" not in printed
    assert {path: path.read_bytes() for path in files} == before


# ------------------------------------------------------------------------------------------------------ other data sets


def test_imagenet100_and_its_memory_on_another_machine(tmp_path):
    data, moved = tmp_path / "here", tmp_path / "elsewhere" / "data"
    write_image_tree(data, IMAGENET100_WNIDS.read_text().split(), 3, 1, (30, 24))
    files = ("--options", "options/data/imagenet100_10-10.yaml", "options/data/imagenet100_order1.yaml")
    size = (
        "--input-size",
        "48",
        "--batch-size",
        "4",
        "--incremental-batch-size",
        "4",
        "--replicas",
        "1",
        "--memory-size",
        "100",
    )
    command = (*files, "options/model/imagenet_dytox.yaml", *SMALL, *size, "--debug")
    in_process(*command, *places(tmp_path), "--data-path", str(data), "--max-task", "2")
    memory = newest_state(tmp_path)["memory"]
    assert len(memory["x"]) == 20 * 3  # a quota of 5, but 3 images of each class
    assert all(not Path(path).is_absolute() and (data / path).is_file() for path in memory["x"])
    order = parse(command).data.class_order
    wnids = IMAGENET100_WNIDS.read_text().split()
    assert {path.split("/")[1] for path in memory["x"]} == {wnids[label] for label in order[:20]}

    moved.parent.mkdir()
    shutil.move(data, moved)
    in_process("--resume", str(checkpoints_of(tmp_path)), "--data-path", str(moved), "--max-task", "3")
    finals = [each for each in lines(logs_of(tmp_path) / "evaluations.jsonl") if each["final"]]
    assert [len(each["acc_per_task"]) for each in finals] == [1, 2, 3]
    after = newest_state(tmp_path)["memory"]
    assert after["x"][: len(memory["x"])] == memory["x"] and len(after["x"]) == 30 * 3
    assert all((moved / path).is_file() for path in after["x"])


def test_cifar100(tmp_path):
    write_cifar100(tmp_path, nb_per_class=4)
    files = (
        "--options",
        "options/data/cifar100_10-10.yaml",
        "options/data/cifar100_order1.yaml",
        "options/model/cifar_dytox.yaml",
    )
    short = ("--batch-size", "4", "--incremental-batch-size", "4", "--max-task", "2", "--debug")
    in_process(*files, *SMALL, *short, *places(tmp_path), "--data-path", str(tmp_path), "--memory-size", "200")
    evaluations = lines(logs_of(tmp_path) / "evaluations.jsonl")
    assert evaluations[-1]["n_exemplars"] == 20 * 4 and "cifar100" in logs_of(tmp_path).as_posix()
    state = newest_state(tmp_path)
    assert state["model"]["classes"] == [10, 10] and state["memory"]["x"].shape == (80, 32, 32, 3)
    assert torch.equal(torch.bincount(state["memory"]["y"]), torch.full((20,), 4))


def test_a_folder_of_ones_own(tmp_path):
    write_image_tree(tmp_path / "data", ["ant", "bee", "cat", "dog", "eel"], 6, 2, (20, 30), test_folder="test")
    argv = ("--data-set", "folder", "--data-path", str(tmp_path / "data"), "--initial-increment", "2", "--increment", "1", "2")
    sizes = (*SMALL, "--input-size", "16", "--patch-size", "4", "--batch-size", "4", "--replicas", "1", "--memory-size", "10")
    in_process(*argv, *sizes, *places(tmp_path), "--dytox", "--class-attention", "--ind-clf", "1-1", "--debug")
    evaluations = lines(logs_of(tmp_path) / "evaluations.jsonl")
    assert len(evaluations[-1]["acc_per_task"]) == 3
    state = newest_state(tmp_path)
    assert state["model"]["classes"] == [2, 1, 2] and len(state["memory"]["x"]) == 10
    assert set(state["memory"]["x"][:2]) <= {f"train/ant/ant_{i}.JPEG" for i in range(6)}


def test_missing_data_ends_with_its_exit_code(tmp_path, capsys):
    argv = ["--data-set", "imagenet100", "--data-path", str(tmp_path / "nothing"), *places(tmp_path), "--device", "cpu"]
    assert main.main(parse(argv)) == 3
    told = capsys.readouterr().err.strip().splitlines()
    assert any(str(tmp_path / "nothing") in line for line in told)


def test_a_validation_split_stays_out_of_training_and_memory(tmp_path, monkeypatch, capsys):
    seen, real = [], engine.train_one_epoch

    def noting(objective, steps, *args, **named):
        seen.append(steps.loader.dataset.samples.x)
        return real(objective, steps, *args, **named)

    monkeypatch.setattr(engine, "train_one_epoch", noting)
    argv = (*DIGITS, *SMALL, "--debug", "--max-task", "3", "--validation", "0.3", "--seed", "3")
    in_process(*argv, *places(tmp_path))
    kept = benchmark_of(parse(argv))
    asked = f"{len(kept.train_samples.y)} training and {len(kept.test_samples.y)} test images"
    assert asked in capsys.readouterr().out

    def contents(x) -> set[bytes]:
        return {np.asarray(image).tobytes() for image in x}

    held = contents(kept.test_samples.x)
    memory = contents(newest_state(tmp_path)["memory"]["x"])
    trained = set.union(*map(contents, seen))
    assert len(memory) > 50 and memory <= trained and not held & trained
    assert trained == contents(kept.train_samples.x[kept.train_samples.t < 3])


# --------------------------------------------------------------------------------------------------------------- series


def test_several_seeds_in_one_command(tmp_path, capsys):
    argv = (*DIGITS, *SMALL, "--debug", "--max-task", "2")
    in_process(*argv, *places(tmp_path / "both"), "--seeds", "0", "1")
    printed = capsys.readouterr().out
    assert "Mean ± standard deviation over 2 runs" in printed
    found = only(tmp_path / "both" / "logs", "series.json")
    figures = json.loads(found.read_text())
    accuracies = []
    for seed in (0, 1):
        alone = tmp_path / f"alone-{seed}"
        in_process(*argv, *places(alone), "--seed", str(seed))
        one = found.parent / f"seed-{seed}"
        assert (one / "evaluations.jsonl").read_bytes() == (logs_of(alone) / "evaluations.jsonl").read_bytes()
        accuracies.append(json.loads((one / "summary.json").read_text())["avg_acc"])
    assert figures["avg_acc"]["values"] == accuracies and accuracies[0] != accuracies[1]
    assert figures["avg_acc"]["mean"] == pytest.approx(np.mean(accuracies), abs=0.01)
    assert figures["avg_acc"]["std"] == pytest.approx(np.std(accuracies, ddof=1), abs=0.01)
    assert f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}" in printed


def test_several_class_orders_each_start_from_the_options(tmp_path):
    orders = tmp_path / "orders.yaml"
    orders.write_text("class_order: [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]\n")
    in_process(*DIGITS, str(orders), *SMALL, "--debug", "--max-task", "2", *places(tmp_path))
    first, second = (lines(only(tmp_path / "logs", f"*order-{i}-*/evaluations.jsonl")) for i in (1, 2))
    assert [each["train_lr"] for each in first] == [each["train_lr"] for each in second]
    assert [each["n_parameters"] for each in first] == [each["n_parameters"] for each in second]
    assert [each["test_loss"] for each in first] != [each["test_loss"] for each in second]


# ----------------------------------------------------------------------------------------------------------------- rest


def test_parameters_are_counted_whatever_is_frozen():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1, bias=False))
    model[0].requires_grad_(False)
    assert Run.nb_parameters(SimpleNamespace(model=model)) == 3 * 4 + 4 + 4
