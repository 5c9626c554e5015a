"""A run that begins at the end of another's task: with equal options the same bits, with others what they say; and the other
is never touched."""

import json
import signal

import pytest
import torch
from jobs import THREE_TASKS, TINY, assert_equal, checkpoints, finish, folders, logs, run, states
from test_verify import few, verified  # noqa: F401 (a fixture)

from continual.errors import OptionsError
from continual.options import FIELDS, KEPT_BY_A_BRANCH, dump, parse, replace
from continual.report.reading import read
from continual.runs.checkpoint import Store

PLAIN = [*THREE_TASKS, "--method", "rehearsal", "--memory-size", "24"]


@pytest.fixture(scope="module")
def done(tmp_path_factory, done):
    """Runs of three tasks, on so many processes."""
    made = {(1, tuple(THREE_TASKS)): done}

    def of(processes=1, argv=THREE_TASKS):
        key = processes, tuple(argv)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("done")
            finish([*argv, *folders(made[key])], made[key], processes=processes)
        return made[key]

    return of


def bytes_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "output" not in path.name}


def branch(folder, origin, task, *more, **how):
    return run(["--branch", f"{origin}@{task}", *more, *folders(folder)], folder, **how)


def resume(folder, **how):
    job = run(["--resume", str(checkpoints(folder))], folder, **how)
    assert set(job.codes) == {0}, job.said()
    return job


def assert_same_from(folder, reference, task):
    """Equal from the end of this task (from 0) on, and all of the record that is of the tasks before."""
    own, wanted = states(checkpoints(folder)), states(checkpoints(reference))
    later = [name for name in wanted if int(name.split("-")[1]) > task + 1 or name == f"task-{task + 1}-finished"]
    assert len(later) > 4 and later[0] == f"task-{task + 1}-finished" and list(own) == later
    assert_equal(own, {name: wanted[name] for name in later})
    for name in ("evaluations.jsonl", "classes.json", *(f"predictions/task-{n}.npz" for n in (1, 2, 3))):
        assert (logs(folder) / name).read_bytes() == (logs(reference) / name).read_bytes(), name
    summaries = [json.loads((logs(each) / "summary.json").read_text()) for each in (folder, reference)]
    for summary in summaries:
        cost = summary.pop("cost")
        summary.update({key: cost[key] for key in ("images", "steps", "flops_training")}, time=0, time_saving=0)
    assert summaries[0] == summaries[1]


def test_with_equal_options_it_is_the_run(tmp_path, done):
    origin = done()
    before = bytes_of(origin)
    for number, side in enumerate((logs(origin), checkpoints(origin))):
        folder = tmp_path / str(number)
        job = branch(folder, side, 0)
        assert job.codes == [0], job.said()
        assert f"branched from {side}@0: " in job.said()
        assert_same_from(folder, origin, 0)
        told = Store(checkpoints(folder)).stored()[-1].manifest["identity"]["branched_from"]
        first = next(each for each in Store(checkpoints(origin)).stored() if each.finished_task)
        assert told["sha256"] == first.manifest["sha256"] and told["name"] == "task-1-finished" and told["task"] == 0
        assert told["changed"] == {} and told["run"] == logs(origin).name
    assert bytes_of(origin) == before
    code, said, _ = verified(logs(folder), "--steps", "4")
    assert code == 0 and "first steps      the same: to the bit" in said and "last evaluation  the same" in said


@pytest.mark.parametrize("place", ["rename:1", "manifest:1", "step:1", "finetuning:1"])
def test_killed_anywhere(place, tmp_path, done):
    """Before its first checkpoint, too."""
    assert branch(tmp_path, logs(done()), 0, fault=f"kill:{place}").codes == [-signal.SIGKILL]
    resume(tmp_path)
    assert_same_from(tmp_path, done(), 0)


