"""What goes by a name: methods, encoders, losses, data sets, selection rules and metrics; exhibits on the page of a run.

Some are of this package, and are imported when they are asked for; others come from a user's script, before it runs main.py.
Nothing here imports torch.
"""

import difflib
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from continual.errors import OptionsError

OF_A_SCRIPT = "(what a script registers, only that script knows: MAIN=SCRIPT)"  # said where a name is not known
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class Register:
    """Things by name. what: the kind of thing, for errors. builtin: name -> "module:attribute" of this package."""

    def __init__(self, what: str, builtin: Mapping[str, str] | None = None):
        self.what = what
        self._builtin = dict(builtin or {})
        self._outside: dict[str, Any] = {}

    def add(self, name: str, thing: Any) -> None:
        """Put in a thing from outside; it takes the place of an earlier one. Raises OptionsError on a bad or taken name."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise OptionsError(f"{self.what} {name!r}: a name is of small letters, digits and _, and begins with a letter")
        if name in self._builtin:
            raise OptionsError(f"{self.what} {name!r}: that name is taken by one of this package; choose another")
        self._outside[name] = thing

    def put(self, name: str, thing: Any) -> None:
        """Put in a thing from outside, whatever signs its name is of; upper and lower case are the same.

        It takes the place of an earlier one, and of one of this package.
        """
        self._outside[name.lower()] = thing

    def find(self, name: str) -> Any:
        """The thing of that name. Raises OptionsError naming the nearest if there is none."""
        if name in self._outside:
            return self._outside[name]
        if name not in self._builtin:
            near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise OptionsError(f"there is no {self.what} {name[:80]!r}{hint} {OF_A_SCRIPT}")
        module, _, attribute = self._builtin[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def names(self) -> list[str]:
        """All names, those of this package first."""
        return list({**self._builtin, **self._outside})

    def told(self, name: str) -> str:
        """A thing with its kind, such as "method lwf"."""
        return f"{self.what} {name}"

    def outside(self) -> dict[str, Any]:
        """What came from outside, by name."""
        return dict(self._outside)

    def remove(self, name: str) -> None:
        """Forget a thing from outside, if it is there."""
        self._outside.pop(name, None)


METHODS = Register(
    "method",
    {
        "dytox": "continual.methods.dytox:DyTox",
        "joint": "continual.methods.joint:Joint",
        "finetuning": "continual.methods.finetuning:Finetuning",
        "rehearsal": "continual.methods.rehearsal:Rehearsal",
        "icarl": "continual.methods.icarl:ICaRL",
        "wa": "continual.methods.wa:WA",
        "podnet": "continual.methods.podnet:PODNet",
        "bic": "continual.methods.bic:BiC",
        "der": "continual.methods.der:DER",
    },
)
ENCODERS = Register("encoder", {"convit": "continual.encoders:convit", "vit": "continual.encoders:vit"})
LOSSES = Register("loss")
DATA_SETS = Register("data set")
RULES = Register(
    "selection rule",
    {name: f"continual.rehearsal:{name}" for name in ("random", "closest", "furthest", "icarl")},
)
METRICS = Register("metric")
OF_A_RUN = (METHODS, ENCODERS, LOSSES, DATA_SETS, RULES, METRICS)
EXHIBITS = Register("exhibit")


def lacking(names: Sequence[str]) -> list[str]:
    """Of what a run was made with, such as "method lwf", what no script has registered here."""
    here = {register.told(name) for register in OF_A_RUN for name in register.outside()}
    return [name for name in names if name not in here]
