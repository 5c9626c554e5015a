"""What a run can be told: every option with its type, default, range and help, in sections, and what goes together.

A key belongs to exactly one section. Options never change once they are read: what is known only while running (classes,
processes, scaled learning rates) lives elsewhere. Nothing here imports torch, but for the class of a method named outright.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any

from continual.data.scenario import NB_CLASSES, by_name, checked_order, task_sizes
from continual.errors import OptionsError, some
from continual.files import SAFE_NAME
from continual.options.values import shown, shown_all
from continual.registry import DATA_SETS, ENCODERS, LOSSES, METHODS, METRICS, RULES

Range = tuple[str, Callable[[float], bool]]  # in words, and as a test

POSITIVE: Range = ("above 0", lambda x: x > 0)
NOT_NEGATIVE: Range = ("0 or more", lambda x: x >= 0)
COUNT: Range = ("1 or more", lambda x: x >= 1)
PROBABILITY: Range = ("from 0 to 1", lambda x: 0 <= x <= 1)
TIMEOUT: Range = ("from 1 to 10 million", lambda x: 1 <= x <= 1e7)
MEAN: Range = ("from 0 to 1", lambda x: 0 <= x <= 1)
STD: Range = ("from 0.001 to 1", lambda x: 0.001 <= x <= 1)
BELOW_ONE: Range = ("at least 0 and below 1", lambda x: 0 <= x < 1)

REHEARSALS = ("random", "closest_token", "closest_all", "furthest_token", "furthest_all", "icarl_token", "icarl_all")
OPTIMIZERS = ("adamw", "adam", "nadamw", "radamw", "lamb", "lion", "sgd", "momentum", "nesterov")
SCHEDULES = ("cosine", "tanh", "step", "poly", "plateau", "multistep")
PARTS = ("all", "sab", "tab", "task_tokens", "old_task_tokens", "heads", "old_heads", "head_div")
PHASES = ("tr", "ft")
PATCH_ENCODERS = ("convit", "vit")  # of this package: they cut images into patches, and have blocks of their own

TIMM_NAME = re.compile(r"timm:[A-Za-z0-9_][A-Za-z0-9_.-]*")
WANDB_PROJECT = re.compile(r"[\w .-]+(/[\w .-]+)?")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")

AUTO = ("auto",)  # mean and std: measured


def per_channel(values: Sequence[float]) -> tuple[float, float, float]:
    """One number stands for all three channels."""
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


class Conflict(OptionsError):
    """Options that do not go together: their `keys`, and why."""

    def __init__(self, keys: str, reason: str):
        super().__init__(f"{keys}: {reason}")
        self.keys = keys.split(", ")


def require(condition: bool, keys: str, reason: str) -> None:
    """Raise a Conflict about `keys` (separated by ", ") unless `condition` holds."""
    if not condition:
        raise Conflict(keys, reason)


def rehearsals() -> tuple[str, ...]:
    """The choices of `rehearsal`, with those of rules from outside."""
    return REHEARSALS + tuple(f"{rule}_{kind}" for rule in RULES.outside() for kind in ("token", "all"))


def outside_losses() -> tuple[str, ...]:
    """The choices of `extra_losses`."""
    return tuple(LOSSES.outside())


def option(
    default: Any,
    help: str,
    within: Range | None = None,
    *,
    choices: Sequence[str] | Callable[[], Sequence[str]] = (),
    refused: str = "",
) -> Any:
    """A field of a section. `within` and `choices` hold for each item of a list; `refused`: why it keeps `default`.

    Choices that a script may add to are a function.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "within": within, "refused": refused})


class Section:
    """A frozen group of options that checks itself."""

    def check(self) -> None:
        """Raise a Conflict if the options of this section do not go together."""