def test_on_two_processes(tmp_path, done):
    origin = done(2)
    job = branch(tmp_path, logs(origin), 0, processes=2, fault="term:step:3:rank1")
    assert job.codes == [75, 75], job.said()
    resume(tmp_path, processes=2)
    own, wanted = states(checkpoints(tmp_path)), states(checkpoints(origin))
    assert_equal({name: own[name] for name in wanted if name in own}, {n: s for n, s in wanted.items() if n in own})
    assert (logs(tmp_path) / "evaluations.jsonl").read_bytes() == (logs(origin) / "evaluations.jsonl").read_bytes()


def test_a_branch_can_be_gone_back_in_and_branched_from(tmp_path, done):
    assert branch(tmp_path / "a", logs(done()), 0).codes == [0]
    finish(["--resume", str(logs(tmp_path / "a")), "--start-task", "1"], tmp_path / "a")
    assert branch(tmp_path / "b", logs(tmp_path / "a"), 1, "--finetuning-lr", "0.01").codes == [0]
    told = Store(checkpoints(tmp_path / "b")).stored()[-1].manifest["identity"]["branched_from"]
    assert told["task"] == 1 and told["branched_from"]["task"] == 0 and list(told["changed"]) == ["finetuning_lr"]
    lines = [(logs(each) / "evaluations.jsonl").read_text().splitlines() for each in (tmp_path / "b", done())]
    ends = [[line for line in of if json.loads(line)["final"]] for of in lines]
    assert ends[0][:2] == ends[1][:2] and ends[0][2] != ends[1][2]
    code, said, _ = verified(logs(tmp_path / "b"))
    assert code == 0 and "the run went on with other options than it began with" in said


@pytest.mark.parametrize(("size", "told"), [(12, "12 of its "), (200, "would be room for 50 of each class"), (0, "0 of its ")])
def test_another_memory(size, told, tmp_path, done):
    more = ["--memory-size", str(size), *(["--finetuning", ""] if not size else [])]
    job = branch(tmp_path, logs(done(argv=PLAIN)), 1, *more)
    assert job.codes == [0] and told in job.said()
    first = next(iter(states(checkpoints(tmp_path)).values()))
    assert len(first["memory"]["y"]) == {12: 12, 200: 24, 0: 0}[size]
    last = list(states(checkpoints(tmp_path)).values())[-1]
    assert len(last["memory"]["y"]) == {12: 12, 200: 24 + 66, 0: 0}[size]


@pytest.mark.parametrize("method", ["wa", "finetuning"])
def test_another_method(method, tmp_path, done):
    """Where the model is the same one, the rest is learned in another way; the matrix is whole."""
    job = branch(tmp_path, checkpoints(done(argv=PLAIN)), 0, "--method", method)
    assert job.codes == [0], job.said()
    summary = json.loads((logs(tmp_path) / "summary.json").read_text())
    assert [len(row) for row in summary["matrix"]] == [1, 2, 3]
    origin = json.loads((logs(done(argv=PLAIN)) / "summary.json").read_text())
    assert summary["matrix"][0] == origin["matrix"][0]
    own, other = (states(checkpoints(each))["task-3-finished"]["model"]["weights"] for each in (tmp_path, done(argv=PLAIN)))
    assert any(not torch.equal(own[name], other[name]) for name in own)
    assert ("weight aligning" in job.said()) == (method == "wa")
    changed = Store(checkpoints(tmp_path)).stored()[-1].manifest["identity"]["branched_from"]["changed"]
    assert changed["method"] == "rehearsal"
    assert read(logs(tmp_path))[0].experiment() != read(logs(done(argv=PLAIN)))[0].experiment()


