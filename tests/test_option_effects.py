"""Every option changes the computation it names, and nothing else.

Runs of two tasks go through `main.main` whole, except that nothing is trained: in the place of one epoch of training stands
an observer, which notes what it was given. What it notes has a name: `tr0` and `tr1` are the training of the first and
second task, `ft1` the finetuning of the second; `tr1/rates` are the learning rates of that phase. A changed option must
change exactly the notes that the table gives it. Below the table, a few steps are really trained, where notes cannot tell.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digits import few_digits
from torch import Tensor, nn

import main
from continual.dytox import Outputs
from continual.errors import OptionsError
from continual.jobs import watch
from continual.losses import Term
from continual.metrics import Scores
from continual.options import FIELDS, Options, flat, replace
from continual.randomness import seeded
from continual.registry import LOSSES
from continual.runs import experiment, folders, ledger, opening
from continual.runs.checkpoint import Store
from continual.runs.experiment import Here
from continual.runs.series import Part
from continual.training import engine, evaluation

BASE = {
    **{"data_set": "digits", "initial_increment": 4, "increment": 3, "max_task": 2, "num_workers": 0, "no_amp": True},
    **{"tensorboard": False},
    **{"input_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 4, "local_up_to_layer": 2},
    **{"dytox": True, "class_attention": True, "ind_clf": "1-1", "drop_path": 0.0},
    **{"batch_size": 16, "replicas": 2, "base_epochs": 6, "epochs": 5, "warmup_epochs": 1, "eval_every": None},
    **{"bce_loss": True, "auto_kd": True, "head_div": 0.1, "memory_size": 42, "finetuning": "balanced"},
    **{
        "finetuning_epochs": 3,
        "aa": None,
        "color_jitter": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "reprob": 0.0,
        "weight_decay": 0.01,
    },
}
PHASES = ("tr0", "tr1", "ft1")

LOAD = functools.cache(experiment.load)


def mark(value: Any) -> str:
    """Short text that is equal for equal values only."""
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        content = value.tolist().__repr__().encode() if value.dtype == object else value.tobytes()
        value = (value.shape, str(value.dtype), hashlib.sha256(content).hexdigest())
    if isinstance(value, dict):
        value = [(name, mark(each)) for name, each in value.items()]
    if isinstance(value, list | tuple):
        value = [mark(each) for each in value]
    return repr(value) if len(repr(value)) < 200 else hashlib.sha256(repr(value).encode()).hexdigest()


def fixed(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(shape).normal(size=shape).astype(np.float32))


class Observer:
    """Stands in for one epoch of training and for evaluation, and keeps notes."""

    def __init__(self) -> None:
        self.notes: dict[str, list[str]] = {}

    def note(self, name: str, value: Any) -> None:
        self.notes.setdefault(name, []).append(mark(value))

    def train_one_epoch(
        self, objective, steps, optimizer, *, loading, sam, clip_grad, compiled, **_
    ) -> Iterator[tuple[dict[str, Tensor], int]]:
        sampler, dataset, beside = steps.sampler, steps.loader.dataset, steps.memory
        phase = {"training": "tr", "finetuning": "ft"}[sampler.key[1]] + str(sampler.key[2])
        note = lambda name, value: self.note(f"{phase}/{name}", value)  # noqa: E731
        batches = list(islice(sampler, sampler.nb_steps * len(sampler.own_replicas)))
        note("rates", optimizer.param_groups[0]["lr"])
        note("batches", [draw.indices for draw in batches])
        if sampler.epoch == 0:
            note("set", [dataset.samples.y[view] for view in sampler.views])
            images = torch.cat([x[:12] for x, _ in islice(steps.loader, min(6, len(batches)))])
            note("images", images)
            apart = {"params": 0, "lr": 0, "initial_lr": 0}
            note("optimizer", [type(optimizer).__name__, *({**group, **apart} for group in optimizer.param_groups)])
            self._model(note, objective.model, images.shape[1:])
            self._losses(note, objective, steps.mixing)
            note("sam", sam and (sam.rho, sam.adaptive, sam.look_every, sam.look_alpha))
            note(
                "beside",
                beside and [beside.loader.batch_sampler.nb_draws, beside.sam_first, beside.sam_second, beside.nb_replays],
            )
            note("settings", (clip_grad, steps.replicas_at_once, compiled is not None))
        yield {"total": torch.tensor(1.0 + sampler.epoch)}, 1

    def _model(self, note, model: nn.Module, shape: tuple[int, ...]) -> None:
        modes = [module.training for module in model.modules()]
        note("weights", {name: value for name, value in model.state_dict().items()})
        note("frozen", [name for name, p in model.named_parameters() if not p.requires_grad])
        note("modes", [name for name, module in model.named_modules() if not module.training])
        images = fixed(4, *shape)
        with torch.no_grad(), seeded("forward"):
            note("noisy", model(images).logits)
            model.eval()
            note("forward", model(images).logits)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode

    def _losses(self, note, objective, mixing) -> None:
        """The losses, from outputs that have nothing to do with the model."""
        *old, nb_new = objective.model.classes
        nb_seen = sum(old) + nb_new
        div = fixed(6, nb_new + 1) if old else None
        student = (Outputs(fixed(6, nb_seen), div, None), [fixed(6, 16, 4), fixed(6, 16, 5)])
        teacher = (Outputs(fixed(6, max(1, sum(old))) + 1, None, None), [fixed(6, 16, 4) * 2 + 1, fixed(6, 16, 5) ** 2])
        objective.model = lambda images, maps=False: student if maps else student[0]
        objective.teacher = objective.teacher and (lambda images, maps=False: teacher if maps else teacher[0])
        images, labels = fixed(6, 3, 8, 8), torch.arange(6) % nb_seen
        note("losses", [objective(images, targets) for targets in (labels, fixed(6, nb_seen).softmax(1))])
        note("mixing", mixing and [mixing(images, labels, ("draw", i)) for i in range(8)])

    def evaluate(self, model, dataset, tasks, *, loading, batch_size, spread, score, before_batch, kept) -> Scores:
        self.note("evaluations/when", len(tasks))
        self.note("evaluations/labels", dataset.samples.y)
        self.note("evaluations/images", torch.stack([dataset[i][0] for i in range(4)]))
        self.note("evaluations/spread", spread)
        self.note("evaluations/batch", batch_size)
        self.note("evaluations/kept", kept is not None)
        if kept is not None:
            kept.append(torch.zeros(len(dataset), 2 + tasks[-1].nb_seen))
        outputs = Outputs(fixed(5, tasks[-1].nb_seen), None, fixed(5, 1, model.embed_dim))
        self.note("evaluations/score", None if score is Outputs.scores else score(outputs))
        return Scores(*[(1,) * len(tasks)] * 5)


class Uncounted(nullcontext):
    """In the place of what counts FLOPs, which takes a good part of so short a run."""

    nb, paused = 0, nullcontext


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    patch = few_digits()
    yield
    patch.undo()


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Two losses as a script registers them."""
    LOSSES.add("spread", Term(lambda seen: seen.outputs.logits.float().std()))
    LOSSES.add("narrow", Term(lambda seen: seen.outputs.logits.float().square().mean()))
    yield
    LOSSES.remove("spread")
    LOSSES.remove("narrow")


