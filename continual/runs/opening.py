"""How a run comes to life: begun, resumed, or only loaded to be looked at."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from continual.errors import CheckpointError
from continual.jobs import distributed
from continual.options import Options, check_installed, resumed
from continual.randomness import seeded
from continual.runs import branching, evidence, folders, looking, predictions
from continual.runs.checkpoint import Store, as_identity, differences, refuse_another
from continual.runs.experiment import Experiment, Here, prepare
from continual.runs.folders import Place
from continual.runs.greeting import greeting
from continual.runs.record import Report, read_summary
from continual.runs.run import LIVE, PREDICTIONS, Run
from continual.seeing.board import Board
from continual.seeing.live import Live
from continual.seeing.online import WeightsAndBiases
from continual.seeing.progress import say
from continual.tasks import Task
from continual.training.loading import naming_workers


@contextmanager
def to_train(options: Options, place: Place, here: Here) -> Iterator[tuple[Run, Experiment, dict[str, Any] | None]]:
    """A run ready to go on, begun or resumed; and its summary, if it is finished already.

    Nobody else may write to its folder meanwhile, and its status says how it ends. Raises CheckpointError if it cannot resume.
    """
    check_installed(options)  # main.py has asked before; a call from Python has not
    store = Store(place.checkpoints, keep=options.run.keep_checkpoints, keep_tasks=options.run.keep_task_checkpoints)
    distributed.on_main(store.lock)
    folder = place.logs if distributed.is_main() else None
    report = Report(folder, console=distributed.is_main(), live=_live(options, place))
    with closing(store), report.watched(), naming_workers(distributed.workers_of_this_process(options.data.num_workers)):
        run, exp = _made(options, place, store, here, report)
        if summary := distributed.on_main(partial(summary_of_finished, exp)):
            report.say(f"this run is finished, there is nothing left to do; its figures are in {place.logs}")
            yield run, exp, summary
            return
        report.status("running")
        report.say(greeting(exp, run.memory))
        if options.run.resume:
            resume(run, exp)
        else:
            begin(run, exp)
        report.live.start({**as_identity(options), "replicas": exp.replicas})
        yield run, exp, None


@contextmanager
def to_look_at(options: Options, place: Place, here: Here) -> Iterator[tuple[Run, Experiment, Task]]:
    """A run as it stands at the checkpoint that `resume` and `start_task` name, and its newest task; nothing is written."""
    looking.check(options, place)
    report = Report(None, console=distributed.is_main())
    with naming_workers(distributed.workers_of_this_process(options.data.num_workers)):
        run, exp = _made(options, place, None, here, report)
        report.say(greeting(exp, run.memory))
        state, manifest = distributed.on_main(partial(_load, Store(place.checkpoints), options, report, place))
        if state is None:
            raise CheckpointError(f"{place.checkpoints}: there is no checkpoint yet to evaluate")
        _take_over(run, exp, state, manifest)
        yield run, exp, newest_task(exp.tasks, run)


def begin(run: Run, exp: Experiment) -> None:
    """A new model, without tasks yet, or the one to branch from; and its checkpoint."""
    if exp.options.run.branch:
        _branch(run, exp)
        return
    with seeded(*exp.key("model")):
        run.model = run.method.build().to(run.device)
    run.move(stage=run.first_step(exp.tasks[0]))
    run.made_with = [_made_with(run)]
    distributed.on_main(partial(folders.keep_classes, exp.place, exp.benchmark.classes()))
    _keep_images(run, exp)
    exp.save(run, exp.tasks[0])


def _branch(run: Run, exp: Experiment) -> None:
    """All that the other run was at the end of that task, under this run's name."""
    manifest, changed = branching.begin(run, exp)
    _check_classes(run, exp.benchmark.tasks)
    _take_over_evidence(run, manifest, changed)
    distributed.on_main(partial(folders.keep_classes, exp.place, exp.benchmark.classes()))
    _keep_images(run, exp)
    exp.save(run, exp.tasks[run.position.task - 1], finished=True)


def _keep_images(run: Run, exp: Experiment) -> None:
    seed = exp.options.run.seed
    run.images = distributed.on_main(partial(evidence.keep_images, exp.place.checkpoints, exp.benchmark, seed))


def resume(run: Run, exp: Experiment) -> None:
    """Go on from the newest valid checkpoint, or the one that `resume` names, or from the end of task `start_task` - 1.

    The next resume goes on from there, too, whatever was newer.
    A run that ended before its first checkpoint begins again. One that goes on as another experiment (`resume_anyway`)
    begins the epoch under way again, with an optimizer made anew. What is written, is written once all of it fits.
    """
    options, tasks = exp.options.run, exp.benchmark.tasks
    _, file = resumed(options.resume)
    state, manifest = distributed.on_main(partial(_load, exp.store, exp.options, run.report, exp.place))
    if state is None:
        run.report.say("this run ended before its first checkpoint: it begins from the start")
        begin(run, exp)
    else:
        another = _take_over(run, exp, state, manifest)
        if options.start_task:
            exp.save(run, tasks[options.start_task - 1], finished=True)  # from now on the newest
        elif another:
            exp.save(run, tasks[min(run.position.task, len(tasks) - 1)])
        elif file:
            exp.save(run, tasks[manifest["task"]], finished=manifest["finished_task"])
    if options.start_task or file:
        distributed.keep("went back", "yes")
    run.report.cut_off()
    if distributed.is_main():
        predictions.cut_off(exp.place.logs, run.predictions)
    distributed.on_main(partial(folders.keep_options, exp.place, exp.options))
    distributed.on_main(partial(folders.keep_classes, exp.place, exp.benchmark.classes()))


