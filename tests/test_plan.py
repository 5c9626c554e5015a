"""How much a run has still to do is what it then does; how long that takes follows from what the like has taken."""

from types import SimpleNamespace

import pytest
import torch
from jobs import THREE_TASKS

import main
from continual.jobs import watch
from continual.options import parse
from continual.runs import folders, opening, plan
from continual.runs.experiment import Here
from continual.runs.ledger import EVALUATION, EXEMPLARS, Ledger, Line
from continual.runs.plan import Work, seconds_left
from continual.runs.series import Part

PLAN = [
    Work(0, "training", {"training": 10, EVALUATION: 0}),
    Work(0, "", {EVALUATION: 4}),
    Work(1, "training", {"training": 20, EVALUATION: 8}),
    Work(1, "remembering", {EXEMPLARS: 6}),
    Work(1, "finetuning", {"finetuning": 5, EVALUATION: 0}),
    Work(1, "", {EVALUATION: 8}),
]


def ledger_of(other=0.0, **lines):
    ledger = Ledger(torch.device("cpu"))
    ledger.total = lambda: other + sum(line.seconds for line in ledger.lines.values())
    ledger.lines = {(int(key[-1]), key[:-1]): line for key, line in lines.items()}
    return ledger


def left(ledger, task, step, share):
    found = seconds_left(PLAN, ledger, task=task, step=step, share=share)
    return found and found.run


def test_time_left_goes_by_what_the_like_took_last():
    training0, training1 = Line(images=40, steps=5, seconds=10.0), Line(images=20, steps=2, seconds=6.0)
    evaluation, exemplars = Line(images=4, seconds=2.0), Line(images=6, seconds=12.0)
    early = ledger_of(training0=training0)  # 2 s a step; what never was goes at 0.25 s an image
    assert left(early, 0, "training", 0.5) == pytest.approx(5 * 2 + (4 + 8 + 6 + 8) * 0.25 + 20 * 2 + 5 * 2)
    later = ledger_of(training0=training0, evaluation0=evaluation, exemplars0=exemplars, training1=training1)
    assert left(later, 1, "training", 0.25) == pytest.approx(0.75 * (20 * 16 / 7 + 8 * 0.5) + 6 * 2 + 5 * 16 / 7 + 8 * 0.5)
    assert left(later, 1, "finetuning", 1.0) == pytest.approx(8 * 0.5)


def test_time_left_of_the_task_ends_with_its_last_evaluation():
    line, evaluation = Line(images=40, steps=5, seconds=10.0), Line(images=4, seconds=2.0)
    ledger = ledger_of(training0=line, evaluation0=evaluation)
    found = seconds_left(PLAN, ledger, task=0, step="training", share=0.5)
    assert found.task == pytest.approx(5 * 2 + 4 * 0.5)
    assert found.run == pytest.approx(found.task + 20 * 2 + 8 * 0.5 + 6 * 0.25 + 5 * 2 + 8 * 0.5)
    last = seconds_left(PLAN, ledger, task=1, step="finetuning", share=0.0)
    assert last.task == last.run == pytest.approx(5 * 2 + 8 * 0.5)


def test_time_of_no_line_goes_on_in_proportion():
    line = Line(images=4, steps=5, seconds=10.0)
    assert left(ledger_of(other=5.0, training0=line), 0, "training", 0) == 1.5 * left(
        ledger_of(training0=line), 0, "training", 0
    )


def test_nobody_can_tell_before_anything_was_done_or_without_a_plan():
    assert left(ledger_of(), 0, "training", 0.0) is None
    line = Line(images=4, steps=5, seconds=10.0)
    assert seconds_left([], ledger_of(training0=line), task=0, step="training", share=0.5) is None


class Hesitant:
    def steps(self, task):
        raise RuntimeError("not before the task has begun")


def test_a_method_that_cannot_plan_goes_without_an_estimate():
    data = SimpleNamespace(y=torch.zeros(0).numpy(), t=torch.zeros(0).numpy())
    benchmark = SimpleNamespace(train_samples=data, test_samples=data)
    assert plan.works(Hesitant(), [SimpleNamespace(index=0)], benchmark, None, parse([])) == []


@pytest.mark.parametrize("method", ["dytox", "joint", "bic"])
def test_what_is_planned_is_what_is_done(method, tmp_path):
    """Two tasks of two classes: every step of training, every image evaluated or looked at for exemplars."""
    short = ["--base-epochs", "3", "--epochs", "3", "--finetuning-epochs", "1", "--max-task", "2", "--eval-every", "1"]
    options = parse([*THREE_TASKS, "--method", method, *short, "--rehearsal", "icarl_all"])
    place = folders.Place(tmp_path / "logs", tmp_path / "checkpoints")
    place.logs.mkdir()
    place.checkpoints.mkdir()
    made, prepare = [], opening.prepare

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "prepare", lambda *args: made.append(prepare(*args)) or made[0])
        patch.setattr(opening, "Run", lambda *args, make=opening.Run: made.append(make(*args)) or made[1])
        main.train(Part(options, place), Here(torch.device("cpu"), watch.StopSignal()))
    exp, run = made
    planned = {}
    for work in exp._plan:
        for kind, amount in work.amounts.items():
            planned[work.task, kind] = planned.get((work.task, kind), 0) + amount
    done = {key: line.steps or line.images for key, line in run.ledger.lines.items()}
    assert {key: amount for key, amount in planned.items() if amount} == {key: amount for key, amount in done.items() if amount}