def run_of(options: Options, folder: Path) -> dict:
    """The summary of one run, which leaves its files in `folder`."""
    place = folders.Place(folder / "logs", folder / "checkpoints")
    place.logs.mkdir()
    place.checkpoints.mkdir()
    return main.train(Part(options, place), Here(torch.device("cpu"), watch.StopSignal()))


@pytest.fixture(scope="module")
def observe(tmp_path_factory):
    """options -> what the observer noted of their run."""

    def observed(items: tuple) -> dict[str, list[str]]:
        observer, options = Observer(), replace(Options(), **dict(items))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "train_one_epoch", observer.train_one_epoch)
            patch.setattr(evaluation, "evaluate", observer.evaluate)
            patch.setattr(experiment, "load", LOAD)
            patch.setattr(ledger, "_Flops", Uncounted)
            patch.setattr(os, "fsync", lambda file: None)
            remember, prepare = main.remember, opening.prepare

            def noting_remember(run, exp, task):
                remember(run, exp, task)
                x = [] if run.memory.x is None else run.memory.x
                observer.note(f"memory{task.index}", [x, run.memory.y, run.memory.replica])

            def noting_save(store, state, **named):
                observer.note("saves", named["name"])
                return store.folder / "none.pt"

            def noting_prepare(*args):
                exp = prepare(*args)
                observer.note("data", [exp.benchmark.train_samples.x, exp.benchmark.train_samples.y, exp.benchmark.class_order])
                observer.note("tasks", [astuple(task) for task in exp.tasks])
                observer.note("loading", (exp.loading.num_workers, exp.loading.pin_mem))
                observer.note("precision", (exp.loading.amp, exp.loading.channels_last))
                observer.note("kept", (exp.store.keep, exp.store.keep_tasks))
                return exp

            patch.setattr(main, "remember", noting_remember)
            patch.setattr(opening, "prepare", noting_prepare)
            patch.setattr(Store, "save", noting_save)
            run_of(options, tmp_path_factory.mktemp("run"))
        return observer.notes

    cached = functools.cache(observed)
    return lambda **changes: cached(tuple(sorted({**BASE, **changes}.items())))


