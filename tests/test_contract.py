"""What every method owes a run, and a run every method: one suite for those of this package and two from outside."""

import copy
import dataclasses
import io
import itertools
import json
import runpy
import signal

import numpy as np
import pytest
import torch
from digits import ALL, few_digits
from jobs import (
    OUTSIDE,
    ROOT,
    TINY,
    assert_close,
    assert_close_logits,
    assert_equal,
    assert_same_results,
    checkpoints,
    finish,
    folders,
    logs,
    run,
    states,
    what_counts,
)
from torch import nn

import continual
from continual.data.material import Material, hold_out
from continual.jobs import watch
from continual.methods import Moment
from continual.options import methods_with_options, parse
from continual.registry import DATA_SETS, ENCODERS, LOSSES, METHODS, METRICS, RULES
from continual.rehearsal import Memory
from continual.runs.checkpoint import Store
from continual.runs.experiment import Here, prepare
from continual.runs.record import Report
from continual.runs.run import Run
from continual.tasks import Phase, Remembering
from continual.training.loading import Loading
from continual.training.trainer import Trainer

SCRIPT = ROOT / "tests/outside.py"
HERE = {OUTSIDE: str(SCRIPT)}
NAMES = ("dytox", "joint", "finetuning", "rehearsal", "icarl", "wa", "podnet", "bic", "der", "lwf", "twophase")
WITHOUT_DYTOX = ["--no-dytox", "--ind-clf", "", "--head-div", "0", "--freeze-task", "none"]
CASES = {name: ["--method", name] for name in NAMES} | {"joint, growing": ["--method", "joint", *WITHOUT_DYTOX]}
CASES["bic"] += ["--bic-held-out", "0.2"]  # so that two steps can be made of them
SMALL = [*TINY, "--depth", "3", "--local-up-to-layer", "2"]  # two blocks of the encoder, so that there are maps
DIM = 16  # embed_dim of SMALL
CONV = ["--model", "little_conv", "--input-size", "8"]  # with batch norm
CPU = torch.device("cpu")

every_method = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module", autouse=True)
def few():
    """The digits of the jobs, in this process."""
    patch = few_digits()
    yield
    patch.undo()


