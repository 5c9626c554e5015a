"""The two folders of a run find each other, moved or copied, and nobody else's."""

import json
import shutil

import pytest
from torch.distributed import HashStore

from continual import distributed, folders
from continual.errors import CheckpointError, OptionsError
from continual.folders import Place, prepare, prepare_inside, reopen
from continual.options import parse


def made(folder, *more):
    options = parse(["--log-path", str(folder / "logs"), "--output-basedir", str(folder / "ckpt"), "--name", "a", *more])
    return prepare(options)


def test_both_know_each_other(tmp_path):
    options, place = made(tmp_path)
    assert reopen(place.logs) == reopen(place.checkpoints) == place
    again, found = prepare(parse(["--resume", str(place.checkpoints)]))
    assert found == place
    assert again.run.name == options.run.name == "a"


def test_a_second_run_of_the_name_gets_its_own(tmp_path):
    assert made(tmp_path)[1] != made(tmp_path)[1]


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
    with pytest.raises(CheckpointError, match="which is gone"):
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
    "content", ["", "[]", "{}", "null", '{"side": "other", "logs": "a", "checkpoints": "b"}', '{"side": 1}']
)
def test_no_run(tmp_path, content):
    (tmp_path / folders.PLACE).write_text(content)
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        reopen(tmp_path)


@pytest.mark.parametrize("name", ["../../x", "a;b", "a\nb", "/etc/x", "..", "-\x00"])
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


def test_a_resumed_job_started_again_forgets_start_task(tmp_path, monkeypatch):
    _, place = made(tmp_path)
    monkeypatch.setattr(distributed, "_agents_store", HashStore())
    argv = ["--resume", str(place.checkpoints), "--start-task", "1"]
    assert prepare(parse(argv))[0].run.start_task == 1
    assert prepare(parse(argv))[0].run.start_task == 0


def test_runs_of_a_series(tmp_path):
    options, place = made(tmp_path, "--seeds", "1", "2")
    inside = Place(place.logs / "seed-1", place.checkpoints / "seed-1")
    assert prepare_inside(options, inside).run.resume == ""
    assert prepare_inside(options, inside).run.resume == str(inside.checkpoints)
    assert reopen(inside.checkpoints) == inside
