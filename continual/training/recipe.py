"""What the options mean for one task: phases, losses, memory, training set. Section numbers are of arXiv 2111.11326."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import nn
from torch.optim import Optimizer

from continual.data.samplers import MemorySampler, StepSampler
from continual.datasets import Benchmark, Images, Samples, load
from continual.errors import CheckpointError
from continual.losses import Objective, binary_cross_entropy, cross_entropy, paper_objective
from continual.options import Data, Losses, Optimisation, Options, Rehearsal
from continual.rehearsal import Memory
from continual.tasks import FINETUNING, TRAINING, Phase, Task
from continual.training.engine import Beside, Loading
from continual.training.optim import Sam, Schedule, scaled_lr, trained

DEBUG_EPOCHS = DEBUG_STEPS = 2


def batch_size(options: Optimisation, task: Task) -> int:
    """Images of one replica in a step."""
    return options.batch_size if task.first else options.incremental_batch_size or options.batch_size


def sam_rho(options: Options, task: Task, nb_tasks: int, mode: str) -> float:
    """Radius of SAM's perturbation in this task and mode ("tr" or "ft"), linear from `sam_rho` to `sam_final`; 0 for no SAM."""
    sam = options.sam
    if mode not in sam.sam_mode or (sam.sam_skip_first and task.index == 0):
        return 0.0
    if sam.sam_final is None or nb_tasks == 1:
        return sam.sam_rho
    return sam.sam_rho + (sam.sam_final - sam.sam_rho) * task.index / (nb_tasks - 1)


def training(options: Options, task: Task, *, nb_tasks: int, replicas: int) -> Phase:
    """The main phase of a task: new images and the memory, distillation, divergence (section 3.3)."""
    optim, batch = options.optim, batch_size(options.optim, task)
    lr, warmup_lr, epochs, frozen = optim.lr, optim.warmup_lr, optim.base_epochs, ()
    if not task.first:
        lr = optim.incremental_lr or optim.lr
        warmup_lr = optim.warmup_lr if optim.incremental_warmup_lr is None else optim.incremental_warmup_lr
        epochs, frozen = optim.epochs, options.finetune.freeze_task
    return Phase(
        name=TRAINING,
        epochs=min(epochs, DEBUG_EPOCHS) if options.run.debug else epochs,
        batch_size=batch,
        lr=scaled_lr(lr, batch, replicas),
        scheduled=True,
        warmup_lr=warmup_lr,
        sampler="repeated" if options.augment.repeated_aug else "shuffled",
        frozen=tuple(frozen),
        distil=not task.first,
        divergence="tr" in options.loss.head_div_mode,
        sam_rho=sam_rho(options, task, nb_tasks, "tr"),
    )


def finetunes(options: Options, task: Task, nb_classes: int) -> bool:
    """From the second task on, or when one task holds all classes."""
    return bool(options.finetune.finetuning) and (not task.first or task.nb_new == nb_classes)


def finetuning(options: Options, task: Task, *, nb_tasks: int, replicas: int) -> Phase:
    """The short phase on the balanced memory alone, with the encoder frozen (section 4.1)."""
    finetune, batch = options.finetune, batch_size(options.optim, task)
    shuffled = "repeated" if options.augment.repeated_aug else "shuffled"
    return Phase(
        name=FINETUNING,
        epochs=min(finetune.finetuning_epochs, DEBUG_EPOCHS) if options.run.debug else finetune.finetuning_epochs,
        batch_size=batch,
        lr=scaled_lr(finetune.finetuning_lr, batch, replicas),
        scheduled=False,
        sampler="sequential" if finetune.ft_no_sampling else shuffled,
        frozen=tuple(finetune.freeze_ft),
        distil=finetune.finetuning_teacher,
        divergence="ft" in options.loss.head_div_mode,
        sam_rho=sam_rho(options, task, nb_tasks, "ft"),
        drop_last=finetune.ft_drop_last,
    )


def objective(options: Losses, model: nn.Module, teacher: nn.Module | None, task: Task, phase: Phase) -> Objective:
    """The losses of a phase."""
    pod = options.pod or 0.0
    if options.pod_scaling:
        pod *= (task.nb_new / task.nb_seen) ** 0.5
    return paper_objective(
        model,
        binary_cross_entropy if options.bce_loss else partial(cross_entropy, smoothing=options.smoothing),
        task=task,
        teacher=teacher if phase.distil else None,
        kd=None if options.auto_kd else options.kd,
        tau=options.distillation_tau,
        head_div=options.head_div if phase.divergence else 0.0,
        pod_weight=pod,
        pod_scales=options.pod_scales,
    )


def draws_memory(options: Options, phase: Phase, task: Task, memory: Memory) -> bool:
    """Whether steps of this phase take batches of the memory beside their own: for SAM, or to replay it."""
    sam = phase.sam_rho > 0 and "memory" in (options.sam.sam_first, options.sam.sam_second)
    replay = options.rehearsal.replay_memory > 0 and phase.name == TRAINING
    return (sam or replay) and not task.first and len(memory) > 0


def beside(
    options: Options,
    phase: Phase,
    task: Task,
    memory: Memory,
    *,
    sampler: StepSampler,
    images: Callable[..., Images],
    loading: Loading,
) -> Beside:
    """Batches of the memory for every step.

    Replayed ones count as in van de Ven & Tolias (2018): 1 / T for the new batch of task T, the rest for the replayed.
    """
    nb_replays = options.rehearsal.replay_memory if phase.name == TRAINING else 0
    exemplars = Samples(memory.x, memory.y, memory.t)
    views = [memory.view(replica) for replica in range(len(sampler.views))]
    batches = MemorySampler(sampler, views, nb_draws=max(1, nb_replays))
    return Beside(
        loading.loader(images(exemplars, augment=True), batches, persistent=True),
        sam_first=options.sam.sam_first == "memory",
        sam_second=options.sam.sam_second == "memory",
        nb_replays=nb_replays,
        weight_new=1 / (task.index + 1),
    )


