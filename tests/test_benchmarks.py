"""The benchmark of speed runs, and measures what it says. No test here depends on how long anything takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "benchmarks"
sys.path.insert(0, str(FOLDER))  # as Python does for a script

import speed  # noqa: E402
from parts import cuda, experiments, scaling  # noqa: E402
from parts.models import Steps, grown, method_for, options_of, tasks_of  # noqa: E402
from parts.published_way import cross_check  # noqa: E402
from parts.quickstart import DIGITS, images_of_run  # noqa: E402
from parts.setting import OutOfTime, Setting, guarded, table  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import continual  # noqa: E402

CPU = torch.device("cpu")
TINY = Setting(tiny=True, rounds=1)


@pytest.fixture(autouse=True)
def same_number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_leaves_numbers_a_picture_and_tables(tmp_path, capsys):
    returned = speed.main(["--tiny", "--rounds", "1", "--out", str(tmp_path), "--only", "step", "augment"])
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report == json.loads(json.dumps(returned))
    assert {"command", "commit", "machine", "versions", "how", "sections"} == set(report)
    step, augment = report["sections"]["step"], report["sections"]["augment"]
    assert [(row["tasks"], row["precision"]) for row in step["rows"]] == [(t, p) for p in ("float32", "bf16") for t in (1, 2)]
    parts = ("data", "forward", "backward", "optimizer")
    needed = [*(f"{part} (ms)" for part in parts), "step (ms)", "published way (ms)", "images/s", "share of products"]
    assert all(row[key] > 0 for row in step["rows"] for key in needed)
    assert [row["teacher (ms)"] > 0 for row in step["rows"]] == [False, True] * 2
    assert [row["images/s"] > 0 for row in step["the digits' model"]] == [True, True]
    assert step["largest difference of outputs from the published way"] < 1e-5
    assert all(row[f"{how} (images/s)"] > 0 for row in augment["rows"] for how in ("batches of 32", "Pillow"))
    printed = capsys.readouterr().out
    assert "### step" in printed and "### augment" in printed and "| training |" in printed
    assert (tmp_path / "speed.png").stat().st_size > 1000
    assert speed.anything(report) and not speed.anything({"sections": {"cuda": {"rows": [], "notes": ["none"]}}})


@pytest.mark.parametrize("nb_tasks", [1, 4])
def test_the_published_way_answers_as_the_model_does(nb_tasks):
    tasks = tasks_of(nb_tasks, 3)
    model = grown(method_for(options_of("cifar", TINY), tasks), tasks, CPU)
    assert cross_check(model, torch.randn(3, 3, 32, 32)) < 1e-5


@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_parameters_as_counted(name):
    for nb_tasks in (1, 3):
        tasks, options = tasks_of(nb_tasks, 2), options_of(name, TINY)
        model = grown(method_for(options, tasks), tasks, CPU)
        assert scaling.parameters(options.model, [2] * nb_tasks) == sum(p.numel() for p in model.parameters())


def test_operations_as_torch_counts_them():
    tasks, options = tasks_of(2, 2), options_of("cifar", TINY, embed_dim=64)
    steps = Steps(options, tasks, CPU, batch=32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        steps()
    assert scaling.of_step(options.model, [2, 2]) == pytest.approx(counter.get_total_flops() / 32, rel=0.02)


def test_the_page_of_arithmetic_holds_the_numbers_of_the_code():
    page = (FOLDER / "scaling.md").read_text()
    for name, all_nb in scaling.MODELS.items():
        for nb in all_nb:
            classes, model = [scaling.CLASSES[nb]] * nb, options_of(name, Setting()).model
            step = scaling.of_step(model, classes) / 1e9
            row = next(line for line in page.splitlines() if line.startswith(f"| {name} | {nb} | 1"))
            assert f"| {scaling.parameters(model, classes):,} |" in row and f"| {step:.3g} |" in row


@pytest.mark.parametrize(
    ("name", "files"),
    [("digits: DyTox", ("digits_2-2", "digits_dytox")), ("glyphs: DyTox", ("glyphs_5-5", "glyphs_dytox"))],
)
def test_an_experiment_takes_what_the_ledger_of_its_run_counted(name, files):
    (run, *_) = json.loads((ROOT / "images/results.json").read_text())[name]
    options = continual.configure(f"options/data/{files[0]}.yaml", f"options/model/{files[1]}.yaml")
    row = experiments.experiment(name, options, continual.benchmark(options))
    assert row["training (PFLOP)"] * 1e15 == pytest.approx(run["flops_training"], rel=0.01)
    assert row["parameters"] == run["n_parameters"]


def test_what_the_readme_says_that_experiments_take():
    told = (ROOT / "README.md").read_text().split("### What a run costs", 1)[1].split("\n## ", 1)[0]
    for row in experiments.experiments(TINY)["rows"]:
        (line,) = [line for line in told.splitlines() if line.startswith(f"| {row['experiment']} |")]
        images, work, hours = (float(cell.replace(",", "").split()[0]) for cell in line.strip("|").split("|")[1:4])
        assert images == pytest.approx(row["images trained on (million)"], rel=0.01)
        assert work == pytest.approx(row["training (PFLOP)"], rel=0.01)
        assert hours == pytest.approx(row["hours of a GPU, assumed"], rel=0.05)


def test_reductions_hide_behind_large_batches():
    row = scaling.counted("cifar", 10, TINY)
    fast, slow = scaling.spread(row, rate=1e3), scaling.spread(row, rate=1e15)
    assert all(line["share of perfect"] == 1 for line in fast)
    assert all(line["share of perfect"] < 1 and line["batch of a GPU that hides it"] > scaling.BATCH for line in slow)


def test_images_of_a_run_are_counted_from_its_phases():
    options = options_of("digits", TINY)
    assert images_of_run(options, 1) == options.optim.base_epochs * (sum(DIGITS[:2]) // 16 * 16)  # without the partial batch


def test_a_device_is_held_against_the_cpu():
    rows = cuda.agrees(TINY)
    assert [row["largest difference"] for row in rows] == [0.0] * 4  # the CPU itself
    assert rows[-1]["chosen alike"] == "60 of 60"


def test_what_fails_or_has_no_time_leaves_its_words():
    def fails():
        raise ValueError("no such thing")

    assert guarded(fails) == {"error": "ValueError: no such thing"}
    with pytest.raises(OutOfTime):
        Setting(ends=0.0).need(1)
    assert set(guarded(lambda: Setting(ends=0.0).need(1))) == {"not measured"}
    assert table([{"a (s)": 1234.5, "b": [1]}, {"a (s)": 0.12345, "c": 7}]).splitlines()[2:] == [
        "| 1,234 |  |",
        "| 0.123 | 7 |",
    ]


def test_the_script_for_a_gpu_is_sound():
    assert subprocess.run(["bash", "-n", FOLDER / "gpu.sh"]).returncode == 0
