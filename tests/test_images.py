"""Images of every kind that people have, from files and from functions of their own, down to what the model is shown."""

import os
import re
import struct
import zlib
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from jobs import finish, run
from made_up import write_cifar10, write_image_tree
from PIL import Image
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from continual import datasets
from continual.data import opening, sources, transforms
from continual.data.samplers import Draw
from continual.datasets import Images, Samples, load, register
from continual.errors import DataError
from continual.options import Options, parse
from continual.registry import DATA_SETS
from continual.rehearsal import Memory
from continual.runs.experiment import Experiment, images_of
from continual.runs.folders import Place
from continual.runs.greeting import greeting
from continual.tasks import Task
from continual.training.engine import Loading

ROOT = Path(datasets.__file__).parent.parent
GREY = np.arange(12, dtype=np.uint8).reshape(4, 3) * 20  # no two pixels and no two sides alike


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATA_SETS, "_outside", {})


def read(data_set: str, data_path: object = None, **changes: object) -> datasets.Benchmark:
    settings = {"initial_increment": 0, "increment": 1, "download": False} | changes
    return load(data_set=data_set, data_path=None if data_path is None else str(data_path), **settings)


def shown(path: os.PathLike, *, upright: bool = True) -> np.ndarray:
    """The pixels (H, W, 3) that a transform is given for a file."""
    samples = Samples(np.array([path.name]), np.array([0]), np.array([0]))
    images = Images(samples, lambda image: torch.tensor(np.asarray(image)), root=str(path.parent), upright=upright)
    return images[0][0].numpy()


def pixel(path: os.PathLike) -> list[int]:
    return shown(path)[0, 0].tolist()


def refused(call: object, *told: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in told), str(caught.value)