@dataclass(frozen=True)
class ModelOptions(Section):
    """model"""

    method: str = option(
        "",
        "method: dytox, joint, finetuning, rehearsal, icarl, wa, podnet, bic, der, or one that a script registers; empty: as "
        "dytox, retrain_scratch, weight_align, nme and pod say",
    )
    model: str = option(
        "convit", "encoder: convit (the paper's), vit, timm:NAME for any model of timm, or one that a script registers"
    )
    pretrained: bool = option(False, "start a timm encoder from timm's published weights")
    input_size: int = option(32, "side of the images, in pixels", COUNT)
    patch_size: int = option(16, "side of a patch, in pixels (convit, vit)", COUNT)
    embed_dim: int = option(768, "embedding dimension D", COUNT)
    depth: int = option(12, "number of blocks, self-attention and task-attention together", COUNT)
    num_heads: int = option(12, "attention heads of a block", COUNT)
    drop: float = option(
        0.0, "dropout of the encoder's tokens, after the position embedding (timm: of the projected ones)", BELOW_ONE
    )
    drop_path: float = option(0.1, "stochastic depth of the last block; 0 at the first, rising linearly", BELOW_ONE)
    norm: str = option("layer", "normalisation in the blocks: LayerNorm or ScaleNorm", choices=("layer", "scale"))
    local_up_to_layer: int = option(10, "so many blocks are SABs (GPSA), the others TABs", NOT_NEGATIVE)
    locality_strength: float = option(1.0, "how sharply GPSA looks at one place at first (convit)", POSITIVE)
    class_attention: bool = option(False, "blocks after local_up_to_layer attend from the class (or task) token only")
    resnet: bool = option(False, "", refused="not available; use model: timm:resnet18")
    dytox: bool = option(False, "one token per task (DyTox); off: the encoder and one growing classifier")
    ind_clf: str = option(
        "",
        "classifiers: embeddings read by one - tasks predicted by one; empty: a new one on all embeddings at each task",
        choices=("", "1-1", "1-n", "n-1", "n-n"),
    )
    joint_tokens: bool = option(
        False, "", refused="not available; the decoder treats all task tokens together, exactly; leave it out"
    )

    def check(self) -> None:
        timm, patches = TIMM_NAME.fullmatch(self.model) is not None, self.model in PATCH_ENCODERS
        known = ENCODERS.names()
        reason = f"{shown(self.model)} is not {', '.join(known)} or timm:NAME"
        require(timm or self.model in known, "model", reason)
        require(timm or not self.pretrained, "pretrained, model", f"there are no published weights for {self.model}")
        if patches:
            size, patch = self.input_size, self.patch_size
            require(size % patch == 0, "input_size, patch_size", f"patches of {patch} pixels do not tile {size}")
        if self.dytox or patches:
            dim, heads, last, depth = self.embed_dim, self.num_heads, self.local_up_to_layer, self.depth
            require(dim % heads == 0, "embed_dim, num_heads", f"{heads} heads do not divide {dim} dimensions")
            require(last <= depth, "local_up_to_layer, depth", f"{last} local blocks do not fit in {depth}")
        if self.dytox:
            reason = f"dytox needs at least one SAB and one TAB, not {last} local blocks of {depth}"
            require(0 < last < depth, "local_up_to_layer, depth", reason)
            reason = "dytox needs class_attention: its token decoder is class attention"
            require(self.class_attention, "dytox, class_attention", reason)
        else:
            require(self.ind_clf == "", "ind_clf, dytox", f"{self.ind_clf} needs dytox; without it use ind_clf: ''")
        own_blocks = self.dytox or self.model == "convit"
        require(own_blocks or self.norm == "layer", "norm, model", f"{self.norm} needs convit or dytox")


@dataclass(frozen=True)
class DataOptions(Section):
    """data and scenario"""

    data_set: str = option("digits", "digits, glyphs, cifar100, imagenet100, imagenet1000, or another that datasets.py knows")
    data_path: str = option("./data", "folder of the data sets")
    initial_increment: int = option(50, "classes of the first task; 0: as many as increment", NOT_NEGATIVE)
    increment: int | tuple[int, ...] = option(
        10, "classes of each later task: one number, or a list with the size of every later task", COUNT
    )
    class_order: tuple[int, ...] | tuple[tuple[int, ...], ...] | tuple[str, ...] | tuple[tuple[str, ...], ...] | None = option(
        None,
        "classes in the order in which they arrive: class ids where all are numbers (even of folders called 1, 2, ...; in "
        "quotes, in YAML, they are names), else names; a list of such lists (in YAML): one run each",
    )
    mean: tuple[float, ...] | tuple[str, ...] | None = option(
        None,
        "mean of the pixels, which are from 0 to 1: one number, three, or auto (measured on the training images of the first "
        "task); default: the data set's",
        MEAN,
    )
    std: tuple[float, ...] | tuple[str, ...] | None = option(None, "the same for their standard deviation", STD)
    validation: float = option(0.0, "share of the training images that replaces the test images", BELOW_ONE)
    eval_batch_size: int = option(256, "images in one batch of an evaluation, and when exemplars are chosen", COUNT)
    num_workers: int | None = option(
        None, "data loading workers of each process; default: its share of the machine's processor cores", NOT_NEGATIVE
    )
    pin_mem: bool = option(True, "page-locked memory for batches, which is faster to copy to a GPU")
    skip_corrupt: bool = option(False, "scan all images first, leave out and count the unreadable ones; off: stop")

    def class_orders(self) -> tuple[tuple[int, ...] | tuple[str, ...] | None, ...]:
        """One class order per run; None stands for the natural order."""
        nested = self.class_order is not None and isinstance(self.class_order[0], tuple)
        return self.class_order if nested else (self.class_order,)

    def check(self) -> None:
        require(SAFE_NAME.fullmatch(self.data_set) is not None, "data_set", f"{shown(self.data_set)} is not a name")
        require(self.class_order != (), "class_order", "an empty list; leave it out for the natural order")
        for number, order in enumerate(self.class_orders(), start=1):
            here = f" in order {number}" if len(self.class_orders()) > 1 else ""
            require(order != (), "class_order", f"an empty list{here}")
            negative = sorted({label for label in order or () if not by_name(order) and label < 0})
            require(not negative, "class_order", f"labels below 0{here}: {some(negative)}")
            twice = sorted(label for label, times in Counter(order or ()).items() if times > 1)
            require(not twice, "class_order", f"labels named more than once{here}: {shown_all(twice)}")
            self._check_size(order, here)
            others = set(order or ()) ^ set(self.class_orders()[0] or ())
            told = shown_all(sorted(others, key=str))
            require(not others, "class_order", f"order {number} and order 1 are not of the same classes: {told}")
        for key in ("mean", "std"):
            values = getattr(self, key)
            fits = values in (None, AUTO) or (len(values) in (1, 3) and not by_name(values))
            require(fits, key, f"takes one number, three, or auto, not {shown_all(values or ()) or 'nothing'}")

    def _check_size(self, order: tuple[int, ...] | tuple[str, ...] | None, here: str) -> None:
        """Raise a Conflict if tasks or class order do not fit the data set, as far as its size is known before it is read."""
        nb_classes = NB_CLASSES.get(self.data_set.lower())
        if nb_classes is None:
            return
        try:
            task_sizes(nb_classes, self.initial_increment, self.increment)
        except OptionsError as error:
            raise Conflict("initial_increment, increment, data_set", str(error)) from None
        if by_name(order):
            require(len(order) == nb_classes, "class_order, data_set", f"{len(order)} names{here}, for {nb_classes} classes")
            return
        try:
            checked_order(order, nb_classes)
        except OptionsError as error:
            raise Conflict("class_order, data_set", str(error).removeprefix("class_order: ") + here) from None


