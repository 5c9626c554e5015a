"""Encoders: the paper's, any model of timm in its place, and those that a user's script registers.

An encoder has an attribute `embed_dim` (D) and turns images (B, 3, S, S) into a list of feature maps (B, N, D), one per block;
the last is what the task tokens or the classifier read. The maps before it, which POD compares, may have other N and D.
"""

from collections.abc import Callable, Sequence

from torch import nn

from continual.convit import ConViT
from continual.encoders.timm_encoder import TimmEncoder
from continual.errors import OptionsError
from continual.options import ModelOptions
from continual.registry import ENCODERS

Builder = Callable[[ModelOptions, Sequence[float]], nn.Module]


def register(name: str, build: Builder) -> None:
    """Make `--model name` build an encoder of one's own.

    build(options, drop_path_rates): options are those of the model section (input_size, embed_dim, depth, ...); the rates are
    one per block, so many as local_up_to_layer says. Raises OptionsError on a bad or taken name.
    """
    ENCODERS.add(name, build)


def build_encoder(options: ModelOptions, drop_path_rates: Sequence[float]) -> nn.Module:
    """The encoder that `model` names. drop_path_rates: of its blocks (convit, vit).

    Raises OptionsError if there is none of that name, or it does not say its `embed_dim`.
    """
    if options.model.startswith("timm:"):
        return TimmEncoder(
            options.model.removeprefix("timm:"),
            input_size=options.input_size,
            embed_dim=options.embed_dim,
            drop=options.drop,
            drop_path=options.drop_path,
            pretrained=options.pretrained,
        )
    encoder = ENCODERS.find(options.model)(options, drop_path_rates)
    if not isinstance(getattr(encoder, "embed_dim", None), int):
        raise OptionsError(f"model: the encoder {options.model} has no attribute embed_dim, the size of its tokens")
    return encoder


def convit(options: ModelOptions, drop_path_rates: Sequence[float]) -> ConViT:
    """The paper's: gated positional self-attention (ConViT, d'Ascoli et al., ICML 2021)."""
    return _blocks(options, drop_path_rates, gated=True)


def vit(options: ModelOptions, drop_path_rates: Sequence[float]) -> ConViT:
    """The same blocks with plain self-attention (ViT, Dosovitskiy et al., ICLR 2021)."""
    return _blocks(options, drop_path_rates, gated=False)


def _blocks(options: ModelOptions, drop_path_rates: Sequence[float], *, gated: bool) -> ConViT:
    return ConViT(
        input_size=options.input_size,
        patch_size=options.patch_size,
        embed_dim=options.embed_dim,
        num_heads=options.num_heads,
        drop_path_rates=list(drop_path_rates),
        drop=options.drop,
        norm=options.norm,
        locality_strength=options.locality_strength,
        gated=gated,
    )
