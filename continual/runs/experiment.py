"""What surrounds a Run and stays the same throughout: options, tasks, images, checkpoints, and the signal to stop.

Made once by `open_store` and `prepare`; and here, too, the moments at which a Run is saved, stopped and resumed.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from continual import rehearsal
from continual.data import identity, transforms
from continual.data.normalisation import normalised
from continual.data.opening import by_ending
from continual.data.scenario import joint_by_accident
from continual.datasets import Benchmark, Images, Samples
from continual.errors import CheckpointError, Preempted, some
from continual.jobs import distributed
from continual.options import FIELDS, Options, resumed
from continual.randomness import seeded
from continual.report import read_summary
from continual.runs import folders
from continual.runs.checkpoint import Store, as_identity, differences, refuse_another
from continual.runs.run import Run
from continual.tasks import Task
from continual.training import engine, recipe


@dataclass
class Experiment:
    """What stays the same throughout one run."""

    options: Options
    place: folders.Place
    benchmark: Benchmark
    tasks: tuple[Task, ...]
    replicas: int
    loading: engine.Loading
    store: Store
    stop: distributed.StopSignal
    augmented: transforms.Transform
    plain: transforms.Transform

    def images(self, samples: Samples, *, augment: bool) -> Images:
        transform = self.augmented if augment else self.plain
        return Images(samples, transform, root=self.benchmark.root, upright=self.benchmark.upright)

    def key(self, *parts: int | str) -> tuple:
        """The start of the key of every random draw; see continual/randomness.py."""
        return (self.options.run.seed, *parts)

    def greeting(self, memory: rehearsal.Memory) -> str:
        """The first words of a run: what it learns, how, and where it leaves things."""
        sizes = [task.nb_new for task in self.tasks]
        left_out, nb_tasks = self.benchmark.left_out, "1 task" if len(sizes) == 1 else f"{len(sizes)} tasks"
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.benchmark.mean, self.benchmark.std))
        return "\n".join(
            [
                f"{self.benchmark.name}: {sum(sizes)} classes in {nb_tasks} ({recipe.in_short(sizes)}), "
                f"{len(self.benchmark.train_samples.y)} training and {len(self.benchmark.test_samples.y)} test images"
                + (f", {self.benchmark.nb_skipped} unreadable files left out" if self.benchmark.nb_skipped else ""),
                *([f"{len(left_out)} file{'s' * (len(left_out) > 1)} left out: {by_ending(left_out)}"] if left_out else []),
                *filter(None, [self._joint_by_accident()]),
                f"classes     {_classes_in_short(self.benchmark, len(self.tasks))}",
                f"pixels      normalised by mean {mean} and std {std}",
                f"{self.replicas} replica(s) on {distributed.nb_processes()} process(es), {self.loading.device}, "
                + ("bfloat16 autocast" if self.loading.amp else "float32"),
                f"memory of {memory.memory_size} exemplars"
                + (f", {memory.memory_size // memory.nb_replicas} for each replica" if memory.nb_replicas > 1 else ""),
                f"logs        {self.place.logs}",
                f"checkpoints {self.place.checkpoints}",
            ]
        )

    def _joint_by_accident(self) -> str:
        data, defaults = self.options.data, (FIELDS["initial_increment"].default, FIELDS["increment"].default)
        said = joint_by_accident(self.benchmark.nb_classes, data.initial_increment, data.increment, defaults=defaults)
        return said and f"note: {said}"

    @cached_property
    def _of_data(self) -> dict[str, Any]:
        return identity.of_data(self.benchmark)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be of this run: options, replicas, and the data themselves."""
        return {**as_identity(self.options), "replicas": self.replicas, **self._of_data}

    def begin(self, run: Run) -> None:
        """A new model, without tasks yet, and its checkpoint."""
        with seeded(*self.key("model")):
            run.model = run.build().to(run.device)
        distributed.on_main(partial(folders.keep_classes, self.place, self.benchmark.classes()))
        self.save(run, self.tasks[0])

    def save(self, run: Run, task: Task, *, finished: bool = False) -> None:
        """Write a checkpoint, on the main process."""
        if not distributed.is_main():
            return
        name = f"task-{task.index + 1}-finished" if finished else str(run.position)
        self.store.save(
            {**run.state_dict(), "classes": self.benchmark.classes()},
            name=name,
            identity=self.identity(),
            task=task.index,
            finished_task=finished,
            seconds=run.seconds(),
        )

    def save_if_due(self, run: Run, task: Task, *, epoch_done: bool = False) -> None:
        """Every `save_every_epoch` epochs; without it by the clock, after any step, so that a few minutes are lost at most."""
        every = self.options.run.save_every_epoch
        due = epoch_done and run.position.epoch % every == 0 if every else self.store.due(self.options.run.save_every_minutes)
        if due:
            self.save(run, task)

    def stop_if_asked(self, run: Run, task: Task, *, saved: bool = False) -> None:
        """If any process was asked to stop: save where we are, unless that is `saved`, and leave. Raises Preempted.

        After every step, evaluated batch and phase; all processes must call it together.
        """
        if not self.stop.agreed():
            return
        if self.options.run.eval:
            raise Preempted("stopped before the evaluation was done")
        if not saved:
            self.save(run, task)
        distributed.barrier()
        raise Preempted(f"stopped at {run.position} and saved; continue with --resume {self.place.to_resume}")

    def resume(self, run: Run) -> None:
        """Go on from the newest valid checkpoint, or the one that `resume` names, or from the end of task `start_task` - 1.

        The next resume goes on from there, too, whatever was newer.
        A run that ended before its first checkpoint begins again. One that goes on as another experiment (`resume_anyway`)
        begins the epoch under way again, with an optimizer made anew. What is written, is written once all of it fits.
        """
        options = self.options.run
        _, file = resumed(options.resume)

        def load() -> tuple[dict, dict] | tuple[None, None]:
            found = self.store.load(start_task=options.start_task, file=file, say=run.report.say)
            if found == (None, None) and (options.eval or run.report.begun):
                what = "no checkpoint is left" if run.report.begun else "there is no checkpoint yet to evaluate"
                raise CheckpointError(f"{self.store.folder}: {what}")
            return found

        state, manifest = distributed.on_main(load)
        another = state is not None and bool(differences(manifest["identity"], self.identity()))
        if state is None:
            run.report.say("this run ended before its first checkpoint: it begins from the start")
            self.begin(run)
        else:
            refuse_another(manifest["identity"], self.identity(), anyway=options.resume_anyway)
            run.load_state_dict(state, seconds=manifest["seconds"])
            if another:
                run.restart_epoch()
            recipe.check_classes(self.benchmark.tasks, run.position.task, run.model, afresh=options.retrain_scratch)
            run.report.say(f"resumed from {manifest['name']}: {run.position}")
        if options.eval:
            return
        if options.start_task:
            self.save(run, self.benchmark.tasks[options.start_task - 1], finished=True)  # from now on the newest
        elif another:
            self.save(run, self.benchmark.tasks[min(run.position.task, len(self.benchmark.tasks) - 1)])
        elif file:
            self.save(run, self.benchmark.tasks[manifest["task"]], finished=manifest["finished_task"])
        if options.start_task or file:
            distributed.keep("went back", "yes")
        run.report.cut_off()
        distributed.on_main(partial(folders.keep_options, self.place, self.options))
        distributed.on_main(partial(folders.keep_classes, self.place, self.benchmark.classes()))

    def summary_of_finished(self) -> dict | None:
        """The summary of a run that is resumed although it has learned all its tasks; None for any other."""
        options, stored = self.options.run, self.store.stored()
        if not options.resume or options.eval or options.start_task or not stored:
            return None
        last, (_, file) = stored[-1].manifest, resumed(options.resume)
        if file not in ("", stored[-1].path.name):
            return None
        if not (last["finished_task"] and last["task"] + 1 >= len(self.tasks)):
            return None
        refuse_another(last["identity"], self.identity(), anyway=options.resume_anyway)
        return read_summary(self.place.logs)


