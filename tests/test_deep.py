"""Where errors come from: parts that add up, and faults that were made on purpose are found by name."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from digits import ALL, few_digits
from jobs import ROOT, THREE_TASKS, checkpoints, finish, folders, logs
from torch import nn

from continual.data.samples import Samples
from continual.dytox import Classifier
from continual.report import attention, errors, features, representation
from continual.report.deep import chapters
from continual.report.diagnosis import BETWEEN, BIAS, DESTROYED, HEADS, HEALTHY, OLD_BIAS, WITHIN, Evidence, diagnosis
from continual.report.inside import Inside, View, chosen, class_norms, evenly
from continual.report.reading import read
from continual.report.study import Study, study
from continual.runs.checkpoint import Store
from continual.runs.loading import load
from continual.runs.predictions import Predictions, packed

# Two tasks of all digits with a memory of everything: a few hundred steps, after which few answers are wrong.
LEARNING = [
    *("--options", str(ROOT / "options/data/digits_2-2.yaml"), str(ROOT / "options/model/digits_dytox.yaml")),
    *("--method", "rehearsal", "--no-class-attention", "--embed-dim", "32", "--depth", "2", "--local-up-to-layer", "2"),
    *("--max-task", "2", "--device", "cpu", "--memory-size", "1000", "--finetuning", "none", "--no-auto-kd", "--replicas", "1"),
    *("--no-bce-loss", "--smoothing", "0", "--batch-size", "16", "--lr", "0.15", "--base-epochs", "10", "--epochs", "30"),
]


def found(logits, labels, sizes) -> Predictions:
    """Answers by the highest logit."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    known = np.where(task_of[None] == task_of[labels][:, None], logits, -np.inf).argmax(1)
    return Predictions(packed(logits), logits.argmax(1), known, labels, np.arange(len(labels)), np.array(sizes), "")


def drawn(sizes, nb=400, seed=0, sure=2.0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, sum(sizes), nb)
    logits = rng.normal(size=(nb, sum(sizes)))
    logits[np.arange(nb), labels] += sure
    return found(logits, labels, sizes)


@pytest.fixture
def few():
    """The data set as the jobs have it."""
    patch = few_digits()
    yield
    patch.undo()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    finish([*LEARNING, *folders(folder)], folder, environment={ALL: "1"})
    return folder


# The answers.


@pytest.mark.parametrize("sizes", [(3,), (1, 1), (4, 2, 2), (2,) * 20])
def test_parts_add_up_to_the_error(sizes):
    answers = drawn(sizes)
    parts = errors.split(answers)
    assert np.array_equal(parts.right + parts.within + parts.newer + parts.older, parts.nb)
    assert parts.nb.sum() == len(answers.labels) and parts.right.sum() == (answers.answers == answers.labels).sum()
    assert sum(parts.overall().values()) == pytest.approx(100)
    confusion = errors.confusion(answers)
    assert np.array_equal(np.tril(confusion, -1).sum(1), parts.older) and np.array_equal(
        np.triu(confusion, 1).sum(1), parts.newer
    )
    assert parts.older[0] == 0 == parts.newer[-1]
    assert len(sizes) != 1 or (parts.newer + parts.older == 0).all()


def test_the_parts_of_four_answers():
    logits = np.eye(4)[[0, 1, 3, 0]]  # right, within, towards newer, towards older
    parts = errors.split(found(logits, [0, 0, 1, 2], [2, 2]))
    assert [part.tolist() for part in parts] == [[3, 1], [1, 0], [1, 0], [1, 0], [0, 1]]


def test_the_constant_is_the_best_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        margin = rng.integers(-3, 4, 12) / 2  # with ties
        first, second = rng.random((2, 12)) < 0.5
        b = errors.constant(margin, first, second)
        right = [np.where(margin > each, first, second).sum() for each in [b, *np.arange(-4, 4, 0.25)]]
        assert right[0] == max(right)
    assert errors.constant(np.array([-1.0, 1.0]), np.array([False, True]), np.array([True, False])) == 0


