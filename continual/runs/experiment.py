"""What surrounds a Run and stays the same throughout: options, method, tasks, images, checkpoints, and the signal to stop.

Made once by `prepare`; and here, too, the moments at which a Run is saved and stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from continual import rehearsal
from continual.data import augmentation, identity, material, transforms
from continual.data.images import Images, InMemory
from continual.data.material import Material
from continual.data.normalisation import normalised
from continual.data.samples import Samples
from continual.datasets import Benchmark, load
from continual.errors import OptionsError, Preempted
from continual.jobs import distributed, watch
from continual.methods import Method, Moment, method_of
from continual.options import Options, outside
from continual.randomness import seed_of
from continual.rehearsal import Memory
from continual.runs import evidence, folders, plan, predictions
from continual.runs.checkpoint import ORIGIN, Store, as_identity
from continual.runs.folders import Place
from continual.runs.ledger import SAVING
from continual.runs.run import LIVE, PREDICTIONS, Run
from continual.tasks import Phase, Task
from continual.training import evaluation, precision
from continual.training.loading import Loading
from continual.training.trainer import Trainer

CPU = torch.device("cpu")


class Here(NamedTuple):
    """This process: its device, and whether the run is to stop. stop: has `agreed`, which all processes call together."""

    device: torch.device
    stop: watch.StopSignal


@dataclass
class Experiment:
    """What stays the same throughout one run. store: None where nothing is to be saved."""

    options: Options
    method: Method
    place: Place
    benchmark: Benchmark
    tasks: tuple[Task, ...]
    replicas: int
    loading: Loading
    store: Store | None
    stop: watch.StopSignal
    images: Callable[..., Images | InMemory]  # (samples, augment=bool)

    def __post_init__(self) -> None:
        self.new_images: Callable[[int], Samples] = lru_cache(1)(self.benchmark.train)

    def key(self, *parts: int | str) -> tuple:
        """The start of the key of every random draw; see continual/randomness.py."""
        return (self.options.run.seed, *parts)

    @property
    def selects_on_augmented(self) -> bool:
        """Whether exemplars are chosen on augmented images: by default in memories that each replica chooses for itself."""
        rehearsal = self.options.rehearsal
        plain = rehearsal.rehearsal_test_trsf
        return rehearsal.distributed_memory if plain is None else not plain

    def empty_memory(self) -> Memory:
        """A memory as the options say it, for all replicas or one each. Raises OptionsError if a class would find no room."""
        nb_classes = self.benchmark.nb_classes
        empty = Memory.of(self.options.rehearsal, nb_classes, self.replicas)
        empty.check(nb_classes)
        if empty.memory_size and empty.quota(nb_classes) < 2 and self.method.held_out(self.tasks[-1]):
            raise OptionsError(f"memory_size: {empty.memory_size} is one exemplar a class at last; none can be held out")
        return empty

    def material(self, run: Run, task: Task) -> Material:
        """The images that a task may be trained on; what is held out is the same in all its phases, and back afterwards."""
        new = self.new_images(task.index)
        held = None, None
        share = 0.0 if run.memory.knows(task) else self.method.held_out(task)
        if share:
            rng = np.random.default_rng(seed_of(*self.key("held out", task.index)))
            held = material.hold_out(new, run.memory, share, rng)

        def everything() -> Samples:
            return material.concatenated([self.benchmark.train(index) for index in range(task.index + 1)])

        return Material(new, run.memory, self.replicas, everything, *held)

    def trainer(self, run: Run, task: Task, phase: Phase) -> Trainer:
        """What trains a phase, from wherever it was left."""
        return Trainer(
            run.model,
            phase,
            self.material(run, task),
            images=self.images,
            loading=run.ledger.timed(self.loading),
            key=self.key(phase.name, task.index),
            teacher=run.teacher,
            epochs_done=run.position.epoch,
            requested=self.stop.is_requested,
            say=run.report.say,
        )

    @cached_property
    def _plan(self) -> list[plan.Work]:
        return plan.works(self.method, self.tasks, self.benchmark, self.empty_memory(), self.options)

    def time_left(self, run: Run, task: Task, phase: Phase) -> Callable[[float], plan.Left | None]:
        """A function from the share of the phase that is done to the seconds that the task and the whole run may still take."""
        return lambda share: plan.seconds_left(self._plan, run.ledger, task=task.index, step=phase.name, share=share)

    def moment(self, run: Run, task: Task, *, may_stop: bool = False) -> Moment:
        """What the method may look at now. may_stop: on the way, if asked to; not in a hook, which would be called again."""

        def features(samples: Samples) -> Tensor:
            found = distributed.from_main(self.features(run, task, samples, may_stop=may_stop))
            return torch.from_numpy(found).to(self.loading.device)

        def batches(samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
            size = self.options.data.eval_batch_size
            images = self.images(samples, augment=False)
            for _, x, y in evaluation.one_pass(images, size, loading=self.loading, spread=False):
                yield x, y

        return Moment(task, run.model, run.memory, self.new_images(task.index), features, batches)

    def features(
        self,
        run: Run,
        task: Task,
        samples: Samples,
        *,
        augment: bool = False,
        key: tuple = (),
        newest_only: bool = False,
        may_stop: bool = True,
    ) -> np.ndarray | None:
        """Task embeddings of samples in float32, (n, T D) or the newest (n, D), on the main process; None on the others."""
        return evaluation.extract_features(
            run.model,
            self.images(samples, augment=augment),
            loading=self.loading,
            batch_size=self.options.data.eval_batch_size,
            key=key,
            newest_only=newest_only,
            before_batch=partial(self.stop_if_asked, run, task) if may_stop else lambda: None,
        )

    def select(self, run: Run, task: Task, *, k: int, replica: int, choice: int) -> list[np.ndarray]:
        """At most k exemplars of each new class, as rows of the task's images, the most important first.

        choice: which one of several, each by images that are augmented anew.
        """
        new_images, name = self.new_images(task.index), self.options.rehearsal.rehearsal
        rule, _, kind = name.rpartition("_") if name != "random" else ("random", "", "")
        key, chosen = self.key("exemplars", task.index, replica, choice), []
        how, of_group = {"k": k, "seed": partial(seed_of, *key), "device": self.loading.device}, key
        for group, rows in enumerate(rehearsal.groups(new_images.y)):
            images, of_group = new_images.take(rows), (*of_group, "group", group) if group else key
            look = {"augment": self.selects_on_augmented, "key": of_group, "newest_only": kind == "token"}
            features = None if rule == "random" else self.features(run, task, images, **look)
            picks = distributed.on_main(partial(rehearsal.choose, rule, features, images.y, **how))
            chosen += [rows[each] for each in picks]
        return chosen

    @cached_property
    def of_data(self) -> dict[str, Any]:
        """What must be the same of the data."""
        return identity.of_data(self.benchmark)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be of this run: options, replicas, registered names, data, and origin."""
        origin, _ = folders.origin(self.place)
        return {
            **as_identity(self.options),
            "registered": outside(self.options),
            "replicas": self.replicas,
            **self.of_data,
            **({ORIGIN: origin} if origin else {}),
        }

    def save(self, run: Run, task: Task, *, finished: bool = False) -> None:
        """Write a checkpoint, on the main process."""
        if not distributed.is_main():
            return
        name = f"task-{task.index + 1}-finished" if finished else str(run.position)
        with run.ledger.part(SAVING):
            path = self.store.save(
                {**run.state_dict(), "classes": self.benchmark.classes()},
                name=name,
                identity=self.identity(),
                task=task.index,
                finished_task=finished,
                seconds=run.seconds(),
                spent=run.ledger.state_dict(),
                beside={
                    PREDICTIONS: run.predictions,
                    LIVE: run.report.live.state_dict(),
                    evidence.EVALUATED: run.report.digest(),
                    evidence.SEEN: run.images,
                    evidence.MADE_WITH: run.made_with,
                    evidence.TOLD: evidence.told(self.options),
                    evidence.FINGERPRINT: run.fingerprint and run.fingerprint.state_dict(),
                },
            )
            evidence.witness(self.place.logs, path)

    def answered(self, task: Task, kept: Sequence[Tensor]) -> predictions.Predictions | None:
        """What was answered on the test images (see `evaluation.evaluate`), on the main process; None on the others.

        All processes call it together. The scores are float32.
        """
        samples, size = self.benchmark.test_samples, self.options.data.eval_batch_size
        rows = evaluation.in_order(kept, int((samples.t <= task.index).sum()), size, spread=self.options.run.dist_eval)
        if rows is None:
            return None
        return predictions.of_rows(rows, samples, self.tasks[: task.index + 1], self.of_data["test_digest"])

    def keep_predictions(self, run: Run, task: Task, kept: Sequence[Tensor]) -> None:
        """Write down what was answered on the test images; all processes call it together."""
        found = self.answered(task, kept)
        if found is None:
            return
        with run.ledger.part(SAVING):
            digest = predictions.write(self.place.logs, task.index, found.packed())
        run.predictions[predictions.path_of(self.place.logs, task.index).name] = digest

    def save_if_due(self, run: Run, task: Task, *, epoch_done: bool = False) -> None:
        """Every `save_every_epoch` epochs; without it by the clock, after any step, so that a few minutes are lost at most."""
        every = self.options.run.save_every_epoch
        due = epoch_done and run.position.epoch % every == 0 if every else self.store.due(self.options.run.save_every_minutes)
        if due:
            self.save(run, task)

    def stop_if_asked(self, run: Run, task: Task, *, saved: bool = False, after_step: bool = False) -> None:
        """If any process was asked to stop: save where we are, unless that is `saved`, and leave. Raises Preempted.

        After every step, evaluated batch and phase; all processes must call it together. after_step: they have told each
        other already, with the gradients.
        """
        if not (run.trainer.asked_to_stop() if after_step else self.stop.agreed()):
            return
        if self.store is None:
            raise Preempted("stopped before the evaluation was done")
        if not saved:
            self.save(run, task)
        distributed.barrier()
        raise Preempted(f"stopped at {run.position} and saved; continue with --resume {self.place.to_resume}")


