"""Whole steps of training: the stored trajectory of the released code over three tasks, and what a step moves."""

import copy
import math

import pytest
import torch
from stored import arrays, config, distance, tensors
from torch import Tensor

from continual.convit import ConViT
from continual.dytox import DyTox, freeze, rename_released
from continual.losses import binary_cross_entropy, paper_objective
from continual.options import OptimOptions
from continual.tasks import Task
from continual.training.optim import build_optimizer

OPTIMISATION = OptimOptions(opt="adamw", weight_decay=1e-6)
LR, FINETUNING_LR = 1e-3, 5e-4


def without_drift(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All but `pos_proj.bias`: the softmax does not see it, its gradient is rounding, and Adam makes steps of that."""
    return {name: value for name, value in rename_released(state).items() if not name.endswith("pos_proj.bias")}


def assert_weights(model: DyTox, expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    own = model.state_dict()
    expected = without_drift(expected)
    assert {name for name in own if not name.endswith("pos_proj.bias")} == set(expected)
    for name, value in expected.items():
        assert distance(own[name], value) < tolerance, name


def assert_losses(losses: dict[str, Tensor], expected: Tensor, where: str) -> None:
    """expected: clf, kd, div and total, NaN for a loss that is not there.

    kd adds up terms of both signs that all but cancel (it is 0 before the first step), so float32 leaves it an absolute
    error: in float64, from the stored weights, it is 1e-8 away from the stored value, which is 2e-5 of that value.
    """
    named = zip(("clf", "kd", "div", "total"), expected.tolist(), strict=True)
    named = {name: value for name, value in named if not math.isnan(value)}
    assert set(losses) == set(named), where
    for name, value in named.items():
        close = pytest.approx(value, rel=1e-5, abs=3e-8 if name == "kd" else 0)
        assert losses[name].item() == close, f"{name}, {where}"


def dytox(*, img: int, patch: int, dim: int, depth: int, heads: int, ind_clf: str = "1-1") -> DyTox:
    """All blocks but the last are SABs."""
    rates = [0.0] * (depth - 1)
    encoder = ConViT(input_size=img, patch_size=patch, embed_dim=dim, num_heads=heads, drop_path_rates=rates)
    return DyTox(encoder, num_heads=heads, drop_path_rates=[0.0], ind_clf=ind_clf, head_div=True)


def test_three_tasks_of_the_released_code():
    stored = arrays("training")
    sizes = config(stored)
    classes = sizes.pop("classes")
    model = dytox(**sizes)
    nb_old = 0
    for t, nb_new in enumerate(classes):
        task = Task(t, nb_old, nb_new)
        nb_old = task.nb_seen
        teacher = None if task.first else copy.deepcopy(model).eval().requires_grad_(False)

        # What the task adds is drawn at random: it starts as stored. All else goes on from our own last step.
        before = set(model.state_dict()) if t else set()
        model.add_task(nb_new)
        start = rename_released(tensors(stored, f"task{t}/init/"))
        added = {name: value for name, value in start.items() if name not in before or name.startswith("head_div.")}
        missing, unexpected = model.load_state_dict(added, strict=False)
        assert not unexpected and set(missing) == set(start) - set(added)
        assert_weights(model, tensors(stored, f"task{t}/init/"))

        freeze(model, () if task.first else ("old_task_tokens", "old_heads"))
        optimizer = build_optimizer(model, OPTIMISATION, LR)
        objective = paper_objective(model, binary_cross_entropy, task=task, teacher=teacher, kd=None, head_div=0.1)
        batches = zip(*(torch.from_numpy(stored[f"task{t}/{name}"]) for name in ("x", "y", "losses")), strict=True)
        for step, (x, y, expected) in enumerate(batches):
            losses = objective(x, y)
            assert_losses(losses, expected, f"task {t}, step {step}")
            model.zero_grad()
            losses["total"].backward()
            if step == 0:
                gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
                expected = rename_released(tensors(stored, f"task{t}/grad/"))
                assert set(gradients) == set(expected)
                for name, value in without_drift(expected).items():
                    assert distance(gradients[name], value) < 1e-4, f"gradient of {name}, task {t}"
            optimizer.step()
        assert_weights(model, tensors(stored, f"task{t}/after_train/"))

        if not task.first:
            freeze(model, ("sab",))
            optimizer = build_optimizer(model, OPTIMISATION, FINETUNING_LR)
            objective = paper_objective(model, binary_cross_entropy, task=task)
            batches = zip(*(torch.from_numpy(stored[f"task{t}/{name}"]) for name in ("ft_x", "ft_y", "ft_losses")), strict=True)
            for step, (x, y, expected) in enumerate(batches):
                losses = objective(x, y)
                assert_losses(losses, expected, f"task {t}, finetuning step {step}")
                model.zero_grad()
                losses["total"].backward()
                optimizer.step()
            assert_weights(model, tensors(stored, f"task{t}/after_ft/"))


@pytest.mark.parametrize("kind", ["1-1", "1-n", "n-1", "n-n"])
@pytest.mark.parametrize("frozen", [("old_task_tokens", "old_heads"), ("old_heads",), ()])
def test_a_step_moves_old_tokens_and_heads_unless_frozen(kind, frozen):
    torch.manual_seed(0)
    model = dytox(img=8, patch=4, dim=8, depth=2, heads=2, ind_clf=kind)
    for nb_new in (2, 2, 2):
        model.add_task(nb_new)
    before = copy.deepcopy(model.state_dict())
    freeze(model, frozen)
    optimizer = build_optimizer(model, OPTIMISATION, LR)
    objective = paper_objective(model, binary_cross_entropy, task=Task(2, 4, 2), head_div=0.1)
    objective(torch.randn(6, 3, 8, 8), torch.arange(6))["total"].backward()
    optimizer.step()
    starts = {"old_task_tokens": ("task_tokens.0", "task_tokens.1"), "old_heads": ("heads.0.", "heads.1.")}
    still = tuple(start for name in frozen for start in starts[name])
    for name, value in model.state_dict().items():
        if not name.endswith("pos_proj.bias"):
            assert torch.equal(value, before[name]) == name.startswith(still), name
