"""Finding, checking, cutting and opening data, on small made-up files in the real formats."""

import os
import pickle
import random
import socket

import numpy as np
import pytest
import torch
from made_up import coloured_images, write_cifar10, write_cifar100, write_image_tree, write_python2_pickle
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from continual import datasets
from continual.data import sources, transforms
from continual.data.samplers import Draw
from continual.datasets import Images, Samples, checked_order, held_out, load, register, task_sizes
from continual.errors import DataError, OptionsError
from continual.registry import DATA_SETS
from continual.tasks import Task

PLAIN = {"mean": datasets.CIFAR_MEAN, "std": datasets.CIFAR_STD}


def read(data_set: str, data_path: object = None, **changes: object) -> datasets.Benchmark:
    path = None if data_path is None else str(data_path)
    settings = {"initial_increment": 0, "increment": 1, "download": False} | changes
    return load(data_set=data_set, data_path=path, **settings)


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cifar")
    write_cifar100(path)
    write_cifar10(path)
    return str(path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ---------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("initial", "increment", "sizes"),
    [
        (50, 10, (50, 10, 10, 10, 10, 10)),
        (0, 25, (25,) * 4),
        (10, 10, (10,) * 10),
        (100, 10, (100,)),
        (200, 7, (100,)),
        (0, [60, 1, 39], (60, 1, 39)),
        (50, [30, 20], (50, 30, 20)),
    ],
)
def test_task_sizes(initial: int, increment: int | list[int], sizes: tuple[int, ...]):
    assert task_sizes(100, initial, increment) == sizes


@pytest.mark.parametrize(
    ("initial", "increment", "told"),
    [
        (50, 7, "50 and then steps of 7 do not add up to 100 classes: 1 would be left after 99"),
        (50, 60, "50 would be left after 50"),
        (0, [60, 50], "initial_increment 0 and then 60, 50 add up to 110, the data has 100 classes"),
        (50, [25, 26], "add up to 101"),
        (50, [100, 0], "one class or more"),
        (50, [], "one class or more"),
        (50, 0, "below 1"),
        (-1, 10, "below 0"),
    ],
)
def test_increments_that_do_not_add_up_are_refused(initial: int, increment: int | list[int], told: str):
    with pytest.raises(OptionsError) as caught:
        task_sizes(100, initial, increment)
    assert told in one_line(caught)


@pytest.mark.parametrize(
    ("sizes", "order"), [((2, 3, 1), [3, 0, 5, 1, 4, 2]), ((6,), [5, 4, 3, 2, 1, 0]), ((1,) * 6, [2, 0, 1, 5, 3, 4])]
)
def test_tasks_are_those_of_continuum(sizes: tuple[int, ...], order: list[int]):
    from continuum import ClassIncremental
    from continuum.datasets import InMemoryDataset

    y = np.random.RandomState(0).permutation(np.repeat(np.arange(6), 7))
    cut = datasets._cut(datasets.Split(np.arange(len(y)), y), sizes, order)
    scenario = ClassIncremental(InMemoryDataset(np.arange(len(y)), y), increment=list(sizes), class_order=order)
    for ours, theirs in zip(cut, scenario.dataset, strict=True):
        assert np.array_equal(ours, theirs)
    assert cut.y.dtype == cut.t.dtype == np.int64


def test_class_orders_that_are_no_permutation_are_refused():
    with pytest.raises(OptionsError) as caught:
        checked_order([0, 1, 1, 5, -2], 5)
    assert one_line(caught) == "class_order: given twice: 1; outside 0 to 4: -2, 5; left out: 2, 3, 4"
    assert checked_order(None, 3) == (0, 1, 2) and checked_order([2, 0, 1], 3) == (2, 0, 1)


