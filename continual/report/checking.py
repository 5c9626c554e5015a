"""Whether what a run left on disk is what it made: every file against every other, and its images against those of now.

Nothing is computed again here; see `rerunning`. What was altered is told in one line each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from continual.data import identity
from continual.data.samples import Samples
from continual.datasets import Benchmark
from continual.errors import CheckpointError, Refused, some
from continual.options import STORED, parse
from continual.rehearsal import Memory
from continual.report.reading import Past
from continual.runs import evidence, predictions
from continual.runs.checkpoint import EARLIER, Store, as_identity, differences, told_differences
from continual.runs.record import EVALUATIONS, Report
from continual.runs.run import PREDICTIONS

SAME, CLOSE, ANOTHER, UNKNOWN, ALTERED = "the same", "close", "another", "unknown", "altered"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and that in words."""

    what: str
    outcome: str
    told: str


@dataclass
class Kept:
    """One checkpoint, as far as it is looked at: digests of its weights and of the teacher's, and its exemplars."""

    name: str
    manifest: dict[str, Any]
    weights: str
    teacher: str
    memory: Memory

    def facts(self) -> dict[str, Any]:
        digest = identity.digest(self.memory.samples) if len(self.memory) else ""
        names = ("name", "task", "finished_task", "sha256")
        facts = {"file": self.name, **{name: self.manifest[name] for name in names}, "weights": self.weights}
        return {**facts, "exemplars": len(self.memory), "exemplars_digest": digest}


@dataclass
class Evidence:
    """What the checkpoints of a run say, and what is wrong with them. newest: the state of the last one that can be had."""

    kept: list[Kept] = field(default_factory=list)
    newest: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> dict[str, Any]:
        return self.kept[-1].manifest

    @property
    def report(self) -> Report:
        """The figures as the newest checkpoint holds them."""
        report = Report(None, console=False)
        report.load_state_dict(self.newest["report"])
        return report


def gathered(past: Past) -> Evidence:
    """Read every checkpoint once. Raises CheckpointError if there is none to go by."""
    if past.checkpoints is None:
        raise CheckpointError(f"{past.folder}: its checkpoints are gone, and with them all that could vouch for it")
    found = Evidence()
    for name, manifest, state, told in Store(past.checkpoints).examined():
        if told:
            found.wrong.append(told)
        if state is None:
            continue
        try:
            found.kept.append(_looked_at(name, manifest, state))
            found.newest = state
        except (KeyError, TypeError, ValueError, AttributeError, CheckpointError):
            found.wrong.append(f"{name} does not hold the state of a run")
    found.kept.sort(key=lambda each: each.manifest["serial"])
    if not found.kept and not found.wrong:
        raise CheckpointError(f"{past.checkpoints}: there is no checkpoint to go by")
    return found


def _looked_at(name: str, manifest: dict[str, Any], state: dict[str, Any]) -> Kept:
    memory = Memory(0, nb_replicas=1 + int(max(state["memory"]["replica"].tolist(), default=0)))
    memory.load_state_dict(state["memory"])
    weights = [evidence.digest_of_weights(model["weights"]) if model else "" for model in (state["model"], state["teacher"])]
    return Kept(name, manifest, *weights, memory)


# --- files ---


def of_files(past: Past, found: Evidence) -> Iterator[Finding]:
    """Checkpoints, options, evaluations, summary, classes and predictions against each other."""
    checks = (_checkpoints, _options, _records, _predictions)
    if not found.kept:
        checks = (_checkpoints,)
    for check in checks:
        yield from check(past, found)


def _checkpoints(past: Past, found: Evidence) -> Iterator[Finding]:
    what, by_name = "checkpoints", {each.name: each for each in found.kept}
    wrong = list(found.wrong)
    for later in found.kept:
        for name, sha256 in later.manifest.get(EARLIER, {}).items():
            if name in by_name and by_name[name].manifest["sha256"] != sha256:
                wrong.append(f"{name} is another than it was when {later.name} was written")
    ends = {each.manifest["task"]: each for each in found.kept if each.manifest["finished_task"]}
    for task, end in ends.items():
        before = ends.get(task - 1)
        if end.teacher and before and end.teacher != before.weights:
            wrong.append(f"{end.name}: the weights of its teacher are not those of {before.name}")
    seen = evidence.witnessed(past.logs) if past.logs else {}
    for each in found.kept:
        if seen.get(each.name, each.manifest["sha256"]) != each.manifest["sha256"]:
            wrong.append(f"{each.name} is another than {evidence.WITNESS} in the logs saw")
    yield from (Finding(what, ALTERED, each) for each in dict.fromkeys(wrong))
    if not wrong:
        yield Finding(what, SAME, f"{len(found.kept)}, each as its manifest, those after it and the logs say")
    last = found.kept[-1] if found.kept else None
    if last and EARLIER not in last.manifest:
        yield Finding(what, UNKNOWN, "the run did not yet record which checkpoints were there before each: each stands alone")
    if last and not last.manifest["finished_task"]:
        yield Finding(what, UNKNOWN, f"{last.name} was made inside a task: its SHA-256 alone vouches for it")