def folder(path: Path, *, split: str = "train", classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    """ROOT/`split`/CLASS/0.png for each class; returns the folder of the first."""
    for name in classes:
        (path / split / name).mkdir(parents=True)
        Image.fromarray(GREY).save(path / split / name / "0.png")
    return path / split / classes[0]


# ----------------------------------------------------------------------------------------------------------- wide pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png16(path: Path, colour_type: int, values: np.ndarray, more: bytes = b"") -> None:
    """A PNG of 16 bits per channel, which Pillow cannot write in colour; `values` is uint16 (H, W, C)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_tiff12(path: Path, value: int) -> None:
    """A little-endian TIFF of 2 × 1 pixels in 12 bits, both of that value."""
    packed = struct.pack(">I", value << 12 | value)[1:]
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, content) for tag, content in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 12) + packed + b"\0" + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize("ending", ["png", "tif", "jp2"])
def test_grey_images_of_16_bits_are_scaled_to_8(tmp_path, ending: str):
    values = np.array([[0, 128, 129, 5000], [32767, 65278, 65407, 65535]] * 4, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    expected = [[0, 0, 1, 19], [127, 254, 255, 255]] * 4
    assert np.array_equal(shown(tmp_path / f"x.{ending}"), np.stack([expected] * 3, -1))


def test_scaling_is_exact():
    for white in (65535, 4095):
        values = np.arange(white + 1)
        assert np.array_equal(opening.eight_bits(values.astype(np.uint16), white), (values * 510 + white) // (2 * white))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_every_order_of_bytes_is_scaled(mode: str):
    image = Image.new(mode, (3, 2), 5000)
    assert np.asarray(opening.as_rgb(image, upright=True)).tolist() == [[[19] * 3] * 3] * 2


def test_a_grey_png_that_opens_as_mode_i_has_16_bits():
    image = Image.new("I", (2, 2), 5000)
    image.format = "PNG"  # as older versions of Pillow open it
    assert opening.as_rgb(image, upright=True).getpixel((0, 0)) == (19, 19, 19)


def test_wide_values_of_other_formats_are_scaled(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 1000\n" + struct.pack(">HH", 500, 1000))
    assert shown(tmp_path / "x.pgm")[0, :, 0].tolist() == [128, 255]
    write_tiff12(tmp_path / "x.tif", 2048)
    assert pixel(tmp_path / "x.tif") == [128] * 3
    for colour_type, channels in ((2, 3), (6, 4)):
        values = np.full((2, 2, channels), 65535, np.uint16)
        values[..., :3] = 5000, 40000, 60000
        write_png16(tmp_path / "x.png", colour_type, values)
        assert pixel(tmp_path / "x.png") == [19, 156, 234]


def test_pixels_of_32_bits_are_refused_before_training_by_path_and_mode(tmp_path):
    first = folder(tmp_path)
    folder(tmp_path, split="test")
    read("folder", tmp_path)
    Image.new("F", (4, 4), 0.5).save(first / "1.tif")
    refused(lambda: read("folder", tmp_path), str(first / "1.tif"), "mode F", "8 or 16 bits")
    refused(lambda: read("folder", tmp_path, skip_corrupt=True), "mode F")
    Image.new("I", (4, 4), 70000).save(first / "0.tif")
    refused(lambda: read("folder", tmp_path), str(first / "0.tif"), "mode I", "and 1 more like it")
    register("listed", lambda data_path, train: (["train/ant/0.png", "train/ant/1.tif"], [0, 1]))
    refused(lambda: read("listed", tmp_path), str(first / "1.tif"), "mode F")
    refused(lambda: shown(first / "0.tif"), "mode I")


def test_only_endings_that_may_hold_32_bits_are_opened_beforehand(tmp_path, monkeypatch: pytest.MonkeyPatch):
    write_image_tree(tmp_path, ["ant", "bee"], 2, 1, 8, test_folder="test")
    Image.fromarray(GREY).save(tmp_path / "train" / "ant" / "0.png")
    Image.fromarray(GREY).save(tmp_path / "train" / "bee" / "1.TIFF")
    (tmp_path / "train" / "bee" / "2.tif").write_bytes(b"broken")
    opened = []
    whole = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(os.path.basename(path)) or whole(path))
    read("folder", tmp_path)
    assert sorted(opened) == ["1.TIFF", "2.tif"]


# ------------------------------------------------------------------------------------------------------------------ EXIF


def save_turned(path: Path, orientation: int, **how: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).save(path, exif=exif, **how)


TURNED = {2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T, 6: np.rot90(GREY, -1)}
TURNED |= {7: GREY[::-1, ::-1].T, 8: np.rot90(GREY)}


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_are_turned_as_exif_says(tmp_path, orientation: int):
    for name, how in (("x.png", {}), ("x.tif", {}), ("y.tif", {"compression": "tiff_lzw"}), ("x.webp", {"lossless": True})):
        save_turned(tmp_path / name, orientation, **how)
        assert np.array_equal(shown(tmp_path / name)[..., 0], TURNED[orientation]), name
    assert np.array_equal(shown(tmp_path / "x.png", upright=False)[..., 0], GREY)


def test_exif_counts_for_folders_and_own_data_but_not_for_imagenet(tmp_path):
    for split in ("train", "test"):
        save_turned(folder(tmp_path, split=split) / "0.png", 6)
    register("listed", lambda data_path, train: (["train/ant/0.png", "train/bee/0.png"], [0, 1]))
    register("open", lambda data_path, train: ([Image.open(tmp_path / f"train/{c}/0.png") for c in ("ant", "bee")], [0, 1]))

    def first(bench: datasets.Benchmark) -> np.ndarray:
        one_by_one = parse(["--input-size", "8", "--patch-size", "4", "--augment", "pillow"])
        plain = images_of(one_by_one, bench)(bench.train(0), augment=False)
        plain.transform, plain.finish = lambda image: torch.tensor(np.asarray(image)[..., 0]), lambda images: images
        return plain[0][0].numpy()

    for name in ("folder", "listed", "open"):
        assert np.array_equal(first(read(name, tmp_path)), TURNED[6]), name
    names = sorted(sources.ImageNetInfo("imagenet-1k").label_names())[:2]
    for split in ("train", "val"):
        save_turned(folder(tmp_path / "imagenet", split=split, classes=tuple(names)) / "0.png", 6)
    source = sources.SOURCES["imagenet1000"]
    assert not source.upright and not sources.SOURCES["imagenet100"].upright
    small = sources.Source("two", lambda *how: sources._imagenet(2, *how), nb_classes=2, upright=source.upright)
    DATA_SETS.put("two", small)
    assert np.array_equal(first(read("two", tmp_path / "imagenet")), GREY)


@pytest.mark.filterwarnings("error")
def test_exif_that_is_broken_is_passed_over(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert np.array_equal(shown(tmp_path / "x.png")[..., 0], GREY)


# ----------------------------------------------------------------------------------------------------------------- alpha


def test_what_is_see_through_shows_white(tmp_path):
    half = (255 + 40) // 2
    for mode, colour, expected in [
        ("RGBA", (40, 40, 40, 128), half),
        ("RGBA", (40, 41, 42, 255), 40),
        ("LA", (40, 128), half),
        ("LA", (40, 0), 255),
    ]:
        Image.new(mode, (2, 2), colour).save(tmp_path / "x.png")
        assert abs(pixel(tmp_path / "x.png")[0] - expected) <= 1
    assert pixel(tmp_path / "x.png") == [255] * 3
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for how in ({"transparency": 1}, {"transparency": b"\xff\0"}):
        palette.save(tmp_path / "p.png", **how)
        assert shown(tmp_path / "p.png")[0].tolist() == [[10, 20, 30], [255] * 3]
    palette.save(tmp_path / "p.gif", transparency=0)
    assert shown(tmp_path / "p.gif")[0].tolist() == [[255] * 3, [40, 50, 60]]
    for mode, key in (("L", 40), ("RGB", (40, 50, 60)), ("I;16", 5000)):
        image = Image.new(mode, (2, 1), key)
        image.putpixel((0, 0), 0 if mode != "RGB" else (0, 0, 0))
        image.save(tmp_path / "t.png", transparency=key)
        assert shown(tmp_path / "t.png")[0].tolist() == [[0] * 3, [255] * 3], mode
    paired = Image.new("PA", (1, 1))
    paired.putalpha(0)
    assert opening.as_rgb(paired, upright=True).getpixel((0, 0)) == (255, 255, 255)


def test_opaque_alpha_changes_nothing_and_other_modes_go_by_pillow(tmp_path):
    values = np.random.RandomState(0).randint(0, 256, (32, 32, 4), dtype=np.uint8)
    values[..., 3] = 255
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.array_equal(shown(tmp_path / "x.png"), values[..., :3])
    for mode in ("CMYK", "L", "1", "RGB"):
        image = Image.fromarray(values[..., :3]).convert(mode)
        image.save(tmp_path / "x.tif")
        assert np.array_equal(shown(tmp_path / "x.tif"), np.asarray(image.convert("RGB"))), mode


# --------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_read_deep_and_tells_what_it_leaves_out(tmp_path):
    cat = folder(tmp_path, classes=("cat",))
    folder(tmp_path, split="test", classes=("cat",))
    (cat / "b" / "c").mkdir(parents=True)
    (cat / ".thumbs").mkdir()
    for name in ("Z.PNG", "b/1.png", "b/c/2.GIF", "b.bmp", ".thumbs/3.png", ".4.png"):
        Image.fromarray(GREY).save(cat / name)
    for name in ("notes.txt", "b/more.TXT", "b/film.mp4", "b/paper.pdf", "LICENSE", "../loose.png"):
        (cat / name).write_bytes(b"no image")
    (cat / "drawing.eps").write_bytes(b"")
    bench = read("folder", tmp_path)
    inside = ["0.png", "Z.PNG", "b.bmp", "b/1.png", "b/c/2.GIF"]
    assert bench.train_samples.x.tolist() == [f"train/cat/{name}" for name in inside]
    outside = ["LICENSE", "b/film.mp4", "b/more.TXT", "b/paper.pdf", "drawing.eps", "notes.txt"]
    assert list(bench.left_out) == ["train/loose.png"] + [f"train/cat/{name}" for name in outside]
    assert opening.by_ending(bench.left_out) == "2 .txt, 1 .eps, 1 .mp4, 1 .pdf, 1 .png, 1 without an ending"


def test_a_flat_folder_keeps_its_order(tmp_path):
    names = ["b.png", "B.PNG", "a10.png", "a9.png", "ä.jpg", "a b.webp", "a-b.tif"]
    for split in ("train", "test"):
        for name in names:
            Image.fromarray(GREY).save(folder(tmp_path / name, split=split) / name)
            (tmp_path / split / "x").mkdir(parents=True, exist_ok=True)
            Image.fromarray(GREY).save(tmp_path / split / "x" / name)
    assert read("folder", tmp_path).train_samples.x.tolist() == [f"train/x/{name}" for name in sorted(names)]


def test_links_to_folders_are_followed_once(tmp_path):
    ant = folder(tmp_path)
    folder(tmp_path, split="test")
    (tmp_path / "elsewhere" / "more").mkdir(parents=True)
    Image.fromarray(GREY).save(tmp_path / "elsewhere" / "more" / "1.png")
    (ant / "linked").symlink_to(tmp_path / "elsewhere")
    (ant / "linked again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    (ant / "up").symlink_to(ant.parent)
    (ant / "top").symlink_to("/")
    (ant / "itself").symlink_to(ant)
    assert read("folder", tmp_path).train(0).x.tolist() == ["train/ant/0.png", "train/ant/linked/more/1.png"]


@pytest.mark.parametrize("ending", ["gif", "jfif", "jp2", "avif", "apng", "tga", "ico", "pcx", "mpo", "JPEG", "Tif"])
def test_whatever_pillow_opens_is_an_image(ending: str):
    assert opening.is_image(f"a/b.{ending}")


@pytest.mark.parametrize("name", ["a.pdf", "a.eps", "a.mpg", "a.h5", "a.txt", "a.png.txt", "png", "a.db", "a.wmf"])
def test_what_it_does_not_is_none(name: str):
    assert not opening.is_image(name)


def greeting_of(bench: datasets.Benchmark) -> list[str]:
    exp = Experiment(
        options=Options(),
        place=Place(Path(), Path()),
        benchmark=bench,
        tasks=bench.tasks,
        replicas=1,
        loading=Loading(torch.device("cpu")),
        **dict.fromkeys(("method", "store", "stop", "images")),
    )
    return greeting(exp, Memory(0)).splitlines()


def test_the_greeting_says_what_is_left_out(tmp_path):
    ant = folder(tmp_path)
    folder(tmp_path, split="test")
    assert not any("left out" in line for line in greeting_of(read("folder", tmp_path)))
    (ant / "a.txt").touch()
    assert greeting_of(read("folder", tmp_path))[1] == "1 file left out: 1 .txt"
    (tmp_path / "test" / "bee" / "b.TXT").touch()
    (tmp_path / "test" / "bee" / "c.mp4").touch()
    assert greeting_of(read("folder", tmp_path))[1] == "3 files left out: 2 .txt, 1 .mp4"


def test_with_validation_the_test_images_are_not_looked_at(tmp_path):
    write_image_tree(tmp_path / "folder", ["ant", "bee"], 4, 1, 8)
    write_image_tree(tmp_path / "imagenet", sorted(datasets.IMAGENET100_WNIDS.read_text().split()), 2, 1, 2)
    for name in ("folder", "imagenet"):
        os.rename(tmp_path / name / "val", tmp_path / name / "gone")
    os.remove(os.path.join(write_cifar10(tmp_path / "cifar"), "test_batch"))
    for data_set, path in (("folder", "folder"), ("imagenet100", "imagenet"), ("cifar10", "cifar")):
        bench = read(data_set, tmp_path / path, validation=0.5)
        assert len(bench.train_samples.y) == len(bench.test_samples.y) > 0
        refused(lambda d=data_set, p=path: read(d, tmp_path / p), str(tmp_path / path))
    (tmp_path / "folder" / "val" / "ant").mkdir(parents=True)  # neither classes nor files are compared
    (tmp_path / "folder" / "val" / "ant" / "a.txt").touch()
    assert read("folder", tmp_path / "folder", validation=0.25).left_out == ()
    asked = []
    register("own", lambda data_path, train: asked.append(train) or (np.zeros((4, 2, 2), np.uint8), [0, 0, 1, 1]))
    read("own", validation=0.5)
    assert asked == [True]


# -------------------------------------------------------------------------------------------------------------- own data


def own(x: object, y: object, **how: object) -> datasets.Benchmark:
    register("own", lambda data_path, train: (x, y))
    return read("own", **how)


class Column:
    """A column of a table whose index has gaps: only its array can be relied on, not column[0]."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def to_numpy(self) -> np.ndarray:
        array = np.empty(len(self.values), dtype=object)
        array[:] = self.values
        return array

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, label: object) -> object:
        raise KeyError(label)


