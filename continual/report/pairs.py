"""Is the difference between two methods real? Two groups of runs, image by image and seed by seed; no model is needed.

Letters: R runs (or pairs of runs) of a group, P test images after the last task that both have learned, K figures, B draws.
A figure is linear in the images: what each adds to it is a row of (P, K), and the figure their sum.

Images stand for all that might have been tested, seeds for all that might have been trained. `draws` counts the chance of
both, and `tests/test_compare.py` holds it to its word: without a difference about 5 % of its intervals miss zero, or fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from continual import metrics
from continual.errors import CheckpointError, OptionsError, some
from continual.metrics import Scores
from continual.report.exhibit import Exhibit, Table
from continual.report.reading import Past
from continual.runs.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.05
SAMPLES = 10_000  # draws of a bootstrap
FEW = 25  # discordant images, below which McNemar's test is the exact one
ALL_SIGNS = 2**14  # sign flips or labelings that are counted out; beyond, so many are drawn
KINDS = {"task unknown": False, "task known": True}
COLOURS = {"task unknown": "#0072b2", "task known": "#d55e00"}  # told apart by colour-blind eyes too
MARKERS = {"task unknown": "o", "task known": "s"}
AVERAGE, LAST = "average incremental accuracy", "all classes"


# --- statistics ---


def mcnemar(only_a: int, only_b: int) -> float:
    """p, two-sided, of images that one alone has right (McNemar, Psychometrika 1947): 1 where there are none.

    Below `FEW` the exact binomial, which never rejects more often than it says; from there on its mid-p, which lies closer to
    5 %, and for some counts above: 5.7 % at 100 (Fagerland, Lydersen & Laake, BMC Med. Res. Methodol. 2013).
    """
    from scipy.stats import binom

    nb, least = only_a + only_b, min(only_a, only_b)
    if only_a == only_b:
        return 1.0
    exact = 2 * float(binom.cdf(least, nb, 0.5))
    return min(1.0, exact if nb < FEW else exact - float(binom.pmf(least, nb, 0.5)))


def holm(ps: Sequence[float]) -> list[float]:
    """p of each of several tests, corrected for their number (Holm, Scand. J. Statist. 1979), in the order given."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def t_test(a: Sequence[float], b: Sequence[float], *, paired: bool) -> float | None:
    """p, two-sided, of Student's t-test (of Welch's where not paired); None where nothing varies, but for equal figures: 1."""
    from scipy import stats

    a, b = np.round(a, 9), np.round(b, 9)
    if np.array_equal(a, b) and paired:
        return 1.0
    if (paired and np.ptp(a - b) < 1e-9) or (not paired and max(np.ptp(a), np.ptp(b)) < 1e-9):
        return 1.0 if a.mean() == b.mean() else None
    return float((stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)).pvalue)


