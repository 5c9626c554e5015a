"""Evaluation alone: by task, by class and by image, of any task that was kept; and nothing of the run is touched."""

import csv

import numpy as np
import pytest
from jobs import TINY, checkpoints, finish, folders, logs, run
from made_up import write_image_tree
from using import everything

from continual.report.reading import read
from continual.runs.looking import of_classes
from continual.runs.predictions import Predictions


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run on a folder of images."""
    top = tmp_path_factory.mktemp("done")
    write_image_tree(top / "data", ["ant", "bee", "cat", "dog"], 9, 3, 8)
    argv = [*TINY, "--data-set", "folder", "--data-path", str(top / "data"), "--memory-size", "8", "--batch-size", "4"]
    finish([*argv, *folders(top / "run")], top / "run")
    return top


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table_below(text: str, header: str) -> dict[str, list[str]]:
    lines = text.split(header, 1)[1].splitlines()[2:]
    return {line.split()[0]: line.split()[1:] for line in lines[: lines.index("")]}


@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_any_kept_task_by_class_and_by_image(done, tmp_path, task, processes):
    before = everything(done / "run")
    file = tmp_path / "answers.csv"
    argv = ["--eval", "--resume", str(logs(done / "run")), "--start-task", str(task), "--predictions", str(file), "--dist-eval"]
    said = finish(argv, tmp_path, processes=processes).said()
    assert everything(done / "run") == before
    assert f"Task {task}/2, {2 * task} classes seen" in said and f"the answers on {6 * task} test images are in {file}" in said
    (past,) = read(logs(done / "run"))
    kept, rows, names = past.predictions(task - 1), rows_of(file), past.names()
    assert [int(row["place"]) for row in rows] == kept.places.tolist()
    for column, labels in (("class", kept.labels), ("answer", kept.answers), ("answer_known", kept.answers_known)):
        assert [row[column] for row in rows] == [names[label] for label in labels]
    for row, label, scores in zip(rows, kept.labels, kept.logits.astype(float), strict=True):
        assert row["path"].startswith(f"val/{row['class']}/") and row["task"] == str(label // 2)
        odds = np.exp(scores - scores.max())
        assert float(row["probability"]) == pytest.approx(odds.max() / odds.sum(), abs=2e-3)
        ranked = [names[each] for each in np.argsort(-scores, kind="stable")]
        assert [row[f"top_{rank}"] for rank in range(1, 6)] == [*ranked, *[""] * (5 - len(ranked))]
    table = table_below(said, "class  task  images  task unknown  top-5  task known")
    for label, name in enumerate(names[: 2 * task]):
        hits = [
            100 * np.mean([row[column] == name for row in rows if row["class"] == name])
            for column in ("answer", "answer_known")
        ]
        assert table[name] == [str(label // 2), "3", f"{hits[0]:.1f}", "100.0", f"{hits[1]:.1f}"]


def test_other_test_images_if_one_insists(done, tmp_path):
    write_image_tree(tmp_path / "data", ["ant", "bee", "cat", "dog"], 9, 2, 8, seed=1)
    before = everything(done)
    argv = ["--eval", "--resume", str(checkpoints(done / "run")), "--data-path", str(tmp_path / "data"), "--resume-anyway"]
    said = finish([*argv, "--predictions", str(tmp_path / "a.csv")], tmp_path).said()
    assert "Task 2/2" in said and len(rows_of(tmp_path / "a.csv")) == 8 and everything(done) == before


def test_top_five_of_more_than_five_classes():
    logits = np.array([[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]], dtype=np.float32)
    answers = np.array([0, 5])
    found = Predictions(logits, answers, np.array([5, 5]), np.array([5, 5]), np.arange(2), np.array([3, 3]), "")
    ranked = np.argsort(-logits, axis=1)[:, :5]
    *_, last = (row for row in of_classes(found, ranked, list("abcdef")) if row["images"])
    assert last == {"class": "f", "task": 1, "images": 2, "acc": 50.0, "acc5": 50.0, "acc_known": 100.0}


REFUSED = {
    "into the run": (lambda run, tmp: ["--eval", "--resume", run, "--predictions", f"{run}/a.csv"], 2, "lies in the folder of"),
    "no folder": (lambda run, tmp: ["--eval", "--resume", run, "--predictions", "/proc/absent/a.csv"], 2, "cannot be written"),
    "training": (lambda run, tmp: ["--resume", run, "--predictions", f"{tmp}/a.csv"], 2, "by an evaluation alone"),
    "not kept": (lambda run, tmp: ["--eval", "--resume", run, "--max-task", "9", "--start-task", "8"], 4, "tasks 0, 1"),
    "no such task": (lambda run, tmp: ["--eval", "--resume", run, "--start-task", "4"], 2, "comes after the last"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, done, tmp_path):
    argv, code, told = REFUSED[case]
    before = everything(done / "run")
    job = run(argv(str(logs(done / "run")), tmp_path / "new"), tmp_path)
    assert job.codes == [code] and told in job.said().splitlines()[-1] and everything(done / "run") == before


def test_a_series_has_no_one_file(tmp_path):
    finish([*TINY, "--max-task", "1", "--seeds", "3", "4", *folders(tmp_path)], tmp_path)
    top = min((tmp_path / "logs").rglob("run.json"), key=lambda path: len(path.parts)).parent
    argv = ["--eval", "--resume", str(top), "--predictions", str(tmp_path / "a.csv")]
    job = run(argv, tmp_path)
    assert job.codes == [2] and "predictions: a series has several runs" in job.said()


def test_checkpoints_without_their_logs_get_none(done, tmp_path):
    (tmp_path / "copy").mkdir()
    for path in checkpoints(done / "run").iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    before = everything(tmp_path / "copy")
    finish(["--eval", "--resume", str(tmp_path / "copy")], tmp_path)
    assert everything(tmp_path / "copy") == before
