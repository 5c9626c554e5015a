"""DyTox: learn classes task by task, with rehearsal, distillation, and one token and one classifier per task.

The experiment, top to bottom: options -> benchmark -> model -> for each task: learn, remember, finetune, evaluate, save.
"""

import signal

from continual.options import Options, parse_or_exit

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is a run that can save, Ctrl-C simply ends it
    OPTIONS = parse_or_exit()  # here, so that a wrong option is answered before torch is imported

import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np
import torch

from continual import models, rehearsal
from continual.baseline import class_means, nearest_mean_scores
from continual.data.mixing import mixing
from continual.data.samplers import StepSampler
from continual.datasets import Samples
from continual.dytox import Outputs, freeze
from continual.jobs import distributed, faults
from continual.jobs.launch import launch
from continual.randomness import seed_of, seeded
from continual.report import Report
from continual.runs import folders
from continual.runs.experiment import Experiment, open_store, prepare
from continual.runs.run import Progress, Run
from continual.tasks import FINETUNING, REMEMBERING, TRAINING, Phase, Task
from continual.training import engine, optim, recipe


def main(options: Options, place: folders.Place, device: torch.device, stop: distributed.StopSignal) -> dict:
    """One run: every task of one class order. Returns its summary."""
    store = open_store(options, place)
    writes = distributed.is_main() and not options.run.eval
    report = Report(place.logs if writes else None, console=distributed.is_main())
    with closing(store), report.watched(), engine.naming_workers(options.data.num_workers):
        exp = prepare(options, place, store, device, stop)
        report.nb_tasks = len(exp.tasks)
        if summary := distributed.on_main(exp.summary_of_finished):
            report.say(f"this run is finished, there is nothing left to do; its figures are in {place.logs}")
            return summary
        report.status("running")
        memory = recipe.memory(options.rehearsal, exp.benchmark.nb_classes, exp.replicas)
        run = Run(partial(models.build, options), memory, report, device)
        report.where = lambda: run.position
        report.say(exp.greeting(memory))
        if options.run.resume:
            exp.resume(run)
        else:
            exp.begin(run)
        if options.run.eval:
            return evaluate(run, exp, recipe.newest_task(exp.tasks, run.model))
        for task in exp.tasks[run.position.task :]:
            learn_task(run, exp, task)
        return report.finish(
            nb_parameters=models.nb_parameters(run.model),
            nb_exemplars=len(memory),
            seconds=run.seconds(),
            seconds_saving=exp.store.seconds,
        )


def learn_task(run: Run, exp: Experiment, task: Task) -> None:
    """One task, from wherever it was left: learn, remember, finetune, evaluate (figure 2 and section 4)."""
    options = exp.options
    plan = {"nb_tasks": len(exp.benchmark.tasks), "replicas": exp.replicas}
    with seeded(*exp.key("grow", task.index)):
        run.begin(task, afresh=options.run.retrain_scratch)

    new_images = exp.benchmark.train(task.index)
    if run.position.stage == TRAINING:
        if options.run.retrain_scratch:  # a first task that holds everything so far
            whole, everything = recipe.merged(exp.benchmark, task)
            learn(run, exp, whole, recipe.training(options, whole, **plan), everything)
        else:
            learn(run, exp, task, recipe.training(options, task, **plan), new_images)
        if options.loss.weight_align and not task.first:
            run.report.say(f"weight aligning: new classes' weights times {run.model.align():.3f}")
        run.move(stage=REMEMBERING, epoch=0, step=0)

    if run.position.stage == REMEMBERING:
        remember(run, exp, task, new_images)
        run.move(stage=FINETUNING, epoch=0, step=0)
        exp.save_if_due(run, task, epoch_done=True)
        exp.stop_if_asked(run, task)

    faults.reach("finetuning")
    if recipe.finetunes(options, task, exp.benchmark.nb_classes):
        if options.finetune.finetuning_resetclf and run.position.epoch == run.position.step == 0:
            with seeded(*exp.key("reset", task.index)):
                run.model.reset_classifiers()
        learn(run, exp, task, recipe.finetuning(options, task, **plan), None)

    evaluate(run, exp, task, final=True)
    faults.reach("task change")
    run.move(task=task.index + 1, stage=TRAINING, epoch=0, step=0)
    exp.save(run, task, finished=True)
    faults.reach("end")
    if task is not exp.tasks[-1]:
        exp.stop_if_asked(run, task, saved=True)