# ------------------------------------------------------------------------------------------------------------ the table


def of(phases: str, *names: str) -> set[str]:
    """of("tr0 ft1", "rates") -> {"tr0/rates", "ft1/rates"}; "all" for the three phases."""
    return {f"{phase}/{name}" for phase in (PHASES if phases == "all" else phases.split()) for name in names}


MODEL = of("all", "weights", "forward", "noisy")
HERDED = {"rehearsal": "icarl_all"}
MIXED = {"mixup": 0.8}
BOTH = {"mixup": 0.8, "cutmix": 1.0}
SGD = {"opt": "momentum"}
NOISY_RATE = {"lr_noise": (0.1,)}
SAM = {"sam_rho": 0.5}
PLAIN = {"dytox": False, "ind_clf": "", "head_div": 0.0}  # one growing classifier
ERASING = {"reprob": 1.0}
LARGE = {"input_size": 40, "patch_size": 10}
FROZEN = {"freeze_task": ("old_heads", "sab"), "drop_path": 0.5}
TAUGHT = {"auto_kd": False, "kd": 1.0}
SPREAD = {"extra_losses": ("spread",)}
PODDED = {"auto_kd": False, "pod": 1.0}
RANDOMLY_AUGMENTED = of("all", "images")
EVERYTHING = ("rates", "batches", "set", "images", "optimizer", "weights", "frozen", "modes", "noisy", "forward", "losses")
EVERYTHING += ("mixing", "sam", "beside", "settings")
EVALUATIONS = {f"evaluations/{name}" for name in ("when", "labels", "images", "spread", "batch", "score", "kept")}
OTHER_TASKS = {
    "tasks",
    "memory1",
    "evaluations/labels",
    *of("tr1 ft1", "set", "images", "losses", "weights", "forward", "noisy"),
}
RETRAINED = of("tr0 tr1", "weights", "forward", "noisy") | of("tr1", "rates", "set", "batches", "images", "losses")
OTHER_IMAGES = {"data", "memory0", "memory1", "evaluations/images", "evaluations/labels", "ft1/images"}
OTHER_IMAGES |= of("tr0 tr1", "set", "batches", "images")
MEMORY = {"memory0", "memory1", *of("tr1 ft1", "set", "batches", "images")}
SAME_SIZE = {"memory0", "memory1", *of("tr1 ft1", "images")}  # other exemplars, as many of each class

