"""The only room that knows processes: group, wrapping, reduction, broadcast. Alone, all of it works and does nothing."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from continual.errors import OptionsError, Refused

T = TypeVar("T")


def start(device: str, *, timeout: float = 1800.0) -> torch.device:
    """Join the process group that torchrun describes in the environment, if any, and return this process's device.

    device: "auto" (CUDA if there is one), "cuda", "cuda:1", "cpu". timeout: seconds after which a process that does not
    answer ends the job. Raises OptionsError if CUDA is asked for and absent.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise OptionsError(f"device: {device} was asked for, but torch sees no CUDA device; use --device cpu")
        if chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(chosen)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return chosen


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def nb_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def replicas_of_this_process(replicas: int) -> range:
    """Which replicas of the recipe this process carries. Raises OptionsError if the processes do not divide them."""
    processes = nb_processes()
    if replicas % processes:
        fitting = ", ".join(str(n) for n in range(1, replicas + 1) if replicas % n == 0)
        raise OptionsError(f"replicas: {replicas} cannot be shared by {processes} processes; start {fitting} of them")
    share = replicas // processes
    return range(rank() * share, (rank() + 1) * share)


def wrap(model: nn.Module) -> nn.Module:
    """A module whose backward averages the gradients of all processes. Call anew whenever other parameters are trained."""
    return DistributedDataParallel(model) if dist.is_initialized() else model


def accumulating(model: nn.Module, more_to_come: bool) -> AbstractContextManager:
    """Around forward and backward: gradients stay on this process while there is more to come."""
    if more_to_come and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def sum_over_processes(values: Tensor) -> Tensor:
    """The same tensor, summed over processes, in place. Any shape."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def sum_array(values: np.ndarray, device: torch.device) -> np.ndarray:
    """A NumPy array summed over processes. Any shape; float64 or int64."""
    return sum_over_processes(torch.from_numpy(values).to(device)).cpu().numpy() if dist.is_initialized() else values


def from_main(value: Any) -> Any:
    """What the main process holds as `value`, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(function: Callable[[], T]) -> T:
    """Call on the main process alone; every process gets what it returned, or the Refused that it raised."""
    result, refused = None, None
    if is_main():
        try:
            result = function()
        except Refused as error:
            refused = error
    result, refused = from_main((result, refused))
    if refused is not None:
        raise refused
    return result


def main_first(function: Callable[[bool], T]) -> T:
    """Call `function(True)` on the first process of each machine, then `function(False)` on its others."""
    first = int(os.environ.get("LOCAL_RANK", rank())) == 0
    result = function(True) if first else None
    barrier()
    return result if first else function(False)


class StopSignal:
    """SIGTERM asks for a stop after the step under way; a second one asks for the same."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.requested = True

    def agreed(self) -> bool:
        """Whether any process was asked to stop. All processes must call it together, and get the same answer."""
        if not dist.is_initialized():
            return self.requested
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return bool(sum_over_processes(torch.tensor(float(self.requested), device=device)))
