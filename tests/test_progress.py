"""What people see while a run goes on."""

import sys

import pytest

from continual.runs.record import Report
from continual.seeing import progress
from continual.seeing.progress import duration


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(progress, "monotonic", lambda: Clock.now)
    return Clock


def train(report, clock, *, nb_epochs, seconds, nb_steps=10, calls=None, title="task 2/5 training"):
    def losses():
        if calls is not None:
            calls.append(clock.now)
        return {"clf": 0.12341, "kd": 0.0456, "total": 0.168}

    for epoch in range(nb_epochs):
        with report.epoch(title, epoch=epoch, nb_epochs=nb_epochs, nb_steps=nb_steps) as bar:
            for _ in range(nb_steps):
                clock.now += seconds / nb_steps
                bar.step(128, losses)


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
    with report.epoch("phase", epoch=1, nb_epochs=3, nb_steps=10, first_step=8) as bar:
        for _ in range(2):
            clock.now += 1.0
            bar.step(4, {"total": 1.0})
    assert capsys.readouterr().out == "phase epoch 2/3  total 1  4 img/s  left 0:00:10\n"


def test_an_epoch_resumed_at_its_end_says_so_without_numbers(clock, capsys):
    report = Report(None, nb_tasks=5, console=True)
    with report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=10, first_step=10):
        pass
    assert capsys.readouterr().out == "phase epoch 1/1\n"


def test_an_epoch_that_fails_is_not_told_as_done(clock, capsys):
    report = Report(None, nb_tasks=5, console=True)
    with pytest.raises(RuntimeError), report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=10) as bar:
        bar.step(1, {"total": 1.0})
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


def test_the_time_left_of_task_and_run_goes_by_the_share_of_the_phase(clock, capsys):
    shares = []
    report = Report(None, nb_tasks=5, console=True)
    for epoch, first in ((1, 5), (2, 0)):
        how = {
            "nb_epochs": 4,
            "nb_steps": 10,
            "first_step": first,
            "time_left": lambda share: shares.append(share) or (60 * share, 3600 * share),
        }
        with report.epoch("phase", epoch=epoch, **how) as bar:
            for _ in range(10 - first):
                clock.now += 1.0
                bar.step(4, {"total": 1.0})
    assert shares == [0.5, 0.75]
    ends = [line.split("  ")[-2:] for line in capsys.readouterr().out.splitlines()]
    assert ends == [["task 0:00:30", "run 0:30:00"], ["task 0:00:45", "run 0:45:00"]]
    with report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=1, time_left=lambda share: None) as bar:  # nobody can tell
        clock.now += 1.0
        bar.step(4, {"total": 1.0})
    told = capsys.readouterr().out
    assert "run" not in told and "task" not in told


def test_the_speed_of_an_epoch_is_known_once_it_is_over(clock):
    report = Report(None, nb_tasks=5, console=False)
    with report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=2) as bar:
        for _ in range(2):
            clock.now += 1.0
            bar.step(6, {"total": 1.0})
    clock.now += 10.0
    assert bar.speed == 6.0
    with report.epoch("phase", epoch=0, nb_epochs=1, nb_steps=2, first_step=2) as bar:
        pass
    assert bar.speed is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (90061, "1 d 1:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text
