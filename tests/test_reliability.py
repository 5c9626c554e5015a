"""Every row of reliability.md has its tests."""

import ast
import re

from jobs import ROOT


def defined_in(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_exist():
    there = {path.name: defined_in(path) for path in (ROOT / "tests").glob("test_*.py")}
    rows = [line for line in (ROOT / "tests/reliability.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for file, name in named:
            assert name in there[file], f"{file}::{name}"
