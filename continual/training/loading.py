"""How images reach the device: data loading, its workers, and what becomes of their failures."""

import errno
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from continual.errors import DataError, LoadingFailed
from continual.jobs import watch

FORK = "fork" if sys.platform == "linux" else None  # at once, and without a server between, which a signal could end


@dataclass(frozen=True)
class Loading:
    """How images reach the device."""

    device: torch.device
    num_workers: int = 0
    pin_mem: bool = False
    amp: bool = False  # bfloat16 autocast

    def loader(self, dataset: Dataset, batches: Sampler | Sequence, *, persistent: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            pin_memory=self.pin_mem and self.device.type == "cuda",
            persistent_workers=persistent and self.num_workers > 0,
            generator=torch.Generator(),  # its own: a loader must not draw from the global one
            multiprocessing_context=FORK if self.num_workers else None,
        )

    def start(self, loader: DataLoader) -> Iterator[list[Tensor]]:
        """The loader's batches, from workers that no SIGTERM or Ctrl-C reaches. Raises LoadingFailed if they cannot start.

        A scheduler or a terminal sends these to every process of a job, and they must go on until their own one has saved.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watch.STOP_SIGNALS)  # which the workers inherit
        try:
            return iter(loader)
        except (OSError, RuntimeError) as error:
            if self.num_workers and not isinstance(error, torch.OutOfMemoryError):
                raise _of_workers(error, self.num_workers) from error
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def to_device(self, batch: Sequence[Tensor]) -> list[Tensor]:
        return [part.to(self.device, non_blocking=True) for part in batch]

    def precision(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp)


WORKERS_FAILED = re.compile(
    r"DataLoader worker \(pid|DataLoader timed out|pin memory thread|</?torch_|shared memory (object|file)|shared memory\(shm\)"
    r"|too many open files|ancdata|can't start new thread|(?s:in DataLoader worker process.*(MemoryError|allocate memory))",
    re.IGNORECASE,
)  # what PyTorch says when a worker is killed, or out of memory, of room in /dev/shm, or of files
TOO_LITTLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


@contextmanager
def naming_workers(num_workers: int) -> Iterator[None]:
    """A failure of data loading's workers, which PyTorch may raise at any moment, becomes a LoadingFailed."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, DataError) as error:
        little = isinstance(error, OSError) and error.errno in TOO_LITTLE
        if num_workers and (little or WORKERS_FAILED.search(str(error))):
            raise _of_workers(error, num_workers) from error
        raise


def _of_workers(error: Exception, num_workers: int) -> LoadingFailed:
    *_, reason = str(error).strip().splitlines() or [type(error).__name__]
    reason = reason.partition(". ")[0].rstrip(".")[:300]
    return LoadingFailed(
        f"data loading failed: {reason}; try fewer workers than --num-workers {num_workers} (0: none), "
        "or give them more memory, room in /dev/shm, or open files (ulimit -n)"
    )