def test_a_model_that_does_not_fit(tmp_path, done):
    job = branch(tmp_path, logs(done(argv=PLAIN)), 0, "--method", "bic")
    assert job.codes == [4] and "error: the weights of the checkpoint are of another model" in job.said()
    assert "Traceback" not in job.said()


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--seed", "1"], 2, "command line: seed: 0 in the run to branch from, not 1: runs of other seeds would share"),
        (["--embed-dim", "32"], 2, "command line: embed_dim: 16 in the run to branch from, not 32: the model is the"),
        (
            ["--increment", "4"],
            2,
            "command line: increment: 2 in the run to branch from, not 4: it learns the rest of the same",
        ),
        (["--class-order", *"9876543210"], 2, "command line: class_order: None in the run to branch from, not (9, 8"),
        (["--validation", "0.2"], 2, "command line: validation: 0.0 in the run to branch from, not 0.2"),
        (["--max-task", "1"], 2, "branch, max_task: a branch from the end of task 0 has nothing to learn in 1 task(s)"),
        (["--resume", "RUN"], 2, "branch, resume: a run that is resumed is a branch already, or none"),
        (["--branch", "RUN@7", "--max-task", "none"], 4, "no checkpoint of the end of task 7; kept: 0, 1, 2"),
        (["--branch", "RUN"], 2, "is not RUN@TASK: a folder of a run, and a task counted from 0"),
        (["--branch", "RUN@-1"], 2, "is not RUN@TASK"),
        (["--branch", "nowhere@0"], 2, "command line: branch: nowhere is not the folder of a run: it has no options.yaml"),
        (["--seeds", "0", "1"], 4, "seed-0 is not the folder of a run"),
    ],
)
def test_what_is_refused(more, code, told, tmp_path, done):
    """Before anything is made."""
    origin = done()
    before, words = bytes_of(origin), [word.replace("RUN", str(logs(origin))) for word in more]
    argv = ["--branch", f"{logs(origin)}@0"] if "--branch" not in words else []
    job = run([*argv, *words, *folders(tmp_path)], tmp_path)
    assert job.codes == [code] and told in job.said(), job.said()
    assert job.said().count("\n") == 1
    assert not list(tmp_path.rglob("run.json")) and bytes_of(origin) == before


def test_other_images(tmp_path, done):
    job = branch(tmp_path, logs(done()), 0, environment={"DYTOX_ALL_DIGITS": "1"})
    assert job.codes == [4] and "branch: training_images was 510, is " in job.said()


def test_evaluations_that_are_lost(tmp_path):
    finish([*TINY, *folders(tmp_path / "a")], tmp_path / "a")
    path = logs(tmp_path / "a") / "evaluations.jsonl"
    path.write_text(path.read_text().replace("acc", "cca", 1))
    job = branch(tmp_path / "b", logs(tmp_path / "a"), 0)
    assert job.codes == [4] and "does not hold the evaluations up to task 0" in job.said()


def test_a_series(tmp_path):
    argv = [*TINY, "--seeds", "1", "2"]
    finish([*argv, *folders(tmp_path / "a")], tmp_path)
    whole = min(tmp_path.glob("a/logs/**/run.json"), key=lambda path: len(path.parts)).parent
    job = branch(tmp_path / "b", whole, 0)
    assert job.codes == [0], job.said()
    new = min(tmp_path.glob("b/logs/**/run.json"), key=lambda path: len(path.parts)).parent
    one, two = (json.loads((each / "series.json").read_text()) for each in (whole, new))
    assert {**one, "time": 0} == {**two, "time": 0}
    assert "done already" in finish(["--resume", str(new)], tmp_path).said()


def test_what_it_keeps_are_options():
    assert FIELDS.keys() >= KEPT_BY_A_BRANCH.keys()
    with pytest.raises(OptionsError, match="branch: '@2' is not RUN@TASK"):
        parse(["--branch", "@2"])


def test_a_run_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    dump(replace(parse([]), lr=0.25), tmp_path / "x" / "options.yaml")
    options = parse(["--branch", "~/x@3", "--kd", "2"])
    assert options.run.branch == f"{tmp_path}/x@3" and options.optim.lr == 0.25 and options.loss.kd == 2