def test_options_are_refused_before_any_file_is_touched(tmp_path):
    with pytest.raises(OptionsError, match="add up"):
        read("cifar100", tmp_path / "nowhere", increment=7)
    with pytest.raises(OptionsError, match="left out"):
        read("imagenet1000", tmp_path / "nowhere", class_order=range(999))
    with pytest.raises(OptionsError, match="fraction"):
        read("digits", validation=1.0)
    assert not (tmp_path / "nowhere").exists()


def test_held_out_images_are_a_fraction_of_each_class_and_fixed_by_the_key():
    y = np.array([0] * 10 + [1] * 3 + [2] * 100)
    mask = held_out(y, 0.2, "key")
    assert [int(mask[y == c].sum()) for c in range(3)] == [2, 1, 20]
    assert np.array_equal(mask, held_out(y, 0.2, "key")) and not np.array_equal(mask, held_out(y, 0.2, "other"))
    with pytest.raises(DataError, match="class 1 has 1 training"):
        held_out(np.array([0, 0, 1]), 0.5, "key")


# --------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_the_real_ones_scaled():
    bench = read("Digits", increment=2)
    assert bench.tasks == tuple(Task(i, 2 * i, 2) for i in range(5)) and bench.nb_classes == 10 and bench.root is None
    x = np.concatenate([bench.train_samples.x, bench.test_samples.x])
    assert x.dtype == np.uint8 and x.shape == (1797, 8, 8, 3)
    images, y = load_digits(return_X_y=True)
    expected = sorted((int(label), bytes(round(v * 255 / 16) for v in row)) for row, label in zip(images, y, strict=True))
    found = zip(np.concatenate([bench.train_samples.y, bench.test_samples.y]), x[..., 1], strict=True)
    assert sorted((int(label), image.tobytes()) for label, image in found) == expected
    counts = np.bincount(bench.test_samples.y)
    assert np.array_equal(counts, [round(0.2 * n) for n in np.bincount(y)])
    assert np.array_equal(read("digits", increment=2, seed=5).test_samples.x, bench.test_samples.x)


def test_tasks_bring_new_classes_and_are_tested_on_all_seen():
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    bench = read("digits", increment=[5, 1, 4], class_order=order)
    plain = read("digits", increment=10)
    assert bench.class_order == tuple(order) and [task.nb_seen for task in bench.tasks] == [5, 6, 10]
    for task in bench.tasks:
        samples, tests = bench.train(task.index), bench.test(task.index)
        assert sorted(set(samples.y.tolist())) == list(range(task.nb_old, task.nb_seen))
        assert set(samples.t.tolist()) == {task.index}
        assert sorted(set(tests.y.tolist())) == list(range(task.nb_seen))
        assert samples.y.dtype == samples.t.dtype == tests.y.dtype == np.int64
        for label in range(task.nb_old, task.nb_seen):  # label l is class order[l]
            same = plain.train_samples.x[plain.train_samples.y == order[label]]
            assert np.array_equal(samples.x[samples.y == label], same)


def test_validation_replaces_the_test_set_whatever_the_class_order():
    plain = read("digits")
    bench = read("digits", validation=0.25, seed=1)
    assert len(bench.train_samples.y) + len(bench.test_samples.y) == len(plain.train_samples.y)
    turned = read("digits", validation=0.25, seed=1, class_order=range(9, -1, -1))
    assert np.array_equal(turned.test_samples.x, bench.test_samples.x)
    assert np.array_equal(turned.test_samples.y, 9 - bench.test_samples.y)
    assert not np.array_equal(read("digits", validation=0.25, seed=2).test_samples.x, bench.test_samples.x)


# ---------------------------------------------------------------------------------------------------------------- CIFAR


