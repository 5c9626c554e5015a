"""Whatever ends a run at whatever moment: resumed, it comes out bit by bit as one that nothing ever happened to."""

import contextlib
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import faults
import pytest
from campaign import campaign
from jobs import (
    ROOT,
    TIMEOUT,
    TINY,
    Job,
    assert_close,
    assert_equal,
    assert_same_results,
    bash,
    checkpoints,
    faulty,
    finish,
    folders,
    logs,
    run,
    states,
    wait_for,
)
from test_board import SHOWN, points
from torch.distributed import TCPStore

PILLOW = ["--augment", "pillow"]  # so that there is something for workers to do

# Longer than any test waits, with a worker of data loading.
LONG = [*TINY, "--no-debug", "--epochs", "1000", "--base-epochs", "1000", *PILLOW, "--num-workers", "1"]

# Faults one after the other, each met by what resumed after the one before, from the beginning of a run to its end.
KILLED_AT = (
    "rename:1",  # before its first checkpoint
    "data:3",
    "manifest:3",
    "evaluation:5",
    "backward:6",
    "exemplars:4",
    "finetuning:1",
    "writing:1",
    "rename:2",
    "end:1",
)
STOPPED_AT = [  # and where the run then is
    ("data:1,term:rename:4,term:manifest:2", "task-1-training-epoch-1-step-1"),  # and again while it saves
    ("evaluation:2", "task-1-training-epoch-1-step-2"),  # the second of three batches, after the epoch's two steps
    ("writing:1", "task-1-training-epoch-2-step-1"),
    ("exemplars:4", "task-1-remembering-epoch-1-step-0"),
    ("evaluation:1", "task-1-evaluating-epoch-1-step-0"),
    ("task change:1", "task-2-training-epoch-1-step-0"),
    ("step:1", "task-2-training-epoch-1-step-1"),
    ("evaluation:3", "task-2-training-epoch-1-step-2"),
    ("data:1", "task-2-training-epoch-2-step-1"),
    ("exemplars:4", "task-2-remembering-epoch-1-step-0"),
    ("finetuning:1", "task-2-finetuning-epoch-1-step-1"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run on so many processes that nothing happened to."""
    done = {}

    def of(processes, *more):
        key = processes, more
        if key not in done:
            done[key] = tmp_path_factory.mktemp("undisturbed")
            finish([*SHOWN, *more, *folders(done[key])], done[key], processes=processes)
        return done[key]

    return of


def resume(folder, **how):
    return finish(["--resume", str(checkpoints(folder))], folder, **how)


def status(folder):
    return json.loads((logs(folder) / "status.json").read_text())


def test_killed_anywhere(tmp_path, undisturbed):
    """And every point of TensorBoard is there once."""
    for place, job in faulty("kill", KILLED_AT, tmp_path, SHOWN):
        assert job.codes == [-signal.SIGKILL], (place, job.said())
        assert status(tmp_path)["status"] == "running" and "warning: TensorBoard" not in job.said()
    assert_same_results(tmp_path, undisturbed(1))
    assert points(tmp_path) == points(undisturbed(1))


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random(processes):
    """A few of the kills of campaign.py, which makes more when it is called with a number of them."""
    campaign(3 - processes, processes=processes)


def test_killed_on_one_of_two_processes(tmp_path, undisturbed):
    places = ("forward:3:rank1", "step:3:rank0", "exemplars:2:rank1", "writing:2:rank0")
    for place, job in faulty("kill", places, tmp_path, processes=2):
        killed = int(place[-1])
        assert job.codes[killed] == -signal.SIGKILL, (place, job.said())
        assert job.codes[1 - killed] == 1
        assert f"rank {killed} ended without a word" in job.said(1 - killed)
        assert "Traceback" not in job.said()
    assert_same_results(tmp_path, undisturbed(2))


def test_resumed_on_four_processes(tmp_path):
    """Sums of more than two processes are rounded by their layout, which must not change when a run is resumed."""
    more = ["--replicas", "4"]
    finish([*TINY, *folders(tmp_path / "a"), *more], tmp_path, processes=4)
    job = run([*TINY, *folders(tmp_path / "b"), *more], tmp_path, processes=4, fault="term:step:2:rank3")
    assert job.codes == [75] * 4
    finish(["--resume", str(checkpoints(tmp_path / "b"))], tmp_path, processes=4)
    assert_same_results(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_killed_under_mixed_precision(amp, tmp_path):
    """With augmentations of every kind, and replicas in one batch; a loss scale is part of what goes on."""
    mixed = [*TINY, "--amp", amp, "--replicas-at-once", "none", "--aa", "rand-m9-mstd0.5-inc1", "--reprob", "0.5"]
    finish([*mixed, *folders(tmp_path / "a")], tmp_path)
    assert run([*mixed, *folders(tmp_path / "b")], tmp_path, fault="kill:backward:11").codes == [-signal.SIGKILL]
    resume(tmp_path / "b")
    assert_same_results(tmp_path / "b", tmp_path / "a")


@pytest.mark.skipif("DYTOX_COMPILE" not in os.environ, reason="takes minutes; DYTOX_COMPILE=1 asks for it")
def test_killed_while_compiled(tmp_path):
    """With torch's own compiler: bit by bit after a resume, and the same on two processes up to rounding."""
    compiled = [
        *TINY,
        "--max-task",
        "1",
        "--compile",
        "--amp",
        "bf16",
        "--no-debug",
        "--base-epochs",
        "2",
        "--batch-size",
        "16",
    ]
    for name, processes in (("a", 1), ("two", 2)):
        job = finish([*compiled, *folders(tmp_path / name)], tmp_path, processes=processes)
        assert "compile: it does not work" not in job.said()
    assert run([*compiled, *folders(tmp_path / "b")], tmp_path, fault="kill:backward:7").codes == [-signal.SIGKILL]
    resume(tmp_path / "b")
    assert_same_results(tmp_path / "b", tmp_path / "a")
    weights = [states(checkpoints(tmp_path / name))["task-1-finished"]["model"]["weights"] for name in ("a", "two")]
    assert_close(*weights)


def test_killed_after_the_classifiers_were_reset(tmp_path):
    reset = [*TINY, "--finetuning-resetclf"]
    finish([*reset, *folders(tmp_path / "a")], tmp_path)
    assert run([*reset, *folders(tmp_path / "b")], tmp_path, fault="kill:finetuning:1").codes == [-signal.SIGKILL]
    resume(tmp_path / "b")
    assert_same_results(tmp_path / "b", tmp_path / "a")


def test_killed_twice_while_cleaning_up(tmp_path, undisturbed):
    few = ["--keep-checkpoints", "1"]
    assert run([*TINY, *folders(tmp_path), *few], tmp_path, fault="kill:cleaning:1").codes == [-signal.SIGKILL]
    again = run(["--resume", str(checkpoints(tmp_path))], tmp_path, fault="kill:cleaning:2")
    assert again.codes == [-signal.SIGKILL]
    resume(tmp_path)
    left, wanted = states(checkpoints(tmp_path)), states(checkpoints(undisturbed(1)))
    assert list(left) == ["task-1-finished", "task-2-finished"]
    assert_equal(left, {name: wanted[name] for name in left})
    names = {path.name.partition(".")[0] for path in checkpoints(tmp_path).glob("0*")}
    assert len(names) == 2  # no halves of pairs


def test_running_statistics_of_two_processes(tmp_path):
    """Frozen in eval mode, a network with batch norm uses them: those of the main process, resumed or not."""
    frozen = [*TINY, "--model", "timm:test_resnet", "--input-size", "32", "--rehearsal", "random"]
    frozen += ["--freeze-ft", "sab", "--freeze-eval"]
    finish([*frozen, *folders(tmp_path / "a")], tmp_path, processes=2)
    job = run([*frozen, *folders(tmp_path / "b")], tmp_path, processes=2, fault="term:finetuning:1:rank1")
    assert job.codes == [75, 75], job.said()
    finish(["--resume", str(checkpoints(tmp_path / "b"))], tmp_path, processes=2)
    assert_same_results(tmp_path / "b", tmp_path / "a")


def test_killed_with_its_workers_and_resumed_at_once(tmp_path, undisturbed):
    """The workers live on for some seconds; the run's lock must not."""
    job = run([*TINY, *PILLOW, *folders(tmp_path), "--num-workers", "2"], tmp_path, fault="kill:step:6")
    assert job.codes == [-signal.SIGKILL]
    resume(tmp_path)
    assert_same_results(tmp_path, undisturbed(1, *PILLOW))


def test_killed_before_the_first_checkpoint(tmp_path, undisturbed):
    job = run([*TINY, *folders(tmp_path)], tmp_path, fault="kill:writing:1")
    assert job.codes == [-signal.SIGKILL]
    assert list(checkpoints(tmp_path).glob(".*.tmp"))
    job = resume(tmp_path)
    assert "ended before its first checkpoint: it begins from the start" in job.said()
    assert not list(checkpoints(tmp_path).glob(".*.tmp"))
    assert_same_results(tmp_path, undisturbed(1))


def test_asked_to_stop(tmp_path, undisturbed):
    """A step of training, or a batch of anything else, is the most that is done before saving."""
    jobs = faulty("term", [place for place, _ in STOPPED_AT], tmp_path, SHOWN)
    for (_, where), (place, job) in zip(STOPPED_AT, jobs, strict=True):
        assert job.codes == [75], (place, job.said())
        assert status(tmp_path)["status"] == "preempted" and status(tmp_path)["exit_code"] == 75
        last = job.said().strip().splitlines()[-1]
        assert last.startswith(f"error: stopped at {where} and saved") and str(checkpoints(tmp_path)) in last
    assert_same_results(tmp_path, undisturbed(1))
    assert points(tmp_path) == points(undisturbed(1))  # also of a resumed evaluation, which begins with the means of its epoch


def test_asked_to_stop_at_the_very_end(tmp_path, undisturbed):
    assert run([*TINY, *folders(tmp_path)], tmp_path, fault="term:task change:2").codes == [0]
    assert_same_results(tmp_path, undisturbed(1))


def test_one_of_two_processes_asked_to_stop(tmp_path, undisturbed):
    for place, job in faulty("term", ("evaluation:2:rank1", "exemplars:4:rank0", "step:3:rank1"), tmp_path, processes=2):
        assert job.codes == [75, 75], (place, job.said())
        assert "stopped at" in job.said(0) and "stopped at" not in job.said(1)
        assert status(tmp_path)["status"] == "preempted"
    assert_same_results(tmp_path, undisturbed(2))


def test_asked_to_stop_with_its_workers(tmp_path):
    """A scheduler signals every process of a job: the workers must go on until their process has saved."""
    argv = [*LONG, *folders(tmp_path)]
    job = Job(argv, tmp_path)
    wait_for(lambda: list(tmp_path.glob("checkpoints/**/*epoch-3-step-0.json")))
    pid = job.processes[0].pid
    signalled = set()

    def four_signalled():
        """One is of training, and every evaluation has its own; each as soon as it is there."""
        for worker in children(pid):
            with contextlib.suppress(ProcessLookupError):  # its evaluation has ended
                os.kill(worker, signal.SIGTERM)
                signalled.add(worker)
        return len(signalled) >= 4

    wait_for(four_signalled, pause=0.001)
    os.kill(pid, signal.SIGTERM)
    assert job.wait().codes == [75], job.said()
    assert "Traceback" not in job.said()
    wait_for(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in signalled))


def interrupt(job):
    """What Ctrl-C on a terminal does: every process of the job gets the signal, the workers of data loading, too."""
    pid = job.processes[0].pid
    for each in (*children(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGINT)


def test_ctrl_c(tmp_path):
    argv = [*LONG, *folders(tmp_path)]
    job = Job(argv, tmp_path)
    wait_for(lambda: list(tmp_path.glob("checkpoints/**/*epoch-3-step-0.json")))
    interrupt(job)
    assert job.wait().codes == [75], job.said()
    assert "stopping as soon as the step under way is done and saved (Ctrl-C again: at once, without saving)" in job.said()
    last = job.said().splitlines()[-1]
    assert last.startswith("error: stopped at task-1-training-epoch-")
    assert f"and saved; continue with --resume {checkpoints(tmp_path)}" in last
    assert "Traceback" not in job.said() and status(tmp_path)["status"] == "preempted"


def test_ctrl_c_twice(tmp_path):
    """The second ends it even where the first is never heard of."""
    job = Job([*TINY, *folders(tmp_path)], tmp_path, fault="hang:step:1")
    wait_for(lambda: list(tmp_path.glob("checkpoints/**/0*.json")))
    interrupt(job)
    wait_for(lambda: "stopping as soon as" in job.said())
    interrupt(job)
    assert job.wait().codes == [130]
    assert job.said().endswith("interrupted\n") and "Traceback" not in job.said()
    assert status(tmp_path)["status"] == "failed" and status(tmp_path)["exit_code"] == 130


def test_one_of_two_processes_gets_ctrl_c(tmp_path, undisturbed):
    """torchrun hands on what the terminal has sent to all already: it is no second one."""
    job = run([*TINY, *folders(tmp_path)], tmp_path, processes=2, fault="int:step:7:rank1,int:step:8:rank1,int:data:8:rank1")
    assert job.codes == [75, 75], job.said()
    resume(tmp_path, processes=2)
    assert_same_results(tmp_path, undisturbed(2))


def test_a_worker_killed(tmp_path, undisturbed):
    """As the out-of-memory killer would."""
    counts, argv = tmp_path / "counts-0", [*TINY, *PILLOW, *folders(tmp_path), "--num-workers", "1"]
    job = Job(argv, tmp_path, fault="hang:step:5", environment={faults.COUNTS: str(counts)[:-2]})
    wait_for(lambda: counts.exists() and '"step": 5' in counts.read_text())  # an evaluation's worker is missed by nobody
    (worker,) = children(job.processes[0].pid)
    os.kill(worker, signal.SIGKILL)
    assert job.wait().codes == [1], job.said()
    (line,) = [line for line in job.said().splitlines() if "error" in line]
    assert line.startswith("error: data loading failed: DataLoader worker (pid") and "--num-workers 1 " in line
    assert "Traceback" not in job.said() and line.split("error: ")[1] in status(tmp_path)["message"]
    resume(tmp_path)
    assert_same_results(tmp_path, undisturbed(1, *PILLOW))


def test_an_evaluation_alone_asked_to_stop(undisturbed):
    folder = undisturbed(1)
    before = kept(folder)
    job = run(["--resume", str(checkpoints(folder)), "--eval"], folder, fault="term:evaluation:1")
    assert job.codes == [75]
    assert job.said().endswith("error: stopped before the evaluation was done\n")
    assert kept(folder) == before


@pytest.mark.parametrize("processes", [1, 2])
def test_not_a_number(processes, tmp_path, undisturbed):
    fault = "nan:forward:8" if processes == 1 else "nan:forward:4:rank1"  # one process carries both replicas
    job = run([*TINY, *folders(tmp_path)], tmp_path, processes=processes, fault=fault)
    assert job.codes == [5] * processes
    last = job.said(0).strip().splitlines()[-1]
    assert "error: the loss is not finite at epoch 2, step 2: " in last and "Traceback" not in job.said()
    assert "error" not in job.said(1) if processes == 2 else True
    assert status(tmp_path)["status"] == "failed" and status(tmp_path)["exit_code"] == 5
    left, wanted = states(checkpoints(tmp_path)), states(checkpoints(undisturbed(processes)))
    assert list(left) == ["task-1-training-epoch-1-step-0", "task-1-training-epoch-2-step-0"]
    assert_equal(left, {name: wanted[name] for name in left})
    resume(tmp_path, processes=processes)
    assert_same_results(tmp_path, undisturbed(processes))


def test_one_process_raises(tmp_path):
    job = run([*TINY, *folders(tmp_path)], tmp_path, processes=2, fault="raise:backward:5:rank1")
    assert job.codes == [1, 1]
    assert "rank 1: Traceback" in job.said(1) and "RuntimeError: a fault on purpose" in job.said(1)
    assert "rank 0" not in job.said(0)


def test_one_process_hangs(tmp_path):
    argv = [*TINY, *folders(tmp_path), "--process-timeout", "5"]
    job = run(argv, tmp_path, processes=2, fault="hang:step:5:rank1")
    assert job.codes == [1, 1]
    assert "rank 0: error: rank 1 gave no answer in time" in job.said(0)
    assert "faults.py" in job.said(1)  # where it hung
    assert job.seconds < 5 + 10 + 30  # the last for a busy machine: to import, begin, and train four steps


def test_disk_full(tmp_path, undisturbed):
    assert run([*TINY, *folders(tmp_path)], tmp_path, fault="term:step:7").codes == [75]
    folder = checkpoints(tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    smallest = min(len(content) for path, content in before.items() if path.suffix == ".pt")
    job = run(["--resume", str(folder)], tmp_path, most_bytes=smallest - 10_000)
    assert job.codes == [4], job.said()
    last = job.said().strip().splitlines()[-1]
    assert last.startswith("error: could not write") and "File too large; the last checkpoint is" in last
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    resume(tmp_path)
    assert_same_results(tmp_path, undisturbed(1))


def children(pid):
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_the_slurm_job_of_the_readme(tmp_path):
    """Asked to stop, more than once, it saves on every process and has itself queued again; then it goes on."""
    text = (ROOT / "README.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/usr/bin/env bash\n#SBATCH.*?)```", text, flags=re.DOTALL)
    options = shlex.join([*TINY, "--no-debug", "--epochs", "1000", "--base-epochs", "1000"])
    script = script.replace("train.sh 0,1", "train.sh cpu:2").replace("--name dytox", f"{options} --name dytox")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/scontrol\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "SLURM_JOB_ID": "7"}
    said = (tmp_path / "output").read_text
    job = bash(["-c", script], tmp_path, **environment)
    wait_for(lambda: list(tmp_path.glob("runs/**/*epoch-3-step-0.json")))
    for _ in range(3):
        job.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    for child in children(job.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    assert job.wait(TIMEOUT) == 75
    assert said().strip().splitlines()[-1].startswith("rank 0: error: stopped at task-1-training-epoch-"), said()
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    (tmp_path / "done.py").write_text("import sys\nprint('told', *sys.argv[1:])\n")  # in the place of a run that ends now
    job = bash(["-c", script.replace("cpu:2", "cpu")], tmp_path, **environment, MAIN=str(tmp_path / "done.py"))
    assert job.wait(TIMEOUT) == 0, said()  # what is done is done for SLURM, too
    assert f"\ntold --device cpu --resume {tmp_path}/runs/" in said() and (tmp_path / "scontrol").read_text() == "requeue 7\n"


def test_asked_to_stop_while_it_starts_again(tmp_path, undisturbed):
    """train.sh was, when no process could hear of it: so it leaves a note."""
    (tmp_path / "stop").touch()
    job = run([*TINY, *folders(tmp_path)], tmp_path, environment={"DYTOX_JOB": str(tmp_path)})
    assert job.codes == [0]  # for torchrun, which would have much to say of another code
    assert (tmp_path / "exit").read_text().startswith("75\nerror: stopped at task-1-training-epoch-1-step-1 and saved")
    resume(tmp_path)
    assert_same_results(tmp_path, undisturbed(1))


@pytest.mark.parametrize("processes", [1, 2])
def test_train_sh_starts_a_failed_job_again(processes, tmp_path, undisturbed):
    """After kill -9 of one process torchrun starts all again, and they go on in the same folder."""
    argv = ["train.sh", f"cpu:{processes}", *TINY, *folders(tmp_path)]
    fault = {"MAIN": str(ROOT / "tests/faults.py"), "DYTOX_FAULT": f"kill:step:9:rank{processes - 1}"}
    code = bash(argv, tmp_path, MAX_RESTARTS="1", **fault).wait(TIMEOUT)
    said = (tmp_path / "output").read_text()
    assert code == 0, said
    assert "resumed from task-2-finetuning" in said
    assert_same_results(tmp_path, undisturbed(processes))


@pytest.fixture
def agent():
    """What torchrun's agent gives the processes that it starts: a store that outlives them, and its address."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return [store], {"RANK": "0", "WORLD_SIZE": "1", **place}


def test_started_again_without_train_sh(tmp_path, undisturbed, agent):
    """torchrun --max-restarts repeats the command, which names no folder: the run goes on in the one it began."""
    argv = [*TINY, *folders(tmp_path)]
    assert run(argv, tmp_path, environment=agent[1], fault="kill:step:9").codes == [-signal.SIGKILL]
    job = finish(argv, tmp_path, environment={**agent[1], "TORCHELASTIC_RESTART_COUNT": "1"})
    assert "resumed from task-2-finetuning" in job.said()
    assert_same_results(tmp_path, undisturbed(1))


def test_the_launcher_killed(tmp_path, agent):
    argv = [*LONG, *folders(tmp_path)]
    job = Job(argv, tmp_path, environment=agent[1])
    wait_for(lambda: list(tmp_path.glob("checkpoints/**/*epoch-3-step-0.json")))
    workers = children(job.processes[0].pid)
    assert workers
    agent[0].clear()
    assert job.wait().codes == [1]
    wait_for(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))
    assert "rank 0: error: the launcher or rank 0 was killed; this process ends\n" in job.said()


def test_two_runs_in_one_folder(tmp_path, undisturbed):
    first = Job([*TINY, *folders(tmp_path)], tmp_path, fault="hang:step:5")
    wait_for(lambda: list(tmp_path.glob("checkpoints/**/*epoch-2-step-0.json")))
    second = run(["--resume", str(checkpoints(tmp_path))], tmp_path)
    assert second.codes == [4]
    assert "another run is writing here" in second.said()
    first.processes[0].kill()
    first.wait()
    resume(tmp_path)
    assert_same_results(tmp_path, undisturbed(1))


def kept(folder):
    """What every file of a run holds, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and "output" not in path.name]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_finished_runs_do_nothing(undisturbed):
    folder = undisturbed(1)
    before = kept(folder)
    for side in (checkpoints(folder), logs(folder)):
        assert "this run is finished" in finish(["--resume", str(side)], folder).said()
    assert kept(folder) == before


def test_places_are_named(monkeypatch):
    monkeypatch.setenv(faults.VARIABLE, "kill:nowhere:1")
    with pytest.raises(ValueError, match="nowhere"):
        faults.reach("step")
    monkeypatch.delenv(faults.VARIABLE)
    assert faults.reach("step", 3.0) == 3.0


def test_no_fault_after_a_restart(monkeypatch):
    monkeypatch.setenv(faults.VARIABLE, "raise:step:1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    faults.reach("step")