@dataclass(frozen=True)
class OptimOptions(Section):
    """optimisation"""

    batch_size: int = option(128, "images per replica in a step", COUNT)
    incremental_batch_size: int | None = option(None, "the same from the second task on", COUNT)
    replicas: int | None = option(
        None, "data-parallel width of the recipe, whatever runs it; default: the number of processes", COUNT
    )
    replicas_at_once: int | None = option(
        None,
        "most replicas that a process takes through the model in one batch; default: all of them, up to a million pixels and "
        "where only rounding changes; 1: the same bits on any number of processes",
        COUNT,
    )
    epochs: int = option(500, "epochs of each task after the first", COUNT)
    base_epochs: int = option(500, "epochs of the first task", COUNT)
    no_amp: bool = option(False, "float32 throughout: the same as amp: off")
    amp: str = option(
        "auto",
        "precision of the model's products: off (float32), tf32 (on CUDA), bf16 or fp16 (mixed); auto: bf16, or fp16 on a GPU "
        "without it",
        choices=("auto", "off", "tf32", "bf16", "fp16"),
    )
    compile: bool = option(False, "compile the training step (torch.compile, CUDA graphs on a GPU); rounds differently")
    deterministic: bool = option(True, "on CUDA, only kernels that add up in a fixed order; off: faster, and no two runs alike")
    channels_last: bool = option(False, "images and convolutions in channels-last layout, which is faster for CNNs")
    opt: str = option("adamw", "optimizer, by timm's name", choices=OPTIMIZERS)
    opt_eps: float | None = option(1e-8, "epsilon of the optimizer; none: its own", POSITIVE)
    opt_betas: tuple[float, ...] | None = option(None, "two betas of the optimizer; none: its own", BELOW_ONE)
    clip_grad: float | None = option(None, "largest norm of the gradient; none: no limit", POSITIVE)
    momentum: float = option(0.9, "momentum of sgd, nesterov and momentum", BELOW_ONE)
    weight_decay: float = option(0.05, "weight decay; on tensors of two or more dimensions only", NOT_NEGATIVE)
    lr: float = option(5e-4, "learning rate; multiplied by batch_size * replicas / 512", POSITIVE)
    incremental_lr: float | None = option(None, "the same from the second task on", POSITIVE)
    sched: str = option("cosine", "schedule, by timm's name", choices=SCHEDULES)
    lr_noise: tuple[float, ...] | None = option(
        None, "noise on the rate: from this share of the epochs on, or between these two", PROBABILITY
    )
    lr_noise_pct: float = option(0.67, "largest noise, as a share of the rate", POSITIVE)
    lr_noise_std: float = option(1.0, "standard deviation of the noise", POSITIVE)
    warmup_lr: float = option(1e-6, "rate at the start of the warm-up; not scaled", NOT_NEGATIVE)
    incremental_warmup_lr: float | None = option(None, "the same from the second task on", NOT_NEGATIVE)
    warmup_epochs: int = option(5, "epochs of linear warm-up", NOT_NEGATIVE)
    min_lr: float = option(1e-5, "rate at the end of the schedule; not scaled", NOT_NEGATIVE)
    decay_epochs: float = option(30.0, "epochs between two decays (step)", POSITIVE)
    decay_rate: float = option(0.1, "factor of a decay (step, multistep, plateau), or power (poly)", POSITIVE)
    decay_milestones: tuple[int, ...] = option((), "epochs at which the rate decays by decay_rate (multistep)", COUNT)
    patience_epochs: int = option(10, "epochs without a lower loss before a decay (plateau)", NOT_NEGATIVE)
    cooldown_epochs: int = option(10, "", refused="no effect: a task trains its epochs and no more; use epochs and min_lr")

    def check(self) -> None:
        require(self.opt_betas is None or len(self.opt_betas) == 2, "opt_betas", "takes two numbers")
        adam_like = self.opt not in ("sgd", "momentum", "nesterov")
        require(self.opt_betas is None or adam_like, "opt_betas, opt", f"{self.opt} has no betas; see momentum")
        require(self.lr_noise is None or len(self.lr_noise) in (1, 2), "lr_noise", "takes one or two numbers")
        rising = self.lr_noise is None or list(self.lr_noise) == sorted(self.lr_noise)
        require(rising, "lr_noise", "the second number is below the first")
        reason = "timm draws until the noise is within lr_noise_pct: less than a hundredth of lr_noise_std takes for ever"
        drawn = self.lr_noise is None or self.lr_noise_pct >= 0.01 * self.lr_noise_std
        require(drawn, "lr_noise_pct, lr_noise_std", reason)
        at = self.decay_milestones
        require(list(at) == sorted(set(at)), "decay_milestones", f"each must be above the one before, unlike {some(at)}")
        multistep = self.sched == "multistep"
        require(bool(at) or not multistep, "sched, decay_milestones", "multistep needs decay_milestones, one or more")
        require(multistep or not at, "decay_milestones, sched", f"they are of sched: multistep, not {self.sched}")
        reason = f"one says float32, the other {self.amp}"
        require(not self.no_amp or self.amp in ("auto", "off"), "amp, no_amp", reason)