def test_cifar_files_are_read_without_a_network(cifar: str, no_network: None):
    bench = read("CIFAR", cifar, initial_increment=50, increment=10, download=True)
    assert bench.name == "CIFAR100" and bench.mean == datasets.CIFAR_MEAN and len(bench.tasks) == 6
    assert bench.train_samples.x.shape == (400, 32, 32, 3) and bench.test_samples.x.shape == (200, 32, 32, 3)
    colours = coloured_images(bench.train_samples.y, 1, np.random.RandomState(0))[:, 0, 0].astype(float)
    assert np.abs(bench.train_samples.x.mean(axis=(1, 2)) - colours).max() < 60  # channels and labels are in place
    ten = read("cifar10", cifar, increment=5, download=True)
    assert ten.train_samples.x.shape == (100, 32, 32, 3) and np.array_equal(np.bincount(ten.train_samples.y), [10] * 10)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cifar_files_written_by_python_3_are_read(tmp_path, cifar: str, protocol: int):
    for name in ("train", "test"):
        with open(os.path.join(cifar, "cifar-100-python", name), "rb") as file:
            content = sources._ArrayUnpickler(file, encoding="latin1").load()
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(content, protocol=protocol))
    assert np.array_equal(read("cifar100", tmp_path).train_samples.x, read("cifar100", cifar).train_samples.x)


def test_missing_cifar_says_where_it_looked_and_how_to_get_it(tmp_path):
    with pytest.raises(DataError) as caught:
        read("cifar100", tmp_path / "data")
    told = one_line(caught)
    assert str(tmp_path / "data" / "cifar-100-python") in told and "cifar-100-python.tar.gz" in told
    with pytest.raises(OptionsError, match="data_path"):
        read("cifar100")


def test_failed_download_is_told_on_one_line(tmp_path, no_network: None):
    with pytest.raises(DataError, match="the network is off") as caught:
        read("cifar10", tmp_path, download=True)
    assert "cifar-10-python.tar.gz" in one_line(caught)


class Payload:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


def test_cifar_files_that_would_run_code_are_refused(tmp_path):
    folder, target = write_cifar100(tmp_path), tmp_path / "executed"
    content = {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [0], "more": Payload(str(target))}
    write_python2_pickle(os.path.join(folder, "train"), content)
    with pytest.raises(DataError, match=r"mkdir.*nothing of it was run") as caught:
        read("cifar100", tmp_path)
    assert os.path.join(folder, "train") in one_line(caught) and not target.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a pickle", "cut", {"data": 1}, {"data": np.zeros((2, 5), np.uint8), "fine_labels": [0, 1]}],
)
def test_broken_cifar_files_are_refused(tmp_path, content: object):
    path = os.path.join(write_cifar100(tmp_path, nb_per_class=1), "train")
    if content == "cut":
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
    elif isinstance(content, bytes):
        with open(path, "wb") as file:
            file.write(content)
    else:
        write_python2_pickle(path, content)
    with pytest.raises(DataError, match="is broken") as caught:
        read("cifar100", tmp_path)
    assert path in one_line(caught)


# -------------------------------------------------------------------------------------------------------------- folders


def test_folder_reads_any_size_and_mode(tmp_path):
    write_image_tree(tmp_path, ["cat", "ant", "bee"], 3, 2, (20, 30), test_folder="test")
    Image.fromarray(np.full((9, 50), 128, np.uint8)).save(tmp_path / "train" / "cat" / "grey.png")
    Image.new("RGBA", (40, 12), (10, 20, 30, 40)).save(tmp_path / "train" / "cat" / "see_through.png")
    Image.new("CMYK", (16, 16), (0, 128, 0, 0)).save(tmp_path / "train" / "cat" / "print.jpg")
    (tmp_path / "train" / "cat" / "._cat_0.JPEG").write_bytes(b"a Mac was here")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    bench = read("folder", tmp_path)
    assert bench.nb_classes == 3 and bench.root == str(tmp_path)
    assert bench.train(0).x.tolist() == [f"train/ant/ant_{i}.JPEG" for i in range(3)]
    assert bench.test(2).x.tolist() == [f"test/{c}/{c}_{i}.JPEG" for c in ("ant", "bee", "cat") for i in range(2)]
    for size in (32, 48):
        images = Images(bench.train(2), transforms.test_transform(input_size=size, **PLAIN), root=bench.root)
        assert len(images) == 6
        assert all(images[i][0].shape == (3, size, size) and images[i][1] == 2 for i in range(6))