X = np.random.RandomState(0).randint(0, 256, (2, 9, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "x",
    [
        X.transpose(0, 3, 1, 2),
        torch.tensor(X),
        torch.tensor(X).permute(0, 3, 1, 2),
        X.astype(np.uint16) * 257,
        torch.tensor(X).to(torch.uint16) * 257,
        np.concatenate([X, np.full((2, 9, 8, 1), 255, np.uint8)], -1),
        np.concatenate([X, np.full((2, 9, 8, 1), 255, np.uint8)], -1).transpose(0, 3, 1, 2),
        list(X),
        tuple(X),
        list(torch.tensor(X)),
        list(torch.tensor(X).permute(0, 3, 1, 2)),
        [Image.fromarray(image) for image in X],
        [Image.fromarray(X[0]).convert("RGBA"), X[1]],
        Column(*X),
    ],
)
def test_images_of_any_clear_kind_are_taken(x: object):
    found = own(x, [0, 1]).train_samples.x
    assert all(np.array_equal(a, b) and a.dtype == np.uint8 for a, b in zip(found, X, strict=True))


def test_iterators_are_taken():
    register("own", lambda data_path, train: (map(np.copy, X), (word for word in "ba")))
    bench = read("own")
    assert np.array_equal(bench.train_samples.x[1], X[1]) and bench.train_samples.y.tolist() == [1, 0]


def test_grey_see_through_and_black_and_white_arrays():
    grey = np.full((2, 5, 6), 5000, np.uint16)
    assert np.array_equal(own(grey, [0, 1]).train_samples.x, np.full((2, 5, 6, 3), 19))
    assert np.array_equal(own(grey[:, None], [0, 1]).train_samples.x, np.full((2, 5, 6, 3), 19))
    alpha = np.zeros((2, 5, 6, 2), np.uint8)
    assert np.array_equal(own(alpha, [0, 1]).train_samples.x, np.full((2, 5, 6, 3), 255))
    assert np.array_equal(own(np.zeros((2, 5, 6, 4), np.uint8), [0, 1]).train_samples.x, np.full((2, 5, 6, 3), 255))
    assert np.array_equal(own(list(alpha), [0, 1]).train_samples.x[0], np.full((5, 6, 3), 255))
    assert np.array_equal(own(grey > 0, [0, 1]).train_samples.x, np.full((2, 5, 6, 3), 255))
    wide = [Image.new("I;16", (6, 5), 5000), Image.new("CMYK", (3, 4))]
    assert own(wide, [0, 1]).train_samples.x[0][0, 0].tolist() == [19] * 3


PATHS = ["a.png", "b/c.png"]


@pytest.mark.parametrize("x", [np.array(PATHS, dtype=object), list(map(Path, PATHS)), Column(*PATHS), np.array(PATHS, "S")])
def test_paths_of_any_kind_are_taken(tmp_path, x: object):
    assert own(x, [0, 1], data_path=tmp_path).train_samples.x.tolist() == PATHS


@pytest.mark.parametrize(
    ("y", "ids", "names"),
    [
        (torch.tensor([5, 2, 5, 2]), [1, 0, 1, 0], ("2", "5")),
        (list(torch.tensor([5, 2, 5, 2])), [1, 0, 1, 0], ("2", "5")),
        (Column(5, 2, 5, 2), [1, 0, 1, 0], ("2", "5")),
        (np.array([5, 2, 5, 2], dtype=object), [1, 0, 1, 0], ("2", "5")),
        ([np.int8(5), np.uint64(2), 5, 2], [1, 0, 1, 0], ("2", "5")),
        ([5.0, 2.0, 5, 2], [1, 0, 1, 0], ("2", "5")),
        (np.array([True, False, True, False]), [1, 0, 1, 0], ("0", "1")),
        ([True, False, True, False], [1, 0, 1, 0], ("0", "1")),
        (np.array(["b", "a", "b", "a"], dtype=object), [1, 0, 1, 0], ("a", "b")),
        (Column("b", "a", "b", "a"), [1, 0, 1, 0], ("a", "b")),
        ([b"b", b"a", b"b", b"a"], [1, 0, 1, 0], ("a", "b")),
    ],
)
def test_labels_of_any_clear_kind_are_taken(y: object, ids: list[int], names: tuple[str, ...]):
    bench = own(np.zeros((4, 5, 6), np.uint8), y)
    assert bench.train_samples.y.tolist() == ids and bench.class_names == names


def test_columns_of_pandas_are_taken(tmp_path):
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"path": ["x.png", *PATHS], "word": ["c", "b", "a"], "number": [9, 8, 7]})[1:]
    kinds = table.word.astype("category")
    for y in (table.word, table.number, kinds, pd.Categorical(table.word), table.number.astype("Int64")):
        bench = own(table.path, y, data_path=tmp_path)
        assert bench.train_samples.x.tolist() == PATHS and bench.train_samples.y.tolist() == [1, 0]
    assert own(table.path, kinds, data_path=tmp_path).class_names == ("a", "b")
    gaps = (pd.Series([1, None]), pd.Series(["a", None]), pd.Series([1, pd.NA], dtype="Int64"), pd.Categorical(["a", None]))
    for missing in gaps:
        refused(lambda y=missing: own(table.path, y, data_path=tmp_path), "own: label 1 is missing")


