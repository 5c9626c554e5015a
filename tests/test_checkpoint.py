"""Checkpoints: whole or not there, checked to the byte, never executed."""

import json
import os
import pickle
import random

import jobs
import pytest
import torch

from continual.errors import CheckpointError
from continual.options import Options, parse
from continual.runs import checkpoint
from continual.runs.checkpoint import Store, as_identity, refuse_another

IDENTITY = {"embed_dim": 8, "class_order": [1, 0]}


def state(number):
    return {"number": number, "weights": torch.full((7,), float(number)), "names": ["a", None, {"b": 1.5}]}


def save(store, number, *, task=0, finished=False):
    return store.save(state(number), name=f"place-{number}", identity=IDENTITY, task=task, finished_task=finished, seconds=3.0)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def loaded(store, **how):
    heard = []
    content, manifest = store.load(say=heard.append, **how)
    return (content and content["number"]), manifest, heard


def test_round_trip(store):
    save(store, 1)
    save(store, 2, task=1)
    content, manifest = store.load()
    assert torch.equal(content.pop("weights"), torch.full((7,), 2.0))
    assert content == {"number": 2, "names": ["a", None, {"b": 1.5}]}
    assert (manifest["name"], manifest["task"], manifest["seconds"]) == ("place-2", 1, 3.0)
    assert manifest["identity"] == IDENTITY


def test_time_spent_saving_is_counted_across_resumes(store, tmp_path):
    save(store, 1)
    assert store.seconds > 0
    save(store, 2)
    again = Store(tmp_path)
    again.load()
    assert 0 < again.seconds < store.seconds  # what the last save took was not known when it wrote


@pytest.mark.parametrize("keep, keep_tasks, left", [(2, True, [1, 3, 5, 6]), (1, False, [6]), (3, False, [4, 5, 6])])
def test_retention(tmp_path, keep, keep_tasks, left):
    store = Store(tmp_path, keep=keep, keep_tasks=keep_tasks)
    for number, (task, finished) in enumerate([(0, True), (1, False), (1, True), (2, False), (2, False), (2, True)], start=1):
        save(store, number, task=task, finished=finished)
    assert [each.serial for each in store.stored()] == left
    assert len(list(tmp_path.iterdir())) == 2 * len(left) + 1


def test_the_end_of_a_task(tmp_path):
    store = Store(tmp_path)
    for number, (task, finished) in enumerate([(0, True), (1, False), (1, True), (2, False)], start=1):
        save(store, number, task=task, finished=finished)
    assert loaded(store, start_task=1)[0] == 1
    assert loaded(store, start_task=2)[0] == 3
    with pytest.raises(CheckpointError, match=r"no valid checkpoint of the end of task 2 \(--start-task 3\)"):
        store.load(start_task=3)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_truncated(store, share, suffix):
    save(store, 1)
    path = save(store, 2).with_suffix(suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    number, _, heard = loaded(store)
    assert number == 1
    assert len(heard) == 1 and heard[0].startswith("warning") and path.stem in heard[0]


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_sixty_flipped_bytes(store, suffix):
    save(store, 1)
    path = save(store, 2).with_suffix(suffix)
    content = path.read_bytes()
    rng = random.Random(0)
    for place in rng.sample(range(len(content)), 60):
        other = content[place] ^ rng.randint(1, 255)
        path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
        number, _, heard = loaded(store)
        assert number == 1 and path.stem in heard[0], (place, content[place], other)
    path.write_bytes(content)
    assert loaded(store)[0] == 2


@pytest.mark.parametrize("suffixes", [(".pt",), (".json",), (".pt", ".json")])
def test_newest_deleted(store, suffixes):
    save(store, 1)
    path = save(store, 2)
    for suffix in suffixes:
        path.with_suffix(suffix).unlink()
    number, _, heard = loaded(store)
    assert number == 1
    assert len(heard) == 1 and path.name in heard[0]
    save(store, 3)
    assert loaded(store)[::2] == (3, [])  # halves of pairs are gone
    assert not path.exists() and not path.with_suffix(".json").exists()


@pytest.mark.parametrize("lost", ["0*.pt", "0*.json", "0*", "*[!.][!p][!t]"])
def test_none_valid_is_refused(store, tmp_path, lost):
    save(store, 1)
    save(store, 2)
    for path in tmp_path.glob(lost):
        path.unlink()
    with pytest.raises(CheckpointError, match="no valid checkpoint to resume from"):
        store.load()


def test_all_truncated_is_refused(store, tmp_path):
    save(store, 1)
    save(store, 2)
    for path in tmp_path.glob("0*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no valid checkpoint to resume from"):
        store.load()


def test_never_saved(store, tmp_path):
    assert store.load() == (None, None)
    (tmp_path / "000001-place.pt").write_bytes(b"half a checkpoint: its manifest was not written any more")
    assert store.load() == (None, None)
    with pytest.raises(CheckpointError, match="start-task 1"):
        store.load(start_task=1)


def test_killed_twice_before_the_first_is_whole(store, tmp_path):
    (tmp_path / "000001-place-1.pt").write_bytes(b"half a checkpoint")
    assert save(store, 1).name == "000001-place-1.pt"
    assert loaded(store)[::2] == (1, [])


def test_damaged_ones_are_not_among_the_last_that_are_kept(tmp_path):
    store = Store(tmp_path, keep=2)
    for number in (1, 2, 3):
        path = save(store, number)
    path.write_bytes(b"")
    assert loaded(store)[0] == 2
    save(store, 4)
    assert [each.serial for each in store.stored()] == [2, 4]


def test_a_number_is_never_used_twice(store):
    save(store, 1)
    path = save(store, 2)
    path.with_suffix(".json").write_text("{}")
    assert save(store, 3).name.startswith("000003-")
    assert path.exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, pickle.dump], ids=["torch", "pickle"])
