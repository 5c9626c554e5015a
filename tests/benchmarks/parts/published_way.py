"""The published way of computing, written plainly, with the weights of the project's model: what its speed is compared with.

As in the paper's equations and as one would write them down: attention by its full matrices, each task token passing through
the decoder on its own, keys and values of the patches anew for each, one classifier after another, torch's ordinary optimizer.
"""

import math
from collections.abc import Callable

import torch
from timm.layers import drop_path
from torch import Tensor, nn
from torch.nn import functional as F

from continual.convit import GPSA, SAB, TAB, ClassAttention
from continual.dytox import DyTox, Outputs
from continual.losses import Objective
from continual.training.loading import Loading
from continual.training.optim import trained
from parts.models import Steps


def heads_of(x: Tensor, nb: int) -> Tensor:
    """(B, N, D) -> (B, H, N, d)"""
    b, n, d = x.shape
    return x.reshape(b, n, nb, d // nb).permute(0, 2, 1, 3)


def joined(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, D)"""
    b, h, n, d = x.shape
    return x.transpose(1, 2).reshape(b, n, h * d)


def gated_attention(attn: GPSA, x: Tensor) -> Tensor:
    """ConViT's equation 5, by one matrix of attention for every image and head."""
    q, k = attn.qk(x).chunk(2, dim=-1)
    q, k, v = (heads_of(part, attn.nb_heads) for part in (q, k, attn.v(x)))
    patch = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    position = attn.pos_proj(attn.positions.expand(len(x), -1, -1, -1)).permute(0, 3, 1, 2).softmax(dim=-1)
    gate = torch.sigmoid(attn.gating_param).view(1, -1, 1, 1)
    mixed = (1 - gate) * patch + gate * position
    mixed = mixed / mixed.sum(dim=-1, keepdim=True)
    return attn.proj(joined(mixed.to(v.dtype) @ v))


def class_attention(attn: ClassAttention, x: Tensor) -> Tensor:
    """The first row of x (B, 1 + N, D) reads them all: (B, 1, D)"""
    q, k, v = (heads_of(part, attn.nb_heads) for part in (attn.q(x[:, :1]), attn.k(x), attn.v(x)))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return attn.proj(joined(weights.to(v.dtype) @ v))


def block(sab: SAB, x: Tensor) -> Tensor:
    rate, training = sab.drop_path.drop_prob, sab.training
    x = x + drop_path(gated_attention(sab.attn, sab.norm1(x)), rate, training)
    return x + drop_path(sab.mlp(sab.norm2(x)), rate, training)


def decoded(tab: TAB, token: Tensor, patches: Tensor) -> Tensor:
    """One task's token (B, 1, D) through the decoder, with patches (B, N, D)."""
    rate, training = tab.drop_path.drop_prob, tab.training
    token = token + drop_path(class_attention(tab.attn, tab.norm1(torch.cat([token, patches], dim=1))), rate, training)
    return token + drop_path(tab.mlp(tab.norm2(token)), rate, training)


class PublishedWay(nn.Module):
    """Images (B, 3, S, S) -> Outputs, with the weights of `model`, each task apart."""

    def __init__(self, model: DyTox):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Outputs:
        model = self.model
        x = model.encoder.patch_embed(images) + model.encoder.pos_embed
        for sab in model.encoder.sabs:
            x = block(sab, x)
        tokens, logits = [], []
        for theta, head in zip(model.task_tokens, model.heads, strict=True):
            token = theta.expand(len(images), -1, -1)
            for tab in model.tabs:
                token = decoded(tab, token, x)
            tokens.append(token[:, 0])
            logits.append(head(token[:, 0]))
        div = model.head_div(tokens[-1]) if model.head_div is not None else None
        return Outputs(torch.cat(logits, dim=1), div, torch.stack(tokens, dim=1))


def published_steps(steps: Steps, loading: Loading) -> Callable[[], None]:
    """Training steps of a model of its own, as large as that of `steps`, on the same batches with the same losses."""
    trainer, teacher = steps.trainer, steps.teacher
    model = PublishedWay(steps.model)
    objective = Objective(model, trainer.phase.losses, teacher=PublishedWay(teacher) if teacher is not None else None)
    optimizer = torch.optim.AdamW(trained(steps.model), lr=1e-6, weight_decay=1e-6)

    def batches():
        while True:
            yield from trainer.batches

    drawn = batches()

    def step() -> None:
        (batch,) = next(drawn).main
        with loading.precision():
            losses = objective(batch.images, batch.targets)
        if not math.isfinite(losses["total"].item()):
            raise FloatingPointError("the loss is not finite")
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()

    return step


def cross_check(model: DyTox, images: Tensor) -> float:
    """The largest difference between what both ways answer in eval mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        ours, theirs = model(images), PublishedWay(model)(images)
    model.train(training)
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    return max(float(F.l1_loss(a, b, reduction="none").max()) for a, b in pairs)