class Pairs(Dataset):
    """As torchvision's data sets are: a length, and (image, label) pairs."""

    def __init__(self, *pairs: object) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> object:
        return self.pairs[index]


def given(content: object, data_path: object = None) -> datasets.Benchmark:
    register("own", lambda data_path, train: content)
    return read("own", data_path, increment=2)


def test_a_data_set_of_pairs_is_taken():
    bench = given(Pairs((Image.fromarray(X[0]), 3), (Image.fromarray(X[1]).convert("L"), torch.tensor(1))))
    assert np.array_equal(bench.train_samples.x[0], X[0]) and bench.train_samples.y.tolist() == [1, 0]
    assert np.array_equal(given(TensorDataset(torch.tensor(X), torch.tensor([1, 0]))).train_samples.x[1], X[1])
    torch.manual_seed(0)
    fake = FakeData(size=20, image_size=(3, 5, 4), num_classes=2)
    assert given(fake).train_samples.x[0].shape == (5, 4, 3)
    fake.classes = ["zebra", "ant"]  # class 0 is the zebra
    assert given(fake).class_names == ("zebra", "ant")


def test_an_image_folder_of_torchvision_is_taken_by_its_paths(tmp_path, monkeypatch: pytest.MonkeyPatch):
    folder(tmp_path, split=".", classes=("cat", "ant"))
    bench = given(ImageFolder(str(tmp_path)), tmp_path)
    assert bench.train_samples.x.tolist() == ["ant/0.png", "cat/0.png"] and bench.class_names == ("ant", "cat")
    monkeypatch.chdir(tmp_path.parent)
    assert given(ImageFolder(tmp_path.name), tmp_path).train_samples.x.tolist() == ["ant/0.png", "cat/0.png"]


