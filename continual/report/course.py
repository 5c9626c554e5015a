"""How a run came to its results: losses and learning rates on the way, and what it cost."""

from typing import Any

from continual.errors import CheckpointError
from continual.report import figures
from continual.report.exhibit import Chapter, Exhibit, Table, chapter
from continual.report.figures import Curve
from continual.report.reading import Past
from continual.runs.record import LOSS
from continual.seeing.tables import amount

NOT_TRAINED = ("evaluation", "exemplars")  # lines of a ledger that are no phase
BYTES = {
    "peak_host_memory": "peak memory, host",
    "peak_device_memory": "peak memory, device",
    "model_bytes": "model",
    "teacher_bytes": "teacher",
    "exemplar_bytes": "exemplars",
}


def training(past: Past) -> Chapter:
    return chapter("On the way", past, losses, rates, tokens)


def cost(past: Past) -> Chapter:
    return chapter("What it cost", past, spent, by_part, by_task)


def _steps(past: Past) -> list[list[Any]]:
    """What begins the row of every evaluation: its number, task, phase and epoch."""
    if not past.evaluations:
        raise CheckpointError("evaluations.jsonl tells of no evaluation (yet)")
    rows = []
    for number, record in enumerate(past.evaluations, start=1):
        rows.append([number, record["task"] + 1, record.get("phase"), record.get("epoch", -1) + 1])
    return rows


def _over_evaluations(past: Past, keys: dict[str, str], *, digits: int = 4, **how: Any) -> tuple[Table, Any]:
    """A table and a picture of what the evaluations say under these keys; values: how the keys are called."""
    begin = _steps(past)
    rows = [[*row, *(record.get(key) for key in keys)] for row, record in zip(begin, past.evaluations, strict=True)]
    lines = []
    for place, (name, words) in enumerate(keys.items()):
        points = [
            (row[0], record[name]) for row, record in zip(begin, past.evaluations, strict=True) if record.get(name) is not None
        ]
        if points:
            lines.append(Curve(words, *map(list, zip(*points, strict=True)), place=place))
    ends = [row[0] for row, record in zip(begin, past.evaluations, strict=True) if record.get("final")]
    picture = figures.curves(lines, xlabel="evaluation", percent=False, ends=ends, **how) if lines else None
    return Table(["evaluation", "task", "phase", "epoch", *keys.values()], rows, digits=digits), picture


def losses(past: Past) -> Exhibit:
    found = dict.fromkeys(key for record in past.evaluations for key in record if key.startswith(LOSS))
    keys = {
        "test_loss": "on the test images",
        "train_loss": "in training, all",
        **{key: key.removeprefix(LOSS) for key in found},
    }
    table, picture = _over_evaluations(past, keys, ylabel="loss")
    return Exhibit(
        "losses",
        "Losses",
        "One point for each evaluation: training losses are means over the epoch before it; thin lines are the ends of tasks.",
        table,
        picture,
    )


def rates(past: Past) -> Exhibit:
    found = [record["train_lr"] for record in past.evaluations if record.get("train_lr")]
    wide = bool(found) and 0 < 100 * min(found) < max(found)
    table, picture = _over_evaluations(past, {"train_lr": "learning rate"}, digits=8, ylabel="learning rate", log=wide)
    return Exhibit("learning-rate", "Learning rate", "The rate of the last step before each evaluation.", table, picture)


def tokens(past: Past) -> Exhibit | None:
    """Of methods that have task tokens."""
    if not any("token_mean_dist" in record for record in past.evaluations):
        return None
    keys = {f"token_{name}_dist": words for name, words in (("max", "largest"), ("mean", "mean"), ("min", "least"))}
    table, picture = _over_evaluations(past, keys, ylabel="distance")
    reads = "Euclidean distances between the task tokens at each evaluation: tokens that come together ask the same question."
    return Exhibit("task-tokens", "Distances between task tokens", reads, table, picture)


def books(past: Past) -> dict[str, Any]:
    """The ledger in the newest checkpoint. Raises CheckpointError."""
    if not past.stored:
        raise CheckpointError("what each task cost stands in the checkpoints, of which there are none (any more)")
    return past.stored[-1].manifest.get("spent") or {}


