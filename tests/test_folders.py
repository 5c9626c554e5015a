"""The two folders of a run find each other, moved or copied, and nobody else's."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from torch.distributed import HashStore

from continual.errors import CheckpointError, OptionsError
from continual.jobs import distributed
from continual.options import parse, replace
from continual.runs import folders
from continual.runs.folders import Place, new_place, prepare, prepare_inside, reopen


def made(folder, *more):
    options = parse(["--log-path", str(folder / "logs"), "--output-basedir", str(folder / "ckpt"), "--name", "a", *more])
    return prepare(options)


def test_both_know_each_other(tmp_path):
    options, place = made(tmp_path)
    assert reopen(place.logs) == reopen(place.checkpoints) == place
    again, found = prepare(parse(["--resume", str(place.checkpoints)]))
    assert found == place
    assert again.run.name == options.run.name == "a"


def test_the_data_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, place = made(tmp_path, "--data-path", "images")
    _, without = made(tmp_path, "--data-path", "")
    monkeypatch.chdir("/")
    options, _ = prepare(parse(["--resume", str(place.logs)]))
    assert options.data.data_path == str(tmp_path / "images")
    assert prepare(parse(["--resume", str(without.logs)]))[0].data.data_path == ""


def of(folder, *, name="dytox", log_category="2-2", data_set="CIFAR", logs="logs"):
    run = [f"--name={name}", f"--log-category={log_category}", f"--data-set={data_set}"]
    return parse([*run, "--log-path", str(folder / logs), "--output-basedir", str(folder / "ckpt")])


def test_laid_out_by_data_set_category_and_week(tmp_path):
    place = new_place(of(tmp_path), today=date(2022, 3, 15))
    below = Path("cifar", "2-2", "22-03", "week-3", "22-03-15-dytox")
    assert place == Place(tmp_path / "logs" / below, tmp_path / "ckpt" / below)
    assert place.logs.is_dir() and place.checkpoints.is_dir()


@pytest.mark.parametrize(("day", "week"), [(1, 1), (7, 1), (8, 2), (28, 4), (29, 5), (31, 5)])
def test_week_of_the_month(tmp_path, day, week):
    assert new_place(of(tmp_path), today=date(2022, 1, day)).logs.parent.name == f"week-{week}"


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: new_place(of(tmp_path), today=date(2022, 3, 1)), range(16)))
    for side in ("logs", "checkpoints"):
        names = {getattr(place, side).name for place in places}
        assert len(names) == 16 and "22-03-01-dytox" in names
    assert all(place.logs.name == place.checkpoints.name for place in places)


def test_no_run_takes_over_the_checkpoints_of_another(tmp_path):
    first = new_place(of(tmp_path), today=date(2022, 3, 1))
    (first.checkpoints / "checkpoint").touch()
    other = new_place(of(tmp_path, logs="other"), today=date(2022, 3, 1))
    first.logs.rmdir()
    again = new_place(of(tmp_path), today=date(2022, 3, 1))
    assert [place.checkpoints.name[-2:] for place in (first, other, again)] == ["ox", "-2", "-3"]
    assert other.logs.name == other.checkpoints.name and again.logs.name == again.checkpoints.name
    assert list(first.checkpoints.iterdir()) == [first.checkpoints / "checkpoint"]


def test_one_folder_for_both(tmp_path):
    argv = ["--log-path", str(tmp_path), "--output-basedir", str(tmp_path), "--name", "a"]
    place = prepare(parse(argv))[1]
    assert place.logs == place.checkpoints and reopen(place.logs) == place
    assert prepare(parse(argv))[1].logs.name == place.logs.name + "-2"


@pytest.mark.parametrize("key", ["log_path", "output_basedir"])
def test_where_nothing_can_be_written(tmp_path, key):
    (tmp_path / "file").touch()
    options = replace(of(tmp_path), **{key: str(tmp_path / "file")})
    with pytest.raises(CheckpointError, match=r"file.* cannot be written: Not a directory"):
        prepare(options)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("side", ["logs", "checkpoints"])
def test_moved_together(tmp_path, side):
    _, place = made(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = Place(*(tmp_path / "there" / path.relative_to(tmp_path / "here") for path in (place.logs, place.checkpoints)))
    assert reopen(getattr(moved, side)) == moved


def test_checkpoints_moved_alone_keep_their_logs(tmp_path):
    _, place = made(tmp_path)
    shutil.move(place.checkpoints, tmp_path / "elsewhere")
    assert reopen(tmp_path / "elsewhere") == Place(place.logs, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="its checkpoints are no longer in"):
        reopen(place.logs)


def test_a_copy_leaves_the_logs_of_the_original_alone(tmp_path):
    _, place = made(tmp_path)
    shutil.copytree(place.checkpoints, tmp_path / "copy")
    copy = reopen(tmp_path / "copy")
    assert copy == Place(tmp_path / "copy" / "logs", tmp_path / "copy")
    assert copy.logs.is_dir()


def test_a_copy_of_both(tmp_path):
    _, place = made(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = Place(*(tmp_path / "b" / path.relative_to(tmp_path / "a") for path in (place.logs, place.checkpoints)))
    assert reopen(copied.checkpoints) == reopen(copied.logs) == copied


def test_a_stranger_points_nowhere(tmp_path):
    """A downloaded folder that names somebody's own folders: they are left alone."""
    mine = tmp_path / "mine"
    mine.mkdir()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    content = {"side": "checkpoints", "logs": str(mine), "checkpoints": str(tmp_path / "other")}
    (stranger / folders.PLACE).write_text(json.dumps(content))
    assert reopen(stranger) == Place(stranger / "logs", stranger)
    assert not list(mine.iterdir())


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 200_000, "{}", "null", '{"side": "other", "logs": "a", "checkpoints": "b"}', '{"side": 1}']
)
def test_no_run(tmp_path, content):
    (tmp_path / folders.PLACE).write_text(content)
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        reopen(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "a;b", "a\nb", "a\n", "/etc/x", "..", ".", "-rf", "a b", "a\\b", "x" * 300, "-\x00"]
)
@pytest.mark.parametrize("key", ["--name", "--log-category", "--data-set"])
def test_names_lead_nowhere_else(tmp_path, name, key):
    inside = tmp_path / "inside"
    argv = ["--log-path", str(inside / "logs"), "--output-basedir", str(inside / "ckpt"), "--name", "a", f"{key}={name}"]
    with pytest.raises(OptionsError):
        prepare(parse(argv))
    assert list(tmp_path.rglob("*.json")) == []
    assert not set(tmp_path.iterdir()) - {inside}


