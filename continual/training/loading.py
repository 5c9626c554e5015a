"""How images reach the device: data loading, its workers, and what becomes of their failures."""

import errno
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from continual.data.images import Images, InMemory
from continual.data.samplers import Draw
from continual.errors import DataError, LoadingFailed
from continual.jobs import watch
from continual.training.precision import autocast

FORK = "fork" if sys.platform == "linux" else None  # at once, and without a server between, which a signal could end


@dataclass(frozen=True)
class Loading:
    """How images reach the device."""

    device: torch.device
    num_workers: int = 0
    pin_mem: bool = False
    amp: str = "off"  # precision: off, tf32, bf16 or fp16; see training/precision.py
    channels_last: bool = False  # the layout of images

    def loader(self, dataset: Images | InMemory, batches: Iterable[Draw]) -> "Loader":
        """Images and labels of every batch of the sampler, on the device."""
        return Loader(dataset, batches, self)

    def precision(self) -> AbstractContextManager:
        return autocast(self.amp, self.device)


class Loader:
    """The batches of a sampler, `batch_sampler`, as images and labels on the device; those of files come from workers."""

    def __init__(self, dataset: Images | InMemory, batches: Iterable[Draw], loading: Loading):
        self.dataset, self.batch_sampler, self.loading = dataset, batches, loading

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises LoadingFailed if the workers cannot start."""
        if isinstance(self.dataset, InMemory):
            return map(self._laid_out, self.dataset.batches(self.batch_sampler))
        return map(self._on_device, self._fetched(self._started()))

    def _laid_out(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.loading.channels_last:
            return batch
        return batch[0].contiguous(memory_format=torch.channels_last), batch[1]

    def _on_device(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = (part.to(self.loading.device, non_blocking=True) for part in batch)
        return self._laid_out((self.dataset.finish(images), labels))

    def _fetched(self, batches: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
        """A worker that is killed while it hands over a batch breaks the connection, and PyTorch says so a moment later."""
        try:
            yield from batches
        except (ConnectionError, EOFError) as error:
            time.sleep(1.0)  # in which the words of PyTorch arrive: see `watch.forget_workers`
            raise _of_workers(error, self.loading.num_workers) from error

    def _started(self) -> Iterator[list[Tensor]]:
        """Workers that no SIGTERM or Ctrl-C reaches.

        A scheduler or a terminal sends these to every process of a job, and they must go on until their own one has saved.
        """
        nb = self.loading.num_workers
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batch_sampler,
            num_workers=nb,
            pin_memory=self.loading.pin_mem and self.loading.device.type == "cuda",
            generator=torch.Generator(),  # its own: a loader must not draw from the global one
            multiprocessing_context=FORK if nb else None,
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watch.STOP_SIGNALS)  # which the workers inherit
        try:
            return iter(loader)
        except (OSError, RuntimeError) as error:
            if nb and not isinstance(error, torch.OutOfMemoryError):
                raise _of_workers(error, nb) from error
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


WORKERS_FAILED = re.compile(
    r"DataLoader worker \(pid|DataLoader timed out|pin memory thread|</?torch_|shared memory (object|file)|shared memory\(shm\)"
    r"|too many open files|ancdata|can't start new thread|(?s:in DataLoader worker process.*(MemoryError|allocate memory))",
    re.IGNORECASE,
)  # what PyTorch says when a worker is killed, or out of memory, of room in /dev/shm, or of files
TOO_LITTLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


@contextmanager
def naming_workers(num_workers: int) -> Iterator[None]:
    """A failure of data loading's workers, which PyTorch may raise at any moment, becomes a LoadingFailed.

    It is the last: whatever has failed, no other one may come between while that is written down.
    """
    try:
        yield
    except BaseException as error:
        watch.forget_workers()
        known = isinstance(error, RuntimeError | MemoryError | OSError | DataError)
        little = isinstance(error, OSError) and error.errno in TOO_LITTLE
        if num_workers and known and (little or WORKERS_FAILED.search(str(error))):
            raise _of_workers(error, num_workers) from error
        raise


def _of_workers(error: Exception, num_workers: int) -> LoadingFailed:
    *_, reason = str(error).strip().splitlines() or [type(error).__name__]
    reason = reason.partition(". ")[0].rstrip(".")[:300]
    return LoadingFailed(
        f"data loading failed: {reason}; try fewer workers than --num-workers {num_workers} (0: none), "
        "or give them more memory, room in /dev/shm, or open files (ulimit -n)"
    )
