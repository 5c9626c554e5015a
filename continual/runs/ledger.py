"""What a run costs: images, steps, seconds, floating-point operations, memory.

Counted once: what a checkpoint was saved with, and what came after it. Work that was lost, because a run was killed between
two checkpoints and did it again, is not in the books; an evaluation that was broken off by a stop, and done again, is twice.
Seconds are those of the host: a GPU works on while the host goes ahead, so a part that waits for it also pays for the parts
before. FLOPs are those of matrix products, convolutions and attention, a multiplication and an addition counting as two,
measured on one step of every phase of every task, and on the first batch of every pass over images, and taken as the same for
every image of them. (Of LookSAM's steps that one is the dearest.) What a method computes between its phases is not counted.
"""

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from continual.jobs import distributed
from continual.rehearsal import Memory
from continual.tasks import Task
from continual.training.loading import Loading

PARTS = DATA, STEP, EVALUATION, EXEMPLARS, SAVING, OTHER = "data", "step", "evaluation", "exemplars", "saving", "other"


@dataclass
class Line:
    """What one kind of work in one task has cost: a phase, by its name, or evaluations, or choosing exemplars.

    images: over all processes, as often as they passed. steps: of training. seconds: of this process. flops: of all processes.
    """

    images: int = 0
    steps: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def add(self, images: int, *, steps: int = 0, flops: float | None = None) -> None:
        """flops: of these images; without them, those of as many images before."""
        self.flops += self.flops / max(1, self.images) * images if flops is None else flops
        self.images, self.steps = self.images + images, self.steps + steps


class Ledger:
    """The books of one run.

        with ledger.part(EVALUATION, task, model): ...    # the part's seconds, and the images that pass through the model
        for losses, nb_images in ledger.training(trainer.steps(epoch), task, phase.name): ...

    seconds: by part; a part inside another is not in the other's. lines: by task and kind of work, in the order of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.lines: dict[tuple[int, str], Line] = {}
        self._before = (0, 0)  # peaks of memory, host and device, up to the resume
        self._open: list[tuple[str, Line | None]] = [(OTHER, None)]
        self._since = time.monotonic()
        self._flops: _Flops | None = None  # while they are being counted
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def part(self, name: str, task: Task | None = None, model: nn.Module | None = None) -> Iterator[None]:
        """Charge the time inside to a part; and the images that pass through a model there to the line of that task."""
        line = self._line(task, name) if task else None
        with self._charging(name, line):
            if model is None:
                yield
            else:
                with self._passes(model, line):
                    yield

    def training(self, steps: Iterable[tuple[Any, int]], task: Task, phase: str) -> Iterator[tuple[Any, int]]:
        """The steps (losses, number of images of this process) of a phase of that name, booked as they are done."""
        line, steps = self._line(task, phase), iter(steps)
        while True:
            self._flops = None if line.images else _Flops()
            with self._charging(STEP, line), self._flops or _nothing():
                found = next(steps, None)
            flops, self._flops = self._flops, None
            if found is None:
                return
            every = distributed.nb_processes()
            line.add(found[1] * every, steps=1, flops=flops and flops.nb * every)
            yield found

    def timed(self, loading: Loading) -> "Timed":
        """The same loading; what is waited for its batches is charged to the data."""
        return Timed(**vars(loading), ledger=self)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Charge the time inside to the data. Nothing there counts as FLOPs: workers started there would count for ever."""
        with self._charging(DATA, self._open[-1][1]), self._flops.paused() if self._flops else _nothing():
            yield

    @property
    def steps(self) -> int:
        """Steps of training so far."""
        return sum(line.steps for line in self.lines.values())

    def total(self) -> float:
        """Seconds of all parts, before a resume and since."""
        self._charge()
        return sum(self.seconds.values())

    def cost(self, model: nn.Module, teacher: nn.Module | None, memory: Memory) -> dict[str, Any]:
        """What summary.json says under `cost`; all processes call it together. Memory in bytes.

        peak_host_memory: of the largest process, without loading workers; of what came before a resume, the main process's.
        peak_device_memory: of tensors, of the process with most; None without CUDA. Exemplars that are paths take none.
        """
        self._charge()
        host, device = (max(values) for values in zip(*distributed.of_all_processes(self._peaks()), strict=True))
        trained = [line for line in self.lines.values() if line.steps]
        return {
            "images": sum(line.images for line in trained),
            "steps": sum(line.steps for line in trained),
            "images_evaluated": self._sum("images", EVALUATION),
            "images_for_exemplars": self._sum("images", EXEMPLARS),
            "flops": sum(line.flops for line in self.lines.values()),
            "flops_training": sum(line.flops for line in trained),
            "seconds": {name: round(seconds, 2) for name, seconds in self.seconds.items()},
            "peak_host_memory": host,
            "peak_device_memory": device if self.device.type == "cuda" else None,
            "model_bytes": _size(model),
            "teacher_bytes": _size(teacher) if teacher is not None else 0,
            "exemplar_bytes": 0 if memory.x is None or memory.x.dtype.kind == "U" else sum(each.nbytes for each in memory.x),
            "exemplars_are_paths": memory.x is not None and memory.x.dtype.kind == "U",
        }

    def state_dict(self) -> dict[str, Any]:
        """For a manifest, as JSON gives it back; it is no part of the run's state, which is equal for equal runs."""
        self._charge()
        lines = [[*key, *asdict(line).values()] for key, line in self.lines.items()]
        return {"seconds": dict(self.seconds), "lines": lines, "peaks": list(self._peaks())}

    def load_state_dict(self, state: Mapping[str, Any], *, seconds: float) -> None:
        """Go on from `state_dict`; empty for a checkpoint that has none, of which only the seconds in all are known."""
        self.seconds = dict.fromkeys(PARTS, 0.0) | (state.get("seconds") or {OTHER: seconds})
        self.lines = {(task, name): Line(*costs) for task, name, *costs in state.get("lines", [])}
        self._before = tuple(state.get("peaks", (0, 0)))
        self._open, self._since = [(OTHER, None)], time.monotonic()

    def _line(self, task: Task, name: str) -> Line:
        return self.lines.setdefault((task.index, name), Line())

    def _sum(self, what: str, name: str) -> int:
        return sum(getattr(line, what) for (_, each), line in self.lines.items() if each == name)

    def _charge(self) -> None:
        """Book the time since the last booking."""
        now = time.monotonic()
        name, line = self._open[-1]
        self.seconds[name] += now - self._since
        if line is not None:
            line.seconds += now - self._since
        self._since = now

    @contextmanager
    def _charging(self, name: str, line: Line | None) -> Iterator[None]:
        self._charge()
        self._open.append((name, line))
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    @contextmanager
    def _passes(self, model: nn.Module, line: Line | None) -> Iterator[None]:
        """Book the images that pass through the model inside, their FLOPs by the first batch."""
        counting, per_image = _Flops(), None

        def before(module: nn.Module, args: tuple) -> None:
            if per_image is None:
                counting.__enter__()

        def after(module: nn.Module, args: tuple, outputs: Any) -> None:
            nonlocal per_image
            if per_image is None:
                counting.__exit__()
                per_image = counting.nb / max(1, len(args[0]))
            nb_images = len(args[0]) * distributed.nb_processes()
            line.add(nb_images, flops=per_image * nb_images)

        hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            counting.__exit__()  # of a pass that failed

    def _peaks(self) -> tuple[int, int]:
        """Peak memory in bytes of this process, host and device; or that of before the resume, where it was higher."""
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        device = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return max(host, self._before[0]), max(device, self._before[1])