def open_store(options: Options, place: folders.Place) -> Store:
    """The checkpoint folder; unless it is only read, no other process may write to it meanwhile."""
    store = Store(place.checkpoints, keep=options.run.keep_checkpoints, keep_tasks=options.run.keep_task_checkpoints)
    if not options.run.eval:
        distributed.on_main(store.lock)
    return store


def prepare(
    options: Options, place: folders.Place, store: Store, device: torch.device, stop: distributed.StopSignal
) -> Experiment:
    """Benchmark and transforms. With several processes one downloads while the others wait."""
    load = partial(recipe.benchmark, options.data, seed=options.run.seed, class_order=options.data.class_orders()[0])
    benchmark = distributed.main_first(lambda first: load(download=first))
    benchmark = normalised(benchmark, options.data, input_size=options.model.input_size)
    replicas = options.optim.replicas or distributed.nb_processes()
    distributed.replicas_of_this_process(replicas)  # refused if the processes do not divide them
    augment = options.augment
    side = {"input_size": options.model.input_size, "mean": benchmark.mean, "std": benchmark.std}
    return Experiment(
        options=options,
        place=place,
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


def _classes_in_short(benchmark: Benchmark, nb_tasks: int) -> str:
    """The first names of the first and last tasks, in the order in which they arrive."""
    shown = benchmark.tasks[:nb_tasks]
    parts = [f"task {task.index + 1}: {some(_names(benchmark, task), 4)}" for task in shown]
    return " | ".join(parts if len(parts) <= 5 else [*parts[:3], "...", parts[-1]])


def _names(benchmark: Benchmark, task: Task) -> list[str]:
    """The names of a task's classes, each short and on one line."""
    names = [benchmark.class_names[class_id] for class_id in benchmark.class_order[task.nb_old : task.nb_seen]]
    return [name[:20] + "..." * (len(name) > 20) if name.isprintable() else ascii(name)[:20] for name in names]
