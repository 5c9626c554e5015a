"""The glyphs: what their file holds, how it is cut, what happens when it is damaged, and a short run."""

import json

import numpy as np
import pytest
from jobs import ROOT, checkpoints, command, finish, folders, logs

from continual.data import identity, sources
from continual.datasets import Benchmark, load
from continual.errors import DataError, OptionsError
from continual.options import difference, parse

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghmnqrt23456789&?%$"
DATA, MODEL = ROOT / "options" / "data", ROOT / "options" / "model"
SHORT = [
    *("--options", str(DATA / "glyphs_5-5.yaml"), str(MODEL / "glyphs_dytox.yaml")),
    *("--embed-dim", "16", "--num-heads", "4", "--depth", "2", "--local-up-to-layer", "1"),
    *("--debug", "--max-task", "2", "--device", "cpu"),
]


def read(**changes) -> Benchmark:
    return load(data_set="Glyphs", data_path=None, **{"initial_increment": 5, "increment": 5, "download": False, **changes})


def test_every_class_has_as_many_images():
    bench = read()
    assert (bench.name, bench.root, bench.nb_classes, len(bench.tasks)) == ("glyphs", None, 50, 10)
    assert len(read(initial_increment=2, increment=2).tasks) == 25
    for samples, nb in ((bench.train_samples, 180), (bench.test_samples, 60)):
        assert samples.x.dtype == np.uint8 and samples.x.shape == (50 * nb, 16, 16, 3)
        assert samples.y.dtype == np.int64 and np.bincount(samples.y).tolist() == [nb] * 50
        assert np.array_equal(samples.x[..., 0], samples.x[..., 2])
    assert len(bench.train(3).y) == 5 * 180 and sorted(set(bench.test(3).y.tolist())) == list(range(20))


def test_names_are_the_characters():
    bench = read(class_order=list(CHARACTERS[::-1]))
    assert "".join(bench.class_names) == CHARACTERS and bench.class_order == tuple(range(49, -1, -1))
    assert bench.classes()[5] == {"label": 5, "class": 44, "name": "8", "task": 1}
    same = read().train_samples
    assert np.array_equal(bench.train(9).x[bench.train(9).y == 49], same.x[same.y == 0])  # the last class is now A


def test_tasks_share_no_class_whatever_the_order():
    order = np.random.RandomState(0).permutation(50).tolist()
    bench = read(class_order=order, increment=[5, 20, 20])
    classes = [set(bench.train(task.index).y.tolist()) for task in bench.tasks]
    assert [len(found) for found in classes] == [5, 5, 20, 20] and len(set.union(*classes)) == 50
    assert bench.class_order == tuple(order)


def test_the_images_are_these():
    """Every pixel and label; another file would be another data set, and a run on it is not resumed on this one."""
    found = identity.of_data(read())
    assert found["training_digest"][:16] == "c96bb8f3e90b20c7"
    assert found["test_digest"][:16] == "88084442961c2f87"
    assert found["classes"] == list(CHARACTERS) and found["normalisation"] == [[0.1975] * 3, [0.337] * 3]


def test_mean_and_std_are_those_of_the_training_images():
    bench = read()
    pixels = bench.train_samples.x[..., 0] / 255
    assert bench.mean == (round(pixels.mean(), 4),) * 3 and bench.std == (round(pixels.std(), 4),) * 3


def test_wrong_sizes_and_orders_are_refused_before_the_file_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "GLYPHS_FILE", tmp_path / "absent.npz")
    with pytest.raises(OptionsError, match="do not add up to 50 classes"):
        read(increment=7)
    with pytest.raises(OptionsError, match="do not add up to 50 classes"):
        parse(["--data-set", "glyphs", "--initial-increment", "5", "--increment", "7"])
    with pytest.raises(OptionsError, match="left out: 49"):
        read(class_order=range(49))


def damaged(kind: str) -> bytes | None:
    """A file that is none of ours; None: there is none."""
    whole = sources.GLYPHS_FILE.read_bytes()
    middle = len(whole) // 2
    return {
        "missing": None,
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "cut": whole[:middle],
        "flipped": whole[:4000] + bytes(255 - byte for byte in whole[4000:4100]) + whole[4100:],
    }[kind]


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_refused_in_one_line(kind, monkeypatch, tmp_path):
    path = tmp_path / "glyphs50.npz"
    content = damaged(kind)
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sources, "GLYPHS_FILE", path)
    with pytest.raises(DataError) as caught:
        read()
    assert str(caught.value).startswith(f"{path} is missing or broken (") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_x", np.zeros((2, 8, 8), np.uint8)),
        ("train_y", np.array([0, 50], np.uint8)),
        ("train_y", np.array([0.0, 1.0])),
        ("characters", np.array(["A", "B"])),
        ("characters", np.arange(50)),
        ("characters", np.array([{"A": 1}] * 50, dtype=object)),  # pickled, and so never opened
    ],
)
def test_arrays_of_the_wrong_kind_are_refused(key, value, monkeypatch, tmp_path):
    arrays = {"train_x": np.zeros((2, 16, 16), np.uint8), "train_y": np.array([0, 1], np.uint8)}
    arrays |= {"characters": np.array(list(CHARACTERS)), key: value}
    np.savez(tmp_path / "other.npz", **arrays)
    monkeypatch.setattr(sources, "GLYPHS_FILE", tmp_path / "other.npz")
    with pytest.raises(DataError, match="missing or broken") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_model_files_differ_as_those_of_cifar():
    base, plus, plusplus = (
        parse(["--options", str(MODEL / f"glyphs_dytox{each}.yaml")]) for each in ("", "_plus", "_plusplus")
    )
    assert set(difference(base, plus)) == {"options", "mixup"}
    assert set(difference(plus, plusplus)) == {"options", "sam_rho", "sam_adaptive", "sam_skip_first", "sam_mode"}


def test_a_few_steps(tmp_path):
    job = finish([*SHORT, *folders(tmp_path)], tmp_path)
    assert "glyphs: 10 classes in 2 tasks (5 each)" in job.said()
    summary = json.loads((logs(tmp_path) / "summary.json").read_text())
    assert summary["nb_classes"] == [5, 10] and logs(tmp_path).relative_to(tmp_path / "logs").as_posix().startswith(
        "glyphs/5-5/"
    )

    looked = [command("continual.report", [logs(tmp_path), "--deep", "--out", tmp_path / "page"], tmp_path)]
    looked += [command("continual.compare", [logs(tmp_path), checkpoints(tmp_path)], tmp_path)]
    text = (tmp_path / "page/index.html").read_text()
    assert [code for code, _ in looked] == [0, 0], looked
    assert f"{summary['avg_acc']:.2f}" in text and 'id="exemplars"' in text and 'id="attention"' in text
    assert looked[1][1].endswith("all answers are the same.\n")
