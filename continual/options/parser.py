"""How options are read from their YAML layers and the command line, and written down again.

YAML and command line are flat (`embed_dim: 384`, `--embed-dim 384`), and a key belongs to exactly one section. Later
layers win: defaults, the stored options of `--resume DIR`, the YAML files of `--options` from left to right, the
command line. What a `method` implies stands directly below the layer that names it. A switch `--x` has its opposite
`--no-x` (`--no-amp`: `--amp`), `none` empties what may be empty, and a path may begin with `~`.

Nothing here imports torch, unless a method is named, so a wrong option is answered at once, by an OptionsError of one line.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

import yaml

from continual.errors import CheckpointError, OptionsError, Refused, plain
from continual.files import replacing
from continual.options import own, sweeping
from continual.options.schema import (
    FIELDS,
    FOLLOWS,
    IGNORED,
    KEPT_BY_A_BRANCH,
    PATHS,
    PER_CALL,
    SECTIONS,
    STORED,
    Conflict,
    Options,
    Section,
    branched,
    check_installed,
    flat,
    resumed,
)
from continual.options.values import NONE, Quoted, as_it_is, checked, choices_of, kinds_of, line, nearest, shown
from continual.registry import METHODS

COMMAND_LINE = "command line"
CHECK = "DYTOX_CHECK"  # environment: read the options, then end

Entry = tuple[str, Any, str]  # key, value as written, and where it stands
Layer = dict[str, tuple[Any, str]]  # key -> value of its type, and where it stands


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line (the program's name left out). `--help` prints and exits.

    Raises OptionsError, and CheckpointError if `resume` names a file that is no checkpoint.
    """
    command = _layer(_read_command_line(argv))
    paths, _ = command.get("options", ((), ""))
    given = [*(_layer(_read_yaml(path)) for path in paths), command]
    resume, where = {key: value for layer in given for key, value in layer.items()}.get("resume", ("", ""))
    stored = []
    if resume and "branch" in command:
        raise OptionsError(f"{where}: branch, resume: a run that is resumed is a branch already, or none")
    if resume:
        folder, file = resumed(resume)
        if file and not file.endswith(".pt"):
            if os.path.exists(resume):
                raise CheckpointError(f"{where}: resume: {resume} is neither a folder nor a checkpoint, FILE.pt")
            raise OptionsError(f"{where}: resume: no such folder: {resume}")
        if (path := Path(folder, STORED)).exists():
            stored = [_layer(_read_yaml(path))]
    branch, where = {key: value for layer in given for key, value in layer.items()}.get("branch", ("", ""))
    if branch and not resume:
        return _branch(branched(branch)[0], where, given)
    options = _build(*stored, *given)
    if options.run.sweep:
        sweeping.points(options, replace)  # all of them must do
    return options


def _branch(folder: str, where: str, given: Sequence[Layer]) -> Options:
    """Options above those of the run to branch from. Raises OptionsError if it is none, or for a key that a branch keeps."""
    path = Path(folder, STORED)
    if folder and not path.exists():
        raise OptionsError(f"{where}: branch: {folder} is not the folder of a run: it has no {STORED}")
    stored = [_layer(_read_yaml(path))] if folder else []
    options = _build(*stored, *given)
    if folder:
        before, now = flat(_build(*stored)), flat(options)
        for key in (key for key in KEPT_BY_A_BRANCH if before[key] != now[key]):
            place = next((layer[key][1] for layer in reversed(given) if key in layer), where)
            told = f"{shown(before[key])} in the run to branch from, not {shown(now[key])}: {KEPT_BY_A_BRANCH[key]}"
            raise OptionsError(f"{place}: {key}: {told}")
    return options


