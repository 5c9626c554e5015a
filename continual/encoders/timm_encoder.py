"""Any model of timm as an encoder: the feature maps of its stages, the last one projected to tokens."""

import difflib

import torch
from torch import Tensor, nn

from continual.errors import DataError, OptionsError


class TimmEncoder(nn.Module):
    """The feature maps of a timm model; each cell of the last is projected to a token.

    name: of a model with `features_only`: CNNs (ResNet, ConvNeXt, ...) and transformers (ViT, Swin, ...). A network made for
    224 pixels ends in a small map: at 32 pixels a ResNet's last has a single cell, so choose a larger `input_size`.
    Raises OptionsError if timm has no such model or it does not fit, DataError if its weights cannot be fetched.
    """

    def __init__(self, name: str, *, input_size: int, embed_dim: int, drop: float = 0.0, drop_path: float, pretrained: bool):
        from timm.layers import Format

        super().__init__()
        self.embed_dim = embed_dim
        self.body = _features_of(name, input_size=input_size, drop_path=drop_path, pretrained=pretrained)
        self.channels_last = getattr(self.body, "output_fmt", None) == Format.NHWC
        self.project = nn.Linear(self.body.feature_info.channels()[-1], embed_dim)
        self.drop = nn.Dropout(drop)
        self.sides = self._sides(input_size)  # of the feature maps

    @torch.no_grad()
    def _sides(self, input_size: int) -> list[int]:
        self.body.eval()
        try:
            maps = self(torch.zeros(1, 3, input_size, input_size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise OptionsError(f"model, input_size: it does not take {input_size} px images: {_first_line(error)}") from None
        self.body.train()
        return [int(each.shape[1] ** 0.5) for each in maps[:-1]]

    def forward(self, images: Tensor) -> list[Tensor]:
        try:
            maps = self.body(images)
        except ValueError as error:
            if not self.training:
                raise
            reason = f"{len(images)} image(s) are too few for the network's batch norm ({_first_line(error)})"
            raise OptionsError(f"batch_size: {reason}; another batch_size or a larger input_size helps") from None
        # (B, C, h, w), or (B, h, w, C) from some -> (B, N, C)
        maps = [each.flatten(1, 2) if self.channels_last else each.flatten(2).transpose(1, 2) for each in maps]
        return [*maps, self.drop(self.project(maps[-1]))]


def _features_of(name: str, *, input_size: int, drop_path: float, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise OptionsError(f"model: timm has no {name!r}" + (f"; it has {', '.join(near)}, ..." if near else ""))
    wishes = [{"img_size": input_size, "drop_path_rate": drop_path}, {"drop_path_rate": drop_path}, {}]
    for wish in wishes:  # networks differ in what they take: CNNs need no image size
        try:
            return timm.create_model(name, pretrained=pretrained, features_only=True, **wish)
        except TypeError:
            continue
        except Exception as error:
            reason = _first_line(error)
            if pretrained:
                raise DataError(f"model: the weights of {name} could not be fetched: {reason}") from None
            raise OptionsError(f"model: timm:{name} cannot be the encoder of {input_size} px images: {reason}") from None
    raise OptionsError(f"model: timm:{name} gives no feature maps")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
