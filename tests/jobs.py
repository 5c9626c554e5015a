"""Runs of main.py as jobs of one or several processes, forked from a server that has imported everything once."""

import importlib.util
import json
import multiprocessing
import os
import resource
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digits import ALL, few_digits

from continual.errors import CheckpointError
from continual.runs import predictions
from continual.runs.checkpoint import Store

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-5  # what sums in another order may differ by, after some twenty steps; here they do by a hundredth of it
TIMEOUT = 240.0  # seconds; generous, for it decides nothing but when a test that hangs gives up

OUTSIDE = "DYTOX_OUTSIDE"  # the variable that names a script, whose things every process of a job registers

# Two tasks of few digits, training and finetuning, every loss, two replicas: a dozen steps, about a second.
TINY = [
    *("--options", str(ROOT / "options/data/digits_2-2.yaml"), str(ROOT / "options/model/digits_dytox.yaml")),
    *("--embed-dim", "16", "--num-heads", "4", "--depth", "2", "--local-up-to-layer", "1"),
    *("--debug", "--max-task", "2", "--device", "cpu", "--mixup", "0.8", "--drop-path", "0.1"),
    *("--save-every-epoch", "1", "--keep-checkpoints", "100", "--eval-every", "1", "--process-timeout", "60"),
    *("--replicas-at-once", "1", "--eval-batch-size", "12", "--no-tensorboard"),
]
THREE_TASKS = [*TINY, "--max-task", "3"]


def _server() -> multiprocessing.context.ForkServerContext:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["main", "sklearn.datasets", "continuum.datasets", "torch.utils.tensorboard"])
    return context


SERVER = _server()


def _process(argv: list[str], environment: dict[str, str], output: str, most_bytes: int | None) -> None:
    import faults

    import main
    from continual.command import register
    from continual.options import parse_or_exit

    _print_to(output, environment.get("PYTHONIOENCODING"))
    os.environ.update(environment)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    os.fsync = lambda file: None  # killing a process loses nothing of what it wrote; only a machine that fails does
    faults.install()
    if ALL not in os.environ:
        few_digits()
    if os.environ.get(OUTSIDE):
        spec = importlib.util.spec_from_file_location("outside", os.environ[OUTSIDE])
        sys.modules["outside"] = importlib.util.module_from_spec(spec)  # as a script's classes are found in __main__
        spec.loader.exec_module(sys.modules["outside"])
    register()
    sys.exit(main.main(parse_or_exit(argv)))


def _print_to(output: str | Path, encoding: str | None = None) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    how = {"mode": "w", "encoding": encoding, "closefd": False}
    sys.stdout, sys.stderr = open(1, **how), open(2, **how)  # noqa: SIM115
    multiprocessing.current_process()._config["daemon"] = False  # it may have workers of its own


def _script(path: str, argv: list[str], output: str) -> None:
    _print_to(output)
    sys.argv = [path, *argv]
    runpy.run_path(path, run_name="__main__")


def script(path: Path, argv: Sequence[str]) -> str:
    """What `python PATH ARGV` prints, in a process that has imported everything else already; it has to end well."""
    output = path.with_suffix(".output")
    process = SERVER.Process(target=_script, args=(str(path), list(argv), str(output)))
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 0, output.read_text()
    return output.read_text()


def _command(name: str, argv: list[str], environment: dict[str, str], output: str) -> None:
    _print_to(output)
    os.environ.update(environment)
    if ALL not in os.environ:
        few_digits()
    sys.argv = [name, *argv]
    runpy.run_module(name, run_name="__main__")


def command(name: str, argv: Sequence[Any], folder: Path, *, processes: int = 1, **environment: str) -> tuple[int, str]:
    """Exit code of `python -m NAME ARGV`, of several processes the first that is not 0, and what they printed."""
    outputs, started = [], []
    for own in ranks(processes):
        outputs.append(folder / f"output-of-{name}-{len(list(folder.glob('output-of-*')))}")
        outputs[-1].touch()
        args = (name, [str(word) for word in argv], {**environment, **own}, str(outputs[-1]))
        started.append(SERVER.Process(target=_command, args=args))
        started[-1].start()
    ended(started, time.monotonic() + TIMEOUT)
    codes = [process.exitcode for process in started]
    return next((code for code in codes if code), 0), "".join(output.read_text() for output in outputs)


def ended(processes: Sequence[Any], until: float) -> None:
    """Wait for processes up to a moment; those that have not ended then are killed."""
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def ranks(processes: int) -> list[dict[str, str]]:
    """What each of so many processes has in its environment, as torchrun would give it; nothing for one alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


class Job:
    """One start of main.py on some processes, with its output in `folder`."""

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        processes: int = 1,
        fault: str = "",
        environment: dict[str, str] | None = None,
        most_bytes: int | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        common = {"DYTOX_FAULT": fault, **(environment or {})}
        number = len(list(folder.glob("output-*")))
        self.begun, self.processes, self.outputs = time.monotonic(), [], []
        for rank, own in enumerate(ranks(processes)):
            self.outputs.append(folder / f"output-{number + rank}")
            args = (list(argv), common | own, str(self.outputs[-1]), most_bytes)
            self.processes.append(SERVER.Process(target=_process, args=args))
            self.processes[-1].start()

    def wait(self) -> "Job":
        """Until every process has ended; after TIMEOUT they are killed, which the exit codes show."""
        ended(self.processes, self.begun + TIMEOUT)
        self.seconds = time.monotonic() - self.begun
        return self

    @property
    def codes(self) -> list[int]:
        """Exit codes by rank; minus the signal for a process that one ended."""
        return [process.exitcode for process in self.processes]

    def said(self, rank: int | None = None) -> str:
        """What a process printed; all of them one after the other without a rank."""
        outputs = self.outputs if rank is None else [self.outputs[rank]]
        return "".join(output.read_text() for output in outputs if output.exists())


def run(argv: Sequence[str], folder: Path, **how: Any) -> Job:
    """A job from start to end."""
    return Job(argv, folder, **how).wait()


def finish(argv: Sequence[str], folder: Path, **how: Any) -> Job:
    """A job that has to end well."""
    job = run(argv, folder, **how)
    assert set(job.codes) == {0}, job.said()
    return job


def faulty(kind: str, places: Sequence[str], folder: Path, argv: Sequence[str] = TINY, **how: Any) -> Iterator[tuple[str, Job]]:
    """One run that meets a fault at a place, is resumed, meets the next one, and so on, and ends: place and job of each.

    A process counts how often it reached a place from its own start. The run ends when all places have been taken.
    """
    argv = [*argv, *folders(folder)]
    for place in places:
        yield place, run(argv, folder, fault=f"{kind}:{place}", **how)
        argv = ["--resume", str(checkpoints(folder))]
    finish(argv, folder, **how)


def for_bash(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a script such as train.sh."""
    return {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}


