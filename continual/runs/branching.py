"""A run that begins at the end of another's task, with other options: `branch: RUN@TASK`. The other is only read.

It takes over the weights, the memory (cut to its own size), the figures, evaluations and predictions of the tasks up to that
one, and what they cost; its first checkpoint is that of the other, under an identity of its own that names where it is from.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from continual.errors import CheckpointError
from continual.files import replacing, write_json
from continual.jobs import distributed
from continual.options import branched
from continual.runs import evidence, folders, predictions
from continual.runs.checkpoint import ORIGIN, Store, differences, told_differences
from continual.runs.experiment import Experiment
from continual.runs.record import EVALUATIONS
from continual.runs.run import PREDICTIONS, Run


@dataclass(frozen=True)
class Source:
    """The run that a branch begins from: its folders, and the task (from 0) at whose end."""

    logs: Path
    checkpoints: Path
    task: int


def source_of(branch: str) -> Source:
    """Where `RUN@TASK` leads. Raises CheckpointError if that is no run, or only a part of one."""
    path, task = branched(branch)
    side, folder, partner = folders.find(Path(path))
    if partner is None:
        raise CheckpointError(f"branch: {folder}: its {'checkpoints' if side == 'logs' else 'logs'} are gone")
    return Source(*((folder, partner) if side == "logs" else (partner, folder)), task)


def check(branches: list[str]) -> None:
    """Raise CheckpointError unless every run to branch from has a checkpoint of the end of that task."""
    for branch in branches:
        source = source_of(branch)
        ends = [each.manifest["task"] for each in Store(source.checkpoints).stored() if each.finished_task]
        if source.task not in ends:
            kept = ", ".join(map(str, sorted(set(ends)))) or "none"
            raise CheckpointError(f"branch: {source.checkpoints}: no checkpoint of the end of task {source.task}; kept: {kept}")


def begin(run: Run, exp: Experiment) -> tuple[dict[str, Any], list[str]]:
    """Take over the other run as it was; returns its manifest, and the options in which the branch differs.

    Raises CheckpointError if images are others, the model or memory does not fit, or nothing is left to learn.
    """
    source = source_of(exp.options.run.branch)
    state, manifest, content = distributed.on_main(partial(_read, source))
    changed = _changed(manifest["identity"], exp)
    following = exp.benchmark.tasks[source.task + 1 :]
    if not following or source.task + 1 >= len(exp.tasks):
        raise CheckpointError(f"branch: there is no task after task {source.task} to learn (max_task, or the data set, ends)")
    run.predictions = distributed.on_main(partial(_take_files, source, exp, manifest, content, changed))
    run.load_state_dict(_of_method(state, manifest, exp), seconds=manifest["seconds"], spent=manifest.get("spent"))
    run.move(task=source.task + 1, stage=run.first_step(following[0]), epoch=0, step=0)
    run.report.say(_cut_memory(run, exp, source.task))
    return manifest, list(changed)


def _read(source: Source) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """State, manifest, and the evaluations up to there."""
    state, manifest = Store(source.checkpoints).load(start_task=source.task + 1)
    nb_bytes = state["report"]["nb_bytes"]
    try:
        content = (source.logs / EVALUATIONS).read_bytes()[:nb_bytes]
    except OSError:
        content = b""
    digest = manifest.get(evidence.EVALUATED)
    if len(content) < nb_bytes or (digest and hashlib.sha256(content).hexdigest() != digest):
        raise CheckpointError(f"branch: {source.logs / EVALUATIONS} does not hold the evaluations up to task {source.task}")
    return state, manifest, content


def _changed(then: dict[str, Any], exp: Experiment) -> dict[str, Any]:
    """The options that are others, as they were. Raises CheckpointError if the images are others."""
    now = exp.identity()
    then = {**then, ORIGIN: now.get(ORIGIN)}
    keys, of_data = differences(then, now), exp.of_data
    if wrong := [key for key in keys if key in of_data]:
        told = told_differences({key: then.get(key) for key in wrong}, {key: now[key] for key in wrong})
        raise CheckpointError(f"branch: {told}; a branch learns the rest of the same tasks")
    return {key: then.get(key) for key in keys}


def _of_method(state: dict[str, Any], manifest: dict[str, Any], exp: Experiment) -> dict[str, Any]:
    """The state without what another method kept for itself."""
    same = manifest["identity"].get("method", exp.options.method) == exp.options.method
    return state if same else {**state, "method": {}}


def _cut_memory(run: Run, exp: Experiment, task: int) -> str:
    """Leave in the memory what its new size has room for; a larger one keeps what there is. Returns that in words."""
    memory, nb_seen = run.memory, exp.benchmark.tasks[task].nb_seen
    before, quota = len(memory), memory.quota(nb_seen)
    if not quota:
        memory.x, memory.y, memory.t, memory.replica = None, memory.y[:0], memory.t[:0], memory.replica[:0]
    elif memory.most() > quota:
        memory.cut(quota)
    told = f"branched from {exp.options.run.branch}: {len(memory)} of its {before} exemplars are kept"
    return told + (f"; there would be room for {quota} of each class" if quota > memory.most() else "")


def _take_files(
    source: Source, exp: Experiment, manifest: dict[str, Any], content: bytes, changed: dict[str, Any]
) -> dict[str, str]:
    """Write down the origin, and copy evaluations and predictions; returns the digests of the latter."""
    place, digests = exp.place, {}
    origin = {
        "run": f"{source.logs.parent.name}/{source.logs.name}" if folders.inside_series(source.logs) else source.logs.name,
        **{key: manifest[key] for key in ("name", "task", "sha256")},
        "changed": changed,
        "branched_from": manifest["identity"].get(ORIGIN),
    }
    try:
        write_json(place.checkpoints / folders.BRANCH, {"origin": origin, "nb_bytes": len(content)})
        with replacing(place.logs / EVALUATIONS) as file:
            file.write(content)
        for name, sha256 in manifest.get(PREDICTIONS, {}).items():
            path = source.logs / predictions.FOLDER / name
            if not path.exists() or hashlib.sha256(copy := path.read_bytes()).hexdigest() != sha256:
                continue
            (place.logs / predictions.FOLDER).mkdir(exist_ok=True)
            with replacing(place.logs / predictions.FOLDER / name) as file:
                file.write(copy)
            digests[name] = sha256
    except OSError as error:
        raise CheckpointError(f"could not write {error.filename or place.logs}: {error.strerror or error}") from None
    return digests
