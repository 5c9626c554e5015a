"""One command, several runs: every class order with every seed, each in its own folder, and their mean at the end."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from continual.errors import CheckpointError, NonFiniteLoss, OptionsError, Preempted
from continual.files import write_json
from continual.jobs import distributed
from continual.options import STORED, Options, branch_inside, parse, replace, to_yaml
from continual.runs import branching, folders
from continual.runs.checkpoint import as_identity, refuse_another
from continual.runs.folders import Place
from continual.runs.record import read_summary
from continual.seeing.progress import say
from continual.seeing.tables import report_command, summarise


@dataclass
class Part:
    """One run of a series, or a run alone. summary: for who trains it, inside `with part`, to fill in.

    alone: this process does it without the others of its job; where its loss is not finite, that is said, and no more.
    """

    options: Options
    place: Place
    summary: dict[str, Any] | None = None
    alone: bool = False

    def __enter__(self) -> "Part":
        self._inside = contextlib.ExitStack()
        if self.alone:
            if not distributed.is_main():
                self._inside.enter_context(contextlib.redirect_stdout(io.StringIO()))  # one of them speaks
            self._inside.enter_context(distributed.alone())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self._inside.close()
        if self.alone and isinstance(error, NonFiniteLoss):
            say(f"{self.place.logs.name} diverged: {error}")
            return True
        if self.alone and isinstance(error, Preempted):
            distributed.barrier()  # the others were asked to stop, too, and may take longer to save
        return False


class Series:
    """The runs that one command asks for: every class order with every seed, each from the options as given; often just one.

    A series that is resumed keeps the runs that are done, goes on with the one under way, and begins the others. figures: of
    all runs together, once they are trained. Raises OptionsError and CheckpointError.
    """

    def __init__(self, options: Options):
        if options.run.branch and not options.run.resume:
            runs = of_series(options) or {"": options}
            distributed.on_main(partial(branching.check, [each.run.branch for each in runs.values()]))
        self.options, self.place = distributed.on_main(lambda: folders.prepare(options))
        self.runs = self._runs()
        self.figures: dict[str, Any] | None = None
        if self.options.run.resume:
            distributed.on_main(lambda: _check_kind(self.place, self.options))
        for key in ("start_task", "resume_anyway", "predictions") if self.runs else ():
            if getattr(self.options.run, key):
                raise OptionsError(f"{key}: a series has several runs; resume the folder of one of them")

    def _runs(self) -> dict[str, Options]:
        """By name; empty if it is a run alone."""
        return of_series(self.options)

    def to_train(self) -> Iterator[Part]:
        """The runs that are to be trained, one after another; at the end their mean is said and written."""
        if not self.runs:
            yield (part := Part(self.options, self.place))
            self.figures = part.summary
            return
        if self.options.run.resume:
            distributed.on_main(lambda: keep_options(self.place, self.options))
        summaries = []
        for number, (label, options, place) in enumerate(self._inside(), start=1):
            title = f"--- run {number} of {len(self.runs)}: {label}"
            done = distributed.on_main(partial(_summary, place.logs, options))
            if done is not None:
                _say(f"{title} is done already")
            else:
                _say(title)
                part = Part(distributed.on_main(partial(folders.prepare_inside, options, place)), place)
                yield part
                done = part.summary
            summaries.append(done)
        text, figures = summarise(summaries)
        self.figures = {"runs": list(self.runs), **figures}
        if distributed.is_main():
            write_json(self.place.logs / "series.json", self.figures)
        _say(f"\n{text}\n\nto look at it: {report_command(self.place.logs)}")

    def to_evaluate(self) -> Iterator[Part]:
        """The runs that have begun."""
        if not self.runs:
            yield Part(self.options, self.place)
            return
        for number, (label, options, place) in enumerate(self._inside(), start=1):
            title = f"--- run {number} of {len(self.runs)}: {label}"
            if not distributed.on_main(partial(folders.begun, place)):
                _say(f"{title} has not begun")
                continue
            _say(title)
            yield Part(distributed.on_main(partial(folders.prepare_inside, options, place)), place)

    def _inside(self) -> Iterator[tuple[str, Options, Place]]:
        for label, options in self.runs.items():
            yield label, options, Place(self.place.logs / label, self.place.checkpoints / label, series=self.place.checkpoints)


def of_series(options: Options) -> dict[str, Options]:
    """The runs of a series by name; empty if the options are of a single run."""
    orders, seeds = options.data.class_orders(), options.run.seeds or (options.run.seed,)
    if len(orders) == 1 and not options.run.seeds:
        return {}
    runs = {}
    for number, order in enumerate(orders, start=1):
        for seed in seeds:
            label = f"order-{number}-seed-{seed}" if len(orders) > 1 else f"seed-{seed}"
            branch = branch_inside(options.run.branch, label)
            runs[label] = replace(options, class_order=order, seed=seed, seeds=(), branch=branch)
    return runs


def _summary(logs: Path, options: Options) -> dict | None:
    """What a run of these very options found, if it is done; whether it would do more with others, is for it to say."""
    path = logs / STORED
    unchanged = path.exists() and path.read_text(encoding="utf-8") == to_yaml(options)
    return read_summary(logs) if unchanged else None


def _check_kind(place: Place, options: Options) -> None:
    """Raise CheckpointError if the folder to resume is of a single run, and the options of a series, or the other way round."""
    if not (place.checkpoints / STORED).exists():
        return
    kinds = [_kind(each) for each in (_begun_with(place), options)]
    if kinds[0] != kinds[1]:
        told = "sweep makes" if "that of a sweep" in kinds else "seeds or class_order make"
        raise CheckpointError(f"{place.checkpoints}: this folder is {kinds[0]}; {told} it {kinds[1]}")


def _kind(options: Options) -> str:
    return f"that of a {'sweep' if options.run.sweep else 'series' if of_series(options) else 'single run'}"


def _begun_with(place: Place) -> Options:
    return parse(["--options", str(place.checkpoints / STORED)])


def keep_options(place: Place, options: Options) -> None:
    """Those of a resumed series. Raises CheckpointError if they make another experiment of it; seeds may join it."""
    begun_with = replace(_begun_with(place), seeds=options.run.seeds)
    refuse_another(as_identity(begun_with), as_identity(options))
    folders.keep_options(place, options)


def _say(text: str) -> None:
    if distributed.is_main():
        say(text)
