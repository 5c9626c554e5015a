"""Exhibits of what the checkpoints hold: what the features know, task tokens and where they look, which tasks are alike."""

import numpy as np

from continual.report import attention, errors, plots, representation
from continual.report.exhibit import Exhibit, Table
from continual.report.inside import chosen, describe
from continual.report.study import AFTER, KINDS, OF, Study, cells, numbered

EVEN = 0.95  # of the entropy of looking everywhere alike, from which on a map is nearly even
TOKENS = 10  # side by side in a picture, at most


def probes(found: Study) -> Exhibit | None:
    """Accuracy matrices of the model and of probes on its features."""
    if not found.kinds:
        return None
    tasks, columns = found.views, list(range(found.nb_tasks))
    ways = {"the model itself": found.own}
    ways |= {f"linear probe: {KINDS[kind]}": found.probes[kind] for kind in found.kinds}
    ways |= {f"nearest class mean: {KINDS[kind]}": found.means[kind] for kind in found.kinds}
    empty = np.full(len(columns), np.nan)
    grids = {name: np.stack([values.get(task, empty) for task in tasks]) for name, values in ways.items()}
    shown = list(grids.items())[: 1 + len(found.kinds)]
    figure = plots.matrices(
        shown, rows=numbered(tasks), columns=numbered(columns), ylabel=AFTER, xlabel=OF, label="accuracy (%)", limits=(0, 100)
    )
    rows = [
        [task + 1, of + 1, *cells(*(grid[row, of] for grid in grids.values()))]
        for row, task in enumerate(tasks)
        for of in range(task + 1)
    ]
    seen = describe(found.inside)
    last = {name: float(np.nanmean(grid[-1])) for name, grid in grids.items()}
    best = max(list(last)[1 : 1 + len(found.kinds)], key=last.get)
    return Exhibit(
        "probes",
        "What the model answers, and what its features would allow",
        "Where the probe keeps a task that the model has lost, the features are still there and the heads are not; where both "
        f"fall, the features were lost. Probes are logistic regressions on {seen['training']} training images of the classes "
        f"seen (at most {_per_class(found)} a class), tested on {seen['test']} test images.",
        Table(["after task", "of task", *grids], rows),
        figure,
        f"At the end the model is right on {last['the model itself']:.1f} % (mean over tasks), the best probe on "
        f"{last[best]:.1f} % ({best.removeprefix('linear probe: ')}).",
    )


def _per_class(found: Study) -> int:
    return int(np.bincount(found.inside.samples.y[~found.inside.is_test]).max())


def over_time(found: Study) -> Exhibit | None:
    """The same question to the features of every checkpoint: all classes of the run so far."""
    if not found.fixed or len(found.views) < 2:
        return None
    tasks, columns = found.views, list(range(found.nb_tasks))
    grid = np.stack([found.fixed[task] for task in tasks])
    floor = found.fixed.get(-1, np.full(len(columns), np.nan))
    names = [*numbered(tasks), "fresh"]
    figure = plots.matrices(
        [("", np.vstack([grid, floor]))], rows=names, columns=numbered(columns), ylabel=AFTER, xlabel=OF, label="accuracy (%)"
    )
    old = [task for task in tasks[:-1]]
    then, now = np.nanmean([found.fixed[task][task] for task in old]), np.nanmean(grid[-1][old])
    way = "lost" if now < then else "gained"
    return Exhibit(
        "features-over-time",
        "The same question to the features of every checkpoint",
        "A linear probe for all classes of the run so far, those to come included, so that every row has the same question; "
        "the last row is a model with fresh weights. Down a column, falling numbers are information lost, rising ones gained.",
        Table(
            ["features after task", *(f"task {c + 1}" for c in columns)],
            [[str(n), *cells(*r)] for n, r in zip(names, [*grid, floor], strict=True)],
        ),
        figure,
        f"Old tasks have {way} {abs(now - then):.1f} points since each was learned ({then:.1f} then, {now:.1f} now, "
        f"{np.nanmean(floor[old]):.1f} with fresh weights).",
    )


