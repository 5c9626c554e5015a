"""What a method brings along: the settings that it implies, and options of its own, whose keys begin with its name.

To find them is to import the method, and with it torch, so nothing here is asked before a method or such a key is named.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, get_type_hints

from continual.errors import OptionsError
from continual.options.schema import FIELDS, IGNORED, Section
from continual.options.values import checked, is_kind
from continual.registry import METHODS


def implied(method: str) -> dict[str, Any]:
    """The options that choosing a method sets, flat. Raises OptionsError if there is no such method."""
    return dict(getattr(METHODS.find(method), "settings", None) or {})


def own_section(method: str) -> type[Section] | None:
    """The section of a method's own options, if it has one. Raises OptionsError if it is not as it must be."""
    section = getattr(METHODS.find(method), "Options", None)
    if section is None:
        return None
    where = f"method {method}"
    sound = isinstance(section, type) and issubclass(section, Section) and "__dataclass_fields__" in vars(section)
    if not sound or not section.__dataclass_params__.frozen:
        raise OptionsError(f"{where}: its Options are no frozen dataclass derived from Section")
    for f in dataclasses.fields(section):
        if not f.name.startswith(f"{method}_") or owner(f.name) != method:
            raise OptionsError(f"{where}: {f.name}: the key must begin with {method}_, and with the name of no other method")
        if f.name in FIELDS or f.name == IGNORED:
            raise OptionsError(f"{where}: {f.name}: that key is taken; choose another")
        if "help" not in f.metadata:
            raise OptionsError(f"{where}: {f.name}: must be written as option(default, help)")
        if isinstance(f.type, str):  # of a module with `from __future__ import annotations`
            f.type = get_type_hints(section)[f.name]
        if not is_kind(f.type):
            raise OptionsError(f"{where}: {f.name}: may be of bool, int, float, str, None and tuples of them")
        if f.default is not None:
            checked(f, f.default, where)
    return section


def owner(key: str) -> str:
    """The method with whose name a key begins, the longest if there are several; "" if there is none."""
    return max((name for name in METHODS.names() if key.startswith(f"{name}_")), key=len, default="")


def own_field(key: str) -> dataclasses.Field | None:
    """The option of that key, if a method has it."""
    found = (f for section in methods_with_options([owner(key)]).values() for f in dataclasses.fields(section))
    return next((f for f in found if f.name == key), None)


def methods_with_options(names: Iterable[str] | None = None) -> dict[str, type[Section]]:
    """Method -> the section of its own options, of the methods that have one; names: of these only."""
    found = {}
    for name in METHODS.names() if names is None else filter(None, names):
        try:
            section = own_section(name)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("continual.methods"):
                raise
            continue  # this package names it, and has no module for it
        if section is not None:
            found[name] = section
    return found
