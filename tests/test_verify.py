"""Vouching for a run: what is as it was is said to be, and whatever was altered is named in one line."""

import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import sklearn.datasets
import torch
from digits import few_digits
from jobs import ROOT, TINY, checkpoints, command, finish, folders, logs, run
from made_up import write_image_tree

from continual import verify
from continual.runs import checkpoint, evidence, predictions
from continual.runs.checkpoint import Store

PIXELS = ["--data-set", "folder", "--batch-size", "4", "--memory-size", "8"]


@pytest.fixture(scope="module", autouse=True)
def few():
    """The digits of the runs; and one thread, as they have."""
    patch, threads = few_digits(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    patch.undo()
    torch.set_num_threads(threads)


def verified(*argv):
    """Exit code, what was printed, and the line of the error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = verify.main([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


def refused(*argv, code=4):
    """The one line of an error."""
    found, _, error = verified(*argv)
    assert found == code and error.count("\n") == 1 and error.startswith("error: "), error
    return error


def resealed(path, change):
    """Alter a checkpoint as somebody would who knows how it is sealed."""
    state = torch.load(path, weights_only=True)
    change(state)
    payload = checkpoint._as_bytes(state)
    path.write_bytes(payload)
    remade(path.with_suffix(".json"), lambda manifest: manifest.update(sha256=evidence.sha256(payload), bytes=len(payload)))


def remade(path, change):
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["seal"] = checkpoint.seal(manifest)
    path.write_text(checkpoint._as_text(manifest))


def newest(folder):
    return Store(checkpoints(folder)).stored()[-1].path


# ------------------------------------------------------------------------------------------------------ as it was


def test_a_run_is_as_it_was(done):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    code, said, error = verified(logs(done))
    assert code == 0 and not error, said + error
    assert "first steps      the same: to the bit: initial weights, losses of 4 steps, weights after 1, 2, 4" in said
    assert "last evaluation  the same: to the bit: scores of" in said and said.endswith("\nverified\n")
    assert "exemplars        the same: " in said and "sources " in said
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_a_certificate(done, copy, tmp_path):
    code, said, _ = verified(checkpoints(done), "--certificate", "--steps", "2")
    document = json.loads(said)
    assert code == 0 and document["verified"] and not document["altered"] and document["seal"] == checkpoint.seal(document)
    (one,) = document["runs"].values()
    assert one["results"]["nb_tasks"] == 3 and one["experiment"]["seed"] == 0 and one["made_with"][0]["packages"]["torch"]
    assert [each["exemplars"] > 0 for each in one["checkpoints"]][-1] and str(done) not in said
    path = tmp_path / "certificate.json"
    path.write_text(said)
    code, said, _ = verified(logs(done), "--steps", "0", "--check", path)
    assert code == 0 and "certificate      the same" in said and "first steps      not verified" in said

    document["runs"][logs(done).name]["results"]["acc"] = 99.0
    path.write_text(json.dumps(document))
    assert "certificate.json: the certificate was altered: its seal does not fit" in refused(logs(done), "--check", path)
    document["seal"] = checkpoint.seal(document)
    path.write_text(json.dumps(document))
    assert "certificate: 26" in refused(logs(done), "--check", path).replace(logs(done).name, "26")
    path.write_text("[]")
    assert "is no certificate" in refused(logs(done), "--check", path)


def test_it_survives_every_resume(tmp_path):
    """Killed inside the first steps and later on: the same notes, and environments that do not repeat themselves."""
    assert run([*TINY, *folders(tmp_path)], tmp_path, fault="kill:step:3").codes == [-9]
    assert run(["--resume", str(logs(tmp_path))], tmp_path, fault="term:step:4").codes == [75]
    finish(["--resume", str(logs(tmp_path))], tmp_path)
    manifest = Store(checkpoints(tmp_path)).stored()[-1].manifest
    assert len(manifest["fingerprint"]["losses"]) == 4 and len(manifest["made_with"]) == 1
    assert verified(logs(tmp_path))[0] == 0


def test_one_that_goes_on(tmp_path):
    assert run([*TINY, *folders(tmp_path)], tmp_path, fault="term:step:7").codes == [75]
    code, said, _ = verified(logs(tmp_path))
    assert code == 0 and "was made inside a task: its SHA-256 alone vouches for it" in said
    assert "to the bit: scores of" in said and "at the end of task 0" in said
    finish(["--resume", str(logs(tmp_path)), "--resume-anyway", "--lr", "0.01"], tmp_path)
    code, said, _ = verified(logs(tmp_path))
    assert code == 0 and "the run went on with other options than it began with" in said
    assert "it was resumed anyway with other options: lr was" in said


@pytest.mark.parametrize("processes", [1, 2])
def test_two_processes(processes, tmp_path):
    """The bits of two processes are those of two; one finds them within a tolerance, where sums are in another order."""
    finish([*TINY, *folders(tmp_path), "--data-set", "folder", *_tree(tmp_path)], tmp_path, processes=2)
    code, said = command("continual.verify", [logs(tmp_path)], tmp_path, processes=processes)
    assert code == 0, said
    assert said.count("last evaluation  the same: to the bit") == 1
    assert said.count(f"first steps      {'the same: to the bit' if processes == 2 else ''}") == 1


def _tree(folder):
    write_image_tree(folder / "data", [f"class{i}" for i in range(4)], 9, 2, 8)
    return ["--data-path", str(folder / "data"), "--batch-size", "4", "--memory-size", "16"]


def test_a_series(tmp_path):
    finish([*TINY, "--max-task", "1", "--seeds", "1", "2", *folders(tmp_path)], tmp_path)
    whole = min(tmp_path.glob("logs/**/run.json"), key=lambda path: len(path.parts)).parent
    code, said, _ = verified(whole)
    assert code == 0 and said.count("first steps      the same") == 2 and "series           the same: figures of 2 runs" in said
    figures = json.loads((whole / "series.json").read_text())
    figures["acc"]["mean"] += 1
    (whole / "series.json").write_text(json.dumps(figures))
    assert "series: series.json: acc is not that of its runs" in refused(whole)


# ---------------------------------------------------------------------------------------------------- what was altered


def one_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_weight_as_it_lies(copy):
    one_byte(newest(copy))
    assert f"checkpoints: {newest(copy).name} is damaged (its SHA-256 does not fit)" in refused(logs(copy))


def test_a_weight_sealed_again(copy):
    def change(state):
        weights = state["model"]["weights"]
        weights[next(name for name in weights if "patch" in name and name.endswith("weight"))].view(-1)[0] += 0.5

    resealed(newest(copy), change)
    assert f"checkpoints: {newest(copy).name} is another than checkpoints.jsonl in the logs saw" in refused(logs(copy))
    (logs(copy) / evidence.WITNESS).unlink()
    error = refused(logs(copy))
    assert "last evaluation: scores differ by up to" in error and "would give the same bits" in error


def test_a_weight_of_an_earlier_checkpoint_sealed_again(copy):
    (path,) = checkpoints(copy).glob("*-task-1-finished.pt")
    resealed(path, lambda state: next(iter(state["model"]["weights"].values())).view(-1)[:1].add_(1e-6))
    assert f"checkpoints: {path.name} is another than it was when" in refused(logs(copy))


def test_an_exemplar_sealed_again(copy):
    resealed(newest(copy), lambda state: state["memory"]["x"][3, 0, 0].add_(1))
    (logs(copy) / evidence.WITNESS).write_text("[\n{}\n")  # what is no line of it does not count
    error = refused(logs(copy))
    assert "exemplars: 1 of" in error and "no training image under their label (number 3)" in error


def test_a_label_of_an_exemplar_sealed_again(copy):
    resealed(newest(copy), lambda state: state["memory"]["y"][:1].add_(1))
    (logs(copy) / evidence.WITNESS).unlink()
    assert "exemplars: 1 of" in refused(logs(copy))


@pytest.mark.parametrize("side", ["logs", "checkpoints"])
def test_an_option(copy, side):
    path = (logs if side == "logs" else checkpoints)(copy) / "options.yaml"
    path.write_text(path.read_text().replace("smoothing: 0.1", "smoothing: 0.2"))
    assert f"options: options.yaml of the {side}: smoothing was 0.1, is 0.2" in refused(logs(copy))


def test_an_option_that_a_resume_may_change(copy):
    path = logs(copy) / "options.yaml"
    path.write_text(path.read_text().replace("eval_every: 1", "eval_every: 2"))
    assert "options: options.yaml of the logs: eval_every was 1, is 2" in refused(logs(copy))
    path.write_text("lr: [")
    assert "options: options.yaml of the logs: " in refused(logs(copy))


def test_an_option_everywhere(copy):
    """In both files and every manifest, each sealed again: then the first steps tell."""
    for folder in (logs(copy), checkpoints(copy)):
        path = folder / "options.yaml"
        path.write_text(path.read_text().replace("mixup: 0.8", "mixup: 0.4"))
    for path in checkpoints(copy).glob("0*.json"):
        remade(path, lambda manifest: manifest["identity"].update(mixup=0.4))
    error = refused(logs(copy))
    assert "first steps: parts at step 1: loss " in error and "would give the same bits" in error
    path = max(checkpoints(copy).glob("0*.json"))
    remade(path, lambda manifest: manifest["identity"].update(mixup=0.8))
    assert "mixup was 0.8, is 0.4" in refused(logs(copy))


def test_an_option_of_one_manifest(copy):
    path = min(checkpoints(copy).glob("0*.json"))
    remade(path, lambda manifest: manifest["identity"].update(lr=1.0))
    assert "it is of another experiment: lr was 1.0" in refused(logs(copy))


@pytest.mark.parametrize("split", ["training", "test"])
def test_an_image(done, monkeypatch, split):
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    threes = np.flatnonzero(y == 3)
    x[threes[0 if split == "training" else -1], 20] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda **_: (x, y))
    error = refused(logs(done))
    assert f"images: 1 of {'510' if split == 'training' else '130'} {split} images is another: number" in error, error
    assert "of class '3': digest" in error


def test_what_a_file_holds(tmp_path):
    """Its name stays, and so does what a run goes by when it is resumed."""
    finish([*TINY, *folders(tmp_path), "--data-set", "folder", *_tree(tmp_path)], tmp_path)
    assert verified(logs(tmp_path))[0] == 0
    path = tmp_path / "data" / "train" / "class2" / "class2_3.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    assert "images: 1 of 36 training images is another: number " in refused(logs(tmp_path))
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    assert "data" in refused(logs(tmp_path), code=3)
    assert "images: 1 of 36" in refused(logs(tmp_path), "--data-path", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("evaluations.jsonl", "evaluations: evaluations.jsonl was altered (its SHA-256 does not fit)"),
        ("summary.json", "evaluations: summary.json: acc was"),
        ("classes.json", "evaluations: classes.json is not as the newest checkpoint says"),
        ("predictions/task-2.npz", "predictions: predictions/task-2.npz was altered"),
    ],
)
def test_a_file_of_the_logs(copy, file, told):
    path = logs(copy) / file
    if file == "summary.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "acc": 100.0}))
    elif file == "classes.json":
        path.write_text(path.read_text().replace('"0"', '"nought"'))
    elif file.endswith("npz"):
        one_byte(path)
    else:
        path.write_text(path.read_text().replace('"acc": ', '"acc": 1', 1))
    assert told in refused(logs(copy))


def test_predictions_that_are_gone_or_of_another_model(copy):
    path = predictions.path_of(logs(copy), 2)
    found = predictions.read(path)
    answers = (found.answers + 1) % 6
    digest = predictions.write(logs(copy), 2, predictions.Predictions(**{**vars(found), "answers": answers}))
    remade(newest(copy).with_suffix(".json"), lambda manifest: manifest["predictions"].update({path.name: digest}))
    assert "last evaluation: scores differ by up to 0, first at image 0;" in refused(logs(copy))
    path.unlink()
    assert "predictions/task-3.npz is gone" in refused(logs(copy))


def test_a_manifest(copy):
    path = newest(copy).with_suffix(".json")
    path.write_text(path.read_text().replace('"task": 2', '"task": 1'))
    assert f"{newest_of(copy)}: its manifest was altered or is damaged" in refused(logs(copy))
    path.unlink()
    assert f"{newest_of(copy)}: its manifest is gone" in refused(logs(copy))
    for each in checkpoints(copy).glob("0*"):
        each.unlink()
    refused(logs(copy))


def newest_of(folder):
    return (checkpoints(folder) / "newest").read_text()


def test_the_digests_of_the_images(copy):
    one_byte(checkpoints(copy) / evidence.IMAGES)
    assert "images: images.npz was altered" in refused(logs(copy))
    (checkpoints(copy) / evidence.IMAGES).unlink()
    assert "images: images.npz is gone" in refused(logs(copy))


def test_how_it_began(copy):
    for path in checkpoints(copy).glob("0*.json"):
        remade(path, lambda manifest: manifest["fingerprint"]["weights"].update({"2": "0" * 64}))
    assert "first steps: after step 2 the weights are others" in refused(logs(copy))
    for path in checkpoints(copy).glob("0*.json"):
        remade(path, lambda manifest: manifest["fingerprint"].update(initial="0" * 64))
    assert "first steps: the initial weights are others" in refused(logs(copy))


# ------------------------------------------------------------------------------------------- what cannot be told exactly


def test_a_run_from_before_this_was_recorded(copy):
    new = (evidence.MADE_WITH, evidence.FINGERPRINT, evidence.SEEN, evidence.EVALUATED, evidence.TOLD, checkpoint.EARLIER)
    for path in checkpoints(copy).glob("0*.json"):
        remade(path, lambda manifest: [manifest.pop(key) for key in new])
    (checkpoints(copy) / evidence.IMAGES).unlink()
    code, said, _ = verified(logs(copy))
    assert code == 0 and said.endswith("verified as far as it can be; see what is not verified above\n")
    assert "the run did not note how it began" in said and "did not record its code" in said
    assert "last evaluation" in said and "each stands alone" in said
    finish(["--resume", str(logs(copy)), "--start-task", "1"], copy)  # and it goes on
    code, said, _ = verified(logs(copy))
    assert code == 0 and "the run did not note how it began" in said


def test_another_environment_is_within_a_tolerance(copy):
    def elsewhere(manifest):
        manifest["made_with"][0]["processor"]["name"] = "another"
        if len(manifest["fingerprint"]["losses"]) > 1:
            manifest["fingerprint"]["losses"][1] *= 1 + 1e-6

    for path in checkpoints(copy).glob("0*.json"):
        remade(path, elsewhere)
    code, said, _ = verified(logs(copy))
    assert code == 0 and "processor        another: then device cpu, name another" in said
    assert "first steps      close: within 0.0001 of 4 losses" in said and "parts at step 2" in said
    for path in checkpoints(copy).glob("0*.json"):
        remade(path, lambda manifest: manifest["fingerprint"].update(losses=[*manifest["fingerprint"]["losses"][:1], 9.0]))
    assert "first steps: parts at step 2: loss 9 then" in refused(logs(copy))


def test_too_many_files_are_drawn(tmp_path, monkeypatch):
    from continual.data import identity
    from continual.datasets import load

    write_image_tree(tmp_path, ["a", "b"], 9, 2, 8)
    bench = load(data_set="folder", data_path=str(tmp_path), initial_increment=0, increment=1)
    monkeypatch.setattr(identity, "MOST_FILES", 5)
    found, again, other = (evidence.images_of(bench, seed) for seed in (0, 0, 1))
    assert len(found["training"]) == 5 and found["training"].all() and len(found["test"]) == 4
    assert all(np.array_equal(found[key], again[key]) for key in found)
    assert not np.array_equal(found["training_rows"], other["training_rows"])


def test_words_that_do_not_do(tmp_path, done):
    assert "usage: python -m continual.verify RUN" in refused(code=2)
    assert "--steps: a run keeps 64 steps" in refused(logs(done), "--steps", "65", code=2)
    assert "is not the folder of a run" in refused(tmp_path)
    assert verified("--help")[0] == 0


def test_the_environment_is_told():
    found = evidence.environment(torch.device("cpu"))
    assert torch.__version__.startswith(found["packages"]["torch"]) and found["processor"]["threads"] == 1
    assert set(found["code"]) == {"commit", "clean", "sources", "script"} and json.loads(json.dumps(found)) == found
    assert os.fspath(ROOT) not in json.dumps(found)
