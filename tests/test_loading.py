"""Workers of data loading, and what becomes of their failures."""

import errno
import os
import signal

import numpy as np
import pytest
import torch
from tiny import images

from continual.data.samplers import Draw
from continual.errors import DataError, LoadingFailed
from continual.training.loading import Loading, naming_workers

WRAPPED = "Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n{}: {}"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are"),
        RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        RuntimeError("unable to open shared memory object </torch_7_1> in read-write mode: Too many open files (24)"),
        RuntimeError(
            WRAPPED.format(*["RuntimeError"] * 2, "unable to write to file </torch_7_1>: No space left on device (28)")
        ),
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        RuntimeError("received 0 items of ancdata"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        OSError(WRAPPED.format(*["OSError"] * 2, "[Errno 24] Too many open files: 'a.jpg'")),
        MemoryError(WRAPPED.format(*["MemoryError"] * 2, "")),
        DataError("cannot read the image a.jpg (index 3): OSError: [Errno 24] Too many open files: 'a.jpg'"),
    ],
    ids=str,
)
def test_a_failure_of_the_workers_names_them(error):
    with pytest.raises(LoadingFailed) as caught, naming_workers(3):
        raise error
    told = str(caught.value)
    assert told.startswith("data loading failed: ") and "--num-workers 3 " in told and "\n" not in told
    with pytest.raises(type(error)), naming_workers(0):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), OSError(errno.ENOSPC, "full"), DataError("no image")])
def test_another_failure_is_left_as_it_is(error):
    with pytest.raises(type(error), match=str(error.args[-1])), naming_workers(3):
        raise error


def test_workers_that_cannot_start(monkeypatch):
    """As with a full /dev/shm, or at the limit of processes."""

    def none_left():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", none_left)
    loading = Loading(torch.device("cpu"), num_workers=2)
    with pytest.raises(LoadingFailed, match="Resource temporarily unavailable; try fewer workers than --num-workers 2"):
        iter(loading.loader(images(4), [Draw(np.arange(2), None, np.arange(2))]))
    assert not {signal.SIGTERM, signal.SIGINT} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
