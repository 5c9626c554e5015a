"""From options to a model: which encoder, and DyTox or a growing classifier on it."""

from dataclasses import replace

import torch
from torch import nn

from continual.baseline import Baseline
from continual.dytox import DyTox
from continual.encoders import TimmEncoder, build_encoder
from continual.errors import OptionsError
from continual.options import Options


def build(options: Options, *, weights: bool = True) -> nn.Module:
    """A model without tasks yet. DropPath's rates rise linearly over all `depth` blocks, from 0 to `drop_path`.

    weights: start from published ones, if the options ask for them; False if others will be loaded.
    """
    model = options.model if weights else replace(options.model, pretrained=False)
    rates = torch.linspace(0, model.drop_path, model.depth).tolist()
    encoder = build_encoder(model, rates[: model.local_up_to_layer])
    if options.loss.pod and isinstance(encoder, TimmEncoder) and max(options.loss.pod_scales) > min(encoder.sides):
        sides = ", ".join(map(str, encoder.sides))
        raise OptionsError(
            f"pod_scales: the maps of {model.model} have sides {sides}: too small for {max(options.loss.pod_scales)}"
        )
    rest = rates[model.local_up_to_layer :]
    if model.dytox:
        return DyTox(
            encoder,
            num_heads=model.num_heads,
            drop_path_rates=rest,
            norm=model.norm,
            ind_clf=model.ind_clf,
            head_div=options.loss.head_div > 0,
        )
    if model.model.startswith("timm:") and not model.class_attention:
        rest = []  # the network is whole as it is
    pooling = "mean" if not rest else "attention" if model.class_attention else "token"
    return Baseline(encoder, num_heads=model.num_heads, drop_path_rates=rest, pooling=pooling, norm=model.norm)


def nb_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
