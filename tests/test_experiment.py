"""Resuming: what it continues, what it refuses, and what it leaves alone."""

import json
import shutil

import pytest
import torch
from jobs import THREE_TASKS, TINY, assert_equal, assert_same_results, checkpoints, finish, folders, logs, run, states
from made_up import write_image_tree
from torch.distributed import HashStore

from continual.jobs import distributed
from continual.options import parse
from continual.runs import checkpoint
from continual.runs import folders as place


def test_states_hold_no_times(done):
    """So equal runs have equal states; the manifests know the times."""
    assert all("seconds" not in state for state in states(checkpoints(done)).values())
    times = [json.loads(path.read_text())["seconds"] for path in sorted(checkpoints(done).glob("0*.json"))]
    assert times == sorted(times) and times[-1] > 0
    summary = json.loads((logs(done) / "summary.json").read_text())
    assert 0 < summary["time_saving"] < summary["time"]


@pytest.mark.parametrize("start", [1, 2])
def test_start_task(start, copy, done):
    finish(["--resume", str(checkpoints(copy)), "--start-task", str(start)], copy)
    assert_same_results(copy, done)


def test_start_task_counts_even_if_killed_at_once(copy, done):
    """A resume after it goes on from that task, not from the end of the run that was there before."""
    job = run(["--resume", str(checkpoints(copy)), "--start-task", "1"], copy, fault="kill:step:1")
    assert job.codes == [-9]
    job = finish(["--resume", str(checkpoints(copy))], copy)
    assert "resumed from task-1-finished" in job.said()
    assert_same_results(copy, done)


def test_start_task_that_cannot_be_written(copy):
    """Nothing of the run that went further is lost before the checkpoint is there."""
    before = (logs(copy) / "evaluations.jsonl").read_bytes()
    job = run(["--resume", str(checkpoints(copy)), "--start-task", "1"], copy, most_bytes=60_000)
    assert job.codes == [4] and "error: could not write " in job.said()
    assert "resumed from task-3-finished" in finish(["--resume", str(checkpoints(copy))], copy).said()
    assert (logs(copy) / "evaluations.jsonl").read_bytes() == before


def test_start_task_without_its_checkpoint(copy):
    job = run(["--resume", str(checkpoints(copy)), "--start-task", "4", "--max-task", "5"], copy)
    assert job.codes == [4] and "no valid checkpoint of the end of task 3 (--start-task 4)" in job.said()


def named(folder, name):
    """The newest checkpoint of that name."""
    return max(checkpoints(folder).glob(f"0*-{name}.pt"))


@pytest.mark.parametrize("name", ["task-2-training-epoch-2-step-0", "task-1-finished"])
def test_one_checkpoint(name, copy, done):
    """From there on it is the newest, also for a resume of the folder."""
    job = run(["--resume", str(named(copy, name))], copy, fault="kill:step:1")
    assert job.codes == [-9] and f"resumed from {name}: " in job.said()
    assert f"resumed from {name}: " in finish(["--resume", str(checkpoints(copy))], copy).said()
    assert_same_results(copy, done)


def test_the_checkpoint_of_the_very_end(copy):
    job = finish(["--resume", str(named(copy, "task-3-finished"))], copy)
    assert "this run is finished" in job.said()


def test_one_checkpoint_in_a_job_started_again(copy, done, monkeypatch):
    """It goes back only once; until it has, the checkpoint counts, and after that what is newest."""
    monkeypatch.setattr(distributed, "_agents_store", HashStore())
    path, folder = str(named(copy, "task-1-finished")), str(checkpoints(copy))
    options = parse(["--resume", path])
    assert [place.prepare(options)[0].run.resume for _ in range(2)] == [path, path]
    distributed.keep("went back", "yes")
    assert place.prepare(options)[0].run.resume == folder