def permutation(a: Sequence[float], b: Sequence[float], *, paired: bool, seed: int = 0) -> tuple[float, float]:
    """p, two-sided, of the difference of means under exchange of A and B (Fisher, 1935), and the least p that could be.

    paired: of the two in each pair, which flips the sign of its difference; else of all runs. Counted out up to `ALL_SIGNS`
    ways; of more, as many are drawn, and the one that was seen counts as drawn.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    pool, rng = np.concatenate([a, b]), np.random.default_rng(seed)
    nb_ways = 2 ** len(a) if paired else math.comb(len(pool), len(a))
    counted = nb_ways <= ALL_SIGNS
    if paired:
        drawn = rng.integers(0, 2, (0 if counted else ALL_SIGNS, len(a))) * 2 - 1
        signs = np.array(list(product((1, -1), repeat=len(a)))) if counted else drawn
        means = signs @ (a - b) / len(a)
    else:
        picks = (
            combinations(range(len(pool)), len(a))
            if counted
            else (rng.permutation(len(pool))[: len(a)] for _ in range(ALL_SIGNS))
        )
        of_a = np.array([pool[list(pick)].sum() for pick in picks])
        means = of_a / len(a) - (pool.sum() - of_a) / len(b)
    nb_beyond = int((np.abs(means) >= abs(a.mean() - b.mean()) - 1e-9).sum())
    p = nb_beyond / len(means) if counted else (nb_beyond + 1) / (len(means) + 1)
    return p, (2 if paired or len(a) == len(b) else 1) / nb_ways


def draws(groups: Sequence[np.ndarray], strata: np.ndarray, *, samples: int = SAMPLES, rng: np.random.Generator) -> np.ndarray:
    """A hierarchical bootstrap of K figures over images and seeds: (B, K), around their estimate.

    groups: (R, P, K) each, what every image adds to every figure in every run; the estimate is the sum of their means over
    runs. One group of differences of pairs, or two, the second with its sign turned. strata: (P,) images that share a number
    are drawn among each other, so that every task keeps its number of images.

    Images: n - 1 of the n in a stratum, with replacement, the same for all runs, which answer the same images; so the variance
    of the draws is that of a mean (Rao & Wu, JASA 1988). Seeds: drawing 2 or 3 runs with replacement gives intervals far too
    narrow, so what a run adds is drawn from Student's t, with the standard error between runs, pooled over groups. This already
    holds by how much one image's answers differ from run to run; the images' part is narrowed by just that, and never below 0.
    """
    from scipy import stats

    summed = sum(group.mean(0) for group in groups)
    drawn = np.repeat(summed.sum(0)[None], samples, axis=0)
    freedom = sum(len(group) - 1 for group in groups)
    shared = np.sqrt(_shared(groups, strata)) if freedom else np.ones(summed.shape[1])
    for rows in _rows(strata):
        nb, centred = len(rows), summed[rows] - summed[rows].mean(0)
        if nb == 1:
            continue  # nothing is known of how it might have been otherwise
        step = max(1, 2**22 // nb)
        for start in range(0, samples, step):
            size = min(step, samples - start)
            counts = rng.multinomial(nb - 1, np.full(nb, 1 / nb), size=size)
            drawn[start : start + size] += shared * (counts @ centred) * (nb / (nb - 1))
    if freedom:
        figures = [group.sum(1) for group in groups]  # (R, K)
        squares = sum(((each - each.mean(0)) ** 2).sum(0) for each in figures) / freedom
        error = np.sqrt(squares * sum(1 / len(each) for each in figures))
        even = (rng.permutation(samples) + 0.5) / samples  # so that far quantiles do not hang on the draw
        drawn += stats.t.ppf(even, freedom)[:, None] * error
    return drawn


def _shared(groups: Sequence[np.ndarray], strata: np.ndarray) -> np.ndarray:
    """The part of the images' variance that all runs share: (K,) in [0, 1]."""
    nb_figures = groups[0].shape[2]
    images, apart = np.zeros(nb_figures), np.zeros(nb_figures)
    for rows in _rows(strata):
        nb = len(rows)
        if nb == 1:
            continue
        inside = [group[:, rows] - group[:, rows].mean(1, keepdims=True) for group in groups]
        scale = nb / (nb - 1)
        images += scale * (sum(each.mean(0) for each in inside) ** 2).sum(0)
        for each in inside:
            if len(each) > 1:
                apart += scale * ((each - each.mean(0)) ** 2).sum((0, 1)) / ((len(each) - 1) * len(each))
    return np.where(images > 0, np.clip(1 - apart / np.maximum(images, 1e-300), 0, 1), 1.0)


