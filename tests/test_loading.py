"""Workers of data loading, and what becomes of their failures."""

import errno
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from tiny import images

from continual.data.samplers import Draw
from continual.errors import DataError, LoadingFailed
from continual.jobs import watch
from continual.training.loading import Loader, Loading, naming_workers

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


KILLED = "DataLoader worker (pid 7) is killed by signal: Killed. "


@pytest.mark.parametrize(
    ("error", "words", "told"),
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), KILLED, "DataLoader worker (pid 7) is killed by"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "", "Connection reset by peer"),
        (EOFError(), "", "EOFError"),
    ],
)
def test_a_worker_killed_while_it_hands_over_a_batch(error, words, told, monkeypatch):
    """The connection breaks first; what PyTorch says a moment later tells more."""

    def broken():
        yield from ()
        raise error

    def a_moment(seconds):
        if words:
            raise RuntimeError(words)

    monkeypatch.setattr(time, "sleep", a_moment)
    loader = Loader(images(4), [], Loading(torch.device("cpu"), num_workers=3))
    with pytest.raises(LoadingFailed, match=re.escape(told)) as caught, naming_workers(3):
        list(loader._fetched(broken()))
    assert "--num-workers 3 " in str(caught.value)


def test_no_worker_is_heard_of_after_a_failure():
    """PyTorch would raise an error for every loader with a worker that dies, in the midst of whatever is done by then."""
    batches = [Draw(np.arange(2), None, np.arange(2))] * 3
    with pytest.raises(KeyError), naming_workers(1):
        begun = iter(Loading(torch.device("cpu"), num_workers=1).loader(images(4), batches))
        next(begun)
        assert callable(signal.getsignal(signal.SIGCHLD))
        raise KeyError
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    watch.end_workers()
    del begun


def test_workers_that_cannot_start(monkeypatch):
    """As with a full /dev/shm, or at the limit of processes."""

    def none_left():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", none_left)
    loading = Loading(torch.device("cpu"), num_workers=2)
    with pytest.raises(LoadingFailed, match="Resource temporarily unavailable; try fewer workers than --num-workers 2"):
        iter(loading.loader(images(4), [Draw(np.arange(2), None, np.arange(2))]))
    assert not {signal.SIGTERM, signal.SIGINT} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