@dataclass(frozen=True)
class AugmentOptions(Section):
    """augmentation"""

    augment: str = option(
        "batched",
        "how images in memory are augmented: batched, many at once as tensors, or pillow, one by one as files always are; the "
        "same distributions, other draws",
        choices=("batched", "pillow"),
    )
    hflip: float = option(0.5, "probability of a horizontal flip", PROBABILITY)
    aa: str | None = option("rand-m9-mstd0.5-inc1", "RandAugment policy, as timm writes it; none: colour jitter")
    color_jitter: float = option(0.4, "strength of the colour jitter, where aa is none", NOT_NEGATIVE)
    train_interpolation: str = option(
        "bicubic", "interpolation of random resized crops", choices=("bicubic", "bilinear", "random")
    )
    repeated_aug: bool = option(True, "repeated augmentation: three variants of each image that an epoch takes")
    reprob: float = option(0.25, "probability of random erasing", PROBABILITY)
    remode: str = option(
        "pixel", "erased places hold zeros, one random colour, or one per pixel", choices=("const", "rand", "pixel")
    )
    recount: int = option(1, "places erased in an image, at most", COUNT)
    resplit: bool = option(False, "", refused="not available; there are no augmentation splits; use reprob")
    mixup: float = option(0.8, "alpha of mixup; 0: none", NOT_NEGATIVE)
    cutmix: float = option(1.0, "alpha of cutmix; 0: none", NOT_NEGATIVE)
    cutmix_minmax: tuple[float, ...] | None = option(
        None, "smallest and largest side of the cutmix box, as shares of the image's; none: drawn by alpha", PROBABILITY
    )
    mixup_prob: float = option(1.0, "probability that a batch is mixed", PROBABILITY)
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on", PROBABILITY)
    mixup_mode: str = option("batch", "one mixture per batch, per pair or per image", choices=("batch", "pair", "elem"))

    def check(self) -> None:
        require(self.aa is None or self.aa.startswith("rand"), "aa", f"{shown(self.aa)} is not rand-…, nor none")
        box = self.cutmix_minmax
        reason = "takes two numbers, the smaller first"
        require(box is None or (len(box) == 2 and box[0] <= box[1]), "cutmix_minmax", reason)


@dataclass(frozen=True)
class LossOptions(Section):
    """losses"""

    bce_loss: bool = option(False, "binary cross entropy on each class; off: cross entropy")
    smoothing: float = option(0.1, "label smoothing (cross entropy, mixup and cutmix)", BELOW_ONE)
    head_div: float = option(0.0, "weight of the divergence loss: new classes against all old ones", NOT_NEGATIVE)
    head_div_mode: tuple[str, ...] = option(("tr", "ft"), "phases of that loss: training, finetuning, or both", choices=PHASES)
    auto_kd: bool = option(False, "weigh distillation by the share of old classes, classification by that of new ones")
    kd: float = option(0.0, "weight of the distillation instead; 0: none", NOT_NEGATIVE)
    distillation_tau: float = option(1.0, "temperature of the distillation", POSITIVE)
    pod: float | None = option(None, "weight of PODNet's loss on the outputs of the blocks; none: without", NOT_NEGATIVE)
    pod_scales: tuple[int, ...] = option((1,), "scales of that loss: cells per side of the map", COUNT)
    pod_scaling: bool = option(False, "scale it by the root of new classes / classes seen")
    weight_align: bool = option(False, "WA: after each task, scale the new classes' weights to the mean norm of the old ones'")
    extra_losses: tuple[str, ...] = option((), "registered losses added to those of training", choices=outside_losses)
    extra_loss_weights: tuple[float, ...] = option((), "their weights; default: 1 each", NOT_NEGATIVE)

    def check(self) -> None:
        require(not (self.kd and self.auto_kd), "kd, auto_kd", "one weight or the other; set kd: 0 or auto_kd: false")
        require(self.pod_scales != (), "pod_scales", "an empty list")
        reason = "an empty list; set head_div: 0 for no divergence loss"
        require(bool(self.head_div_mode) or not self.head_div, "head_div_mode, head_div", reason)
        losses, weights = self.extra_losses, self.extra_loss_weights
        require(len(set(losses)) == len(losses), "extra_losses", f"a loss stands twice in {some(losses)}")
        reason = f"one weight for each loss, or none at all; there are {len(weights)} for {len(losses)}"
        require(len(weights) in (0, len(losses)), "extra_loss_weights, extra_losses", reason)