def learn(run: Run, exp: Experiment, task: Task, phase: Phase, new_images: Samples | None) -> None:
    """Train one phase, from wherever it was left: a first task, a later one, or finetuning (no new images)."""
    options = exp.options
    freeze(run.model, phase.frozen, eval_mode=options.finetune.freeze_eval)
    distributed.share_buffers(run.model)  # what is frozen may use them from here on
    optimizer = optim.build_optimizer(run.model, options.optim, phase.lr)
    schedule = recipe.schedule(options, optimizer, phase, epochs_done=run.position.epoch)
    sam = recipe.sam(options, run.model, phase)
    run.enter(Progress(optimizer, schedule, sam))

    samples, views = recipe.training_set(options.rehearsal, new_images, run.memory, exp.replicas)
    sampler = StepSampler(
        phase.sampler,
        views,
        mine=distributed.replicas_of_this_process(exp.replicas),
        batch_size=phase.batch_size,
        key=exp.key(phase.name, task.index),
        most_steps=recipe.DEBUG_STEPS if options.run.debug else None,
        drop_last=phase.drop_last,
        no_single=any(norm.training for norm in distributed.batch_norms(run.model)),
    )
    loader = exp.loading.loader(exp.images(samples, augment=True), sampler, persistent=True)
    beside = None
    if recipe.draws_memory(options, phase, task, run.memory):
        beside = recipe.beside(options, phase, task, run.memory, sampler=sampler, images=exp.images, loading=exp.loading)
    objective = recipe.objective(options.loss, run.model, run.teacher, task, phase)
    mix = mixing(options.augment, nb_classes=task.nb_seen, smoothing=options.loss.smoothing)
    title = f"task {task.index + 1}/{len(exp.tasks)} {phase.name}"

    for epoch in range(run.position.epoch, phase.epochs):
        sampler.set_epoch(epoch, run.position.step)
        sums = run.progress.sums if run.position.step else run.progress.restart_sums()
        steps = engine.train_one_epoch(
            run.model,
            loader,
            objective,
            optimizer,
            loading=exp.loading,
            mixing=mix,
            sam=sam,
            beside=beside,
            clip_grad=options.optim.clip_grad,
            at_once=options.optim.replicas_at_once,
        )
        bar = run.report.epoch(
            title, epoch=epoch, nb_epochs=phase.epochs, nb_steps=sampler.nb_steps, first_step=run.position.step
        )
        with bar:
            for losses, nb_images in steps:
                sums.add(losses)
                bar.step(nb_images * distributed.nb_processes(), sums.means)
                run.move(step=run.position.step + 1)
                exp.stop_if_asked(run, task)
                exp.save_if_due(run, task)

        run.last = {"epoch": epoch, "phase": phase.name, "lr": optimizer.param_groups[0]["lr"], "losses": sums.means()}
        if options.run.eval_every and (epoch + 1) % options.run.eval_every == 0 and epoch + 1 < phase.epochs:
            evaluate(run, exp, task)
        if schedule is not None:
            schedule.step(epoch, run.last["losses"]["total"])
        run.move(epoch=epoch + 1, step=0)
        exp.save_if_due(run, task, epoch_done=True)


