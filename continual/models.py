"""From options to a model: which encoder, and DyTox or one growing classifier on it."""

import torch
from torch import nn

from continual.convit import ConViT
from continual.dytox import DyTox
from continual.options import Model, Options


def drop_path_rates(options: Model) -> list[float]:
    """Rates of all blocks, rising linearly from 0 at the first SAB to `drop_path` at the last TAB."""
    return torch.linspace(0, options.drop_path, options.depth).tolist()


def build_encoder(options: Model) -> nn.Module:
    """Images (B, 3, S, S) -> the outputs of its blocks, (B, N, D) each; see continual/convit.py."""
    return ConViT(
        input_size=options.input_size,
        patch_size=options.patch_size,
        embed_dim=options.embed_dim,
        num_heads=options.num_heads,
        drop_path_rates=drop_path_rates(options)[: options.local_up_to_layer],
        drop=options.drop,
        norm=options.norm,
        locality_strength=options.locality_strength,
    )


def build(options: Options) -> nn.Module:
    """A model without tasks yet."""
    model = options.model
    return DyTox(
        build_encoder(model),
        num_heads=model.num_heads,
        drop_path_rates=drop_path_rates(model)[model.local_up_to_layer :],
        norm=model.norm,
        ind_clf=model.ind_clf,
        head_div=options.loss.head_div > 0,
    )


def nb_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