# option -> (what both runs have beside BASE, the changed value, the notes that change), once or several times
TABLE: dict[str, list[tuple[dict[str, Any], Any, set[str]]]] = {
    # model
    "method": [
        ({}, "dytox", set()),  # only says what the others mean
        (PLAIN, "rehearsal", set()),
        (PLAIN, "wa", of("tr1", "losses") | of("ft1", "weights", "forward", "noisy")),
        (PLAIN, "icarl", {"evaluations/score"} | SAME_SIZE),
        ({"memory_size": 0, "finetuning": "", "auto_kd": False}, "joint", RETRAINED),
    ],
    "model": [({}, "vit", MODEL)],
    "input_size": [({}, 8, MODEL | RANDOMLY_AUGMENTED | {"evaluations/images"})],
    "patch_size": [({}, 8, MODEL)],
    "embed_dim": [({}, 24, MODEL)],
    "depth": [({}, 4, MODEL)],
    "num_heads": [({}, 2, MODEL)],
    "drop": [({}, 0.5, of("all", "noisy", "settings"))],  # what is drawn for a whole batch keeps replicas apart
    "drop_path": [({}, 0.5, of("all", "noisy"))],
    "norm": [({}, "scale", MODEL)],
    "local_up_to_layer": [({}, 1, MODEL)],
    "locality_strength": [({}, 2.0, MODEL)],
    "class_attention": [(PLAIN, False, MODEL)],
    "dytox": [({"ind_clf": "", "head_div": 0.0}, False, MODEL)],
    "ind_clf": [({}, kind, of("tr1 ft1", "weights", "forward", "noisy")) for kind in ("1-n", "n-1", "n-n", "")],
    # data
    "initial_increment": [
        (
            {},
            7,
            {"memory0", "evaluations/images"}
            | OTHER_TASKS
            | of("tr0", "set", "images", "losses", "weights", "forward", "noisy")
            | of("all", "batches"),
        )
    ],
    "increment": [({}, (2, 4), {"tr1/batches", "evaluations/images"} | OTHER_TASKS)],
    "class_order": [({}, tuple(range(9, -1, -1)), OTHER_IMAGES - of("tr0 tr1", "batches"))],  # of as many images
    "mean": [({}, value, RANDOMLY_AUGMENTED | {"evaluations/images"}) for value in ((0.3,), (0.1, 0.2, 0.3), ("auto",))],
    "std": [({}, value, RANDOMLY_AUGMENTED | {"evaluations/images"}) for value in ((0.3,), (0.1, 0.2, 0.3), ("auto",))],
    "validation": [({}, 0.25, OTHER_IMAGES)],
    "eval_batch_size": [({}, 32, {"evaluations/batch"})],
    "num_workers": [({}, value, {"loading"}) for value in (1, None)],
    "pin_mem": [({}, False, {"loading"})],
    # optimisation
    "batch_size": [({}, 8, of("all", "rates", "batches", "images"))],
    "incremental_batch_size": [({}, 8, of("tr1 ft1", "rates", "batches", "images"))],
    "replicas": [({}, 3, of("all", "rates", "batches", "set", "images"))],
    "replicas_at_once": [({}, 2, of("all", "settings"))],
    "epochs": [({}, 4, of("tr1", "rates", "batches"))],
    "base_epochs": [({}, 5, of("tr0", "rates", "batches"))],
    "no_amp": [({}, False, {"precision"})],
    "amp": [({"no_amp": False}, "fp16", {"precision"})],
    "compile": [({}, True, of("all", "settings"))],
    "channels_last": [({}, True, {"precision"} | of("all", "forward", "noisy"))],
    "opt": [({}, "momentum", of("all", "optimizer"))],
    "opt_eps": [({}, 1e-6, of("all", "optimizer"))],
    "opt_betas": [({}, (0.8, 0.9), of("all", "optimizer"))],
    "clip_grad": [({}, 1.0, of("all", "settings"))],
    "momentum": [(SGD, 0.5, of("all", "optimizer"))],
    "weight_decay": [({}, 0.5, of("all", "optimizer"))],
    "lr": [({}, 1e-3, of("tr0 tr1", "rates")), ({"incremental_lr": 2e-3}, 1e-3, of("tr0", "rates"))],
    "incremental_lr": [({}, 1e-3, of("tr1", "rates"))],
    "sched": [({}, sched, of("tr0 tr1", "rates")) for sched in ("tanh", "step", "poly", "plateau")],  # multistep: below
    "lr_noise": [({}, (0.1,), of("tr0 tr1", "rates"))],
    "lr_noise_pct": [(NOISY_RATE, 0.1, of("tr0 tr1", "rates"))],
    "lr_noise_std": [(NOISY_RATE, 0.1, of("tr0 tr1", "rates"))],
    "warmup_lr": [({}, 1e-5, of("tr0 tr1", "rates")), ({"incremental_warmup_lr": 2e-6}, 1e-5, of("tr0", "rates"))],
    "incremental_warmup_lr": [({}, 1e-5, of("tr1", "rates"))],
    "warmup_epochs": [({}, 2, of("tr0 tr1", "rates"))],
    "min_lr": [({}, 2e-5, of("tr0 tr1", "rates"))],
    "decay_epochs": [({"sched": "step", "decay_epochs": 1.0}, 2.0, of("tr0 tr1", "rates"))],
    "decay_rate": [({"sched": "step", "decay_epochs": 1.0}, 0.5, of("tr0 tr1", "rates"))],
    "decay_milestones": [({"sched": "multistep", "decay_milestones": (3,)}, (2, 4), of("tr0 tr1", "rates"))],
    "patience_epochs": [({"sched": "plateau"}, 0, of("tr0 tr1", "rates"))],
    # augmentation
    "augment": [({}, "pillow", RANDOMLY_AUGMENTED)],
    "hflip": [({}, 1.0, RANDOMLY_AUGMENTED)],
    "aa": [({}, "rand-m3", RANDOMLY_AUGMENTED), ({"aa": "rand-m3"}, "rand-m9", RANDOMLY_AUGMENTED)],
    "color_jitter": [({}, 0.9, RANDOMLY_AUGMENTED)],
    "train_interpolation": [(LARGE, "bilinear", RANDOMLY_AUGMENTED)],
    "repeated_aug": [({}, False, of("all", "batches", "images"))],
    "reprob": [({}, 0.9, RANDOMLY_AUGMENTED)],
    "remode": [(ERASING, "const", RANDOMLY_AUGMENTED)],
    "recount": [(ERASING, 4, RANDOMLY_AUGMENTED)],
    "mixup": [({}, 0.8, of("all", "mixing"))],
    "cutmix": [({}, 1.0, of("all", "mixing"))],
    "cutmix_minmax": [({"cutmix": 1.0}, (0.3, 0.4), of("all", "mixing")), ({}, (0.3, 0.4), of("all", "mixing"))],
    "mixup_prob": [(MIXED, 0.3, of("all", "mixing"))],
    "mixup_switch_prob": [(BOTH, 0.1, of("all", "mixing"))],
    "mixup_mode": [(MIXED, "pair", of("all", "mixing")), (MIXED, "elem", of("all", "mixing"))],
    # losses
    "bce_loss": [({}, False, of("all", "losses"))],
    "smoothing": [({"bce_loss": False}, 0.3, of("all", "losses")), (MIXED, 0.3, of("all", "mixing"))],
    "head_div": [
        ({}, 0.2, of("tr1 ft1", "losses")),
        ({}, 0.0, of("tr1 ft1", "losses", "weights")),
    ],
    "head_div_mode": [
        ({}, ("tr",), of("ft1", "losses")),
        ({}, ("ft",), of("tr1", "losses")),
    ],
    "auto_kd": [({}, False, of("tr1", "losses"))],
    "kd": [({"auto_kd": False}, 0.5, of("tr1", "losses"))],
    "distillation_tau": [({}, 3.0, of("tr1", "losses")), (TAUGHT, 3.0, of("tr1", "losses"))],
    "pod": [({"auto_kd": False}, 1.0, of("tr1", "losses")), ({}, 1.0, of("tr1", "losses"))],
    "pod_scales": [(PODDED, (1, 2), of("tr1", "losses"))],
    "pod_scaling": [(PODDED, True, of("tr1", "losses"))],
    "weight_align": [(PLAIN, True, of("ft1", "weights", "forward", "noisy"))],
    "extra_losses": [({}, ("spread",), of("tr0 tr1", "losses", "settings")), (SPREAD, ("narrow",), of("tr0 tr1", "losses"))],
    "extra_loss_weights": [(SPREAD, (0.5,), of("tr0 tr1", "losses"))],
    # rehearsal
    "memory_size": [({}, 28, MEMORY)],
    "fixed_memory": [({}, True, MEMORY)],
    "rehearsal": [
        ({}, "icarl_all", SAME_SIZE),
        ({}, "closest_all", SAME_SIZE),
        ({"rehearsal": "closest_all"}, "furthest_all", SAME_SIZE),
        (HERDED, "icarl_token", {"memory1", *of("ft1", "images")}),
    ],
    "rehearsal_test_trsf": [(HERDED, False, SAME_SIZE)],
    "rehearsal_modes": [({**HERDED, "rehearsal_test_trsf": False}, 2, SAME_SIZE)],
    "distributed_memory": [({}, True, MEMORY)],
    "oversample_memory": [({}, 2, of("tr1", "set", "batches", "images"))],
    "oversample_memory_ft": [({}, 2, of("ft1", "set", "batches", "images"))],
    "sep_memory": [({}, True, of("tr1", "set", "batches", "images"))],
    "replay_memory": [({"sep_memory": True}, 2, of("tr1", "beside"))],
    "only_ft": [({}, True, of("tr1", "set", "batches", "images"))],
    "nme": [(PLAIN, True, {"evaluations/score"})],
    # finetuning
    "finetuning": [({}, "", of("ft1", *EVERYTHING))],
    "finetuning_epochs": [({}, 2, of("ft1", "rates", "batches"))],
    "finetuning_lr": [({}, 1e-4, of("ft1", "rates"))],
    "finetuning_teacher": [({}, True, of("ft1", "losses"))],
    "finetuning_resetclf": [({}, True, of("ft1", "weights", "forward", "noisy"))],
    "ft_no_sampling": [({}, True, of("ft1", "batches", "images"))],
    "ft_drop_last": [({"ft_no_sampling": True, "memory_size": 28, "batch_size": 8}, True, of("ft1", "batches"))],
    "freeze_task": [({}, ("old_heads",), of("tr1", "frozen"))],
    "freeze_ft": [({}, ("sab",), of("ft1", "frozen"))],
    "freeze_eval": [(FROZEN, True, of("tr1", "modes", "noisy"))],
    # SAM
    "sam_rho": [({}, 0.5, of("all", "sam"))],
    "sam_final": [(SAM, 1.0, of("tr1 ft1", "sam"))],
    "sam_adaptive": [(SAM, True, of("all", "sam"))],
    "sam_skip_first": [(SAM, True, of("tr0", "sam"))],
    "sam_mode": [(SAM, ("tr",), of("ft1", "sam")), (SAM, ("ft",), of("tr0 tr1", "sam"))],
    "sam_first": [(SAM, "memory", of("tr1 ft1", "beside"))],
    "sam_second": [(SAM, "memory", of("tr1 ft1", "beside"))],
    "look_sam_k": [(SAM, 3, of("all", "sam"))],
    "look_sam_alpha": [({**SAM, "look_sam_k": 2}, 0.2, of("all", "sam"))],
    # run
    "seed": [({}, 1, MODEL | RANDOMLY_AUGMENTED | {"memory0", "memory1"})],
    "max_task": [({}, 1, of("tr1 ft1", *EVERYTHING) | EVALUATIONS | {"tasks", "memory1", "saves"})],
    "save_every_epoch": [({}, 2, {"saves"})],
    "keep_checkpoints": [({}, 3, {"kept"})],
    "keep_task_checkpoints": [({}, False, {"kept"})],
    "eval_every": [({}, 2, EVALUATIONS)],
    "keep_predictions": [({}, False, {"evaluations/kept"})],
    "dist_eval": [({}, True, {"evaluations/spread"})],
    "retrain_scratch": [({"memory_size": 0, "finetuning": "", "auto_kd": False}, True, RETRAINED)],
    "debug": [({}, True, of("all", "rates", "batches") | of("tr0 tr1", "images"))],
}

