"""A CIFAR-100 run is held against the published numbers, through the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from continual.options import parse, to_yaml
from continual.published import compare, main, published

ROOT = Path(__file__).parent.parent
CURVE = [91.9, 83.85, 76.47, 69.62, 66.68, 64.57, 59.27, 57.4, 55.61, 50.81]


def run_folder(path: Path, accs: list[float], *argv: str) -> Path:
    path.mkdir(parents=True)
    (path / "options.yaml").write_text(to_yaml(parse(["--data-set", "cifar100", *argv])))
    lines = []
    for task, acc in enumerate(accs):
        lines += [{"task": task, "final": False, "acc": 1.0}, {"task": task, "final": True, "acc": acc}]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def command(capsys):
    """The command within this process: its exit code, what it printed, and what it printed as errors."""

    def call(*argv: object) -> subprocess.CompletedProcess:
        code = main([str(word) for word in argv])
        return subprocess.CompletedProcess(argv, code, *capsys.readouterr())

    return call


def test_it_is_a_command():
    words = [sys.executable, "-m", "continual.published"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: usage: python -m continual.published RUN\n")


def test_a_finished_run_beside_the_published_curve(command, tmp_path):
    ours = [acc + 0.5 for acc in CURVE]
    folder = run_folder(tmp_path / "run", ours, "--initial-increment", "10", "--increment", "10")
    done = command(folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line[:1].isdigit()}
    assert [lines[str(10 * (i + 1))][1:4] for i in range(10)] == [[f"{a + 0.5:.2f}", f"{a:.2f}", "+0.50"] for a in CURVE]
    (erratum,) = (line for line in done.stdout.splitlines() if line.startswith("DyTox, one memory"))
    average = sum(ours) / 10
    assert f"{average - 67.33:+.2f}" in erratum and f"{ours[-1] - 51.68:+.2f}" in erratum


def test_a_run_that_goes_on_and_a_series(command, tmp_path):
    argv = ("--initial-increment", "0", "--increment", "2")
    for seed in (0, 1):
        run_folder(tmp_path / f"seed-{seed}", [90.0, 80.0 + seed], *argv)
    (tmp_path / "run.json").write_text(json.dumps({"side": "logs", "logs": str(tmp_path), "checkpoints": str(tmp_path / "c")}))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text((tmp_path / "run.json").read_text().replace('"logs",', '"checkpoints",', 1))
    done = command(tmp_path)
    assert done.returncode == 0 and "seed-1" in done.stdout
    assert done.stdout.count("this run has learned 2 of 50 steps") == 2
    assert "+0.00" not in done.stdout  # what is not finished is not compared with what is


@pytest.mark.parametrize(
    "make, code, said",
    [
        (lambda path: path / "absent", 4, "not the folder of a run"),
        (lambda path: run_folder(path / "none", [], "--increment", "10", "--initial-increment", "10"), 4, "no task"),
        (lambda path: run_folder(path / "half", [90.0], "--increment", "10"), 2, "first task included"),
        (lambda path: run_folder(path / "else", [90.0], "--data-set", "digits"), 2, "nothing is stored of digits"),
    ],
)
def test_what_cannot_be_compared_is_one_line(make, code, said, command, tmp_path):
    done = command(make(tmp_path))
    assert done.returncode == code and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_damaged_evaluations_are_one_line(command, tmp_path):
    folder = run_folder(tmp_path / "run", CURVE, "--initial-increment", "10", "--increment", "10")
    (folder / "evaluations.jsonl").write_text('{"final": true, "ac')
    done = command(folder)
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1


def test_the_stored_numbers_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    for steps in (10, 20, 50):
        rows = published(steps)
        for row in rows:
            if row["last"] is not None:
                assert f"{row['average']:.2f} / {row['last']:.2f}" in readme, row
            curve = row.get("curve")
            if curve and len(curve) == steps:
                assert sum(curve) / steps == pytest.approx(row["average"], abs=0.2) and curve[-1] == row["last"]
            options = ROOT / "options"
            order = [
                options / "data" / f"cifar100_{100 // steps}-{100 // steps}.yaml",
                options / "model" / f"{row['model']}.yaml",
            ]
            memory = parse(["--options", *map(str, order), *row["options"].split()]).rehearsal
            per_gpu = 2000 if "first version" in row["name"] else 1000
            if " on each" in row["name"]:
                assert memory.distributed_memory and memory.memory_size == 2 * per_gpu
        assert compare([50.0] * steps, rows, steps).count("this run") >= 1
