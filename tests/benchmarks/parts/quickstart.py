"""Whole runs on the digits: processor seconds and images a second of this code against an older state of it, alternating."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from continual.data.samplers import SAMPLERS, StepSampler
from continual.methods import method_of
from continual.options import Options
from continual.tasks import Phase
from parts.models import FILES, options_of, tasks_of
from parts.setting import ROOT, Row, Setting, say

BEFORE = "6e78277"
DIGITS = [142, 146, 142, 146, 145, 145, 145, 143, 139, 144]  # training images of each class, four fifths of scikit-learn's
WIDE = {"batch_size": 64, "replicas": 1, "embed_dim": 96}  # "digits at batch 64, D 96"


@contextmanager
def older(setting: Setting) -> Iterator[Path]:
    """The folder of the state to compare with: as given, or a worktree of that commit for as long as it is needed."""
    name = setting.against or BEFORE
    if Path(name).is_dir():
        yield Path(name).resolve()
        return
    place = Path(tempfile.mkdtemp(prefix="before-")) / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(place), name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no folder and no commit {name}: {done.stderr.strip()[-300:]}")
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], capture_output=True)
        shutil.rmtree(place.parent, ignore_errors=True)


def run(root: Path, start: list[str], words: list[str], environment: dict[str, str | None], device: str = "cpu") -> Row:
    """One run from start to end: seconds of the processor, of a clock, and of the run itself as its summary says."""
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    env = {key: value for key, value in {**os.environ, "PYTHON": sys.executable, **environment}.items() if value is not None}
    options = ["--options", *(f"options/{file}" for file in FILES["digits"]), *words, "--device", device]
    place = ["--name", "speed", "--log-path", str(folder / "logs"), "--output-basedir", str(folder / "checkpoints")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run([*start, *options, *place], cwd=root, env=env, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"a run ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}")
        (summary,) = (folder / "logs").rglob("summary.json")
        told = json.loads(summary.read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"worked": worked, "run": float(told["time"]), "acc": told["avg_acc"]}


def images_of_run(options: Options, nb_tasks: int) -> int:
    """Images that go through training steps in a run on the digits; counted from its phases."""
    tasks, replicas = tasks_of(5, 2), options.optim.replicas or 1
    method, total = method_of(options, tasks, replicas=replicas), 0
    for task in tasks[:nb_tasks]:
        new, seen = sum(DIGITS[task.nb_old : task.nb_seen]), task.nb_old
        kept = options.rehearsal.memory_size // seen * seen if seen else 0
        after = options.rehearsal.memory_size // task.nb_seen * task.nb_seen
        for phase in (step for step in method.steps(task) if isinstance(step, Phase)):
            nb = after if phase.name == "finetuning" else new + kept
            total += phase.epochs * images_of_epoch(phase, nb, replicas)
    return total


def images_of_epoch(phase: Phase, nb: int, replicas: int) -> int:
    order = SAMPLERS[phase.sampler](nb, replicas, 0)
    how = {"own_replicas": range(replicas), "batch_size": phase.batch_size, "key": (), "drop_last": phase.drop_last}
    sampler = StepSampler(phase.sampler, [range(nb)] * replicas, **how)
    return min(sampler.bounds[sampler.nb_steps], order.shape[1]) * replicas


def compared(setting: Setting, before: Path, case: dict, nothing: dict[str, float]) -> Row:
    """Runs of both states, alternating: the median of each. nothing: seconds of each until everything is imported."""
    trees = {"before": before, "now": ROOT}
    found: dict[str, list[Row]] = {name: [] for name in trees}
    rounds = 1 if setting.tiny else min(setting.rounds, 3)
    for number in range(rounds):
        for name in list(trees)[:: 1 if number % 2 == 0 else -1]:
            setting.need(20)
            found[name].append(run(trees[name], case["start"], case["words"], case["environment"]))
            say(f"quickstart: {case['what']}, {name}: {found[name][-1]['worked']:.1f} s of processor")
    worked = {name: median(each["worked"] for each in runs) for name, runs in found.items()}
    row = {"what": case["what"], "before (processor s)": worked["before"], "now (processor s)": worked["now"]}
    row["now / before"] = worked["now"] / worked["before"]
    alone = {name: max(1e-9, worked[name] - nothing[name]) for name in trees}
    row["without start-up, now / before"] = alone["now"] / alone["before"]
    if images := case["images"]:
        for name in trees:
            row[f"{name} (images/s of processor)"] = images / worked[name]
            row[f"{name}, without start-up (images/s of processor)"] = images / alone[name]
        row["images"] = images
    row["average accuracy, before and now"] = " / ".join(f"{runs[-1]['acc']:.1f}" for runs in found.values())
    return row


def quickstart(setting: Setting) -> Row:
    """Processor seconds of the README's quickstart, and images a second at batch 64 and D 96, against an older state."""
    last = [] if setting.full else ["--max-task", str(setting.max_task)]
    nb_tasks = 5 if setting.full else setting.max_task
    if setting.tiny:
        last = ["--max-task", "1", "--debug"]
    wide = [word for key, value in WIDE.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    options, options_wide = options_of("digits", setting), options_of("digits", setting, **WIDE)
    main, one = [sys.executable, "main.py"], {"OMP_NUM_THREADS": "1"}
    free = {"OMP_NUM_THREADS": None, "MKL_NUM_THREADS": None}
    images, images_wide = (0 if setting.tiny else images_of_run(each, nb_tasks) for each in (options, options_wide))
    cases = [
        {"what": "quickstart, main.py, OMP_NUM_THREADS=1", "start": main, "environment": one, "images": images},
        {"what": "batch 64, D 96, OMP_NUM_THREADS=1", "start": main, "environment": one, "words": wide, "images": images_wide},
        {"what": "quickstart, bash train.sh cpu", "start": ["bash", "train.sh", "cpu"], "environment": free},
        {"what": "quickstart, main.py", "start": main, "environment": free},
    ]
    rows = []
    with older(setting) as before:
        nothing = {"before": startup(before), "now": startup(ROOT)}
        for case in cases[: 2 if setting.tiny else None]:
            if setting.seconds_left() < 60:
                break
            rows.append(compared(setting, before, {"images": 0, **case, "words": [*case.get("words", []), *last]}, nothing))
    told = f"{'all 5' if setting.full else setting.max_task} tasks; start-up alone (imports, one process) "
    return {"rows": rows, "notes": [told + f"{nothing['before']:.1f} s before, {nothing['now']:.1f} s now"]}


def startup(root: Path) -> float:
    """Processor seconds until main.py is imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import main"], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