@dataclass(frozen=True)
class RehearsalOptions(Section):
    """rehearsal"""

    memory_size: int = option(2000, "exemplars in all, whatever the number of processes", NOT_NEGATIVE)
    fixed_memory: bool = option(False, "share the memory among all classes from the start; off: among those seen")
    rehearsal: str = option(
        "random",
        "exemplars: random, closest to or furthest from the class mean, or herded; by the newest embedding or all",
        choices=rehearsals,
    )
    rehearsal_test_trsf: bool | None = option(
        None, "choose exemplars on unaugmented images; default: yes for a global memory, no for a distributed one"
    )
    rehearsal_modes: int = option(1, "choose so many times, memory_size / N each, on differently augmented images", COUNT)
    distributed_memory: bool = option(False, "each replica chooses its own memory_size / replicas")
    global_memory: bool = option(True, "one memory for all replicas: the opposite of distributed_memory")
    oversample_memory: int = option(1, "how often an exemplar stands in the training set", COUNT)
    oversample_memory_ft: int = option(1, "how often an exemplar stands in the finetuning set", COUNT)
    sep_memory: bool = option(False, "keep the memory out of the training set")
    replay_memory: int = option(
        0, "with sep_memory: batches of the memory whose loss joins that of each new batch", within=NOT_NEGATIVE
    )
    only_ft: bool = option(False, "from the second task on, train on the memory alone")
    nme: bool = option(False, "iCaRL: classify by the nearest mean of exemplars, not by the classifier")

    def check(self) -> None:
        reason = "one is the opposite of the other; set only one"
        require(self.distributed_memory != self.global_memory, "distributed_memory, global_memory", reason)
        if self.rehearsal_modes > 1:
            reason = "each replica of a distributed memory chooses already; set one of them"
            require(not self.distributed_memory, "rehearsal_modes, distributed_memory", reason)
            reason = "on unaugmented images every choice would be the same; set rehearsal_test_trsf: false"
            require(self.rehearsal_test_trsf is False, "rehearsal_modes, rehearsal_test_trsf", reason)
        require(not (self.only_ft and self.sep_memory), "only_ft, sep_memory", "would leave no image to train on")
        require(self.sep_memory or not self.replay_memory, "replay_memory, sep_memory", "replay_memory needs sep_memory")
        for key in ("sep_memory", "only_ft", "nme"):
            reason = f"{key} needs a memory; memory_size is 0"
            require(self.memory_size > 0 or not getattr(self, key), f"{key}, memory_size", reason)


@dataclass(frozen=True)
class FinetuneOptions(Section):
    """finetuning and freezing"""

    finetuning: str = option("", "after each task: nothing, or finetuning on the balanced memory", choices=("", "balanced"))
    finetuning_epochs: int = option(30, "epochs of finetuning", COUNT)
    finetuning_lr: float = option(5e-5, "constant rate of finetuning; scaled as lr is", POSITIVE)
    finetuning_teacher: bool = option(False, "keep distilling while finetuning")
    finetuning_resetclf: bool = option(False, "finetune from fresh classifiers")
    ft_no_sampling: bool = option(False, "batches in memory order, unshuffled; each replica sees all of its memory")
    ft_drop_last: bool = option(
        False, "drop finetuning's last partial batch, the newest exemplars, where the released code does; with ft_no_sampling"
    )
    freeze_task: tuple[str, ...] = option((), "parts frozen while training, from the second task on", choices=PARTS)
    freeze_ft: tuple[str, ...] = option((), "parts frozen while finetuning", choices=PARTS)
    freeze_eval: bool = option(False, "frozen parts also leave train mode (no dropout, no stochastic depth)")

    def check(self) -> None:
        for key in ("finetuning_teacher", "finetuning_resetclf"):
            reason = f"{key} needs finetuning: balanced"
            require(bool(self.finetuning) or not getattr(self, key), f"{key}, finetuning", reason)
        reason = "a shuffled order drops it already, each time with other images; ft_drop_last needs ft_no_sampling"
        require(self.ft_no_sampling or not self.ft_drop_last, "ft_drop_last, ft_no_sampling", reason)
        frozen = bool(self.freeze_task or self.freeze_ft)
        require(frozen or not self.freeze_eval, "freeze_eval, freeze_task, freeze_ft", "there are no frozen parts")


@dataclass(frozen=True)
class SamOptions(Section):
    """sharpness-aware minimisation (DyTox++)"""

    sam_rho: float = option(0.0, "radius of SAM's perturbation; 0: no SAM", NOT_NEGATIVE)
    sam_final: float | None = option(None, "radius at the last task, linear over tasks; none: constant", NOT_NEGATIVE)
    sam_adaptive: bool = option(False, "scale the perturbation of each weight by its size (ASAM)")
    sam_skip_first: bool = option(False, "no SAM in the first task")
    sam_mode: tuple[str, ...] = option(("tr", "ft"), "SAM in training, in finetuning, or both", choices=PHASES)
    sam_first: str = option("main", "batch of the perturbation", choices=("main", "memory"))
    sam_second: str = option("main", "batch of the gradient at the perturbed point", choices=("main", "memory"))
    sam_div: str = option("", "", refused="not available; its meaning was not published; see sam_mode, head_div_mode")
    look_sam_k: int = option(0, "LookSAM: a full SAM step every k steps; 0: in every step", NOT_NEGATIVE)
    look_sam_alpha: float = option(0.7, "LookSAM: weight of SAM's gradient in the steps between", NOT_NEGATIVE)

    def check(self) -> None:
        require(bool(self.sam_mode) or not self.sam_rho, "sam_mode, sam_rho", "an empty list; set sam_rho: 0 for no SAM")
        for key in ("sam_final", "look_sam_k"):
            require(self.sam_rho > 0 or not getattr(self, key), f"{key}, sam_rho", f"{key} needs sam_rho above 0")
        for key in ("sam_first", "sam_second"):
            require(self.sam_rho > 0 or getattr(self, key) == "main", f"{key}, sam_rho", f"{key} needs sam_rho above 0")


