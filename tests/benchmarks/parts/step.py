"""The whole training step of the CIFAR model and its parts, beside the published way and the rate of matrix products."""

import torch

from continual.options import ModelOptions
from parts.models import PARTS, Steps, in_parts, options_of, tasks_of
from parts.published_way import cross_check, published_steps
from parts.scaling import of_step
from parts.setting import Row, Setting, alternating, product_rate, say

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16}
NAMES = {"off": "float32", "bf16": "bf16"}
DIGITS = [("quickstart", {}, 8, 2), ("D 96", {"embed_dim": 96}, 64, 1)]  # options, images of a replica, replicas
SLOW = 0.5  # bfloat16 products at less than this share of float32's rate: the processor has no units for them


def products_of(model: ModelOptions, batch: int) -> list[tuple[int, int, int]]:
    """The products (m, k, n) of the linear layers of one SAB on a batch: forward, and backward to inputs and weights."""
    d, rows = model.embed_dim, batch * (model.input_size // model.patch_size) ** 2
    layers = [(d, 2 * d), (d, d), (d, d), (d, 4 * d), (4 * d, d)]
    return [shape for k, n in layers for shape in ((rows, k, n), (rows, n, k), (n, rows, k))]


def rate(setting: Setting, model: ModelOptions, batch: int, dtype: torch.dtype, rounds: int = 5) -> float:
    """Operations a second of the products alone."""
    multiply = product_rate(setting, products_of(model, batch), dtype)
    return multiply() / alternating(setting, {"products": multiply}, rounds=rounds)["products"]


def one_row(setting: Setting, nb_tasks: int, amp: str, batch: int) -> Row:
    options, tasks, together = options_of("cifar", setting), tasks_of(nb_tasks, 2), 1
    if setting.on_cuda:
        together = 1024 // batch
    how = {"batch": batch, "amp": amp, "together": together}
    steps = Steps(options, tasks, setting.device, **how)
    plain = Steps(options, tasks, setting.device, **how)
    multiply = product_rate(setting, products_of(options.model, batch), DTYPES[amp])
    nb = 1 if not setting.on_cuda else 4 * together
    published = published_steps(plain, plain.trainer.loading)
    variants = {
        "ours": lambda: steps(nb),
        "published": lambda: [published() for _ in range(nb)],
        "products": lambda: [multiply() for _ in range(nb)],
    }
    seconds = {name: value / nb for name, value in alternating(setting, variants).items()}
    in_all = of_step(options.model, [2] * nb_tasks) * batch
    best = multiply() / seconds["products"]
    say(f"step: {nb_tasks} tasks, {NAMES[amp]}: {seconds['ours']:.3g} s")
    return {
        "tasks": nb_tasks,
        "precision": NAMES[amp],
        "batch": batch,
        "step (ms)": 1e3 * seconds["ours"],
        "published way (ms)": 1e3 * seconds["published"],
        "published / ours": seconds["published"] / seconds["ours"],
        "images/s": batch / seconds["ours"],
        "step (GFLOP)": in_all / 1e9,
        "step (GFLOP/s)": in_all / seconds["ours"] / 1e9,
        "products (GFLOP/s)": best / 1e9,
        "share of products": in_all / seconds["ours"] / best,
        **parts_of(setting, steps),
    }


def parts_of(setting: Setting, steps: Steps, nb: int = 1) -> Row:
    """Milliseconds of a step's parts, the mean of `nb` steps for every round."""
    nb = nb * setting.rounds
    with in_parts(steps, setting) as parts:
        steps()
        parts.seconds = dict.fromkeys(PARTS, 0.0)
        begun = setting.now()
        steps(nb)
        whole = setting.now() - begun
    found = {f"{name} (ms)": 1e3 * value / nb for name, value in parts.seconds.items()}
    return {**found, "rest (ms)": 1e3 * whole / nb - sum(found.values())}


def small(setting: Setting) -> list[Row]:
    """Steps of the digits' model, third task: as the quickstart trains it, and at batch 64 and D 96."""
    rows, tasks = [], tasks_of(3, 2)
    for name, changes, batch, replicas in DIGITS:
        options, nb = options_of("digits", setting, **changes), 2 if setting.tiny else 64
        steps = Steps(options, tasks, setting.device, batch=batch, replicas=replicas, together=nb * replicas)
        multiply = product_rate(setting, products_of(options.model, batch * replicas), torch.float32)
        variants = {"ours": lambda steps=steps, nb=nb: steps(nb), "products": multiply}
        seconds = alternating(setting, variants)
        whole, in_all = seconds["ours"] / nb, of_step(options.model, [2] * 3) * batch * replicas
        best = multiply() / seconds["products"]
        row = {"model": name, "batch": batch * replicas, "step (ms)": 1e3 * whole, "images/s": batch * replicas / whole}
        row |= {"step (GFLOP/s)": in_all / whole / 1e9, "products (GFLOP/s)": best / 1e9}
        rows.append({**row, "share of products": in_all / whole / best, **parts_of(setting, steps, nb)})
    return rows


def step(setting: Setting) -> Row:
    """The whole training step of the CIFAR model and its parts, at 1, 10 and 50 tasks."""
    options = options_of("cifar", setting)
    batch = 4 if setting.tiny else 128 if setting.on_cuda else 32
    rates = {amp: rate(setting, options.model, batch, dtype) for amp, dtype in DTYPES.items()}
    sizes = {"off": batch, "bf16": batch}
    notes = []
    if rates["bf16"] < SLOW * rates["off"] and not setting.tiny:
        sizes["bf16"] = max(1, batch // 8)
        notes.append("bf16 products are slower than float32's here: this processor has no units for bfloat16; smaller batches")
    tasks = (1, 2) if setting.tiny else (1, 10, 50)
    rows = []
    for amp in DTYPES:
        for nb in tasks:
            if setting.seconds_left() < 30:
                notes.append(f"no time was left for {NAMES[amp]} at {nb} tasks")
                continue
            rows.append(one_row(setting, nb, amp, sizes[amp]))
    check = Steps(options, tasks_of(3, 2), setting.device, batch=2)
    images = torch.randn(2, 3, options.model.input_size, options.model.input_size, device=setting.device)
    difference = cross_check(check.model, images)
    return {
        "rows": rows,
        "the digits' model": small(setting),
        "notes": notes,
        "largest difference of outputs from the published way": difference,
    }