@dataclass(frozen=True)
class Timed(Loading):
    """Loading whose waits are charged to a ledger."""

    ledger: Ledger | None = None

    def loader(self, *args: Any, **how: Any) -> "_Waited":
        return _Waited(super().loader(*args, **how), self.ledger)


class _Waited:
    """A loader; what its batches are waited for, is charged. Else it is as it was."""

    def __init__(self, loader: Any, ledger: Ledger) -> None:
        self._loader, self._ledger = loader, ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator:
        with self._ledger.waiting():
            batches = iter(self._loader)  # now: workers begin here, under whatever their loading has prepared
        return self._each(batches)

    def _each(self, batches: Iterator) -> Iterator:
        while True:
            with self._ledger.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class _Flops:
    """The FLOPs of what is computed inside, forward and backward. It changes no result; entered anew, it counts on."""

    def __init__(self) -> None:
        self.nb = 0
        self._mode: _Counting | None = None

    def __enter__(self) -> "_Flops":
        self._mode = _Counting()
        self._mode.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self.nb += self._mode.nb
            self._mode = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


class _Counting(TorchDispatchMode):
    """PyTorch's formulas without its FlopCounterMode (2.14), which takes several times as long, and has hooks in every module
    that stop at views made without gradients.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.nb = 0
        self.formulas = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(getattr(func, "overloadpacket", func))
        if formula is None and _is_composite(func):  # without gradients it comes as it was called
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if formula is not None:
            self.nb += formula(*args, **kwargs, out_val=out)
        return out


@cache
def _is_composite(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func._can_decompose()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Two products, (N, d) with (d, M) and (N, M) with (M, e), for every head of every image."""
    *lead, n, d = query
    return 2 * math.prod(lead) * n * key[-2] * (d + value[-1])


def _attention_backward(grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Five products: the scores again, and the gradients of scores, values, queries and keys."""
    *lead, n, d = query
    return 2 * math.prod(lead) * n * key[-2] * (3 * d + 2 * value[-1])


# PyTorch (2.14) counts the attention of CUDA; that of the CPU it takes for nothing. These are its formulas.
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _size(model: nn.Module) -> int:
    """Bytes of its weights and buffers."""
    return sum(part.nbytes for part in [*model.parameters(), *model.buffers()])
