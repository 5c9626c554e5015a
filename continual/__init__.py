"""DyTox and other methods of class-incremental learning. The door: what a notebook or a script of one's own needs.

    import continual
    options = continual.configure("options/data/digits_2-2.yaml", "options/model/digits_dytox.yaml", seed=1)
    summary = continual.train(options)
    trained = continual.load("logs/digits/...")
    trained.predict(["image.png"])
    continual.register_method("lwf", LwF); continual.main()      # in a script that takes the place of main.py

Importing it is quick, and neither it nor building a model touches signals, process groups or folders.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from continual.data.images import Images
    from continual.datasets import Benchmark
    from continual.methods import Method
    from continual.options import Options
    from continual.runs.loading import Trained
    from continual.tasks import Task

ROOT = Path(__file__).parent.parent
MAIN = ROOT / "main.py"  # the experiment, top to bottom


def main() -> None:
    """Do what main.py does, from a script that has registered things of its own; ends the process with its exit code.

    Where a command runs the script for what it registers (`MAIN=script.py python -m continual.report RUN`), that ends here.
    """
    from continual.command import quick_imports, registering
    from continual.options import parse_or_exit

    if registering():
        sys.exit()
    options = parse_or_exit()
    with quick_imports():
        experiment = story()
    sys.exit(experiment.main(options))


def configure(*files: str | Path, **changes: Any) -> Options:
    """Read option files, from left to right, and change some keys: `configure("a.yaml", lr=1e-3)`.

    A file is looked for from the working folder, then from this repository. Raises OptionsError.
    """
    from continual.options import parse, replace

    found = [str(file if os.path.exists(file) or not (ROOT / file).exists() else ROOT / file) for file in files]
    return replace(parse(["--options", *found] if found else []), **changes)


def train(options: Options | Mapping[str, Any]) -> dict[str, Any]:
    """Train what the options say, in this process, or as one process of a job of torchrun.

    options: what `configure` gave, or keys with their values. Returns the summary of the run, as in summary.json; of several
    seeds or class orders what series.json holds. Signals are left alone: Ctrl-C raises KeyboardInterrupt, and the run can be
    resumed from its newest checkpoint.
    Raises a `continual.errors.Refused` on options, data or checkpoints that do not do.
    """
    from continual.jobs import distributed, watch
    from continual.runs.experiment import Here
    from continual.runs.sweep import series_of

    options = configure(**options) if isinstance(options, Mapping) else options
    experiment = story()
    device = distributed.start(options.run.device, timeout=options.run.process_timeout)
    series, here = series_of(options, watch.Never()), Here(device, watch.Never())
    for part in series.to_train():
        with part:
            part.summary = experiment.train(part, here)
    distributed.stop()
    return series.figures


def load(folder: str | Path, *, task: int | None = None) -> Trained:
    """Load what a run has learned, from its log or checkpoint folder: `model, memory, options, classes = load(folder)`.

    What it gives also has `predict` and `preprocess`; see `Trained`. task: as it was at the end of this task (from 0), if that
    checkpoint was kept; default: the newest. Nothing is written.
    Raises CheckpointError.
    """
    from continual.runs.loading import load as load_run

    return load_run(Path(folder), task=task)


def load_exported(folder: str | Path) -> Trained:
    """The model of a folder that `python -m continual.export` made, as `load` gives it; its memory is empty.

    Raises CheckpointError.
    """
    from continual.runs.bundle import read

    return read(Path(folder))


def benchmark(options: Options) -> Benchmark:
    """The data set of the options, cut into tasks. Raises OptionsError and DataError."""
    from continual.runs.experiment import benchmark_of

    return benchmark_of(options)


def method(options: Options, tasks: Sequence[Task]) -> Method:
    """The method of the options, which builds the model and says the phases of every task. Raises OptionsError."""
    from continual.methods import method_of

    return method_of(options, tasks)


def images(options: Options, benchmark: Benchmark) -> Callable[..., Images]:
    """A function (samples, augment=bool) -> data set of tensors (3, S, S) and labels, as training and evaluation see them."""
    from continual.runs.experiment import images_of

    return images_of(options, benchmark)


def register_method(name: str, method: type[Method]) -> None:
    """Make `--method name` train with a class derived from `continual.methods.Method`. Raises OptionsError."""
    from continual.methods import register

    register(name, method)


def register_encoder(name: str, build: Callable[..., nn.Module]) -> None:
    """Make `--model name` build an encoder: build(options of the model section, drop_path_rates). Raises OptionsError."""
    from continual.encoders import register

    register(name, build)


def register_loss(name: str, loss: Callable[..., Any], *, needs: Sequence[str] = ()) -> None:
    """Make `--extra-losses name` add a loss to the training of any method: loss(Seen) -> a scalar, see `continual.losses`.

    needs: some of "teacher", "maps", "held_out". Raises OptionsError on a bad name, ValueError on another need.
    """
    from continual.losses import Term
    from continual.registry import LOSSES

    LOSSES.add(name, Term(loss, frozenset(needs)))


def register_data_set(name: str, function: Callable[..., Any], **how: Any) -> None:
    """Make `--data-set name` read images of one's own; see `continual.datasets.register`."""
    from continual.datasets import register

    register(name, function, **how)


def register_rule(name: str, rule: Callable[..., Any]) -> None:
    """Make `--rehearsal name_all` (and name_token) choose exemplars by a rule of one's own.

    rule(features (n, F) float64 of one class, k, rng) -> at most k indices, the most important first; by the embeddings of all
    tasks, or of the newest alone. Raises OptionsError.
    """
    from continual.registry import RULES

    RULES.add(name, rule)


def register_metric(name: str, metric: Callable[..., float]) -> None:
    """Put a figure of one's own beside accuracy and forgetting: metric(accuracy matrix so far, fractions) -> number."""
    from continual.registry import METRICS

    METRICS.add(name, metric)


def register_exhibit(name: str, make: Callable[..., Any]) -> None:
    """Put a picture, a table or both on the page of one run: make(`continual.report.reading.Past`) -> Exhibit, or None.

    name: also that of its files, whatever the Exhibit says. Raises OptionsError.
    """
    from continual.registry import EXHIBITS

    EXHIBITS.add(name, make)


def story() -> Any:
    """main.py as a module, whatever else is called main: the experiment, for who runs a part of it."""
    spec = importlib.util.spec_from_file_location("continual_main", MAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
