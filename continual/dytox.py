"""DyTox: one encoder, one token decoder, one token and one classifier per task (arXiv 2111.11326, section 3, figure 2).

Letters:  B batch   N patches   D embed_dim   H heads   T tasks seen   C^t classes of task t   C_all classes seen
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continual.convit import TAB, ConViT, init_weights


class Outputs(NamedTuple):
    """What the model says of a batch."""

    logits: Tensor  # (B, C_all)
    div: Tensor | None  # (B, |C^t| + 1), column 0 = "any old class"; None without a divergence head
    tokens: Tensor  # (B, T, D), the task embeddings e_1 .. e_T

    def scores(self) -> Tensor:
        """What classifies an image: the logits. (B, C_all)"""
        return self.logits


class Classifier(nn.Module):
    """LayerNorm and Linear, torch's default weights, in the precision of its weights even under mixed precision.

    (B, nb_inputs) -> (B, nb_classes)
    """

    def __init__(self, nb_inputs: int, nb_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(nb_inputs)
        self.head = nn.Linear(nb_inputs, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.norm(x.to(self.head.weight.dtype)))


def each_its_own(heads: Sequence[Classifier], tokens: Tensor) -> Tensor:
    """Every classifier on its own token, all as one batched product: (B, T, D) -> (B, T |C^t|); all of one size."""
    if len(heads) == 1:
        return heads[0](tokens[:, 0])
    with torch.autocast(tokens.device.type, enabled=False):
        x = tokens.to(heads[0].head.weight.dtype)
        scale, shift = (torch.stack([getattr(head.norm, name) for head in heads]) for name in ("weight", "bias"))  # (T, D)
        x = F.layer_norm(x, x.shape[-1:], eps=heads[0].norm.eps) * scale + shift
        weight, bias = (torch.stack([getattr(head.head, name) for head in heads]) for name in ("weight", "bias"))
        logits = torch.baddbmm(bias[:, None], x.transpose(0, 1), weight.transpose(1, 2))  # (T, B, |C^t|)
    return logits.transpose(0, 1).flatten(1)


class DyTox(nn.Module):
    """The model of the paper. It starts without a task: call `add_task` before the first forward.

    encoder: images -> list of (B, N, D), with an attribute `embed_dim`; see continual/convit.py.
    drop_path_rates: one per TAB; its length is the number of TABs.
    ind_clf: which embeddings a task's classifier reads, and which classes it predicts: "1-1" own and own (the paper),
        "1-n" own and all seen, "n-1" all seen and own, "n-n" all and all, "" one classifier for all, made anew at each task.
    head_div: grow a divergence head with every task from the second on.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_heads: int,
        drop_path_rates: list[float],
        norm: str = "layer",
        ind_clf: str = "1-1",
        head_div: bool = False,
    ):
        super().__init__()
        self.embed_dim = encoder.embed_dim
        self.ind_clf = ind_clf
        self.classes: list[int] = []  # |C^t| of each task
        self.encoder = encoder
        self.tabs = nn.ModuleList(TAB(self.embed_dim, num_heads, drop_path=r, norm=norm) for r in drop_path_rates)
        self.tabs.apply(init_weights)
        self.task_tokens = nn.ParameterList()
        self.heads = nn.ModuleList()
        self.head_div: Classifier | None = None
        self._with_head_div = head_div

    def add_task(self, nb_new: int) -> None:
        """Grow by one task of `nb_new` classes: a token, a classifier and, from the second task on, a fresh divergence head."""
        device = next(self.parameters()).device
        dim, nb_tasks = self.embed_dim, len(self.classes) + 1
        self.classes.append(nb_new)

        token = torch.empty(1, 1, dim)
        self.task_tokens.append(nn.Parameter(nn.init.trunc_normal_(token, std=0.02).to(device)))

        reads_all = self.ind_clf in ("n-1", "n-n", "")
        predicts_all = self.ind_clf in ("1-n", "n-n", "")
        if self.ind_clf == "":
            self.heads = nn.ModuleList()
        nb_classes = sum(self.classes) if predicts_all else nb_new
        self.heads.append(Classifier(dim * nb_tasks if reads_all else dim, nb_classes).to(device))

        if self._with_head_div and nb_tasks > 1:
            self.head_div = Classifier(dim, nb_new + 1).to(device)

    def tokens(self) -> Tensor:
        """theta_1 .. theta_T. (1, T, D)"""
        return torch.cat([token[0] for token in self.task_tokens])[None]

    @torch.no_grad()
    def token_distances(self) -> list[float]:
        """Euclidean distances between the task tokens theta_t, one for every pair; empty with one task."""
        return torch.pdist(self.tokens()[0].double()).tolist()

    def forward(self, images: Tensor, *, maps: bool = False) -> Outputs | tuple[Outputs, list[Tensor]]:
        """images (B, 3, S, S) -> Outputs; with `maps`, also the outputs of all SABs but the last, (B, N, D) each, for POD."""
        features = self.encoder(images)
        tokens = self.tokens()
        for tab in self.tabs:
            tokens = tab(tokens, features[-1])  # (B, T, D)
        div = self.head_div(tokens[:, -1]) if self.head_div is not None else None
        outputs = Outputs(self.classify(tokens), div, tokens)
        return (outputs, features[:-1]) if maps else outputs

    def classify(self, tokens: Tensor) -> Tensor:
        """Task embeddings (B, T, D) -> logits (B, C_all), each class in its order of arrival."""
        if self.ind_clf == "":
            return self.heads[0](tokens.flatten(1))
        reads_all, predicts_all = self.ind_clf[0] == "n", self.ind_clf[2] == "n"
        if not reads_all and not predicts_all:
            return torch.cat([each_its_own(heads, part) for heads, part in self._of_one_size(tokens)], dim=1)
        logits = [head(tokens[:, : t + 1].flatten(1) if reads_all else tokens[:, t]) for t, head in enumerate(self.heads)]
        if not predicts_all:
            return torch.cat(logits, dim=1)
        # Heads t, t + 1, .. T predict the classes of task t: the mean of what they say.
        per_task = [each.split(self.classes[: t + 1], dim=1) for t, each in enumerate(logits)]
        nb_tasks = len(per_task)
        return torch.cat([torch.stack([per_task[i][t] for i in range(t, nb_tasks)]).mean(0) for t in range(nb_tasks)], dim=1)

    def _of_one_size(self, tokens: Tensor) -> Iterator[tuple[list[Classifier], Tensor]]:
        """The classifiers, those of as many classes one behind the other together, each with its token: (B, T', D)."""
        first = 0
        for _, group in groupby(self.heads, key=lambda head: head.head.out_features):
            heads = list(group)
            yield heads, tokens[:, first : first + len(heads)]
            first += len(heads)

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """Where each task looks: attention of the last TAB, column 0 the token itself. (B, 3, S, S) -> (B, T, H, 1 + N)"""
        patches = self.encoder(images)[-1]
        tokens = self.tokens()
        for tab in self.tabs[:-1]:
            tokens = tab(tokens, patches)
        last = self.tabs[-1]
        return last.attn.attention(last.norm1(tokens), last.norm1(patches)).expand(len(images), -1, -1, -1)

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """What the names in `freeze_task` and `freeze_ft` mean."""
        heads = list(self.heads)
        return {
            "all": [self],
            "sab": [self.encoder],
            "tab": [self.tabs],
            "task_tokens": list(self.task_tokens),
            "old_task_tokens": list(self.task_tokens)[:-1],
            "heads": heads,
            "old_heads": heads[:-1],
            "head_div": [self.head_div] if self.head_div is not None else [],
        }

    def reset_classifiers(self) -> None:
        """Give all classifiers fresh weights."""
        for head in self.heads:
            head.norm.reset_parameters()
            head.head.reset_parameters()