def parse_or_exit(argv: Sequence[str] | None = None) -> Options:
    """`parse` for a program: what is wrong goes to standard error, once for all processes, with its exit code.

    Where train.sh only asks whether the options are right (DYTOX_CHECK), a program ends here in any case.
    """
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        check_installed(options)
    except Refused as error:
        if os.environ.get("RANK", "0") == "0":
            print(plain(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    if os.environ.get(CHECK):
        sys.exit(0)
    return options


def replace(options: Options, /, **changes: Any) -> Options:
    """The same options but for `changes`, flat and checked as any other; another method implies its settings.

    Raises:
        OptionsError: a change that is not accepted.
    """
    changed = _layer([(key, as_it_is(value), "changed options") for key, value in changes.items()])
    kept = flat(options)
    if "method" in changed and changed["method"][0] != options.model.method:
        kept = {key: value for key, value in kept.items() if key in FIELDS}
    return _build({key: (value, "") for key, value in kept.items()}, changed)


def difference(a: Options, b: Options) -> list[str]:
    """The keys whose values differ, or that only one has, in the order of the sections."""
    one, other = flat(a), flat(b)
    return [key for key in {**one, **other} if key not in one or key not in other or one[key] != other[key]]


def to_yaml(options: Options) -> str:
    """YAML that repeats the run when given to `--options`; what belongs to one call (resume, …) is left out."""
    parts = []
    for section in options.sections():
        kept = {f.name: getattr(section, f.name) for f in fields(section) if f.name not in PER_CALL}
        text = yaml.dump(kept, Dumper=_Dumper, sort_keys=False, width=120)
        parts.append(f"# {_title(section)}\n{text}")
    return "\n".join(parts)


def _title(section: Section | type[Section]) -> str:
    """What a section is called, on one line."""
    return " ".join(str(section.__doc__).split())


def dump(options: Options, path: Path) -> None:
    """Write `to_yaml` to a file, which then holds all of it or what it held before. Raises OSError."""
    with replacing(path) as file:
        file.write(to_yaml(options).encode())


# --- layers ---


def _build(*layers: Layer) -> Options:
    """Options from layers, later ones winning; where options do not go together, the error names where they stand."""
    given = {key: entry for layer in _with_implied(layers) for key, entry in layer.items()}
    sections = {name: _section(section, given) for name, section in SECTIONS.items()}
    options = Options(**sections, own=_own(given, Options(**sections)))
    try:
        options.check()
    except Conflict as conflict:
        places = dict.fromkeys(given[key][1] for key in conflict.keys if key in given and given[key][1])
        raise OptionsError(f"{' and '.join(places) or 'defaults'}: {conflict}") from None
    return options


def _section(section: type[Section], given: Layer) -> Section:
    """A section with what is given for it."""
    return section(**{f.name: given[f.name][0] for f in fields(section) if f.name in given})


def _with_implied(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, and what the method that wins implies directly below the one that names it."""
    naming = [number for number, layer in enumerate(layers) if "method" in layer]
    if not naming:
        return [*layers]
    last = naming[-1]
    method, where = layers[last]["method"]
    if not method:
        return [*layers]
    place = f"{where} (method {method})".strip()
    implied = _layer([(key, as_it_is(value), place) for key, value in own.implied(method).items()])
    return [*layers[:last], implied, *layers[last:]]


def _own(given: Layer, options: Options) -> Section | None:
    """The section of the named method's own options. Raises OptionsError if those of another method are given."""
    section = own.own_section(options.model.method) if options.model.method else None
    names = {f.name for f in fields(section)} if section else set()
    for key, (_, where) in given.items():
        if key not in FIELDS and key not in names:
            method = own.owner(key)
            told = f"set method: {method}" if method == options.method else f"the method is {options.method}"
            raise OptionsError(f"{where}: {key}: is of the method {method}; {told}")
    return section and _section(section, given)


def _layer(entries: Iterable[Entry]) -> Layer:
    """Type and check the entries of one source. Raises OptionsError at the first that is unknown, repeated or wrong."""
    layer: Layer = {}
    for written, value, where in entries:
        key = written.replace("-", "_")
        f = FIELDS.get(key) or own.own_field(key)
        if f is None:
            raise _unknown(written, where)
        if key in layer:
            raise OptionsError(f"{where}: {key}: set twice; first at {layer[key][1]}")
        layer[key] = checked(f, value, where, path=key in PATHS), where
        if key == "method":
            _check_method(layer[key][0], where)
    following = {other: (says(layer[key][0]), layer[key][1]) for key, (other, says) in FOLLOWS.items() if key in layer}
    return following | layer  # two that contradict each other are left for their section to refuse


def _check_method(method: str, where: str) -> None:
    """Raise OptionsError if a method is named that there is not."""
    if method and method not in METHODS.names():
        try:
            METHODS.find(method)
        except OptionsError as error:
            raise OptionsError(f"{where}: method: {error}") from None


def _unknown(written: str, where: str) -> OptionsError:
    """The error for a key that no section has; the nearest may be of a method from outside, or of the one it begins with."""
    key = written.replace("-", "_")
    sections = own.methods_with_options({*METHODS.outside(), own.owner(key)}).values()
    near = nearest(key, [*FIELDS, *(f.name for section in sections for f in fields(section))])
    return OptionsError(f"{where}: {shown(written)}: no such option; the nearest is {near}")


# --- YAML ---


class _Loader(yaml.SafeLoader):
    """Text, lists, mappings and null, nothing else; what a text means is for the type of the option to say."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML looks for it here)
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012  (None stands for all other tags, and refuses them)
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "seq", "map")
    }

    def construct_text(self, node: yaml.Node) -> str:
        text = self.construct_scalar(node)
        return text if node.style is None else Quoted(text)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


class _Dumper(yaml.SafeDumper):
    """A key per line, and lists on one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_tuple(self, data: tuple) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)

    def represent_text(self, data: str) -> yaml.Node:
        """The text none stays text."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="'" if data.lower() in NONE else None)


_Dumper.add_representer(tuple, _Dumper.represent_tuple)
_Dumper.add_representer(str, _Dumper.represent_text)


def _read_yaml(path: str | Path) -> list[Entry]:
    """The entries of a YAML file. Raises OptionsError naming the file, and the line where there is one."""
    try:
        loader = _Loader(Path(path).read_bytes())
        node = loader.get_single_node()
        if node is None:
            raise OptionsError(f"{path}: the file is empty")
        if not isinstance(node, yaml.MappingNode):
            raise OptionsError(f"{path}: holds no `key: value` lines")
        entries = []
        for key, value in node.value:
            where = f"{path}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise OptionsError(f"{where}: a key is one word, not a list or mapping")
            if key.value == "options":
                raise OptionsError(f"{where}: options: a file does not name other files; name them all after --options")
            entries.append((key.value, loader.construct_object(value, deep=True), where))
        return entries
    except FileNotFoundError:
        raise OptionsError(f"{path}: no such file{_neighbour(Path(path))}") from None
    except OSError as error:
        raise OptionsError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise OptionsError(f"{path}, line {mark.line + 1 if mark else 1}: {line(error.problem)}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise OptionsError(f"{path}: no readable YAML: {line(error)}") from None


def _neighbour(path: Path) -> str:
    """The nearest name beside a missing file, to put after an error message."""
    beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return f"; the nearest is {path.parent / nearest(path.name, beside)}" if beside else ""


# --- command line ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One line in place of the usage of all options."""
        flags, _, reason = message.removeprefix("argument ").partition(": ")
        key = re.split("[,/]", flags)[0].lstrip("-").replace("-", "_")
        raise OptionsError(f"{COMMAND_LINE}: {key}: {line(reason)}")


def _parser(methods: Iterable[type[Section]]) -> argparse.ArgumentParser:
    """What reads a command line; methods: the sections of methods' own options that it is to know."""
    parser = _Parser(
        prog="main.py",
        usage="main.py [--options FILE ...] [--key value ...]",
        description=__doc__.split("\n\n")[1].replace("`", ""),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(f"--{IGNORED.replace('_', '-')}", type=int, metavar="N", help="ignored: old launchers pass it")
    for section in (*SECTIONS.values(), *methods):
        group = parser.add_argument_group(_title(section))
        for f in fields(section):
            _add_argument(group, f)
    return parser


def _add_argument(group: argparse._ArgumentGroup, f: dataclasses.Field) -> None:
    flag = f"--{f.name.replace('_', '-')}"
    choices = f" ({', '.join(named)})" if (named := [*filter(None, choices_of(f))]) else ""
    text = f"{f.metadata['help'] or f.metadata['refused']}{choices} [{_default(f.default)}]".replace("%", "%%")
    kinds = kinds_of(f.type)
    if f.name == "no_amp":  # --amp is another option, which alone, as it once was, says the opposite
        group.add_argument(flag, action="store_true", dest=f.name, help=text)
    elif bool in kinds:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, dest=f.name, help=text)
    else:
        several = any(get_origin(kind) is tuple for kind in kinds)
        metavar = "FILE" if f.name == "options" else {int: "N", float: "X", str: "TEXT"}.get(kinds[0], "VALUE")
        nargs = {"nargs": "?", "const": f.default} if f.name == "amp" else {"nargs": "*" if several else None}
        group.add_argument(flag, **nargs, dest=f.name, metavar=metavar, help=text)


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value) or "''"


def _read_command_line(argv: Sequence[str]) -> list[Entry]:
    """The entries of a command line; dashes and underscores are the same. Raises OptionsError."""

    def dashes(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("_", "-") + equals + value if word.startswith("--") else word

    words = [dashes(word) for word in argv]
    asked = None if {"-h", "--help"} & set(words) else _methods_named(words)
    known, unknown = _parser(own.methods_with_options(asked).values()).parse_known_args(words)
    if unknown and not unknown[0].startswith("-"):
        raise OptionsError(f"{COMMAND_LINE}: {shown(unknown[0])} belongs to no option; an option begins with --")
    if unknown:
        raise _unknown(unknown[0].partition("=")[0].lstrip("-"), COMMAND_LINE)
    return [
        (key, value[0] if isinstance(value, list) and len(value) == 1 else value, COMMAND_LINE)
        for key, value in vars(known).items()
        if key != IGNORED
    ]


def _methods_named(words: Iterable[str]) -> list[str]:
    """The methods of which a command line may hold own options: those with whose names its unknown flags begin."""
    flags = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    keys = [key for flag in flags for key in (flag, flag.removeprefix("no_")) if key not in FIELDS]
    return sorted({own.owner(key) for key in keys} - {""})
