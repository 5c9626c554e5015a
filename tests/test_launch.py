"""What a failure leaves: one line, and an exit code."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from jobs import ROOT, TINY, checkpoints, folders, logs, run
from made_up import write_image_tree
from torch.distributed import HashStore

import main
from continual.errors import CheckpointError, DataError, NonFiniteLoss, OptionsError, Preempted, Refused
from continual.jobs import distributed, launch, watch
from continual.options import parse


@pytest.fixture(autouse=True)
def no_signals(monkeypatch):
    monkeypatch.setattr(watch.StopSignal, "__init__", lambda self: None)


def launched(monkeypatch, tmp_path, error):
    def train(part, here):
        if error is not None:
            raise error

    monkeypatch.setattr(main, "train", train)
    options = parse(["--log-path", str(tmp_path / "l"), "--output-basedir", str(tmp_path / "c"), "--device", "cpu"])
    return main.main(options)


@pytest.mark.parametrize(
    "error, code",
    [
        (None, 0),
        (OptionsError("why"), 2),
        (DataError("why"), 3),
        (CheckpointError("why"), 4),
        (NonFiniteLoss("why"), 5),
        (Preempted("why"), 75),
        (Refused("why"), 1),
    ],
)
def test_exit_codes(error, code, monkeypatch, tmp_path, capsys):
    assert launched(monkeypatch, tmp_path, error) == code
    said = capsys.readouterr().err
    assert said == ("" if error is None else "error: why\n")


def test_an_operation_that_cuda_has_no_ordered_kernel_for(monkeypatch, tmp_path, capsys):
    told = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."
    assert launched(monkeypatch, tmp_path, RuntimeError(told)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: deterministic: adaptive_avg_pool2d_backward_cuda has no kernel") and line.endswith("false")


def test_what_train_sh_is_told(monkeypatch, tmp_path, capsys):
    """The exit code of what ended on purpose comes by its file alone: torchrun would add a page to the one line."""
    monkeypatch.setenv(launch.JOB, str(tmp_path))
    assert launched(monkeypatch, tmp_path, None) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "l", "pid-0"]
    assert launched(monkeypatch, tmp_path, NonFiniteLoss("why")) == 0
    assert (tmp_path / "exit").read_text() == "5\nerror: why\n"
    assert launched(monkeypatch, tmp_path, ValueError("odd")) == 1
    assert (tmp_path / "exit").read_text() == "1\nValueError: odd\n"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")  # several machines
    assert launched(monkeypatch, tmp_path, NonFiniteLoss("why")) == 5
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    (tmp_path / "exit").unlink()
    (tmp_path / "exit").mkdir()  # cannot be written
    assert launched(monkeypatch, tmp_path, NonFiniteLoss("why")) == 5


@pytest.mark.parametrize(
    "environment, code, told",
    [
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}, 1, "error: the processes of this job did not find each other: "),
        ({"MASTER_ADDR": "127.0.0.1"}, 2, "error: the environment does not describe a process group: "),
    ],
)
def test_no_other_process(environment, code, told, tmp_path):
    argv = [*TINY, *folders(tmp_path), "--process-timeout", "1"]
    job = run(argv, tmp_path, environment={"RANK": "1", "WORLD_SIZE": "2", **environment})
    assert job.codes == [code] and job.said().splitlines()[-1].startswith(told)
    assert "Traceback" not in job.said()


def test_nobody_reads(tmp_path):
    argv = [sys.executable, "main.py", *TINY, *folders(tmp_path), "--max-task", "1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "error: nobody reads the output any more\n"
    assert process.returncode == 1


def test_too_few_open_files(tmp_path):
    """For so many workers; the loader that has begun by half says no more about it."""
    argv = [sys.executable, "-W", "ignore", "main.py", *TINY, *folders(tmp_path)]
    argv += ["--augment", "pillow", "--num-workers", "12"]
    done = subprocess.run(["bash", "-c", 'ulimit -n 40; exec "$@"', "bash", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: data loading failed: ") and "Too many open files" in done.stderr
    assert "--num-workers 12 " in done.stderr and done.stderr.count("\n") == 1


def test_disk_full_anywhere(monkeypatch, tmp_path, capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "evaluations.jsonl")
    assert launched(monkeypatch, tmp_path, full) == 4
    assert capsys.readouterr().err == "error: could not write evaluations.jsonl: No space left on device\n"


@pytest.mark.parametrize(
    "error, code", [(ValueError("odd"), 1), (OSError(errno.EACCES, "denied"), 1), (KeyboardInterrupt(), 130)]
)
def test_what_nobody_expected(error, code, monkeypatch, tmp_path, capsys):
    assert launched(monkeypatch, tmp_path, error) == code
    said = capsys.readouterr().err
    assert said == "interrupted\n" if code == 130 else said.startswith("Traceback")


@pytest.mark.parametrize("error, again", [(Preempted("why"), 75), (NonFiniteLoss("why"), 5), (ValueError("odd"), 0)])
def test_a_job_is_not_started_again_in_vain(error, again, monkeypatch, tmp_path, capsys):
    """What was refused would be refused again; another failure may not."""
    monkeypatch.setattr(distributed, "_agents_store", HashStore())
    assert launched(monkeypatch, tmp_path, error) == (again or 1)
    capsys.readouterr()
    assert launched(monkeypatch, tmp_path, None) == again
    assert capsys.readouterr().err == ""


def test_a_workers_error_is_one_line():
    wrapped = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\ncontinual.errors.DataError: cannot read a.jpg (index 3)\n'
    )
    assert str(DataError(wrapped)) == "cannot read a.jpg (index 3)"
    assert str(DataError("plain")) == "plain" and str(DataError("")) == ""


@pytest.mark.parametrize("workers, processes", [(0, 1), (1, 1), (0, 2)])
def test_corrupt_image(workers, processes, tmp_path):
    data = tmp_path / "data"
    write_image_tree(data, ["ant", "bee", "cat", "dog"], 6, 2, 8)
    path = data / "train" / "bee" / "bee_3.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    argv = [*TINY, *folders(tmp_path), "--data-set", "folder", "--data-path", str(data), "--num-workers", str(workers)]
    job = run(argv, tmp_path, processes=processes)
    assert job.codes[0] in (1, 3) and 3 in job.codes
    (line,) = [line for line in job.said().splitlines() if "error" in line]
    assert "error: cannot read the image" in line and str(path) in line and "(index 9)" in line
    assert "Traceback" not in job.said()


LATIN = os.fsdecode(b"caf\xe9")  # a name of another time


@pytest.mark.parametrize("processes", [1, 2])
def test_names_that_are_not_utf8(processes, tmp_path):
    """A missing folder is exit 3 whatever it is called, in the status, too."""
    argv = [*TINY, *folders(tmp_path / LATIN), "--data-set", "folder", "--data-path", str(tmp_path / LATIN / "gone")]
    told = {"DYTOX_JOB": str(tmp_path), "GROUP_WORLD_SIZE": "2"}  # as train.sh does, but with the codes told
    job = run(argv, tmp_path, processes=processes, environment=told)
    assert job.codes == [3] * processes, job.said()
    (line,) = [line for line in job.said().splitlines() if "error" in line]
    assert "/caf\\xe9/gone" in line
    code, reason = (tmp_path / "exit").read_text().splitlines()
    assert code == "3" and "/caf\\xe9/gone" in reason
    status = json.loads((logs(tmp_path / LATIN) / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["where"]) == ("failed", 3, "preparing")
    assert status["message"].startswith("DataError: ") and "/caf\\xe9/gone" in status["message"]
    assert parse(["--options", str(logs(tmp_path / LATIN) / "options.yaml")]).data.data_path.endswith(f"{LATIN}/gone")


def test_a_run_in_a_folder_that_is_not_utf8(tmp_path):
    """Its images too; and a corrupt one is named from a loading worker."""
    data = tmp_path / LATIN / "data"
    write_image_tree(data, [LATIN, "bee", "cat", "dog"], 6, 2, 8)
    argv = [*TINY, *folders(tmp_path / LATIN), "--data-set", "folder", "--data-path", str(data), "--num-workers", "1"]
    few = ["--memory-size", "8", "--batch-size", "4"]
    assert run([*argv, *few, "--max-task", "1"], tmp_path).codes == [0]
    path = data / "train" / LATIN / f"{LATIN}_3.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    job = run(["--resume", str(checkpoints(tmp_path / LATIN)), "--max-task", "2"], tmp_path)
    assert job.codes == [3], job.said()
    last = job.said().splitlines()[-1]
    assert last.startswith("error: cannot read the image ") and "caf\\xe9_3.JPEG (index " in last
    assert run(["--resume", str(tmp_path / LATIN / "nowhere.pt")], tmp_path).codes == [4]
    assert run(["--options", str(tmp_path / LATIN / "nowhere.yaml")], tmp_path).codes == [2]


def test_missing_data_with_several_processes(tmp_path):
    argv = [*TINY, *folders(tmp_path), "--data-set", "folder", "--data-path", str(tmp_path / "nowhere")]
    job = run(argv, tmp_path, processes=2)
    assert job.codes == [3, 3]
    (line,) = [line for line in job.said().splitlines() if "error" in line]
    assert "looked for one folder per class in" in line and "nowhere" in line


def test_memory_too_small(tmp_path):
    job = run([*TINY, *folders(tmp_path), "--memory-size", "9"], tmp_path)
    assert job.codes == [2]
    assert "memory_size: 9 is too small for 10 classes: at least 10, or 0 for no memory" in job.said()


@pytest.mark.parametrize("size", ["1", "7", "100000"])
def test_any_batch_size_trains(size, tmp_path):
    """Odd batches under mixup, batches of one, batches larger than the data; fewer than 256 images."""
    data = tmp_path / "data"
    write_image_tree(data, ["ant", "bee", "cat", "dog"], 9, 2, 8)
    argv = [*TINY, *folders(tmp_path), "--data-set", "folder", "--data-path", str(data), "--batch-size", size]
    job = run([*argv, "--cutmix", "1", "--memory-size", "8"], tmp_path)
    assert job.codes == [0], job.said()
    assert "clf" in job.said()


@pytest.mark.parametrize(
    ("argv", "variable", "device", "expected"),
    [
        ([], None, "cpu", 1),
        ([], "2, by train.sh", "cpu", 1),
        (["--embed-dim", "1024"], None, "cpu", 5),
        (["--batch-size", "500"], None, "cpu", 5),
        ([], "4", "cpu", 5),
        ([], None, "cuda", 5),
        (["--model", "timm:test_resnet"], None, "cpu", 5),
    ],
)
def test_small_models_take_one_thread(argv, variable, device, expected, monkeypatch):
    threads = [5]
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable[0])
        if "train.sh" in variable:
            monkeypatch.setenv(launch.THREADS, "chosen")
    launch.spare_threads(torch.device(device), parse([*TINY, "--embed-dim", "64", *argv]))
    assert threads[-1] == expected