ELSEWHERE = {
    "pretrained": "needs weights from the network; test_encoders.py",
    "data_set": "test_datasets.py and test_main.py",
    "data_path": "a place; test_main.py",
    "skip_corrupt": "test_datasets.py",
    "global_memory": "the opposite of distributed_memory; test_options.py",
    "branch": "another run to begin from; test_branch.py",
    "options": "the files themselves; test_options.py",
    "predictions": "a place; test_looking.py",
    "name": "a place; test_main.py",
    "log_category": "a place; test_main.py",
    "log_path": "a place; test_main.py",
    "output_basedir": "a place; test_main.py",
    "device": "a place",
    "seeds": "several runs in one; test_main.py",
    "sweep": "several runs in one; test_sweep.py",
    "sweep_draws": "which runs a sweep has; test_sweep.py",
    "sweep_tasks": "how far the runs of a sweep go; test_sweep.py",
    "sweep_prune": "which of them go on; test_sweep.py",
    "resume": "one call, not the experiment; test_main.py",
    "resume_anyway": "one call, not the experiment",
    "start_task": "one call, not the experiment; test_main.py",
    "eval": "one call, not the experiment; test_main.py",
    "deterministic": "of CUDA's kernels; test_distributed.py",
    "process_timeout": "how long processes wait for each other",
    "save_every_minutes": "by the clock",
    "tensorboard": "what is seen of a run; test_board.py",
    "wandb": "what is seen of a run; test_board.py",
}
REFUSED = {key for key, f in FIELDS.items() if f.metadata["refused"]}