@dataclass(frozen=True)
class RunOptions(Section):
    """run"""

    name: str = option("", "name of the run, for its folders: letters, digits, . _ - +")
    options: tuple[str, ...] = option((), "YAML files of options; later ones win, and the command line wins over all")
    output_basedir: str = option("./checkpoints", "folder of the checkpoints of all runs")
    log_path: str = option("logs", "folder of the logs of all runs")
    log_category: str = option("misc", "subfolder of log_path, such as 10-10")
    device: str = option("auto", "auto (cuda if there is one, else cpu), cpu, cuda or cuda:N")
    seed: int = option(0, "seed of every random draw", NOT_NEGATIVE)
    seeds: tuple[int, ...] = option((), "one run per seed; results as mean and standard deviation", NOT_NEGATIVE)
    sweep: tuple[str, ...] = option(
        (), "key=a,b,c ...: one run for every combination, or of draws from them and from ranges a..b, on held-out images"
    )
    sweep_draws: int | None = option(None, "with sweep: so many points, drawn; none: all of a grid", COUNT)
    sweep_tasks: int = option(3, "with sweep: tasks that are learned", COUNT)
    sweep_prune: bool = option(False, "with sweep: after each task only the better half goes on")
    resume: str = option(
        "", "folder to continue from, exactly, or one checkpoint in it, FILE.pt; its stored options come below --options"
    )
    resume_anyway: bool = option(False, "resume with other options than the stored ones; the epoch under way begins again")
    start_task: int = option(0, "with resume: index of the first task to train", NOT_NEGATIVE)
    branch: str = option(
        "",
        "RUN@TASK: begin from the end of that task (from 0) of another run, which stays as it is; its options come below "
        "--options",
    )
    max_task: int | None = option(None, "stop after so many tasks", COUNT)
    save_every_epoch: int | None = option(None, "epochs between checkpoints; none: see save_every_minutes", COUNT)
    save_every_minutes: float = option(5.0, "minutes between checkpoints", POSITIVE)
    keep_checkpoints: int = option(2, "checkpoints of an unfinished task that are kept", COUNT)
    keep_task_checkpoints: bool = option(True, "keep the checkpoint at the end of every task")
    keep_predictions: bool = option(True, "keep what is answered on the test images at the end of every task, as float16")
    tensorboard: bool = option(True, "write what TensorBoard shows, in the log folder")
    wandb: str = option(
        "", "Weights & Biases: log to this project (or entity/project), too, as WANDB_MODE and wandb login say; empty: do not"
    )
    eval: bool = option(False, "with resume: evaluate only")
    predictions: str = option("", "with eval: write what is answered on every test image to this file, as CSV")
    eval_every: int | None = option(50, "epochs between evaluations; none: after each task only", COUNT)
    process_timeout: float = option(
        1800.0, "seconds without an answer from another process before the job ends", within=TIMEOUT
    )
    dist_eval: bool = option(False, "share the evaluation among the processes")
    retrain_scratch: bool = option(False, "at each task, train a new model on all images of the classes seen")
    debug: bool = option(False, "at most two epochs a phase and two steps an epoch, to try a setting out")

    def check(self) -> None:
        for key in ("name", "log_category"):
            value = getattr(self, key)
            reason = f"{shown(value)} is not a safe name: letters, digits, . _ - + only, no dot or - at the start, 128 at most"
            require(SAFE_NAME.fullmatch(value) is not None or (key == "name" and value == ""), key, reason)
        reason = f"{shown(self.device)} is not auto, cpu, cuda or cuda:N"
        require(DEVICE.fullmatch(self.device) is not None, "device", reason)
        require(len(set(self.seeds)) == len(self.seeds), "seeds", f"a seed stands twice in {list(self.seeds)}")
        reason = f"{shown(self.wandb)} is no project, nor entity/project"
        require(not self.wandb or WANDB_PROJECT.fullmatch(self.wandb) is not None, "wandb", reason)
        last = self.max_task is None or self.start_task < self.max_task + self.eval  # the end of the last can be evaluated
        require(last, "start_task, max_task", f"task {self.start_task} (counted from 0) comes after the last")
        for key in ("start_task", "eval", "resume_anyway"):
            require(bool(self.resume) or not getattr(self, key), f"{key}, resume", f"{key} needs resume: DIR")
        for key in ("sweep_draws", "sweep_prune"):
            require(bool(self.sweep) or not getattr(self, key), f"{key}, sweep", f"{key} needs sweep: key=value,value,...")
        require(not (self.sweep and self.branch), "sweep, branch", "a sweep learns the first tasks, and a branch the last ones")
        folder, task = branched(self.branch)
        reason = f"{shown(self.branch)} is not RUN@TASK: a folder of a run, and a task counted from 0"
        require(not self.branch or (folder != "" and task >= 0), "branch", reason)
        reason = f"a branch from the end of task {task} has nothing to learn in {self.max_task} task(s)"
        require(not self.branch or self.max_task is None or task + 1 < self.max_task, "branch, max_task", reason)
        require(self.eval or not self.predictions, "predictions, eval", "they are written by an evaluation alone")
        reason = "a checkpoint says by itself where to go on; give its folder, or leave start_task out"
        require(not (self.start_task and resumed(self.resume)[1]), "start_task, resume", reason)