def _rows(strata: np.ndarray) -> Iterator[np.ndarray]:
    for number in np.unique(strata).tolist():
        yield np.flatnonzero(strata == number)


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of some draws, (B,)."""
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def beyond_zero(drawn: np.ndarray) -> float:
    """p, two-sided: twice the share of the draws (B,) on the far side of zero, zero itself counted."""
    eps = 1e-12
    least = min(int((drawn <= eps).sum()), int((drawn >= -eps).sum()))
    return min(1.0, 2 * (least + 1) / (len(drawn) + 1))


# --- runs, and which belong together ---


@dataclass(frozen=True, eq=False)
class Answers:
    """What one run answered after each of the tasks that are compared. order: the class id of every label, () if unknown."""

    past: Past
    kept: list[Predictions]
    order: tuple[int, ...]

    @property
    def last(self) -> Predictions:
        return self.kept[-1]

    @property
    def key(self) -> tuple:
        """Equal for runs of equal seed and class order."""
        return self.past.options.get("seed"), self.order or repr(self.past.options.get("class_order"))

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """Labels as class ids."""
        return np.asarray(self.order)[labels]

    def right(self, task: int, *, known: bool) -> np.ndarray:
        """Which images were answered right after a task, (n,)."""
        found = self.kept[task]
        return (found.answers_known if known else found.answers) == found.labels

    def contributions(self, places: np.ndarray) -> np.ndarray:
        """What every image adds to each figure of both kinds, (P, K): accuracy per task, on all classes, and the average."""
        nb = len(self.kept)
        found = np.zeros((len(places), 2, nb + 2))
        for kind, known in enumerate(KINDS.values()):
            for task, each in enumerate(self.kept):
                rows, right = np.searchsorted(places, each.places), self.right(task, known=known)
                found[rows, kind, nb + 1] += right / (len(right) * nb)
            sizes = np.bincount(each.tasks, minlength=nb)
            found[rows, kind, each.tasks] = right / sizes[each.tasks]
            found[rows, kind, nb] = right / len(right)
        return found.reshape(len(places), -1)

    def figures(self, *, known: bool) -> dict[str, float]:
        """Average incremental accuracy, last accuracy and forgetting, in percent (see `metrics`)."""
        scores = []
        for task, each in enumerate(self.kept):
            nb = np.bincount(each.tasks, minlength=task + 1)
            top1 = np.bincount(each.tasks, weights=self.right(task, known=known), minlength=task + 1)
            scores.append(Scores(nb, top1, top1, top1, np.zeros(task + 1)))
        accuracies = [metrics.accuracy(each) for each in scores]
        found = {
            AVERAGE: metrics.average_incremental_accuracy(accuracies),
            "last accuracy": accuracies[-1],
            "forgetting": metrics.forgetting(metrics.accuracy_matrix(scores)),
        }
        return {name: 100 * value for name, value in found.items()}


@dataclass(frozen=True, eq=False)
class Pairing:
    """Runs of A and of B that are compared; paired: a[i] with b[i]. notes: what whoever reads the figures has to know."""

    a: list[Answers]
    b: list[Answers]
    paired: bool
    notes: list[str] = field(default_factory=list)

    @property
    def nb_tasks(self) -> int:
        return len(self.a[0].kept)

    @property
    def runs(self) -> list[Answers]:
        return [*self.a, *self.b]

    @property
    def meetings(self) -> list[tuple[Answers, Answers]]:
        """Which runs must have answered the same images."""
        return list(zip(self.a, self.b, strict=True) if self.paired else product(self.a, self.b))

    @property
    def one_order(self) -> bool:
        """Whether task 3 of A is task 3 of B."""
        return all(a.last.digest == b.last.digest for a, b in self.meetings)


def pair(a: Sequence[Past], b: Sequence[Past]) -> Pairing:
    """The runs of A and B that are compared, with their answers after the tasks that both have learned.

    Raises OptionsError for runs that cannot be compared, CheckpointError where nothing was kept, or it is damaged.
    """
    most = [max((past.nb_tasks for past in side), default=0) for side in (a, b)]
    for name, side, nb in zip("AB", (a, b), most, strict=True):
        if not nb:
            raise CheckpointError(f"{name}: {side[0].folder if side else 'no run'}: no task has been learned yet")
    nb, notes = min(most), []
    if most[0] != most[1]:
        notes.append(f"A has learned {most[0]} tasks and B {most[1]}: the first {nb} of both are compared")
    sides = []
    for name, side in zip("AB", (a, b), strict=True):
        notes += [f"{name}: {past.label} is left out, it has learned {past.nb_tasks}" for past in side if past.nb_tasks < nb]
        sides.append([_answers(past, nb) for past in side if past.nb_tasks >= nb])
    pairing = _paired(*sides, notes)
    for each in pairing.meetings:
        _check(*each)
    orders = {run.order for run in pairing.runs}
    if not pairing.one_order:
        notes.append("class orders differ between A and B: there is no task by task, and the difference holds the orders', too")
    elif len(orders) > 1:
        notes.append(f"{len(orders)} class orders: task 1 is made of other classes in each")
    return pairing


def _answers(past: Past, nb: int) -> Answers:
    kept = [past.predictions(task) for task in range(nb)]
    if any(each is None for each in kept):
        said = next((line for line in reversed(past.faults) if "predictions" in line or ".npz" in line), past.faults[-1])
        raise CheckpointError(said)
    rows = sorted((row["label"], row["class"]) for row in past.classes)
    order = [class_id for _, class_id in rows] or past.identity.get("class_order", [])
    for task, each in enumerate(kept):
        sizes = kept[-1].sizes[: task + 1].tolist()
        if each.sizes.tolist() != sizes or each.digest != kept[-1].digest or not np.isin(each.places, kept[-1].places).all():
            raise CheckpointError(f"{past.folder}: what is kept of task {task + 1} does not go with task {nb}")
        if not (len(each.places) and (np.diff(each.places) > 0).all() and np.bincount(each.tasks, minlength=task + 1).all()):
            raise CheckpointError(f"{past.folder}: what is kept of task {task + 1} is not every image once, of every task")
    return Answers(past, kept, tuple(order))


def _paired(a: list[Answers], b: list[Answers], notes: list[str]) -> Pairing:
    """By equal seed and class order, each run once; one run on each side goes together whatever its seed."""
    left, pairs = list(b), []
    for run in a:
        found = next((other for other in left if other.key == run.key), None)
        if found is not None:
            left.remove(found)
            pairs.append((run, found))
    if pairs:
        alone = [("A", [run for run in a if all(run is not each for each, _ in pairs)]), ("B", left)]
        notes += [
            f"{name}: without a partner of its seed and class order, left out: {_labels(runs)}" for name, runs in alone if runs
        ]
        return Pairing(*map(list, zip(*pairs, strict=True)), paired=True, notes=notes)
    if len(a) == len(b) == 1:
        seeds = [run.past.options.get("seed") for run in (*a, *b)]
        if seeds[0] != seeds[1]:
            notes.append(f"the seeds differ: {seeds[0]} and {seeds[1]}")
        return Pairing(a, b, paired=True, notes=notes)
    notes.append(f"no run of A has a partner of its seed and class order in B: unpaired, {_labels(a)} against {_labels(b)}")
    return Pairing(a, b, paired=False, notes=notes)


def _labels(runs: Sequence[Answers]) -> str:
    return some((f"{run.past.label} (seed {run.past.options.get('seed')})" for run in runs), 5)


def _check(a: Answers, b: Answers) -> None:
    """Raise OptionsError unless both were asked the same of the same images."""
    own, other = a.past.options, b.past.options
    sizes = [run.last.sizes.tolist() for run in (a, b)]
    for key in ("data_set", "validation"):
        if str(own.get(key)).lower() != str(other.get(key)).lower():
            raise OptionsError(f"{key}: A has {own.get(key)}, B {other.get(key)}: they were not tested on the same images")
    if sizes[0] != sizes[1]:
        raise OptionsError(f"increment: A has tasks of {some(sizes[0])} classes, B of {some(sizes[1])}: not the same tasks")
    if a.last.digest != b.last.digest:
        _check_orders(a, b)
    elif not (np.array_equal(a.last.places, b.last.places) and np.array_equal(a.last.labels, b.last.labels)):
        raise CheckpointError(f"{a.past.folder} and {b.past.folder}: the same test images do not have the same places")


def _check_orders(a: Answers, b: Answers) -> None:
    """Of runs whose test images differ, or are in another order of classes: by place and class."""
    for run in (a, b):
        if len(run.order) < run.last.logits.shape[1]:
            raise CheckpointError(f"{run.past.folder}: classes.json is gone, and it is not known which classes its labels are")
    if a.order == b.order:
        drawn = (
            f": validation {a.past.options['validation']} draws them by the seed" if a.past.options.get("validation") else ""
        )
        raise OptionsError(f"A and B ({_labels([a, b])}) were not tested on the same images{drawn}")
    if a.past.options.get("validation") and a.past.options.get("seed") != b.past.options.get("seed"):
        raise OptionsError("validation: its images are drawn by the seed, so that runs of other seeds have others")
    seen = [{*run.order[: run.last.logits.shape[1]]} for run in (a, b)]
    if seen[0] != seen[1]:
        raise OptionsError(f"class_order: after {len(a.kept)} tasks A and B have not learned the same classes")
    if not np.array_equal(a.last.places, b.last.places) or not np.array_equal(
        a.classes(a.last.labels), b.classes(b.last.labels)
    ):
        raise OptionsError("A and B were not tested on the same images: their classes do not agree image by image")


# --- the comparison ---


@dataclass(frozen=True)
class Row:
    """One figure of A and B. Percent and points; p_holm: of rows of single tasks. only_a, only_b: images, over all pairs."""

    name: str
    kind: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    test: str
    p_holm: float | None = None
    only_a: int | None = None
    only_b: int | None = None

    @property
    def real(self) -> bool:
        """Whether it is told from chance: a task by its corrected p, else the interval's word."""
        return self.p_holm < LEVEL if self.p_holm is not None else not self.low <= 0 <= self.high


