"""DyTox: learn classes task by task, with rehearsal, distillation, and one token and one classifier per task.

The experiment, top to bottom: options -> benchmark -> model -> for each task: learn, remember, finetune, evaluate, save.
"""

from continual.options import Options, parse_or_exit

if __name__ == "__main__":
    OPTIONS = parse_or_exit()  # here, so that a wrong option is answered before torch is imported

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from continual import distributed, engine, faults, folders, models, optim, recipe, rehearsal, transforms
from continual.baseline import class_means, nearest_mean_scores
from continual.checkpoint import Store, as_identity, refuse_another
from continual.datasets import Benchmark, Images, Samples
from continual.dytox import Outputs, freeze
from continual.errors import CheckpointError, Preempted
from continual.launch import launch
from continual.mixing import mixing
from continual.optim import Schedule
from continual.randomness import seed_of, seeded
from continual.report import Report, read_summary
from continual.run import Progress, Run
from continual.samplers import StepSampler
from continual.tasks import FINETUNING, REMEMBERING, TRAINING, Phase, Task


@dataclass
class Experiment:
    """What stays the same throughout one run."""

    options: Options
    benchmark: Benchmark
    tasks: tuple[Task, ...]
    replicas: int
    loading: engine.Loading
    store: Store
    stop: distributed.StopSignal
    augmented: transforms.Transform
    plain: transforms.Transform

    def images(self, samples: Samples, *, augment: bool) -> Images:
        return Images(samples, self.augmented if augment else self.plain, root=self.benchmark.root)

    def key(self, *parts: int | str) -> tuple:
        """The start of the key of every random draw; see continual/randomness.py."""
        return (self.options.run.seed, *parts)


def main(options: Options, place: folders.Place, device: torch.device, stop: distributed.StopSignal) -> dict:
    """One run: every task of one class order. Returns its summary."""
    exp = prepare(options, place, device, stop)
    writes = distributed.is_main() and not options.run.eval
    report = Report(place.logs if writes else None, nb_tasks=len(exp.tasks), console=distributed.is_main())
    if summary := distributed.on_main(partial(summary_of_finished, exp, place)):
        report.say(f"this run is finished, there is nothing left to do; its figures are in {place.logs}")
        return summary
    with report.watched():
        memory = recipe.memory(options.rehearsal, exp.benchmark.nb_classes, exp.replicas)
        with seeded(*exp.key("model")):
            run = Run(partial(models.build, options), memory, report, device)
        report.say(greeting(exp, place, memory))
        if options.run.resume:
            resume(run, exp)
        else:
            save(run, exp, exp.tasks[0])
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
        save_if_due(run, exp, task, epoch_done=True)
        stop_if_asked(run, exp, task)

    faults.reach("finetuning")
    if recipe.finetunes(options, task, exp.benchmark.nb_classes):
        if options.finetune.finetuning_resetclf and run.position.epoch == run.position.step == 0:
            with seeded(*exp.key("reset", task.index)):
                run.model.reset_classifiers()
        learn(run, exp, task, recipe.finetuning(options, task, **plan), None)

    evaluate(run, exp, task, final=True)
    faults.reach("task change")
    run.move(task=task.index + 1, stage=TRAINING, epoch=0, step=0)
    save(run, exp, task, finished=True)
    faults.reach("end")
    if task is not exp.tasks[-1]:
        stop_if_asked(run, exp, task, saved=True)


def prepare(options: Options, place: folders.Place, device: torch.device, stop: distributed.StopSignal) -> Experiment:
    """Benchmark, transforms and checkpoint folder. With several processes one downloads while the others wait."""
    store = Store(place.checkpoints, keep=options.run.keep_checkpoints, keep_tasks=options.run.keep_task_checkpoints)
    if not options.run.eval:
        distributed.on_main(store.lock)

    load = partial(recipe.benchmark, options.data, seed=options.run.seed, class_order=options.data.class_orders()[0])
    benchmark = distributed.main_first(lambda first: load(download=first))
    replicas = options.optim.replicas or distributed.nb_processes()
    distributed.replicas_of_this_process(replicas)  # refused if the processes do not divide them
    augment = options.augment
    side = {"input_size": options.model.input_size, "mean": benchmark.mean, "std": benchmark.std}
    return Experiment(
        options=options,
        benchmark=benchmark,
        tasks=benchmark.tasks[: options.run.max_task],
        replicas=replicas,
        loading=engine.Loading(device, options.data.num_workers, options.data.pin_mem, amp=not options.optim.no_amp),
        store=store,
        stop=stop,
        augmented=transforms.train_transform(
            **side,
            aa=augment.aa,
            color_jitter=augment.color_jitter,
            hflip=augment.hflip,
            interpolation=augment.train_interpolation,
            reprob=augment.reprob,
            remode=augment.remode,
            recount=augment.recount,
        ),
        plain=transforms.test_transform(**side),
    )