def prepare(options: Options, place: Place, store: Store | None, here: Here) -> Experiment:
    """Benchmark, method and transforms, by all processes together."""
    benchmark = benchmark_of(options)
    replicas = options.optim.replicas or distributed.nb_processes()
    amp = precision.chosen("off" if options.optim.no_amp else options.optim.amp, here.device)
    precision.set_products(amp)
    how = {"amp": amp, "channels_last": options.optim.channels_last}
    workers = distributed.workers_of_this_process(options.data.num_workers)
    loading = Loading(here.device, workers, options.data.pin_mem, **how)
    distributed.replicas_of_this_process(replicas)  # refused if the processes do not divide them
    return Experiment(
        options=options,
        method=method_of(options, benchmark.tasks, replicas=replicas),
        place=place,
        benchmark=benchmark,
        tasks=benchmark.tasks[: options.run.max_task],
        replicas=replicas,
        loading=loading,
        store=store,
        stop=here.stop,
        images=images_of(options, benchmark, here.device),
    )


def benchmark_of(options: Options, *, download: bool = True) -> Benchmark:
    """The data set of the options, cut into tasks; see `datasets.load` for what it raises.

    Of several processes, which call it together, one downloads while the others wait; without `download` none does.
    """
    benchmark = distributed.main_first(lambda first: data_of(options, download=first and download))
    return normalised(benchmark, options.data, input_size=options.model.input_size)


