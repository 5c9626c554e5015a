import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from continual import report as report_module
from continual.errors import DataError, Preempted
from continual.metrics import Scores
from continual.report import Report, duration, matrix_table, summarise, summary_text, text_table
from continual.tasks import Task

IMAGES = Path(__file__).parent.parent / "images"


def scores(*accuracies: float, known: float = 0.9, nb: int = 100) -> Scores:
    top1 = [round(nb * share) for share in accuracies]
    tasks = len(top1)
    return Scores([nb] * tasks, top1, [nb] * tasks, [round(nb * known)] * tasks, [0.5 * nb] * tasks)


def evaluate(report: Report, index: int, *accuracies: float, final: bool = True, epoch: int = 3, **losses: float) -> dict:
    return report.evaluation(
        scores(*accuracies),
        task=Task(index, 10 * index, 10),
        epoch=epoch,
        phase="training",
        final=final,
        lr=5e-4,
        train_losses=losses or {"clf": 0.25, "kd": 0.125, "total": 0.375},
        nb_parameters=1000 + index,
        nb_exemplars=200,
    )


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


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(report_module, "monotonic", lambda: Clock.now)
    return Clock


# Evaluations


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
        with report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=1) as progress:
            progress.step(1, lambda: pytest.fail("nobody looks at these losses"))
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

    monkeypatch.setattr(report_module.os, "fsync", full)
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


def run_of(nb_tasks: int, *, shift: float = 0.0) -> dict:
    report = Report(None, nb_tasks=nb_tasks, console=False)
    for i in range(nb_tasks):
        evaluate(report, i, *(0.9 - shift - 0.5 * (i - j) / nb_tasks for j in range(i + 1)))
    return report.finish(nb_parameters=11, nb_exemplars=22, seconds=33.0)


@pytest.mark.parametrize("nb_tasks", [1, 2, 10, 11, 50])
def test_tables_stay_within_a_hundred_columns(nb_tasks):
    text = summary_text(run_of(nb_tasks))
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 70
    assert ("summary.json" in text) == (nb_tasks > 10)


def test_long_matrices_show_diagonal_and_last_row():
    matrix = [[10.0 * i + j / 10 for j in range(i + 1)] for i in range(12)]
    assert matrix_table(matrix).split("\n\n")[1].splitlines() == [
        "task             11     12",
        "--------------------------",
        "when learned  101.0  111.1",
        "at the end    111.0  111.1",
    ]


def test_text_table_aligns():
    assert text_table(["", "a", "long"], [["x", "1", "2"], ["yy", "33"]]) == "     a  long\n------------\nx    1     2\nyy  33"


def test_series_gives_mean_and_sample_deviation():
    text, series = summarise([run_of(3), run_of(3, shift=0.1), run_of(3, shift=0.2)])
    assert series["nb_runs"] == 3
    assert series["acc"]["std"] == pytest.approx(10.0)
    assert series["acc"]["mean"] == pytest.approx(series["acc"]["values"][1])
    assert f"{series['acc']['mean']:.2f} ± 10.00" in text
    assert "over 3 runs" in text


def test_one_run_has_no_deviation():
    text, series = summarise([run_of(2)])
    assert series["acc"]["std"] is None
    assert "±" not in text
    with pytest.raises(ValueError, match="no run"):
        summarise([])


# Progress


def train(report, clock, *, nb_epochs, seconds, nb_steps=10, calls=None, title="task 2/5 training"):
    def losses():
        if calls is not None:
            calls.append(clock.now)
        return {"clf": 0.12341, "kd": 0.0456, "total": 0.168}

    for epoch in range(nb_epochs):
        with report.epoch(title, epoch=epoch, nb_epochs=nb_epochs, nb_steps=nb_steps) as progress:
            for _ in range(nb_steps):
                clock.now += seconds / nb_steps
                progress.step(128, losses)