def remember(run: Run, exp: Experiment, task: Task, new_images: Samples) -> None:
    """Make room in the memory, then add exemplars of the new classes (section 4.1; herding as in iCaRL)."""
    memory, options = run.memory, exp.options.rehearsal
    if not memory.memory_size:
        return
    quota = memory.quota(task.nb_seen)
    rule, _, kind = options.rehearsal.partition("_")
    choices = options.rehearsal_modes  # so many, each on images augmented anew
    chosen: list[list[np.ndarray]] = []  # for every replica the exemplars of each new class, as rows of new_images
    for replica in range(memory.nb_replicas):
        ranked: list[list[np.ndarray]] = []  # for every choice, those of each class
        for choice in range(choices):
            key = exp.key("exemplars", task.index, replica, choice)
            features = None if rule == "random" else embeddings(run, exp, task, new_images, kind, key)
            ranked.append(
                distributed.on_main(
                    partial(rehearsal.choose, rule, features, new_images.y, k=-(-quota // choices), seed=partial(seed_of, *key))
                )
            )
        chosen.append([rehearsal.in_turn(list(of_class))[:quota] for of_class in zip(*ranked, strict=True)])
        faults.reach("exemplars")

    memory.cut(quota)
    for replica, of_classes in enumerate(chosen):
        for rows in of_classes:
            memory.add(*new_images.take(rows), replica=replica)
    run.report.say(recipe.budget(memory, task))


def embeddings(run: Run, exp: Experiment, task: Task, samples: Samples, kind: str, key: tuple) -> np.ndarray | None:
    """Features to choose exemplars by, on the main process: kind "token", e_T, (n, D); "all", e_1 .. e_T, (n, T D)."""
    return engine.extract_features(
        run.model,
        exp.images(samples, augment=recipe.selects_on_augmented(exp.options.rehearsal)),
        loading=exp.loading,
        batch_size=exp.options.data.eval_batch_size,
        key=key,
        newest_only=kind == "token",
        between=partial(exp.stop_if_asked, run, task),
    )


def evaluate(run: Run, exp: Experiment, task: Task, *, final: bool = False) -> dict:
    """Score the model on the test images of all classes seen, and report it."""
    by_means = exp.options.rehearsal.nme and len(run.memory) > 0
    scores = engine.evaluate(
        run.model,
        exp.images(exp.benchmark.test(task.index), augment=False),
        exp.tasks[: task.index + 1],
        loading=exp.loading,
        batch_size=exp.options.data.eval_batch_size,
        spread=exp.options.run.dist_eval,
        score=nearest_mean(run, exp, task) if by_means else Outputs.scores,
        between=partial(exp.stop_if_asked, run, task),
    )
    if exp.options.run.eval:
        return run.report.show(scores, task=task)
    return run.report.evaluation(
        scores,
        task=task,
        final=final,
        epoch=run.last["epoch"],
        phase=run.last["phase"],
        lr=run.last["lr"],
        train_losses=run.last["losses"],
        nb_parameters=models.nb_parameters(run.model),
        nb_exemplars=len(run.memory),
        token_distances=run.model.token_distances(),
    )


def nearest_mean(run: Run, exp: Experiment, task: Task) -> Callable[[Outputs], torch.Tensor]:
    """iCaRL's classifier: the nearest mean of exemplars. Classes not yet in memory are out of its reach."""
    exemplars = Samples(run.memory.x, run.memory.y, run.memory.t)
    features = engine.extract_features(
        run.model,
        exp.images(exemplars, augment=False),
        loading=exp.loading,
        batch_size=exp.options.data.eval_batch_size,
        key=(),
        between=partial(exp.stop_if_asked, run, task),
    )
    means = distributed.on_main(
        lambda: class_means(torch.from_numpy(features), torch.from_numpy(exemplars.y), task.nb_seen).numpy()
    )
    return partial(nearest_mean_scores, means=torch.from_numpy(means).to(exp.loading.device))


if __name__ == "__main__":
    sys.exit(launch(main, OPTIONS))