def test_class_folders_must_agree_and_hold_images(tmp_path):
    write_image_tree(tmp_path, ["ant", "bee"], 1, 1, 8)
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(DataError, match=r"val: 1 too many \(cat\)") as caught:
        read("folder", tmp_path)
    one_line(caught)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="train: no image in cat"):
        read("folder", tmp_path)
    with pytest.raises(DataError, match="nowhere/train: No such file"):
        read("folder", tmp_path / "nowhere")


def test_imagenet100_takes_the_classes_of_its_list(tmp_path):
    wnids = datasets.IMAGENET100_WNIDS.read_text().split()
    assert len(set(wnids)) == 100
    write_image_tree(tmp_path, [*wnids, "n99999999"], 1, 1, 8)  # all of ImageNet has further folders
    bench = read("ImageNet100", tmp_path, increment=10)
    assert bench.train_samples.x.tolist() == [f"train/{wnid}/{wnid}_0.JPEG" for wnid in wnids]
    assert bench.train_samples.y.tolist() == list(range(100)) and bench.mean == (0.485, 0.456, 0.406)
    for wnid in wnids[3:5]:
        os.rename(tmp_path / "val" / wnid, tmp_path / "val" / f"other_{wnid}")
    with pytest.raises(DataError) as caught:
        read("imagenet100", tmp_path, increment=10)
    assert one_line(caught) == f"{tmp_path}/val: 2 of 100 classes missing ({wnids[3]}, {wnids[4]})"


def test_imagenet1000_labels_follow_the_sorted_names(tmp_path):
    names = sorted(sources.ImageNetInfo("imagenet-1k").label_names())
    write_image_tree(tmp_path, names, 1, 1, 2)
    bench = read("imagenet1000", tmp_path, increment=100)
    assert bench.train_samples.x.tolist() == [f"train/{name}/{name}_0.JPEG" for name in names]
    for name in names[20:35]:
        os.rename(tmp_path / "train" / name, tmp_path / name)
    with pytest.raises(DataError, match=f"15 of 1000 classes missing .{names[20]}, .* and 5 more"):
        read("imagenet1000", tmp_path, increment=100)