def _options(past: Past, found: Evidence) -> Iterator[Finding]:
    """The options on disk are those of the newest checkpoint, and those the ones of all before."""
    manifest, what, ok = found.manifest, "options", True
    for side, folder in (("logs", past.logs), ("checkpoints", past.checkpoints)):
        if folder is None:
            continue
        try:
            options = parse(["--options", str(folder / STORED)])
        except Refused as error:
            ok = False
            yield Finding(what, ALTERED, f"{STORED} of the {side}: {str(error).rpartition('/')[2]}")
            continue
        apart = {"class_order": manifest["identity"]["class_order"]}  # there as class ids; see of_data
        now = {**manifest["identity"], **as_identity(options), **apart}
        if told := told_differences(manifest["identity"], now):
            ok = False
            yield Finding(what, ALTERED, f"{STORED} of the {side}: {told}")
        then, free = manifest.get(evidence.TOLD, {}), evidence.told(options)
        if keys := [key for key in then if key in free and then[key] != free[key]]:
            ok = False
            told = "; ".join(f"{key} was {then[key]}, is {free[key]}" for key in keys)
            yield Finding(what, ALTERED if past.done else ANOTHER, f"{STORED} of the {side}: {told}")
    allowed = {key for entry in manifest.get(evidence.MADE_WITH, []) for key in entry["changed"]}
    for each in found.kept[:-1]:
        keys = set(differences(each.manifest["identity"], manifest["identity"]))
        if keys:
            ok = False
            told = told_differences(each.manifest["identity"], manifest["identity"])
            outcome = UNKNOWN if keys <= allowed else ALTERED
            how = "it was resumed anyway with other options" if keys <= allowed else "it is of another experiment"
            yield Finding(what, outcome, f"{each.name}: {how}: {told}")
    if ok:
        yield Finding(what, SAME, f"{STORED} says what the checkpoints say; seed {manifest['identity'].get('seed')}")


def _records(past: Past, found: Evidence) -> Iterator[Finding]:
    """What the logs say against the figures in the newest checkpoint."""
    what = "evaluations"
    if past.logs is None:
        yield Finding(what, UNKNOWN, "the logs are gone")
        return
    wrong = list(_wrong_records(past, found))
    if not wrong:
        nb = len(past.evaluations)
        yield Finding(what, SAME, f"{nb}, as the newest checkpoint says" + (", and so is the summary" if past.done else ""))
    yield from (Finding(what, ALTERED, each) for each in wrong)
    if not found.manifest.get(evidence.EVALUATED):
        yield Finding(what, UNKNOWN, "the run did not yet record a digest: evaluations inside a task are not vouched for")


def _wrong_records(past: Past, found: Evidence) -> Iterator[str]:
    path, report, nb_bytes = past.logs / EVALUATIONS, found.report, found.newest["report"]["nb_bytes"]
    content = path.read_bytes() if path.exists() else b""
    digest = found.manifest.get(evidence.EVALUATED)
    if digest and evidence.sha256(content[:nb_bytes]) != digest:
        yield f"{EVALUATIONS} was altered (its SHA-256 does not fit)"
    if past.done and len(content) > nb_bytes:
        yield f"{EVALUATIONS} has {len(content) - nb_bytes} bytes more than were written"
    for task, then in enumerate(report.measured_at_ends()):
        now = past.ends[task] if task < past.nb_tasks else {}
        if keys := [key for key in then if now.get(key) != then[key]]:
            yield f"{EVALUATIONS}, at the end of task {task}: {keys[0]} was {then[keys[0]]}, is {now.get(keys[0])}"
            break
    if past.done:
        then = {**report.measured(), "n_exemplars": len(found.kept[-1].memory)}
        if keys := [key for key in then if (past.summary or {}).get(key) != then[key]]:
            yield f"summary.json: {keys[0]} was {then[keys[0]]}, is {(past.summary or {}).get(keys[0])}"
    if found.newest.get("classes", past.classes) != past.classes:
        yield "classes.json is not as the newest checkpoint says"


def _predictions(past: Past, found: Evidence) -> Iterator[Finding]:
    digests = found.manifest.get(PREDICTIONS, {})
    if past.logs is None or not digests:
        yield Finding("predictions", UNKNOWN, "none were kept")
        return
    wrong = False
    for name, sha256 in digests.items():
        try:
            predictions.read(past.logs / predictions.FOLDER / name, sha256=sha256)
        except CheckpointError:
            wrong = True
            gone = "was altered" if (past.logs / predictions.FOLDER / name).exists() else "is gone"
            yield Finding("predictions", ALTERED, f"{predictions.FOLDER}/{name} {gone}")
    if not wrong:
        yield Finding("predictions", SAME, f"of {len(digests)} task(s)")


# --- where it was made ---