@dataclass(frozen=True)
class Options:
    """All options of a run, in sections."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    rehearsal: RehearsalOptions = field(default_factory=RehearsalOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    sam: SamOptions = field(default_factory=SamOptions)
    run: RunOptions = field(default_factory=RunOptions)
    own: Section | None = None  # of the method, if it is named and has options of its own

    @property
    def method(self) -> str:
        """The name of the method, whether it is given or follows from other options."""
        return method_of(flat(self))

    def sections(self) -> list[Section]:
        """Every section, that of the method last."""
        core = [getattr(self, name) for name in SECTIONS]
        return core if self.own is None else [*core, self.own]

    def check(self) -> None:
        """Raise a Conflict if options do not go together, inside a section or across sections."""
        for section in self.sections():
            section.check()
        self._check_method()
        self._check_dytox()
        self._check_sizes()
        self._check_frozen()
        self._check_retraining()
        self._check_memory()
        if self.model.method and (check := getattr(METHODS.find(self.model.method), "check", None)):
            check(self)

    def _check_method(self) -> None:
        """What a method that is named outright needs, and what is another method's."""
        method, values = self.model.method, flat(self)
        if not method:
            return
        for key, owner in SWITCHES.items():
            require(not values[key] or method == owner, f"{key}, method", f"{key} is of the method {owner}, not {method}")
        if method == "dytox":
            require(self.model.dytox, "method, dytox", "the method dytox needs dytox: true")
        reason = f"the method {method} needs dytox: false"
        require(method not in WITHOUT_DYTOX or not self.model.dytox, "method, dytox", reason)

    def _check_dytox(self) -> None:
        """What needs task tokens, and what needs one linear classifier."""
        if self.model.dytox:
            reason = "its task classifiers are not the one linear layer that it aligns; it needs dytox: false"
            require(not self.loss.weight_align, "weight_align, dytox", reason)
            require(not self.rehearsal.nme, "nme, dytox", "dytox classifies by its classifiers; nme needs dytox: false")
        else:
            require(not self.loss.head_div, "head_div, dytox", "the divergence head reads a task token; it needs dytox")
            for key in ("freeze_task", "freeze_ft"):
                tokens = {"tab", "task_tokens", "old_task_tokens", "head_div"}.intersection(getattr(self.finetune, key))
                require(not tokens, f"{key}, dytox", f"without dytox there is no {some(sorted(tokens))}")
        reason = "nme leaves the classifier aside, weight_align changes nothing else; set one of them"
        require(not (self.loss.weight_align and self.rehearsal.nme), "weight_align, nme", reason)

    def _check_sizes(self) -> None:
        """Losses and augmentation that must fit the blocks, patches and pixels of the encoder."""
        model, loss = self.model, self.loss
        if model.model in PATCH_ENCODERS:
            grid, sabs = model.input_size // model.patch_size, model.local_up_to_layer
            require(sabs > 0, "local_up_to_layer, model", f"{model.model} needs at least one block")
            require(sabs > 1 or not loss.pod, "pod, local_up_to_layer", "pod compares all blocks but the last; there is one")
            reason = f"a map of {grid} x {grid} patches cannot be cut so often"
            require(max(loss.pod_scales) <= grid or not loss.pod, "pod_scales, input_size, patch_size", reason)
        if box := self.augment.cutmix_minmax:
            smallest, largest = (int(model.input_size * share) for share in box)
            reason = f"no box is from {smallest} to below {largest} pixels wide; timm needs one"
            require(smallest < largest, "cutmix_minmax, input_size", reason)

    def _check_frozen(self) -> None:
        """Something must be left to train."""
        for key in ("freeze_task", "freeze_ft"):
            frozen = set(getattr(self.finetune, key))
            whole = {"sab", "tab", "task_tokens", "heads"} if self.model.dytox else {"all"}
            require(not ("all" in frozen or whole <= frozen), key, f"nothing would be left to train: {some(sorted(frozen))}")

    def _check_retraining(self) -> None:
        """A model that is made anew at each task has no earlier one and needs no memory."""
        for key in ("weight_align", "auto_kd", "kd", "pod"):
            reason = f"{key} needs an earlier model; at each task this one is made anew"
            require(not (self.run.retrain_scratch and getattr(self.loss, key)), f"{key}, retrain_scratch", reason)
        reason = "a model made anew at each task sees all images already; set memory_size: 0"
        require(not (self.rehearsal.memory_size and self.run.retrain_scratch), "retrain_scratch, memory_size", reason)

    def _check_memory(self) -> None:
        """What needs a memory."""
        memory = self.rehearsal.memory_size > 0
        reason = "finetuning is on the memory; memory_size is 0"
        require(memory or not self.finetune.finetuning, "finetuning, memory_size", reason)
        for key in ("sam_first", "sam_second"):
            reason = f"{key}: memory needs a memory; memory_size is 0"
            require(memory or getattr(self.sam, key) == "main", f"{key}, memory_size", reason)


