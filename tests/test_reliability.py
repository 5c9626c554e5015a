"""Every row of reliability.md has its tests."""

import ast
import re

from jobs import ROOT


def test_every_row_names_tests_that_exist():
    rows = [line for line in (ROOT / "tests/reliability.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for file, name in named:
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
