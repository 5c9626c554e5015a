"""Whether two methods differ: the tests keep their word, runs are paired by what they answered, and one sentence says it."""

import csv
import json
import shutil
from subprocess import CompletedProcess

import jobs
import numpy as np
import pytest
from jobs import TINY, finish, folders

from continual.compare import main
from continual.options import parse, to_yaml
from continual.report import pairs
from continual.report.pairs import draws, exhibits, holm, interval, mcnemar, permutation, t_test
from continual.report.reading import read
from continual.runs import predictions
from continual.runs.predictions import Predictions

NB_TASKS, PER_CLASS = 3, 12
CLASS_OF = np.tile(np.arange(2 * NB_TASKS), PER_CLASS)  # of every test image, by place


def made(folder, *, seed=0, order=None, nb_tasks=NB_TASKS, quality=1.0, digest="", argv=(), chance=0):
    """The log folder of a run that was never trained: answers right more often with a higher quality."""
    order = list(range(2 * NB_TASKS)) if order is None else order
    folder.mkdir(parents=True)
    options = ["--data-set", "digits", "--increment", "2", "--initial-increment", "2", "--seed", str(seed), *argv]
    (folder / "options.yaml").write_text(to_yaml(parse(options)))
    (folder / "run.json").write_text(json.dumps({"side": "logs", "logs": str(folder), "checkpoints": str(folder / "gone")}))
    classes = [{"label": label, "class": of, "name": str(of), "task": label // 2} for label, of in enumerate(order)]
    (folder / "classes.json").write_text(json.dumps(classes))
    rng, hard = np.random.default_rng([seed, chance]), np.random.default_rng(5).normal(size=len(CLASS_OF))
    labels = np.argsort(order)[CLASS_OF].astype(np.int32)
    lines = []
    for task in range(nb_tasks):
        places = np.flatnonzero(labels < 2 * task + 2).astype(np.int32)
        own, nb = labels[places], 2 * task + 2
        right = hard[places] + 0.5 * rng.normal(size=len(places)) < quality
        answers = np.where(right, own, (own + 1) % nb).astype(np.int32)
        found = Predictions(
            logits=predictions.packed(np.eye(nb)[answers]),
            answers=answers,
            answers_known=np.where(right, own, own ^ 1).astype(np.int32),
            labels=own,
            places=places,
            sizes=np.full(task + 1, 2, dtype=np.int32),
            digest=digest or repr(order),
        )
        predictions.write(folder, task, found)
        lines.append({"task": task, "final": True, "acc": 100 * right.mean(), "acc_per_task": [0.0] * (task + 1)})
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def made_series(folder, seeds, **how):
    for seed in seeds:
        made(folder / f"seed-{seed}", seed=seed, **how)
    shutil.copy(folder / f"seed-{seeds[0]}" / "options.yaml", folder)
    (folder / "run.json").write_text(json.dumps({"side": "logs", "logs": str(folder), "checkpoints": str(folder / "gone")}))
    return folder


def damage(run, task, label):
    """As if the head of a class gave nothing at the end of a task: its images are taken for another class."""
    found = predictions.read(predictions.path_of(run, task))
    answers = np.where(found.labels == label, 0 if label else 2, found.answers).astype(np.int32)
    predictions.write(run, task, Predictions(**{**vars(found), "answers": answers}))


@pytest.fixture
def command(capsys):
    def call(*argv):
        code = main([str(word) for word in argv])
        return CompletedProcess(argv, code, *capsys.readouterr())

    return call


# --- statistics ---


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(0, 6) == pytest.approx(2 / 2**6)


def test_mcnemar_against_scipy():
    from scipy.stats import binom, binomtest, chi2

    assert mcnemar(7, 15) == pytest.approx(binomtest(7, 22, 0.5).pvalue)
    assert mcnemar(20, 40) == pytest.approx(binomtest(20, 60, 0.5).pvalue - binom.pmf(20, 60, 0.5))
    assert mcnemar(480, 560) == pytest.approx(chi2.sf(80**2 / 1040, 1), rel=0.01)


def test_mcnemar_rejects_no_more_than_it_says():
    from scipy.stats import binom

    for nb in (5, 10, 24, 25, 40, 100, 400):
        real = [only for only in range(nb + 1) if mcnemar(only, nb - only) < 0.05]
        assert sum(binom.pmf(real, nb, 0.5)) < (0.05 if nb < pairs.FEW else 0.06)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def test_tests_over_seeds():
    from scipy import stats

    a, b = [3.0, 5.0, 4.0, 9.0], [1.0, 4.5, 3.0, 5.0]
    assert t_test(a, b, paired=True) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert t_test(a, b[:3], paired=False) == pytest.approx(stats.ttest_ind(a, b[:3], equal_var=False).pvalue)
    assert t_test(a, a, paired=True) == 1.0 and t_test([2.0, 3.0], [1.0, 2.0], paired=True) is None
    assert permutation(a, b, paired=True) == (2 / 16, 2 / 16)
    wanted = stats.permutation_test((a, b[:3]), lambda x, y: np.mean(x) - np.mean(y), permutation_type="independent")
    assert permutation(a, b[:3], paired=False)[0] == pytest.approx(wanted.pvalue, abs=1 / 35 + 1e-9)
    assert permutation([1.0, 2.0], [1.0, 2.0], paired=True) == (1.0, 0.5)
    many = permutation(np.arange(20.0), np.arange(20.0) - 1, paired=True)
    assert many == permutation(np.arange(20.0), np.arange(20.0) - 1, paired=True) and many[0] < 0.001


def test_draws_have_the_variance_of_a_mean():
    rng = np.random.default_rng(0)
    d = rng.integers(-1, 2, (1, 60, 1)) / 60.0
    strata = np.repeat([0, 1, 2], [20, 39, 1])
    found = draws([d], strata, samples=20_000, rng=rng)[:, 0]
    wanted = sum(len(rows) * d[0, rows, 0].var(ddof=1) for rows in (np.arange(20), np.arange(20, 59)))
    assert found.mean() == pytest.approx(d.sum(), abs=0.002) and found.var() == pytest.approx(wanted, rel=0.05)


def test_between_seeds_alone_it_is_the_t_test():
    from scipy import stats

    figures = np.array([1.0, 3.0, 2.5])
    found = draws(
        [np.tile(figures[:, None, None] / 10, (1, 10, 1))], np.zeros(10), samples=10_000, rng=np.random.default_rng(0)
    )
    low, high = stats.t.interval(0.95, 2, figures.mean(), stats.sem(figures))
    assert interval(found[:, 0]) == pytest.approx((low, high), abs=0.01)


def simulated(rng, nb_runs, better, between):
    """Right answers of two methods, (2, R, P): images more or less hard, methods with images of their own, runs that vary."""
    hard = rng.normal(size=80) + 0.3 * rng.normal(size=(2, 1, 80))
    level = np.array([better, 0.0])[:, None, None] + between * rng.normal(size=(2, nb_runs, 1))
    return (hard + 0.4 * rng.normal(size=(2, nb_runs, 80)) < 0.7 + level).astype(float)


@pytest.mark.parametrize(
    "nb_runs, between, paired", [(1, 0.0, True), (2, 0.1, True), (3, 0.0, True), (3, 0.3, True), (3, 0.3, False)]
)
def test_chance_is_taken_for_a_difference_one_time_in_twenty(nb_runs, between, paired):
    rng, times, found = np.random.default_rng(1), 300, {0.0: 0, 1.2: 0}
    for better in found:
        for _ in range(times):
            a, b = (each[:, :, None] / 80 for each in simulated(rng, nb_runs, better, between))
            low, high = interval(draws([a - b] if paired else [a, -b], np.zeros(80), samples=300, rng=rng)[:, 0])
            found[better] += not low <= 0 <= high
    # With 300 times and 5 %, 24 or fewer are found with a probability of 0.99. One run each: the seed's chance is in neither.
    assert 1 <= found[0.0] <= 24 if nb_runs < 3 else found[0.0] <= 24
    assert found[1.2] > {1: 0.95, 2: 0.2, 3: 0.5}[nb_runs] * times


# --- runs ---


def test_a_run_and_itself_and_its_repetition(command, tmp_path):
    a = made(tmp_path / "a")
    shutil.copytree(a, tmp_path / "again")
    for b in (a, tmp_path / "again"):
        done = command(a, b)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "A and B: no difference: all answers are the same."


def test_what_is_wrong_is_told_with_its_task(command, tmp_path):
    a = made(tmp_path / "a")
    shutil.copytree(a, tmp_path / "b")
    for label in (2, 3):
        damage(tmp_path / "b", 2, label)
    done = command(a, tmp_path / "b", "--json")
    found = json.loads(done.stdout)
    assert found["verdict"].startswith("A is better than B by") and "distinguishable from chance" in found["verdict"]
    assert "A is better on task 2 (Holm)." in found["verdict"] and "not disting" not in found["verdict"]
    rows = {row["name"]: row for row in found["rows"] if row["kind"] == "task unknown"}
    right = pairs.pair(read(a), read(tmp_path / "b")).a[0].right(2, known=False)
    nb_right = int(right[pairs.pair(read(a), read(a)).a[0].last.tasks == 1].sum())
    assert (rows["task 2"]["only_a"], rows["task 2"]["only_b"]) == (nb_right, 0)
    assert rows["task 2"]["p"] == pytest.approx(mcnemar(nb_right, 0))
    assert rows["task 1"]["difference"] == rows["task 3"]["difference"] == 0 and rows["task 1"]["p"] == 1
    known = [row["difference"] for row in found["rows"] if row["kind"] == "task known"]
    assert known == [0.0] * 5
    assert rows["average incremental accuracy"]["difference"] == pytest.approx(rows["all classes"]["difference"] / 3)
    other = json.loads(command(tmp_path / "b", a, "--json").stdout)["verdict"]
    assert other == found["verdict"].replace("A is", "X is").replace("than B", "than A").replace("X is", "B is")


def test_series_are_paired_by_seed(command, tmp_path):
    a = made_series(tmp_path / "a", [0, 1, 2, 3], quality=1.2)
    b = made_series(tmp_path / "b", [1, 2, 3, 7], quality=0.3, chance=1)
    done = command(a, b)
    assert "left out: seed-0 (seed 0)" in done.stdout and "left out: seed-7 (seed 7)" in done.stdout
    assert "cannot go below p = 0.25, whatever the difference; it takes 6 pairs" in done.stdout
    assert "3 pairs of runs, 72 images each" in done.stdout.splitlines()[-1]
    found = pairs.compare(read(a), read(b))
    row = found.rows[NB_TASKS + 1]
    mean = np.mean([np.mean([record["acc"] for record in past.ends]) for past in read(a)[1:]])
    assert row.a == pytest.approx(mean) and row.low < row.difference < row.high and row.real
    assert found.seeds[0].a == pytest.approx([np.mean([r["acc"] for r in past.ends]) for past in read(a)[1:]], abs=1e-3)
    again = pairs.compare(read(a), read(b))
    assert again.rows == found.rows  # the same draws


def test_series_without_a_common_seed_are_unpaired(command, tmp_path):
    a, b = made_series(tmp_path / "a", [0, 1, 2]), made_series(tmp_path / "b", [3, 4])
    done = command(a, b, "--json")
    found = json.loads(done.stdout)
    assert not found["paired"] and found["nb_runs"] == [3, 2] and "3 and 2 unpaired runs" in found["verdict"]
    assert any("unpaired, seed-0 (seed 0), seed-1" in note for note in found["notes"])
    assert all(row["only_a"] is None and row["test"] == "bootstrap" for row in found["rows"])
    assert "not distinguishable" in found["verdict"]


def test_other_class_orders_are_paired_by_place(command, tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b", order=[5, 3, 1, 0, 2, 4])
    found = json.loads(command(a, b, "--json").stdout)
    assert {row["name"] for row in found["rows"]} == {"all classes", "average incremental accuracy"}
    last = next(row for row in found["rows"] if row["name"] == "all classes")
    assert (last["difference"], last["only_a"], last["only_b"], found["same"]) == (
        pytest.approx(100 * (last["only_a"] - last["only_b"]) / 72),
        last["only_a"],
        last["only_b"],
        False,
    )
    assert any("class orders differ" in note for note in found["notes"])
    assert command(a, b, "--out", tmp_path / "out").returncode == 0


def test_fewer_tasks_are_compared_where_both_have_them(command, tmp_path):
    done = command(made(tmp_path / "a"), made(tmp_path / "b", nb_tasks=2, seed=4, quality=0.5))
    assert "A has learned 3 tasks and B 2: the first 2 of both are compared" in done.stdout
    assert "the seeds differ: 0 and 4" in done.stdout and "task 3" not in done.stdout and done.returncode == 0


@pytest.mark.parametrize(
    "how, code, said",
    [
        ({"digest": "others"}, 2, "not tested on the same images"),
        ({"argv": ("--validation", "0.1")}, 2, "validation: A has 0.0, B 0.1"),
        ({"argv": ("--data-set", "cifar100")}, 2, "data_set: A has digits, B cifar100"),
        ({"order": [5, 3, 1, 0, 2, 4], "nb_tasks": 2}, 2, "have not learned the same classes"),
        ({"nb_tasks": 0}, 4, "no task has been learned yet"),
    ],
)
def test_what_does_not_go_together_is_one_line(how, code, said, command, tmp_path):
    done = command(made(tmp_path / "a"), made(tmp_path / "b", **how))
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.parametrize(
    "harm, said", [("gone", "no predictions were kept"), ("cut", "does not hold"), ("classes", "classes.json")]
)
def test_damage_is_one_line(harm, said, command, tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b", order=[5, 3, 1, 0, 2, 4])
    path = predictions.path_of(b, 1)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        (path if harm == "gone" else b / "classes.json").unlink()
    done = command(a, b)
    assert (done.returncode, done.stdout) == (4, "") and done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.parametrize(
    "argv, code",
    [
        (["A"], 2),
        (["A", "A", "--sample", "9"], 2),
        (["A", "A", "--samples", "9"], 2),
        (["A", "A", "--seed", "-1"], 2),
        (["A", "A", "--out", "A/inside"], 2),
        (["A", "nothing"], 4),
        (["A", "A", "--out", "A.txt/out"], 4),
    ],
)
def test_wrong_arguments_are_one_line(argv, code, command, tmp_path):
    made(tmp_path / "A")
    (tmp_path / "A.txt").write_text("")
    done = command(*(word if word.startswith("-") or word.isdecimal() else tmp_path / word for word in argv))
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.count("\n") == 1


def test_tables_and_a_picture_are_written_and_nothing_of_the_runs(command, tmp_path):
    a = made_series(tmp_path / "a", [0, 1])
    b = made_series(tmp_path / "b", [0, 1], quality=0.8, chance=1)
    before = {path: path.read_bytes() for side in (a, b) for path in side.rglob("*") if path.is_file()}
    assert command(a, b, "--out", tmp_path / "out", "--samples", "200", "--seed", "3").returncode == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {f"difference{of}.{kind}" for of in ("", "-known", "-seeds") for kind in ("csv", "md", "tex")}
    assert names == tables | {"difference.png", "difference.svg"}
    rows = list(csv.reader((tmp_path / "out" / "difference.csv").open()))
    assert [row[0] for row in rows[1:]] == ["task 1", "task 2", "task 3", "all classes", "average incremental accuracy"]
    assert before == {path: path.read_bytes() for side in (a, b) for path in side.rglob("*") if path.is_file()}


def test_runs_that_were_trained(command, tmp_path):
    finish([*TINY, "--seeds", "0", "1", "2", *folders(tmp_path)], tmp_path)
    a, b = next((tmp_path / "logs").rglob("series.json")).parent, tmp_path / "copy"
    shutil.copytree(a, b)
    assert command(a, b).stdout.endswith("all answers are the same.\n")
    for past in read(b):
        kept = past.predictions(1)
        wrong = np.where(kept.tasks == 1, 0, kept.answers).astype(np.int32)  # a new class is never answered
        predictions.write(past.logs, 1, Predictions(**{**vars(kept), "answers": wrong}))
    done = command(a, b)
    assert (done.returncode, done.stderr) == (0, "") and "3 pairs of runs" in done.stdout.splitlines()[-1]
    found = pairs.compare(read(a), read(b))
    stored = json.loads((a / "series.json").read_text())
    rows = {(row.name, row.kind): row for row in found.seeds}
    for kind, suffix in (("task unknown", ""), ("task known", "_known")):
        for name, key in (("average incremental accuracy", "avg_acc"), ("last accuracy", "acc"), ("forgetting", "forgetting")):
            assert rows[name, kind].a == pytest.approx(stored[key + suffix]["values"], abs=2e-4)
    first, second, third = exhibits(read(a), read(b), samples=200)
    assert first.figure is not None and first.found == pairs.compare(read(a), read(b), samples=200).verdict
    assert len(second.table.rows) == 4 and len(third.table.rows) == 6
    assert command(a / "seed-1", a / "seed-1").stdout.endswith("all answers are the same.\n")

    code, said = jobs.command("continual.report", [a, "--deep", "--out", tmp_path / "page"], tmp_path)
    text = (tmp_path / "page/index.html").read_text()
    assert code == 0 and "3 runs" in text and "its lowest seed" in text, said
    for name in ("methods", "verdict", "error-parts", "attention"):
        assert f'id="{name}"' in text, name