PIXELS = np.zeros((2, 9, 8), np.uint8)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "got None"),
        (7, "got 7"),
        ((PIXELS, [0, 1], None), "got a tuple of 3"),
        ({"x": PIXELS}, "builtins.dict"),
        (PIXELS, "numpy.ndarray of shape (2, 9, 8)"),
        ((None, [0, 1]), "images must be an array, or a list of images or paths, got None"),
        (("a.png", [0]), "got 'a.png'"),
        ((PIXELS, None), "labels must be a list of one integer or word each, got None"),
        ((PIXELS, "ab"), "got 'ab'"),
        ((PIXELS, 3), "got 3"),
        ((PIXELS, torch.tensor(3)), "labels must be one integer or word each"),
        ((PIXELS, [[1, 0], [0, 1]]), "got a list of 2 as label 0"),
        ((PIXELS, np.eye(2, dtype=int)), "int64 of shape (2, 2)"),
        ((PIXELS, torch.eye(2)), "float32 of shape (2, 2)"),
        ((PIXELS, [0, 1, 0]), "2 images and 3 labels"),
        ((PIXELS, [0.5, 1.0]), "one integer or word each, got 0.5 as label 0"),
        ((PIXELS, torch.tensor([1, 0.5], dtype=torch.bfloat16)), "got 0.5 as label 1"),
        ((PIXELS, [1, float("nan")]), "label 1 is missing (nan)"),
        ((PIXELS, np.array([np.nan, 1])), "label 0 is missing (nan)"),
        ((PIXELS, ["a", None]), "label 1 is missing (None)"),
        ((PIXELS, Column("a", float("nan"))), "label 1 is missing (nan)"),
        ((PIXELS, ["a", 1]), "all integers or all words, got both, such as 1 and 'a'"),
        ((PIXELS, [float("inf"), 1]), "got inf as label 0"),
        ((PIXELS.astype(np.float32), [0, 1]), "images must be uint8 (or uint16)"),
        ((PIXELS.astype(np.float32), [0, 1]), "got float32 (2, 9, 8)"),
        ((PIXELS.astype(int), [0, 1]), "got int64"),
        ((torch.rand(2, 3, 9, 8), [0, 1]), "got float32"),
        ((torch.rand(2, 3, 9, 8).bfloat16(), [0, 1]), "images must be uint8"),
        ((np.zeros((2, 4, 9, 4), np.uint8), [0, 1]), "images must be uint8"),
        ((np.zeros((2, 0, 4), np.uint8), [0, 1]), "images must be uint8"),
        (([torch.rand(3, 9, 8)] * 2, [0, 1]), "image 0 must be uint8"),
        (([PIXELS[0], None], [0, 1]), "image 1 must be uint8 pixels, a Pillow image or a path, got None"),
        (([[[1, 2], [3]], PIXELS[0]], [0, 1]), "image 0 must be uint8"),
        (([Image.new("F", (4, 4))] * 2, [0, 1]), "image 0: the image has pixels in floating point (mode F)"),
        ((["a.png", None], [0, 1]), "images must be all paths or none, got None among them"),
        ((["a.png", float("nan")], [0, 1]), "got nan among them"),
        (Pairs((PIXELS[0], 1), (PIXELS[1], 2, 3)), "item 1 of the Pairs must be an (image, label) pair, got a tuple of 3"),
        (Pairs({"image": PIXELS[0], "label": 1}), "item 0 of the Pairs must be an (image, label) pair, got builtins.dict"),
        (TensorDataset(torch.tensor(PIXELS)), "item 0 of the TensorDataset must be an (image, label) pair, got a tuple of 1"),
        (Pairs((torch.rand(3, 9, 8), 1)), "image 0 must be uint8"),
        (Pairs(), "0 images and 0 labels"),
    ],
)
def test_what_is_not_clear_is_refused_in_one_line(tmp_path, content: object, told: str):
    refused(lambda: given(content, tmp_path), told, "own")


