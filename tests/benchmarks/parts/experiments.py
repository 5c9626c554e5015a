"""Arithmetic: what a whole experiment of the option files takes, counted from its plan. Nothing is timed here."""

from types import SimpleNamespace

import numpy as np

import continual
from continual.data.samples import Samples
from continual.methods import method_of
from continual.options import ModelOptions, Options
from continual.rehearsal import Memory
from continual.runs.ledger import EVALUATION, EXEMPLARS
from continual.runs.plan import Work, works
from continual.tasks import Task
from parts.scaling import ASSUMED, of_step, operations, parameters
from parts.setting import OPTIONS, Row, Setting

CIFAR, IMAGENET = "model/cifar_dytox.yaml", "model/imagenet_dytox.yaml"
PUBLISHED = {  # option files, classes, images of a class for training and for testing
    "CIFAR-100, 10 steps": (("data/cifar100_10-10.yaml", CIFAR), 100, 500, 100),
    "CIFAR-100, 20 steps": (("data/cifar100_5-5.yaml", CIFAR), 100, 500, 100),
    "CIFAR-100, 50 steps": (("data/cifar100_2-2.yaml", CIFAR), 100, 500, 100),
    "ImageNet-100, 10 steps": (("data/imagenet100_10-10.yaml", IMAGENET), 100, 1281, 50),  # 1,281,167 images of 1,000 classes
    "ImageNet-1000, 10 steps": (("data/imagenet1000_100-100.yaml", IMAGENET), 1000, 1281, 50),
}


def scenario(options: Options, nb_classes: int, trained: int, tested: int) -> SimpleNamespace:
    """A benchmark of labels alone, cut as the options say, whose increment is a number."""
    data = options.data
    sizes = [data.initial_increment] + [data.increment] * ((nb_classes - data.initial_increment) // data.increment)
    tasks = tuple(Task(index, sum(sizes[:index]), size) for index, size in enumerate(sizes))
    of_class = np.repeat(np.arange(len(sizes)), sizes)

    def split(nb: int) -> Samples:
        y = np.repeat(np.arange(nb_classes), nb)
        return Samples(np.zeros(len(y), dtype=np.uint8), y, of_class[y])

    return SimpleNamespace(tasks=tasks, train_samples=split(trained), test_samples=split(tested))


def of_finetuning(model: ModelOptions, classes: list[int]) -> float:
    """Operations of a step of finetuning for one image: forward, and backward through all but a frozen encoder."""
    d, n, nb_tasks = model.embed_dim, (model.input_size // model.patch_size) ** 2, len(classes)
    tabs = model.depth - model.local_up_to_layer
    learns = 2 * tabs * (2 * n * d**2 + nb_tasks * (9 * d**2 + 2 * n * d)) + 2 * d * sum(classes)
    return operations(model, classes) + 2 * learns - 2 * 2 * n * d**2  # the patches need no gradient


def operations_of(work: Work, options: Options, classes: list[int]) -> tuple[float, float, float]:
    """Images trained, operations of training, and operations of evaluations and exemplars, of one step of a task."""
    model, optim = options.model, options.optim
    trained = training = beside = 0.0
    for kind, amount in work.amounts.items():
        if kind in (EVALUATION, EXEMPLARS):
            beside += amount * operations(model, classes, div=False)
        else:
            batch = (optim.incremental_batch_size if work.task else 0) or optim.batch_size
            nb_images = amount * batch * optim.replicas
            each = {"training": of_step, "finetuning": of_finetuning}[kind](model, classes)
            trained, training = trained + nb_images, training + nb_images * each
    return trained, training, beside


def experiment(name: str, options: Options, benchmark: SimpleNamespace) -> Row:
    """Everything that a run of these options does, of DyTox without SAM: what its ledger counts, but for what is padded."""
    tasks, replicas = benchmark.tasks, options.optim.replicas
    memory = Memory.of(options.rehearsal, tasks[-1].nb_seen, replicas)
    found = [0.0, 0.0, 0.0]
    for work in works(method_of(options, tasks, replicas=replicas), tasks, benchmark, memory, options):
        classes = [task.nb_new for task in tasks[: work.task + 1]]
        found = [one + more for one, more in zip(found, operations_of(work, options, classes), strict=True)]
    trained, training, beside = found
    rate = ASSUMED["bf16 products (TFLOP/s)"] * ASSUMED["share of it that a step reaches"] * 1e12
    side, paths = options.model.input_size, options.data.data_set.startswith("imagenet")
    return {
        "experiment": name,
        "parameters": parameters(options.model, [task.nb_new for task in tasks]),
        "images trained on (million)": trained / 1e6,
        "training (PFLOP)": training / 1e15,
        "evaluations and exemplars (PFLOP)": beside / 1e15,
        "exemplars (MB)": 0.0 if paths else options.rehearsal.memory_size * 3 * side**2 / 1e6,
        "hours of a GPU, assumed": (training + beside) / rate / 3600,
    }


def experiments(setting: Setting) -> Row:
    """What the published experiments take in all, counted from their plans, and how long that is at an assumed rate."""
    rows = []
    for name, (files, nb_classes, trained, tested) in PUBLISHED.items():
        options = continual.configure(*(OPTIONS / file for file in files))
        rows.append(experiment(name, options, scenario(options, nb_classes, trained, tested)))
    return {"rows": rows, "assumed": ASSUMED}