def test_a_shift_of_the_newest_logits_is_undone():
    answers = drawn((3, 3, 2), sure=6.0)
    before = 100 * (answers.answers == answers.labels).mean()
    logits = answers.logits.astype(np.float64)
    logits[:, 6:] += 20
    shifted = found(logits, answers.labels, answers.sizes)
    assert (shifted.task_of[shifted.answers] == 2).all() and errors.share_of_newest(shifted)[0] == 100
    accuracy, b = errors.with_constants(shifted)
    assert accuracy > before - 2 and 15 < b < 25
    logits[:, 3:6] -= 15  # now it takes a constant for each
    shifted = found(logits, answers.labels, answers.sizes)
    assert errors.with_constants(shifted)[0] < 80 < before - 3 < errors.with_constants(shifted, newest_only=False)[0]
    assert np.isnan(errors.with_constants(drawn((4,)))[0])


def test_levels_are_means_of_the_highest_logits():
    levels = errors.levels(found([[1, 0, 5], [3, 4, 2], [0, 1, 8]], [0, 1, 2], [2, 1]))
    assert levels.true.tolist() == [2.5, 8]
    assert levels[1:] == (2.5, 3.5, 1, 8)
    assert np.isnan(errors.levels(drawn((3,))).old_on_old)


def test_calibration_of_answers_that_are_as_sure_as_right():
    rng = np.random.default_rng(0)
    sure = rng.random(20000)
    bins = errors.reliability(sure, rng.random(20000) < sure)
    assert bins.ece < 0.02 and bins.nb.sum() == 20000 and len(bins.nb) == errors.BINS
    assert errors.reliability(np.full(10, 0.75), np.arange(10) < 5).ece == pytest.approx(0.25)
    assert errors.reliability(np.array([0.0, 1.0]), np.array([False, True])).ece == 0
    assert errors.softmax(np.array([[1000.0, 0.0]])).tolist() == [[1, 0]]


# The features.


def test_cka_sees_rotation_and_scale_as_the_same():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(20, 20)))[0] + 7
    assert representation.linear_cka(x, turned) == pytest.approx(1)
    unrelated = [representation.linear_cka(x, rng.normal(size=(60, 40))) for _ in range(20)]
    assert abs(np.mean(unrelated)) < 0.03  # which the plain estimator puts at 0.3 and more
    assert 0.3 < representation.linear_cka(x, x + rng.normal(size=x.shape)) < 0.9
    assert np.isnan(representation.linear_cka(x[:3], x[:3])) and np.isnan(representation.linear_cka(x, np.ones((60, 2))))


def test_cka_of_many_images_is_the_plain_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 3))
    y = x @ rng.normal(size=(3, 4)) + rng.normal(size=(800, 4))
    a, b = x - x.mean(0), y - y.mean(0)
    plain = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert representation.linear_cka(x, y) == pytest.approx(plain, abs=0.01)


def test_probes_learn_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    x = np.eye(4)[labels] * 5 + rng.normal(size=(120, 4)) + 100
    x = np.hstack([x, np.full((120, 1), 1e6)])  # one feature that is constant
    for probe in (representation.linear_probe, representation.nearest_mean):
        assert (probe(x[::2], labels[::2], x[1::2]) == labels[1::2]).mean() > 0.95
        noise = rng.normal(size=x.shape)
        assert (probe(noise[::2], labels[::2], noise[1::2]) == labels[1::2]).mean() < 0.5
        assert (probe(x[:30], labels[:30], x[:5]) == 0).all()  # one class
    assert representation.per_task(np.array([1, 0, 1]), np.array([0, 0, 2]), 3)[[0, 2]].tolist() == [50, 100]