@dataclass(frozen=True)
class OverSeeds:
    """One figure of a run over the pairs, or the runs of both sides. least_p: what the permutation test can reach at best."""

    name: str
    kind: str
    a: list[float]
    b: list[float]
    difference: float
    p_t: float | None
    p_permutation: float
    least_p: float


@dataclass(frozen=True)
class Comparison:
    """All that is found between A and B. nb_runs: pairs, or the runs of either side where they are not paired."""

    paired: bool
    nb_runs: tuple[int, int]
    nb_tasks: int
    nb_images: int
    samples: int
    same: bool  # every answer
    rows: list[Row]
    seeds: list[OverSeeds]
    notes: list[str]

    def rows_of(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.kind == kind]

    @property
    def verdict(self) -> str:
        return _verdict(self)


def compare(a: Sequence[Past], b: Sequence[Past], *, samples: int = SAMPLES, seed: int = 0) -> Comparison:
    """Hold two groups of runs against each other. Raises as `pair` does."""
    pairing = pair(a, b)
    notes = [*_differing(pairing), *pairing.notes]
    seeds = list(_over_seeds(pairing, seed))
    if seeds:
        notes.append(_how_weak(pairing, seeds[0].least_p))
    else:
        notes.append("one run on a side: how much another seed would change is not in these intervals")
    return Comparison(
        paired=pairing.paired,
        nb_runs=(len(pairing.a), len(pairing.b)),
        nb_tasks=pairing.nb_tasks,
        nb_images=len(pairing.a[0].last.places),
        samples=samples,
        same=pairing.paired and all(_same(*each) for each in pairing.meetings),
        rows=_rows_of(pairing, samples, seed),
        seeds=seeds,
        notes=notes,
    )