def test_a_pillow_image_that_cannot_be_read_is_named(tmp_path):
    Image.fromarray(X[0]).resize((64, 64)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:200])
    refused(lambda: own([Image.fromarray(X[0]), Image.open(tmp_path / "x.png")], [0, 1]), "own: cannot read image 1")


# ------------------------------------------------------------------------------------------------------- the whole thing


def tiny(path: Path) -> list[str]:
    return [
        *(
            "--options",
            str(ROOT / "options/model/digits_dytox.yaml"),
            "--initial-increment",
            "2",
            "--increment",
            "2",
            "--device",
            "cpu",
        ),
        *("--embed-dim", "16", "--num-heads", "4", "--depth", "2", "--local-up-to-layer", "1", "--num-workers", "0"),
        *("--base-epochs", "1", "--epochs", "1", "--finetuning-epochs", "1", "--memory-size", "8", "--batch-size", "8"),
        *("--log-path", str(path / "logs"), "--output-basedir", str(path / "checkpoints"), "--name", "tiny"),
    ]


def test_the_example_of_the_readme_tests_on_other_images_than_it_trains_on(tmp_path):
    (script,) = re.findall(
        r"```python\n(import continual\nimport numpy as np\n\n\ndef stripes.*?)```",
        (ROOT / "README.md").read_text(),
        flags=re.DOTALL,
    )
    spoken: dict = {}
    exec(script[: script.index("continual.main()")], spoken)
    bench = read("stripes", increment=2)
    assert bench.tasks == (Task(0, 0, 2), Task(1, 2, 2))
    train, test = ({image.tobytes() for image in part.x} for part in (bench.train_samples, bench.test_samples))
    assert len(train) == 200 and len(test) == 40 and not train & test
    (tmp_path / "stripes.py").write_text(script)
    said = jobs.script(tmp_path / "stripes.py", ["--data-set", "stripes", *tiny(tmp_path)])
    assert "stripes: 4 classes in 2 tasks" in said