def test_every_option_has_its_place_here():
    places = [set(TABLE), set(ELSEWHERE), REFUSED]
    assert set.union(*places) == set(FIELDS)
    assert sum(map(len, places)) == len(FIELDS)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_cannot_have_an_effect_is_refused(key):
    value = not FIELDS[key].default if isinstance(FIELDS[key].default, bool) else "3"
    with pytest.raises(OptionsError, match=f"{key}: "):
        replace(Options(), **{key: value})


ENTRIES = [(key, *entry) for key, entries in TABLE.items() for entry in entries]


@pytest.mark.parametrize(("key", "context", "value", "expected"), ENTRIES, ids=[f"{e[0]}={e[2]}" for e in ENTRIES])
def test_an_option_changes_what_it_names_and_nothing_else(observe, key, context, value, expected):
    base, changed = observe(**context), observe(**{**context, key: value})
    assert flat(replace(Options(), **{**BASE, **context}))[key] != value
    differing = {name for name in {**base, **changed} if base.get(name) != changed.get(name)}
    assert differing == expected


def test_multistep_changes_the_rates_and_nothing_else(observe):
    """It has no effect without milestones, and these have none without it: both are refused alone."""
    base, changed = observe(), observe(sched="multistep", decay_milestones=(2,))
    assert {name for name in {**base, **changed} if base.get(name) != changed.get(name)} == of("tr0 tr1", "rates")


