"""Learn classes task by task, with any method: DyTox, those that it is compared with, or one of your own.

The experiment, top to bottom: options -> scenario -> for each task: the method's phases, remember, evaluate, save.
"""

import signal

from continual.command import quick_imports
from continual.options import Options, parse_or_exit

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is a run that can save, Ctrl-C simply ends it
    OPTIONS = parse_or_exit()  # here, so that a wrong option is answered before torch is imported
    with quick_imports():
        import continual.runs.looking  # noqa: F401  (torch and timm, before all that comes now)

import sys
from functools import partial
from typing import Any

from continual import rehearsal
from continual.jobs import distributed
from continual.jobs.launch import Job
from continual.randomness import seeded
from continual.runs import looking, opening
from continual.runs.experiment import Experiment, Here
from continual.runs.greeting import budget
from continual.runs.ledger import EVALUATION, EXEMPLARS
from continual.runs.run import Run
from continual.runs.series import Part
from continual.runs.sweep import series_of
from continual.tasks import Phase, Remembering, Task
from continual.training import evaluation


def main(options: Options) -> int:
    """Train, or with `eval` only evaluate, one run or a series of runs. Returns the exit code."""
    with Job() as job:
        here = Here(job.join(options), job.stop)
        if not job.ended_before:
            series = series_of(options, job.stop)
            for part in series.to_evaluate() if options.run.eval else series.to_train():
                with part:
                    part.summary = evaluate_only(part, here) if options.run.eval else train(part, here)
    return job.exit_code


def train(part: Part, here: Here) -> dict[str, Any]:
    """One run: every task of one class order. Returns its summary."""
    with opening.to_train(part.options, part.place, here) as (run, exp, summary):
        if summary is not None:
            return summary
        for task in exp.tasks[run.position.task :]:
            learn_task(run, exp, task)
        return run.report.finish(
            nb_parameters=run.nb_parameters(),
            nb_exemplars=len(run.memory),
            seconds=run.seconds(),
            seconds_saving=exp.store.seconds,
            cost=run.ledger.cost(run.model, run.teacher, run.memory),
        )


def learn_task(run: Run, exp: Experiment, task: Task) -> None:
    """One task, from wherever it was left: grow, the steps of the method, evaluate (figure 2 and section 4)."""
    with seeded(*exp.key("grow", task.index)):
        run.begin(task)
    for step in run.steps_left(task):
        if isinstance(step, Remembering):
            with run.ledger.part(EXEMPLARS, task, run.model):
                remember(run, exp, task)
        else:
            learn(run, exp, task, step)
        run.step_done(task, step)
        if isinstance(step, Remembering):
            exp.save_if_due(run, task, epoch_done=True)
            exp.stop_if_asked(run, task)

    evaluate(run, exp, task, final=True)
    following = exp.benchmark.tasks[task.index + 1 :]
    run.move(task=task.index + 1, stage=run.first_step(following[0] if following else task), epoch=0, step=0)
    exp.save(run, task, finished=True)
    if task is not exp.tasks[-1]:
        exp.stop_if_asked(run, task, saved=True)


