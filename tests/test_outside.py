"""The README's examples: scripts that register something of their own, and the cells of a notebook."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from digits import ALL
from jobs import ROOT, TIMEOUT, bash, checkpoints, command, logs, states
from PIL import Image

import continual
from continual import predict
from continual.errors import CheckpointError, OptionsError
from continual.registry import DATA_SETS, ENCODERS, EXHIBITS, LOSSES, METHODS, METRICS, RULES
from continual.report import one
from continual.report.reading import read

README = (ROOT / "README.md").read_text()
CELLS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SCRIPTS = {match[1]: cell for cell in CELLS if (match := re.search(r'continual\.register_\w+\("(\w+)"', cell))}
DIGITS = [
    "--options",
    "options/data/digits_2-2.yaml",
    "options/model/digits_dytox.yaml",
    "--max-task",
    "2",
    "--num-workers",
    "0",
]
TINY = [*DIGITS, "--debug", "--embed-dim", "16", "--depth", "2", "--local-up-to-layer", "1"]


@pytest.fixture
def script(tmp_path):
    """name -> the path of the README's script that registers it, in a folder far from main.py."""

    def written(name: str) -> Path:
        path = tmp_path / "ideas" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SCRIPTS[name])
        return path

    return written


def places(folder: Path) -> list[str]:
    return ["--log-path", str(folder / "logs"), "--output-basedir", str(folder / "checkpoints")]


def alone(path: Path, argv: list[str], folder: Path) -> list[dict]:
    """Run a script as one process; the lines of its evaluations."""
    jobs.script(path, [*argv, "--device", "cpu"])
    return [json.loads(line) for line in (logs(folder) / "evaluations.jsonl").read_text().splitlines()]


def test_the_readme_has_one_of_each():
    assert set(SCRIPTS) == {"stripes", "lwf", "decorrelated", "small", "spread", "worst", "fading"}
    assert SCRIPTS["lwf"].count("\n") <= 40


def test_lwf_on_two_processes_and_resumed(script, tmp_path):
    """By the README's command, but tiny; main.py alone does not know it."""
    lwf = script("lwf")
    (line,) = re.findall(r"MAIN=\S*lwf.py bash train.sh (.*)", README)
    where, *told = shlex.split(line)
    argv = [*told, *TINY[len(DIGITS) - 4 :], "--max-task", "1", "--device", "cpu", *places(tmp_path)]
    jobs.finish(argv, tmp_path, processes=int(where[-1]), environment={"MAIN": str(lwf), ALL: "1"})
    alone(lwf, ["--resume", str(logs(tmp_path)), "--max-task", "2"], tmp_path)
    manifest = json.loads(next(checkpoints(tmp_path).glob("*task-2-finished.json")).read_text())
    assert manifest["identity"]["registered"] == ["method lwf"] and manifest["identity"]["lwf_weight"] == 3.0
    Image.new("L", (8, 8), 200).save(tmp_path / "image.png")
    words = ["continual.predict", [logs(tmp_path), tmp_path / "image.png"], tmp_path]
    assert command(*words, MAIN=str(lwf))[0] == 0
    code, said = command(*words)
    assert code == 2 and said.count("\n") == 1 and "there is no method 'lwf'" in said and "MAIN=SCRIPT" in said
    job = jobs.run(["--resume", str(logs(tmp_path))], tmp_path)
    assert job.codes == [2] and job.said().count("\n") == 1 and "there is no method 'lwf'" in job.said()


def test_a_script_by_train_sh(script, tmp_path):
    """On two processes, as the README says."""
    argv = ["train.sh", "cpu:2", *TINY, "--max-task", "1", "--method", "lwf", *places(tmp_path)]
    assert bash(argv, tmp_path, MAIN=str(script("lwf"))).wait(TIMEOUT) == 0, (tmp_path / "output").read_text()
    assert json.loads((logs(tmp_path) / "status.json").read_text())["status"] == "done"


def test_a_loss_an_encoder_a_rule_and_a_metric_in_one_run(script, tmp_path):
    """Each script of the README as it stands, but that the last one alone runs main.py."""
    names = ("decorrelated", "small", "spread", "worst")
    together = script("worst")
    together.write_text("\n".join(SCRIPTS[name].replace("continual.main()", "") for name in names) + "continual.main()\n")
    argv = [*TINY, "--extra-losses", "decorrelated", "--extra-loss-weights", "0.1", "--model", "small"]
    lines = alone(together, [*argv, "--rehearsal", "spread_all", *places(tmp_path)], tmp_path)

    assert lines[0]["loss_decorrelated"] > 0 and "loss_decorrelated" not in lines[-1]  # of training, not of finetuning
    last = states(checkpoints(tmp_path))["task-2-finished"]
    assert "encoder.stages.1.weight" in last["model"]["weights"] and not any(
        "sabs" in name for name in last["model"]["weights"]
    )
    assert len(last["memory"]["y"]) == 100
    assert all(line["worst"] == pytest.approx(min(line["acc_per_task"]) / 100, abs=1e-4) for line in lines)
    summary = json.loads((logs(tmp_path) / "summary.json").read_text())
    assert summary["worst"] == lines[-1]["worst"] and "worst_known" in summary
    manifest = json.loads(next(checkpoints(tmp_path).glob("*task-2-finished.json")).read_text())
    told = ["encoder small", "loss decorrelated", "metric worst", "selection rule spread"]
    assert manifest["identity"]["registered"] == told

    verified = command("continual.verify", [logs(tmp_path)], tmp_path, MAIN=str(together), **{ALL: "1"})
    assert verified[0] == 0 and verified[1].endswith("\nverified\n"), verified[1]
    assert "  code             the same: " in verified[1]  # the script, too
    code, refused = command("continual.verify", [logs(tmp_path)], tmp_path)
    assert code == 2 and refused.count("\n") == 1 and "made with what a script registers (encoder small, loss decor" in refused


