"""How classes are cut into tasks and put in order: plain arithmetic, without torch, so that options are checked at once."""

import difflib
from collections.abc import Sequence

from continual.errors import OptionsError, some

# Classes of the data sets whose size is known before they are read.
NB_CLASSES = {
    **{"digits": 10, "glyphs": 50, "cifar": 100, "cifar100": 100, "cifar10": 10},
    **{"imagenet100": 100, "imagenet1000": 1000},
}


def task_sizes(nb_classes: int, initial_increment: int, increment: int | Sequence[int]) -> tuple[int, ...]:
    """The number of classes each task brings.

    The first task has `initial_increment` classes (0: as many as the next; `nb_classes` or more: all of them, in one task). A
    number gives the size of every later task, a list the size of each.

    Raises:
        OptionsError: sizes that do not add up to `nb_classes`.
    """
    if initial_increment < 0:
        raise OptionsError(f"initial_increment: {initial_increment} is below 0")
    if initial_increment >= nb_classes:
        return (nb_classes,)
    first = (initial_increment,) * (initial_increment > 0)
    if not isinstance(increment, int):
        sizes = first + tuple(int(size) for size in increment)
        if not increment or min(sizes) < 1:
            raise OptionsError(f"increment: every task needs one class or more, got {list(increment)}")
        if sum(sizes) != nb_classes:
            raise OptionsError(
                f"initial_increment {initial_increment} and then {some(increment)} add up to {sum(sizes)}, "
                f"the data has {nb_classes} classes"
            )
        return sizes
    if increment < 1:
        raise OptionsError(f"increment: {increment} is below 1")
    nb_further, rest = divmod(nb_classes - initial_increment, increment)
    if rest:
        raise OptionsError(
            f"initial_increment {initial_increment} and then steps of {increment} do not add up to {nb_classes} classes: "
            f"{rest} would be left after {initial_increment + nb_further * increment}"
        )
    return first + (increment,) * nb_further


def by_name(class_order: Sequence[int | str] | None) -> bool:
    """Whether a class order names its classes: it does unless all of it is class ids."""
    return any(isinstance(item, str) for item in class_order or ())


def checked_order(class_order: Sequence[int | str] | None, nb_classes: int, names: Sequence[str] = ()) -> tuple[int, ...]:
    """The class order as class ids, 0 to nb_classes - 1 if none is given. names: the name of every class id.

    Raises:
        OptionsError: classes that are given twice, left out, or not among the data's classes.
    """
    if class_order is None:
        return tuple(range(nb_classes))
    named = by_name(class_order)
    order = _ids(class_order, names) if named else tuple(int(class_id) for class_id in class_order)
    faults = {
        "given twice": sorted({class_id for class_id in order if order.count(class_id) > 1}),
        f"outside 0 to {nb_classes - 1}": sorted({class_id for class_id in order if not 0 <= class_id < nb_classes}),
        "left out": sorted(set(range(nb_classes)) - set(order)),
    }
    if any(faults.values()):
        shown = {what: [repr(names[each]) for each in ids] if named else ids for what, ids in faults.items()}
        raise OptionsError(
            "class_order: " + "; ".join(f"{what}: {some(classes)}" for what, classes in shown.items() if classes)
        )
    return order


def _ids(words: Sequence[int | str], names: Sequence[str]) -> tuple[int, ...]:
    """The class id behind each name."""
    ids = {name: class_id for class_id, name in enumerate(names)}
    for word in map(str, words):
        if word not in ids:
            nearest = difflib.get_close_matches(word[:200], list(ids), n=1, cutoff=0.0)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            number = " (a number among names is a name, too; numbers alone are class ids)" if word.isdecimal() else ""
            raise OptionsError(f"class_order: there is no class {word[:200]!r}{hint}{number}")
        if list(names).count(word) > 1:
            raise OptionsError(f"class_order: several classes are called {word!r}; use class ids")
    return tuple(ids[word] for word in map(str, words))


def joint_by_accident(
    nb_classes: int, initial_increment: int, increment: int | Sequence[int], *, defaults: tuple[int, int]
) -> str:
    """Why all classes come in one task although nobody asked for that, and what makes it several; empty if somebody did.

    Somebody did who set an option to the very number of classes. defaults: where both stand if nobody sets them.
    """
    if nb_classes == 1 or len(task_sizes(nb_classes, initial_increment, increment)) > 1:
        return ""
    if initial_increment:
        key, size, default = "initial_increment", initial_increment, defaults[0]
    else:
        key, size, default = "increment", increment if isinstance(increment, int) else 0, defaults[1]
    if not size or size == nb_classes != default:
        return ""
    remedy = "--initial-increment and --increment with sizes that add up to that make several tasks"
    if initial_increment and (nb_tasks := _nb_tasks(nb_classes, increment)) > 1:
        remedy = f"--initial-increment 0 makes {nb_tasks} tasks, of the sizes that increment says"
    return f"all {nb_classes} classes come at once, in one task, because {key} is {size}; {remedy}"


def _nb_tasks(nb_classes: int, increment: int | Sequence[int]) -> int:
    """How many tasks `increment` alone would make; 0 if it does not fit."""
    try:
        return len(task_sizes(nb_classes, 0, increment))
    except OptionsError:
        return 0
