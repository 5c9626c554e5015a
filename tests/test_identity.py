"""What a run knows of its data: names, order, which images, and what they are normalised by."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from jobs import ROOT, TINY, assert_same_results, checkpoints, finish, folders, logs, run, states
from made_up import write_cifar10, write_cifar100, write_image_tree, write_python2_pickle
from PIL import Image

from continual import datasets
from continual.data import identity, sources
from continual.data.normalisation import normalised
from continual.data.scenario import joint_by_accident
from continual.datasets import Samples, checked_order, load, register
from continual.errors import CheckpointError, DataError, OptionsError
from continual.options import Options, replace
from continual.registry import DATA_SETS
from continual.runs import checkpoint
from continual.runs.checkpoint import as_identity, differences, refuse_another
from continual.runs.series import of_series

WORDS = ["ant", "bee", "cat", "dog"]


def read(data_set, data_path=None, **changes):
    path = None if data_path is None else str(data_path)
    return load(data_set=data_set, data_path=path, **{"initial_increment": 0, "increment": 1, "download": False, **changes})


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(DATA_SETS, "_outside", {})
    monkeypatch.setattr(datasets, "NB_CLASSES", dict(datasets.NB_CLASSES))


# ------------------------------------------------------------------------------------------------- the data of a resume


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run on files without a memory, and one that was stopped in the second epoch of its second task."""
    folder = tmp_path_factory.mktemp("begun")
    write_image_tree(folder / "data", WORDS, 9, 2, 8)
    argv = [*TINY, "--data-set", "folder", "--data-path", str(folder / "data"), "--batch-size", "4"]
    argv += ["--memory-size", "0", "--finetuning", ""]
    finish([*argv, *folders(folder / "done")], folder)
    assert run([*argv, *folders(folder / "stopped")], folder, fault="term:step:7").codes == [75]
    return folder


@pytest.fixture
def copied(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "moved")
    return tmp_path / "moved"


def rename_class(data):
    for split in ("train", "val"):
        (data / split / "bee").rename(data / split / "zebra")


def swap_names(data):
    for split in ("train", "val"):
        for before, after in (("bee", "x"), ("cat", "bee"), ("x", "cat")):
            (data / split / before).rename(data / split / after)


def another_image(split):
    def change(data):
        (data / split / "cat" / "cat_1.JPEG").rename(data / split / "cat" / "cat_7b.JPEG")

    return change


def other_labels(data):
    for before, after in (("ant", "dog"), ("dog", "ant")):
        (data / "train" / before / f"{before}_0.JPEG").rename(data / "train" / after / f"z_{before}.JPEG")


CHANGES = [
    (
        rename_class,
        "the class of label 1 was 'bee', is 'cat'; the training images, their labels or their order differ; the test",
    ),
    (
        swap_names,
        "the training images, their labels or their order differ; the test images, their labels or their order differ",
    ),
    (another_image("train"), "another experiment: the training images, their labels or their order differ ("),
    (another_image("val"), "another experiment: the test images, their labels or their order differ ("),
    (other_labels, "another experiment: the training images, their labels or their order differ ("),
]


@pytest.mark.parametrize("change, told", CHANGES, ids=["rename", "swap", "training", "test", "labels"])
@pytest.mark.parametrize("how", [["done"], ["done", "--eval"], ["stopped"]], ids=" ".join)
def test_other_data_are_refused(how, change, told, copied):
    which, *more = how
    change(copied / "data")
    job = run(["--resume", str(checkpoints(copied / which)), "--data-path", str(copied / "data"), *more], copied)
    last = job.said().strip().splitlines()[-1]
    assert job.codes == [4] and last.startswith("error: the checkpoint is of another experiment: ") and told in last


def test_other_test_images_if_one_insists(copied):
    another_image("val")(copied / "data")
    argv = ["--resume", str(checkpoints(copied / "done")), "--data-path", str(copied / "data"), "--eval"]
    assert "4 classes" in finish([*argv, "--resume-anyway"], copied).said()


