"""The page of a run, of a series and of several runs: what it says, what it leaves, what it refuses."""

import csv
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from jobs import ROOT, THREE_TASKS, checkpoints, finish, folders, logs

import continual.report
from continual.options import parse, to_yaml
from continual.report import figures, one, page, reading
from continual.report.__main__ import main
from continual.report.exhibit import Chapter, Exhibit, Table
from continual.runs import predictions
from continual.runs.predictions import Predictions

SMALL = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><text>1</text></svg>\n'


class Parsed(HTMLParser):
    """The tables of a page by the id of their exhibit, as rows of cells; its text; tags with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.text, self.tags, self._id, self._cell = {}, "", [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "figure":
            self._id = attrs["id"]
        elif tag == "tr":
            self.tables.setdefault(self._id, []).append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self._id][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data


@pytest.fixture(scope="module")
def whole(done, tmp_path_factory):
    """Its page, with every picture."""
    out = tmp_path_factory.mktemp("whole")
    assert main([str(logs(done)), "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(done, tmp_path):
    """A copy to do harm to."""
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def quick(monkeypatch):
    """No picture is drawn, but all are made."""
    monkeypatch.setattr(figures, "saved", lambda figure, name: (b"png", SMALL))


@pytest.fixture
def command(capsys, quick):
    """The command within this process: its exit code, the parsed page (None without one), and what it printed as errors."""

    def call(*argv: object) -> SimpleNamespace:
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        told = out.splitlines()[-1].removeprefix("the page: ") if code == 0 else ""
        text = Path(told).read_text() if told else ""
        return SimpleNamespace(code=code, page=Parsed(text) if text else None, html=text, index=Path(told), err=err, out=out)

    return call


def state(folder: Path) -> dict[str, tuple]:
    """Every file and folder with what is in it and when it was written."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in sorted(folder.rglob("*"))
    }


def change(path: Path, **values) -> None:
    """Change values of a file of JSON or YAML."""
    load, dump = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
    path.write_text(dump({**load(path.read_text()), **values}))


def series_of(done: Path, folder: Path, *, seeds: int = 3, name: str = "series", **options) -> Path:
    """The log folder of a series whose runs are that of `done`, the accuracies of seed s higher by s points."""
    sides = {side: folder / side / name for side in ("logs", "checkpoints")}
    whole = {side: str(path) for side, path in sides.items()}
    for side, path in sides.items():
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps({"side": side, **whole}))
    for seed in range(seeds):
        own = {side: str(path / f"seed-{seed}") for side, path in sides.items()}
        for side, source in (("logs", logs(done)), ("checkpoints", checkpoints(done))):
            inside = sides[side] / f"seed-{seed}"
            shutil.copytree(source, inside, ignore=lambda _, names: [each for each in names if each.endswith(".pt")])
            (inside / "run.json").write_text(json.dumps({"side": side, **own}))
            change(inside / "options.yaml", seed=seed, **options)
        path = sides["logs"] / f"seed-{seed}" / "summary.json"
        found = json.loads(path.read_text())
        change(path, **{key: found[key] + seed for key in ("acc", "avg_acc")}, accs=[acc + seed for acc in found["accs"]])
    return sides["logs"]