def test_one_plain_line_per_epoch(clock, capsys):
    train(Report(None, nb_tasks=5, console=True), clock, nb_epochs=3, seconds=20.0)
    assert capsys.readouterr().out.splitlines() == [
        "task 2/5 training epoch 1/3  clf 0.1234 kd 0.0456 total 0.168  64 img/s  left 0:00:40",
        "task 2/5 training epoch 2/3  clf 0.1234 kd 0.0456 total 0.168  64 img/s  left 0:00:20",
        "task 2/5 training epoch 3/3  clf 0.1234 kd 0.0456 total 0.168  64 img/s",
    ]


@pytest.mark.parametrize(("nb_epochs", "seconds"), [(40, 0.5), (500, 5.0), (101, 0.1)])
def test_short_or_many_epochs_share_about_ten_lines(clock, capsys, nb_epochs, seconds):
    train(Report(None, nb_tasks=5, console=True), clock, nb_epochs=nb_epochs, seconds=seconds)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 11
    assert f"epoch {nb_epochs}/{nb_epochs}" in printed[-1]


def test_ten_silent_minutes_end_with_a_line(clock, capsys):
    train(Report(None, nb_tasks=5, console=True), clock, nb_epochs=200, seconds=700.0)
    assert len(capsys.readouterr().out.splitlines()) == 200


def test_losses_are_asked_for_only_when_shown(clock, capsys):
    calls = []
    train(Report(None, nb_tasks=5, console=True), clock, nb_epochs=2, seconds=5.0, nb_steps=1000, calls=calls)
    assert len(calls) == 2


def test_time_left_of_a_resumed_epoch_counts_what_was_done_here(clock, capsys):
    report = Report(None, nb_tasks=5, console=True)
    with report.epoch("phase", epoch=1, nb_epochs=3, nb_steps=10, first_step=8) as progress:
        for _ in range(2):
            clock.now += 1.0
            progress.step(4, {"total": 1.0})
    assert capsys.readouterr().out == "phase epoch 2/3  total 1  4 img/s  left 0:00:10\n"


def test_an_epoch_resumed_at_its_end_says_so_without_numbers(clock, capsys):
    report = Report(None, nb_tasks=5, console=True)
    with report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=10, first_step=10):
        pass
    assert capsys.readouterr().out == "phase epoch 1/1\n"


def test_an_epoch_that_fails_is_not_told_as_done(clock, capsys):
    report = Report(None, nb_tasks=5, console=True)
    with pytest.raises(RuntimeError), report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=10) as progress:
        progress.step(1, {"total": 1.0})
        raise RuntimeError
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    calls = []
    train(Report(None, nb_tasks=5, console=True), clock, nb_epochs=1, seconds=20.0, nb_steps=1000, calls=calls)
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1
    assert "task 2/5 training epoch 1/1 |" in output.err
    assert "kd 0.0456" in output.err
    assert 50 <= len(calls) <= 70  # 20 seconds, a refresh every 0.3


def test_a_narrow_terminal_encoding_does_not_stop_a_run(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        Report(None, nb_tasks=1, console=True).say("60.0 ± 1.0")
    assert (tmp_path / "out").read_text() == "60.0 ? 1.0\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (90061, "1 d 1:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text


# Pictures


def test_forgetting_is_drawn_from_summaries(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    paths = []
    for run, shift in enumerate((0.0, 0.05)):
        paths.append(tmp_path / f"{run}.json")
        paths[-1].write_text(json.dumps(run_of(3, shift=shift)))
    both, first = f"DyTox={paths[0]},{paths[1]}", f"Without memory={paths[0]}"
    out = tmp_path / "forgetting.png"
    monkeypatch.setattr(sys, "argv", ["draw_forgetting.py", "--out", str(out), both, first])
    runpy.run_path(str(IMAGES / "draw_forgetting.py"), run_name="__main__")
    assert out.read_bytes().startswith(b"\x89PNG")