# ------------------------------------------------------------------------------------------------------- a few real steps

TRAINED = {"debug": True, "replicas": 1, "lr": 5e-3, "finetuning_lr": 5e-3, "warmup_epochs": 0}
UNFINETUNED = {"finetuning": ""}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """options -> the weights after tr0, tr1, ft1 and at the end, and the summary, of two epochs of two steps a phase."""

    def trained(items: tuple) -> tuple[dict[str, Tensor], dict]:
        weights: dict[str, Tensor] = {}
        runs = []
        learn = main.learn

        def noting_learn(run, exp, task, phase):
            learn(run, exp, task, phase)
            runs.append(run)
            stage = {"training": "tr", "finetuning": "ft"}[phase.name]
            weights[f"{stage}{run.position.task}"] = flat_weights(run.model)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main, "learn", noting_learn)
            patch.setattr(Store, "save", lambda store, state, **named: store.folder / "none.pt")
            patch.setattr(experiment, "load", LOAD)
            summary = run_of(replace(Options(), **dict(items)), tmp_path_factory.mktemp("run"))
        weights["end"] = flat_weights(runs[-1].model)
        return weights, summary

    cached = functools.cache(trained)
    return lambda **changes: cached(tuple(sorted({**BASE, **TRAINED, **changes}.items())))


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


