"""A sweep: the points that were asked for, on no test image, in one table that no kill changes."""

import json
import math
import re
import shlex
import signal

import pytest
from jobs import ROOT, TIMEOUT, TINY, Job, bash, run

from continual.errors import OptionsError
from continual.jobs import watch
from continual.options import parse, replace, sweeping
from continual.runs import sweep as sweep_module
from continual.runs.checkpoint import Store
from continual.runs.folders import Place
from continual.runs.sweep import claim, standing

LEARNING = ["--no-debug", "--base-epochs", "2", "--epochs", "2", "--finetuning-epochs", "1", "--warmup-epochs", "0"]
FOUR = [*LEARNING, "--batch-size", "16", "--sweep", "lr=1e-4,0.05", "finetuning_lr=1e-4,0.05", "--sweep-tasks", "2"]


def folders(folder):
    return ["--log-path", str(folder / "logs"), "--output-basedir", str(folder / "checkpoints"), "--name", "run"]


def top(folder, below="logs"):
    return min((folder / below).rglob("run.json"), key=lambda path: len(path.parts)).parent


def table(folder):
    return json.loads((top(folder) / "sweep.json").read_text())


def sweep(folder, *more, argv=FOUR, **how):
    return run([*TINY, *argv, *more, *folders(folder)], folder, **how)


