"""The first words of a run, and what it says of its memory."""

from continual.data.opening import by_ending
from continual.data.scenario import joint_by_accident
from continual.datasets import Benchmark
from continual.errors import some
from continual.jobs import distributed
from continual.options import FIELDS
from continual.rehearsal import Memory
from continual.runs.experiment import Experiment
from continual.tasks import Task

PRECISIONS = {"off": "float32", "tf32": "TensorFloat-32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}


def greeting(exp: Experiment, memory: Memory) -> str:
    """What a run learns, how, and where it leaves things."""
    benchmark, sizes = exp.benchmark, [task.nb_new for task in exp.tasks]
    left_out, nb_tasks = benchmark.left_out, "1 task" if len(sizes) == 1 else f"{len(sizes)} tasks"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (benchmark.mean, benchmark.std))
    lines = [
        f"{benchmark.name}: {sum(sizes)} classes in {nb_tasks} ({in_short(sizes)}), "
        f"{len(benchmark.train_samples.y)} training and {len(benchmark.test_samples.y)} test images"
        + (f", {benchmark.nb_skipped} unreadable files left out" if benchmark.nb_skipped else ""),
        f"{len(left_out)} file{'s' * (len(left_out) > 1)} left out: {by_ending(left_out)}" if left_out else "",
        _joint_by_accident(exp),
        f"classes     {_classes_in_short(benchmark, len(exp.tasks))}",
        f"pixels      normalised by mean {mean} and std {std}",
        f"{exp.replicas} replica(s) on {distributed.nb_processes()} process(es), {exp.loading.device}, "
        + PRECISIONS[exp.loading.amp],
        f"memory of {memory.memory_size} exemplars"
        + (f", {memory.memory_size // memory.nb_replicas} for each replica" if memory.nb_replicas > 1 else ""),
        f"logs        {exp.place.logs}",
        f"checkpoints {exp.place.checkpoints}",
    ]
    return "\n".join(filter(None, lines))


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


def _joint_by_accident(exp: Experiment) -> str:
    data, defaults = exp.options.data, (FIELDS["initial_increment"].default, FIELDS["increment"].default)
    said = joint_by_accident(exp.benchmark.nb_classes, data.initial_increment, data.increment, defaults=defaults)
    return said and f"note: {said}"


def _classes_in_short(benchmark: Benchmark, nb_tasks: int) -> str:
    """The first names of the first and last tasks, in the order in which they arrive."""
    shown = benchmark.tasks[:nb_tasks]
    parts = [f"task {task.index + 1}: {some(_names(benchmark, task), 4)}" for task in shown]
    return " | ".join(parts if len(parts) <= 5 else [*parts[:3], "...", parts[-1]])


def _names(benchmark: Benchmark, task: Task) -> list[str]:
    """The names of a task's classes, each short and on one line."""
    names = [benchmark.class_names[class_id] for class_id in benchmark.class_order[task.nb_old : task.nb_seen]]
    return [name[:20] + "..." * (len(name) > 20) if name.isprintable() else ascii(name)[:20] for name in names]