def data_of(options: Options, *, download: bool) -> Benchmark:
    """The same, normalised by what its source says, and not by the options."""
    data = options.data
    return load(
        data_set=data.data_set,
        data_path=data.data_path,
        initial_increment=data.initial_increment,
        increment=data.increment,
        class_order=data.class_orders()[0],
        validation=data.validation,
        seed=options.run.seed,
        skip_corrupt=data.skip_corrupt,
        download=download,
    )


def images_of(options: Options, benchmark: Benchmark, device: torch.device = CPU) -> Callable[..., Images | InMemory]:
    """A function (samples, augment=bool) -> the images as tensors, with the augmentations of training or in the plain view."""
    augment, side = options.augment, options.model.input_size
    pixels = {"input_size": side, "mean": benchmark.mean, "std": benchmark.std}
    random = {
        **pixels,
        "aa": augment.aa,
        "color_jitter": augment.color_jitter,
        "hflip": augment.hflip,
        "interpolation": augment.train_interpolation,
        "reprob": augment.reprob,
        "remode": augment.remode,
        "recount": augment.recount,
    }
    one_by_one = transforms.train_transform(**random), transforms.test_transform(**pixels)
    many_at_once = augmentation.train_view(**random), augmentation.plain_view(**pixels)
    batched, normalisation = augment.augment == "batched", augmentation.Normalisation(benchmark.mean, benchmark.std)

    def images(samples: Samples, *, augment: bool) -> Images | InMemory:
        if batched and samples.x.dtype == np.uint8:
            return InMemory(samples, many_at_once[not augment], device=device)
        transform, place = one_by_one[not augment], {"root": benchmark.root, "upright": benchmark.upright}
        if (pixels_alone := transforms.unfinished(transform)) is not None:  # a quarter of the bytes on the way to the device
            return Images(samples, pixels_alone, finish=normalisation, **place)
        return Images(samples, transform, **place)

    return images
