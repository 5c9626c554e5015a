"""From options to a model."""

import pytest
import torch
from timm.layers import DropPath

from continual import models
from continual.baseline import Baseline
from continual.convit import ConViT, ScaleNorm
from continual.dytox import DyTox
from continual.encoders import TimmEncoder
from continual.options import parse

SMALL = ("--input-size", "16", "--patch-size", "4", "--embed-dim", "24", "--num-heads", "4", "--depth", "5")
DYTOX = ("--dytox", "--class-attention", "--ind-clf", "1-1")


def build(*argv: str) -> torch.nn.Module:
    return models.build(parse([*SMALL, *argv]))


def rates(model: torch.nn.Module) -> list[float]:
    """Of every block, in order: the encoder's, then the decoder's."""
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]


def test_dytox():
    model = build(*DYTOX, "--local-up-to-layer", "3", "--drop-path", "0.4", "--head-div", "0.1")
    assert isinstance(model, DyTox) and isinstance(model.encoder, ConViT)
    assert (len(model.encoder.sabs), len(model.tabs)) == (3, 2) and model.classes == []
    assert rates(model) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    for nb_new in (2, 2):
        model.add_task(nb_new)
    assert model.head_div is not None
    model = build(*DYTOX, "--local-up-to-layer", "3")
    for nb_new in (2, 2):
        model.add_task(nb_new)
    assert model.head_div is None


@pytest.mark.parametrize("kind", ["1-1", "1-n", "n-1", "n-n", ""])
def test_classifiers(kind):
    assert build(*DYTOX[:-1], kind, "--local-up-to-layer", "3").ind_clf == kind


def test_scale_norm_everywhere_in_the_blocks():
    model = build(*DYTOX, "--local-up-to-layer", "3", "--norm", "scale")
    blocks = [*model.encoder.sabs, *model.tabs]
    assert all(isinstance(norm, ScaleNorm) for block in blocks for norm in (block.norm1, block.norm2))


@pytest.mark.parametrize(
    ("argv", "pooling", "nb_blocks"),
    [
        (("--local-up-to-layer", "3", "--class-attention"), "attention", 2),
        (("--local-up-to-layer", "3"), "token", 2),
        (("--local-up-to-layer", "5"), "mean", 0),
        (("--local-up-to-layer", "3", "--model", "vit"), "token", 2),
        (("--local-up-to-layer", "3", "--model", "timm:test_vit"), "mean", 0),
        (("--local-up-to-layer", "3", "--model", "timm:test_vit", "--class-attention"), "attention", 2),
    ],
)
def test_a_growing_classifier(argv, pooling, nb_blocks):
    model = build(*argv)
    assert isinstance(model, Baseline) and model.pooling == pooling and len(model.blocks) == nb_blocks
    assert isinstance(model.encoder, TimmEncoder if "timm:test_vit" in argv else ConViT)
    model.add_task(2)
    assert model(torch.randn(2, 3, 16, 16)).logits.shape == (2, 2)


def test_parameters_are_counted():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1, bias=False))
    model[0].requires_grad_(False)
    assert models.nb_parameters(model) == 3 * 4 + 4 + 4