def cost_of(past: Past) -> dict[str, Any]:
    """As `cost` of summary.json; of a run that is going on, what the newest checkpoint knows of it. Empty if nothing does."""
    if past.summary and past.summary.get("cost"):
        return past.summary["cost"]
    if not past.stored or not (found := books(past)):
        return {}
    trained = [line for line in found["lines"] if line[3]]
    return {
        "images": sum(line[2] for line in trained),
        "steps": sum(line[3] for line in trained),
        "flops": sum(line[5] for line in found["lines"]),
        "flops_training": sum(line[5] for line in trained),
        "seconds": found["seconds"],
        "peak_host_memory": found["peaks"][0],
        "peak_device_memory": found["peaks"][1] or None,
    }


def seconds_of(past: Past) -> float | None:
    """What a run took, or has taken so far."""
    if past.summary and "time" in past.summary:
        return float(past.summary["time"])
    return float(past.stored[-1].manifest["seconds"]) if past.stored else None


def flops_of(past: Past) -> int | None:
    """What a run computed, or has computed so far."""
    found = cost_of(past).get("flops")
    return None if found is None else int(found)


def _known_cost(past: Past) -> dict[str, Any]:
    found = cost_of(past)
    if not found:
        raise CheckpointError("what it cost is not known: neither a summary nor a checkpoint tells")
    return found


def spent(past: Past) -> Exhibit:
    found = _known_cost(past)
    so_far = "" if past.done else "up to the newest checkpoint; "
    rows: list[list[Any]] = [["seconds, all", seconds_of(past), ""]]
    for name, words in (("images", "images in training"), ("steps", "training steps")):
        rows.append([words, found.get(name), ""])
    for name, words in (("images_evaluated", "images evaluated"), ("images_for_exemplars", "images to choose exemplars from")):
        rows.append([words, found.get(name), ""])
    for name, words in (("flops", "FLOPs, all"), ("flops_training", "FLOPs in training")):
        rows.append([words, int(found.get(name) or 0), amount(found.get(name) or 0, "FLOP")])
    for name, words in BYTES.items():
        paths = name == "exemplar_bytes" and found.get("exemplars_are_paths")
        rows.append(
            [f"bytes: {words}", found.get(name), "paths" if paths else amount(found[name], "B") if found.get(name) else ""]
        )
    rows = [row for row in rows if row[1] is not None]
    reads = f"As the ledger of the run has it, {so_far}a multiplication and an addition are two FLOPs."
    return Exhibit("cost", "Images, steps, memory", reads, Table(["", "number", "that is"], rows, digits=1))


def by_part(past: Past) -> Exhibit:
    found = dict(_known_cost(past)["seconds"])
    whole = sum(found.values()) or 1.0
    rows = [[part, float(seconds), 100 * seconds / whole] for part, seconds in found.items()]
    most = max(found, key=found.get)
    return Exhibit(
        "seconds",
        "Seconds by part",
        "Where the time of the main process went; on a GPU a part that waits for it also pays for the parts before.",
        Table(["part", "seconds", "share (%)"], rows, digits=1),
        figures.beams(list(found), [row[1] for row in rows], xlabel="seconds"),
        f"{most} took {100 * found[most] / whole:.0f} % of the time.",
    )


def by_task(past: Past) -> Exhibit | None:
    lines = books(past).get("lines")
    if not lines:
        return None
    kinds = list(dict.fromkeys([*(line[1] for line in lines if line[1] not in NOT_TRAINED), *NOT_TRAINED]))
    nb = 1 + max(line[0] for line in lines)
    seconds = [[sum(line[4] for line in lines if line[:2] == [task, kind]) for task in range(nb)] for kind in kinds]
    rows = [[line[0] + 1, line[1], line[2], line[3], float(line[4]), int(line[5])] for line in lines]
    return Exhibit(
        "cost-by-task",
        "Seconds of every task",
        "The phases of the method, evaluations and the choice of exemplars on top of each other, as of the newest checkpoint.",
        Table(["task", "work", "images", "steps", "seconds", "FLOPs"], rows, digits=1),
        figures.columns(range(1, nb + 1), list(zip(kinds, seconds, strict=True)), xlabel="task", ylabel="seconds"),
    )