def test_old_checkpoints_are_silent_about_their_data(copied):
    """They go on inside the epoch as if nothing were new; what they do say still counts."""
    for path in checkpoints(copied / "stopped").glob("0*.json"):
        manifest = json.loads(path.read_text())
        for key in (*checkpoint.OF_THE_DATA, "mean", "std"):
            del manifest["identity"][key]
        manifest["seal"] = checkpoint.seal(manifest)
        path.write_text(checkpoint._as_text(manifest))
    argv = ["--resume", str(checkpoints(copied / "stopped")), "--data-path", str(copied / "data")]
    for changed, told in (["--mean", "0.5"], "mean was None, is [0.5]"), (["--increment", "1"], "increment was 2, is 1"):
        job = run([*argv, *changed], copied)
        assert job.codes == [4] and told in job.said()
    assert "resumed from task-2-training-epoch-2-step-1: task-2-training-epoch-2-step-1" in finish(argv, copied).said()
    assert_same_results(copied / "stopped", copied / "done")
    rename_class(copied / "data")
    assert run(argv, copied).codes == [4]  # what it has written since, tells


def test_only_what_the_first_runs_left_out_is_not_compared():
    now = {"embed_dim": 8, "classes": ["a"], "training_digest": "0", "test_digest": "1", "normalisation": [[0.5], [1]]}
    assert differences({"embed_dim": 8}, now) == [] and differences({}, now) == ["embed_dim"]
    assert differences({**now, "classes": ["b"], "x": 1}, now) == ["classes", "x"]
    with pytest.raises(CheckpointError, match="classes was \\['a', 'b'\\], is \\['a'\\]"):
        refuse_another({**now, "classes": ["a", "b"]}, now)


# ---------------------------------------------------------------------------------------------------------- the digest


def samples(x, y):
    return Samples(x, np.array(y), np.zeros(len(y), dtype=np.int64))


def objects(*images):
    x = np.empty(len(images), dtype=object)
    x[:] = images
    return x


PIXELS = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
KINDS = {
    "paths": np.array(["train/a/é.png", "train/a/b.png", "train/c d/e.png", "train/\udcff/f.png"]),
    "pixels": PIXELS,
    "sizes": objects(PIXELS[0], PIXELS[1, :1], PIXELS[2, :, :, :1], PIXELS[3, :, :, 0]),
}


@pytest.mark.parametrize("x", KINDS.values(), ids=KINDS)
def test_a_digest_tells_images_and_labels_apart(x):
    y = [0, 0, 1, 2]
    found = identity.digest(samples(x, y))
    assert len(found) == 64 and found == identity.digest(samples(x.copy(), y))
    assert found == identity.digest(samples(x[[2, 0, 3, 1]], [1, 0, 2, 0]))  # label by label
    others = [samples(x, [0, 1, 1, 2]), samples(x[[1, 0, 2, 3]], y), samples(x[[0, 1, 3, 2]], y), samples(x[:3], y[:3])]
    assert found not in [identity.digest(other) for other in others]
    assert len({identity.digest(other) for other in others}) == len(others)


def test_a_digest_sees_every_pixel_and_shape(monkeypatch):
    monkeypatch.setattr(identity, "BLOCK", 3)
    y = [0, 1, 2, 3]
    changed = PIXELS.copy()
    changed[3, 1, 1, 2] ^= 1
    all_of = [PIXELS, changed, PIXELS.reshape(4, 1, 4, 3), objects(*PIXELS[:3], PIXELS[3].reshape(1, 4, 3)), objects(*PIXELS)]
    assert len({identity.digest(samples(x, y)) for x in all_of}) == len(all_of)


