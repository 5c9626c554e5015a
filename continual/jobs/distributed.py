"""The only room that knows processes: group, reduction, broadcast, failure. Alone, all of it works and does nothing."""

import faulthandler
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from continual.errors import LostProcess, OptionsError, Refused

T = TypeVar("T")

FAREWELL = 3.0  # seconds in which the processes of a job that fails tell each other what they know
LOST = "lost: "  # how the words of a process begin that knows no more than that
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 6.0  # seconds after which a process that does not hear of the failure is ended; above FAREWELL

_agents_store: dist.Store | None = None  # torchrun's key-value store, which outlives the processes that it starts again


def start(device: str, *, timeout: float = 1800.0) -> torch.device:
    """Join the process group that torchrun describes in the environment, if any, and return this process's device.

    device: "auto" (CUDA if there is one), "cuda", "cuda:1", "cpu". timeout: seconds after which a process that does not
    answer ends the job. Raises OptionsError if CUDA is asked for and absent, or the environment is no address.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return _device(device)
    patience = timedelta(seconds=timeout)
    store, own_rank, size = _meet(patience)
    chosen = _device(device)  # now that whoever has none can tell the others
    with _collective():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=patience)
    return chosen


def _meet(patience: timedelta) -> tuple[dist.Store, int, int]:
    """Find the other processes of the job. Returns the store of this start of it, this process's rank and their number."""
    global _agents_store
    try:
        with _collective("the processes of this job did not find each other: "):
            store, own_rank, size = next(dist.rendezvous("env://", timeout=patience))
    except ValueError as error:
        raise OptionsError(f"the environment does not describe a process group: {error}") from None
    _agents_store = store.clone()
    store = dist.PrefixStore(f"start {nb_restarts()}", store)
    _Notes.of_job = _Notes(store.clone(), own_rank, size)
    return store, own_rank, size


def _device(name: str) -> torch.device:
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
        _be_deterministic()
    return chosen


def _be_deterministic() -> None:
    """Have CUDA's kernels add up in a fixed order where they can, so that a resumed run repeats itself."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def stop() -> None:
    """Leave the process group, once every process is ready to."""
    if dist.is_initialized():
        barrier()
        if _Notes.of_job:
            _Notes.of_job.ended.set()
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
    with _collective():
        known = _agents_store is not None and _agents_store.check([f"kept/{name}"])
        return os.fsdecode(_agents_store.get(f"kept/{name}")) if known else None


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def nb_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def _collective(what: str = "") -> Iterator[None]:
    """Around whatever waits for other processes: their absence becomes a LostProcess, which begins with `what`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or str(error).startswith("DataLoader worker"):
            raise  # a DataLoader notices the death of a worker at any moment
        first_sentence = " ".join(str(error).split()).partition(". ")[0]
        raise LostProcess(what + first_sentence[:300]) from error


def barrier() -> None:
    if dist.is_initialized():
        with _collective():
            dist.barrier()


def replicas_of_this_process(replicas: int) -> range:
    """Which replicas of the recipe this process carries. Raises OptionsError if the processes do not divide them."""
    processes = nb_processes()
    if replicas % processes:
        fitting = ", ".join(str(n) for n in range(1, replicas + 1) if replicas % n == 0)
        raise OptionsError(f"replicas: {replicas} cannot be shared by {processes} processes; start {fitting} of them")
    share = replicas // processes
    return range(rank() * share, (rank() + 1) * share)


def average(tensors: Iterable[Tensor]) -> None:
    """Average tensors of any shapes over the processes, in place, all in one go.

    One buffer, always laid out alike: so a sum is rounded in the same way before and after a resume. (DistributedDataParallel
    lays its buckets out anew after its first step, and with more than two processes that changes the last bits.)
    """
    if not dist.is_initialized():
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    sum_over_processes(flat).div_(nb_processes())
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics of their batches."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's running statistics (batch norm): those of replica 0."""
    if dist.is_initialized():
        with _collective():
            for module in batch_norms(model):
                for buffer in module.buffers(recurse=False):
                    dist.broadcast(buffer, src=0)


def sum_over_processes(values: Tensor) -> Tensor:
    """The same tensor, summed over processes, in place. Any shape."""
    if dist.is_initialized():
        with _collective():
            dist.all_reduce(values)
    return values


def _wire() -> str:
    """The device that tensors must be on to travel between processes."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def gather_rows(rows: Tensor) -> list[Tensor] | None:
    """The rows (n_r, F) of every process, by rank, on the main process; None on the others.

    n_r may differ and be 0; F counts only where there are rows. They travel one process after another, and nobody but the main
    process holds more than its own.
    """
    if not dist.is_initialized():
        return [rows]
    wire = _wire()
    shapes: list[Any] = [None] * nb_processes()
    with _collective():
        dist.all_gather_object(shapes, tuple(rows.shape))
        if not is_main():
            if len(rows):
                dist.send(rows.to(wire).contiguous(), dst=0)
            return None
        gathered = [rows]
        for source, shape in enumerate(shapes[1:], start=1):
            theirs = torch.empty(shape, dtype=rows.dtype, device=wire)
            if shape[0]:
                dist.recv(theirs, src=source)
            gathered.append(theirs.to(rows.device))
    return gathered


def from_main(value: Any) -> Any:
    """What the main process holds as `value`, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    with _collective():
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
    if dist.is_initialized():
        of_all = [None] * nb_processes()
        with _collective():
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


