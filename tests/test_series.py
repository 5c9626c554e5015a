"""Several runs by one command, killed and resumed like one."""

import json
import signal

from jobs import TINY, checkpoints, finish, folders, run

from continual.options import parse
from continual.runs import series

SERIES = [*TINY, "--max-task", "2", "--seeds", "3", "4"]


def test_runs_of_a_series():
    assert series.of_series(parse([])) == {}
    assert list(series.of_series(parse(["--seeds", "3", "4"]))) == ["seed-3", "seed-4"]
    one = series.of_series(parse(["--seeds", "3"]))["seed-3"]
    assert one.run.seed == 3 and one.run.seeds == ()


def top(folder, below):
    """The folder of the series itself, which holds those of its runs."""
    return min((folder / below).rglob("run.json"), key=lambda path: len(path.parts)).parent


def figures(folder):
    kept = json.loads((top(folder, "logs") / "series.json").read_text())
    del kept["time"]
    return kept


def test_killed_in_its_second_run(tmp_path):
    finish([*SERIES, *folders(tmp_path / "a")], tmp_path)
    # Two tasks are ten steps: the 15th is of the second run.
    job = run([*SERIES, *folders(tmp_path / "b")], tmp_path, fault="kill:step:15")
    assert job.codes == [-signal.SIGKILL]
    back = run(["--resume", str(top(tmp_path / "b", "checkpoints")), "--start-task", "1"], tmp_path)
    assert back.codes == [2] and "start_task: a series has several runs" in back.said()
    resumed = finish(["--resume", str(top(tmp_path / "b", "checkpoints"))], tmp_path)
    assert "seed-3 is done already" in resumed.said() and "resumed from task-" in resumed.said()
    assert figures(tmp_path / "b") == figures(tmp_path / "a")

    again = finish(["--resume", str(top(tmp_path / "b", "checkpoints"))], tmp_path).said()
    assert "seed-3 is done already" in again and "seed-4 is done already" in again and "epoch" not in again
    longer = finish(["--resume", str(top(tmp_path / "b", "checkpoints")), "--max-task", "3"], tmp_path).said()
    assert longer.count("Task 3/3 learned") == 2

    shown = finish(["--resume", str(top(tmp_path / "a", "checkpoints")), "--eval"], tmp_path).said()
    assert shown.count("Task 2/2, 4 classes seen") == 2


def test_asked_to_stop_in_a_narrow_terminal(tmp_path):
    """Both the folder that is named and the figures at the end are of the whole series."""
    narrow = {"PYTHONIOENCODING": "ascii"}
    job = run([*SERIES, *folders(tmp_path)], tmp_path, fault="term:step:2", environment=narrow)
    whole = top(tmp_path, "checkpoints")
    assert job.codes == [75] and job.said().endswith(f"continue with --resume {whole}\n")
    changed = ["--resume", str(whole), "--max-task", "1"]
    assert run([*changed, "--lr", "1"], tmp_path).codes == [4]
    assert run([*changed, "--lr", "1", "--resume-anyway"], tmp_path).codes == [2]
    assert run(changed, tmp_path, fault="kill:step:2").codes == [-signal.SIGKILL]
    assert finish(["--resume", str(whole)], tmp_path, environment=narrow).said().count("Task 1/1 learned") == 2
    assert len(figures(tmp_path)["runs"]) == 2


def test_evaluating_a_series_begins_no_run(tmp_path):
    job = run([*SERIES, *folders(tmp_path)], tmp_path, fault="kill:task change:2")  # at the end of the first run
    assert job.codes == [-signal.SIGKILL]
    shown = finish(["--resume", str(top(tmp_path, "checkpoints")), "--eval"], tmp_path).said()
    assert "seed-4 has not begun" in shown and "training epoch" not in shown
    assert not list(tmp_path.rglob("seed-4"))


def test_one_run_is_no_series(tmp_path):
    finish([*TINY, "--max-task", "1", *folders(tmp_path)], tmp_path)
    assert not list(tmp_path.rglob("series.json"))
    job = run(["--resume", str(checkpoints(tmp_path)), "--seeds", "0", "1"], tmp_path)
    assert job.codes == [4]
    assert job.said().endswith("this folder is that of a single run; seeds or class_order make it that of a series\n")
    assert not list(tmp_path.rglob("seed-0"))


def test_a_series_is_no_run(tmp_path):
    assert run([*SERIES, *folders(tmp_path)], tmp_path, fault="term:step:2").codes == [75]
    job = run(["--resume", str(top(tmp_path, "checkpoints")), "--seeds"], tmp_path)
    assert job.codes == [4]
    assert job.said().endswith("this folder is that of a series; seeds or class_order make it that of a single run\n")