def schedule(options: Options, optimizer: Optimizer, phase: Phase, *, epochs_done: int) -> Schedule | None:
    """The learning rates of a phase, None if they stay as they are. epochs_done: how many of its epochs lie behind."""
    if not phase.scheduled:
        return None
    return Schedule(optimizer, options.optim, epochs=phase.epochs, warmup_lr=phase.warmup_lr, epochs_done=epochs_done)


def sam(options: Options, model: nn.Module, phase: Phase) -> Sam | None:
    """SAM on what the phase trains, or None."""
    if phase.sam_rho == 0:
        return None
    return Sam(
        trained(model),
        rho=phase.sam_rho,
        adaptive=options.sam.sam_adaptive,
        look_every=options.sam.look_sam_k,
        look_alpha=options.sam.look_sam_alpha,
    )


def memory(options: Rehearsal, nb_classes: int, replicas: int) -> Memory:
    """An empty memory, one for all replicas or one each. Raises OptionsError if it has no room for every class."""
    empty = Memory(
        options.memory_size,
        nb_classes=nb_classes if options.fixed_memory else None,
        nb_replicas=replicas if options.distributed_memory else 1,
    )
    empty.check(nb_classes)
    return empty


def training_set(
    options: Rehearsal, new_images: Samples | None, memory: Memory, replicas: int
) -> tuple[Samples, list[np.ndarray]]:
    """What a phase trains on: samples, and for each replica the indices of those it sees.

    Training: the new images and behind them the memory, `oversample_memory` times (without it: `sep_memory`; alone from the
    second task on: `only_ft`). Finetuning (no new images): the memory, `oversample_memory_ft` times.
    """
    times = options.oversample_memory_ft if new_images is None else options.oversample_memory
    if new_images is not None and options.sep_memory:
        times = 0
    if new_images is not None and options.only_ft and len(memory):
        new_images = None
    nb_new = 0 if new_images is None else len(new_images.y)
    views = [np.concatenate([np.arange(nb_new), *[nb_new + memory.view(r)] * times]) for r in range(replicas)]
    parts = [new_images] * (new_images is not None) + [Samples(memory.x, memory.y, memory.t)] * (len(memory) > 0)
    return Samples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))), views


def merged(benchmark: Benchmark, task: Task) -> tuple[Task, Samples]:
    """All classes seen as one task without old classes, in the place of `task`; and their training images."""
    parts = [benchmark.train(index) for index in range(task.index + 1)]
    return Task(task.index, 0, task.nb_seen), Samples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def newest_task(tasks: Sequence[Task], model: nn.Module) -> Task:
    """The task whose classes the model knows already. Raises CheckpointError if it knows none, or more than these."""
    if sum(model.classes) > tasks[-1].nb_seen:
        raise CheckpointError(f"the model knows {sum(model.classes)} classes; {len(tasks)} tasks (max_task) have fewer")
    known = [task for task in tasks if task.nb_seen <= sum(model.classes)]
    if not known:
        raise CheckpointError("the checkpoint is of the very start: there is no task yet to evaluate")
    return known[-1]


def check_classes(tasks: Sequence[Task], index: int, model: nn.Module, *, afresh: bool) -> None:
    """Raise CheckpointError unless a model has learned all tasks before `index`, or this one with them.

    afresh: as one task, for every task brings a new model.
    """
    sizes = [task.nb_new for task in tasks]
    fitting = [sizes[:index], sizes[: index + 1]]
    if afresh:
        fitting = [[sum(each)] if each else [] for each in fitting]
    if list(model.classes) not in fitting:
        raise CheckpointError(f"the model has learned tasks of {list(model.classes)} classes; the options make other tasks")


def selects_on_augmented(options: Rehearsal) -> bool:
    """Whether exemplars are chosen on augmented images: by default in memories that each replica chooses for itself."""
    if options.rehearsal_test_trsf is not None:
        return not options.rehearsal_test_trsf
    return options.distributed_memory


def budget(memory: Memory, task: Task) -> str:
    """The memory that is really used, in words."""
    quota = memory.quota(task.nb_seen)
    text = f"memory: {len(memory)} exemplars of {task.nb_seen} classes, at most {quota} of each"
    if memory.nb_replicas > 1:
        text += f" for each of {memory.nb_replicas} replicas ({len(memory.view(0))} for the first)"
    return text


def in_short(sizes: list[int]) -> str:
    """Sizes of tasks in words: "5 of 2 classes", "50, then 5 of 10 classes", or all of them."""
    if len(set(sizes)) == 1:
        return f"{sizes[0]} each"
    if len(set(sizes[1:])) == 1:
        return f"{sizes[0]}, then {sizes[1]} each"
    return ", ".join(map(str, sizes))


def benchmark(options: Data, *, seed: int, class_order: tuple[int, ...] | None, download: bool) -> Benchmark:
    """The data set of the options, cut into tasks; see `datasets.load` for what it raises."""
    return load(
        data_set=options.data_set,
        data_path=options.data_path,
        initial_increment=options.initial_increment,
        increment=options.increment,
        class_order=class_order,
        validation=options.validation,
        seed=seed,
        download=download,
        skip_corrupt=options.skip_corrupt,
    )