def resume(folder, *more, **how):
    return run(["--resume", str(top(folder, "checkpoints")), *more], folder, **how)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Sweeps of four points that nothing happened to: pruned or not."""
    made = {}

    def of(*more):
        if more not in made:
            made[more] = tmp_path_factory.mktemp("sweep")
            job = sweep(made[more], *more)
            assert job.codes == [0], job.said()
            made[more, "said"] = job.said()
        return made[more]

    return of, made


def test_the_table(done):
    of, made = done
    folder = of()
    found = table(folder)
    assert found["tasks"] == 2 and len(found["points"]) == 4
    averages = [row["avg_acc"]["mean"] for row in found["points"]]
    assert averages == sorted(averages, reverse=True)
    assert {(row["options"]["lr"], row["options"]["finetuning_lr"]) for row in found["points"]} == {
        (lr, tuned) for lr in (1e-4, 0.05) for tuned in (1e-4, 0.05)
    }
    said = made[(), "said"]
    assert "Accuracy (%) on 20% of the training images, 2 task(s)" in said
    assert re.search("rank +point +lr +finetuning_lr +average +last +forgetting", said)
    assert len({path.read_bytes() for path in top(folder).glob("point-*/evaluations.jsonl")}) == 4
    best, row = parse(["--options", str(top(folder) / "best.yaml")]), found["points"][0]
    assert best.optim.lr == row["options"]["lr"] and best.finetune.finetuning_lr == row["options"]["finetuning_lr"]
    assert not best.run.sweep and best.data.validation == 0 and best.run.max_task == 2
    assert str(top(folder) / "best.yaml") in said


def test_no_test_image_is_looked_at(done):
    of, _ = done
    for path in (top(of(), "checkpoints")).glob("point-*"):
        identity = Store(path).stored()[-1].manifest["identity"]
        assert identity["validation"] == 0.2 and identity["training_images"] + identity["test_images"] == 510


@pytest.mark.parametrize("more", [(), ("--sweep-prune",)], ids=["all", "pruned"])
def test_killed_five_times(more, tmp_path, done):
    of, _ = done
    assert sweep(tmp_path, *more, fault="kill:step:3").codes == [-signal.SIGKILL]
    for fault in ("kill:task change:1", "kill:manifest:2", "kill:step:7", "kill:end:2"):
        assert resume(tmp_path, fault=fault).codes == [-signal.SIGKILL]
    assert resume(tmp_path).codes == [0]
    assert table(tmp_path) == table(of(*more))
    for path in top(of(*more)).glob("point-*/evaluations.jsonl"):
        assert (top(tmp_path) / path.parent.name / path.name).read_bytes() == path.read_bytes()
    assert (top(tmp_path) / "best.yaml").read_text().replace(str(tmp_path), "") == (
        (top(of(*more)) / "best.yaml").read_text().replace(str(of(*more)), "")
    )
    again = resume(tmp_path)
    assert again.codes == [0] and "--- point" not in again.said() and table(tmp_path) == table(of(*more))


def test_pruned(done):
    of, made = done
    folder = of("--sweep-prune")
    rows, all_of = table(folder)["points"], {row["point"]: row for row in table(of())["points"]}
    assert [row["tasks"] for row in rows] == [2, 2, 1, 1]
    for row in rows[:2]:
        assert row == all_of[row["point"]]  # the very figures of one that was learned in one go
    for row in rows[2:]:
        (end,) = [
            record
            for record in map(json.loads, (top(folder) / row["point"] / "evaluations.jsonl").read_text().splitlines())
            if record["final"]
        ]
        assert end["task"] == 0 and row["avg_acc"]["mean"] == end["avg_acc"]
    assert made[("--sweep-prune",), "said"].count("pruned after task 1") == 2


def test_two_processes_take_points_of_their_own(tmp_path, done):
    of, _ = done
    job = sweep(tmp_path, processes=2, fault="term:step:2:rank0,term:step:2:rank1")
    assert job.codes == [75, 75], job.said()
    begun = {path.name for path in top(tmp_path).glob("point-*")}
    assert len(begun) == 2
    assert resume(tmp_path, processes=2).codes == [0, 0]
    assert table(tmp_path) == table(of())


def test_two_commands_on_one_folder(tmp_path, done):
    of, _ = done
    assert sweep(tmp_path, fault="term:step:1").codes == [75]
    jobs = [Job(["--resume", str(top(tmp_path, "checkpoints"))], tmp_path / name) for name in ("one", "two")]
    for job in jobs:
        assert job.wait().codes == [0], job.said()
    assert table(tmp_path) == table(of())
    taken = [set(re.findall(r"--- (point-\d)", job.said())) for job in jobs]
    assert taken[0] | taken[1] == {f"point-{n}" for n in (1, 2, 3, 4)} and not taken[0] & taken[1]


def test_several_seeds_and_one_that_diverges(tmp_path):
    job = sweep(tmp_path, argv=["--warmup-epochs", "0", "--sweep", "lr=1e-3,1e38", "--sweep-tasks", "1", "--seeds", "1", "2"])
    assert job.codes == [0], job.said()
    rows = table(tmp_path)["points"]
    assert rows[0]["options"]["lr"] == 1e-3 and len(rows[0]["avg_acc"]["values"]) == 2 and rows[0]["avg_acc"]["std"] is not None
    assert "avg_acc" not in rows[1] and "point-2-seed-1 diverged: the loss is not finite" in job.said()
    assert " ± " in job.said() and re.search("2 +point-2 +1e\\+38 +diverged +diverged +diverged", job.said())
    again = resume(tmp_path)
    assert again.codes == [0] and "--- point" not in again.said()


def test_another_sweep_is_not_the_one_that_was_begun(tmp_path):
    assert sweep(tmp_path, fault="term:step:1").codes == [75]
    for more, told in (
        (["--sweep", "lr=1e-4,1e-3"], "the sweep was begun with sweep: "),
        (["--sweep-tasks", "1"], "the sweep was begun with sweep_tasks: 2, not 1"),
        (["--sweep", "none"], "this folder is that of a sweep; sweep makes it that of a single run"),
        (["--lr", "1"], "the checkpoint is of another experiment: lr was"),
    ):
        job = resume(tmp_path, *more)
        assert job.codes == [4] and told in job.said() and job.said().count("\n") == 1, job.said()
    assert resume(tmp_path, "--start-task", "1").codes == [2]


def test_the_ranking(tmp_path, monkeypatch, capsys):
    """By the average accuracy over seeds; pruned points below, and those that diverged at the end."""
    accuracies = {1: [50, 60, 80, 70, None], 2: [None, 90, 75, None, None]}  # of points 1 to 5 after so many tasks

    def stands(place):
        point, seed = int(place.logs.name.split("-")[1]), int(place.logs.name[-1])
        known = [accuracies[nb][point - 1] for nb in (1, 2)]
        ends = [{"avg_acc": acc + seed, "acc": acc, "forgetting": 0.0} for acc in known if acc]
        status, code = ("failed", 5) if point > 3 else ("running", None)
        return sweep_module.Standing(len(ends), False, status, code, ends)

    monkeypatch.setattr(sweep_module, "standing", stands)
    words = ["--sweep", "lr=1,2,3,4,5", "--sweep-tasks", "2", "--sweep-prune", "--seeds", "0", "2", *folders(tmp_path)]
    made = sweep_module.series_of(parse(words), watch.Never())
    assert list(made.to_train()) == []
    rows = made.figures["points"]
    assert [row["point"] for row in rows] == ["point-2", "point-3", "point-1", "point-4", "point-5"]
    assert [row["tasks"] for row in rows] == [2, 2, 1, 2, 1]
    assert rows[0]["avg_acc"] == {"mean": 91.0, "std": 1.4142, "values": [90, 92]}
    assert "91.00 ± 1.41" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- the words


def points(*words, **more):
    options = replace(parse([]), sweep=words, **more)
    return [values for values, _ in sweeping.points(options, replace)]


def test_a_grid():
    found = points("lr=1e-3,0.1", "freeze-ft=none,sab+heads", "finetuning=balanced")
    assert found[1] == {"lr": 1e-3, "freeze_ft": ("sab", "heads"), "finetuning": "balanced"} and len(found) == 4
    assert sweeping.in_words(found[1]) == "lr=0.001 freeze_ft=sab+heads finetuning=balanced"
    assert sweeping.in_words(found[0]) == "lr=0.001 freeze_ft=none finetuning=balanced"
    options = sweeping.points(replace(parse([]), sweep=("method=wa,icarl",)), replace)
    assert [each.rehearsal.rehearsal for _, each in options] == ["random", "icarl_all"]


def test_draws():
    words = ["lr=1e-4..1e-2", "memory_size=20..2000", "weight_decay=0..0.1", "kd=0,1"]
    found = points(*words, sweep_draws=40)
    assert found == points(*words, sweep_draws=40) != points(*words, sweep_draws=40, seed=1) and len(found) == 40
    below = sum(point["lr"] < 1e-3 for point in found)
    assert 10 < below < 30 and all(1e-4 <= point["lr"] <= 1e-2 for point in found)
    assert all(isinstance(point["memory_size"], int) and 20 <= point["memory_size"] <= 2000 for point in found)
    assert math.isclose(sum(point["weight_decay"] for point in found) / 40, 0.05, abs_tol=0.02)
    assert len(points("kd=0,1", sweep_draws=40)) == 2  # no point twice


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lr"], "sweep: 'lr' is not key=value,value,..."),
        (["lrr=1"], "sweep: 'lrr': no such option; the nearest is lr"),
        (["lr=1,x"], "sweep: 'lr=1,x': lr: expects a number, not 'x'"),
        (["lr=1,-1"], "sweep: 'lr=1,-1': lr: must be above 0, not -1"),
        (["lr=1,1.0"], "a value stands twice"),
        (["lr=1", "lr=2"], "sweep: a key stands twice"),
        (["lr=1e-4..1e-2"], "sweep: lr: a range needs --sweep-draws N"),
        (["lr=2..1"], "the range ends before it begins"),
        (["opt=adam..sgd"], "a range is of numbers"),
        (["seed=1,2"], "sweep: seed cannot be swept: a seed is no setting to choose; --seeds runs every point with each"),
        (["resume=a,b"], "sweep: resume cannot be swept"),
        (["output_basedir=a,b"], "sweep: output_basedir cannot be swept"),
        (["validation=0.1,0.2"], "sweep: validation cannot be swept: points are compared on the same images"),
        (["increment=2,5"], "sweep: increment cannot be swept: points are compared on the same tasks"),
        (["kd=0,1", "auto_kd=true"], "sweep: kd=1 auto_kd=true: kd, auto_kd: one weight or the other"),
    ],
)
def test_what_is_refused(words, told, tmp_path):
    """In one line, and before anything is made."""
    with pytest.raises(OptionsError) as error:
        parse(["--sweep", *words])
    assert told in str(error.value) and "\n" not in str(error.value), error.value


def test_sweep_options_need_a_sweep():
    for words in (["--sweep-prune"], ["--sweep-draws", "3"], ["--sweep", "lr=1", "--branch", "a@1"]):
        with pytest.raises(OptionsError):
            parse(words)


def test_a_claim_is_of_one(tmp_path):
    with claim(tmp_path / "a") as first, claim(tmp_path / "a") as second:
        assert first and not second
    with claim(tmp_path / "a") as third:
        assert third
    assert not standing(Place(tmp_path / "a", tmp_path / "b")).done(1)


def test_the_array_of_the_readme(tmp_path):
    """Two elements of it at once; the second waits for the first to begin the sweep."""
    (script,) = re.findall(r"```bash\n(#!/usr/bin/env bash\n# Eight.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    words = shlex.join([*TINY, "--sweep", "lr=1e-4,1e-2", "--sweep-tasks", "1"])
    script = re.sub(r"--options options/data.*?--name sweep", lambda _: f"{words} --name sweep", script, flags=re.DOTALL)
    script = script.replace("train.sh 0 ", "train.sh cpu ").replace("sleep 10", "sleep 1")
    common = {"HOME": str(tmp_path), "SLURM_ARRAY_JOB_ID": "7", "MAIN": str(ROOT / "tests/faults.py")}
    jobs = []
    for number in "10":
        (tmp_path / number).mkdir()
        jobs.append(bash(["-c", script], tmp_path / number, SLURM_ARRAY_TASK_ID=number, **common))
    assert [job.wait(TIMEOUT) for job in jobs] == [0, 0], "".join((tmp_path / n / "output").read_text() for n in "10")
    (path,) = tmp_path.glob("runs/sweep-7/logs/**/sweep.json")
    assert len(json.loads(path.read_text())["points"]) == 2
