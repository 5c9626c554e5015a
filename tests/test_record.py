"""What stays of a run on disk."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from evaluations import evaluate, run_of, scores

from continual.errors import DataError, OptionsError, Preempted
from continual.registry import METRICS
from continual.rehearsal import Memory
from continual.runs.ledger import Ledger
from continual.runs.record import KEYS, LOSS, Report
from continual.seeing.tables import summarise
from continual.tasks import Task


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


# Evaluations


def test_distances_between_task_tokens_end_the_table_and_the_line(tmp_path, capsys):
    report = Report(tmp_path, nb_tasks=2, console=True)
    rest = {
        "epoch": 0,
        "phase": "training",
        "final": True,
        "lr": 1.0,
        "train_losses": {},
        "nb_parameters": 1,
        "nb_exemplars": 0,
    }
    report.evaluation(scores(0.5), task=Task(0, 0, 10), token_distances=[], **rest)
    report.evaluation(scores(0.5, 0.5), task=Task(1, 10, 10), token_distances=[0.5, 0.25, 0.75], **rest)
    names = ("token_mean_dist", "token_min_dist", "token_max_dist")
    assert [[line[name] for name in names] for line in lines(tmp_path)] == [[0, 0, 0], [0.5, 0.25, 0.75]]
    table = capsys.readouterr().out.split("Task 2/2")[1].split("\n\n")[0]
    assert table.splitlines()[-1] == "distance between task tokens: mean 0.500, min 0.250, max 0.750"
    (tmp_path / "none").mkdir()
    evaluate(Report(tmp_path / "none", nb_tasks=1, console=False), 0, 0.5)
    assert "token" not in (tmp_path / "none" / "evaluations.jsonl").read_text()


def test_an_evaluation_is_one_line_of_the_published_names_in_percent(tmp_path):
    report = Report(tmp_path, nb_tasks=3, console=False)
    evaluate(report, 0, 0.9)
    evaluate(report, 1, 0.5, 0.7)
    record = evaluate(report, 2, 0.6, 0.8, 0.4)
    assert lines(tmp_path)[-1] == record
    assert record == {
        "task": 2,
        "epoch": 3,
        "phase": "training",
        "final": True,
        "acc": 60.0,
        "avg_acc": 70.0,
        "forgetting": 10.0,
        "bwt": -10.0,
        "acc_known": 90.0,
        "avg_acc_known": 90.0,
        "forgetting_known": 0.0,
        "bwt_known": 0.0,
        "acc_per_task": [60.0, 80.0, 40.0],
        "acc_known_per_task": [90.0, 90.0, 90.0],
        "test_acc1": 60.0,
        "test_acc5": 100.0,
        "mean_acc5": 100.0,
        "test_loss": 0.5,
        "train_lr": 5e-4,
        "train_loss": 0.375,
        "loss_clf": 0.25,
        "loss_kd": 0.125,
        "n_parameters": 1002,
        "n_exemplars": 200,
    }


def test_evaluations_before_the_end_of_a_task_stand_in_for_its_row_only(tmp_path):
    report = Report(tmp_path, nb_tasks=2, console=False)
    evaluate(report, 0, 0.9)
    early = evaluate(report, 1, 0.2, 0.1, final=False)
    last = evaluate(report, 1, 0.5, 0.7)
    assert early["forgetting"] == 70.0
    assert last["forgetting"] == 40.0
    assert last["avg_acc"] == 75.0
    assert len(lines(tmp_path)) == 3


def test_losses_json_cannot_hold_become_null(tmp_path):
    report = Report(tmp_path, nb_tasks=1, console=False)
    record = evaluate(report, 0, 0.5, clf=float("inf"))
    assert record["loss_clf"] is None
    assert record["train_loss"] is None
    assert lines(tmp_path) == [record]


def test_scores_of_another_task_are_refused():
    report = Report(None, nb_tasks=2, console=False)
    with pytest.raises(ValueError, match="2 tasks came for task 1 when 0 tasks had ended"):
        evaluate(report, 1, 0.5, 0.5)
    with pytest.raises(ValueError, match="1 tasks came for task 1"):
        evaluate(report, 0, 0.5)
        evaluate(report, 1, 0.5)


def test_processes_without_a_folder_keep_the_same_figures_in_silence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main, other = Report(tmp_path, nb_tasks=2, console=False), Report(None, nb_tasks=2, console=False)
    for report in (main, other):
        evaluate(report, 0, 0.9)
        evaluate(report, 1, 0.5, 0.7)
        report.say("a word")
        report.status("running")
        with report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=1) as bar:
            bar.step(1, lambda: pytest.fail("nobody looks at these losses"))
    assert main.state_dict() == other.state_dict()
    finished = [report.finish(nb_parameters=1, nb_exemplars=1, seconds=1.0) for report in (main, other)]
    assert finished[0] == finished[1]
    assert capsys.readouterr() == ("", "")


def test_what_is_printed_after_a_task(capsys):
    report = Report(None, nb_tasks=2, console=True)
    evaluate(report, 0, 0.9, final=False)
    assert capsys.readouterr().out == "task 1/2 training epoch 4  accuracy 90.00 (task known 90.00)\n"
    evaluate(report, 0, 0.9)
    capsys.readouterr()
    evaluate(report, 1, 0.5, 0.7)
    assert capsys.readouterr().out == (
        "\n"
        "Task 2/2 learned, 20 classes seen. Accuracy (%)\n"
        "task             1     2\n"
        "------------------------\n"
        "task unknown  50.0  70.0\n"
        "task known    90.0  90.0\n"
        "\n"
        "              accuracy  average incremental accuracy  forgetting  backward transfer\n"
        "-----------------------------------------------------------------------------------\n"
        "task unknown     60.00                         75.00       40.00             -40.00\n"
        "task known       90.00                         90.00        0.00               0.00\n"
        "\n"
    )


# Metrics from outside


@pytest.fixture
def outside(monkeypatch):
    """Metrics that are forgotten after the test."""
    monkeypatch.setattr(METRICS, "_outside", {})
    return METRICS


def test_a_metric_from_outside_stands_beside_the_figures(outside, tmp_path, capsys):
    seen = []

    def least(matrix):
        seen.append([list(row) for row in matrix])
        matrix.clear()  # it is given a matrix of its own
        return min(seen[-1][-1]) / 3

    outside.add("least", least)
    report = Report(tmp_path, nb_tasks=2, console=True)
    evaluate(report, 0, 0.9)
    capsys.readouterr()
    record = evaluate(report, 1, 0.5, 0.7)
    assert seen[2:] == [[[0.9], [0.5, 0.7]], [[0.9], [0.9, 0.9]]]
    assert (record["least"], record["least_known"]) == (0.1667, 0.3)
    assert lines(tmp_path)[-1] == record
    assert list(record)[11:15] == ["bwt_known", "least", "least_known", "acc_per_task"]
    head, _, unknown, known = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert head.endswith("  backward transfer   least")
    assert unknown.endswith("  0.1667") and known.endswith("  0.3")
    summary = report.finish(nb_parameters=1, nb_exemplars=1, seconds=1.0)
    assert (summary["least"], summary["least_known"]) == (0.1667, 0.3)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_series_tells_the_metrics_that_every_run_has(outside):
    before = run_of(2)
    outside.add("best", lambda matrix: 1000 * max(map(max, matrix)))
    runs = [run_of(2, shift=shift) for shift in (0.0, 0.2)]
    text, series = summarise(runs)
    assert series["best"]["values"] == [900.0, 700.0]
    assert series["best"]["mean"] == 800.0 and series["best"]["std"] == pytest.approx(141.4214)
    assert [line.split() for line in text.splitlines() if line.startswith("best")] == [
        ["best", "800", "±", "141.4", "900", "±", "0"]
    ]
    assert "best" not in summarise([before, *runs])[1]


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda matrix: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda matrix: float("nan"), "nan is no finite number"),
        (lambda matrix: "0.5", "'0.5' is no finite number"),
        (lambda matrix: 10**400, "OverflowError: int too large to convert to float"),
        (lambda matrix: None, "TypeError: "),
        (7, "TypeError: 'int' object is not callable"),
    ],
)
def test_a_metric_that_fails_is_one_line(outside, tmp_path, metric, told):
    outside.add("odd", metric)
    report = Report(tmp_path, nb_tasks=1, console=False)
    with pytest.raises(OptionsError, match=f"^metric odd: it failed: {re.escape(told)}"):
        evaluate(report, 0, 0.5)
    assert not report.nb_bytes


@pytest.mark.parametrize("names", [["acc"], ["accs"], ["matrix_known"], ["loss_clf"], ["runs"], ["mine", "mine_known"]])
def test_a_metric_takes_no_name_of_the_record(outside, names):
    for name in names:
        outside.add(name, lambda matrix: 0.0)
    with pytest.raises(OptionsError, match=f"^metric {names[0]}: the record has something else by the name {names[-1]}"):
        Report(None, nb_tasks=1, console=False)


def test_the_names_of_the_record_are_known(tmp_path):
    report = Report(None, nb_tasks=1, console=False)
    rest = {"epoch": 0, "phase": "training", "final": True, "lr": 1.0, "nb_parameters": 1, "nb_exemplars": 0}
    record = report.evaluation(scores(0.5), task=Task(0, 0, 10), token_distances=[], train_losses={"total": 1.0}, **rest)
    cost = Ledger(torch.device("cpu")).cost(torch.nn.Linear(1, 1), None, Memory(0))
    summary = report.finish(nb_parameters=1, nb_exemplars=1, seconds=1.0, cost=cost)
    assert {*record, *summary, *summarise([summary])[1], "runs"} == KEYS
    assert all(name in KEYS or name.startswith(LOSS) for name in evaluate(Report(None, console=False), 0, 0.5))


# Resuming


def test_a_resumed_run_repeats_nothing(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    report = Report(straight, nb_tasks=2, console=False)
    evaluate(report, 0, 0.9)
    evaluate(report, 1, 0.2, 0.1, final=False)
    evaluate(report, 1, 0.5, 0.7)
    expected = report.finish(nb_parameters=1, nb_exemplars=1, seconds=1.0)

    report = Report(broken, nb_tasks=2, console=False)
    evaluate(report, 0, 0.9)
    saved = json.loads(json.dumps(report.state_dict()))  # plain enough for any checkpoint
    evaluate(report, 1, 0.2, 0.1, final=False)
    (broken / "evaluations.jsonl").open("a").write('{"task": 1, "ep')  # killed while writing

    resumed = Report(broken, nb_tasks=2, console=False)
    resumed.load_state_dict(saved)
    resumed.cut_off()
    evaluate(resumed, 1, 0.2, 0.1, final=False)
    evaluate(resumed, 1, 0.5, 0.7)
    assert resumed.finish(nb_parameters=1, nb_exemplars=1, seconds=1.0) == expected
    for name in ("evaluations.jsonl", "summary.json"):
        assert (broken / name).read_bytes() == (straight / name).read_bytes()


def test_lines_lost_from_the_disk_are_told_and_what_is_there_is_kept(tmp_path, capsys):
    report = Report(tmp_path, nb_tasks=3, console=False)
    evaluate(report, 0, 0.9)
    evaluate(report, 1, 0.5, 0.7)
    state = report.state_dict()
    path = tmp_path / "evaluations.jsonl"
    path.write_bytes(path.read_bytes()[:-5])

    report = Report(tmp_path, nb_tasks=3, console=True)
    report.load_state_dict(state)
    report.cut_off()
    assert re.fullmatch(r"warning: .*evaluations.jsonl lost \d+ of \d+ bytes.*\n", capsys.readouterr().out)
    evaluate(report, 2, 0.6, 0.8, 0.4)
    assert [line["task"] for line in lines(tmp_path)] == [0, 2]
    assert report.state_dict()["nb_bytes"] == path.stat().st_size

    path.unlink()
    report = Report(tmp_path, nb_tasks=3, console=True)
    report.load_state_dict(state)
    assert report.state_dict()["nb_bytes"] == 0
    assert "lost" in capsys.readouterr().out


# Status and summary


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_status_from_the_first_moment_to_the_last(tmp_path):
    report = Report(tmp_path, console=False)
    with report.watched():
        assert status(tmp_path) == {"status": "preparing", "exit_code": None, "message": "", "where": ""}
        report.status("running")
        assert status(tmp_path)["status"] == "running"
    assert status(tmp_path) == {"status": "done", "exit_code": 0, "message": "", "where": ""}


@pytest.mark.parametrize(
    ("error", "word", "code"),
    [
        (DataError("caf\udce9 is empty"), "failed", 3),
        (Preempted("asked to"), "preempted", 75),
        (KeyboardInterrupt("by hand"), "failed", 130),
        (ValueError("odd"), "failed", 1),
    ],
)
def test_status_says_what_ended_a_run_and_where(tmp_path, error, word, code):
    report = Report(tmp_path, console=False)
    for where in ("preparing", "task-2"):
        with pytest.raises(type(error)), report.watched():
            raise error
        message = f"{type(error).__name__}: {str(error).replace(chr(0xDCE9), chr(92) + 'xe9')}"
        assert status(tmp_path) == {"status": word, "exit_code": code, "message": message, "where": where}
        report.where = lambda: "task-2"


def test_what_is_done_stays_done(tmp_path):
    """Until it goes on: a refusal by its data takes nothing away from a run that was finished before."""
    report = Report(tmp_path, nb_tasks=1, console=False)
    with report.watched():
        report.status("running")
        evaluate(report, 0, 0.9)
        report.finish(nb_parameters=1, nb_exemplars=1, seconds=1.0)
    with pytest.raises(DataError), Report(tmp_path, console=False).watched():
        raise DataError("gone")
    assert status(tmp_path)["status"] == "done"


def test_status_is_replaced_whole(tmp_path):
    report = Report(tmp_path, nb_tasks=1, console=False)
    report.status("running")
    report.status("preempted", exit_code=75, message="SIGTERM", where="here")
    assert status(tmp_path) == {"status": "preempted", "exit_code": 75, "message": "SIGTERM", "where": "here"}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    with pytest.raises(ValueError, match="'lost' is none of"):
        report.status("lost")


def test_a_disk_that_refuses_the_status_hides_nothing(tmp_path, monkeypatch, capsys):
    report = Report(tmp_path, nb_tasks=1, console=True)
    report.status("running")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    report.status("failed", exit_code=1, message="disk full")
    assert "No space left" in capsys.readouterr().out
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_summary_holds_matrix_and_figures(tmp_path, capsys):
    report = Report(tmp_path, nb_tasks=2, console=True)
    with pytest.raises(ValueError, match="no task has ended"):
        report.finish(nb_parameters=1, nb_exemplars=1, seconds=1.0)
    evaluate(report, 0, 0.9)
    evaluate(report, 1, 0.5, 0.7)
    capsys.readouterr()
    summary = report.finish(nb_parameters=10_730_000, nb_exemplars=2000, seconds=3723.04)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["matrix"] == [[90.0], [50.0, 70.0]]
    assert summary["matrix_known"] == [[90.0], [90.0, 90.0]]
    assert summary["nb_classes"] == [10, 20]
    assert summary["accs"] == [90.0, 60.0]
    assert (summary["acc"], summary["avg_acc"], summary["forgetting"], summary["bwt"]) == (60.0, 75.0, 40.0, -40.0)
    assert summary["time"] == 3723.0
    printed = capsys.readouterr().out
    assert "after task 2  50.0  70.0\n" in printed
    assert "parameters 10,730,000, exemplars kept 2,000, time 1:02:03\n" in printed