FIRST_DIFFERENCE = [  # option, what both runs have beside BASE and TRAINED, the changed value, where weights part
    ("sam_rho", {}, 0.5, "tr0"),
    ("sam_final", SAM, 2.0, "tr1"),
    ("sam_adaptive", SAM, True, "tr0"),
    ("sam_skip_first", SAM, True, "tr0"),
    ("sam_mode", SAM, ("tr",), "ft1"),
    ("sam_mode", SAM, ("ft",), "tr0"),
    ("sam_first", SAM, "memory", "tr1"),
    ("sam_second", SAM, "memory", "tr1"),
    ("look_sam_k", SAM, 3, "tr0"),
    ("look_sam_alpha", {**SAM, "look_sam_k": 2}, 0.2, "tr0"),
    ("sep_memory", {}, True, "tr1"),
    ("replay_memory", {"sep_memory": True}, 1, "tr1"),
    ("only_ft", {}, True, "tr1"),
    ("rehearsal", {}, "icarl_all", "tr1"),
    ("rehearsal_modes", {**HERDED, "rehearsal_test_trsf": False}, 2, "tr1"),
    ("memory_size", {}, 14, "tr1"),
    ("auto_kd", {}, False, "tr1"),
    ("pod", {}, 1.0, "tr1"),
    ("finetuning", {}, "", "ft1"),
    ("finetuning_epochs", {}, 1, "ft1"),
    ("finetuning_lr", {}, 1e-3, "ft1"),
    ("finetuning_teacher", {}, True, "ft1"),
    ("finetuning_resetclf", {}, True, "ft1"),
    ("ft_no_sampling", {}, True, "ft1"),
    ("freeze_task", {}, ("old_heads",), "tr1"),
    ("freeze_ft", {}, ("sab",), "ft1"),
    ("freeze_eval", FROZEN, True, "tr1"),
    (
        "retrain_scratch",
        {"memory_size": 0, "auto_kd": False, **UNFINETUNED},
        True,
        "tr0",
    ),  # new models are drawn for every task
    ("weight_align", {**PLAIN, **UNFINETUNED}, True, "tr1"),
    ("nme", {**PLAIN, **UNFINETUNED}, True, None),
    ("dist_eval", {}, True, None),
    ("drop_path", {}, 0.5, "tr0"),
    ("mixup", {}, 0.8, "tr0"),
    ("clip_grad", {}, 1e-3, "tr0"),
    ("no_amp", {}, False, "tr0"),
    ("amp", {"no_amp": False}, "fp16", "tr0"),
    ("augment", {}, "pillow", "tr0"),
    ("incremental_lr", {}, 1e-3, "tr1"),
]


@pytest.mark.parametrize(
    ("key", "context", "value", "where"), FIRST_DIFFERENCE, ids=[f"{e[0]}={e[2]}" for e in FIRST_DIFFERENCE]
)
def test_weights_part_where_the_option_begins_to_act(train, key, context, value, where):
    (base, _), (changed, _) = train(**context), train(**{**context, key: value})
    moments = [moment for moment in (*PHASES, "end") if moment in {*base, *changed}]
    begun = False
    for moment in moments:
        begun = begun or moment == where
        equal = moment in base and moment in changed and torch.equal(base[moment], changed[moment])
        assert equal is not begun, moment


def test_nearest_mean_changes_what_is_answered(train):
    (_, base), (_, changed) = (train(**PLAIN, **UNFINETUNED, nme=nme) for nme in (False, True))
    assert base["matrix"] != changed["matrix"]


def test_retraining_from_scratch_is_one_task_with_everything(train):
    """The second task is as a run's first task would be, and evaluates while it trains, too."""
    settings = {"memory_size": 0, "auto_kd": False, **UNFINETUNED, "retrain_scratch": True}
    weights, summary = train(**settings)
    assert summary["nb_tasks"] == 2 and len(weights["tr1"]) > len(weights["tr0"])
    again, evaluated = train(**settings, eval_every=1)
    assert torch.equal(again["end"], weights["end"])
    assert evaluated["matrix"] == summary["matrix"]