def test_a_mixed_folder_trains_from_the_command_line(tmp_path):
    data = tmp_path / "data"
    for name in ("ant", "bee", "cat", "dog"):
        (data / "train" / name / "more").mkdir(parents=True)
        Image.fromarray(np.full((16, 16), 5000, np.uint16)).save(data / "train" / name / "a.png")
        for index, mode in enumerate(("RGBA", "LA", "P", "L", "1", "RGB")):
            Image.new(mode, (12 + index, 16)).save(data / "train" / name / "more" / f"{index}.png")
        save_turned(data / "train" / name / "turned.jpg", 6)
        (data / "train" / name / "notes.txt").touch()
    argv = ["--data-set", "folder", "--data-path", str(data), "--validation", "0.25", *tiny(tmp_path)]
    assert finish(argv, tmp_path).said().count("4 files left out: 4 .txt") == 1
    Image.new("F", (8, 8)).save(data / "train" / "bee" / "f.tif")
    job = run(argv, tmp_path)
    assert job.codes == [3] and "bee/f.tif has pixels in floating point (mode F)" in job.said()


# --------------------------------------------------------------------------------------------- what was once passed over


def png(path: Path, bits: int, kind: int, key: bytes, row: bytes, width: int) -> Path:
    """A PNG of one row, written by hand: Pillow writes no such ones. kind: 0 grey, 2 RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"tRNS", key), chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(
    ("bits", "kind", "key", "row", "expected"),
    [
        (2, 0, struct.pack(">H", 1), bytes([0b01_10_00_11]), [255, 170, 0, 255]),
        (4, 0, struct.pack(">H", 2), bytes([0x2F, 0x30]), [255, 255, 51, 0]),
        (16, 2, struct.pack(">HHH", 40000, 20000, 1000), struct.pack(">6H", 40000, 20000, 1000, 65535, 0, 0), None),
    ],
)
def test_a_see_through_value_is_found_whatever_bits_it_has(bits, kind, key, row, expected, tmp_path):
    width = len(expected) if expected else 2
    image = np.asarray(opening.open_rgb(str(png(tmp_path / "x.png", bits, kind, key, row, width)), upright=True))[0]
    assert image.tolist() == ([[v] * 3 for v in expected] if expected else [[255, 255, 255], [255, 0, 0]])


def test_a_tiff_whose_zero_is_white(tmp_path):
    values = np.array([[0, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo={262: 0})
    image = np.asarray(opening.open_rgb(str(tmp_path / "x.tif"), upright=True))[0, :, 0]
    assert image.tolist() == [255, 255 - 156, 0]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda *_: (np.zeros((2, 4, 4), np.uint8), np.ma.array([0, 1], mask=[True, False])), "masked entries"),
        (lambda *_: (np.ma.array(np.zeros((2, 4, 4), np.uint8), mask=True), [0, 1]), "masked entries"),
        (lambda *_: (torch.zeros(2, 4, 4).to_sparse(), [0, 1]), "does not become an array"),
        (lambda *_: (torch.zeros(2, 4, 4, device="meta"), [0, 1]), "does not become an array"),
        (lambda *_: 1 / 0, r"own: the registered function failed at line \d+ of .*test_images.py: ZeroDivisionError"),
    ],
)
def test_what_a_function_gives_instead_is_told_in_one_line(function, told):
    register("own", function)
    with pytest.raises(DataError, match=told):
        read("own")
    register("own", lambda *_: (np.ma.array(np.zeros((2, 4, 4), np.uint8)), np.ma.array([0, 1])))  # nothing is masked
    assert len(read("own").train_samples.y) == 2


def test_a_message_stays_one_line_whatever_a_file_is_called():
    for text in ("a\nb.png", "a\x85b", "a\u2028b", "a\x1bb"):
        message = str(DataError(f"cannot read {text} (index 3)"))
        assert len(message.splitlines()) == 1 and message.isprintable()
        assert message.startswith("cannot read a") and message.endswith("b.png (index 3)" if "png" in text else "b (index 3)")
        wrapped = f"Caught DataError in DataLoader worker process 0.\nTraceback:\n  x\ncontinual.errors.DataError: {message}\n"
        assert str(DataError(wrapped)) == message


def test_pixels_are_normalised_on_the_device_and_come_out_the_same(tmp_path):
    """Files travel as whole numbers; only where places are erased afterwards do they travel as the model gets them."""
    folder(tmp_path)
    folder(tmp_path, split="test")
    bench = read("folder", tmp_path, increment=2)
    argv = ["--input-size", "40", "--patch-size", "8", "--data-set", "folder", "--aa", "rand-m9-mstd0.5-inc1"]
    draw = Draw(np.array([0, 1]), ("a key",), np.array([4, 7]))
    for reprob, travels in (("0", torch.uint8), ("0.5", torch.float32)):
        options = parse([*argv, "--reprob", reprob])
        made = images_of(options, bench)(bench.train(0), augment=True)
        assert made.__getitems__(draw)[0][0].dtype == travels
        ((found, _),) = Loading(torch.device("cpu")).loader(made, [draw])
        augment, size = options.augment, {"input_size": 40, "mean": bench.mean, "std": bench.std}
        names = ("aa", "color_jitter", "hflip", "reprob", "remode", "recount")
        settings = {name: getattr(augment, name) for name in names} | {"interpolation": augment.train_interpolation}
        whole = Images(made.samples, transforms.train_transform(**size, **settings), root=bench.root)
        assert torch.equal(found, torch.stack([image for image, _ in whole.__getitems__(draw)]))
        assert made[0][0].dtype == torch.float32