def learn(run: Run, exp: Experiment, task: Task, phase: Phase) -> None:
    """One phase of training, from wherever it was left."""
    method = run.method
    if run.position.epoch == run.position.step == 0:
        with seeded(*exp.key("before", phase.name, task.index)):
            method.before(phase, exp.moment(run, task))
    trainer = exp.trainer(run, task, phase)
    run.enter(trainer)
    title, time_left = f"task {task.index + 1}/{len(exp.tasks)} {phase.name}", exp.time_left(run, task, phase)

    for epoch in range(run.position.epoch, phase.epochs):
        how = {"nb_epochs": phase.epochs, "nb_steps": trainer.nb_steps, "first_step": run.position.step}
        with run.report.epoch(title, epoch=epoch, time_left=time_left, **how) as bar:
            steps = run.ledger.training(trainer.steps(epoch, run.position.step), task, phase.name)
            for _, nb_images in run.noting(steps, task):
                bar.step(nb_images * distributed.nb_processes(), trainer.sums.means)
                run.move(step=run.position.step + 1)
                exp.stop_if_asked(run, task, after_step=True)
                exp.save_if_due(run, task)

        run.last = {"epoch": epoch, "phase": phase.name, "lr": trainer.lr, "losses": trainer.sums.means()}
        every = exp.options.run.eval_every
        if every and (epoch + 1) % every == 0 and epoch + 1 < phase.epochs:
            evaluate(run, exp, task)
        trainer.end_epoch(epoch)
        with seeded(*exp.key("epoch", phase.name, task.index, epoch)):
            method.after_epoch(phase, epoch, exp.moment(run, task))
        run.move(epoch=epoch + 1, step=0)
        run.report.epoch_done(run.ledger.steps, **run.last, speed=bar.speed)
        exp.save_if_due(run, task, epoch_done=True)

    with seeded(*exp.key("after", phase.name, task.index)):
        if said := method.after(phase, exp.moment(run, task)):
            run.report.say(said)


def remember(run: Run, exp: Experiment, task: Task) -> None:
    """Make room in the memory, then add exemplars of the new classes (section 4.1; herding as in iCaRL)."""
    memory, new_images, choices = run.memory, exp.new_images(task.index), exp.options.rehearsal.rehearsal_modes
    if not memory.memory_size:
        return
    quota, chosen = memory.quota(task.nb_seen), []  # for every replica the exemplars of each new class, as rows of new_images
    for replica in range(memory.nb_replicas):
        ranked = [exp.select(run, task, k=-(-quota // choices), replica=replica, choice=choice) for choice in range(choices)]
        chosen.append([rehearsal.in_turn(list(of_class))[:quota] for of_class in zip(*ranked, strict=True)])

    memory.cut(quota)
    for replica, of_classes in enumerate(chosen):
        for rows in of_classes:
            memory.add(*new_images.take(rows), replica=replica)
    run.report.say(budget(memory, task))


def evaluate(run: Run, exp: Experiment, task: Task, *, final: bool = False) -> None:
    """Score the model on the test images of all classes seen, and report it; at the end of a task, keep its answers."""
    kept = [] if final and exp.options.run.keep_predictions else None
    found = scores(run, exp, task, kept)
    if kept is not None:
        exp.keep_predictions(run, task, kept)
    run.report.evaluation(
        found,
        task=task,
        step=run.ledger.steps,
        final=final,
        epoch=run.last["epoch"],
        phase=run.last["phase"],
        lr=run.last["lr"],
        train_losses=run.last["losses"],
        nb_parameters=run.nb_parameters(),
        nb_exemplars=len(run.memory),
        token_distances=run.model.token_distances(),
    )


def evaluate_only(part: Part, here: Here) -> dict[str, Any]:
    """Score a run as it stands, and show it, by task and by class; nothing is trained, and nothing of the run written."""
    with opening.to_look_at(part.options, part.place, here) as (run, exp, task):
        found = scores(run, exp, task, kept := [])
        return looking.show(run.report, found, exp.answered(task, kept), exp, task)


def scores(run: Run, exp: Experiment, task: Task, kept: list | None = None) -> evaluation.Scores:
    """What the method answers on the test images of all classes seen. kept: see `evaluation.evaluate`."""
    with run.ledger.part(EVALUATION, task, run.model):
        return evaluation.evaluate(
            run.model,
            exp.images(exp.benchmark.test(task.index), augment=False),
            exp.tasks[: task.index + 1],
            loading=exp.loading,
            batch_size=exp.options.data.eval_batch_size,
            spread=exp.options.run.dist_eval,
            score=run.method.answer(exp.moment(run, task, may_stop=True)),
            before_batch=partial(exp.stop_if_asked, run, task),
            kept=kept,
        )


if __name__ == "__main__":
    sys.exit(main(OPTIONS))