def test_nothing_in_it_is_executed(store, tmp_path, monkeypatch, write):
    trap = tmp_path / "executed"
    with monkeypatch.context() as patched:

        def stranger(content, buffer):
            write({"model": Payload(trap)}, buffer)

        patched.setattr(checkpoint.torch, "save", stranger) if write is pickle.dump else None
        path = store.save({"model": Payload(trap)}, name="x", identity=IDENTITY, task=0, finished_task=False)
    heard = []
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        store.load(say=heard.append)
    assert "holds more than tensors and plain values" in heard[0] and path.name in heard[0]
    assert not trap.exists()


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000, '{"seal": 1}', "\x00", '{"serial": 1}'])
def test_manifests_of_strangers(store, content):
    save(store, 1)
    path = save(store, 2)
    path.with_suffix(".json").write_text(content)
    assert loaded(store)[0] == 1


def test_sealed_manifests_of_strangers(store):
    """A seal is no signature: anyone can make one."""
    save(store, 1)
    path = save(store, 2).with_suffix(".json")
    manifest = json.loads(path.read_text()) | {"serial": "high"}
    manifest["seal"] = checkpoint.seal(manifest)
    path.write_text(checkpoint._as_text(manifest))
    number, _, heard = loaded(store)
    assert number == 1 and "it has no serial" in heard[0]


def test_lock(tmp_path):
    store = Store(tmp_path)
    (tmp_path / ".000001-place.pt.tmp").write_text("half")
    store.lock()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(CheckpointError, match="another run is writing here"):
        Store(tmp_path).lock()
    del store
    Store(tmp_path).lock()


def test_lock_where_nothing_can_be_written(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written"):
        Store(tmp_path / "missing").lock()


def test_disk_full(tmp_path):
    """In a process of its own: the limit would hold for pytest, too."""
    script, folder = tmp_path / "script.py", tmp_path / "checkpoints"
    folder.mkdir()
    script.write_text(f"""
import resource, sys, torch
from pathlib import Path
from continual.runs.checkpoint import Store
from continual.errors import CheckpointError
store = Store(Path({str(folder)!r}))
how = dict(identity={{}}, task=0, finished_task=False)
store.save({{"x": torch.zeros(10)}}, name="small", **how)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    store.save({{"x": torch.zeros(100_000)}}, name="large", **how)
except CheckpointError as error:
    print(error)
print(store.load()[0]["x"].numel())
""")
    message, number = jobs.script(script, []).splitlines()
    assert "could not write" in message and "File too large; the last checkpoint is" in message
    assert number == "10"
    assert sorted(path.name for path in folder.iterdir()) == ["000001-small.json", "000001-small.pt", "newest"]


def test_due(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    store = Store(store.folder)
    assert not store.due(1)
    now[0] = 60.0
    assert store.due(1)
    store._cost = 1.0  # a hundred seconds must pass before it is 1 %
    assert not store.due(1)
    now[0] = 100.0
    assert store.due(1)


def test_identity():
    options = as_identity(parse(["--embed-dim", "24", "--num-heads", "4", "--num-workers", "3"]))
    assert options["embed_dim"] == 24 and "num_workers" not in options
    other = {**options, "embed_dim": 48, "seed": 3}
    with pytest.raises(CheckpointError, match=r"embed_dim was 24, is 48; seed was 0, is 3 \(--resume-anyway"):
        refuse_another(options, other)
    refuse_another(options, other, anyway=True)
    refuse_another(options, dict(options))


def test_an_option_that_came_later_was_at_its_default():
    now = as_identity(Options())
    before = {key: value for key, value in now.items() if key != "ft_drop_last"}
    refuse_another(before, now)
    with pytest.raises(CheckpointError, match="ft_drop_last was False, is True"):
        refuse_another(before, {**now, "ft_drop_last": True})


def test_a_store_that_is_closed_lets_others_in(tmp_path):
    store, other = Store(tmp_path), Store(tmp_path)
    store.lock()
    with pytest.raises(CheckpointError, match="another run is writing here"):
        other.lock()
    store.close()
    other.lock()
    Store(tmp_path / "never locked").close()