def freeze(model: nn.Module, names: tuple[str, ...], *, eval_mode: bool = False) -> None:
    """Unfreeze everything, then freeze the named parts. With `eval_mode`, frozen modules also leave train mode.

    Without it DropPath stays active in frozen parts, as in the released code; their batch norms always keep their statistics.
    Raises KeyError on an unknown name.
    """
    model.requires_grad_(True)
    model.train()
    parts = model.parts()
    for part in (part for name in names for part in parts[name]):
        part.requires_grad_(False)
        for module in part.modules() if isinstance(part, nn.Module) else ():
            if eval_mode or isinstance(module, nn.modules.batchnorm._NormBase):
                module.training = False


# Names of released checkpoints, and of this package.
_RENAMED = [(re.compile(r"^(patch_embed|pos_embed|sabs)"), r"encoder.\1"), (re.compile(r"^head\."), "heads.")]


def rename_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter names of a released checkpoint -> names of this package. Buffers of relative positions are left out."""
    renamed = {}
    for name, value in state_dict.items():
        name = name.removeprefix("module.")
        if name.endswith("rel_indices"):
            continue
        if re.match(r"^head\.(norm|head)\.", name):  # the single classifier
            name = name.replace("head.", "head.0.", 1)
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def to_released(model: DyTox) -> dict[str, Tensor]:
    """The weights under their names in a released checkpoint: what `from_released` builds the model from again.

    Raises ValueError if the released code has no such model.
    """
    if not isinstance(model, DyTox) or not hasattr(model.encoder, "sabs") or not hasattr(model.encoder.sabs[0].attn, "qk"):
        raise ValueError("the released code has DyTox on ConViT alone")
    of_heads = ("heads.0.", "head.") if model.ind_clf == "" else ("heads.", "head.")
    names = {name: name.removeprefix("encoder.") for name in model.state_dict()}
    renamed = {name: new.replace(*of_heads, 1) if new.startswith("heads.") else new for name, new in names.items()}
    return {renamed[name]: value.detach().clone() for name, value in model.state_dict().items()}


def from_released(
    state_dict: Mapping[str, Tensor], *, nb_classes: list[int] | None = None, ind_clf: str | None = None
) -> DyTox:
    """Build a model from the weights of a released checkpoint and fill it. Sizes, heads and tasks are read off the shapes.

    nb_classes: classes of each task, and ind_clf: the classifier kind; inferred where the shapes tell. They cannot tell
        the tasks of a single classifier (except one or two tasks with a divergence head), nor, without a divergence
        head, "-1" from "-n" classifiers when the later tasks are larger than the earlier ones ("-n" is then assumed).
    Raises ValueError naming what cannot be inferred or does not fit.
    """
    state = rename_released(state_dict)
    sizes, encoder = _read_off(state)
    ind_clf = _classifier_kind(sizes) if ind_clf is None else ind_clf
    nb_classes = _classes_of_tasks(sizes, ind_clf) if nb_classes is None else nb_classes
    if min(nb_classes, default=0) < 1:
        raise ValueError(f"weights do not fit a {ind_clf or 'single'} classifier: tasks of {nb_classes} classes")
    model = DyTox(
        ConViT(**encoder, drop_path_rates=[0.0] * sizes.nb_sabs),
        num_heads=encoder["num_heads"],
        drop_path_rates=[0.0] * sizes.nb_tabs,
        norm=encoder["norm"],
        ind_clf=ind_clf,
        head_div=sizes.newest is not None,
    )
    for nb_new in nb_classes:
        model.add_task(nb_new)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit a {ind_clf or 'single'} classifier of {nb_classes}: {error}") from None
    return model


class _Sizes(NamedTuple):
    """What the shapes of the weights tell."""

    dim: int
    nb_sabs: int
    nb_tabs: int
    nb_tasks: int
    heads: list[tuple[int, int]]  # (classes, inputs) of each classifier
    newest: int | None  # classes of the newest task, by the divergence head

    @property
    def outputs(self) -> list[int]:
        return [rows for rows, _ in self.heads]


def _read_off(state: Mapping[str, Tensor]) -> tuple[_Sizes, dict[str, Any]]:
    """Sizes, and the arguments of the encoder. Raises ValueError if the weights are of another kind of model."""

    def count(pattern: str) -> int:
        return len({m.group(1) for name in state if (m := re.match(pattern, name))})

    try:
        dim, _, patch_size, _ = state["encoder.patch_embed.proj.weight"].shape
        grid = int(state["encoder.pos_embed"].shape[1] ** 0.5)
        num_heads = state["encoder.sabs.0.attn.gating_param"].shape[0]
        heads = [tuple(state[f"heads.{t}.head.weight"].shape) for t in range(count(r"heads\.(\d+)\."))]
    except KeyError as missing:
        raise ValueError(f"not the weights of a DyTox model: {missing} is missing") from None
    nb_tasks = count(r"task_tokens\.(\d+)")
    if not nb_tasks or not heads:
        raise ValueError(f"not the weights of a DyTox model: {nb_tasks} task tokens and {len(heads)} classifiers")
    newest = state["head_div.head.weight"].shape[0] - 1 if "head_div.head.weight" in state else None
    sizes = _Sizes(dim, count(r"encoder\.sabs\.(\d+)\."), count(r"tabs\.(\d+)\."), nb_tasks, heads, newest)
    encoder = {"input_size": grid * patch_size, "patch_size": patch_size, "embed_dim": dim, "num_heads": num_heads}
    return sizes, {**encoder, "norm": "scale" if "encoder.sabs.0.norm1.g" in state else "layer"}


def _classifier_kind(sizes: _Sizes) -> str:
    """`ind_clf` as the shapes tell it."""
    if len(sizes.heads) < sizes.nb_tasks:
        return ""
    several = sizes.nb_tasks > 1
    reads_all = several and sizes.heads[-1][1] == sizes.dim * sizes.nb_tasks
    growing = several and all(a < b for a, b in pairwise(sizes.outputs))
    predicts_all = growing and sizes.newest != sizes.outputs[-1]
    return f"{'n' if reads_all else '1'}-{'n' if predicts_all else '1'}"


def _classes_of_tasks(sizes: _Sizes, ind_clf: str) -> list[int]:
    """The classes of each task as the shapes tell them. Raises ValueError where they do not."""
    outputs = sizes.outputs
    if ind_clf.endswith("-1") or (ind_clf == "" and sizes.nb_tasks == 1):
        return outputs
    if ind_clf.endswith("-n"):
        return [now - before for before, now in zip([0, *outputs], outputs, strict=False)]
    if sizes.nb_tasks == 2 and sizes.newest is not None:
        return [outputs[0] - sizes.newest, sizes.newest]
    raise ValueError(f"one classifier for {sizes.nb_tasks} tasks: nb_classes, the classes of each task, must be given")
