"""What is answered on the test images is kept: exactly, whatever carries the run, and only of tasks that count."""

import json

import numpy as np
import pytest
from jobs import TINY, assert_same_results, finish, folders, logs

from continual.errors import CheckpointError
from continual.report.reading import read
from continual.runs import predictions
from continual.runs.predictions import Predictions

FOUND = Predictions(
    logits=predictions.packed(np.array([[1.5, -2.0, 1e9], [0.0, 3.0, -1e9]], dtype=np.float32)),
    answers=np.array([2, 1], dtype=np.int32),
    answers_known=np.array([0, 1], dtype=np.int32),
    labels=np.array([0, 1], dtype=np.int32),
    places=np.array([4, 7], dtype=np.int32),
    sizes=np.array([2, 1], dtype=np.int32),
    digest="abc",
)


def test_what_is_written_is_read_back(tmp_path):
    digest = predictions.write(tmp_path, 1, FOUND)
    assert digest == predictions.write(tmp_path, 1, FOUND)  # the same bytes again
    back = predictions.read(predictions.path_of(tmp_path, 1), sha256=digest)
    for name, value in vars(FOUND).items():
        assert np.array_equal(getattr(back, name), value)
    assert np.isfinite(back.logits).all() and back.tasks.tolist() == [0, 0] and back.task_of.tolist() == [0, 0, 1]


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped", "other", "short", "pickled", "text"])
def test_damage_is_one_line(tmp_path, harm):
    digest, path = predictions.write(tmp_path, 0, FOUND), predictions.path_of(tmp_path, 0)
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm in ("cut", "flipped", "text"):
        broken = {"cut": content[:-40], "flipped": content[:200] + b"\0\1" + content[202:], "text": b"hello"}
        path.write_bytes(broken[harm])
    elif harm == "pickled":
        np.savez(path, logits=np.array([{}], dtype=object))
    else:
        changed = {"other": {"labels": np.array([0, 9], dtype=np.int32)}, "short": {"answers": np.array([1], dtype=np.int32)}}
        predictions.write(tmp_path, 0, Predictions(**{**vars(FOUND), **changed[harm]}))
    for sha256 in ("", digest):
        if harm == "flipped" and not sha256:
            continue  # what a zip does not notice, the digest does
        with pytest.raises(CheckpointError) as told:
            predictions.read(path, sha256=sha256)
        assert "\n" not in str(told.value) and str(path) in str(told.value)


def test_they_are_the_accuracies_of_the_run(done):
    (past,) = read(logs(done))
    assert past.nb_tasks == 3 and not past.faults
    for task, record in enumerate(past.ends):
        found = past.predictions(task)
        assert 100 * (found.answers == found.labels).mean() == pytest.approx(record["acc"], abs=1e-4)
        assert 100 * (found.answers_known == found.labels).mean() == pytest.approx(record["acc_known"], abs=1e-4)
        assert found.logits.shape == (len(found.labels), 2 * task + 2) and found.sizes.tolist() == [2] * (task + 1)
        for index, share in enumerate(record["acc_per_task"]):
            of_task = found.tasks == index
            assert 100 * (found.answers == found.labels)[of_task].mean() == pytest.approx(share, abs=1e-4)
        best = found.logits.astype(np.float32).max(1)
        assert np.allclose(found.logits[np.arange(len(best)), found.answers], best)  # but for ties that rounding made


def test_a_run_that_goes_back_forgets_later_ones(copy, done):
    finish(["--resume", str(logs(copy)), "--start-task", "1", "--max-task", "2"], copy)
    assert sorted(path.name for path in (logs(copy) / "predictions").iterdir()) == ["task-1.npz", "task-2.npz"]
    finish(["--resume", str(logs(copy)), "--max-task", "3"], copy)
    assert_same_results(copy, done)


def test_they_can_be_left_out(tmp_path):
    finish([*TINY, "--no-keep-predictions", *folders(tmp_path)], tmp_path)
    assert not (logs(tmp_path) / "predictions").exists()
    (past,) = read(logs(tmp_path))
    assert past.predictions(0) is None and "no predictions were kept" in past.faults[0]
    assert json.loads((logs(tmp_path) / "status.json").read_text())["status"] == "done"