def _rows_of(pairing: Pairing, samples: int, seed: int) -> list[Row]:
    nb = pairing.nb_tasks
    places = np.unique(np.concatenate([run.last.places for run in pairing.runs]))
    a, b = (np.stack([run.contributions(places) for run in side]) for side in (pairing.a, pairing.b))
    groups = [a - b] if pairing.paired else [a, -b]
    drawn = 100 * draws(groups, _strata(pairing.runs, places), samples=samples, rng=np.random.default_rng(seed))
    means = [100 * side.sum(1).mean(0) for side in (a, b)]
    names = [*(f"task {task + 1}" for task in range(nb)), LAST, AVERAGE]
    rows = []
    for kind, known in KINDS.items():
        for place, name in enumerate(names):
            column = place + (len(names) if known else 0)
            if place < nb and not pairing.one_order:
                continue
            counts = _discordant(pairing, place, known=known) if name != AVERAGE else (None, None)
            by_image = counts[0] is not None and len(pairing.a) == 1
            p = mcnemar(*counts) if by_image else beyond_zero(drawn[:, column])
            of = [float(mean[column]) for mean in means]
            test = "McNemar" if by_image else "bootstrap"
            rows.append(Row(name, kind, *of, of[0] - of[1], *interval(drawn[:, column]), p, test, None, *counts))
    return _corrected(rows)


def _corrected(rows: list[Row]) -> list[Row]:
    """With Holm's p where there are single tasks: for all of a kind together."""
    found = []
    for kind in KINDS:
        tasks = [row for row in rows if row.kind == kind and row.name.startswith("task ")]
        ps = dict(zip((row.name for row in tasks), holm([row.p for row in tasks]), strict=True))
        found += [Row(**{**vars(row), "p_holm": ps.get(row.name)}) for row in rows if row.kind == kind]
    return found