def made_up(path: Path, *, nb_tasks: int, size: int, learned: int | None = None, names=str, status: str = "done") -> Path:
    """The log folder of a CIFAR-100 run that never was: falling accuracies, a quarter of the answers the next class."""
    path.mkdir(parents=True)
    nb, learned = nb_tasks * size, nb_tasks if learned is None else learned
    options = parse(["--data-set", "cifar100", "--initial-increment", str(size), "--increment", str(size)])
    (path / "options.yaml").write_text(to_yaml(options))
    (path / "run.json").write_text(json.dumps({"side": "logs", "logs": str(path), "checkpoints": str(path) + "-gone"}))
    (path / "status.json").write_text(json.dumps({"status": status, "exit_code": 0, "message": "", "where": ""}))
    rows = [{"label": i, "class": i, "name": names(i), "task": i // size} for i in range(nb)]
    (path / "classes.json").write_text(json.dumps(rows))
    lines = []
    for task in range(learned):
        accs = [max(5.0, 90.0 - 2 * (task - j)) for j in range(task + 1)]
        figures = {key: statistics.fmean(accs) for key in ("acc", "avg_acc", "acc_known", "avg_acc_known")}
        lost = dict.fromkeys(("forgetting", "bwt", "forgetting_known", "bwt_known"), 1.0)
        losses = {"test_loss": 1.0 / (task + 1), "train_loss": 0.5, "loss_clf": 0.4, "train_lr": 1e-3, "n_exemplars": 2000}
        record = {
            "task": task,
            "epoch": 9,
            "phase": "finetuning",
            "final": True,
            **figures,
            **lost,
            **losses,
            "n_parameters": 10,
        }
        lines.append(json.dumps({**record, "acc_per_task": accs, "acc_known_per_task": accs}) + "\n")
    (path / "evaluations.jsonl").write_text("".join(lines))
    if learned:
        labels = np.repeat(np.arange(learned * size), 4).astype(np.int32)
        answers = np.where(np.arange(len(labels)) % 4 == 0, (labels + 1) % (learned * size), labels).astype(np.int32)
        logits = np.zeros((len(labels), learned * size), dtype=np.float16)
        places = np.arange(len(labels), dtype=np.int32)
        sizes = np.full(learned, size, dtype=np.int32)
        predictions.write(path, learned - 1, Predictions(logits, answers, labels, labels, places, sizes, ""))
    return path


# One run.


def test_the_figures_are_those_of_the_summary(done, whole):
    summary = json.loads((logs(done) / "summary.json").read_text())
    rows = {row[0]: row[1:] for row in Parsed((whole / "index.html").read_text()).tables["figures"]}
    for name, words in (
        ("acc", "last accuracy"),
        ("avg_acc", "average incremental accuracy"),
        ("forgetting", "forgetting"),
        ("bwt", "backward transfer"),
    ):
        assert rows[words] == [f"{summary[name]:.4f}", f"{summary[f'{name}_known']:.4f}"]
    assert [float(cell) for cell in rows[words]] == [summary["bwt"], summary["bwt_known"]]


def test_every_exhibit_lies_beside_the_page_as_files(done, whole):
    text = (whole / "index.html").read_text()
    parsed = Parsed(text)
    linked = {attrs["href"] for tag, attrs in parsed.tags if tag == "a" and not attrs["href"].startswith("#")}
    assert linked == {f"exhibits/{path.name}" for path in (whole / "exhibits").iterdir()}
    shown = [attrs["id"] for tag, attrs in parsed.tags if tag == "figure"]
    kinds = {name: {path.suffix for path in (whole / "exhibits").glob(f"{name}.*")} for name in shown}
    pictures = (
        "accuracy matrix matrix-known forgetting per-class confusion between-tasks losses learning-rate seconds exemplars"
    )
    for name in [*pictures.split(), "task-tokens", "cost-by-task"]:
        assert kinds[name] == {".png", ".svg", ".csv", ".md", ".tex"}, name
    for name in ("figures", "cost", "memory", "options", "classes", "run"):
        assert kinds[name] == {".csv", ".md", ".tex"}, name
    for path in (whole / "exhibits").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.with_suffix(".svg").read_text().startswith("<?xml")
    assert "damaged" not in parsed.text and 'class="missing"' not in text
    assert sum(path.stat().st_size for path in (whole / "index.html",)) < 1_000_000


def test_the_files_hold_the_numbers(done, whole):
    summary = json.loads((logs(done) / "summary.json").read_text())
    with open(whole / "exhibits" / "matrix.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [[float(cell) for cell in row[1:] if cell] for row in rows[1:]] == summary["matrix"]  # to the last digit
    first = summary["matrix"][0][0]
    assert f"| 1 | {first:.1f} |  |  |" in (whole / "exhibits" / "matrix.md").read_text()
    assert rf"1 & {first:.1f} &  &  \\" in (whole / "exhibits" / "matrix.tex").read_text()
    found = predictions.read(predictions.path_of(logs(done), 2))
    with open(whole / "exhibits" / "confusion.csv", newline="") as file:
        counts = np.array([[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]])
    assert counts.sum() == len(found.labels) and np.trace(counts) == (found.answers == found.labels).sum()
    with open(whole / "exhibits" / "exemplars.csv", newline="") as file:
        kept = list(csv.DictReader(file))
    assert len(kept) == summary["n_exemplars"] and all(float(row["distance to the mean"]) >= 0 for row in kept)
    assert [int(row["rank"]) for row in kept if row["class"] == "0"] == list(range(1, 1 + summary["n_exemplars"] // 6))


def test_nothing_of_the_run_is_touched(run, command):
    before = state(run)
    for folder in (logs(run), checkpoints(run)):
        assert command(folder).code == 0
    index = logs(run).with_name(f"{logs(run).name}-report") / "index.html"
    after = {key: value for key, value in state(run).items() if not key.startswith(str(index.parent))}
    assert index.exists() and {key: hashed for key, (_, hashed) in after.items()} == {key: h for key, (_, h) in before.items()}
    assert after.keys() == before.keys()
    files = {key: value for key, value in before.items() if value[1]}
    assert {key: after[key] for key in files} == files  # and nothing was written anew


def test_it_needs_nothing_but_itself(whole):
    text = (whole / "index.html").read_text()
    tags = Parsed(text).tags
    policies = [attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    for _, attrs in tags:
        for key in ("src", "xlink:href"):
            assert attrs.get(key, "#").startswith(("#", "data:"))
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object"}
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for tag, attrs in tags if tag == "a" and attrs["href"].startswith("#")} <= set(ids)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_has_nothing_to_say(whole, tmp_path):
    """No error on its console, and no request: every name leads nowhere, and what is asked for nevertheless is logged."""
    words = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
    ]
    log = tmp_path / "net.json"
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--virtual-time-budget=2000", "--dump-dom"]
    found = subprocess.run([*words, f"file://{whole}/index.html"], capture_output=True, text=True, timeout=240)
    assert "Accuracy as classes arrive" in found.stdout and found.returncode == 0
    assert "CONSOLE" not in found.stderr
    asked = set(re.findall(r'"url":"((?:file|https?|wss?)[^"]*)"', log.read_text()))
    assert not [url for url in asked if "/exhibits/" in url or (url.startswith("file") and not url.endswith("/index.html"))]


def test_a_run_that_is_going_on(run, command):
    (logs(run) / "summary.json").unlink()
    change(logs(run) / "status.json", status="running", exit_code=None)
    path = logs(run) / "evaluations.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [record for record in records if record["task"] < 2]
    path.write_text("".join(json.dumps(record) + "\n" for record in kept) + '{"task": 2, "acc')  # half a line: being written
    found = command(logs(run))
    rows = {row[0]: row[1:] for row in found.page.tables["run"]}
    assert rows["status"] == ["running"] and rows["tasks learned"] == ["2 of 3"]
    assert found.page.tables["figures"][2][1] == f"{kept[-1]['avg_acc']:.4f}"
    assert len(found.page.tables["accuracy"]) == 3 and "damaged" not in found.page.text
    spent = {row[0]: row[1] for row in found.page.tables["cost"]}
    assert int(spent["training steps"]) > 0  # as the newest checkpoint has it
    assert 'http-equiv="refresh"' not in found.html


@pytest.mark.parametrize("word", ["failed", "preempted"])
def test_a_run_that_did_not_end_well_tells_why(run, command, word):
    (logs(run) / "summary.json").unlink()
    how = {"exit_code": 5, "message": "NonFiniteLoss: <script>alert(1)</script>", "where": "task 2 training"}
    change(logs(run) / "status.json", status=word, **how)
    found = command(logs(run))
    assert ["status", f"{word} (exit code 5): {how['message']}, at task 2 training"] in found.page.tables["run"]
    assert "<script" not in found.html and "figures" in found.page.tables


def test_a_run_that_has_learned_nothing(tmp_path, command):
    found = command(made_up(tmp_path / "run", nb_tasks=10, size=10, learned=0, status="preparing"))
    assert ["tasks learned", "0 of 10"] in found.page.tables["run"] and "figures" not in found.page.tables
    assert "no task has been learned yet" in found.page.text and "damaged" not in found.page.text


@pytest.mark.parametrize(("nb_tasks", "size", "drawn"), [(1, 2, True), (1, 100, False), (2, 1, False)])
def test_a_run_of_one_task_or_few_classes(tmp_path, request, nb_tasks, size, drawn):
    if not drawn:
        request.getfixturevalue("quick")
    folder = made_up(tmp_path / "run", nb_tasks=nb_tasks, size=size)
    (folder / "summary.json").write_text("{")  # damaged: the evaluations tell
    assert main([str(folder)]) == 0
    parsed = Parsed((tmp_path / "run-report" / "index.html").read_text())
    assert len(parsed.tables["matrix"]) == 1 + nb_tasks and "per-class" in parsed.tables
    assert "what was kept is damaged" not in parsed.text and "summary.json cannot be read" in parsed.text


@pytest.mark.parametrize(("nb_tasks", "size"), [(10, 10), (50, 2)])
def test_a_hundred_classes_beside_what_was_published(tmp_path, request, nb_tasks, size):
    if nb_tasks < 50:
        request.getfixturevalue("quick")
    folder = made_up(tmp_path / "run", nb_tasks=nb_tasks, size=size)
    assert main([str(folder)]) == 0
    index = tmp_path / "run-report" / "index.html"
    parsed = Parsed(index.read_text())
    assert index.stat().st_size < 1_500_000
    ours, erratum = parsed.tables["published"][1:3]
    assert ours[0] == "this run" and erratum[1] == {10: "67.33", 50: "64.39"}[nb_tasks]
    assert float(erratum[3]) == pytest.approx(float(ours[1]) - float(erratum[1]), abs=0.011)
    assert (index.parent / "exhibits" / "published.svg").exists() == (nb_tasks == 10)  # of which there is a curve
    assert len(parsed.tables["confusion"][0]) == 101 and "The first 24 of 100 rows" in parsed.text
    with open(index.parent / "exhibits" / "confusion.csv") as file:
        assert len(list(csv.reader(file))) == 101


ODD = ['<script>alert("x")</script>', "Käfer & Co", "a|b", "$x_1$ {50%}", "  ", "猫", "line\nbreak", "x" * 200, "#0072b2", "-"]


def test_odd_names(tmp_path, capsys):
    folder = made_up(tmp_path / "Läufe & <b>$x$" / "run ä", nb_tasks=5, size=2, names=lambda label: ODD[label])
    assert main([str(folder)]) == 0
    index = folder.with_name("run ä-report") / "index.html"
    assert capsys.readouterr().out == f"the page: {index}\n"
    text = index.read_text()
    parsed = Parsed(text)
    assert "<script" not in text and "<b>" not in text
    assert [row[2] for row in parsed.tables["classes"][1:]] == ODD and parsed.tables["per-class"][2][0] == "Käfer & Co"
    assert r"\$x\_1\$ \{50\%\}" in (index.parent / "exhibits" / "classes.tex").read_text()
    assert r"a\|b" in (index.parent / "exhibits" / "classes.md").read_text()
    assert "line break" in (index.parent / "exhibits" / "confusion.svg").read_text()


def test_names_that_are_not_utf8(tmp_path, command):
    folder = made_up(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), nb_tasks=2, size=2)
    found = main([str(folder), "--out", str(tmp_path / "out")])
    assert found == 0 and "caf\\xe9" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_deleted_checkpoints(run, command):
    shutil.rmtree(checkpoints(run))
    found = command(logs(run))
    assert "the exemplars lie in the checkpoints" in found.page.text and "figures" in found.page.tables
    assert "cost" in found.page.tables and "per-class" in found.page.tables and "exemplars" not in found.page.tables


def test_no_logs(run, command):
    shutil.rmtree(run / "logs")
    folder, before = checkpoints(run), state(checkpoints(run))
    found = command(folder)
    assert found.index == folder.with_name(f"{folder.name}-report") / "index.html"
    assert "are gone" in found.page.text and "exemplars" in found.page.tables and "no task has been learned" in found.page.text
    assert state(folder) == before  # no folder for logs, as a resume would make


def test_another_checkpoint_format(run, command):
    for path in checkpoints(run).glob("*.pt"):
        path.write_bytes(b"something else")
    found = command(logs(run))
    assert found.code == 0 and "no valid checkpoint" in found.page.text and "figures" in found.page.tables


@pytest.mark.parametrize(
    "name", ["evaluations.jsonl", "summary.json", "status.json", "classes.json", "options.yaml", "task-3.npz"]
)
def test_damaged_logs_are_told(run, monkeypatch, name):
    monkeypatch.setattr("continual.report.exemplars.exemplars", lambda past: Chapter("Exemplars", []))
    path = logs(run) / ("predictions/" + name if name.endswith("npz") else name)
    words = ("is missing", "cannot be read", "damaged", "no predictions were kept", "lines are missing", "hold predictions")
    for harm in (
        None,
        b"\xff\xfe{",
        b"[1, 2]",
        b'{"task": 0, "acc_per_task": [1.0], "acc": 1.0, "final": true}\n{}\n',
        b"{}",
    ):
        path.unlink(missing_ok=True)
        if harm is not None:
            path.write_bytes(harm)
        told = [line for chapter in one.chapters(reading.read(logs(run))[0]) for line in chapter.missing]
        assert any(word in line for line in told for word in words) or harm == b"{}", (harm, told)
        assert not [line for line in told if "\n" in line]


def test_files_of_exemplars_that_are_gone(run, command, monkeypatch):
    """Exemplars that are paths below a data folder that has moved."""
    load = reading.Past.load

    def with_paths(past, task=None):
        trained = load(past, task)
        trained.memory.x = np.array([f"{label}/{i}.png" for i, label in enumerate(trained.memory.y)])
        return trained

    monkeypatch.setattr(reading.Past, "load", with_paths)
    found = command(logs(run))
    assert "exemplars are files that are gone, such as" in found.page.text and "memory" in found.page.tables


def test_a_run_without_exemplars(tmp_path, command):
    finish([*THREE_TASKS, "--memory-size", "0", "--finetuning", "none", "--max-task", "1", *folders(tmp_path)], tmp_path)
    found = command(logs(tmp_path))
    assert "keeps no exemplars" in found.page.text and ["tasks learned", "1 of 1"] in found.page.tables["run"]


# Several runs.


def test_a_series_is_a_mean_with_its_spread(done, tmp_path, command):
    folder = series_of(done, tmp_path)
    before = state(folder)
    found = command(folder)
    assert found.index == folder.with_name("series-report") / "index.html" and state(folder) == before
    single = json.loads((logs(done) / "summary.json").read_text())
    averages = [single["avg_acc"] + seed for seed in range(3)]
    header, row = found.page.tables["methods"]
    cells = dict(zip(header, row, strict=True))
    assert cells["method"] == "dytox" and cells["runs"] == "3" and cells["tasks"] == "3"
    assert cells["average"] == f"{statistics.fmean(averages):.2f} ± {statistics.stdev(averages):.2f}"
    assert cells["forgetting"] == f"{single['forgetting']:.2f} ± 0.00"
    runs = found.page.tables["runs"][1:]
    assert [each[0] for each in runs] == ["seed-0", "seed-1", "seed-2"]
    assert [each[4] for each in runs] == [f"{average:.2f}" for average in averages]
    assert len(found.page.tables["accuracy"]) == 4 and found.page.tables["accuracy"][1][3:5] == [
        f"{single['accs'][0] + 1:.2f}",
        "1.00",
    ]
    assert {"accuracy-of-runs", "forgetting", "matrix", "accuracy-and-cost"} <= found.page.tables.keys()
    assert "differences" not in found.page.tables and "damaged" not in found.page.text


def test_a_series_that_is_going_on(done, tmp_path, command):
    folder = series_of(done, tmp_path, seeds=2)
    (folder / "seed-1" / "summary.json").unlink()
    change(folder / "seed-1" / "status.json", status="running")
    path = folder / "seed-1" / "evaluations.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if json.loads(line)["task"] < 2))
    found = command(folder)
    assert (
        "dytox: means are over what has learned 3 tasks; not in them: series, seed-1 (2 of 3 tasks, running)" in found.page.text
    )
    cells = dict(zip(*found.page.tables["methods"], strict=True))
    assert cells["runs"] == "1 of 2" and "±" not in cells["average"]
    assert found.page.tables["accuracy-of-runs"][3][2] == "" and found.page.tables["runs"][2][3] == "2 of 3"


def test_experiments_are_named_by_what_differs(done, tmp_path, command):
    parts = {
        "a": {},
        "b": {"memory_size": 50},
        "c": {"dytox": False, "ind_clf": "", "finetuning": "", "method": "icarl", "nme": True},
    }
    runs = [series_of(done, tmp_path / name, seeds=2, name=name, **options) for name, options in parts.items()]
    found = command(*runs)
    assert found.index.parent == runs[0].with_name("a-comparison")
    assert [row[0] for row in found.page.tables["methods"][1:]] == ["dytox, memory_size 100", "dytox, memory_size 50", "icarl"]
    assert ["memory_size", "100", "50", "100"] in found.page.tables["differences"]
    assert "6 runs of 3 experiments" in found.page.text and "matrix" not in found.page.tables
    assert {row[0] for row in found.page.tables["forgetting"][1:]} == {row[0] for row in found.page.tables["methods"][1:]}


def test_other_data_stand_apart(done, tmp_path, command):
    other = made_up(tmp_path / "cifar", nb_tasks=10, size=10, learned=4, status="running")
    none = made_up(tmp_path / "none", nb_tasks=20, size=5, learned=0, status="preparing")
    found = command(logs(done), other, none, "--out", tmp_path / "out")
    assert found.page.text.count("accuracies do not compare") == 3
    for words in ("Results: digits, tasks: 5 of 2 classes", "Results: cifar100, tasks: 10 of 10 classes", "20 of 5 classes"):
        assert words in found.page.text
    assert found.page.tables["methods-2"][1][1:3] == ["1", "4"]
    assert "accuracy-of-runs" not in found.page.tables and "damaged" not in found.page.text
    assert "0 of 20 tasks, preparing" in found.page.text


def test_several_are_drawn(done, tmp_path):
    """Every picture, also of many methods."""
    runs = [series_of(done, tmp_path / str(size), name=str(size), seeds=2, memory_size=size) for size in (50, 60, 70)]
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "damaged" not in text and text.count("<svg") == 4 and "dytox, memory_size 70" in text


# The command.


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 2, "RUN"),
        (["a", "--no-such"], 2, "--no-such"),
        (["a", "--watch", "soon"], 2, "seconds"),
        (["a", "--watch", "0"], 2, "seconds"),
        (["absent"], 4, "not the folder of a run"),
        (["."], 4, "not the folder of a run"),
    ],
)
def test_wrong_words_are_one_line(argv, code, said, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = command(*argv)
    assert found.code == code and found.out == "" and len(found.err.splitlines()) == 1 and said in found.err
    assert found.err.startswith("error: ") and not list(tmp_path.iterdir())


def test_it_is_a_command():
    words = [sys.executable, "-X", "importtime", "-m", "continual.report", "a", "--outt"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    said = [line for line in found.stderr.splitlines() if not line.startswith("import time:")]
    assert found.returncode == 2 and len(said) == 1 and "--outt" in said[0]
    assert "| torch" not in found.stderr  # answered before


def test_out(done, tmp_path, command):
    folder = made_up(tmp_path / "run", nb_tasks=2, size=2)
    out = tmp_path / "deep" / "inside"
    assert command(folder, "--out", out).index == out / "index.html"
    (out / "notes.txt").write_text("mine")
    (out / "exhibits" / "mine.csv").write_text("mine")
    (folder / "classes.json").unlink()  # an exhibit less
    assert (out / "exhibits" / "classes.csv").exists() and command(folder, "--out", out).code == 0
    assert not (out / "exhibits" / "classes.csv").exists()
    assert (out / "notes.txt").read_text() == (out / "exhibits" / "mine.csv").read_text() == "mine"
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["other page", "other exhibits", "file", "below a file", "the run", "in the run"])
def test_where_no_page_can_be(tmp_path, command, kind):
    folder = made_up(tmp_path / "run", nb_tasks=1, size=2)
    out = {"the run": folder, "in the run": folder / "page", "below a file": tmp_path / "out" / "page"}.get(
        kind, tmp_path / "out"
    )
    if "file" in kind:
        (tmp_path / "out").write_text("mine")
    elif kind == "other page":
        out.mkdir()
        (out / "index.html").write_text("<p>mine</p>")
    elif kind == "other exhibits":
        (out / "exhibits").mkdir(parents=True)
        (out / "exhibits" / "matrix.csv").write_text("mine")
    before = state(tmp_path)
    found = command(folder, "--out", out)
    assert found.code == 2 and len(found.err.splitlines()) == 1 and "--out" in found.err
    assert state(tmp_path) == before


def test_watching_ends_with_the_run(tmp_path, command, monkeypatch):
    folder = made_up(tmp_path / "run", nb_tasks=4, size=2, learned=2, status="running")
    index, slept, seen = tmp_path / "run-report" / "index.html", [], []

    def sleep(seconds):
        slept.append(seconds)
        seen.append((index.stat().st_mtime_ns, 'http-equiv="refresh"' in index.read_text()))
        if len(slept) == 3:
            change(folder / "status.json", status="failed", exit_code=1, message="gone")

    monkeypatch.setattr(time, "sleep", sleep)
    found = command(folder, "--watch", "7")
    assert found.code == 0 and slept == [7.0] * 3 and len({stamp for stamp, _ in seen}) == 1  # nothing new, nothing written
    assert all(again for _, again in seen) and 'http-equiv="refresh"' not in found.html
    assert ["status", "failed (exit code 1): gone"] in found.page.tables["run"]


def test_watching_ends_with_ctrl_c(tmp_path, command, monkeypatch):
    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    found = command(made_up(tmp_path / "run", nb_tasks=4, size=2, learned=2, status="running"), "--watch")
    assert found.code == 0 and found.index == tmp_path / "run-report" / "index.html" and found.err == ""


def test_ctrl_c_before_there_is_a_page(tmp_path, command, monkeypatch):
    def write(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "write", write)
    for more in ([], ["--watch"]):
        found = command(made_up(tmp_path / f"run{len(more)}", nb_tasks=1, size=2, status="running"), *more)
        assert found.code == 130 and found.err == found.out == ""


def test_watching_a_series_waits_for_its_next_run(done, tmp_path, command, monkeypatch):
    folder = series_of(done, tmp_path, seeds=2)
    monkeypatch.setattr(time, "sleep", lambda seconds: (folder / "series.json").write_text("{}"))
    found = command(folder, "--watch", "1")
    assert found.code == 0 and "is written again" in found.out and 'http-equiv="refresh"' not in found.html


def fake(past) -> list[Chapter]:
    """A chapter as continual/report/deep.py makes them."""
    return [Chapter("Where errors come from", [Exhibit("matrix", f"deep {past.label}", "How to read.", Table(["a"], [[1]]))])]


def test_deep(done, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "continual.report.deep", SimpleNamespace(chapters=fake))
    monkeypatch.setattr(continual.report, "deep", SimpleNamespace(chapters=fake), raising=False)
    found = command(logs(done), "--deep", "--out", tmp_path / "one")
    assert "deep run" in found.page.text.replace(logs(done).name, "run") and found.page.tables["matrix-2"] == [["a"], ["1"]]
    first, second = (series_of(done, tmp_path / str(size), name=f"m{size}", seeds=2, memory_size=size) for size in (50, 60))
    assert "Where errors come from (dytox: m50, seed-0, its lowest seed)" in command(first, "--deep").page.text
    found = command(first, second, "--deep")
    assert found.page.text.count("deep seed-0") == 2 and "deep seed-1" not in found.page.text
    assert "Where errors come from (dytox, memory_size 60: m60, seed-0, its lowest seed)" in found.page.text


# Pictures.


def test_a_picture_in_a_page_follows_its_theme():
    drawn = figures.curves(
        [figures.Curve("a < b", [1, 2], [3, 4]), figures.Curve("$b_1$", [1, 2], [5, 6], place=1)], xlabel="x"
    )
    png, svg = figures.saved(drawn, "name")
    inside = figures.inline(svg, label='"a" & b')
    assert "currentColor" in inside and "var(--c0)" in inside and "var(--faint)" in inside and figures.INK not in inside
    assert 'aria-label="&quot;a&quot; &amp; b"' in inside and "a &lt; b" in inside and "$b_1$" in inside
    assert "<style" not in inside and "DejaVu" not in inside and 'fill="white"' in figures.on_white(svg)
    again = figures.saved(
        figures.curves([figures.Curve("a < b", [1, 2], [3, 4]), figures.Curve("$b_1$", [1, 2], [5, 6], place=1)], xlabel="x"),
        "name",
    )
    assert again == (png, svg)  # so that what has not changed is not written


def test_the_colours_of_a_page_are_those_of_its_style():
    names = {f"--c{place}" for place in range(len(figures.COLOURS))} | {"--faint"}
    for part in page.STYLE.split("@media (prefers-color-scheme: dark)")[:2]:
        assert names <= set(re.findall(r"(--[a-z0-9]+):", part))