def drift(found: Study) -> Exhibit | None:
    if not found.cka or len(found.views) < 2:
        return None
    tasks, columns = found.views, list(range(found.nb_tasks))
    figure = plots.matrices(
        [(KINDS[kind], grid) for kind, grid in found.cka.items()],
        rows=numbered(tasks),
        columns=numbered(columns),
        ylabel=AFTER,
        xlabel=OF,
        label="CKA",
        limits=(0, 1),
        digits=2,
    )
    rows = [
        [task + 1, of + 1, *cells(*(grid[row, of] for grid in found.cka.values()))]
        for row, task in enumerate(tasks)
        for of in tasks
        if of <= task
    ]
    kind, grid = next(iter(found.cka.items()))
    last = np.where(np.arange(len(columns)) < tasks[-1], grid[-1], np.nan)
    least = int(np.nanargmin(last)) if not np.isnan(last).all() else -1
    said = "" if least < 0 else f"At the end CKA of the {KINDS[kind].split(' (')[0]} is {np.nanmean(last):.2f} on average"
    said += "" if least < 0 else f" and lowest, {last[least]:.2f}, for task {least + 1}."
    return Exhibit(
        "drift",
        "How far features have moved since a task was learned",
        "Similarity (linear CKA, Kornblith et al. 2019, unbiased) between the features of a task's test images now and right "
        "after it was learned: 1 is the same up to rotation and scale, 0 unrelated; moved is not yet lost, see the probes.",
        Table(["after task", "of task", *(KINDS[kind] for kind in found.cka)], rows, digits=3),
        figure,
        said,
    )


# Task tokens.


def distances(found: Study) -> Exhibit | None:
    views = {task: view.tokens for task, view in found.inside.views.items() if view.tokens is not None and len(view.tokens) > 1}
    if not views:
        return None
    last = representation.distances(views[max(views)])
    off = np.where(np.eye(len(last), dtype=bool), np.nan, last)
    names = numbered(list(range(len(last))))
    figure = plots.matrices(
        [("", off)], rows=names, columns=names, ylabel="token of task", xlabel="token of task", label="distance", digits=2
    )
    rows = []
    for task, tokens in views.items():
        pairs = representation.distances(tokens)[np.triu_indices(len(tokens), 1)]
        rows.append(
            [
                task + 1,
                float(pairs.min()),
                float(pairs.mean()),
                float(pairs.max()),
                float(np.linalg.norm(tokens, axis=1).mean()),
            ]
        )
    i, j = np.unravel_index(np.nanargmin(off), off.shape)
    return Exhibit(
        "token-distances",
        f"Distances between task tokens after task {max(views) + 1}",
        "Euclidean; tokens that lie together ask the shared patches the same question. The table has every checkpoint.",
        Table(["after task", "least", "mean", "largest", "mean length of a token"], rows, digits=3),
        figure,
        f"Tokens {min(i, j) + 1} and {max(i, j) + 1} lie nearest, {off[i, j]:.2f} apart; the mean over pairs is "
        f"{np.nanmean(off):.2f}, with tokens {rows[-1][4]:.2f} long.",
    )


def token_plane(found: Study) -> Exhibit | None:
    views = {task: view.tokens for task, view in found.inside.views.items() if view.tokens is not None}
    if not views or len(views[max(views)]) < 3:
        return None
    points, kept = representation.plane(np.concatenate(list(views.values())))
    tasks = np.concatenate([np.arange(len(tokens)) for tokens in views.values()])
    when = np.concatenate([np.full(len(tokens), task) for task, tokens in views.items()])
    first = {task: points[(tasks == task) & (when == when[tasks == task].min())][0] for task in np.unique(tasks)}
    last = points[when == max(views)]
    moved = [float(np.linalg.norm(last[task] - first[task])) for task in first]
    rows = [[int(t) + 1, int(w) + 1, float(x), float(y)] for t, w, (x, y) in zip(tasks, when, points, strict=True)]
    most = int(np.argmax(moved))
    return Exhibit(
        "token-plane",
        "Task tokens in a plane, over tasks",
        "Classical multidimensional scaling of all tokens of all checkpoints: a dot for each, joined from one to the next, the "
        "last one large and named.",
        Table(["token of task", "after task", "x", "y"], rows, digits=3),
        plots.paths(points, tasks, when, kept=kept),
        f"Since it was learned a token has moved by {np.mean(moved):.2f} on average in this plane, most that of task "
        f"{most + 1}, by {moved[most]:.2f}.",
    )