def _strata(runs: Sequence[Answers], places: np.ndarray) -> np.ndarray:
    """(P,) a number for images that are of one task in every run."""
    tasks = np.full((len(places), len(runs)), -1)
    for column, run in enumerate(runs):
        tasks[np.searchsorted(places, run.last.places), column] = run.last.tasks
    return np.unique(tasks, axis=0, return_inverse=True)[1].reshape(-1)


def _discordant(pairing: Pairing, place: int, *, known: bool) -> tuple[int | None, int | None]:
    """Images, over all pairs, that A alone and B alone has right, of one task or, beyond the last, of all."""
    if not pairing.paired:
        return None, None
    only_a = only_b = 0
    for a, b in pairing.meetings:
        rows = a.last.tasks == place if place < pairing.nb_tasks else slice(None)
        right_a, right_b = (run.right(pairing.nb_tasks - 1, known=known)[rows] for run in (a, b))
        only_a, only_b = only_a + int((right_a & ~right_b).sum()), only_b + int((right_b & ~right_a).sum())
    return only_a, only_b


def _over_seeds(pairing: Pairing, seed: int) -> Iterator[OverSeeds]:
    if min(len(pairing.a), len(pairing.b)) < 2:
        return
    for kind, known in KINDS.items():
        sides = [[run.figures(known=known) for run in side] for side in (pairing.a, pairing.b)]
        for name in sides[0][0]:
            a, b = ([round(run[name], 4) for run in side] for side in sides)
            p, least = permutation(a, b, paired=pairing.paired, seed=seed)
            difference = float(np.mean(a) - np.mean(b))
            yield OverSeeds(name, kind, a, b, difference, t_test(a, b, paired=pairing.paired), p, least)


def _how_weak(pairing: Pairing, least: float) -> str:
    nb = f"{len(pairing.a)} pairs" if pairing.paired else f"{len(pairing.a)} and {len(pairing.b)} runs"
    reach = f"the permutation test over {nb} cannot go below p = {least:.2g}"
    if least < LEVEL:
        return reach
    return f"{reach}, whatever the difference" + ("; it takes 6 pairs to get below 0.05" if pairing.paired else "")


def _same(a: Answers, b: Answers) -> bool:
    if a.last.digest != b.last.digest:
        return False
    both = zip(a.kept, b.kept, strict=True)
    return all(np.array_equal(x.answers, y.answers) and np.array_equal(x.answers_known, y.answers_known) for x, y in both)


def _differing(pairing: Pairing) -> list[str]:
    """What else the options of A and B do not share."""
    first, other = pairing.a[0].past, pairing.b[0].past
    a, b = first.options, other.options
    keys = [key for key in first.told if key in a and a[key] != b.get(key)]
    return [f"options that differ: {some(f'{key} ({_word(a[key])}, {_word(b.get(key))})' for key in keys)}"] if keys else []


def _word(value: Any) -> str:
    return "none" if value in (None, "", []) else str(value)[:40]


def _verdict(found: Comparison) -> str:
    if found.same:
        return "A and B: no difference: all answers are the same."
    row = next(row for row in found.rows if row.name == AVERAGE)
    pairs = found.nb_runs if not found.paired else found.nb_runs[:1]
    seeds = " and ".join(map(str, pairs)) + (" pairs of runs" if found.paired else " unpaired runs")
    runs = "one run each" if found.nb_runs == (1, 1) else seeds
    of = f"(95 % interval {{}} to {{}}; {runs}, {found.nb_images:,} images each)"
    if abs(row.difference) < 0.005:
        begin = f"A and B have the same {AVERAGE} " + of.format(signed(row.low), signed(row.high))
    else:
        better, worse = "AB" if row.difference > 0 else "BA"
        low, high = (row.low, row.high) if row.difference > 0 else (-row.high, -row.low)
        verb = "is better than" if row.real else "is ahead of"
        points = f"{abs(row.difference):.1f} points of {AVERAGE} "
        begin = f"{better} {verb} {worse} by {points}" + of.format(f"{low:.1f}", f"{high:.1f}")
    return f"{begin}; the difference is {'' if row.real else 'not '}distinguishable from chance{_where(found)}."


