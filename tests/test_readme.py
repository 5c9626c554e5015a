"""What the README says of the code is so."""

import ast
import re
from pathlib import Path

import pytest

from continual.data.samplers import released_drop_last

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def table(title: str) -> list[list[str]]:
    """The cells of the rows of the first table after `title`, its head left out."""
    lines = README.split(title, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def defined(path: Path) -> set[str]:
    """Names of the functions, classes and methods (Class.method) of a file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{each.name}" for each in getattr(node, "body", []) if isinstance(each, ast.FunctionDef)}
    return names


def places() -> list[tuple[str, str, str]]:
    """(what the paper has, file, name) of every place in the table."""
    found = []
    for paper, code in table("**Paper → code.**"):
        path = ""
        for word in re.findall(r"`([^`]+)`", code):
            if word.endswith(".py"):
                path = word
            else:
                found.append((paper, path, word))
    return found


def test_every_row_of_paper_to_code_names_a_place():
    rows = table("**Paper → code.**")
    assert len(rows) >= 15 and {paper for paper, _ in rows} == {paper for paper, _, _ in places()}


@pytest.mark.parametrize(("paper", "path", "name"), places(), ids=lambda value: value[:40])
def test_what_the_paper_has_is_where_the_table_says(paper, path, name):
    assert name in defined(ROOT / path), paper


def share(nb_classes: int, increment: int, memory: int, replicas: int, batch_size: int = 128) -> list[float]:
    """Of the new task's exemplars, the share in finetuning's last partial batch where that is dropped, task by task."""
    shares = []
    for seen in range(2 * increment, nb_classes + 1, increment):
        quota = memory // seen
        rest = quota * seen % batch_size if released_drop_last(quota * seen, replicas, batch_size) else 0
        shares.append(min(1.0, rest / (quota * increment)))
    return shares


def test_the_shares_that_finetuning_never_sees():
    settings = [
        [(100, 10, 2000, 2), (100, 10, 1000, 2)],
        [(100, 5, 2000, 2), (100, 5, 1000, 2)],
        [(100, 2, 2000, 2), (100, 2, 1000, 2)],
        [(100, 10, 2000, 8), (100, 10, 500, 4)],
        [(1000, 100, 20000, 8)],
    ]
    rows = table("### Finetuning's last batch")
    assert len(rows) == len(settings)
    for (_, last, mean), row in zip(rows, settings, strict=True):
        told = [[float(number) for number in re.findall(r"[\d.]+", cell)] for cell in (last, mean)]
        shares = [share(*setting) for setting in row]
        assert told[0] == pytest.approx([100 * each[-1] for each in shares], abs=0.51)
        assert told[1] == pytest.approx([100 * sum(each) / len(each) for each in shares], abs=0.51)