def test_the_split_used_counts(tmp_path):
    write_image_tree(tmp_path, WORDS, 8, 2, 8)
    plain = identity.of_data(read("folder", tmp_path))
    kept, other = (identity.of_data(read("folder", tmp_path, validation=0.25, seed=seed)) for seed in (0, 1))
    assert json.loads(json.dumps(plain)) == plain
    changed = ["training_images", "test_images", "training_digest", "test_digest"]
    assert [key for key in plain if plain[key] != kept[key]][-2:] == changed[2:] and plain["training_images"] == 32
    assert [key for key in plain if kept[key] != other[key]] == changed[2:]
    path = tmp_path / "train" / "bee" / "bee_1.JPEG"
    path.write_bytes(b"")
    broken = identity.of_data(read("folder", tmp_path, skip_corrupt=True))
    path.unlink()
    assert identity.of_data(read("folder", tmp_path)) == broken


# ------------------------------------------------------------------------------------------------------------- the names


def test_digits_have_names():
    bench = read("digits", increment=[4, 6], class_order=[str(digit) for digit in range(9, -1, -1)])
    assert bench.class_order == tuple(range(9, -1, -1)) and [row["name"] for row in bench.classes()] == list("9876543210")
    assert bench.classes()[4] == {"label": 4, "class": 5, "name": "5", "task": 1}


@pytest.mark.parametrize(
    "name, write, file, key", [("cifar100", write_cifar100, "meta", "fine_"), ("cifar10", write_cifar10, "batches.meta", "")]
)
def test_cifar_has_the_names_of_its_file(tmp_path, name, write, file, key):
    folder = write(tmp_path)
    bench = read(name, tmp_path)
    assert bench.class_names == tuple(f"class {c}" for c in range(bench.nb_classes))
    order = [f"class {c}" for c in range(bench.nb_classes)][::-1]
    assert read(name, tmp_path, class_order=order).class_order == tuple(reversed(range(bench.nb_classes)))
    path = os.path.join(folder, file)
    for content in ({f"{key}label_names": ["a"]}, {f"{key}label_names": list(range(bench.nb_classes))}, {"a": 1}, [1]):
        write_python2_pickle(path, content)
        with pytest.raises(DataError, match=f"{file} is broken or no {bench.name} file"):
            read(name, tmp_path)
    os.remove(path)
    assert read(name, tmp_path).class_names == tuple(map(str, range(bench.nb_classes)))


def test_cifar_names_run_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    write_python2_pickle(os.path.join(write_cifar100(tmp_path), "meta"), {"fine_label_names": Payload()})
    with pytest.raises(DataError, match=r"meta is refused: .*mkdir.*nothing of it was run"):
        read("cifar100", tmp_path)
    assert not (tmp_path / "executed").exists()


def test_imagenet_has_wordnet_ids_and_what_they_mean(tmp_path):
    wnids = datasets.IMAGENET100_WNIDS.read_text().split()
    write_image_tree(tmp_path, wnids, 1, 1, 2)
    bench = read("imagenet100", tmp_path, increment=50, class_order=wnids[::-1])
    row = bench.classes()[99]
    assert row["label"] == 99 and row["class"] == 0 and row["name"] == wnids[0] == "n01440764" and row["task"] == 1
    assert "tench" in row["description"]


