"""One command, several runs: every class order with every seed, each in its own folder, and their mean at the end."""

from collections.abc import Callable
from pathlib import Path

import torch

from continual.errors import CheckpointError, OptionsError
from continual.files import write_json
from continual.jobs import distributed
from continual.options import STORED, Options, parse, replace, to_yaml
from continual.report import read_summary, say, summarise
from continual.runs import folders
from continual.runs.checkpoint import as_identity, refuse_another
from continual.runs.folders import Place

Main = Callable[[Options, Place, torch.device, distributed.StopSignal], dict]


def run_all(main: Main, options: Options, device: torch.device, stop: distributed.StopSignal) -> None:
    """Call `main` once for every class order and seed, each from the options as given; alone, it is simply called.

    A series that is resumed keeps the runs that are done, goes on with the one under way, and begins the others.
    """
    options, place = distributed.on_main(lambda: folders.prepare(options))
    runs = of_series(options)
    if options.run.resume:
        distributed.on_main(lambda: _check_kind(place, options))
    if not runs:
        main(options, place, device, stop)
        return
    for key in ("start_task", "resume_anyway"):
        if getattr(options.run, key):
            raise OptionsError(f"{key}: a series has several runs; resume the folder of one of them")
    if options.run.resume and not options.run.eval:
        distributed.on_main(lambda: _keep_options(place, options))
    summaries = []
    for number, (label, one) in enumerate(runs.items(), start=1):
        inside = Place(place.logs / label, place.checkpoints / label, series=place.checkpoints)
        if options.run.eval and not distributed.on_main(lambda inside=inside: folders.begun(inside)):
            _say(f"--- run {number} of {len(runs)}: {label} has not begun")
            continue
        done = distributed.on_main(lambda inside=inside, one=one: _summary(inside.logs, one))
        if done is None or options.run.eval:
            _say(f"--- run {number} of {len(runs)}: {label}")
            one = distributed.on_main(lambda one=one, inside=inside: folders.prepare_inside(one, inside))
            done = main(one, inside, device, stop)
        else:
            _say(f"--- run {number} of {len(runs)}: {label} is done already")
        summaries.append(done)
    if options.run.eval:
        return
    text, figures = summarise(summaries)
    if distributed.is_main():
        write_json(place.logs / "series.json", {"runs": list(runs), **figures})
    _say(f"\n{text}\n")


def of_series(options: Options) -> dict[str, Options]:
    """The runs of a series by name; empty if the options are of a single run."""
    orders, seeds = options.data.class_orders(), options.run.seeds or (options.run.seed,)
    if len(orders) == 1 and not options.run.seeds:
        return {}
    return {
        f"order-{number}-seed-{seed}" if len(orders) > 1 else f"seed-{seed}": replace(
            options, class_order=order, seed=seed, seeds=()
        )
        for number, order in enumerate(orders, start=1)
        for seed in seeds
    }


def _summary(logs: Path, options: Options) -> dict | None:
    """What a run of these very options found, if it is done; whether it would do more with others, is for it to say."""
    path = logs / STORED
    unchanged = path.exists() and path.read_text(encoding="utf-8") == to_yaml(options)
    return read_summary(logs) if unchanged else None


def _check_kind(place: Place, options: Options) -> None:
    """Raise CheckpointError if the folder to resume is of a single run, and the options of a series, or the other way round."""
    if not (place.checkpoints / STORED).exists():
        return
    kinds = ["that of a series" if of_series(each) else "that of a single run" for each in (_begun_with(place), options)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(f"{place.checkpoints}: this folder is {kinds[0]}; seeds or class_order make it {kinds[1]}")


def _begun_with(place: Place) -> Options:
    return parse(["--options", str(place.checkpoints / STORED)])


def _keep_options(place: Place, options: Options) -> None:
    """Of a resumed series. Raises CheckpointError if they make another experiment of it; seeds may join it."""
    begun_with = replace(_begun_with(place), seeds=options.run.seeds)
    refuse_another(as_identity(begun_with), as_identity(options))
    folders.keep_options(place, options)


def _say(text: str) -> None:
    if distributed.is_main():
        say(text)