def test_a_job_started_again_goes_on_with_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_agents_store", HashStore())
    options, place = made(tmp_path)
    assert options.run.resume == ""
    again, found = made(tmp_path)
    assert found == place and again.run.resume == str(place.checkpoints)


def test_a_job_started_again_below_a_folder_that_is_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_agents_store", HashStore())
    below = tmp_path / os.fsdecode(b"caf\xe9")
    assert made(below)[1] == made(below)[1]


def test_a_resumed_job_started_again_forgets_start_task(tmp_path, monkeypatch):
    _, place = made(tmp_path)
    monkeypatch.setattr(distributed, "_agents_store", HashStore())
    argv = ["--resume", str(place.checkpoints), "--start-task", "1"]
    assert prepare(parse(argv))[0].run.start_task == 1
    assert prepare(parse(argv))[0].run.start_task == 1  # it did not get as far as going back
    distributed.keep("went back", "yes")
    assert prepare(parse(argv))[0].run.start_task == 0


def test_runs_of_a_series(tmp_path):
    options, place = made(tmp_path, "--seeds", "1", "2")
    inside = Place(place.logs / "seed-1", place.checkpoints / "seed-1")
    assert prepare_inside(options, inside).run.resume == ""
    assert prepare_inside(options, inside).run.resume == str(inside.checkpoints)
    assert reopen(inside.checkpoints) == inside
