"""What people see while a run goes on: plain lines, and a bar on a terminal.

Losses are means per image or batch as they were given; times are seconds.
"""

import math
import sys
from collections.abc import Callable, Mapping
from time import monotonic

from tqdm import tqdm

from continual.errors import plain

TimeLeft = Callable[[float], tuple[float, float] | None]
Losses = Mapping[str, float] | Callable[[], Mapping[str, float]]

REFRESH = 0.3  # seconds between two refreshes of a progress bar
SHORT_EPOCH = 1.0  # seconds; shorter epochs do not get a line each
MANY_EPOCHS = 100  # nor do epochs of longer phases
LINES_PER_PHASE = 10  # for those
SILENCE = 600.0  # seconds; after this long without a line, an epoch gets one anyway


def say(text: str) -> None:
    """Print text as plain lines, above a progress bar if there is one; a narrow encoding must not stop a run over a ± sign."""
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(plain(text).encode(encoding, errors="replace").decode(encoding), file=sys.stdout)
    sys.stdout.flush()


class Pace:
    """How fast the steps of one phase go, over its epochs: seconds inside epochs, without evaluations and the like."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.nb_steps = 0
        self.seconds = 0.0
        self.last_line = monotonic()


class EpochBar:
    """One epoch: a bar on a terminal that vanishes at the end, and a plain line at the end of (some) epochs everywhere.

    Every epoch of a phase gets its line, unless epochs are short or many: then about ten per phase do. The last one
    always does, and so does any that ends a silence of ten minutes.

    say: prints a line; None for an epoch in silence. epoch: counts from 0. nb_steps: steps of a whole epoch. first_step: steps
    done before, when an epoch is resumed. time_left: the share of the phase that is done -> the seconds left of the task and
    of the whole run, None while nobody can tell. speed: images a second, once it is over; None if there was no step.
    """

    def __init__(
        self,
        say: Callable[[str], None] | None,
        pace: Pace,
        *,
        epoch: int,
        nb_epochs: int,
        nb_steps: int,
        first_step: int = 0,
        time_left: TimeLeft = lambda share: None,
    ) -> None:
        self._say, self._time_left = say, time_left
        self.speed: float | None = None
        self._pace = pace
        self._epoch, self._nb_epochs, self._nb_steps = epoch, nb_epochs, nb_steps
        self._first_step = self._done = first_step
        self._nb_images = 0
        self._losses: Losses = {}
        self._title = f"{pace.title} epoch {epoch + 1}/{nb_epochs}"
        self._bar: tqdm | None = None
        self._start = self._refreshed = monotonic()

    def __enter__(self) -> "EpochBar":
        self._start = self._refreshed = monotonic()
        if self._say is not None and sys.stderr.isatty():
            self._bar = tqdm(
                desc=self._title,
                total=self._nb_steps,
                initial=self._first_step,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} |{bar:12}| {n_fmt}/{total_fmt}{postfix}",
            )
        return self

    def step(self, nb_images: int, losses: Losses) -> None:
        """One step is done. nb_images: of all processes together. losses: name -> mean so far, or a function that
        gives these. It is called only when a line is shown, so it may wait for an accelerator.
        """
        self._done += 1
        self._nb_images += nb_images
        self._losses = losses
        if self._bar is not None and monotonic() - self._refreshed >= REFRESH:
            self._bar.n = self._done
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.refresh()
            self._refreshed = monotonic()

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self.speed = self._speed()
        if error_type is not None or self._say is None:
            return
        if self._line_due():
            self._say(f"{self._title}  {self._state()}".rstrip())
            self._pace.last_line = monotonic()
        self._pace.seconds += self._seconds()
        self._pace.nb_steps += self._done - self._first_step

    def _speed(self) -> float | None:
        seconds = self._seconds()
        return self._nb_images / seconds if seconds > 0 and self._nb_images else None

    def _seconds(self) -> float:
        return monotonic() - self._start

    def _line_due(self) -> bool:
        number = self._epoch + 1
        few = self._nb_epochs >= MANY_EPOCHS or self._seconds() < SHORT_EPOCH
        every = math.ceil(self._nb_epochs / LINES_PER_PHASE) if few else 1
        silence = monotonic() - self._pace.last_line
        return number % every == 0 or number == self._nb_epochs or silence >= SILENCE

    def _state(self) -> str:
        """clf 0.1234 kd 0.0456 total 0.168  812 img/s  left 0:01:23  task 0:05:00  run 1:12:00"""
        losses = self._losses() if callable(self._losses) else self._losses
        parts = [" ".join(f"{name} {loss:.4g}" for name, loss in losses.items())]
        seconds, speed = self._seconds(), self._speed()
        if speed is not None:
            parts.append(f"{speed:.0f} img/s")
        left = (self._nb_epochs - self._epoch) * self._nb_steps - self._done  # steps of the phase
        steps = self._pace.nb_steps + self._done - self._first_step
        if left > 0 and steps:
            parts.append(f"left {duration((self._pace.seconds + seconds) / steps * left)}")
        later = self._time_left(1 - left / (self._nb_epochs * self._nb_steps)) if self._nb_steps else None
        if later is not None:
            of_task, of_run = later
            parts += [f"task {duration(of_task)}", f"run {duration(of_run)}"]
        return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """h:mm:ss, with days before it once there are any: 3661 -> 1:01:01, 90061 -> 1 d 1:01:01."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d " * (days > 0) + f"{hour}:{minute:02}:{second:02}"
