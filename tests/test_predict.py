"""What a run answers on any images: as its evaluation did, in every format, and without touching the run."""

import csv
import io
import json
import os
import re
import resource
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jobs import ROOT, TINY, checkpoints, finish, folders, for_bash, logs
from made_up import write_image_tree
from PIL import Image
from using import as_files, benchmark_of, everything

import continual
from continual.errors import CheckpointError, DataError, OptionsError
from continual.predict import main
from continual.report.reading import read
from continual.runs import answering
from continual.runs.loading import load

KINDS = {"one": (1, []), "two": (2, ["--mean", "auto", "--std", "auto"])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on one process, and one on two that measured how to normalise."""
    top = tmp_path_factory.mktemp("runs")
    for name, (processes, more) in KINDS.items():
        finish([*TINY, *more, *folders(top / name)], top / name, processes=processes)
    return top


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """The test images of the digits, as PNGs in the order of the test set."""
    return as_files(benchmark_of(logs(runs / "one")).test_samples.x, tmp_path_factory.mktemp("files"))


@pytest.fixture
def command(capfdbinary, monkeypatch):
    """The command within this process: its exit code, what it printed, and what it printed as errors."""

    def call(*argv: object, stdin: bytes = b"") -> SimpleNamespace:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(os.dup(1), "wb")))
        code = main([str(word) for word in argv])
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return SimpleNamespace(code=code, out=out.decode("utf-8", "surrogateescape"), err=err.decode())

    return call


def answers_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_evaluation(kind, runs, files, command):
    before = everything(runs)
    (past,) = read(logs(runs / kind))
    kept = past.predictions(1)
    for side in (logs, checkpoints):
        done = command(side(runs / kind), *(files[place] for place in kept.places), "--format", "jsonl", "--batch-size", "7")
        assert (done.code, done.err) == (0, "")
        found = answers_of(done.out)
        assert [answers["path"] for answers in found] == [str(files[place]) for place in kept.places]
        names = [answers["answers"][0]["class"] for answers in found]
        assert names == [past.names()[label] for label in kept.answers]
        scores = torch.from_numpy(kept.logits).double().softmax(1)
        for answers, row in zip(found, scores, strict=True):
            told = {each["class"]: each["probability"] for each in answers["answers"]}
            assert len(told) == 4 and sum(told.values()) == pytest.approx(1, abs=1e-5)
            assert [told[name] for name in past.names()[:4]] == pytest.approx(row.tolist(), abs=2e-3)  # they were rounded
    assert everything(runs) == before


def test_a_known_task_and_an_earlier_one(runs, files, command):
    (past,) = read(logs(runs / "one"))
    kept = past.predictions(1)
    of_second = np.flatnonzero(kept.tasks == 1)
    some = [files[place] for place in kept.places[of_second]]
    found = answers_of(command(logs(runs / "one"), *some, "--task", "1", "--format", "jsonl").out)
    assert {each["task"] for answers in found for each in answers["answers"]} == {1}
    assert [answers["answers"][0]["class"] for answers in found] == [past.names()[at] for at in kept.answers_known[of_second]]
    assert all(sum(each["probability"] for each in answers["answers"]) == pytest.approx(1, abs=1e-5) for answers in found)
    told = [command(logs(runs / "one"), *some, *words).out for words in (["--start-task", "1"], ["--checkpoint-task", "0"])]
    assert told[0] == told[1] != "" and "(task 1)" not in told[0]
    file = next(checkpoints(runs / "one").glob("*-task-1-finished.pt"))
    assert command(file, *some).out == told[0]
    assert [len(continual.load(logs(runs / "one"), task=task).classes) for task in (0, 1)] == [2, 4]


def test_formats(runs, files, command, tmp_path):
    one = logs(runs / "one")
    os.makedirs(tmp_path / "in" / "deeper")
    for number, name in enumerate(("b.png", "deeper/a.png", 'a, "b".png', "ü.png")):
        (tmp_path / "in" / name).write_bytes(files[number].read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    wanted = [str(tmp_path / "in" / name) for name in ('a, "b".png', "b.png", "deeper/a.png", "ü.png")]
    text = command(one, tmp_path / "in", "--top", "2")
    assert (text.code, text.err) == (0, "") and [line.rpartition(": ")[0] for line in text.out.splitlines()] == wanted
    rows = list(csv.reader(io.StringIO(command(one, tmp_path / "in", "--format", "csv", "--top", "2").out)))
    assert rows[0] == ["path", "class_1", "task_1", "probability_1", "class_2", "task_2", "probability_2"]
    assert [row[0] for row in rows[1:]] == wanted
    told = command(one, tmp_path / "in", "--format", "jsonl", "--top", "2").out
    for row, line, answers in zip(rows[1:], text.out.splitlines(), answers_of(told), strict=True):
        best, second = answers["answers"]
        assert row[1:] == [
            str(value) if key != "probability" else f"{value:.6f}" for a in (best, second) for key, value in a.items()
        ]
        assert f": {best['class']} {100 * best['probability']:.1f} % (task {best['task']}), " in line
    listed = command(one, "-", "--format", "jsonl", "--top", "2", stdin="\n".join(wanted).encode())
    assert listed.out == told
    written = command(one, tmp_path / "in", "--format", "jsonl", "--top", "2", "--out", tmp_path / "out.jsonl")
    assert written.out == "" and (tmp_path / "out.jsonl").read_text() == told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.jsonl"]


def test_images_that_cannot_be_read_are_named(runs, files, command, tmp_path):
    broken = [tmp_path / "text.png", tmp_path / "half.png", tmp_path / "absent.png", tmp_path / "wide.tiff"]
    broken[0].write_text("no image")
    broken[1].write_bytes(files[0].read_bytes()[:-60])
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(broken[3])
    done = command(logs(runs / "one"), broken[0], files[0], *broken[1:], files[1], "--batch-size", "2", "--format", "csv")
    assert done.code == 3 and [row[0] for row in csv.reader(io.StringIO(done.out))][1:] == [str(files[0]), str(files[1])]
    lines = done.err.splitlines()
    assert len(lines) == 5 and lines[-1] == "4 of 6 images could not be read"
    assert all(str(path) in line for path, line in zip(broken, lines, strict=False))


REFUSED = {
    "no run": (lambda run, tmp: [tmp, "x.png"], 4, "is not the folder of a run"),
    "nowhere": (lambda run, tmp: [tmp / "absent", "x.png"], 4, "absent: no such folder"),
    "not kept": (lambda run, tmp: [run, "x.png", "--start-task", "9"], 4, "kept are the ends of tasks 0, 1"),
    "no such task": (lambda run, tmp: [run, "x.png", "--task", "2"], 2, "not one of the 2 tasks"),
    "nothing asked": (lambda run, tmp: [run], 2, "IMAGE"),
    "unknown option": (lambda run, tmp: [run, "x.png", "--tops", "3"], 2, "--tops"),
    "top": (lambda run, tmp: [run, "x.png", "--top", "0"], 2, "--top: 0 is below 1"),
    "device": (lambda run, tmp: [run, "x.png", "--device", "tpu"], 2, "device"),
    "empty folder": (lambda run, tmp: [run, tmp], 3, "there is no image in this folder"),
    "into the run": (lambda run, tmp: [run, "x.png", "--out", run / "x.csv"], 2, "lies in the folder of the run"),
    "out of reach": (lambda run, tmp: [run, "x.png", "--out", run / "summary.json" / "x.csv"], 2, "--out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_one_line(case, runs, command, tmp_path):
    argv, code, said = REFUSED[case]
    before = everything(runs)
    done = command(*argv(logs(runs / "one"), tmp_path))
    assert (done.code, done.out) == (code, "") and len(done.err.splitlines()) == 1 and said in done.err
    assert everything(runs) == before and not list(tmp_path.iterdir())


def test_a_series_has_several_runs(tmp_path, command):
    finish([*TINY, "--max-task", "1", "--seeds", "3", "4", *folders(tmp_path)], tmp_path)
    top = min((tmp_path / "logs").rglob("run.json"), key=lambda path: len(path.parts)).parent
    before = everything(tmp_path)
    done = command(top, "x.png")
    assert done.code == 4 and done.err.endswith("is a series; name one of its runs: seed-3, seed-4\n")
    assert command(top / "seed-3", "x.png", "--out", top / "x.csv").code == 2
    with pytest.raises(CheckpointError, match="seed-3, seed-4"):
        continual.load(top)
    assert command(top / "seed-4", "absent.png").code == 3
    assert everything(tmp_path) == before


def test_checkpoints_without_their_logs_stay_as_they_are(runs, files, command, tmp_path):
    (tmp_path / "copy").mkdir()
    for path in checkpoints(runs / "one").iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    before = everything(tmp_path)
    assert command(tmp_path / "copy", files[0]).code == 0 and everything(tmp_path) == before


def test_preprocessing_is_that_of_the_evaluation(runs, files):
    trained = continual.load(logs(runs / "two"))
    benchmark = benchmark_of(logs(runs / "two"))
    assert (trained.preprocess.mean, trained.preprocess.std) == (benchmark.mean, benchmark.std)
    assert trained.preprocess.mean != continual.load(logs(runs / "one")).preprocess.mean
    seen = continual.images(trained.options, benchmark)(benchmark.test_samples, augment=False)
    for index in range(0, len(files), 20):
        expected = seen[index][0]
        for image in (files[index], str(files[index]), Image.open(files[index]), benchmark.test_samples.x[index]):
            assert torch.equal(trained.preprocess(image), expected)


def test_files_of_every_kind_are_opened_by_the_rule_of_the_run(tmp_path):
    """EXIF, 16 bits, alpha and size: as the images of a data set of folders are."""
    data = tmp_path / "data"
    write_image_tree(data, ["ant", "bee", "cat", "dog"], 9, 2, (20, 30))
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    folder = data / "val" / "ant"
    image.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 65536, (20, 20), dtype=np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8)).save(folder / "alpha.png")
    argv = ["--data-set", "folder", "--data-path", str(data), "--memory-size", "8", "--batch-size", "4", "--input-size", "40"]
    finish([*TINY, *argv, "--method", "icarl", "--finetuning", "", *folders(tmp_path)], tmp_path)
    trained = load(logs(tmp_path))
    benchmark = continual.benchmark(trained.options)
    samples = benchmark.test_samples
    seen = continual.images(trained.options, benchmark)(samples, augment=False)
    for index, path in enumerate(samples.x.tolist()):
        assert torch.equal(trained.preprocess(data / path), seen[index][0])
    (past,) = read(logs(tmp_path))
    kept, paths = past.predictions(1), [data / path for path in samples.x.tolist()]
    found = trained.predict([paths[place] for place in kept.places])
    assert [answers[0].label for answers in found] == kept.answers.tolist()  # by the nearest mean of exemplars
    by_class = list(answering.answers(trained, paths, score=answering.by_classifier))
    assert [answers[0].probability for answers in by_class] != [answers[0].probability for answers in found]
    without_exemplars(tmp_path, data)


def without_exemplars(folder, data):
    """A rule that needs exemplars which are elsewhere now."""
    run = logs(folder)
    image = data.rename(folder / "elsewhere") / "val" / "ant" / "alpha.png"
    before = everything(run)
    assert main([str(run), str(image), "--out", str(folder / "a.txt")]) == 3 and not (folder / "a.txt").exists()
    assert main([str(run), str(image), "--out", str(folder / "a.txt"), "--data-path", str(folder / "elsewhere")]) == 0
    assert main([str(run), str(image), "--out", str(folder / "b.txt"), "--classifier"]) == 0
    assert everything(run) == before


def test_predicting_from_python(runs, files):
    trained = continual.load(logs(runs / "one"))
    (answers,) = trained.predict(files[0])
    assert [type(value) for value in answers[0]] == [str, int, float, int] and len(answers) == 4
    x = np.stack([np.asarray(Image.open(path)) for path in files[:3]])
    assert trained.predict(x) == trained.predict(files[:3]) == trained.predict([Image.open(path) for path in files[:3]])
    assert [each.task for each in trained.predict(x, top=1, task=1)[0]] == [1]
    with pytest.raises(DataError, match="absent"):
        trained.predict(["absent.png"])
    with pytest.raises(OptionsError, match="task: 5"):
        trained.predict(x, task=5)
    assert trained.predict([]) == []


def test_a_thousand_images_take_less_than_twenty_seconds(runs, tmp_path):
    """Of the processor, start-up included: how long the clock says depends on what else the machine does."""
    rng = np.random.default_rng(0)
    as_files(rng.integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8), tmp_path / "many")
    words = [sys.executable, "-m", "continual.predict", str(logs(runs / "two")), str(tmp_path / "many"), "--format", "csv"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=ROOT, env=for_bash({}), capture_output=True, text=True, timeout=240)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1001
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20


def test_the_cell_of_the_readme(runs, files, capsys):
    readme = (ROOT / "README.md").read_text()
    (cell,) = [each for each in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "trained.predict(images" in each]
    names = {"images": files[:2]}
    exec(re.sub(r'"logs/.*?"', repr(str(logs(runs / "two"))), cell), names)
    assert names["x"].shape == (3, 16, 16) and len(capsys.readouterr().out.splitlines()) == 2