def test_folders_and_own_words_are_names(tmp_path, own):
    write_image_tree(tmp_path, [str(n) for n in range(1, 12)], 1, 1, 4)
    names = read("folder", tmp_path).class_names
    assert names == ("1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
    assert read("folder", tmp_path, class_order=range(10, -1, -1)).class_order == tuple(range(10, -1, -1))  # ids
    assert read("folder", tmp_path, class_order=list(map(str, range(1, 12)))).class_order == (0, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2)
    x = np.zeros((3, 4, 4), np.uint8)
    register("words", lambda data_path, train: (x, ["b", "ä", "a"]))
    assert [row["name"] for row in read("words", class_order=["b", "ä", "a"]).classes()] == ["b", "ä", "a"]
    register("numbers", lambda data_path, train: (x, [7, 5, 30]))
    bench = read("numbers", class_order=["30", "5", "7"])
    assert bench.class_order == (2, 0, 1) and bench.class_names == ("5", "7", "30")


def test_continuum_gives_the_names_it_has(tmp_path):
    base = tmp_path / "data"
    x = np.array([f"sets/{name}/images/{index}.png" for name in ("n1", "n0") for index in range(2)])
    assert sources._offered_names(base, x, np.array([0, 0, 1, 1])) == ("n1", "n0")
    assert sources._offered_names(base, x, np.array([0, 1, 1, 1])) == ()  # no folder of its own
    assert sources._offered_names(base, x, np.zeros((4, 2), int)) == ()  # for others to refuse
    assert sources._offered_names(base, PIXELS, np.array([0, 1, 2, 3])) == ()

    class Torchvision:
        classes = ("T-shirt/top", "Bag", "Coat")

    data = type("Data", (), {"dataset": Torchvision()})()
    assert sources._offered_names(data, PIXELS, np.array([0, 2, 2, 1])) == Torchvision.classes
    assert sources._offered_names(data, PIXELS, np.array([0, 1, 1, 1])) == ()


@pytest.mark.parametrize(
    "order, told",
    [
        (["ant", "bee", "cat"], "left out: 'dog'"),
        (["ant", "bee", "cat", "dog", "ant"], "given twice: 'ant'"),
        (["ant", "bee", "cta", "dog"], "there is no class 'cta'; the nearest is 'cat'"),
        (["ant", "bee", "cat", "\n" * 5000], "there is no class '\\n"),
        (["ant", "bee", "cat", "3"], "(a number among names is a name, too; numbers alone are class ids)"),
        (["ant", 1, "cat", "dog"], "there is no class '1'"),
        ([0, 1, 2, 4], "outside 0 to 3: 4; left out: 3"),
    ],
)
def test_class_orders_that_are_refused(order, told):
    with pytest.raises(OptionsError) as caught:
        checked_order(order, 4, WORDS)
    assert told in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(OptionsError, match="several classes are called 'ant'; use class ids"):
        checked_order(["ant", "bee"], 2, ["ant", "ant", "bee"])


def test_names_order_a_run_and_are_left_by_it(tmp_path):
    write_image_tree(tmp_path / "data", WORDS, 5, 2, 8)
    argv = [*TINY, "--data-set", "folder", "--data-path", str(tmp_path / "data"), "--memory-size", "8", "--batch-size", "4"]
    argv += ["--max-task", "1", *folders(tmp_path)]
    job = finish([*argv, "--class-order", "dog", "ant", "cat", "bee"], tmp_path)
    assert "classes     task 1: dog, ant\n" in job.said()
    rows = json.loads((logs(tmp_path) / "classes.json").read_text())
    assert rows == [
        {"label": 0, "class": 3, "name": "dog", "task": 0},
        {"label": 1, "class": 0, "name": "ant", "task": 0},
        {"label": 2, "class": 2, "name": "cat", "task": 1},
        {"label": 3, "class": 1, "name": "bee", "task": 1},
    ]
    assert all(state["classes"] == rows for state in states(checkpoints(tmp_path)).values())
    assert json.loads(next(checkpoints(tmp_path).glob("0*.json")).read_text())["identity"]["class_order"] == [3, 0, 2, 1]
    (logs(tmp_path) / "classes.json").unlink()
    finish(["--resume", str(checkpoints(tmp_path)), "--max-task", "2", "--class-order", "3", "0", "2", "1"], tmp_path)
    assert json.loads((logs(tmp_path) / "classes.json").read_text()) == rows
    job = run([*argv, "--class-order", "dog", "ant", "cow", "bee"], tmp_path)
    assert job.codes == [2] and job.said().strip().endswith("error: class_order: there is no class 'cow'; the nearest is 'dog'")


def test_several_orders_of_names():
    options = replace(Options(), data_set="folder", class_order=[["1", "2"], ["2", "1"]])
    assert options.data.class_orders() == (("1", "2"), ("2", "1"))
    runs = [run.data.class_order for run in of_series(options).values()]
    assert runs == [("1", "2"), ("2", "1")]  # still names
    with pytest.raises(OptionsError, match="labels named more than once in order 2: 'b'"):
        replace(options, class_order=[["a", "b"], ["b", "b"]])
    with pytest.raises(OptionsError, match="order 3 and order 1 are not of the same classes: 'a', 'x'"):
        replace(options, class_order=[["a", "b"], ["b", "a"], ["x", "b"]])


# ---------------------------------------------------------------------------------------------------- one task, no torch


@pytest.mark.parametrize(
    "nb_classes, initial, increment, told",
    [
        (4, 50, 2, "all 4 classes come at once, in one task, because initial_increment is 50; --initial-increment 0 makes 2"),
        (10, 50, 10, "because initial_increment is 50; --initial-increment and --increment with sizes"),
        (4, 50, (1, 3), "--initial-increment 0 makes 2 tasks"),
        (4, 7, 3, "because initial_increment is 7"),
        (50, 50, 10, "--initial-increment 0 makes 5 tasks"),
        (10, 0, 10, "because increment is 10; "),
        (10, 10, 10, ""),
        (100, 100, 10, ""),
        (1, 50, 10, ""),
        (4, 0, 4, ""),
        (4, 2, 2, ""),
        (100, 50, 10, ""),
    ],
)
def test_one_task_by_accident(nb_classes, initial, increment, told):
    said = joint_by_accident(nb_classes, initial, increment, defaults=(50, 10))
    assert told in said and bool(said) == bool(told)


@pytest.mark.parametrize("initial, said", [("50", True), ("10", False)])
def test_one_task_is_said_in_the_greeting(tmp_path, initial, said):
    job = finish([*TINY, "--initial-increment", initial, "--max-task", "1", *folders(tmp_path)], tmp_path)
    assert ("all 10 classes come at once, in one task" in job.said()) == said


def test_wrong_sizes_need_no_torch():
    code = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None  # importing them is an error
from continual.options import parse_or_exit
parse_or_exit(sys.argv[1:])
"""
    for argv in (["--data-set", "ImageNet1000", "--increment", "7"], ["--class-order", *"01234567"]):
        found = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
        assert found.returncode == 2 and found.stderr.count("\n") == 1 and "data_set: " in found.stderr


def test_an_own_data_set_in_the_place_of_one_whose_size_was_known(own):
    register("Digits", lambda data_path, train: (np.zeros((3, 4, 4), np.uint8), [0, 1, 2]))
    assert "digits" not in datasets.NB_CLASSES and read("digits").nb_classes == 3


# --------------------------------------------------------------------------------------------------------- normalisation


def options(**changes):
    return replace(Options(), data_set="folder", **changes).data


def test_auto_measures_the_first_task_as_the_model_sees_it(tmp_path):
    write_image_tree(tmp_path, ["a", "b"], 1, 1, 8)
    for name, colour in (("a", (255, 0, 51)), ("b", (9, 9, 9))):
        for file in (tmp_path / "train" / name).iterdir():
            file.unlink()
        Image.new("RGB", (20, 10), colour).save(tmp_path / "train" / name / "0.png")
    half = np.zeros((8, 8, 3), np.uint8)
    half[:, :4] = 102
    Image.fromarray(half).save(tmp_path / "train" / "a" / "1.png")
    bench = normalised(read("folder", tmp_path), options(mean="auto", std="auto"), input_size=8)
    pixels = np.array([[255, 0, 51]] * 64 + [[102] * 3] * 32 + [[0] * 3] * 32) / 255  # of both images, without the margins
    assert bench.mean == tuple(np.round(pixels.mean(0), 6)) and bench.std == tuple(np.round(pixels.std(0), 6))
    turned = read("folder", tmp_path, class_order=["b", "a"])
    assert normalised(turned, options(mean="auto"), input_size=8).mean == (0.035294,) * 3
    with pytest.raises(OptionsError, match=r"std: auto found \[0.0, 0.0, 0.0\], which is too little to divide by"):
        normalised(turned, options(std="auto"), input_size=8)


def test_auto_on_arrays_is_what_their_pixels_say():
    bench = read("digits", increment=[3, 7])
    found = normalised(bench, options(mean="auto", std="auto"), input_size=8)
    first = bench.train(0).x[..., 0] / 255
    assert found.mean == (round(first.mean(), 6),) * 3 and found.std == (round(first.std(), 6),) * 3
    assert normalised(bench, options(mean="auto", std="auto"), input_size=16).std != found.std


def test_an_option_goes_before_register_and_that_before_the_default(own):
    x = np.zeros((3, 4, 4), np.uint8)
    register("own", lambda data_path, train: (x, [0, 1, 2]), mean=0.25, std=(0.5, 0.6, 0.7))
    bench = read("own")
    assert bench.mean == (0.25,) * 3 and bench.std == (0.5, 0.6, 0.7)
    given = normalised(bench, options(mean=0.125), input_size=4)
    assert given.mean == (0.125,) * 3 and given.std == bench.std
    assert identity.of_data(given)["normalisation"] == [[0.125] * 3, [0.5, 0.6, 0.7]]
    register("own", lambda data_path, train: (x, [0, 1, 2]), std=np.array([0.5]))
    assert read("own").mean == (0.485, 0.456, 0.406) and read("own").std == (0.5,) * 3


@pytest.mark.parametrize("key, value", [("mean", 120), ("mean", (0.5, 0.5)), ("std", 0), ("std", "auto"), ("std", None)])
def test_register_is_refused_what_options_are(own, key, value):
    register("own", lambda data_path, train: (np.zeros((3, 4, 4), np.uint8), [0, 1, 2]), **{key: value})
    with pytest.raises(OptionsError, match=f"^own: {key}: must be one number or three, from 0"):
        read("own")


def test_a_run_is_normalised_as_told(tmp_path):
    """And its resume by the same numbers; two processes find what one does."""
    argv = [*TINY, "--max-task", "1", "--mean", "auto", "--std", "0.25"]
    finish([*argv, *folders(tmp_path / "one")], tmp_path)
    job = finish([*argv, *folders(tmp_path / "two")], tmp_path, processes=2)
    manifests = [next(checkpoints(tmp_path / name).glob("0*.json")).read_text() for name in ("one", "two")]
    one, two = (json.loads(manifest)["identity"] for manifest in manifests)
    assert one == two and one["mean"] == ["auto"] and one["normalisation"][1] == [0.25] * 3
    first = load(data_set="digits", data_path=None, initial_increment=2, increment=2).train(0).x / 255
    assert abs(one["normalisation"][0][0] - first.mean()) < 0.05  # of resized images
    assert "and std 0.25 0.25 0.25" in job.said()
    resume = ["--resume", str(checkpoints(tmp_path / "one"))]
    assert run([*resume, "--std", "0.5"], tmp_path).codes == [4]
    finish([*resume, "--eval"], tmp_path)


def test_class_names_of_any_kind_fit_in_a_checkpoint(tmp_path):
    store = checkpoint.Store(tmp_path)
    rows = [{"label": 0, "class": 0, "name": "n\n\udcff é", "task": 0}]
    store.save({"classes": rows}, name="x", identity={"classes": ["\udcff"]}, task=0, finished_task=False)
    state, manifest = store.load()
    assert state == {"classes": rows} and manifest["identity"] == {"classes": ["\udcff"]}
    assert isinstance(torch.load(next(tmp_path.glob("*.pt")), weights_only=True)["classes"], list)


@pytest.mark.parametrize(("no_amp", "amp"), [(True, "off"), (False, "auto")])
def test_a_run_from_before_there_was_batched_augmentation(no_amp, amp):
    """It went through Pillow, in the precision that `no_amp` said; with `--augment pillow` it goes on as that."""
    now = as_identity(replace(Options(), augment="pillow", no_amp=no_amp))
    assert now["amp"] == amp
    later = ("augment", "amp", "compile", "deterministic", "channels_last")
    stored = {key: value for key, value in now.items() if key not in later}
    assert differences(stored, now) == []
    assert differences(stored, as_identity(replace(Options(), no_amp=no_amp))) == ["augment"]
