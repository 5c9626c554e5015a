"""A part of a run, computed again in a temporary folder by the very code that made it: its first steps, its last evaluation.

All processes of a job call these together. In an environment that equals the one then (code, packages, processor, threads
and, for the steps, the number of processes), the same bits must come out; in another one, numbers within a tolerance.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import continual
from continual.errors import Preempted
from continual.jobs import distributed, launch
from continual.options import Options, replace
from continual.report.checking import ALTERED, CLOSE, SAME, UNKNOWN, Finding, Kept
from continual.report.reading import Past
from continual.runs import evidence, folders, opening, predictions
from continual.runs.experiment import Here
from continual.runs.folders import Place
from continual.runs.run import PREDICTIONS, Run

TOLERANCES = {"off": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}  # of a loss, by the precision of the products
LOGITS = {"off": 1e-2, "tf32": 5e-2, "bf16": 0.25, "fp16": 5e-2}  # of a score, absolute and relative
FEW = 0.02  # share of the answers that may be others where scores are close


class Enough:
    """The signal to stop after so many steps of training."""

    run: Run | None = None

    def __init__(self, nb_steps: int):
        self.nb_steps = nb_steps

    def is_requested(self) -> bool:
        return self.run is not None and len(self.run.fingerprint.losses) >= self.nb_steps

    agreed = is_requested  # the same on every process


@contextmanager
def aside() -> Iterator[Path]:
    """A temporary folder, the same on every process; what is printed inside is not shown."""
    with contextlib.ExitStack() as stack:
        folder = distributed.on_main(lambda: stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-")))
        with contextlib.redirect_stdout(io.StringIO()):
            yield Path(folder)
        distributed.barrier()


def prepare(options: Options, newest: Kept, device: torch.device) -> None:
    """Compute with as many threads as the run did, as far as is known."""
    entries = newest.manifest.get(evidence.MADE_WITH, [])
    if device.type == "cpu" and entries:
        torch.set_num_threads(entries[-1]["processor"]["threads"])
    else:
        launch.spare_threads(device, options)


def first_steps(options: Options, newest: Kept, nb_steps: int, device: torch.device) -> Finding:
    """Train the first steps again and compare losses and weights with what the run noted."""
    what, manifest = "first steps", newest.manifest
    noted, made_with = manifest.get(evidence.FINGERPRINT), manifest.get(evidence.MADE_WITH, [])
    if not noted:
        return Finding(what, UNKNOWN, "the run did not note how it began")
    if any(entry["changed"] for entry in made_with):
        return Finding(what, UNKNOWN, "the run went on with other options than it began with")
    nb_steps = min(nb_steps, len(noted["losses"]))
    if not nb_steps:
        return Finding(what, UNKNOWN, "none were computed again")
    with aside() as folder:
        place = Place(folder / "logs", folder / "checkpoints")
        options = replace(options, eval_every=None, branch="")
        distributed.on_main(partial(folders.prepare_inside, options, place))
        stop = Enough(nb_steps)
        with opening.to_train(options, place, Here(device, stop)) as (run, exp, _):
            stop.run = run
            with contextlib.suppress(Preempted):
                continual.story().learn_task(run, exp, exp.tasks[0])
    begun_with = made_with[:2] if len(made_with) > 1 and made_with[1]["since"].startswith("task-1-") else made_with[:1]
    equal = all(_same(options, entry, evidence.environment(device)) for entry in begun_with)
    tolerance = TOLERANCES[exp.loading.amp]
    found = partial(_compared_steps, noted, run.fingerprint, nb_steps, equal=equal, tolerance=tolerance)
    return Finding(what, *distributed.on_main(found))


def _same(options: Options, entry: dict[str, Any], now: dict[str, Any], *, but: Sequence[str] = ()) -> bool:
    """Whether an environment is that of now, and equal ones compute equal bits."""

    def kept(each: dict[str, Any]) -> dict[str, Any]:
        code = {key: value for key, value in each["code"].items() if key not in ("commit", "clean", "script")}
        processor = {key: value for key, value in each["processor"].items() if key not in but}
        return {"code": code, "packages": each["packages"], "processor": processor}

    ordered = now["processor"]["device"] == "cpu" or options.optim.deterministic
    return ordered and kept(entry) == kept(now)


def _compared_steps(
    noted: dict[str, Any], now: evidence.Fingerprint, nb: int, *, equal: bool, tolerance: float
) -> tuple[str, str]:
    then, losses = noted["losses"][:nb], now.losses[:nb]
    if noted["initial"] == now.initial and then == losses:
        done = [step for step in noted["weights"] if int(step) <= nb]
        others = [step for step in done if noted["weights"][step] != now.weights.get(step)]
        if not others:
            return SAME, f"to the bit: initial weights, losses of {nb} steps, weights after {', '.join(done)}"
        parts = f"after step {others[0]} the weights are others, with the same losses up to there"
    elif then == losses:
        parts = "the initial weights are others, with the same losses"
    else:
        step = next(i for i, (a, b) in enumerate(zip(then, losses, strict=True)) if a != b)
        parts = f"parts at step {step + 1}: loss {then[step]:.9g} then, {losses[step]:.9g} now"
    gap = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(then, losses, strict=True))
    if gap <= tolerance and not equal:
        return CLOSE, f"within {tolerance:g} of {nb} losses (by {gap:.1e}), in another environment; {parts}"
    return ALTERED, parts + ("" if equal else f", more than {tolerance:g} apart") + _why(equal)


def _why(equal: bool) -> str:
    if equal:
        return "; the same code on the same processor would give the same bits"
    return "; the environment is another, so either that or the options, images or records are to blame"


def last_evaluation(past: Past, options: Options, kept: Sequence[Kept], device: torch.device) -> Finding:
    """Score the model at the end of the newest task anew, and compare with what was answered then."""
    what = "last evaluation"
    ends = [each for each in kept if each.manifest["finished_task"]]
    if not ends:
        return Finding(what, UNKNOWN, "no checkpoint of the end of a task is there")
    end = ends[-1]
    place = Place(past.logs or past.checkpoints, past.checkpoints)
    options, rows = replace(options, resume=str(past.checkpoints / end.name)), []
    with (
        contextlib.redirect_stdout(io.StringIO()),
        opening.to_look_at(options, place, Here(device, Enough(0))) as (run, exp, task),
    ):
        scores = continual.story().scores(run, exp, task, rows)
        found = exp.answered(task, rows)
    found = found and found.packed()
    then = run.report.state_dict()["scores"][-1]
    made_with = end.manifest.get(evidence.MADE_WITH, [])
    now = evidence.environment(device)
    equal = bool(made_with) and _same(options, made_with[-1], now, but=["processes"])
    compared = partial(_compared_answers, past, end, found, scores.to_lists(), then, equal=equal, amp=exp.loading.amp)
    return Finding(what, *distributed.on_main(compared))


def _compared_answers(
    past: Past,
    end: Kept,
    found: predictions.Predictions,
    scores: list[list[float]],
    then: list[list[float]],
    *,
    equal: bool,
    amp: str,
) -> tuple[str, str]:
    nb, task = len(found.labels), end.manifest["task"]
    name = f"task-{task + 1}.npz"
    digest = end.manifest.get(PREDICTIONS, {}).get(name)
    if past.logs is None or not digest:
        if scores[:4] == then[:4]:
            return SAME, f"as many of {nb} answers right in every task, at the end of task {task}; single ones were not kept"
        return ALTERED, f"other accuracies at the end of task {task} than were kept" + _why(equal)
    kept = predictions.read(past.logs / predictions.FOLDER / name, sha256=digest)
    pairs = [(getattr(kept, key), getattr(found, key)) for key in ("logits", "answers", "answers_known", "labels", "places")]
    if all(np.array_equal(a, b) for a, b in pairs) and scores[:4] == then[:4]:
        return SAME, f"to the bit: scores of {nb} images at the end of task {task}"
    if kept.logits.shape != found.logits.shape:
        return ALTERED, f"{nb} images were scored, {len(kept.labels)} then"
    before, after = (each.logits.astype(np.float32) for each in (kept, found))
    gaps, tolerance = np.abs(before - after), LOGITS[amp]
    others = int((kept.answers != found.answers).sum())
    first = int(np.flatnonzero((gaps > 0).any(1) | (kept.answers != found.answers))[:1].sum())
    parts = f"scores differ by up to {gaps.max():.3g}, first at image {first}; {others} of {nb} answers are others"
    if not equal and others <= FEW * nb and (gaps <= tolerance * (1 + np.abs(before))).all():
        return CLOSE, f"within {tolerance:g} of every score, in another environment: {parts}"
    return ALTERED, parts + _why(equal)