def test_a_picture_on_the_page_of_a_run(script, tmp_path, done):
    """And one that fails, which the page tells; none where nothing is registered."""
    page, fading = tmp_path / "page", script("fading")
    made = command("continual.report", [logs(done), "--out", page], tmp_path, MAIN=str(fading))
    text = (page / "index.html").read_text()
    assert made[0] == 0 and "<h2" in text and "How tasks fade" in text and "Registered by a script</h2>" in text, made[1]
    rows = (page / "exhibits/fading.csv").read_text().splitlines()
    matrix = json.loads((logs(done) / "summary.json").read_text())["matrix"]
    assert rows[0] == "tasks learned since,accuracy" and len(rows) == 4
    assert float(rows[-1].split(",")[1]) == pytest.approx(matrix[2][0])

    (past,) = read(logs(done))
    assert not one.registered(past)  # here nothing is

    def failing(past):
        return past.matrix()[7]

    continual.register_exhibit("failing_one", failing)
    try:
        (chapter,) = one.registered(past)
        assert not chapter.exhibits and chapter.missing[0].startswith("failing_one: what was registered failed at line ")
    finally:
        EXHIBITS.remove("failing_one")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "error: MAIN: there is no file "),
        ("import nothing_of_that_name", "failed at line 1 of {path}: ModuleNotFoundError: "),
        ("\ndef f(:", "failed at line 2 of {path}: SyntaxError: "),
        ("import continual\ncontinual.register_exhibit('Bad Name', print)", "a name is of small letters"),
        ("import json\njson.loads('[')", "failed at line 2 of {path}: JSONDecodeError: "),
        ("raise SystemExit(3)", "failed at line 1 of {path}: SystemExit: 3"),
    ],
)
def test_a_script_that_cannot_be_run(content, told, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.py"
    if content:
        path.write_text(content)
    monkeypatch.setenv("MAIN", str(path))
    assert predict.main([str(tmp_path), "a.png"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and told.format(path=path) in error


# --------------------------------------------------------------------------------------------------------- a notebook


def cell(words: str) -> str:
    (found,) = [each for each in CELLS if words in each]
    return found


def test_the_cells_of_a_notebook(tmp_path, monkeypatch, capsys):
    """Train, then load; nothing touches signals."""
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    quick = ', name="notebook", debug=True, max_task=2, embed_dim=16, device="cpu"'
    names: dict = {}
    exec(cell("continual.train(").replace(', name="notebook"', quick), names)
    summary = names["summary"]
    folder = next(tmp_path.glob("logs/**/summary.json")).parent
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers

    names["images"] = torch.zeros(5, 3, 16, 16)
    exec(re.sub(r'"logs/.*?"', repr(str(folder)), cell("classes = continual.load(")), names)
    trained = continual.load(folder)
    assert names["classes"] == trained.classes and names["options"] == trained.options
    assert trained.classes == ["0", "1", "2", "3"] and len(trained.memory) == 100 and names["logits"].shape == (5, 4)
    assert not trained.model.training and [task.nb_new for task in trained.tasks] == [2, 2]
    assert continual.load(folder, task=0).classes == ["0", "1"]
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        continual.load(folder, task=4)


def test_the_pieces_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(cell("Trainer(model").replace("base_epochs=10", "base_epochs=6"), names)
    assert sum(names["scores"].top1) > 0.8 * sum(names["scores"].nb)
    assert not list(tmp_path.iterdir()) and not torch.distributed.is_initialized()


def test_importing_is_quick_and_leaves_no_trace(tmp_path):
    code = "import sys, signal; before = signal.getsignal(15), signal.getsignal(2); import continual\n"
    code += "assert (signal.getsignal(15), signal.getsignal(2)) == before and 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_configure_takes_files_and_changes():
    options = continual.configure(ROOT / "options/data/digits_2-2.yaml", method="wa", lr=1e-3)
    assert options.method == "wa" and options.optim.lr == 1e-3 and options.loss.weight_align
    with pytest.raises(OptionsError, match="no such file"):
        continual.configure("nowhere.yaml")


@pytest.mark.parametrize(
    ("register", "kind", "thing"),
    [
        (continual.register_encoder, ENCODERS, lambda options, rates: None),
        (continual.register_loss, LOSSES, lambda seen: None),
        (continual.register_rule, RULES, lambda features, k, rng: np.arange(k)),
        (continual.register_metric, METRICS, lambda matrix: 0.0),
    ],
)
def test_names_are_checked(register, kind, thing):
    for bad in ("Not a name", "2nd", "", "a-b"):
        with pytest.raises(OptionsError, match="a name is of small letters"):
            register(bad, thing)
    register("good_name", thing)
    assert "good_name" in kind.outside()
    kind.remove("good_name")


def test_a_method_must_be_one():
    with pytest.raises(OptionsError, match="no class derived from"):
        continual.register_method("no_method", dict)
    with pytest.raises(OptionsError, match="taken"):
        continual.register_method("wa", METHODS.find("wa"))
    assert "stripes" not in DATA_SETS.outside()
