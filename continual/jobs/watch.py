"""What processes tell each other when they end, and the signal to stop. Alone, all of it works."""

import faulthandler
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from continual.errors import LostProcess

FAREWELL = 3.0  # seconds in which the processes of a job that fails tell each other what they know
LOST = "lost: "  # how the words of a process begin that knows no more than that
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALS_OF_LOADERS = "torch.utils.data._utils.signal_handling"  # the module of their handler
GRACE = 6.0  # seconds after which a process that does not hear of the failure is ended; above FAREWELL


@contextmanager
def collective(what: str = "") -> Iterator[None]:
    """Around whatever waits for other processes: their absence becomes a LostProcess, which begins with `what`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or str(error).startswith("DataLoader worker"):
            raise  # a DataLoader notices the death of a worker at any moment
        first_sentence = " ".join(str(error).split()).partition(". ")[0]
        raise LostProcess(what + first_sentence[:300]) from error


_alone = False


def together() -> bool:
    """Whether this process works with others of its job."""
    return dist.is_initialized() and not _alone


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works as if it were the only one; nothing there may wait for the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def wire() -> str:
    """The device that tensors must be on to travel between processes."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


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

    def is_requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.requested

    def agreed(self) -> bool:
        """Whether any process was asked to stop. All processes must call it together, and get the same answer."""
        if not together():
            return self.requested
        requested = torch.tensor(float(self.requested), device=wire())
        with collective():
            dist.all_reduce(requested)
        return bool(requested)


class Never:
    """The signal of a run that nobody but an exception stops."""

    def is_requested(self) -> bool:
        return False

    def agreed(self) -> bool:
        return False


def forget_workers() -> None:
    """Of data loading: from here on the end of one is no error.

    The handler of SIGCHLD that a DataLoader leaves would raise one at any moment, even while another is written down.
    """
    ours = threading.current_thread() is threading.main_thread()  # no other may change a handler, nor gets signals
    if ours and getattr(signal.getsignal(signal.SIGCHLD), "__module__", "") == SIGNALS_OF_LOADERS:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.modules[SIGNALS_OF_LOADERS]._SIGCHLD_handler_set = False  # so that the next loader of this process has it again


def end_workers() -> None:
    """Of data loading: they would notice the end of this process, but only after seconds."""
    for worker in multiprocessing.active_children():
        worker.kill()


class Notes:
    """What processes that end tell each other, through the job's key-value store; and a watch over that.

    The watch is a thread: when some process has failed, it lets the others know that this one lives, and ends it if it does
    not end by itself soon, so that no process outlives its job: not one that hangs, nor any when torchrun is killed.
    """

    of_job: "Notes | None" = None

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


def begin(store: dist.Store, own_rank: int, size: int) -> None:
    """Watch over the processes of this job from here on. store: a connection of the watch's own; size: how many they are."""
    Notes.of_job = Notes(store, own_rank, size)


def end() -> None:
    """Watch no longer: all processes are done."""
    if Notes.of_job:
        Notes.of_job.ended.set()


def words_to_say(error: str | None, lost: str = "") -> str | None:
    """What a process that fails should print, or None if another one says it.

    error: its own; None if all it knows is that it `lost` another process. Every process that fails must call it, once.
    """
    notes = Notes.of_job
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