class StopSignal:
    """SIGTERM and Ctrl-C (SIGINT) ask for a stop after the step or batch under way; a second SIGTERM asks for the same.

    A second Ctrl-C ends a process of its own at once; one that a launcher started may get each several times over.
    """

    requested = interrupted = False

    def __init__(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.requested = True
        if number != signal.SIGINT:
            return
        alone = "RANK" not in os.environ
        if self.interrupted and alone:
            raise KeyboardInterrupt
        if not self.interrupted and os.environ.get("RANK", "0") == "0":
            again = " (Ctrl-C again: at once, without saving)" if alone else ""
            with suppress(OSError):
                os.write(2, f"\nstopping as soon as the step under way is done and saved{again}\n".encode())
        self.interrupted = True

    def agreed(self) -> bool:
        """Whether any process was asked to stop. All processes must call it together, and get the same answer."""
        if not dist.is_initialized():
            return self.requested
        return bool(sum_over_processes(torch.tensor(float(self.requested), device=_wire())))


def end_workers() -> None:
    """Of data loading: they would notice the end of this process, but only after seconds."""
    for worker in multiprocessing.active_children():
        worker.kill()


class _Notes:
    """What processes that end tell each other, through the job's key-value store; and a watch over that.

    The watch is a thread: when some process has failed, it lets the others know that this one lives, and ends it if it does
    not end by itself soon, so that no process outlives its job: not one that hangs, nor any when torchrun is killed.
    """

    of_job: "_Notes | None" = None

    def __init__(self, store: dist.Store, own_rank: int, size: int):
        self.store, self.rank, self.size = store, own_rank, size
        self.ended = threading.Event()
        self.words: dict[int, str] = {}  # last words of others, by rank
        threading.Thread(target=self._watch, args=(store.clone(),), daemon=True).start()

    def _watch(self, store: dist.Store) -> None:
        deadline, reachable, hangs = math.inf, True, True
        while time.monotonic() < deadline:
            if self.ended.wait(0.5):
                return
            try:
                if reachable and store.check(["failed"]):
                    deadline = min(deadline, time.monotonic() + GRACE)
                    store.set(f"alive/{self.rank}", "")
                    self._listen(store)
            except RuntimeError:  # what keeps the store is gone
                reachable, hangs = False, deadline < math.inf
                deadline = min(deadline, time.monotonic() + GRACE)
        if hangs:
            faulthandler.dump_traceback()  # where
        else:
            text = f"rank {self.rank}: error: the launcher or rank 0 was killed; this process ends"
            print(text, file=sys.stderr, flush=True)
        end_workers()
        os._exit(1)

    def _listen(self, store: dist.Store) -> None:
        for other in range(self.size):
            if other not in {self.rank, *self.words} and store.check([f"words/{other}"]):
                self.words[other] = store.get(f"words/{other}").decode()

    def leave(self, why: str) -> tuple[dict[int, str], list[int]]:
        """Say why this process ends; hear why others do. Returns their words by rank, and the ranks that are dead."""
        others = [other for other in range(self.size) if other != self.rank]
        if why.startswith(LOST) and any(not theirs.startswith(LOST) for theirs in self.words.values()):
            return self.words, []
        with suppress(RuntimeError):  # when the process that keeps the store ends, nothing more is heard
            self.store.set(f"words/{self.rank}", why)
            self.store.set("failed", "")
            end = time.monotonic() + FAREWELL
            while len(self.words) < len(others) and time.monotonic() < end:
                time.sleep(0.1)
                self._listen(self.store)
            alive = [other for other in others if other in self.words or self.store.check([f"alive/{other}"])]
            self.store.set(f"heard/{self.rank}", "")
            while self.rank == 0 and not self.store.check([f"heard/{other}" for other in self.words]):
                time.sleep(0.05)  # the store may live in this process
                if time.monotonic() > end:
                    break
            return self.words, [other for other in others if other not in alive]
        return self.words, [0] if self.rank and 0 not in self.words else []


def words_to_say(error: str | None, lost: str = "") -> str | None:
    """What a process that fails should print, or None if another one says it.

    error: its own; None if all it knows is that it `lost` another process. Every process that fails must call it, once.
    """
    notes = _Notes.of_job
    if notes is None or notes.size == 1:
        return error if error is not None else f"error: {lost}"
    words, dead = notes.leave(LOST + lost if error is None else error)
    if error is not None:
        return None if any(other < notes.rank and theirs == error for other, theirs in words.items()) else error
    told = [other for other, theirs in words.items() if not theirs.startswith(LOST)]
    if told or any(other < notes.rank for other in words):
        return None
    silent = [other for other in range(notes.size) if other != notes.rank and other not in words]
    if dead:
        return f"error: {_ranks(dead)} ended without a word (killed, or out of memory): {lost}"
    if silent:
        return f"error: {_ranks(silent)} gave no answer in time: {lost}"
    return f"error: the processes lost each other: {lost}"


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