def test_corrupt_images_are_named_or_skipped(tmp_path):
    write_image_tree(tmp_path, ["ant", "bee"], 4, 2, 64)
    bad = tmp_path / "train" / "bee" / "bee_1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    (tmp_path / "val" / "ant" / "ant_0.JPEG").write_bytes(b"")
    plain = transforms.test_transform(input_size=32, **PLAIN)
    bench = read("folder", tmp_path)
    images = Images(bench.train_samples, plain, root=bench.root)
    with pytest.raises(DataError) as caught:
        images[5]
    assert f"{bad} (index 5)" in one_line(caught)
    with pytest.raises(DataError, match=r"bee_1.JPEG \(index 5\)"):  # also out of a worker
        list(DataLoader(images, batch_size=4, num_workers=1))

    bench = read("folder", tmp_path, skip_corrupt=True)
    assert bench.nb_skipped == 2 and bench.skipped == ("train/bee/bee_1.JPEG", "val/ant/ant_0.JPEG")
    assert [len(bench.train(i).y) for i in range(2)] == [4, 3] and len(bench.test(1).y) == 3
    (tmp_path / "val" / "ant" / "ant_1.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match="no image can be read of 1 classes"):
        read("folder", tmp_path, skip_corrupt=True)


def test_long_and_foreign_paths_are_kept_whole(tmp_path):
    deep = tmp_path / ("d" * 120) / ("é" * 80)
    write_image_tree(deep, ["ant", "a bee"], 1, 1, 8)
    bench = read("folder", deep)
    image, label = Images(bench.train(1), transforms.test_transform(input_size=8, **PLAIN), root=bench.root)[0]
    assert len(os.fsencode(bench.root)) > 255 and image.shape == (3, 8, 8) and label == 1


# ------------------------------------------------------------------------------------------------------ names, own data


@pytest.mark.parametrize(
    ("name", "near"),
    [("imagenet", "imagenet1000"), ("cifar1000", "cifar100"), ("tinyimagenet", "TinyImageNet200"), ("foldr", "folder")],
)
def test_unknown_names_get_the_nearest(name: str, near: str):
    with pytest.raises(OptionsError, match="did you mean") as caught:
        read(name, "/nowhere")
    assert near.lower() in one_line(caught).lower()


def test_names_near_to_nothing_get_the_list():
    with pytest.raises(OptionsError, match=r"known are .*digits.*folder.*SVHN"):
        read("qqqqqq", "/nowhere")


def test_continuum_data_sets_are_found_by_name(tmp_path):
    base = tmp_path / "tiny-imagenet-200"
    names = [f"n{i}" for i in range(3)]
    for i, name in enumerate(names):
        folder = base / "train" / name
        (folder / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64), (80 * i, 0, 0)).save(folder / "images" / f"{name}_0.JPEG")
        (folder / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t9\t9\n")
    (base / "wnids.txt").write_text("\n".join(reversed(names)) + "\n")
    (base / "val" / "images").mkdir(parents=True)
    for i in range(3):
        Image.new("L", (64, 64), 80 * i).save(base / "val" / "images" / f"val_{i}.JPEG")
    lines = [f"val_{i}.JPEG\t{name}\t0\t0\t9\t9\n" for i, name in enumerate(names)]
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    bench = read("tinyimagenet200", tmp_path, initial_increment=2)
    assert bench.name == "TinyImageNet200" and bench.train(1).x.tolist() == ["tiny-imagenet-200/train/n0/images/n0_0.JPEG"]
    images = Images(bench.test(1), transforms.test_transform(input_size=48, **PLAIN), root=bench.root)
    assert [images[i][1] for i in range(3)] == [2, 1, 0]


def test_continuum_data_that_is_missing_says_where_it_looked(tmp_path, no_network: None):
    for download in (False, True):
        with pytest.raises(DataError, match=str(tmp_path)) as caught:
            read("SVHN", tmp_path / "data", download=download)
        one_line(caught)
        assert (tmp_path / "data").exists() == download


def test_continuum_paths_that_may_be_cut_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from continuum.datasets import Food101

    paths = np.array([str(tmp_path / ("x" * 300)).encode()] * 2, dtype="S255")
    monkeypatch.setattr(Food101, "get_data", lambda self: (paths, np.arange(2), None))
    with pytest.raises(DataError, match="longer than the 254 bytes") as caught:
        read("food101", tmp_path)
    one_line(caught)


def test_own_data_in_three_lines(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DATA_SETS, "_outside", {})
    grey = np.random.RandomState(0).randint(0, 256, (6, 5, 7), dtype=np.uint8)
    words = ["b", "a", "b", "a", "c", "c"]
    register("Grey", lambda data_path, train: (grey, words))
    register("one-channel", lambda data_path, train: (grey[..., None], words))
    for name in ("grey", "ONE-CHANNEL"):
        bench = read(name)
        assert np.array_equal(bench.train_samples.x, np.stack([grey] * 3, axis=-1))
        assert bench.train_samples.y.tolist() == [1, 0, 1, 0, 2, 2]

    register("sizes", lambda data_path, train: ([grey[0], grey[1, :3], np.stack([grey[2, :, :2]] * 3, -1)], [0, 1, 2]))
    samples = read("sizes").train_samples
    images = Images(samples, transforms.test_transform(input_size=8, **PLAIN))
    assert samples.x.dtype == object and all(images[i][0].shape == (3, 8, 8) for i in range(3))

    register("paths", lambda data_path, train: ([os.path.join(data_path, "a.png"), "sub/b.png"], [0, 1]))
    assert read("paths", tmp_path).train_samples.x.tolist() == ["a.png", "sub/b.png"]
    with pytest.raises(OptionsError, match="add up"):
        read("sizes", increment=2)


def test_own_data_may_have_any_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DATA_SETS, "_outside", {})
    register("My-Images 2", lambda data_path, train: (np.zeros((2, 4, 4), np.uint8), [0, 1]))
    assert read("my-images 2").name == "My-Images 2" and list(DATA_SETS.outside()) == ["my-images 2"]
    with pytest.raises(OptionsError, match="did you mean My-Images 2"):
        read("my-images")


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 1], "images must be uint8"),
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "images must be uint8"),
        ([np.zeros((4, 4)), np.zeros((5, 5))], [0, 1], "image 0 must be uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1, 2], "2 images and 3 labels"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int), "0 images and 0 labels"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1.0], "one integer or word each"),
        (["/etc/a.png", "../b.png"], [0, 1], "is not inside the data folder"),
    ],
)
def test_own_data_of_the_wrong_kind_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch, x: object, y: object, told: str):
    monkeypatch.setattr(DATA_SETS, "_outside", {})
    register("own", lambda data_path, train: (x, y))
    with pytest.raises(DataError, match=told) as caught:
        read("own", tmp_path)
    one_line(caught)