def _where(found: Comparison) -> str:
    """In which tasks the difference lies, with the task unknown."""
    real = [row for row in found.rows_of("task unknown") if row.p_holm is not None and row.real]
    parts = []
    for name, sign in (("A", 1), ("B", -1)):
        tasks = [row.name.removeprefix("task ") for row in real if row.difference * sign > 0]
        if tasks:
            parts.append(f"{name} is better on task{'s' if len(tasks) > 1 else ''} {some(tasks)}")
    return f", and after task {found.nb_tasks} {' and '.join(parts)} (Holm)" if parts else ""


# --- what is shown ---


def signed(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def probability(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def by_task(found: Comparison, kind: str) -> Table:
    """The figures of one kind, as they are shown and, in CSV, as they are."""
    header = ["", "A", "B", "A − B", "from", "to", "only A right", "only B right", "p", "p (Holm)"]
    rows = [
        [
            row.name,
            row.a,
            row.b,
            row.difference,
            row.low,
            row.high,
            row.only_a,
            row.only_b,
            *map(probability, (row.p, row.p_holm)),
        ]
        for row in found.rows_of(kind)
    ]
    return Table(header, rows, digits=1)


def over_seeds(found: Comparison) -> Table:
    header = ["", "A", "B", "A − B", "p (t)", "p (permutation)"]
    rows = []
    for row in found.seeds:
        a, b = (f"{np.mean(side):.2f} ± {np.std(side, ddof=1):.2f}" for side in (row.a, row.b))
        cells = [signed(row.difference, 2), probability(row.p_t), probability(row.p_permutation)]
        rows.append([f"{row.name}, {row.kind}", a, b, *cells])
    return Table(header, rows, digits=2)


def drawn(found: Comparison) -> Figure:
    """A − B for every figure with its interval; a full mark where it is told from chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    ax = figure.subplots()
    for number, (kind, colour) in enumerate(COLOURS.items()):
        rows = found.rows_of(kind)
        shift = 0.24 * number - 0.12
        for place, row in enumerate(rows):
            error = [[row.difference - row.low], [row.high - row.difference]]
            face = colour if row.real else "white"
            label = {"label": kind} if place == 0 else {}
            ax.errorbar(
                place + shift, row.difference, np.maximum(error, 0), ecolor=colour, capsize=2, elinewidth=1.4, fmt="none"
            )
            ax.plot(place + shift, row.difference, MARKERS[kind], color=colour, markerfacecolor=face, markersize=5.5, **label)
    nb_tasks = len(rows) - 2
    every = -(-nb_tasks // 10) if nb_tasks > 0 else 1
    shown = [place for place, row in enumerate(rows) if place >= nb_tasks or (place + 1) % every == 0]
    short = {LAST: "all", AVERAGE: "avg."}
    ax.set_xticks(shown, [short.get(rows[place].name, rows[place].name.removeprefix("task ")) for place in shown])
    if nb_tasks > 0:
        ax.axvline(nb_tasks - 0.5, color="0.85", linewidth=0.8)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlabel="test images of task; of all; average over steps", ylabel="A − B (points)")
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def shown(found: Comparison) -> list[Exhibit]:
    """A comparison as exhibits: per task with a picture for the task unknown, with it known, and over seeds."""
    how = f"95 % intervals of a bootstrap over images{' and seeds' if found.seeds else ''}"
    reads = f"Above zero A is better: {how}; a full mark is told from chance, after Holm's correction for tasks."
    exhibits = [
        Exhibit("difference", "Is the difference real?", reads, by_task(found, "task unknown"), drawn(found), found.verdict),
        Exhibit("difference-known", "The difference, task known", f"A − B with its {how}.", by_task(found, "task known")),
    ]
    if found.seeds:
        said = "One figure per run: paired" if found.paired else "One figure per run: unpaired"
        title = "The difference over seeds"
        exhibits.append(
            Exhibit("difference-seeds", title, f"{said} tests over runs.", over_seeds(found), found=found.notes[-1])
        )
    return exhibits


def exhibits(a: Sequence[Past], b: Sequence[Past], *, samples: int = SAMPLES, seed: int = 0) -> list[Exhibit]:
    """Whether A and B differ, for a page of two experiments. Raises as `pair` does."""
    return shown(compare(a, b, samples=samples, seed=seed))