def summary_of_finished(exp: Experiment) -> dict[str, Any] | None:
    """The summary of a run that is resumed although it has learned all its tasks; None for any other."""
    options, stored = exp.options.run, exp.store.stored()
    if not options.resume or options.start_task or not stored:
        return None
    last, (_, file) = stored[-1].manifest, resumed(options.resume)
    if file not in ("", stored[-1].path.name):
        return None
    if not (last["finished_task"] and last["task"] + 1 >= len(exp.tasks)):
        return None
    refuse_another(last["identity"], exp.identity(), anyway=options.resume_anyway)
    return read_summary(exp.place.logs)


def newest_task(tasks: Sequence[Task], run: Run) -> Task:
    """The task whose classes the model knows already. Raises CheckpointError if it knows none, or more than these."""
    nb_known = sum(run.model.classes)
    if nb_known > tasks[-1].nb_seen:
        raise CheckpointError(f"the model knows {nb_known} classes; {len(tasks)} tasks (max_task) have fewer")
    known = [task for task in tasks if task.nb_seen <= nb_known]
    if not known:
        raise CheckpointError("the checkpoint is of the very start: there is no task yet to evaluate")
    return known[-1]


def _made(options: Options, place: Place, store: Store | None, here: Here, report: Report) -> tuple[Run, Experiment]:
    exp = prepare(options, place, store, here)
    report.nb_tasks = len(exp.tasks)
    run = Run(exp.method, exp.empty_memory(), report, here.device)
    report.where = lambda: run.position
    return run, exp


def _live(options: Options, place: Place) -> Live:
    """The boards that the options ask for, on the main process."""
    if not distributed.is_main():
        return Live()
    boards = [Board(place.logs, say)] if options.run.tensorboard else []
    if project := options.run.wandb:
        series = place.logs.parent.name if place.series else None
        label = f"{series}-{place.logs.name}" if series else place.logs.name
        boards.append(WeightsAndBiases(place.logs, say, project=project, label=label, group=series))
    return Live(boards)


def _load(store: Store, options: Options, report: Report, place: Place) -> tuple[dict, dict] | tuple[None, None]:
    """State and manifest of the checkpoint to go on from; None of both if the run ended before its first."""
    _, file = resumed(options.run.resume)
    found = store.load(start_task=options.run.start_task, file=file, say=report.say)
    if found == (None, None) and report.nb_bytes > folders.origin(place)[1]:  # more than a branch begins with
        raise CheckpointError(f"{store.folder}: no checkpoint is left")
    return found


def _take_over(run: Run, exp: Experiment, state: dict, manifest: dict) -> bool:
    """Bring the run to the state of a checkpoint; returns whether that was of another experiment (`resume_anyway`)."""
    options, now = exp.options.run, exp.identity()
    refuse_another(manifest["identity"], now, anyway=options.resume_anyway)
    another = differences(manifest["identity"], now)
    run.load_state_dict(state, seconds=manifest["seconds"], spent=manifest.get("spent"))
    run.predictions = dict(manifest.get(PREDICTIONS, {}))
    run.report.live.load_state_dict(manifest.get(LIVE, {}))
    _take_over_evidence(run, manifest, another)
    if another:
        run.restart_epoch()
    _check_classes(run, exp.benchmark.tasks)
    run.report.say(f"resumed from {manifest['name']}: {run.position}")
    return bool(another)


def _take_over_evidence(run: Run, manifest: dict, changed: list[str]) -> None:
    """What is known of how the run was made, up to here; it goes on in this environment, with these options `changed`."""
    run.images, run.made_with = manifest.get(evidence.SEEN, ""), list(manifest.get(evidence.MADE_WITH, []))
    noted = manifest.get(evidence.FINGERPRINT)
    run.fingerprint = evidence.Fingerprint(**noted) if noted else None
    entry = _made_with(run, changed)
    apart = {"since": "", "changed": []}
    if changed or not run.made_with or {**run.made_with[-1], **apart} != {**entry, **apart}:
        run.made_with.append(entry)


def _made_with(run: Run, changed: Sequence[str] = ()) -> dict[str, Any]:
    return {"since": str(run.position), "changed": list(changed), **evidence.environment(run.device)}


def _check_classes(run: Run, tasks: Sequence[Task]) -> None:
    """Raise CheckpointError unless the model has learned all tasks before the one under way, or this one with them."""
    index, classes = run.position.task, list(run.model.classes)
    if classes not in (run.method.classes_after(tasks[:index]), run.method.classes_after(tasks[: index + 1])):
        raise CheckpointError(f"the model has learned tasks of {classes} classes; the options make other tasks")