def test_alike_tasks_and_tokens_in_a_plane():
    means = np.array([[1.0, 0, 0], [1, 0.1, 0], [-1, 0, 0.1], [-1, 0, -0.1]])
    likeness = representation.likeness(means, np.arange(4), np.array([0, 0, 1, 1]))
    assert likeness[0, 0] > 0.9 and likeness[0, 1] < -0.9 and np.allclose(likeness, likeness.T)
    flat, kept = representation.plane(np.array([[0.0, 0, 5], [3, 0, 5], [0, 4, 5]]))
    assert kept == pytest.approx(1)
    assert np.allclose(representation.distances(flat), [[0, 3, 4], [3, 0, 5], [4, 5, 0]], atol=1e-5)
    assert representation.plane(np.ones((1, 4)))[0].shape == (1, 2)


def test_attention_in_numbers():
    even = np.full((2, 3, 4, 17), 1 / 17)
    itself, patches = attention.over_patches(even)
    looks = attention.looks(itself, patches)
    assert np.allclose(looks.itself, 1 / 17) and np.allclose(looks.spread, 1) and np.allclose(looks.peak, 1 / 16)
    assert attention.overlap(patches) == pytest.approx((1, 1))
    one = np.zeros((1, 2, 1, 5))
    one[0, 0, 0, 1] = one[0, 1, 0, 2] = 1  # two tokens that look at one patch each
    patches = attention.over_patches(one)[1]
    assert attention.overlap(patches)[0] == 0 and np.allclose(attention.looks(np.zeros((1, 2)), patches).spread, 0, atol=1e-9)
    shown = attention.upscaled(patches, 8)
    assert shown.shape == (1, 2, 8, 8) and shown[0, 0, :3, :3].min() > 0.4 and shown[0, 0, 5:, 5:].max() < 0.1
    with pytest.raises(ValueError, match="no square"):
        attention.over_patches(np.ones((1, 1, 1, 4)))


def test_norms_are_found_where_linear_layers_give_classes():
    class Model(nn.Module):
        def __init__(self, **parts):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    heads = nn.ModuleList([Classifier(4, 2), Classifier(4, 3)])
    with torch.no_grad():
        heads[0].norm.weight.fill_(2)
    norms = class_norms(Model(heads=heads), 5)
    assert norms[:2] == pytest.approx((2 * heads[0].head.weight.norm(dim=1)).tolist())
    assert class_norms(Model(head=nn.Linear(4, 5)), 5).shape == (5,)
    for other in (Model(heads=heads, head=None), Model(head=nn.Conv2d(1, 6, 1)), Model()):
        assert class_norms(other, 6) is None


def test_few_are_chosen_evenly():
    assert chosen(range(50)) == [0, 5, 11, 16, 22, 27, 33, 38, 44, 49] and chosen([3]) == [3] and chosen([]) == []
    labels = np.array([0] * 10 + [1] * 2)
    assert evenly(labels, 3).tolist() == [0, 4, 9, 10, 11]


# The verdict.


def test_every_fault_has_its_name():
    wrong = Evidence(within=2, newer=30, older=8, shifted=62, own=60, probe=65, then=95, now=94, untrained=60, cka=0.9)
    cases = {
        HEALTHY: replace(wrong, within=1, newer=1, older=1),
        BETWEEN: wrong,
        BIAS: replace(wrong, shifted=85, constant=3.0),
        OLD_BIAS: replace(wrong, shifted=85, constant=-3.0),
        HEADS: replace(wrong, probe=90),
        DESTROYED: replace(wrong, now=65, cka=0.2),
        WITHIN: replace(wrong, within=30, newer=2),
    }
    for name, evidence in cases.items():
        verdict = diagnosis(evidence)
        assert verdict.name == name and verdict.sentence.endswith(".")
    nothing_known = diagnosis(Evidence(within=2, newer=30, older=8))
    assert (
        nothing_known.name == BETWEEN and "nan" not in nothing_known.sentence and "takes checkpoints" in nothing_known.sentence
    )
    assert diagnosis(replace(wrong, then=62, now=61, cka=0.1)).name == DESTROYED  # a probe that can say nothing: CKA