def learn(run: Run, exp: Experiment, task: Task, phase: Phase, new_images: Samples | None) -> None:
    """Train one phase, from wherever it was left: a first task, a later one, or finetuning (no new images)."""
    options = exp.options
    freeze(run.model, phase.frozen, eval_mode=options.finetune.freeze_eval)
    distributed.share_buffers(run.model)  # what is frozen may use them from here on
    optimizer = optim.build_optimizer(run.model, options.optim, phase.lr)
    schedule = Schedule(optimizer, options.optim, epochs=phase.epochs, warmup_lr=phase.warmup_lr) if phase.scheduled else None
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
                stop_if_asked(run, exp, task)
                save_if_due(run, exp, task)

        run.last = {"epoch": epoch, "phase": phase.name, "lr": optimizer.param_groups[0]["lr"], "losses": sums.means()}
        if options.run.eval_every and (epoch + 1) % options.run.eval_every == 0 and epoch + 1 < phase.epochs:
            evaluate(run, exp, task)
        if schedule is not None:
            schedule.step(epoch, run.last["losses"]["total"])
        run.move(epoch=epoch + 1, step=0)
        save_if_due(run, exp, task, epoch_done=True)


def remember(run: Run, exp: Experiment, task: Task, new_images: Samples) -> None:
    """Make room in the memory, then add exemplars of the new classes (section 4.1; herding as in iCaRL)."""
    memory, options = run.memory, exp.options.rehearsal
    if not memory.memory_size:
        return
    quota = memory.quota(task.nb_seen)
    rule, _, kind = options.rehearsal.partition("_")
    choices = options.rehearsal_modes  # so many, each on images augmented anew
    chosen: list[dict[int, list[np.ndarray]]] = []  # for every replica the rows of each class, choice by choice
    for replica in range(memory.nb_replicas):
        chosen.append({label: [] for label in range(task.nb_old, task.nb_seen)})
        for choice in range(choices):
            key = exp.key("exemplars", task.index, replica, choice)
            features = None if rule == "random" else embeddings(run, exp, task, new_images, kind, key)
            for label, ranked in chosen[replica].items():
                of_class = np.flatnonzero(new_images.y == label)
                rng = np.random.default_rng(seed_of(*key, label))
                rows = of_class if features is None else features[of_class]
                ranked.append(of_class[rehearsal.RULES[rule](rows, -(-quota // choices), rng)])
        faults.reach("exemplars")

    memory.cut(quota)
    for replica, of_classes in enumerate(chosen):
        for ranked in of_classes.values():
            memory.add(*new_images.take(rehearsal.in_turn(ranked)[:quota]), replica=replica)
    run.report.say(recipe.budget(memory, task))


def embeddings(run: Run, exp: Experiment, task: Task, samples: Samples, kind: str, key: tuple) -> np.ndarray:
    """Features to choose exemplars by: kind "token", e_T; "all", e_1 .. e_T one behind the other. (n, D) or (n, T D)"""
    features = engine.extract_features(
        run.model,
        exp.images(samples, augment=recipe.selects_on_augmented(exp.options.rehearsal)),
        loading=exp.loading,
        batch_size=exp.options.data.eval_batch_size,
        key=key,
        between=partial(stop_if_asked, run, exp, task),
    )
    return features[:, -1] if kind == "token" else features.reshape(len(features), -1)


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
        between=partial(stop_if_asked, run, exp, task),
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
        between=partial(stop_if_asked, run, exp, task),
    )
    device = exp.loading.device
    labels = torch.from_numpy(exemplars.y).to(device)
    flat = torch.from_numpy(features.reshape(len(features), -1)).float().to(device)
    return partial(nearest_mean_scores, means=class_means(flat, labels, task.nb_seen))


def save(run: Run, exp: Experiment, task: Task, *, finished: bool = False) -> None:
    """Write a checkpoint, on the main process."""
    if not distributed.is_main():
        return
    name = f"task-{task.index + 1}-finished" if finished else str(run.position)
    exp.store.save(
        run.state_dict(),
        name=name,
        identity=identify(exp),
        task=task.index,
        finished_task=finished,
        seconds=run.seconds(),
    )


def save_if_due(run: Run, exp: Experiment, task: Task, *, epoch_done: bool = False) -> None:
    """Every `save_every_epoch` epochs; without it by the clock, after any step, so that a few minutes are lost at most."""
    every = exp.options.run.save_every_epoch
    due = epoch_done and run.position.epoch % every == 0 if every else exp.store.due(exp.options.run.save_every_minutes)
    if due:
        save(run, exp, task)


def stop_if_asked(run: Run, exp: Experiment, task: Task, *, saved: bool = False) -> None:
    """If any process was asked to stop: save where we are, unless that is `saved`, and leave. Raises Preempted.

    After every step, evaluated batch and phase; all processes must call it together.
    """
    if not exp.stop.agreed():
        return
    if exp.options.run.eval:
        raise Preempted("stopped before the evaluation was done")
    if not saved:
        save(run, exp, task)
    distributed.barrier()
    raise Preempted(f"stopped at {run.position} and saved; continue with --resume {exp.store.folder}")


def identify(exp: Experiment) -> dict:
    """What must be the same for a checkpoint to be of this run."""
    return {
        **as_identity(exp.options),
        "replicas": exp.replicas,
        "class_order": list(exp.benchmark.class_order),
        "classes_per_task": [task.nb_new for task in exp.benchmark.tasks],
    }


def resume(run: Run, exp: Experiment) -> None:
    """Go on from the newest valid checkpoint, or from the end of task `start_task` - 1.

    A run that ended before its first checkpoint begins again.
    """
    options = exp.options.run
    load = partial(exp.store.load, start_task=options.start_task, say=run.report.say)
    state, manifest = distributed.on_main(load)
    if state is None and options.eval:
        raise CheckpointError(f"{exp.store.folder}: there is no checkpoint yet to evaluate")
    if state is None:
        run.report.say("this run ended before its first checkpoint: it begins from the start")
        save(run, exp, exp.tasks[0])
        return
    refuse_another(manifest["identity"], identify(exp), anyway=options.resume_anyway)
    run.load_state_dict(state, seconds=manifest["seconds"])
    run.report.say(f"resumed from {manifest['name']}: {run.position}")
    if options.start_task and not options.eval:
        save(run, exp, exp.benchmark.tasks[options.start_task - 1], finished=True)  # from now on the newest


def summary_of_finished(exp: Experiment, place: folders.Place) -> dict | None:
    """The summary of a run that is resumed although it has learned all its tasks; None for any other."""
    options, stored = exp.options.run, exp.store.stored()
    if not options.resume or options.eval or options.start_task or not stored:
        return None
    last = stored[-1].manifest
    if not (last["finished_task"] and last["task"] + 1 >= len(exp.tasks)):
        return None
    refuse_another(last["identity"], identify(exp), anyway=options.resume_anyway)
    return read_summary(place.logs)


def greeting(exp: Experiment, place: folders.Place, memory: rehearsal.Memory) -> str:
    """The first words of a run: what it learns, how, and where it leaves things."""
    sizes = [task.nb_new for task in exp.tasks]
    return "\n".join(
        [
            f"{exp.benchmark.name}: {sum(sizes)} classes in {len(sizes)} tasks ({recipe.in_short(sizes)}), "
            f"{len(exp.benchmark.train_samples.y)} training and {len(exp.benchmark.test_samples.y)} test images"
            + (f", {exp.benchmark.nb_skipped} unreadable files left out" if exp.benchmark.nb_skipped else ""),
            f"{exp.replicas} replica(s) on {distributed.nb_processes()} process(es), {exp.loading.device}, "
            + ("bfloat16 autocast" if exp.loading.amp else "float32"),
            f"memory of {memory.memory_size} exemplars"
            + (f", {memory.memory_size // memory.nb_replicas} for each replica" if memory.nb_replicas > 1 else ""),
            f"logs        {place.logs}",
            f"checkpoints {place.checkpoints}",
        ]
    )


if __name__ == "__main__":
    sys.exit(launch(main, OPTIONS))
