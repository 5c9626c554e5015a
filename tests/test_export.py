"""A trained model for others: what ONNX Runtime, torch.export and plain weights compute is what the model does."""

import json
import re
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from jobs import ROOT, TINY, checkpoints, finish, folders, logs
from made_up import write_image_tree
from safetensors import safe_open
from test_dytox import KINDS, images, released, tiny
from torch import nn
from using import as_files, benchmark_of, everything

import continual
from continual.dytox import from_released, rename_released, to_released
from continual.errors import CheckpointError, Refused
from continual.export import main
from continual.registry import ENCODERS
from continual.runs import bundle

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run on one process, what was exported of it, and its test images."""
    top = tmp_path_factory.mktemp("done")
    finish([*TINY, "--mean", "auto", "--std", "auto", *folders(top)], top)
    before = everything(top)
    assert main([str(logs(top)), "--out", str(top / "exported")]) == 0
    after = {name: digest for name, digest in everything(top).items() if not name.startswith("exported")}
    assert after == before
    samples = benchmark_of(logs(top)).test(1)
    return SimpleNamespace(top=top, run=logs(top), out=top / "exported", x=samples.x, trained=continual.load(logs(top)))


@pytest.fixture
def command(capsys):
    def call(*argv: object) -> SimpleNamespace:
        code = main([str(word) for word in argv])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return call


def test_onnx_runtime_gives_the_logits_of_the_model(done):
    """On 200 images, by themselves and 64 together."""
    x = np.concatenate([done.x] * 10)[:200]
    x = torch.stack([done.trained.preprocess(image) for image in x])
    with torch.no_grad():
        expected = done.trained.model(x).logits.numpy()
    session = onnxruntime.InferenceSession(done.out / "model.onnx")
    for size in (1, 64):
        found = [session.run(["logits"], {"images": part.numpy()})[0] for part in x.split(size)]
        assert np.abs(np.concatenate(found) - expected).max() < 1e-4


def test_every_file_says_what_its_numbers_mean(done):
    config = json.loads((done.out / "config.json").read_text())
    assert config["classes"] == done.trained.classes and config["tasks"] == [0, 0, 1, 1]
    assert config["input"]["mean"] == list(done.trained.preprocess.mean) and config["input"]["shape"] == ["batch", 3, 16, 16]
    assert config["checkpoint"]["name"] == "task-2-finished" and not config["not_in_here"]
    assert str(done.top) not in json.dumps(config)
    session = onnxruntime.InferenceSession(done.out / "model.onnx")
    extra = {bundle.EXTRA: ""}
    program = torch.export.load(done.out / "model.pt2", extra_files=extra)
    with safe_open(done.out / "model.safetensors", "pt") as file:
        told = [session.get_modelmeta().custom_metadata_map["continual"], extra[bundle.EXTRA], file.metadata()["continual"]]
        assert set(file.keys()) == set(done.trained.model.state_dict())
    assert [json.loads(text) for text in told] == [config] * 3
    x = torch.stack([done.trained.preprocess(image) for image in done.x[:5]])
    assert torch.allclose(program.module()(x), done.trained.model(x).logits, atol=1e-5)


def test_it_can_be_read_back(done, tmp_path):
    back = continual.load_exported(done.out)
    assert back.predict(done.x[:9]) == done.trained.predict(done.x[:9])
    assert back.tasks == done.trained.tasks and back.options.model == done.trained.options.model
    weights = torch.load(done.out / "released.pth", weights_only=True)["model"]
    x = torch.stack([done.trained.preprocess(image) for image in done.x[:5]])
    assert torch.equal(from_released(weights).eval()(x).logits, done.trained.model(x).logits)
    with pytest.raises(CheckpointError, match="holds no exported model"):
        continual.load_exported(tmp_path)


def test_the_lines_of_the_readme(done, tmp_path):
    (cell,) = [each for each in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "InferenceSession" in each]
    (path,) = as_files(done.x[:1], tmp_path)
    names: dict = {}
    exec(re.sub(r'"exports/[^"/]*/', f'"{done.out}/', cell).replace('"image.png"', repr(str(path))), names)
    (answers,) = done.trained.predict([path])
    assert names["classes"][names["logits"][0].argmax()] == answers[0].name
    assert np.allclose(names["logits"], done.trained.model(done.trained.preprocess(path)[None]).logits.detach(), atol=1e-4)


def test_an_earlier_task_some_formats_and_exemplars(done, command, tmp_path, monkeypatch):
    """Where the data set cannot be read, exemplars are what the export is checked on."""

    def gone(*args, **how):
        raise Refused("gone")

    monkeypatch.setattr(bundle, "data_of", gone)
    told = command(done.run, "--task", "0", "--formats", "weights", "--out", tmp_path / "a")
    assert told.code == 0 and " exemplars\n" in told.out and "task-1-finished, 2 classes" in told.out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert continual.load_exported(tmp_path / "a").classes == done.trained.classes[:2]


REFUSED = {
    "no run": (lambda run, tmp: [tmp], 4, "is not the folder of a run"),
    "not kept": (lambda run, tmp: [run, "--out", tmp / "a", "--task", "7"], 4, "kept are the ends of tasks 0, 1"),
    "there already": (lambda run, tmp: [run, "--out", tmp], 2, "is there already"),
    "into the run": (lambda run, tmp: [run, "--out", run / "a"], 2, "lies in the folder of the run"),
    "no such format": (lambda run, tmp: [run, "--formats", "tflite"], 2, "tflite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_one_line(case, done, command, tmp_path):
    argv, code, said = REFUSED[case]
    before = everything(done.top)
    told = command(*argv(done.run, tmp_path))
    assert (told.code, told.out) == (code, "") and len(told.err.splitlines()) == 1 and said in told.err
    assert everything(done.top) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["far", "broken"])
def test_what_does_not_agree_is_not_kept(harm, done, command, tmp_path, monkeypatch):
    def other(path):
        session = onnx_logits(path)
        return (lambda x: session(x) + 2e-4) if harm == "far" else (lambda x: session(x[:, :2]))

    onnx_logits = bundle.onnx_logits
    monkeypatch.setattr(bundle, "onnx_logits", other)
    told = command(done.run, "--out", tmp_path / "below" / "a", "--formats", "onnx")
    assert told.code == 1 and len(told.err.splitlines()) == 1 and not list(tmp_path.iterdir())
    assert "model.onnx" in told.err or "does not run" in told.err


COUNTING = """
import continual
from torch import nn

