"""Evaluations and runs made up from accuracies alone."""

from continual.metrics import Scores
from continual.runs.record import Report
from continual.tasks import Task


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


def run_of(nb_tasks: int, *, shift: float = 0.0) -> dict:
    report = Report(None, nb_tasks=nb_tasks, console=False)
    for i in range(nb_tasks):
        evaluate(report, i, *(0.9 - shift - 0.5 * (i - j) / nb_tasks for j in range(i + 1)))
    return report.finish(nb_parameters=11, nb_exemplars=22, seconds=33.0)