def bash(argv: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen:
    """A script, such as train.sh; its output goes to `folder`/output."""
    with open(folder / "output", "a") as output:
        return subprocess.Popen(["bash", *argv], stdout=output, stderr=output, env=for_bash(environment), cwd=ROOT)


def wait_for(condition: Callable[[], Any], pause: float = 0.05) -> None:
    """Until it holds; fails after TIMEOUT."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


def folders(folder: Path) -> list[str]:
    """Options that put a run below `folder`."""
    return ["--log-path", str(folder / "logs"), "--output-basedir", str(folder / "checkpoints"), "--name", "run"]


def checkpoints(folder: Path) -> Path:
    """The checkpoint folder of the one run below `folder`."""
    (found,) = (folder / "checkpoints").rglob("run.json")
    return found.parent


def logs(folder: Path) -> Path:
    """The log folder of the one run below `folder`."""
    (found,) = (folder / "logs").rglob("run.json")
    return found.parent


def states(folder: Path) -> dict[str, Any]:
    """The state in every valid checkpoint of a folder, by the name of its place in the run."""
    found = {}
    for stored in Store(folder).stored():
        with suppress(CheckpointError):
            found[stored.manifest["name"]] = Store._read(stored)
    return found


def assert_equal(a: Any, b: Any, where: str = "state", *, tolerance: float | None = None) -> None:
    """Two states are the same: bit by bit, or within a relative and absolute tolerance.

    Then `pos_proj.bias` does not count: it has no gradient but rounding, which Adam blows up.
    """
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            if tolerance is None or not str(key).endswith("pos_proj.bias"):
                assert_equal(a[key], b[key], f"{where}[{key!r}]", tolerance=tolerance)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]", tolerance=tolerance)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b) if tolerance is None else torch.allclose(a, b, rtol=tolerance, atol=tolerance), where
    elif isinstance(a, float) and tolerance is not None:
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance), where
    else:
        assert a == b, where


assert_close = partial(assert_equal, tolerance=TOLERANCE)


def results(folder: Path) -> dict[str, Any]:
    """All that a run leaves but times: every state, the bytes of its evaluations, its summary."""
    summary = json.loads((logs(folder) / "summary.json").read_text())
    return {
        "states": states(checkpoints(folder)),
        "evaluations": (logs(folder) / "evaluations.jsonl").read_text(),
        "summary": {key: value for key, value in summary.items() if not key.startswith(("time", "cost"))},
        "spent": {key: summary["cost"][key] for key in ("images", "steps", "flops_training")},
        "status": json.loads((logs(folder) / "status.json").read_text()),
        "predictions": {path.name: path.read_bytes() for path in sorted((logs(folder) / "predictions").iterdir())},
    }


def assert_same_results(folder: Path, reference: Path) -> None:
    """As if nothing had happened. Places at which only one of the two saved (when it was stopped) do not count."""
    own, wanted = results(folder), results(reference)
    missing = set(wanted["states"]) - set(own["states"])
    assert not missing, f"never saved: {missing}"
    own["states"] = {name: own["states"][name] for name in wanted["states"]}
    assert_equal(own, wanted)


def assert_close_logits(folder: Path, reference: Path) -> None:
    """What is kept of the answers is in float16: one rounding apart where the last bits differ."""
    for path in sorted((logs(reference) / "predictions").iterdir()):
        own, wanted = (predictions.read(logs(each) / "predictions" / path.name) for each in (folder, reference))
        assert np.allclose(own.logits.astype(float), wanted.logits.astype(float), atol=0.05)


def what_counts(folder):
    """Weights, exemplars, metrics, losses and answers after every epoch; not the optimizer, whose moments lie near zero."""
    kept = {
        name: {key: state[key] for key in ("position", "model", "teacher", "memory", "report", "last")}
        for name, state in states(checkpoints(folder)).items()
    }
    for state in kept.values():
        state["report"] = {key: value for key, value in state["report"].items() if key == "nb_seen"}
    evaluations = [json.loads(line) for line in (logs(folder) / "evaluations.jsonl").read_text().splitlines()]
    found = {path.name: predictions.read(path) for path in sorted((logs(folder) / "predictions").iterdir())}
    answers = {name: (of.places.tolist(), of.labels.tolist(), of.answers.tolist()) for name, of in found.items()}
    return {"states": kept, "evaluations": evaluations, "answers": answers}