def test_evaluation_of_one_checkpoint(copy, tmp_path):
    (tmp_path / "link.pt").symlink_to(named(copy, "task-1-finished"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert "Task 1/3, 2 classes seen" in finish(["--eval", "--resume", str(tmp_path / "link.pt")], tmp_path).said()
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def spoil(path, how):
    """A checkpoint that is not worth the name; returns what to give to --resume."""
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "without its manifest":
        path.with_suffix(".json").unlink()
    elif how == "of a damaged manifest":
        path.with_suffix(".json").write_bytes(b"[")
    elif how == "a manifest":
        return path.with_suffix(".json")
    elif how == "gone":
        path.unlink()
    elif how == "of no run":
        return path.rename(path.parent.parent / path.name)
    return path.parent.parent / "nowhere" / path.name if how == "nowhere" else path


@pytest.mark.parametrize(
    "how, code, told",
    [
        ("damaged", 4, "-task-1-finished.pt is damaged (its SHA-256 does not fit)"),
        ("without its manifest", 4, "-task-1-finished.pt is no valid checkpoint: it has no manifest"),
        ("of a damaged manifest", 4, "-task-1-finished.pt: its manifest is damaged ("),
        ("a manifest", 4, "-task-1-finished.json is neither a folder nor a checkpoint, FILE.pt"),
        ("gone", 4, "-task-1-finished.pt: no such checkpoint"),
        ("nowhere", 4, "-task-1-finished.pt: no such checkpoint"),
        ("of no run", 4, " is not the folder of a run: "),
        ("--start-task", 2, "start_task, resume: a checkpoint says by itself where to go on"),
    ],
)
def test_no_checkpoint_to_resume_from(how, code, told, copy):
    path = spoil(named(copy, "task-1-finished"), how)
    before = {path: path.read_bytes() for path in copy.rglob("*.pt")}
    job = run(["--resume", str(path), *(["--start-task", "1"] if code == 2 else [])], copy)
    assert job.codes == [code]
    *greeting, line = job.said().splitlines()
    assert told in line and "Traceback" not in job.said() and len(greeting) in (0, 7)
    assert {path: path.read_bytes() for path in copy.rglob("*.pt")} == before


@pytest.mark.parametrize(
    "change, told",
    [
        (["--increment", "4"], "increment was 2, is 4"),
        (["--class-order", *"1023456789"], "class_order was [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], is [1, 0, 2"),
        (["--embed-dim", "32"], "embed_dim was 16, is 32"),
        (["--replicas", "4"], "replicas was 2, is 4"),
    ],
)
def test_another_experiment_is_refused(change, told, done):
    before = {path: path.stat().st_mtime_ns for path in checkpoints(done).iterdir()}
    job = run(["--resume", str(checkpoints(done)), *change], done)
    assert job.codes == [4], job.said()
    last = job.said().strip().splitlines()[-1]
    assert last.startswith("error: the checkpoint is of another experiment: ") and told in last
    assert {path: path.stat().st_mtime_ns for path in checkpoints(done).iterdir()} == before


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in the second epoch of its second task."""
    folder = tmp_path_factory.mktemp("stopped")
    assert run([*TINY, *folders(folder)], folder, fault="term:step:7").codes == [75]
    assert "task-2-training-epoch-2-step-1" in states(checkpoints(folder))
    return folder


@pytest.fixture
def insist(stopped, tmp_path):
    """Resumes copies of that run with other options."""

    def resumed(name, *changed, **how):
        shutil.copytree(stopped, tmp_path / name)
        return run(["--resume", str(checkpoints(tmp_path / name)), *changed, "--resume-anyway"], tmp_path / name, **how)

    return resumed


def test_another_experiment_if_one_insists(insist, tmp_path):
    """From then on it is this one: the next resume needs no word of it, and changes nothing."""
    changed = ["--warmup-lr", "1e-3", "--weight-decay", "0.5", "--smoothing", "0.2"]
    assert insist("a", *changed).codes == [0]
    job = insist("b", *changed, fault="kill:data:1")
    assert job.codes == [-9] and "resumed from task-2-training-epoch-2-step-1: task-2-training-epoch-2-step-0" in job.said()
    finish(["--resume", str(checkpoints(tmp_path / "b"))], tmp_path / "b")
    assert_same_results(tmp_path / "b", tmp_path / "a")
    insist("plain")
    after = "task-2-finetuning-epoch-1-step-0"
    used, before = (states(checkpoints(tmp_path / name))[after]["last"]["lr"] for name in ("a", "plain"))
    assert used > 10 * before  # in the epoch under way


@pytest.mark.parametrize("changed", [["--opt", "sgd", "--freeze-task", "sab"], ["--sched", "plateau", "--sam-rho", "0.1"]])
def test_another_optimizer_if_one_insists(changed, insist):
    job = insist("x", *changed)
    assert job.codes == [0], job.said()


@pytest.mark.parametrize(
    "changed, told",
    [
        (["--embed-dim", "32"], "the weights of the checkpoint are of another model: "),
        (["--increment", "4"], "the model has learned tasks of [2, 2] classes; the options make other tasks"),
        (
            ["--retrain-scratch", "--memory-size", "0", "--finetuning", "", "--no-auto-kd"],
            "the model has learned tasks of [2, 2] classes; the options make other tasks",
        ),
        (["--distributed-memory"], "its memories are those of 1 replica(s); the options ask for 2"),
    ],
)
def test_what_cannot_go_on_even_if_one_insists(changed, told, insist, stopped, tmp_path):
    job = insist("x", *changed)
    assert job.codes == [4] and f"error: {told}" in job.said() and "Traceback" not in job.said()
    for side in (checkpoints, logs):
        assert (side(tmp_path / "x") / "options.yaml").read_bytes() == (side(stopped) / "options.yaml").read_bytes()
    assert list(states(checkpoints(tmp_path / "x"))) == list(states(checkpoints(stopped)))


def test_falls_back_to_the_newest_valid_one(copy, done):
    payloads = sorted(checkpoints(copy).glob("0*.pt"))
    payloads[-1].write_bytes(payloads[-1].read_bytes()[:-1])
    payloads[-2].unlink()
    manifest = payloads[-3].with_suffix(".json")
    manifest.write_text(manifest.read_text().replace("0", "1", 1))
    (logs(copy) / "summary.json").unlink()
    job = finish(["--resume", str(checkpoints(copy))], copy)
    for path, why in zip(payloads[-3:], ["the manifest of", "", "is damaged (its SHA-256 does not fit)"], strict=True):
        assert not why or any(path.name in line and why in line for line in job.said().splitlines() if "warning" in line)
    assert f"resumed from {json.loads(payloads[-4].with_suffix('.json').read_text())['name']}" in job.said()
    assert_same_results(copy, done)


@pytest.mark.parametrize("lost, told", [("0*", "no valid checkpoint to resume from"), ("[0n]*", "no checkpoint is left")])
def test_never_afresh_in_silence(lost, told, copy):
    for path in checkpoints(copy).glob(lost):
        path.unlink()
    before = (logs(copy) / "evaluations.jsonl").read_bytes()
    job = run(["--resume", str(checkpoints(copy))], copy)
    assert job.codes == [4] and told in job.said()
    assert (logs(copy) / "evaluations.jsonl").read_bytes() == before


@pytest.mark.parametrize("state", [{}, [1], {"position": 3}, {"position": {"task": 0}, "model": {"classes": 2}}])
def test_a_checkpoint_of_something_else(state, copy):
    folder = checkpoints(copy)
    identity = json.loads(next(folder.glob("0*.json")).read_text())["identity"]
    checkpoint.Store(folder).save(state, name="x", identity=identity, task=0, finished_task=False)
    job = run(["--resume", str(folder)], copy)
    assert job.codes == [4] and "error: the checkpoint does not hold the state of a run (" in job.said()
    assert "Traceback" not in job.said()


def test_a_strangers_checkpoint(copy, tmp_path, monkeypatch):
    """A sealed checkpoint that would run a command when it is unpickled."""
    trap = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            import os

            return os.mkdir, (str(trap),)

    folder = checkpoints(copy)
    identity = json.loads(next(folder.glob("0*.json")).read_text())["identity"]
    for path in folder.glob("0*"):
        path.unlink()
    store = checkpoint.Store(folder)
    monkeypatch.setattr(store, "stored", lambda *_: [])
    torch.manual_seed(0)
    store.save({"model": Payload()}, name="x", identity=identity, task=0, finished_task=False)
    job = run(["--resume", str(folder)], copy)
    assert job.codes == [4] and "holds more than tensors and plain values" in job.said()
    assert not trap.exists()


def test_evaluation_only_writes_nothing(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    job = finish(["--resume", str(checkpoints(copy)), "--eval", "--start-task", "1"], copy)
    assert "Task 1/3, 2 classes seen" in job.said()
    finish(["--resume", str(logs(copy)), "--eval"], copy)
    now = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path not in job.outputs}
    assert {path: content for path, content in now.items() if path in before} == before
    assert not [path for path in set(now) - set(before) if "output-" not in path.name]


def test_evaluation_is_of_all_that_was_learned(done):
    job = run(["--resume", str(checkpoints(done)), "--eval", "--max-task", "1"], done)
    assert job.codes == [4] and "error: the model knows 6 classes; 1 tasks (max_task) have fewer" in job.said()


def test_more_tasks_than_before(tmp_path, done):
    finish([*THREE_TASKS, *folders(tmp_path), "--max-task", "2"], tmp_path)
    finish(["--resume", str(checkpoints(tmp_path)), "--max-task", "3"], tmp_path)
    found, wanted = states(checkpoints(tmp_path)), states(checkpoints(done))
    assert_equal({name: found[name] for name in wanted}, wanted)


def test_exemplars_that_are_files(tmp_path):
    """The memory keeps where they are below the data folder, which may move, but should not grow."""
    data = tmp_path / "data"
    write_image_tree(data, ["ant", "bee", "cat", "dog"], 9, 2, 8)
    argv = [*TINY, "--data-set", "folder", "--data-path", str(data), "--memory-size", "8", "--batch-size", "4"]
    finish([*argv, *folders(tmp_path / "a")], tmp_path)
    job = run([*argv, *folders(tmp_path / "b")], tmp_path, fault="kill:step:7")
    assert job.codes == [-9]
    data.rename(tmp_path / "elsewhere")
    another = tmp_path / "elsewhere/train/ant/another.JPEG"
    shutil.copy(another.with_name("ant_0.JPEG"), another)
    job = run(["--resume", str(checkpoints(tmp_path / "b")), "--data-path", str(tmp_path / "elsewhere")], tmp_path)
    assert job.codes == [4] and "training_images was 36, is 37" in job.said()
    another.unlink()
    finish(["--resume", str(checkpoints(tmp_path / "b")), "--data-path", str(tmp_path / "elsewhere")], tmp_path)
    assert_same_results(tmp_path / "b", tmp_path / "a")
