"""Files of class folders are found anew, or known from last time; either way they are those that are there now."""

import os
import shutil
import time

import numpy as np
import pytest

from continual.data import listing, opening

NAMES = ("ant", "bee", "cat")


@pytest.fixture
def top(tmp_path, monkeypatch):
    """Three class folders, an hour old; and a cache of its own that keeps anything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "WORTH_KEEPING", 1)
    monkeypatch.setattr(listing, "SETTLED", -(10**12))  # what has just been made counts as settled
    top = tmp_path / "train"
    for name in NAMES:
        (top / name / "more" / "deep").mkdir(parents=True)
        for file in ("b.jpg", "a.jpg", "more/c.jpg", "more/deep/d.jpg", ".hidden.jpg"):
            (top / name / file).touch()
    return top


def files(top):
    return listing.files_in(str(top), NAMES)


def caches(top):
    return sorted((top.parent / "cache" / "dytox").iterdir())


@pytest.fixture
def looked_into(monkeypatch):
    """The folders that were really read."""
    found, below = [], listing.files_below
    monkeypatch.setattr(
        listing, "files_below", lambda folder, **how: (found.append(os.path.basename(folder)), below(folder))[1]
    )
    return found


def test_what_has_not_changed_is_read_once(top, looked_into):
    expected = [["a.jpg", "b.jpg", "more/c.jpg", "more/deep/d.jpg"]] * 3
    assert files(top) == expected and looked_into == list(NAMES)
    (cache,) = caches(top)
    written = cache.stat().st_mtime_ns
    assert files(top) == expected and looked_into == list(NAMES)
    assert cache.stat().st_mtime_ns == written
    assert listing.files_in(str(top), ("cat", "ant")) == expected[:2] and looked_into == list(NAMES)


CHANGES = {
    "added": lambda folder: (folder / "z.jpg").touch(),
    "removed": lambda folder: (folder / "a.jpg").unlink(),
    "renamed": lambda folder: (folder / "a.jpg").rename(folder / "y.jpg"),
    "added deep inside": lambda folder: (folder / "more" / "deep" / "e.jpg").touch(),
    "a folder removed": lambda folder: shutil.rmtree(folder / "more"),
    "another in its place": lambda bee: (bee.rename(bee.parent / "old"), shutil.copytree(bee.parent / "ant", bee)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_is_read_again(top, looked_into, change):
    files(top)
    before = os.stat(top / "bee")
    change(top / "bee")
    os.utime(top / "bee", ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync -t or tar set it back
    looked_into.clear()
    found = files(top)
    assert looked_into == ["bee"]
    assert found == [listing.files_below(str(top / name))[0] for name in NAMES]


def test_a_folder_that_has_just_changed_may_change_again_unseen_and_is_not_kept(top, looked_into, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED", 2 * 10**9)
    files(top)
    assert not (top.parent / "cache").exists()
    later = time.time_ns() + 10**10
    monkeypatch.setattr(listing.time, "time_ns", lambda: later)
    files(top)
    (top / "cat" / "more" / "new.jpg").touch()
    changed = os.stat(top / "cat" / "more").st_mtime_ns
    monkeypatch.setattr(listing.time, "time_ns", lambda: changed + 1)
    files(top)  # in the same tick as that change
    looked_into.clear()
    assert "more/new.jpg" in files(top)[2] and "cat" in looked_into


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-3], lambda c: b"", lambda c: c.replace(b"a.jpg", b"q.jpg", 1), lambda c: b"\xff\n{"]
)
def test_a_damaged_or_foreign_cache_is_as_good_as_none(top, looked_into, damage):
    expected, (cache,) = files(top), caches(top)
    cache.write_bytes(damage(cache.read_bytes()))
    assert files(top) == expected and looked_into == 2 * list(NAMES)
    assert files(top) == expected and len(looked_into) == 6  # written anew


def test_where_nothing_can_be_written_folders_are_read_every_time(top, looked_into, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert files(top) == files(top) and looked_into == 2 * list(NAMES)
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(listing.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert files(top) and caches(top) == []  # and no half file stays
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(listing.os.path, "expanduser", lambda path: path)  # nobody's home
    monkeypatch.chdir(tmp_path)
    assert files(top) and not (tmp_path / "~").exists()


def test_a_small_data_set_leaves_no_cache(top, monkeypatch):
    monkeypatch.setattr(listing, "WORTH_KEEPING", 13)
    files(top)
    assert not (top.parent / "cache").exists()
    monkeypatch.setattr(listing, "WORTH_KEEPING", 12)
    files(top)
    assert len(caches(top)) == 1


def test_names_of_any_bytes_are_kept(top):
    name = os.fsdecode(b"\xff\xfe.jpg")
    (top / "ant" / name).touch()
    assert name in files(top)[0] and files(top)[0] == listing.files_below(str(top / "ant"))[0] and caches(top)


def test_images_are_told_from_other_files_as_one_by_one():
    for names in (["a.jpg", "b.PNG"], ["a.jpg", "b.txt", "c"], ["d.jpg/c", "x.jpg"], ["jpg", "e.tar.gif"], []):
        images, others = opening.images_among(names)
        assert images == [name for name in names if opening.is_image(name)] and sorted(images + others) == sorted(names)
    paths = np.array(["a.jpg", "b.TIF", "c.tiff/d.jpg", "e.pgm"] * 3)
    assert list(opening.wide_among(paths)) == ["b.TIF", "e.pgm"] * 3
