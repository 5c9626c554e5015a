"""What the processes of a job do together: group, reduction, broadcast. Alone, all of it works and does nothing.

No other room knows processes, but for continual/jobs/watch.py: how they end.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from continual.errors import OptionsError, Refused
from continual.jobs import watch
from continual.jobs.watch import alone, collective, together, wire  # noqa: F401 (others find `alone` here)

T = TypeVar("T")

_agents_store: dist.Store | None = None  # torchrun's key-value store, which outlives the processes that it starts again


def start(device: str, *, timeout: float = 1800.0, deterministic: bool = True) -> torch.device:
    """Join the process group that torchrun describes in the environment, if any, and return this process's device.

    device: "auto" (CUDA if there is one), "cuda", "cuda:1", "cpu". timeout: seconds after which a process that does not
    answer ends the job. deterministic: see `_order_kernels`.
    Raises OptionsError if CUDA is asked for and absent, or the environment is no address.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return device_of(device, deterministic)
    patience = timedelta(seconds=timeout)
    store, own_rank, size = _meet(patience)
    chosen = device_of(device, deterministic)  # now that whoever has none can tell the others
    with collective():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=patience)
    return chosen


def _meet(patience: timedelta) -> tuple[dist.Store, int, int]:
    """Find the other processes of the job. Returns the store of this start of it, this process's rank and their number."""
    global _agents_store
    try:
        with collective("the processes of this job did not find each other: "):
            store, own_rank, size = next(dist.rendezvous("env://", timeout=patience))
    except ValueError as error:
        raise OptionsError(f"the environment does not describe a process group: {error}") from None
    _agents_store = store.clone()
    store = dist.PrefixStore(f"start {nb_restarts()}", store)
    watch.begin(store.clone(), own_rank, size)
    return store, own_rank, size


def device_of(name: str, deterministic: bool = True) -> torch.device:
    """The device that the option `device` names. Raises OptionsError if CUDA is asked for and absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(name)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise OptionsError(f"device: {name} was asked for, but torch sees no CUDA device; use --device cpu")
        if chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if chosen.index >= torch.cuda.device_count():
            raise OptionsError(f"device: {chosen} was asked for, but torch sees {torch.cuda.device_count()} CUDA device(s)")
        torch.cuda.set_device(chosen)
        _order_kernels(deterministic)
    return chosen


def _order_kernels(deterministic: bool) -> None:
    """Have CUDA's kernels add up in a fixed order, so that a resumed run repeats itself; or let it choose the fastest ones.

    Strictly: told only to warn, torch leaves the backward pass of fused attention as it is. An operation without such a kernel
    then raises, which `Job` puts in words.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would cost a pass over every new tensor


def stop() -> None:
    """Leave the process group, once every process is ready to."""
    if together():
        barrier()
        watch.end()
        dist.destroy_process_group()


def nb_restarts() -> int:
    """How often torchrun has started this job again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def keep(name: str, word: str) -> None:
    """Leave a word to the processes that torchrun will start in place of these, should they fail."""
    if _agents_store is not None:
        with suppress(RuntimeError):  # torchrun is gone, and will start nothing
            _agents_store.set(f"kept/{name}", os.fsencode(word))  # it may be a path of any bytes


def kept(name: str) -> str | None:
    """The word that earlier processes of this job left; None if there is none, as at the first start or without torchrun."""
    with collective():
        known = _agents_store is not None and _agents_store.check([f"kept/{name}"])
        return os.fsdecode(_agents_store.get(f"kept/{name}")) if known else None


def rank() -> int:
    return dist.get_rank() if together() else 0


def nb_processes() -> int:
    return dist.get_world_size() if together() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if together():
        with collective():
            dist.barrier()


def replicas_of_this_process(replicas: int) -> range:
    """Which replicas of the recipe this process carries. Raises OptionsError if the processes do not divide them."""
    processes = nb_processes()
    if replicas % processes:
        fitting = ", ".join(str(n) for n in range(1, replicas + 1) if replicas % n == 0)
        raise OptionsError(f"replicas: {replicas} cannot be shared by {processes} processes; start {fitting} of them")
    share = replicas // processes
    return range(rank() * share, (rank() + 1) * share)


def workers_of_this_process(asked: int | None = None) -> int:
    """How many data loading workers it has: those asked for, or its share of the cores that it may use here, at least 1."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", nb_processes())))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics of their batches."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's running statistics (batch norm): those of replica 0."""
    if together():
        with collective():
            for module in batch_norms(model):
                for buffer in module.buffers(recurse=False):
                    dist.broadcast(buffer, src=0)


def sum_over_processes(values: Tensor) -> Tensor:
    """The same tensor, summed over processes, in place. Any shape."""
    if together():
        with collective():
            dist.all_reduce(values)
    return values


def of_all_processes(value: T) -> list[T]:
    """What every process gives, by rank; on every process."""
    if not together():
        return [value]
    values: list[Any] = [None] * nb_processes()
    with collective():
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> list[Tensor] | None:
    """The rows (n_r, F) of every process, by rank, on the main process; None on the others.

    n_r may differ and be 0; F counts only where there are rows. They travel one process after another, and nobody but the main
    process holds more than its own.
    """
    if not together():
        return [rows]
    device = wire()
    shapes: list[Any] = [None] * nb_processes()
    with collective():
        dist.all_gather_object(shapes, tuple(rows.shape))
        if not is_main():
            if len(rows):
                dist.send(rows.to(device).contiguous(), dst=0)
            return None
        gathered = [rows]
        for source, shape in enumerate(shapes[1:], start=1):
            theirs = torch.empty(shape, dtype=rows.dtype, device=device)
            if shape[0]:
                dist.recv(theirs, src=source)
            gathered.append(theirs.to(rows.device))
    return gathered


def from_main(value: Any) -> Any:
    """What the main process holds as `value`, on every process."""
    if not together():
        return value
    box = [value]
    with collective():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(function: Callable[[], T]) -> T:
    """Call on the main process alone; every process gets what it returned, or the Refused that it raised."""
    result, refused = _attempt(function) if is_main() else (None, None)
    result, refused = from_main((result, refused))
    if refused is not None:
        raise refused
    return result


def main_first(function: Callable[[bool], T]) -> T:
    """Call `function(True)` on the first process of each machine, then `function(False)` on its others.

    A Refused that one of the first raises is raised on every process.
    """
    first = int(os.environ.get("LOCAL_RANK", rank())) == 0
    result, refused = _attempt(lambda: function(True)) if first else (None, None)
    of_all = [refused]
    if together():
        of_all = [None] * nb_processes()
        with collective():
            dist.all_gather_object(of_all, refused)
    for refused in of_all:
        if refused is not None:
            raise refused
    return result if first else function(False)


def _attempt(function: Callable[[], T]) -> tuple[T, None] | tuple[None, Refused]:
    try:
        return function(), None
    except Refused as refused:
        return None, refused