class Counting(nn.Module):
    embed_dim = 16

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 16, 4, 4)

    def forward(self, images):
        maps = self.project(images).flatten(2).transpose(1, 2)
        return [maps, maps.reshape(len(images), -1, 16)]

continual.register_encoder("counting", lambda options, rates: Counting())
"""


def test_a_model_that_cannot_be_exported_and_a_rule_that_is_not(tmp_path, command):
    """An encoder that makes a constant of the size of the batch; weights are to be had, and iCaRL's rule is not."""
    (tmp_path / "script.py").write_text(COUNTING)
    argv = [*TINY, "--model", "counting", "--max-task", "1", "--method", "icarl", "--finetuning", "", "--drop-path", "0"]
    finish([*argv, *folders(tmp_path)], tmp_path, environment={"DYTOX_OUTSIDE": str(tmp_path / "script.py")})
    exec(COUNTING, {"__name__": "script"})
    try:
        before = everything(tmp_path)
        told = command(checkpoints(tmp_path), "--out", tmp_path / "a")
        assert told.code == 1 and len(told.err.splitlines()) == 1
        assert told.err.startswith("error: counting cannot be exported for batches of any size: ") and told.out == ""
        assert everything(tmp_path) == before
        told = command(checkpoints(tmp_path), "--out", tmp_path / "a", "--formats", "weights")
        assert told.code == 0 and "not in here: the rule by which icarl answers" in told.out
        assert command(checkpoints(tmp_path), "--out", tmp_path / "b", "--formats", "released").code == 1
    finally:
        ENCODERS.remove("counting")


def test_a_growing_classifier_with_its_correction(tmp_path, command):
    """BiC on files, whose exemplars are paths."""
    data = tmp_path / "data"
    write_image_tree(data, ["ant", "bee", "cat", "dog"], 9, 3, 8)
    argv = ["--data-set", "folder", "--data-path", str(data), "--memory-size", "16", "--batch-size", "4", "--method", "bic"]
    finish([*TINY, *argv, "--finetuning", "", "--bic-epochs", "1", *folders(tmp_path)], tmp_path)
    told = command(logs(tmp_path), "--out", tmp_path / "a")
    assert told.code == 0 and "model.onnx" in told.out and "released" not in told.out and "not in here" not in told.out
    data.rename(tmp_path / "elsewhere")
    told = command(logs(tmp_path), "--out", tmp_path / "b", "--formats", "weights")
    assert told.code == 3 and len(told.err.splitlines()) == 1 and not (tmp_path / "b").exists()
    told = command(logs(tmp_path), "--out", tmp_path / "b", "--formats", "weights", "--data-path", tmp_path / "elsewhere")
    assert told.code == 0 and "on 12 test images" in told.out


def test_a_model_of_several_extractors(tmp_path, command):
    """DER, one extractor a task."""
    finish([*TINY, "--method", "der", *folders(tmp_path)], tmp_path)
    told = command(logs(tmp_path), "--out", tmp_path / "a", "--formats", "weights", "onnx")
    assert told.code == 0 and "model.onnx" in told.out
    back, trained = continual.load_exported(tmp_path / "a"), continual.load(logs(tmp_path))
    assert all(torch.equal(back.model.state_dict()[name], value) for name, value in trained.model.state_dict().items())


@pytest.mark.parametrize("kind", [*KINDS, ""])
def test_released_names_and_back(kind):
    model = tiny(kind, tasks=(3, 2, 2)).eval()
    state = to_released(model)
    assert set(state) == {name for name in released(model) if not name.endswith("rel_indices")}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in rename_released(state).items())
    again = from_released(state, nb_classes=[3, 2, 2], ind_clf=kind)
    assert torch.equal(again.eval()(images()).logits, model(images()).logits)
    assert set(to_released(again)) == set(state)


def test_names_are_those_of_the_released_code():
    with np.load(ROOT / "tests" / "golden" / "model_1-1.npz") as stored:
        state = {
            name.removeprefix("state/"): torch.from_numpy(stored[name]) for name in stored.files if name.startswith("state/")
        }
    back = to_released(from_released(state))
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)


def test_other_models_have_no_released_names():
    with pytest.raises(ValueError, match="DyTox on ConViT alone"):
        to_released(nn.Linear(1, 1))