def damaged(folder, copy, fault):
    """A copy of a run whose newest checkpoint has a fault, and no kept predictions."""
    shutil.copytree(folder, copy)
    shutil.rmtree(logs(copy) / "predictions")
    store = Store(checkpoints(copy))
    state, manifest = store.load(start_task=2)
    weights = state["model"]["weights"]
    if fault == HEADS:
        for name in ("weight", "bias"):
            weights[f"heads.0.{name}"], weights[f"heads.1.{name}"] = weights[f"heads.1.{name}"], weights[f"heads.0.{name}"]
    elif fault == BIAS:
        weights["heads.1.bias"] += 30
    elif fault == DESTROYED:
        fresh = load(folder / checkpoints(folder)).method.build().state_dict()
        weights.update({name: fresh[name] for name in weights if name.startswith("encoder.")})
    same = {key: manifest[key] for key in ("name", "identity", "task", "finished_task", "seconds")}
    store.save(state, **same)
    return copy


@pytest.mark.parametrize("fault", [HEALTHY, BIAS, HEADS, DESTROYED])
def test_a_fault_made_on_purpose_is_named(learned, tmp_path, fault):
    (past,) = read(logs(damaged(learned, tmp_path / "run", fault)))
    seen = study(past)
    evidence, verdict = seen.verdicts[1]
    assert verdict.name == fault, evidence
    assert seen.verdicts[0][1].name == HEALTHY or fault != HEALTHY
    assert sum("evaluated instead" in line for line in seen.inside.missing) == 2


def test_without_checkpoints_a_shift_is_still_named(learned, tmp_path):
    (past,) = read(logs(learned))
    answers = past.predictions(1)
    logits = answers.logits.astype(np.float64)
    logits[:, 2:] += 30
    shifted = Study({1: found(logits, answers.labels, answers.sizes)}, Inside())
    assert shifted.verdicts[1][1].name == BIAS


# The whole of a run.


def names(run):
    return {exhibit.name for chapter in run for exhibit in chapter.exhibits}


def drawn_well(run):
    for exhibit in (exhibit for chapter in run for exhibit in chapter.exhibits):
        assert exhibit.reads.endswith(".") and exhibit.found.endswith((".", ")")) and "nan" not in exhibit.found
        assert exhibit.table.csv().count("\n") == 1 + len(exhibit.table.rows)
        assert all(len(row) == len(exhibit.table.header) for row in exhibit.table.rows), exhibit.name
        if exhibit.figure is not None:
            exhibit.figure.canvas.draw()


ALL_PARTS = {
    *("verdict", "error-parts", "error-parts-per-task", "task-confusion", "newest-task", "logits", "weight-norms"),
    *("reliability", "calibration-error", "probes", "features-over-time", "drift", "token-distances", "token-plane"),
    *("attention", "likeness"),
}


def test_a_run_of_dytox_has_every_part_and_nothing_of_it_is_touched(done, few):
    def files():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(done.rglob("*"))}

    before = files()
    (past,) = read(logs(done))
    run = chapters(past)
    assert names(run) == ALL_PARTS and not any(chapter.missing for chapter in run)
    drawn_well(run)
    assert files() == before
    (gaze,) = [exhibit for chapter in run for exhibit in chapter.exhibits if exhibit.name == "attention"]
    axes = gaze.figure.get_axes()
    assert len(axes) % 4 == 0 and [ax.get_title() for ax in axes[:4]] == ["image", "token 1", "token 2", "token 3"]


