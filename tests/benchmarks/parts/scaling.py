"""Arithmetic: parameters, bytes and operations of a training step, and how far it spreads over GPUs. Nothing is timed here.

tests/benchmarks/scaling.md explains every formula. What is assumed stands in ASSUMED.
"""

import math

import torch

from continual.dytox import freeze
from continual.options import ModelOptions
from continual.training.optim import trained
from parts.models import grown, method_for, options_of, tasks_of
from parts.setting import Row, Setting

ASSUMED = {
    "bf16 products (TFLOP/s)": 790.0,  # of one H100
    "share of it that a step reaches": 0.25,
    "NVLink, all-reduce (GB/s)": 400.0,
    "InfiniBand 200 Gb a machine (GB/s)": 25.0,
    "Ethernet 25 Gb a machine (GB/s)": 3.125,
}
WIRES = [name for name in ASSUMED if name.endswith("(GB/s)")]
MODELS = {"cifar": (10, 50), "imagenet": (10, 50)}  # tasks
CLASSES = {10: 10, 50: 2}  # of a task, for so many tasks
BATCH = 128  # images of one GPU
TRAINED_IMAGES = {"cifar": (5000, 2000), "imagenet": (13000, 2000)}  # new ones of a task, and the memory


def parameters(model: ModelOptions, classes: list[int]) -> int:
    """How many the model has after tasks of so many classes, by the formula; `counted` counts them."""
    d, heads, side = model.embed_dim, model.num_heads, model.patch_size
    n = (model.input_size // side) ** 2
    encoder = d * (3 * side**2 + 1) + n * d + model.local_up_to_layer * (12 * d**2 + 10 * d + 5 * heads)
    decoder = (model.depth - model.local_up_to_layer) * (12 * d**2 + 10 * d)
    own = sum(3 * d + nb * (d + 1) for nb in classes)  # a token, the classifier's norm, and its rows
    div = 2 * d + (classes[-1] + 1) * (d + 1) if len(classes) > 1 else 0
    return encoder + decoder + own + div


def operations(model: ModelOptions, classes: list[int], *, div: bool = True, per: str = "forward") -> float:
    """Floating-point operations for one image, two for a multiplication and its addition.

    classes: of each task. per: "forward"; "backward", with gradients of everything but the pixels; "step", both of them.
    """
    d, nb_tasks = model.embed_dim, len(classes)
    n = (model.input_size // model.patch_size) ** 2
    sabs, tabs = model.local_up_to_layer, model.depth - model.local_up_to_layer
    embed = n * d * 3 * model.patch_size**2
    sab = 12 * n * d**2 + 3 * n**2 * d  # qk, v, proj, MLP; scores, values by patch, values by position
    tab = 2 * n * d**2 + nb_tasks * (9 * d**2 + 2 * n * d)  # keys and values of patches; proj, MLP, scores and values
    heads = d * sum(classes) + (d * (classes[-1] + 1) if div and nb_tasks > 1 else 0)
    forward = 2.0 * (embed + sabs * sab + tabs * tab + heads)
    backward = 2 * forward - 2 * embed
    return {"forward": forward, "backward": backward, "step": forward + backward}[per]


def of_step(model: ModelOptions, classes: list[int], *, distils: bool = True) -> float:
    """Operations of a training step for one image, the teacher's forward pass included."""
    teacher = operations(model, classes[:-1]) if distils and len(classes) > 1 else 0.0
    return operations(model, classes, per="step") + teacher


def kept_bytes(model: torch.nn.Module, side: int, amp: bool) -> float:
    """Bytes that a forward pass keeps for backward, for one image: counted on two and on three images."""

    def kept(nb: int) -> int:
        seen: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            kept_alive = model(torch.randn(nb, 3, side, side))
        return sum(seen.values()) if kept_alive else 0

    return kept(3) - kept(2)


def counted(name: str, nb_tasks: int, setting: Setting) -> Row:
    """Parameters and bytes of a model after so many tasks."""
    tasks = tasks_of(nb_tasks, CLASSES.get(nb_tasks, 2))
    options = options_of(name, setting)
    method = method_for(options, tasks)
    model = grown(method, tasks, torch.device("cpu")).train()
    nb = sum(p.numel() for p in model.parameters())
    freeze(model, method.training(tasks[-1]).frozen)
    learns = sum(p.numel() for p in trained(model))
    classes = [task.nb_new for task in tasks]
    kept = kept_bytes(model, options.model.input_size, amp=True)
    state = (
        4 * nb + 4 * 3 * learns + 4 * nb
    )  # weights; gradients and Adam's two means of what is trained; the teacher's weights
    return {
        "model": name,
        "tasks": nb_tasks,
        "parameters": nb,
        "trained": learns,
        "reduced a step (MB)": 4 * learns / 1e6,
        "forward (GFLOP/image)": operations(options.model, classes) / 1e9,
        "step with teacher (GFLOP/image)": of_step(options.model, classes) / 1e9,
        "weights, gradients, Adam, teacher (MB)": state / 1e6,
        "kept for backward, bf16 (MB/image)": kept / 1e6,
        f"memory of a GPU at batch {BATCH} (GB)": (state + BATCH * kept) / 1e9,
    }


def spread(row: Row, rate: float = 0.0) -> list[Row]:
    """One training step on several GPUs, the reduction beside the backward pass: by each kind of wire.

    rate: operations a second that a GPU reaches in a step; 0: as assumed.
    """
    rate = rate or ASSUMED["bf16 products (TFLOP/s)"] * ASSUMED["share of it that a step reaches"] * 1e12
    step = row["step with teacher (GFLOP/image)"] * 1e9 * BATCH / rate
    of_image = 2 * row["forward (GFLOP/image)"] * 1e9 / rate  # of its backward pass
    rows = []
    for wire in WIRES:
        for nb in (8,) if wire.startswith("NVLink") else (16, 64):
            reduction = 2 * (nb - 1) / nb * row["reduced a step (MB)"] * 1e6 / (ASSUMED[wire] * 1e9)
            whole = step + max(0.0, reduction - of_image * BATCH)
            line = {"model": row["model"], "tasks": row["tasks"], "GPUs": nb, "wire": wire.removesuffix(" (GB/s)")}
            line |= {"step alone (ms)": 1e3 * step, "reduction (ms)": 1e3 * reduction, "step together (ms)": 1e3 * whole}
            line |= {"share of perfect": step / whole, "images/s": nb * BATCH / whole}
            rows.append({**line, "batch of a GPU that hides it": math.ceil(reduction / of_image)})
    return rows


def beside(name: str, nb_tasks: int, setting: Setting) -> Row:
    """What choosing exemplars and evaluating add to the training of the last task, as shares of its operations."""
    model = options_of(name, setting).model
    classes = [CLASSES.get(nb_tasks, 2)] * nb_tasks
    options = options_of(name, setting)
    new, memory = TRAINED_IMAGES[name][0] * classes[0] // 10, TRAINED_IMAGES[name][1]
    epochs, every = options.optim.epochs, options.run.eval_every
    training = epochs * (new + memory) * of_step(model, classes)
    tested = (100 if name == "cifar" else 50) * sum(classes)
    forward = operations(model, classes)
    return {
        "model": name,
        "tasks": nb_tasks,
        "training, last task (PFLOP)": training / 1e15,
        "exemplars (share)": new * forward / training,
        "evaluations (share)": epochs / every * tested * forward / training,
    }


def scaling(setting: Setting) -> Row:
    """Parameters, bytes and operations, counted, and what follows for 8 GPUs and several machines."""
    counts = [counted(name, nb, setting) for name, all_nb in MODELS.items() for nb in all_nb]
    spreads = [line for row in counts for line in spread(row)]
    besides = [beside(name, nb, setting) for name, all_nb in MODELS.items() for nb in all_nb]
    return {"rows": counts, "on several GPUs": spreads, "beside training": besides, "assumed": ASSUMED}
