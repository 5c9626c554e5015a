"""The points of a sweep: `sweep: [lr=1e-4,1e-3, kd=0,1]` is a grid; with `sweep_draws: N` so many points are drawn from it.

A value may be a range, `lr=1e-4..1e-2`, for draws: log-uniform, or uniform if it begins at 0 or below. Items of a list have a +
between them (`freeze_ft=sab+heads`). Every value and every point is checked as any other option, before anything starts.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from continual.errors import OptionsError
from continual.options import own
from continual.options.schema import FIELDS, MAY_DIFFER, Options
from continual.options.values import checked, kinds_of, nearest, shown

VALIDATION = 0.2  # share of the training images that a sweep is judged by, if the options do not say
KEPT = {
    **dict.fromkeys(MAY_DIFFER, "it changes no result, or is of one call"),
    **dict.fromkeys(("data_set", "validation", "skip_corrupt"), "points are compared on the same images"),
    **dict.fromkeys(("initial_increment", "increment", "class_order"), "points are compared on the same tasks"),
    **dict.fromkeys(("seed", "seeds"), "a seed is no setting to choose; --seeds runs every point with each"),
    "debug": "a trial chooses nothing",
}
MOST = 10_000  # points
RANGE = ".."

Replace = Callable[..., Options]


def points(options: Options, replace: Replace) -> list[tuple[dict[str, Any], Options]]:
    """The swept keys with their values, and all options, of every point; no two are alike.

    replace: see `parser.replace`. Raises OptionsError in one line.
    """
    axes = dict(_axis(word) for word in options.run.sweep)
    if len(axes) < len(options.run.sweep):
        raise OptionsError("sweep: a key stands twice")
    chosen = _drawn(axes, options) if options.run.sweep_draws else _grid(axes)
    plain = {"sweep": (), "sweep_draws": None, "sweep_prune": False, "sweep_tasks": FIELDS["sweep_tasks"].default}
    found = []
    for values in chosen:
        try:
            found.append((values, replace(options, **plain, **values)))
        except OptionsError as error:
            raise OptionsError(f"sweep: {in_words(values)}: {str(error).removeprefix('changed options: ')}") from None
    return found


def in_words(values: dict[str, Any]) -> str:
    """A point as it could be written on the command line."""
    return " ".join(f"{key}={_word(value)}" for key, value in values.items())


def _word(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "+".join(map(_word, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _axis(word: str) -> tuple[str, list[Any] | tuple[float, float]]:
    """key=a,b,c -> the key and its values; key=a..b -> the key and both ends."""
    written, equals, text = word.partition("=")
    key = written.strip().lstrip("-").replace("-", "_")
    f = FIELDS.get(key) or own.own_field(key)
    if not equals:
        raise OptionsError(f"sweep: {shown(word)} is not key=value,value,...")
    if f is None:
        raise OptionsError(f"sweep: {shown(written)}: no such option; the nearest is {nearest(key, FIELDS)}")
    if key in KEPT:
        raise OptionsError(f"sweep: {key} cannot be swept: {KEPT[key]}")
    where = f"sweep: {shown(word)}"
    if RANGE in text:
        return key, _range(f, text, where)
    listed = any(kind not in (bool, int, float, str, type(None)) for kind in kinds_of(f.type))
    values = [checked(f, each.split("+") if listed and each != "none" else each, where) for each in text.split(",")]
    if len({repr(value) for value in values}) < len(values):
        raise OptionsError(f"{where}: a value stands twice")
    return key, values


def _range(f: Any, text: str, where: str) -> tuple[float, float]:
    low, high = (checked(f, each, where) for each in text.split(RANGE, 1))
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise OptionsError(f"{where}: a range is of numbers")
    if not low < high:
        raise OptionsError(f"{where}: the range ends before it begins")
    return low, high


def _grid(axes: dict[str, list[Any] | tuple[float, float]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{}]
    for key, values in axes.items():
        if isinstance(values, tuple):
            raise OptionsError(f"sweep: {key}: a range needs --sweep-draws N")
        found = [{**point, key: value} for point in found for value in values]
        if len(found) > MOST:
            raise OptionsError(f"sweep: more than {MOST} points; --sweep-draws N takes some of them")
    return found


def _drawn(axes: dict[str, list[Any] | tuple[float, float]], options: Options) -> list[dict[str, Any]]:
    """So many different points, or all that there are; the same for the same seed."""
    rng = random.Random(f"sweep {options.run.seed} {sorted(options.run.sweep)}")
    found: dict[str, dict[str, Any]] = {}
    for _ in range(100 * options.run.sweep_draws):
        point = {key: _draw(rng, values) for key, values in axes.items()}
        found.setdefault(repr(point), point)
        if len(found) == options.run.sweep_draws:
            break
    return list(found.values())


def _draw(rng: random.Random, values: list[Any] | tuple[float, float]) -> Any:
    if isinstance(values, list):
        return rng.choice(values)
    low, high = values
    number = math.exp(rng.uniform(math.log(low), math.log(high))) if low > 0 else rng.uniform(low, high)
    if isinstance(low, int):
        return min(high, max(low, round(number)))
    return min(high, max(low, float(f"{number:.3g}")))