def test_test_images_must_be_of_the_training_classes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DATA_SETS, "_outside", {})
    x = np.zeros((3, 4, 4), np.uint8)
    register("own", lambda data_path, train: (x, [0, 1, 2] if train else [0, 1, 7]))
    with pytest.raises(DataError, match=r"1 of 3 classes missing \(2\), 1 too many \(7\)"):
        read("own")


# --------------------------------------------------------------------------------------------------------------- images


@pytest.fixture
def augmented(cifar: str) -> Images:
    transform = transforms.train_transform(
        input_size=32,
        aa="rand-m9-mstd0.5-inc1",
        color_jitter=0.4,
        hflip=0.5,
        interpolation="bicubic",
        reprob=0.25,
        remode="pixel",
        recount=1,
        **PLAIN,
    )
    return Images(read("cifar10", cifar).train_samples, transform)


def test_an_image_depends_on_its_key_alone(augmented: Images):
    def drawn(images: Images, rows: range, run: int = 0) -> list:
        return images.__getitems__(Draw(np.array(rows), ("run", run), np.array(rows)))

    first = drawn(augmented, range(8))
    copy = pickle.loads(pickle.dumps(augmented))
    random.seed(1)
    state = random.getstate()
    for i in reversed(range(8)):
        ((image, label),) = drawn(copy, range(i, i + 1))
        assert torch.equal(image, first[i][0]) and label == first[i][1] and type(label) is int
    assert random.getstate() == state
    assert not torch.equal(drawn(augmented, range(1), run=1)[0][0], first[0][0])
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    halves = [Draw(np.arange(4), ("run", 0), np.arange(4)), Draw(np.arange(4, 8), ("run", 0), np.arange(4, 8))]
    for workers in (0, 2):
        loaded = DataLoader(augmented, batch_sampler=halves, num_workers=workers)
        assert torch.equal(torch.cat([x for x, _ in loaded]), torch.stack([x for x, _ in first]))


def test_arrays_are_opened_as_they_are():
    x = np.random.RandomState(0).randint(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    samples = Samples(x, np.array([4, 5]), np.array([0, 0]))
    images = Images(samples, lambda image: torch.tensor(np.asarray(image)))
    assert torch.equal(images[1][0], torch.tensor(x[1])) and images[1][1] == 5
    assert samples.take(np.array([1])).y.tolist() == [5]
