"""Whatever happens while a file is written, there is the old one or the new one, and nothing beside it."""

import os

import pytest

from continual.files import replacing, write_json


def test_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        with replacing(path) as file:
            file.write(content)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_one(fails, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    if fails != "write":
        monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"), replacing(path) as file:
        file.write(b"new")
        if fails == "write":
            full()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_no_half_file_is_seen_while_it_is_written(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_others_can_read(value, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "figures.json", {"acc": value})
    assert list(tmp_path.iterdir()) == []
