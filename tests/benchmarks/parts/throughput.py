"""Images a second through whole training steps, by model, tasks and precision, as they are and compiled."""

import gc
from collections.abc import Sequence

import torch

from continual.training import precision
from parts.models import Steps, options_of, tasks_of
from parts.scaling import of_step
from parts.setting import Row, Setting, alternating, guarded, say
from parts.step import DTYPES, rate

CLASSES = {1: 10, 50: 2}  # of a task, for so many tasks
ROOM = {"cifar": 1024, "imagenet": 20}  # images augmented together
EAGER = [(name, nb, amp) for amp in ("bf16", "off", "tf32") for name in ("cifar", "imagenet") for nb in (50, 1)]
COMPILED = [(name, nb, amp) for amp in ("bf16", "off") for name in ("cifar", "imagenet") for nb in (50, 1)]


def eager(setting: Setting) -> list[Row]:
    return rows_of(setting, EAGER, compiles=False)


def compiled(setting: Setting) -> list[Row]:
    return rows_of(setting, COMPILED, compiles=True)


def rows_of(setting: Setting, cases: Sequence[tuple[str, int, str]], *, compiles: bool) -> list[Row]:
    """A row for every case for which there is time."""
    rows = []
    for name, nb, amp in cases[: 2 if setting.tiny else None]:
        head = {"model": name, "tasks": nb, "precision": {"off": "float32"}.get(amp, amp)}
        head |= {"compiled": "yes"} if compiles else {}
        say(f"throughput: {head}")

        def measure(name: str = name, nb: int = nb, amp: str = amp) -> Row:
            setting.need(75 if compiles else 20)
            return one(setting, name, nb, amp, compiles=compiles)

        rows.append({**head, **guarded(measure)})
        gc.collect()
        if setting.on_cuda:
            torch.cuda.empty_cache()
    return rows


def one(setting: Setting, name: str, nb_tasks: int, amp: str, *, compiles: bool) -> Row:
    batch = 2 if setting.tiny else 128
    together = max(1, ROOM[name] // batch)
    changes = {"compile": compiles, **({"deterministic": False} if compiles else {})}
    options = options_of(name, setting, **changes)
    tasks = tasks_of(nb_tasks, CLASSES[nb_tasks])
    if setting.on_cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    how = {"batch": batch, "together": together, "amp": amp, "nb_images": 4096 if name == "cifar" and not setting.tiny else 512}
    steps = Steps(options, tasks, setting.device, **how)
    begun = setting.now()
    steps(3)  # which compiles, and records CUDA graphs
    first = setting.now() - begun
    nb = 2 if setting.tiny else 4 * together if name == "cifar" else 8
    seconds = alternating(setting, {"steps": lambda: steps(nb)}, rounds=1 if setting.tiny else 3)["steps"] / nb
    in_all = of_step(options.model, [task.nb_new for task in tasks]) * batch
    precision.set_products(amp)
    products = rate(setting, options.model, batch, DTYPES.get(amp, torch.float32))
    row = {"batch": batch, "step (ms)": 1e3 * seconds, "images/s": batch / seconds, "step (TFLOP/s)": in_all / seconds / 1e12}
    row |= {"products (TFLOP/s)": products / 1e12, "share of products": in_all / seconds / products}
    if setting.on_cuda:
        row["peak memory (GB)"] = torch.cuda.max_memory_allocated(setting.device) / 1e9
    if compiles:
        row |= {"first three steps (s)": first, "compiles": "yes" if steps.trainer.compiled.works else "no"}
    return row