def test_answers_evaluated_from_checkpoints_are_those_that_were_kept(done, tmp_path, few):
    (past,) = read(logs(done))
    shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(logs(tmp_path / "run") / "predictions")
    (copy,) = read(logs(tmp_path / "run"))
    kept, again = study(past).answers, study(copy).answers
    assert list(kept) == list(again) == [0, 1, 2]
    for task, answers in kept.items():
        for name in ("answers", "answers_known", "labels", "places", "sizes"):
            assert np.array_equal(getattr(answers, name), getattr(again[task], name))


@pytest.mark.parametrize("harm", ["checkpoints gone", "one damaged", "data gone", "all gone"])
def test_what_is_missing_is_told_and_the_rest_comes(done, tmp_path, few, harm, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(done, copy)
    where, store = logs(copy), checkpoints(copy)
    if harm == "one damaged":
        for path in store.glob("*task-2-finished.pt"):
            path.write_bytes(path.read_bytes()[:-9])
    elif harm == "data gone":
        monkeypatch.setattr("continual.report.inside.benchmark_of", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    else:
        shutil.rmtree(store)
    if harm == "all gone":
        shutil.rmtree(where / "predictions")
    (past,) = read(where)
    run = chapters(past)
    drawn_well(run)
    told = " ".join(line for chapter in run for line in chapter.missing)
    assert {
        "checkpoints gone": "no checkpoint",
        "one damaged": "after task 2 could not be looked into",
        "data gone": "the images are not to be had",
        "all gone": "no answers on test images are to be had",
    }[harm] in told
    without = {"probes", "features-over-time", "drift", "attention", "likeness"}
    weights = {"weight-norms", "token-distances", "token-plane"}
    expected = {"one damaged": ALL_PARTS, "data gone": ALL_PARTS - without, "checkpoints gone": ALL_PARTS - without - weights}
    assert names(run) == expected.get(harm, set())


@pytest.mark.parametrize("method", ["der", "joint", "icarl"])
def test_other_methods_say_what_does_not_apply(tmp_path, few, method):
    pooled = [] if method == "joint" else ["--method", method]
    own = ["--method", "joint"] if method == "joint" else [*pooled, "--no-class-attention", "--local-up-to-layer", "2"]
    argv = [*THREE_TASKS, *own, "--memory-size", "0" if method == "joint" else "40", *folders(tmp_path)]
    finish(argv, tmp_path)
    (past,) = read(logs(tmp_path))
    run = chapters(past)
    drawn_well(run)
    tokens = {"token-distances", "token-plane", "attention"}
    assert names(run) == ALL_PARTS - (tokens if method != "joint" else {"token-distances", "token-plane"})
    told = [line for chapter in run for line in chapter.missing]
    assert told == ([] if method == "joint" else ["this model has no task tokens"])


def test_one_task_of_two_classes(tmp_path, few):
    finish([*THREE_TASKS, "--max-task", "1", *folders(tmp_path)], tmp_path)
    (past,) = read(logs(tmp_path))
    run = chapters(past)
    drawn_well(run)
    gone = {"logits", "features-over-time", "drift", "token-distances", "token-plane", "likeness"}
    assert names(run) == ALL_PARTS - gone and not any(chapter.missing for chapter in run)


def test_fifty_tasks_are_drawn():
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat(np.arange(50), 4), 2)
    x = rng.normal(size=(50, 8))[labels] + rng.normal(size=(400, 8)) / 2
    views = {t: View(x, x, rng.random(t + 1), rng.normal(size=(t + 1, 8))) for t in chosen(range(50))}
    inside = Inside(views, View(x, x), Samples(labels, labels, labels), np.arange(400) >= 200)
    inside.places = np.where(inside.is_test, np.arange(400) - 200, -1)
    answers = {t: found(rng.normal(size=(4 * t + 4, t + 1)), labels[: 4 * t + 4], [1] * (t + 1)) for t in range(0, 50, 7)}
    fifty = Study(answers, inside)
    for exhibit in (features.probes(fifty), features.drift(fifty), features.token_plane(fifty), features.alike(fifty)):
        exhibit.figure.canvas.draw()