def of_environment(found: Evidence, now: dict[str, Any]) -> Iterator[Finding]:
    """Code, packages and processor: then and now."""
    entries = found.manifest.get(evidence.MADE_WITH)
    if not entries:
        yield Finding("code", UNKNOWN, f"the run did not record its code, packages and processor; now {_code(now['code'])}")
        return
    words = {"code": _code, "packages": _listed, "processor": _listed}
    for what, word in words.items():
        of_what = [entry[what] for entry in entries]
        then = list(dict.fromkeys(word(each) for each in of_what))
        if all(each == now[what] for each in of_what):
            yield Finding(what, SAME, then[0])
        else:
            yield Finding(what, ANOTHER, f"then {'; then '.join(then)}; now {word(now[what])}")


def _code(code: dict[str, Any]) -> str:
    state = {True: "clean", False: "with changes", None: "not under git"}[code["clean"]]
    commit = f"commit {code['commit'][:12]}, " if code["commit"] else ""
    script = f", script {code['script'][:12]}" if code.get("script") else ""
    return f"{commit}{state}, sources {code['sources'][:12]}{script}"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


# --- data ---


def of_data(folder: Path, found: Evidence, benchmark: Benchmark) -> Iterator[Finding]:
    """The images of now, and whether every exemplar is one of them."""
    wrong = False
    for told in _wrong_images(folder, found, benchmark):
        wrong = True
        yield Finding("images", ALTERED, told)
    nb = [len(samples.y) for samples in (benchmark.train_samples, benchmark.test_samples)]
    if not wrong:
        yield Finding("images", SAME, f"{nb[0]} for training, {nb[1]} for testing")
    files = benchmark.train_samples.x.dtype.kind == "U"
    if files and not found.manifest.get(evidence.SEEN):
        yield Finding("images", UNKNOWN, "the run did not record what the files hold: their names alone are vouched for")
    elif files and max(nb) > identity.MOST_FILES:
        told = f"of the files, names are vouched for, and what {identity.MOST_FILES} of each split hold, drawn by the seed"
        yield Finding("images", UNKNOWN, told)
    yield from _exemplars(found, benchmark)


def _wrong_images(folder: Path, found: Evidence, benchmark: Benchmark) -> Iterator[str]:
    told = list(_other_images(folder, found, benchmark))
    then, now = found.manifest["identity"], identity.of_data(benchmark)
    keys = differences(then, {**then, **now})
    if told:
        keys = [key for key in keys if not key.endswith(("digest", "images"))]
    yield from told
    if keys:
        yield told_differences({key: then[key] for key in keys}, {key: now[key] for key in keys})


def _other_images(folder: Path, found: Evidence, benchmark: Benchmark) -> Iterator[str]:
    """Which single images are others than then, by count and by the first of them."""
    sha256 = found.manifest.get(evidence.SEEN)
    if not sha256:
        return
    try:
        then = evidence.read_images(folder, sha256)
    except CheckpointError as error:
        yield str(error)
        return
    now = evidence.images_of(benchmark, found.manifest["identity"]["seed"])
    for split, samples in (("training", benchmark.train_samples), ("test", benchmark.test_samples)):
        before, after, rows = then[split], now[split], now[f"{split}_rows"]
        if len(before) != len(after) or not np.array_equal(then[f"{split}_rows"], rows):
            yield f"{split} images: {found.manifest['identity'][f'{split}_images']} then, {len(samples.y)} now"
        elif len(others := np.flatnonzero(before != after)):
            row = int(rows[others[0]])
            name = benchmark.class_names[benchmark.class_order[int(samples.y[row])]]
            digests = [f"{int(each[others[0]]):016x}" for each in (before, after)]
            told = f"number {row}, of class {name!r}: digest {digests[0]} then, {digests[1]} now"
            yield f"{len(others)} of {len(before)} {split} images {'is' if len(others) == 1 else 'are'} another: {told}"


def _exemplars(found: Evidence, benchmark: Benchmark) -> Iterator[Finding]:
    """Every exemplar of every checkpoint must be a training image under its label."""
    train, wrong, nb = benchmark.train_samples, 0, 0
    known = set(zip(train.y.tolist(), _digests(train), strict=True))
    for each in found.kept:
        if not len(each.memory):
            continue
        samples, nb = each.memory.samples, max(nb, len(each.memory))
        strange = [i for i, row in enumerate(zip(samples.y.tolist(), _digests(samples), strict=True)) if row not in known]
        if strange:
            wrong += len(strange)
            told = f"{len(strange)} of {len(samples.y)} exemplars of {each.name}: no training image under their label"
            yield Finding("exemplars", ALTERED, f"{told} (number {some(strange, 3)})")
    if not wrong:
        yield Finding("exemplars", SAME, f"{nb}, all of them training images under their labels" if nb else "there are none")


def _digests(samples: Samples) -> list[Any]:
    """What tells images apart: paths, or pixels."""
    return samples.x.tolist() if samples.x.dtype.kind == "U" else identity.per_image(samples, None).tolist()