SECTIONS: dict[str, type[Section]] = {f.name: f.type for f in fields(Options) if f.name != "own"}
FIELDS: dict[str, dataclasses.Field] = {f.name: f for section in SECTIONS.values() for f in fields(section)}
FOLLOWS: dict[str, tuple[str, Callable[[Any], Any]]] = {  # a key -> another that says the same, and how
    "distributed_memory": ("global_memory", lambda value: not value),
    "global_memory": ("distributed_memory", lambda value: not value),
    "no_amp": ("amp", lambda value: "off" if value else "auto"),
    "amp": ("no_amp", lambda value: value == "off"),
}

PER_CALL = frozenset(
    {"options", "resume", "resume_anyway", "start_task", "eval", "predictions"}
)  # of one call, not of the experiment
MAY_DIFFER = PER_CALL | {
    *("eval_batch_size", "num_workers", "pin_mem", "data_path", "device", "replicas_at_once", "max_task"),
    *("name", "output_basedir", "log_path", "log_category", "branch", "eval_every", "dist_eval", "process_timeout"),
    *("sweep", "sweep_draws", "sweep_tasks", "sweep_prune"),
    *("save_every_epoch", "save_every_minutes", "keep_checkpoints", "keep_task_checkpoints", "keep_predictions"),
    *("tensorboard", "wandb"),
}  # what a resumed run may change without becoming another experiment

PATHS = frozenset({"options", "data_path", "output_basedir", "log_path", "resume", "branch", "predictions"})
IGNORED = "local_rank"  # on the command line: old launchers pass it, while this one reads the environment
STORED = "options.yaml"  # of a folder to resume from

SWITCHES = {"weight_align": "wa", "nme": "icarl", "retrain_scratch": "joint"}  # options that make up one method
WITHOUT_DYTOX = frozenset({"finetuning", "rehearsal", "icarl", "wa", "podnet", "bic", "der"})


KEPT_BY_A_BRANCH = {  # key -> why
    **{
        f.name: "the model is the one that was trained"
        for f in fields(ModelOptions)
        if f.name not in ("method", "drop", "drop_path")
    },
    **dict.fromkeys(("data_set", "validation", "skip_corrupt"), "it learns the rest of the same images"),
    **dict.fromkeys(("initial_increment", "increment", "class_order"), "it learns the rest of the same tasks"),
    **dict.fromkeys(("mean", "std"), "the model was trained on images normalised so"),
    "seed": "runs of other seeds would share the tasks before, and seem to differ by less than they do",
}


def flat(options: Options) -> dict[str, Any]:
    """Every key with its value, without the sections; lists are tuples."""
    return {f.name: getattr(section, f.name) for section in options.sections() for f in fields(section)}


def method_of(values: Mapping[str, Any]) -> str:
    """The name of the method that flat options mean; a key that is missing is at its default."""
    told = {key: values.get(key, f.default) for key, f in FIELDS.items()}
    if told["method"]:
        return told["method"]
    signs = {
        "joint": told["retrain_scratch"],
        "dytox": told["dytox"],
        "wa": told["weight_align"],
        "icarl": told["nme"],
        "podnet": told["pod"],
        "rehearsal": told["memory_size"] > 0,
    }
    return next((method for method, sign in signs.items() if sign), "finetuning")


def outside(options: Options) -> list[str]:
    """What is in use and not of this package, such as "loss spread" or "method lwf"; every metric from outside is in use."""
    used = {
        METHODS: [options.method],
        ENCODERS: [options.model.model],
        RULES: [options.rehearsal.rehearsal.rpartition("_")[0]],
        LOSSES: options.loss.extra_losses,
        DATA_SETS: [options.data.data_set.lower()],
        METRICS: METRICS.outside(),
    }
    return sorted(register.told(name) for register, names in used.items() for name in names if name in register.outside())


def check_installed(options: Options) -> None:
    """Raise OptionsError if a run of these options needs a package that is not there."""
    if not options.run.wandb or options.run.eval:
        return
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # a folder of that name, as wandb itself leaves
        raise OptionsError("wandb: not installed; pip install wandb (or --wandb none)")


def branched(branch: str) -> tuple[str, int]:
    """The folder and the task (from 0) of RUN@TASK; -1 for no task."""
    folder, _, task = branch.rpartition("@")
    return folder, int(task) if re.fullmatch("[0-9]{1,6}", task) else -1


def branch_inside(branch: str, label: str) -> str:
    """Of the branch of a series that of one of its runs; none stays none."""
    folder, task = branched(branch)
    return f"{folder}/{label}@{task}" if branch else ""


def resumed(path: str) -> tuple[str, str]:
    """The folder and the file that `resume` names; a folder alone has no file, and "" is none of either."""
    return (path, "") if not path or os.path.isdir(path) else os.path.split(os.path.realpath(path))
