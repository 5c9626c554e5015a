"""Values of options: what is written, as text or already as a value, to what an option holds; and errors in words."""

import dataclasses
import difflib
import math
import os
import re
import reprlib
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from continual.errors import OptionsError, some
from continual.registry import OF_A_SCRIPT

NONE = ("none", "null")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WORDS = {
    bool: ("true or false", "truth values"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    NoneType: ("none", ""),
}


class Quoted(str):
    """Text between quotes in YAML: never a number, a truth value or none."""


def as_it_is(value: Any) -> Any:
    """A value of Python, in whose lists a text is no number."""
    if isinstance(value, list | tuple):
        return [Quoted(item) if isinstance(item, str) else as_it_is(item) for item in value]
    return value


def checked(f: dataclasses.Field, value: Any, where: str, *, path: bool = False) -> Any:
    """The value in the type of an option. Raises OptionsError on another type, no choice, or out of range."""
    key, kind = f.name, f.type
    empty = empty_of(f)
    try:
        result = empty if empty is not None and is_none(value) else _typed(kind, value)
    except ValueError:
        raise OptionsError(f"{where}: {key}: expects {in_words(kind)}, not {shown(value)}") from None
    if path:
        if empty is None and is_none(value):
            raise OptionsError(f"{where}: {key}: cannot be none; a folder of that name is ./none")
        result = tuple(_at_home(each, key, where) for each in result) if kind is not str else _at_home(result, key, where)
    for item in result if isinstance(result, tuple) else (result,):
        _check_item(f, item, where)
    if f.metadata["refused"] and result != f.default:
        raise OptionsError(f"{where}: {key}: {f.metadata['refused']}")
    return result


def _check_item(f: dataclasses.Field, item: Any, where: str) -> None:
    """Raise OptionsError if a value, or one of a list, is no choice of the option or out of its range."""
    within = f.metadata["within"]
    if f.metadata["choices"] and item not in (choices := choices_of(f)):
        if not choices:
            raise OptionsError(f"{where}: {f.name}: there is no {shown(item)}; none is registered {OF_A_SCRIPT}")
        told = ", ".join(choice or "''" for choice in choices)
        near = nearest(item, filter(None, choices))
        raise OptionsError(f"{where}: {f.name}: {shown(item)} is not one of {told}; the nearest is {near}")
    if within and isinstance(item, int | float) and not within[1](item):
        raise OptionsError(f"{where}: {f.name}: must be {within[0]}, not {item}")


def choices_of(f: dataclasses.Field) -> tuple[str, ...]:
    """The choices of an option as they are now; none: any value of its type will do."""
    choices = f.metadata["choices"]
    return tuple(choices() if callable(choices) else choices)


def empty_of(f: dataclasses.Field) -> Any:
    """What the word none means to an option that is off when it is empty; None for any other."""
    if all(get_origin(kind) is tuple for kind in kinds_of(f.type)):
        return ()
    return "" if f.default == "" else None


def _at_home(path: str, key: str, where: str) -> str:
    """The path with `~` and `~user` as the folder that they mean. Raises OptionsError if nobody knows it."""
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise OptionsError(f"{where}: {key}: no home folder is known for {shown(whole.partition('/')[0])}")
    if "\0" in whole:
        raise OptionsError(f"{where}: {key}: {shown(path)} is no path: it holds a zero byte")
    return whole


# --- types ---


def kinds_of(kind: Any) -> tuple:
    """The types that an annotation allows."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def is_kind(kind: Any) -> bool:
    """Whether an annotation is one that values can be read for."""
    return all(
        bool(get_args(each)) and is_kind(get_args(each)[0]) if get_origin(each) is tuple else each in _WORDS
        for each in kinds_of(kind)
    )


def is_none(value: Any) -> bool:
    """Whether a value, as written, is none."""
    return value is None or (isinstance(value, str) and not isinstance(value, Quoted) and value.lower() in NONE)


def _typed(kind: Any, value: Any) -> Any:
    """`value` as `kind`, an annotation of a section; a bare item stands for a list of one. Raises ValueError."""
    kinds = sorted(kinds_of(kind), key=lambda each: each is not NoneType)  # the word none is none before it is text
    for attempt in (value,) if isinstance(value, list | tuple) else (value, [value]):
        for each in kinds:
            try:
                return _typed_as(each, attempt)
            except (ValueError, OverflowError):
                continue
    raise ValueError(value)


def _typed_as(kind: Any, value: Any) -> Any:
    word = value.lower() if isinstance(value, str) and not isinstance(value, Quoted) else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is NoneType and is_none(value):
        return None
    if kind is bool and (isinstance(value, bool) or word in _TRUTH):
        return _TRUTH.get(word, value)
    if kind is int and (_INTEGER.fullmatch(word) if word else number and isinstance(value, int)):
        return int(value)
    if kind is float and (word or number) and math.isfinite(float(value)):
        return float(value)
    if kind is str and isinstance(value, str):
        return str(value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed_as(get_args(kind)[0], item) for item in value)
    raise ValueError(value)


# --- words of an error: short, and on one line ---


def in_words(kind: Any, *, several: bool = False) -> str:
    """A type as a person would say it."""
    if len(kinds := kinds_of(kind)) > 1:
        return " or ".join(in_words(each) for each in kinds)
    if get_origin(kind) is tuple:
        return ("lists" if several else "a list") + " of " + in_words(get_args(kind)[0], several=True)
    return _WORDS[kind][several]


def shown(value: Any) -> str:
    """A value from outside, at a bounded length and without line breaks."""
    text = reprlib.repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def shown_all(values: Sequence[Any]) -> str:
    """The first few of some values from outside."""
    return some([shown(value) for value in values])


def line(error: object) -> str:
    """The message of a library on one line, at a bounded length."""
    return " ".join(str(error).split())[:200]


def nearest(word: str, words: Iterable[str]) -> str:
    """The most similar of some words."""
    return difflib.get_close_matches(word[:200], list(words), n=1, cutoff=0.0)[0]
