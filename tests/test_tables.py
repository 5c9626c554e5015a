"""What people read of a run's figures, and the pictures drawn of them."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from evaluations import run_of

from continual.seeing.tables import matrix_table, summarise, summary_text, text_table

IMAGES = Path(__file__).parent.parent / "images"


@pytest.mark.parametrize("nb_tasks", [1, 2, 10, 11, 50])
def test_tables_stay_within_a_hundred_columns(nb_tasks):
    text = summary_text(run_of(nb_tasks))
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 70
    assert ("summary.json" in text) == (nb_tasks > 10)


def test_long_matrices_show_diagonal_and_last_row():
    matrix = [[10.0 * i + j / 10 for j in range(i + 1)] for i in range(12)]
    assert matrix_table(matrix).split("\n\n")[1].splitlines() == [
        "task             11     12",
        "--------------------------",
        "when learned  101.0  111.1",
        "at the end    111.0  111.1",
    ]


def test_text_table_aligns():
    assert text_table(["", "a", "long"], [["x", "1", "2"], ["yy", "33"]]) == "     a  long\n------------\nx    1     2\nyy  33"


def test_series_gives_mean_and_sample_deviation():
    text, series = summarise([run_of(3), run_of(3, shift=0.1), run_of(3, shift=0.2)])
    assert series["nb_runs"] == 3
    assert series["acc"]["std"] == pytest.approx(10.0)
    assert series["acc"]["mean"] == pytest.approx(series["acc"]["values"][1])
    assert f"{series['acc']['mean']:.2f} ± 10.00" in text
    assert "over 3 runs" in text


def test_one_run_has_no_deviation():
    text, series = summarise([run_of(2)])
    assert series["acc"]["std"] is None
    assert "±" not in text
    with pytest.raises(ValueError, match="no run"):
        summarise([])


def test_forgetting_is_drawn_from_summaries(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    paths = []
    for run, shift in enumerate((0.0, 0.05)):
        paths.append(tmp_path / f"{run}.json")
        paths[-1].write_text(json.dumps(run_of(3, shift=shift)))
    both, first = f"DyTox={paths[0]},{paths[1]}", f"Without memory={paths[0]}"
    out = tmp_path / "forgetting.png"
    monkeypatch.setattr(sys, "argv", ["draw_forgetting.py", "--out", str(out), both, first])
    runpy.run_path(str(IMAGES / "draw_forgetting.py"), run_name="__main__")
    assert out.read_bytes().startswith(b"\x89PNG")
