"""What can be watched of a run: every point once, whatever ends the run and wherever it is resumed."""

import json
import shutil
import signal
import subprocess
import sys
import types

import pytest
from jobs import (
    OUTSIDE,
    ROOT,
    TINY,
    assert_equal,
    checkpoints,
    finish,
    folders,
    logs,
    run,
    states,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata

from continual.errors import OptionsError
from continual.options import parse
from continual.options.schema import check_installed
from continual.runs.record import Report
from continual.runs.run import LIVE
from continual.seeing import board
from continual.seeing.board import Board
from continual.seeing.live import Live, scalars_of
from continual.seeing.online import WeightsAndBiases

SHOWN = [*TINY, "--tensorboard"]
SPEED = "train/images_per_second"

FAKE = '''
"""In the place of wandb: notes what it is told in the file that FAKE_WANDB names; `FAKE_WANDB_FAILS` is what fails."""
import json, os

def note(**what):
    with open(os.environ["FAKE_WANDB"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Settings:
    model_fields = {"finish_timeout": None}

class Image:
    def __init__(self, image):
        self.size = image.size

class Run:
    step = 0
    def define_metric(self, name, step_metric): pass
    def log(self, data, step, commit):
        if os.environ.get("FAKE_WANDB_FAILS") == "log":
            raise ConnectionError("no network")
        note(row=step, data={key: value.size if isinstance(value, Image) else value for key, value in data.items()})
    def mark_preempting(self): note(preempting=True)
    def finish(self, exit_code): note(finish=exit_code)

def init(**how):
    if os.environ.get("FAKE_WANDB_FAILS") == "init":
        raise TimeoutError("no network")
    note(init={key: how[key] for key in ("id", "project", "entity", "name", "resume", "settings")}, seed=how["config"]["seed"])
    return Run()
'''


def events(folder):
    """Every record of the one event file of a folder."""
    (path,) = folder.iterdir()
    return list(EventFileLoader(str(path)).Load())


def points(folder):
    """(step, tag, value) of all that a run of `folder` left for TensorBoard, in its order, but for the speed and the time."""
    found = []
    for event in events(logs(folder) / board.FOLDER):
        for value in event.summary.value:
            if value.tag != SPEED:
                known = value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME  # with a time inside
                found.append((event.step, value.tag, "" if known else value.tensor.SerializeToString()))
    return found


def resume(folder, *more, **how):
    return finish(["--resume", str(checkpoints(folder)), *more], folder, **how)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish([*SHOWN, *folders(folder)], folder)
    return folder


def test_the_points_of_a_run(undisturbed):
    found = points(undisturbed)
    assert len({(step, tag) for step, tag, _ in found}) == len(found)
    shown = EventAccumulator(str(logs(undisturbed) / board.FOLDER), size_guidance={"scalars": 0})
    shown.Reload()
    steps = json.loads((logs(undisturbed) / "summary.json").read_text())["cost"]["steps"]
    assert [event.step for event in shown.Scalars("loss/total")] == list(range(2, steps + 1, 2))  # epochs of two steps
    assert len(shown.Scalars(SPEED)) == len(shown.Scalars("train/lr")) == steps // 2
    records = [json.loads(line) for line in (logs(undisturbed) / "evaluations.jsonl").read_text().splitlines()]
    for tag, key in (("test/acc", "acc"), ("test/forgetting_known", "forgetting_known"), ("test/loss", "test_loss")):
        assert [event.value for event in shown.Scalars(tag)] == pytest.approx([record[key] for record in records])
    last = [shown.Scalars(f"acc_per_task/{number:02d}")[-1].value for number in (1, 2)]
    assert last == pytest.approx(records[-1]["acc_per_task"])
    assert {"tokens/mean_dist", "test/acc5", "test/bwt", "test/avg_acc", "size/n_exemplars"} <= set(shown.Tags()["scalars"])
    assert len(shown.Images("matrix/task unknown/picture")) == 2
    table = shown.Tensors("matrix/task known/table")[-1].tensor_proto.string_val[0].decode()
    assert table.startswith("| after task | task 1 | task 2 |\n| --- | --- | --- |\n| 1 | ") and table.count("\n") == 3


def test_the_options_come_first_and_the_end_last(undisturbed):
    first, *_, last = [event for event in events(logs(undisturbed) / board.FOLDER) if event.summary.value]
    (begun,), (ended,) = first.summary.value, last.summary.value
    assert (begun.tag, ended.tag) == (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
    told = metadata.parse_session_start_info_plugin_data(begun.metadata.plugin_data.content).hparams
    assert told["lr"].number_value == 0.03 and told["dytox"].bool_value is True
    assert told["incremental_lr"].string_value == "none" and told["replicas"].number_value == 2
    assert "log_path" not in told


def test_gone_back_a_task_and_killed_again(tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    back = ["--resume", str(checkpoints(tmp_path)), "--start-task", "1"]
    assert run(back, tmp_path, fault="kill:data:2").codes == [-signal.SIGKILL]
    resume(tmp_path)
    assert points(tmp_path) == points(undisturbed)


def test_two_processes_write_once(tmp_path, undisturbed):
    finish([*SHOWN, *folders(tmp_path)], tmp_path, processes=2)
    assert [each[:2] for each in points(tmp_path)] == [each[:2] for each in points(undisturbed)]


def test_switched_off_it_leaves_nothing_and_changes_nothing(tmp_path, undisturbed):
    finish([*SHOWN, *folders(tmp_path), "--no-tensorboard"], tmp_path)
    assert not (logs(tmp_path) / board.FOLDER).exists()
    assert_equal(states(checkpoints(tmp_path)), states(checkpoints(undisturbed)))


def test_switched_off_for_a_while(tmp_path, undisturbed):
    """What was written before stays, and goes on where it is on again."""
    assert run([*SHOWN, *folders(tmp_path)], tmp_path, fault="term:task change:1").codes == [75]
    off = ["--resume", str(checkpoints(tmp_path)), "--no-tensorboard"]
    assert run(off, tmp_path, fault="term:step:3").codes == [75]
    resume(tmp_path, "--tensorboard")
    found, wanted = points(tmp_path), points(undisturbed)
    assert set(found) < set(wanted) and found[-1] == wanted[-1]
    assert [each for each in wanted if each[0] <= 4] == [each for each in found if each[0] <= 4]


def test_a_folder_that_cannot_be_written(tmp_path, undisturbed):
    """A file stands where the folder would be."""
    assert run([*SHOWN, *folders(tmp_path)], tmp_path, fault="kill:rename:1").codes == [-signal.SIGKILL]
    (logs(tmp_path) / board.FOLDER).write_text("")
    assert resume(tmp_path).said().count("warning: TensorBoard: not everything is written to") == 1
    assert_equal(states(checkpoints(tmp_path)), states(checkpoints(undisturbed)))


# The file


@pytest.fixture
def said():
    return []


def written(folder, said, *, steps, position=0):
    """A board that goes on from a position with one point for each of these steps."""
    made = Board(folder, said.append)
    made.start(position, {"lr": 1.0})
    for step in steps:
        made.add(step, {"test/acc": float(step)})
    return made


def steps_of(folder):
    return [event.step for event in events(folder / board.FOLDER) if event.summary.value][1:]


def test_what_a_checkpoint_does_not_know_is_cut_off_and_the_file_gets_the_next_number(tmp_path, said):
    made = written(tmp_path, said, steps=[1, 2])
    position = made.position()
    made.add(3, {"test/acc": 0.0})
    written(tmp_path, said, position=position, steps=[])
    assert [path.name for path in (tmp_path / board.FOLDER).iterdir()] == ["events.out.tfevents.000002"]
    assert steps_of(tmp_path) == [1, 2]
    written(tmp_path, said, position=position, steps=[3])
    assert steps_of(tmp_path) == [1, 2, 3] and not said
    assert [path.name for path in (tmp_path / board.FOLDER).iterdir()] == ["events.out.tfevents.000002"]


def test_a_checkpoint_that_knows_of_no_file_begins_a_new_one(tmp_path, said):
    written(tmp_path, said, steps=[1, 2])
    written(tmp_path, said, steps=[7])
    assert steps_of(tmp_path) == [7] and not said


@pytest.mark.parametrize("left", [0, 1, -3])
def test_lost_bytes_are_told_and_whole_records_kept(left, tmp_path, said):
    position = written(tmp_path, said, steps=[1, 2]).position()
    (path,) = (tmp_path / board.FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[: left if left >= 0 else position + left])
    written(tmp_path, said, position=position, steps=[3])
    (told,) = said
    assert told.startswith(f"warning: {path} lost ") and told.endswith(f" of {position} bytes; going on without them")
    assert steps_of(tmp_path) == ([1, 3] if left < 0 else [3])


def test_half_a_record_is_replaced_by_the_next(tmp_path, said):
    made = written(tmp_path, said, steps=[1])
    (path,) = (tmp_path / board.FOLDER).iterdir()
    with open(path, "ab") as file:
        file.write(b"half")  # of one that did not fit
    made.add(2, {"test/acc": 2.0})
    assert steps_of(tmp_path) == [1, 2]
    path.unlink()
    made.add(3, {"test/acc": 3.0})
    assert [event.step for event in events(tmp_path / board.FOLDER)] == [0, 3]  # a new file, with its version
    assert made.position() == path.stat().st_size and not said


def test_a_library_that_is_not_there_is_told_once(tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    made = written(tmp_path, said, steps=[1, 2])
    assert made.position() == 0
    (told,) = said
    assert told.startswith("warning: TensorBoard: not everything is written") and "ModuleNotFoundError" in told


def test_nothing_of_it_is_imported_before_there_is_a_record():
    script = "import main, sys; assert not {'tensorboard', 'google.protobuf', 'wandb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_pictures_of_few_and_of_many_tasks():
    few, many = ([[100.0 * (i == j) for j in range(i + 1)] for i in range(nb)] for nb in (3, 50))
    assert board.picture(few).size == (90, 90) and board.picture(many).size == (500, 500)
    drawn = board.picture(many)
    assert drawn.getpixel((5, 5)) == (31, 119, 180) and drawn.getpixel((5, 15)) == (255, 255, 255)
    assert drawn.getpixel((15, 5)) == (235, 235, 235)


def test_figures_that_are_none_are_left_out():
    record = {"task": 0, "phase": "training", "acc": 50.0, "test_loss": None, "loss_clf": 0.5, "own_known": 2.0}
    assert scalars_of(record) == {"test/acc": 50.0, "test/own_known": 2.0}


def test_nothing_is_added_before_the_start(tmp_path, said):
    live = Live([Board(tmp_path, said.append)])
    live.load_state_dict({"tensorboard": 7, "another": 3})
    report = Report(None, console=False, live=live)
    report.epoch_done(1, losses={}, lr=0.1, speed=None)
    live.close(1)
    assert live.state_dict() == {"tensorboard": 7, "another": 3} and not list(tmp_path.iterdir())


# Weights & Biases


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A module in the place of wandb, for jobs; gives what the jobs noted."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(FAKE)
    notes = tmp_path / "notes"
    (tmp_path / "outside.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path / 'modules')!r})\n")
    environment = {"FAKE_WANDB": str(notes), OUTSIDE: str(tmp_path / "outside.py")}

    def noted():
        return [json.loads(line) for line in notes.read_text().splitlines()]

    return environment, noted


ASKED = ["--wandb", "team/project"]


def rows(noted):
    found = [each for each in noted if "row" in each]
    return [(each["row"], {key: value for key, value in each["data"].items() if key != SPEED}) for each in found]


def test_wandb_gets_every_row_once(tmp_path, fake):
    environment, noted = fake
    argv = [*TINY, *folders(tmp_path), *ASKED]
    assert run(argv, tmp_path, environment=environment, fault="kill:backward:6").codes == [-signal.SIGKILL]
    resumed = ["--resume", str(checkpoints(tmp_path))]
    assert run(resumed, tmp_path, environment=environment, fault="term:finetuning:1").codes == [75]
    finish(resumed, tmp_path, environment=environment)
    found = rows(noted())
    assert [row for row, _ in found] == list(range(len(found)))
    assert [data["step"] for _, data in found] == sorted(data["step"] for _, data in found)
    assert [data["matrix/task unknown"] for _, data in found if "matrix/task unknown" in data] == [[30, 30], [60, 60]]
    inits = [each["init"] for each in noted() if "init" in each]
    assert len(inits) == 3 and inits[0] == inits[1] == inits[2]
    assert inits[0]["project"] == "project" and inits[0]["entity"] == "team" and inits[0]["resume"] == "allow"
    assert inits[0]["name"] == logs(tmp_path).name and inits[0]["settings"] == {"finish_timeout": 60.0}
    kept = json.loads((logs(tmp_path) / "wandb.json").read_text())
    assert kept == {"id": inits[0]["id"], "project": "team/project", "rows": len(found)}
    ends = [each for each in noted() if "row" not in each and "init" not in each]
    assert ends == [{"preempting": True}, {"finish": 75}, {"finish": 0}]

    again = tmp_path / "undisturbed"
    finish([*TINY, *folders(again), *ASKED, "--tensorboard"], again, environment=environment)
    assert rows(noted())[len(found) :] == found
    known = {tag for _, tag, _ in points(again) if not tag.startswith("_")}
    assert {tag.removesuffix("/picture").removesuffix("/table") for tag in known} | {"step"} == {
        key for _, data in found for key in data
    }
    manifest = json.loads(sorted(checkpoints(again).glob("*.json"))[-2].read_text())
    assert manifest[LIVE]["wandb"] == len(found)


@pytest.mark.parametrize("what", ["init", "log"])
def test_a_failing_network_ends_nothing(what, tmp_path, fake):
    environment, _ = fake
    job = finish([*TINY, *folders(tmp_path), *ASKED], tmp_path, environment={**environment, "FAKE_WANDB_FAILS": what})
    (told,) = [line for line in job.said().splitlines() if "warning" in line]
    assert told.startswith("warning: Weights & Biases: the run goes on without: ") and told.endswith("Error: no network")


def test_wandb_has_to_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_installed(parse([]))
    with pytest.raises(OptionsError, match="wandb: not installed; pip install wandb"):
        check_installed(parse(["--wandb", "project"]))
    with pytest.raises(OptionsError, match="no project, nor entity/project"):
        parse(["--wandb", "a/b/c"])


def test_rows_that_the_server_has_are_not_sent_again(tmp_path, said, monkeypatch):
    given = []

    class Given:
        step = 3

        def define_metric(self, *_, **__):
            pass

        def log(self, data, step, commit):
            given.append(step)

    module = types.SimpleNamespace(Settings=object, init=lambda **how: Given())
    monkeypatch.setitem(sys.modules, "wandb", module)
    made = WeightsAndBiases(tmp_path, said.append, project="project", label="run")
    made.start(2, {})
    for step in range(4):
        made.add(step, {"test/acc": 1.0})
    assert given == [3, 4, 5] and made.position() == 6 and not said
    (tmp_path / "wandb.json").write_text("{")
    made = WeightsAndBiases(tmp_path, said.append, project="project", label="run")
    made.start(0, {})
    assert json.loads((tmp_path / "wandb.json").read_text())["rows"] == 0
