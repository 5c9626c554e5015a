"""How a measurement is taken: on which device, how often, until when; clocks, medians and tables."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = ROOT / "options"
Row = dict[str, Any]


class OutOfTime(Exception):
    """There is no time left for what was to be measured next."""


@dataclass
class Setting:
    """device: to measure on. threads: of torch, on the CPU. rounds: of every variant. tiny: sizes for a test of the tool.

    full: whole runs instead of a task of them. against: a folder or a commit to compare runs with. ends: when, by the
    monotonic clock. folder: for what runs leave.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    rounds: int = 5
    tiny: bool = False
    full: bool = False
    max_task: int = 2
    against: str = ""
    ends: float = float("inf")
    folder: Path = Path("logs/speed")

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def clock(self) -> str:
        alone = not self.on_cuda and self.threads == 1
        return "CPU seconds of the process" if alone else "seconds of a wall clock"

    def now(self) -> float:
        """Seconds; on one CPU thread those that the processor worked, so that other work on the machine counts less."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.clock.startswith("CPU") else time.perf_counter()

    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raise OutOfTime if there is less left."""
        if self.seconds_left() < seconds:
            raise OutOfTime(f"not measured: {max(0, self.seconds_left()):.0f} s were left, and it takes {seconds:.0f}")


def alternating(
    setting: Setting, variants: Mapping[str, Callable[[], object]], *, warm: int = 1, rounds: int | None = None
) -> dict[str, float]:
    """Median seconds of every variant: all of them in turn, forwards and backwards, after `warm` calls of each."""
    for _ in range(warm):
        for call in variants.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds or setting.rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            begun = setting.now()
            variants[name]()
            seconds[name].append(setting.now() - begun)
    return {name: median(values) for name, values in seconds.items()}


def product_rate(setting: Setting, shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> Callable[[], float]:
    """A function that multiplies matrices of these shapes once, (m, k) by (k, n), and gives the operations it takes."""
    pairs = [
        (torch.randn(m, k, device=setting.device).to(dtype), torch.randn(n, k, device=setting.device).to(dtype))
        for m, k, n in shapes
    ]

    def multiply() -> float:
        for a, b in pairs:
            torch.nn.functional.linear(a, b)
        return float(sum(2 * m * k * n for m, k, n in shapes))

    return multiply


def of_python(module: str) -> tuple[list[str], dict[str, str]]:
    """How another process runs a module of this folder: the command, and its environment."""
    paths = [str(ROOT), str(ROOT / "tests" / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return [sys.executable, "-m", f"parts.{module}"], {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def guarded(measure: Callable[[], Row]) -> Row:
    """What a measurement gives, or the words of why it gave nothing."""
    try:
        return measure()
    except OutOfTime as late:
        return {"not measured": str(late)}
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:600]
        say(f"failed: {reason}")
        return {"error": reason}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def sensible(value: float) -> float:
    """Four digits that mean something."""
    return float(f"{value:.4g}")


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown; a column for every key, in the order of their first appearance. What is nested stays in the JSON."""
    rows = [{key: value for key, value in row.items() if not isinstance(value, dict | list)} for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *[[shown(row[key]) if key in row else "" for key in keys] for row in rows]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def load_average() -> list[float]:
    return [round(each, 2) for each in os.getloadavg()]
