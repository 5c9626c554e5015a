"""Faults on purpose: how the tests show what a run survives. Without the environment variable nothing here does anything.

DYTOX_FAULT=KIND:PLACE:N[:rankR] makes the process (of rank R, or every one) meet a fault the N-th time that it reaches a
place; several are separated by commas.

    kill    SIGKILL, as by an out-of-memory killer      term    SIGTERM, as from a scheduler
    raise   an error nobody expects                     int     SIGINT, as by Ctrl-C
    nan     the value that passes there becomes NaN     hang    no answer any more

A job that torchrun starts again meets no second fault.
"""

import os
import signal
import time
from collections import Counter
from typing import TypeVar

from continual.jobs import distributed

T = TypeVar("T")

VARIABLE = "DYTOX_FAULT"
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
KINDS = (*SIGNALS, "raise", "hang", "nan")
PLACES = (
    *("data", "forward", "backward", "step"),  # in a step of training
    *("evaluation", "exemplars", "finetuning", "task change", "end"),  # between phases
    *("writing", "rename", "manifest", "cleaning"),  # of a checkpoint
)

_reached: Counter = Counter()


def reach(place: str, value: T = None) -> T:
    """Meet the fault of this place, if its turn has come. Gives `value` back, or value times NaN."""
    wanted = os.environ.get(VARIABLE)
    if not wanted or distributed.nb_restarts():
        return value
    _reached[place] += 1
    for fault in wanted.split(","):
        kind, where, number, *rank = fault.split(":")
        if kind not in KINDS or where not in PLACES or place not in PLACES:
            raise ValueError(f"{VARIABLE}={wanted}, at {place!r}: kinds are {KINDS}, places {PLACES}")
        mine = not rank or rank[0] == f"rank{os.environ.get('RANK', '0')}"
        if place == where and _reached[place] == int(number) and mine:
            value = _meet(kind, place, value)
    return value


def _meet(kind: str, place: str, value: T) -> T:
    if kind == "nan":
        return value * float("nan")
    if kind == "raise":
        raise RuntimeError(f"a fault on purpose at {place!r}")
    if kind == "hang":
        while True:
            time.sleep(3600)
    os.kill(os.getpid(), SIGNALS[kind])
    return value
