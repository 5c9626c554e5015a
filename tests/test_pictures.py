"""The pictures of the README can be drawn again from what lies in the repository, and show what the README says."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from jobs import ROOT
from PIL import Image

PUBLISHED = json.loads((ROOT / "options/published.json").read_text())
README = (ROOT / "README.md").read_text()
DRAWN = {name: (f"draw_{name}.py",) for name in ("method", "published")}
DRAWN |= {name: ("draw_results.py", name) for name in ("results", "errors", "attention", "cost")}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_drawn_again(name, tmp_path, monkeypatch):
    kept, out, (script, *words) = ROOT / "images" / f"{name}.png", tmp_path / "again.png", DRAWN[name]
    monkeypatch.setattr(sys, "argv", [script, *words, "--out", str(out)])
    monkeypatch.syspath_prepend(str(ROOT / "images"))  # as for a script that is run by its name
    runpy.run_path(str(ROOT / "images" / script), run_name="__main__")
    one, other = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (kept, out))
    assert one.shape == other.shape and one.std() > 10
    assert np.abs(one - other).mean() < 3  # fonts and matplotlib may differ in small things


def test_every_picture_is_shown_and_has_a_script():
    shown = set(re.findall(r"\]\(images/([\w-]+\.png)\)", README))
    kept = {path.name for path in (ROOT / "images").glob("*.png")}
    assert shown == kept
    scripts = "".join(path.read_text() for path in (ROOT / "images").glob("*.py"))
    assert not [name for name in kept if f"images/{name}" not in scripts]


def numbers(rows, *keys):
    """ "average / last" of every row, as the README writes it; without an average there is a dash."""
    pairs = ([row[key] for key in keys] for row in rows)
    return {" / ".join("–" if value is None else f"{value:.2f}" for value in pair) for pair in pairs}


def test_the_readme_and_the_stored_numbers_agree():
    section = README.split("## Published results", 1)[1].split("\n## ", 1)[0]
    cifar, imagenet = section.split("ImageNet in 10 steps", 1)
    known = numbers([*PUBLISHED["cifar100"], *PUBLISHED["cifar100_rivals"]], "average", "last")
    told = re.findall(r"(?:\d\d\.\d\d|–) / (?:\d\d\.\d\d|–)", cifar)
    assert len(told) >= 40 and not [pair for pair in told if pair not in known]
    both = PUBLISHED["imagenet100"] + PUBLISHED["imagenet1000"]
    known = {pair for top in ("top1", "top5") for pair in numbers(both, f"{top}_average", f"{top}_last")}
    told = re.findall(r"\d\d\.\d\d / \d\d\.\d\d", imagenet)
    assert len(told) > 20 and not [pair for pair in told if pair not in known]
