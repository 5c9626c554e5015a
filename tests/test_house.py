"""The shape of the code: rooms that lean on each other in one direction, short functions, nobody who knows a method by name."""

import ast
from functools import cache
from pathlib import Path

import pytest
from jobs import ROOT

from continual.registry import METHODS

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [ROOT / "main.py", *(ROOT / "continual").rglob("*.py")]
}
LEAVES = {"continual.errors", "continual.randomness", "continual.registry", "continual.files", "continual.tasks"}
ROOMS = ("options", "data", "encoders", "methods", "training", "runs", "seeing", "jobs", "report")
MAY_USE = {  # rooms of continual/ -> the rooms they may use, besides the files on top
    "options": {"data"},  # the sizes of data sets, in a file without torch
    "jobs": {"options"},
    "seeing": set(),
    "data": {"options", "jobs"},
    "encoders": {"options"},
    "training": {"options", "data", "jobs"},
    "methods": {"options", "data", "encoders", "training"},
    "runs": {"options", "data", "methods", "training", "seeing", "jobs"},
    "report": {"options", "data", "methods", "training", "runs", "seeing", "jobs"},
}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports when it is imported."""
    found = set()
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{each.name}" if f"{node.module}.{each.name}" in FILES else node.module for each in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found & FILES.keys()


GRAPH = {name: imports(path) - {name} for name, path in FILES.items()}


def room(name: str) -> str:
    """The room of a module; "" for main.py and the files on top."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def test_no_import_goes_in_a_circle():
    @cache
    def depth(name: str) -> int:
        return 1 + max((depth(other) for other in GRAPH[name]), default=0)

    assert max(map(depth, GRAPH)) < 30  # a circle would recurse for ever


def test_rooms_lean_on_each_other_in_one_direction():
    wrong = [
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if room(name) and room(other) not in {"", room(name), *MAY_USE[room(name)]}
    ]
    assert not wrong


def test_leaves_use_no_room():
    assert not [(name, other) for name in LEAVES for other in GRAPH[name] if room(other)]


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name):
    long = [
        node.name
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 50
    ]
    assert not long


def test_main_is_short_and_knows_no_method():
    text = (ROOT / "main.py").read_text()
    assert text.count("\n") <= 200
    nodes = list(ast.walk(ast.parse(text)))
    words = {node.value for node in nodes if isinstance(node, ast.Constant)} | {n.id for n in nodes if isinstance(n, ast.Name)}
    assert not (words - {"rehearsal"}) & set(METHODS.names())  # that one is the module of exemplars
    assert not any("continual.methods." in line for line in text.splitlines())


def test_only_the_register_imports_methods_by_name():
    files = {name: others for name, others in GRAPH.items() if room(name) != "methods"}
    assert not [(name, other) for name, others in files.items() for other in others if other.startswith("continual.methods.")]


def test_the_readme_names_every_room():
    shown = (ROOT / "README.md").read_text().split("## Reading the code", 1)[1].split("**Paper", 1)[0]
    tops = {path.name for path in (ROOT / "continual").glob("*.py")} - {"__init__.py", "errors.py", "files.py"}
    words = {f"continual/{name}/" for name in ROOMS} | (tops - {"randomness.py", "published.py"})
    assert not [word for word in words if word not in shown]
    for name in ("data", "training", "runs", "options", "jobs", "seeing", "report"):
        inside = {path.stem for path in (ROOT / "continual" / name).glob("*.py")} - {"__init__"}
        assert not [stem for stem in inside if f"`{stem}`" not in shown]
