"""A sweep: many runs that differ in a few options, on images held out of training, and a ranking at the end.

Every point is a run of a series, or one for each seed. The processes of a job take points one by one, each alone; so may any
number of jobs on the same folder (`--resume`), on any machines that share it: a point is claimed by a lock on its folder. What
stands on disk says what is left to do, so that nothing is lost or done twice, whoever is killed.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from continual.errors import CheckpointError, NonFiniteLoss, Preempted
from continual.files import UNREADABLE, replacing, write_json
from continual.jobs import distributed
from continual.options import STORED, Options, parse, replace, sweeping, to_yaml
from continual.runs import folders
from continual.runs.checkpoint import Store, own_lock
from continual.runs.folders import Place
from continual.runs.record import EVALUATIONS, STATUS
from continual.runs.series import Part, Series, keep_options, of_series
from continual.seeing.progress import say
from continual.seeing.tables import mean_std, spread, text_table

SWEPT = ("sweep", "sweep_draws", "sweep_prune", "sweep_tasks")
PAUSE = 1.0  # seconds between two looks at what others have done
COLUMNS = {"avg_acc": "average", "acc": "last", "forgetting": "forgetting"}


def series_of(options: Options, stop: Any) -> Series:
    """What a command asks for: one run, a series, or a sweep. stop: the signal to stop."""
    return Sweep(options, stop) if options.run.sweep else Series(options)


@dataclass(frozen=True)
class Standing:
    """How far a run has come.

    task: of its newest checkpoint, from 0; ended: whether that is of its end. ends: the evaluations at the ends of tasks.
    """

    task: int
    ended: bool
    status: str
    exit_code: int | None
    ends: list[dict[str, Any]]

    def done(self, nb_tasks: int) -> bool:
        """Whether there is nothing left to do for so many tasks."""
        at_the_end = self.ended and self.task == nb_tasks - 1 and self.status == "done"
        return self.diverged or at_the_end or self.task >= nb_tasks

    @property
    def diverged(self) -> bool:
        return self.status == "failed" and self.exit_code == NonFiniteLoss.exit_code

    def figures(self, nb_tasks: int) -> dict[str, Any] | None:
        """After so many tasks; None if it did not come so far."""
        return self.ends[nb_tasks - 1] if nb_tasks <= len(self.ends) else None


class Sweep(Series):
    """The runs of a sweep: points, each with every seed. figures: the ranking, once all are done.

    Raises OptionsError and CheckpointError, before anything is trained.
    """

    def __init__(self, options: Options, stop: Any):
        self.stop = stop
        self.points: dict[str, dict[str, Any]] = {}
        self._of_point: dict[str, list[str]] = {}
        super().__init__(options)
        if self.options.run.resume:
            distributed.on_main(self._check_points)

    def _runs(self) -> dict[str, Options]:
        runs = {}
        for number, (values, of_point) in enumerate(sweeping.points(self.options, replace), start=1):
            name = f"point-{number}"
            seeds = of_series(self._held_out(of_point)) or {"": self._held_out(of_point)}
            labels = {f"{name}-{label}" if label else name: each for label, each in seeds.items()}
            self.points[name], self._of_point[name] = values, list(labels)
            runs |= labels
        return runs

    def _held_out(self, options: Options) -> Options:
        """Few tasks, and no test images."""
        return replace(
            options,
            validation=options.data.validation or sweeping.VALIDATION,
            max_task=self.nb_tasks,
            resume="",
            start_task=0,
            resume_anyway=False,
        )

    @property
    def nb_tasks(self) -> int:
        return min(self.options.run.sweep_tasks, self.options.run.max_task or self.options.run.sweep_tasks)

    def _check_points(self) -> None:
        """Raise CheckpointError unless the sweep is the one that was begun."""
        begun = parse(["--options", str(self.place.checkpoints / STORED)])
        for key in SWEPT:
            then, now = getattr(begun.run, key), getattr(self.options.run, key)
            if then != now:
                raise CheckpointError(f"{self.place.checkpoints}: the sweep was begun with {key}: {then}, not {now}")

    def to_train(self) -> Iterator[Part]:
        """Every run, rung by rung if it is pruned: of those alive, the ones that this process can claim."""
        if self.options.run.resume:
            distributed.on_main(self._keep_options)
        alive, pruned = list(self.points), {}
        for nb_tasks in range(1, self.nb_tasks + 1) if self.options.run.sweep_prune else [self.nb_tasks]:
            yield from self._rung([label for name in alive for label in self._of_point[name]], nb_tasks)
            if nb_tasks < self.nb_tasks:
                ranked = sorted(alive, key=lambda name: self._key(name, nb_tasks), reverse=True)
                kept = {name for name in ranked[: -(-len(alive) // 2)] if self._key(name, nb_tasks)[0]}
                pruned |= {name: nb_tasks for name in alive if name not in kept}
                alive = [name for name in alive if name in kept]
        self._tell(pruned)

    def _keep_options(self) -> None:
        """Of a resumed sweep; not if another command, which has the same, is just doing it. Raises CheckpointError."""
        if (self.place.checkpoints / STORED).read_text(encoding="utf-8") == to_yaml(self.options):
            return
        with claim(self.place.checkpoints) as claimed:
            if claimed:
                keep_options(self.place, self.options)

    def _rung(self, labels: list[str], nb_tasks: int) -> Iterator[Part]:
        """The runs of these labels up to so many tasks; ends when all are done, whoever did them."""
        places = {label: place for label, _, place in self._inside()}
        while left := [label for label in labels if not standing(places[label]).done(nb_tasks)]:
            for label in left[distributed.rank() % len(left) :] + left[: distributed.rank() % len(left)]:
                with claim(places[label].checkpoints) as claimed:
                    if not claimed or standing(places[label]).done(nb_tasks):
                        continue
                    told = sweeping.in_words(self._values(label))
                    say(f"--- {label} of {len(self.runs)} runs, {nb_tasks} task(s): {told}")
                    options = folders.prepare_inside(replace(self.runs[label], max_task=nb_tasks), places[label])
                    yield Part(options, places[label], alone=True)
                    break
            else:
                self._wait()

    def _values(self, label: str) -> dict[str, Any]:
        return next(values for name, values in self.points.items() if label in self._of_point[name])

    def _wait(self) -> None:
        """Others are at work on all that is left. Raises Preempted."""
        if self.stop.is_requested():
            distributed.barrier()
            raise Preempted(f"stopped while waiting for other processes; continue with --resume {self.place.checkpoints}")
        time.sleep(PAUSE)

    # --- the ranking ---

    def _figures(self, name: str, nb_tasks: int) -> list[dict[str, Any]] | None:
        """Those of every seed after so many tasks; None if one of them did not come so far."""
        place = self.place
        found = [standing(Place(place.logs / each, place.checkpoints / each)) for each in self._of_point[name]]
        figures = [each.figures(nb_tasks) for each in found]
        return None if any(each is None for each in figures) else figures

    def _key(self, name: str, nb_tasks: int) -> tuple[bool, float]:
        """The higher the better; points that are as good stay in their order."""
        figures = self._figures(name, nb_tasks)
        return (False, 0.0) if figures is None else (True, fmean(each["avg_acc"] for each in figures))

    def _tell(self, pruned: dict[str, int]) -> None:
        """Write sweep.json and best.yaml, and print the table."""
        reached = {name: pruned.get(name, self.nb_tasks) for name in self.points}
        found = {name: self._key(name, reached[name]) for name in self.points}
        ranked = sorted(found, key=lambda name: (found[name][0], reached[name], found[name][1]), reverse=True)
        rows = []
        for name in ranked:
            figures = self._figures(name, reached[name])
            known = {} if figures is None else {key: spread([each[key] for each in figures]) for key in COLUMNS}
            rows.append({"point": name, "options": self.points[name], "tasks": reached[name], **known})
        self.figures = json.loads(json.dumps({"tasks": self.nb_tasks, "points": rows}))
        if not distributed.is_main():
            return
        share = self.runs[self._of_point[ranked[0]][0]].data.validation
        say(f"\nAccuracy (%) on {share:.0%} of the training images, {self.nb_tasks} task(s)\n{self._table(rows)}")
        with claim(self.place.checkpoints) as claimed:
            if claimed:  # else another command is just writing the same
                self._write(ranked[0] if "avg_acc" in rows[0] else None)

    def _write(self, best: str | None) -> None:
        """best: the name of the best point; None if all diverged."""
        write_json(self.place.logs / "sweep.json", self.figures)
        if best is None:
            return
        off = {"sweep": (), "sweep_draws": None, "sweep_prune": False}
        with replacing(self.place.logs / "best.yaml") as file:
            file.write(to_yaml(replace(self.options, **off, **self.points[best])).encode())
        say(f"\nthe best, for --options: {self.place.logs / 'best.yaml'}")

    def _table(self, rows: list[dict[str, Any]]) -> str:
        keys = list(self.points[rows[0]["point"]])
        lines = []
        for rank, row in enumerate(rows, start=1):
            cells = [mean_std(row[key]) if key in row else "diverged" for key in COLUMNS]
            told = f"pruned after task {row['tasks']}" if row["tasks"] < self.nb_tasks else ""
            values = [sweeping.in_words({key: row["options"][key]}).partition("=")[2] for key in keys]
            lines.append([str(rank), row["point"], *values, *cells, told])
        return text_table(["rank", "point", *keys, *COLUMNS.values(), ""], lines)


def standing(place: Place) -> Standing:
    """How a run stands on disk; one that has not begun, or cannot be read, has done nothing."""
    stored = Store(place.checkpoints).stored() if place.checkpoints.is_dir() else []
    status = _json(place.logs / STATUS)
    ends: list[dict[str, Any]] = []
    with contextlib.suppress(*UNREADABLE):
        records = [json.loads(line) for line in (place.logs / EVALUATIONS).read_text().splitlines()]
        ends = [record for record in records if record["final"]]
    if not stored:
        return Standing(-1, False, status.get("status", ""), status.get("exit_code"), [])
    last = stored[-1]
    return Standing(last.manifest["task"], last.finished_task, status.get("status", ""), status.get("exit_code"), ends)


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(*UNREADABLE):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Keep a run for this process, if no other has it. Whoever ends, in whatever way, lets go. Raises CheckpointError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "claim", "a")  # noqa: SIM115
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}") from None
    with file:
        own_lock(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