def gaze(found: Study) -> Exhibit | None:
    """The attention of every token over the same images, side by side."""
    inside = found.inside
    if inside.attention is None or inside.attention.shape[-1] < 2:
        return None
    try:
        itself, patches = attention.over_patches(inside.attention)
    except ValueError:
        return None
    looks, (tokens, images) = attention.looks(itself, patches), attention.overlap(patches)
    shown = chosen(range(patches.shape[1]), TOKENS)
    maps = attention.upscaled(patches[:, shown], inside.pixels.shape[1])
    figure = plots.gazes(
        inside.pixels,
        maps,
        _of_images(found),
        ["image", *(f"token {token + 1}" if len(shown) < 8 else f"{token + 1}" for token in shown)],
    )
    rows = [[t + 1, *(100 * float(each[t]) for each in looks)] for t in range(patches.shape[1])]
    said = (
        f"A token spends {100 * looks.itself.mean():.0f} % of its attention on itself, from {100 * looks.itself.min():.0f} to "
    )
    said += f"{100 * looks.itself.max():.0f} %."
    if tokens == tokens:
        said += f" Two tokens' maps over one image have {100 * tokens:.0f} % in common, one token's maps over two images "
        said += f"{100 * images:.0f} %; 100 % would be the same map."
    if looks.spread.mean() > EVEN:
        said += f" All maps are nearly even (their entropy is {100 * looks.spread.mean():.0f} % of the most possible)."
    return Exhibit(
        "attention",
        "Where every task token looks, over the same images",
        "Each row is a test image, each column a token: bright patches are those it reads most (attention of the last "
        "TAB, mean over heads, each map on its own scale); what is on the token itself is not in the maps but in the table. "
        "The last row is an image answered with a class of another task, if there is one.",
        Table(["token of task", "on itself (%)", "spread over the patches (% of even)", "most on one patch (%)"], rows),
        figure,
        said,
    )


def _of_images(found: Study) -> list[str]:
    """What stands beside each image shown: its task and label, and what is answered where that is wrong."""
    answers, names = found.answers.get(max(found.views)), []
    for place in found.inside.shown:
        if answers is None:
            names.append("")
            continue
        (row,) = np.flatnonzero(answers.places == place)
        label, answer = int(answers.labels[row]), int(answers.answers[row])
        told = f"task {answers.tasks[row] + 1}"
        names.append(told if label == answer else f"{told},\nanswered\nin task {answers.task_of[answer] + 1}")
    return names


# Tasks.


def alike(found: Study) -> Exhibit | None:
    """Cosines between class means of different tasks, by the newest features."""
    if not found.kinds or found.nb_tasks < 2:
        return None
    kind, samples, sizes = found.kinds[0], found.inside.samples, found.answers[max(found.answers)].sizes
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    newest, rows = found.views[-1], ~found.inside.is_test
    if len(np.unique(samples.y)) != len(task_of):
        return None
    likeness = representation.likeness(found.inside.features(kind)[newest][rows], samples.y[rows], task_of)
    names = numbered(list(range(len(likeness))))
    bound = float(np.nanmax(np.abs(likeness)))
    figure = plots.matrices(
        [("", likeness)],
        rows=names,
        columns=names,
        ylabel="classes of task",
        xlabel="classes of task",
        label="mean cosine",
        limits=(-bound, bound),
        digits=2,
        colours="RdBu_r",
    )
    off = np.where(np.tri(len(likeness), k=-1, dtype=bool), likeness, np.nan)
    i, j = np.unravel_index(np.nanargmax(off), off.shape)
    counts = errors.confusion(found.answers[max(found.answers)])
    wrong = counts.sum() - np.trace(counts)
    share = f"; of {wrong} confusions between tasks, these two have {counts[i, j] + counts[j, i]}" if wrong else ""
    return Exhibit(
        "likeness",
        f"How alike the classes of tasks are, after task {newest + 1}",
        f"Mean cosine between class means of features ({KINDS[kind]}, training images, taken from the mean over classes); on "
        "the diagonal between different classes of one task: high ones are hard to tell apart.",
        Table(
            ["task", *(f"task {name}" for name in names)], [[n, *cells(*r)] for n, r in zip(names, likeness, strict=True)], 2
        ),
        figure,
        f"Tasks {j + 1} and {i + 1} are most alike ({likeness[i, j]:.2f}){share}.",
    )