@pytest.fixture(scope="module", autouse=True)
def outside():
    """What tests/outside.py registers, as long as this module runs."""
    registers = (METHODS, ENCODERS, LOSSES, DATA_SETS, RULES, METRICS)
    before = [register.outside() for register in registers]
    yield runpy.run_path(str(SCRIPT), run_name="outside")
    for register, kept in zip(registers, before, strict=True):
        for name in set(register.outside()) - set(kept):
            register.remove(name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a small run of a method on one process, to which nothing happened; how often it reached what: counts-0."""
    done = {}

    def of(case):
        if case not in done:
            done[case] = folder = tmp_path_factory.mktemp("undisturbed")
            environment = {**HERE, "DYTOX_COUNTS": str(folder / "counts")}
            finish([*SMALL, *CASES[case], *folders(folder)], folder, environment=environment)
        return done[case]

    return of


def options_of(case, *more):
    return parse([*SMALL, *CASES[case], *more])


def method_of(options):
    return continual.method(options, continual.benchmark(options).tasks)


def evaluations(folder):
    lines = [json.loads(line) for line in (logs(folder) / "evaluations.jsonl").read_text().splitlines()]
    return [line for line in lines if line["final"]]


def test_every_method_is_here():
    assert set(NAMES) == set(METHODS.names())


# -------------------------------------------------------------------------------------------------------------- it learns


@every_method
def test_it_learns_two_tasks(case, tmp_path):
    argv = ["--options", str(ROOT / "options/data/digits_2-2.yaml"), str(ROOT / "options/model/digits_dytox.yaml"), *CONV]
    argv += ["--embed-dim", "32", "--depth", "2", "--local-up-to-layer", "1", "--max-task", "2", "--device", "cpu"]
    argv += ["--base-epochs", "4", "--epochs", "4", "--warmup-epochs", "0", "--finetuning-epochs", "4", *CASES[case]]
    if case == "der":  # its classifier begins anew
        argv += ["--finetuning-lr", "0.1", "--finetuning-epochs", "8"]
    finish([*argv, *folders(tmp_path)], tmp_path, environment={**HERE, ALL: "1"})
    first, last = evaluations(tmp_path)
    assert first["acc"] > 90 and last["acc_known"] > 65
    if last["n_exemplars"] or case.startswith("joint"):
        assert last["acc"] > 40
    else:
        assert last["acc_per_task"][0] < 10 < last["acc_per_task"][1]  # nothing is kept of the first task


# ------------------------------------------------------------------------------------------- processes, kills, checkpoints


@pytest.mark.parametrize("case", ["dytox", "icarl", "bic", "der", "twophase"])  # those with state, data or phases of their own
def test_one_process_and_two(case, tmp_path, undisturbed):
    finish([*SMALL, *CASES[case], *folders(tmp_path)], tmp_path, processes=2, environment=HERE)
    assert_close(what_counts(tmp_path), what_counts(undisturbed(case)))
    assert_close_logits(tmp_path, undisturbed(case))
    own, theirs = (states(checkpoints(folder)) for folder in (tmp_path, undisturbed(case)))
    assert_close(*({name: state["method"] for name, state in each.items()} for each in (own, theirs)))


def nb_steps(phase):
    return phase.epochs * phase.most_steps


def kills(method, tasks):
    """Faults one after the other, each met by what resumed after the one before: at the last step of each phase of the second
    task, and while its exemplars are chosen.
    """
    first, second = (method.steps(task) for task in tasks[:2])
    phases = [step for step in first if isinstance(step, Phase)]
    done, resumed_from, found = sum(map(nb_steps, phases)), 0, []
    for step in second:
        if isinstance(step, Remembering):
            found += ["kill:exemplars:2"] if method.options.rehearsal.memory_size else []
            resumed_from = done
        else:
            found.append(f"kill:step:{done + nb_steps(step) - resumed_from}")
            resumed_from = done + nb_steps(step) - step.most_steps  # the start of its last epoch
            done += nb_steps(step)
    return found, done


@every_method
def test_killed_in_each_phase(case, tmp_path, undisturbed):
    method = method_of(options_of(case))
    faults, total = kills(method, method.tasks)
    assert json.loads((undisturbed(case) / "counts-0").read_text())["step"] == total
    argv = [*SMALL, *CASES[case], *folders(tmp_path)]
    for fault in faults:
        job = run(argv, tmp_path, fault=fault, environment=HERE)
        assert job.codes == [-signal.SIGKILL], (fault, job.said())
        argv = ["--resume", str(checkpoints(tmp_path))]
    finish(argv, tmp_path, environment=HERE)
    assert_same_results(tmp_path, undisturbed(case))


@pytest.mark.parametrize("place", ["exemplars:3", "exemplars:30"])
def test_stopped_while_a_hook_looks_at_features(place, tmp_path, undisturbed):
    """What a hook has changed by then is not changed a second time."""
    job = run([*SMALL, *CASES["twophase"], *folders(tmp_path)], tmp_path, fault=f"term:{place}", environment=HERE)
    assert job.codes == [75], job.said()
    finish(["--resume", str(checkpoints(tmp_path))], tmp_path, environment=HERE)
    assert_same_results(tmp_path, undisturbed("twophase"))


def test_hooks_are_called_once(undisturbed):
    last = states(checkpoints(undisturbed("twophase")))["task-2-finished"]["method"]
    hooks = {"before": 1, "after epoch": 2, "after": 1}  # of a phase of two epochs
    phases = {"warm up": 2, "training": 2, "polish": 1}  # in two tasks
    assert last["calls"] == {f"{hook} {phase}": n * m for phase, m in phases.items() for hook, n in hooks.items()}
    assert len(set(last["draws"])) == len(last["draws"]) == sum(last["calls"].values())
    assert last["means"].shape == (4, DIM)


def looked_at(run, exp, task, images):
    """What the method answers, given features taken in the plainest way."""

    def features(samples):
        shown = exp.images(samples, augment=False)
        return run.model(torch.stack([shown[i][0] for i in range(len(samples.y))])).tokens.flatten(1)

    outputs = run.model.eval()(images)
    return outputs, run.method.answer(Moment(task, run.model, run.memory, exp.new_images(task.index), features, None))(outputs)


@every_method
@torch.no_grad()
def test_state_comes_back(case, undisturbed):
    exp = prepare(options_of(case), None, None, Here(CPU, watch.Never()))
    images = torch.stack([exp.images(exp.benchmark.test(1), augment=False)[i][0] for i in range(6)])
    found = states(checkpoints(undisturbed(case)))
    kept = {name: found[name] for name in found if name == "task-2-finished" or name.endswith("epoch-2-step-0")}
    assert len(kept) > 2
    for state in kept.values():
        state.pop("classes")
        loaded = []
        for _ in range(2):
            fresh = prepare(exp.options, None, None, Here(CPU, watch.Never()))
            loaded.append(Run(fresh.method, fresh.empty_memory(), Report(None, nb_tasks=2, console=False), CPU))
            given = io.BytesIO()
            torch.save(state if len(loaded) == 1 else loaded[0].state_dict(), given)
            loaded[-1].load_state_dict(torch.load(io.BytesIO(given.getvalue()), weights_only=True))
            assert_equal(loaded[-1].state_dict(), state)
        task = exp.tasks[min(1, state["position"]["task"])]
        (outputs, scores), (again, scores_again) = (looked_at(run, exp, task, images) for run in loaded)
        assert_equal(tuple(again), tuple(outputs))
        assert torch.equal(scores, scores_again) and scores.shape == (6, sum(loaded[0].model.classes))


# ------------------------------------------------------------------------------------------------------ frozen, held out


def material_for(method, benchmark, task):
    """The images of a task, with sixty exemplars of every class before it."""
    memory = Memory(1000)
    for before in range(task.index):
        samples = benchmark.train(before)
        memory.add(*samples.take(np.concatenate([np.flatnonzero(samples.y == label)[:60] for label in np.unique(samples.y)])))
    new = benchmark.train(task.index)
    held = hold_out(new, memory, method.held_out(task), np.random.default_rng(0))
    return Material(new, memory, 2, lambda: benchmark.train_samples.take(benchmark.train_samples.t <= task.index), *held)


def of_parts(model, names):
    """The parameters and buffers of parts, by the name that they have in the model."""
    tensors = [
        tensor
        for name in names
        for part in model.parts()[name]
        for tensor in (part.state_dict(keep_vars=True).values() if isinstance(part, nn.Module) else [part])
    ]
    addresses = {tensor.data_ptr() for tensor in tensors}
    return [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.data_ptr() in addresses]


@pytest.mark.parametrize("freeze", [[], ["--freeze-task", "sab", "--freeze-ft", "sab"]], ids=["as it does", "encoder"])
@every_method
def test_frozen_parts_stay(case, freeze):
    options = options_of(case, *CONV, "--warmup-epochs", "0", *freeze, "--max-task", "3")
    benchmark, method = continual.benchmark(options), method_of(options)
    images = continual.images(options, benchmark)
    torch.manual_seed(0)
    model, frozen = method.build(), []
    for task in benchmark.tasks[:3]:
        teacher = copy.deepcopy(model).eval().requires_grad_(False) if task.index and method.keeps_teacher else None
        model = method.grow(model, task)
        material = material_for(method, benchmark, task)
        for phase in [step for step in method.steps(task) if isinstance(step, Phase) and step.frozen and task.index]:
            trainer = Trainer(model, phase, material, images=images, loading=Loading(CPU), key=(1,), teacher=teacher)
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            assert len(list(itertools.islice(trainer.steps(0), 2))) == 2
            after, still = model.state_dict(), of_parts(model, phase.frozen)
            assert not [name for name in still if not torch.equal(after[name], before[name])]
            moved = [name for name, _ in model.named_parameters() if not torch.equal(after[name], before[name])]
            assert moved
            frozen += still
    if freeze and not case.startswith("joint"):  # which has no phase but a first one
        assert any("running_mean" in name for name in frozen) and any("num_batches" in name for name in frozen)
    assert bool(frozen) == bool(freeze or case in ("dytox", "podnet", "bic", "der", "twophase")) or case.startswith("joint")


def test_held_out_images_are_balanced_and_never_trained_on(undisturbed):
    exp = prepare(options_of("bic"), None, None, Here(CPU, watch.Never()))
    state = states(checkpoints(undisturbed("bic")))["task-1-finished"]
    known = Run(exp.method, exp.empty_memory(), Report(None, nb_tasks=2, console=False), CPU)
    known.load_state_dict(state)
    training, bias, _ = exp.method.steps(exp.tasks[1])
    material = exp.material(known, exp.tasks[1])
    seen, held = training.data(material), bias.data(material)
    nb_new = len(material.new.y)
    for trained, kept in zip(seen.views, held.views, strict=True):
        assert not set(trained) & set(kept)
        assert set(trained) | set(kept) == set(range(nb_new + len(known.memory)))
        assert np.bincount(held.samples.y[kept]).tolist() == [10, 10, 10, 10]  # a fifth of 50 exemplars a class
        assert np.bincount(seen.samples.y[trained])[:2].tolist() == [40, 40]
    again = exp.material(known, exp.tasks[1])
    assert np.array_equal(again.held_new, material.held_new) and np.array_equal(again.held_memory, material.held_memory)


# --------------------------------------------------------------------------------------------------- parameters, exemplars


def grown_by(case, first):
    """How many parameters the second task of two classes adds; first: the model's size after the first, in numbers."""
    head = 2 * (DIM + 1)
    if case == "dytox":  # token, LayerNorm and classifier, LayerNorm and divergence head
        return DIM + 2 * DIM + head + 2 * DIM + 3 * (DIM + 1)
    if case == "der":  # an extractor, a classifier of 2 D -> 4 in place of D -> 2, an auxiliary one
        return (first - head) + (4 * (2 * DIM + 1) - head) + 3 * (DIM + 1)
    return head + (2 if case == "bic" else 0)


@every_method
def test_parameters_and_exemplars_as_reported(case, undisturbed):
    found, last = states(checkpoints(undisturbed(case))), evaluations(undisturbed(case))
    sizes = [line["n_parameters"] for line in last]
    assert sizes[1] - sizes[0] == grown_by(case, sizes[0])
    for index, line in enumerate(last):
        state = found[f"task-{index + 1}-finished"]
        assert line["n_parameters"] == sum(tensor.numel() for tensor in state["model"]["weights"].values())
        assert line["n_exemplars"] == len(state["memory"]["y"])
        nb_kept = 0 if case in ("joint", "joint, growing", "finetuning", "lwf") else 100
        per_class = [nb_kept // (2 * index + 2)] * (2 * index + 2) if nb_kept else []
        assert np.bincount(state["memory"]["y"]).tolist() == per_class
        assert all(len(kept["memory"]["y"]) <= nb_kept for kept in found.values())
    summary = json.loads((logs(undisturbed(case)) / "summary.json").read_text())
    assert (summary["n_parameters"], summary["n_exemplars"]) == (sizes[1], last[1]["n_exemplars"])


# --------------------------------------------------------------------------------------------------------- its own options

# option -> another value, and the first checkpoint that it shows in
EFFECTS = {
    "bic_held_out": ("0.3", "task-2-training-epoch-2-step-0"),
    "bic_epochs": ("1", "task-2-evaluating-epoch-1-step-0"),
    "bic_lr": ("0.5", "task-2-bias-epoch-2-step-0"),
    "der_auxiliary": ("0.5", "task-2-training-epoch-2-step-0"),
    "der_warmup": ("1", "task-1-training-epoch-2-step-0"),
    "der_temperature": ("2", "task-2-finetuning-epoch-2-step-0"),
    "der_milestones": ("1", "test_rate_falls_at_the_milestones"),
    "lwf_weight": ("0.5", "task-2-training-epoch-2-step-0"),
    "lwf_tau": ("1", "task-2-training-epoch-2-step-0"),
    "twophase_epochs": ("1", "task-1-training-epoch-2-step-0"),
    "twophase_held_out": ("1", "task-2-training-epoch-2-step-0"),
}


def test_every_own_option_is_in_the_table():
    assert {f.name for section in methods_with_options().values() for f in dataclasses.fields(section)} == set(EFFECTS)


@pytest.mark.parametrize("option", [name for name in EFFECTS if name != "der_milestones"])
def test_own_option_acts_from_its_place_on(option, tmp_path, undisturbed):
    value, place = EFFECTS[option]
    method = option.partition("_")[0]
    finish([*SMALL, *CASES[method], f"--{option}", value, *folders(tmp_path)], tmp_path, environment=HERE)
    changed, usual = (states(checkpoints(folder)) for folder in (tmp_path, undisturbed(method)))
    weights = [(name, changed[name]["model"]["weights"], usual[name]["model"]["weights"]) for name in usual if name in changed]
    different = [name for name, a, b in weights if any(not torch.equal(a[key], b[key]) for key in b)]
    assert different[0] == place


def test_rate_falls_at_the_milestones():
    """After two and after four epochs."""
    options = options_of("der", "--no-debug", "--der-milestones", "2", "4", "--finetuning-epochs", "7")
    benchmark, method = continual.benchmark(options), method_of(options)
    task = benchmark.tasks[1]
    model = method.build()
    for each in benchmark.tasks[:2]:
        model = method.grow(model, each)
    finetuning = method.steps(task)[-1]
    how = {"images": continual.images(options, benchmark), "loading": Loading(CPU)}
    trainer, rates = Trainer(model, finetuning, material_for(method, benchmark, task), **how), []
    for epoch in range(finetuning.epochs):
        rates.append(trainer.lr)
        trainer.schedule.step(epoch, 0.0)
    assert rates == pytest.approx([finetuning.lr * factor for factor in (1, 1, 0.1, 0.1, 0.01, 0.01, 0.01)])
    plain = method_of(options_of("der", "--der-milestones", "none")).steps(task)[-1]
    assert not plain.scheduled and plain.lr == finetuning.lr


# ------------------------------------------------------------------------------------------------------------ from outside


def test_names_from_outside_belong_to_the_run(tmp_path):
    argv = [*SMALL, "--method", "twophase", "--model", "little_conv", "--data-set", "bars", "--rehearsal", "extremes_all"]
    finish([*argv, "--extra-losses", "spread", *folders(tmp_path)], tmp_path, environment=HERE)
    names = [
        "data set bars",
        "encoder little_conv",
        "loss spread",
        "method twophase",
        "metric worst",
        "selection rule extremes",
    ]
    for stored in Store(checkpoints(tmp_path)).stored():
        assert stored.manifest["identity"]["registered"] == names
    assert 0 <= evaluations(tmp_path)[-1]["worst"] <= 1


def test_a_resume_that_knows_less_or_more_is_refused(tmp_path):
    argv = [*SMALL, *CASES["twophase"], *folders(tmp_path)]
    job = run(argv, tmp_path, fault="term:step:3", environment=HERE)
    assert job.codes == [75], job.said()

    less = run(["--resume", str(checkpoints(tmp_path))], tmp_path)
    assert less.codes == [2] and "there is no method 'twophase'" in less.said()
    assert len(less.said().strip().splitlines()) == 1

    more = tmp_path / "more.py"
    more.write_text(
        f"import runpy\nimport continual\nrunpy.run_path({str(SCRIPT)!r}, run_name='outside')\n"
        "continual.register_metric('best', lambda matrix: max(matrix[-1]))\n"
    )
    refused = run(["--resume", str(checkpoints(tmp_path))], tmp_path, environment={OUTSIDE: str(more)})
    last = refused.said().strip().splitlines()[-1]
    assert refused.codes == [4] and "of another experiment: registered was ['method twophase', 'metric worst'], is" in last
    assert "Traceback" not in refused.said()
    finish(["--resume", str(checkpoints(tmp_path))], tmp_path, environment=HERE)
