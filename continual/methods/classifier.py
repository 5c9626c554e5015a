"""What DyTox is compared with: one encoder and one classifier that grows, without task tokens.

Letters:  B batch   N patches   D embed_dim   C_all classes seen
"""

from typing import Any

import torch
from torch import Tensor, nn

from continual.convit import SAB, TAB, init_weights
from continual.dytox import Outputs
from continual.options import ModelOptions


class Extractor(nn.Module):
    """An encoder and what makes one embedding of its patches.

    pooling: "attention", a class token that reads the patches through TABs (CaiT); "token", a class token among the patches
        in plain self-attention blocks (ConViT, ViT); "mean" of the patches (CNNs).
    drop_path_rates: one per block of the pooling.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_heads: int,
        drop_path_rates: list[float],
        pooling: str,
        norm: str = "layer",
    ):
        super().__init__()
        self.embed_dim = dim = encoder.embed_dim
        self.encoder = encoder
        self.pooling = pooling
        if pooling != "mean":
            self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        if pooling == "attention":
            self.blocks = nn.ModuleList(TAB(dim, num_heads, drop_path=rate, norm=norm) for rate in drop_path_rates)
        else:
            self.blocks = nn.ModuleList(
                SAB(dim, num_heads, grid=0, drop_path=rate, norm=norm, gated=False) for rate in drop_path_rates
            )
        self.blocks.apply(init_weights)
        self.norm = nn.LayerNorm(dim)

    def embed(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images (B, 3, S, S) -> their embeddings (B, D), and the encoder's maps but the last."""
        features = self.encoder(images)
        return self.norm(self.pool(features[-1])), features[:-1]

    def pool(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        if self.pooling == "mean":
            return patches.mean(dim=1)
        token = self.class_token.expand(patches.shape[0], -1, -1)  # not len(), which an export would take for a constant
        if self.pooling == "attention":
            for block in self.blocks:
                token = block(token, patches)
            return token[:, 0]
        x = torch.cat([token, patches], dim=1)  # (B, 1 + N, D)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


class GrowingClassifier(Extractor):
    """One extractor and a linear classifier to which every task adds rows. Call `add_task` before the first forward."""

    def __init__(self, encoder: nn.Module, **how: Any):
        super().__init__(encoder, **how)
        self.classes: list[int] = []
        self.heads = nn.ModuleList()

    def add_task(self, nb_new: int) -> None:
        """Add the rows of `nb_new` classes to the classifier."""
        self.classes.append(nb_new)
        self.heads.append(nn.Linear(self.embed_dim, nb_new).to(next(self.parameters()).device))

    def forward(self, images: Tensor, *, maps: bool = False) -> Outputs | tuple[Outputs, list[Tensor]]:
        """images (B, 3, S, S) -> Outputs with one embedding, (B, 1, D); with `maps`, also the encoder's maps but the last."""
        embedding, features = self.embed(images)
        outputs = Outputs(self.classify(embedding), None, embedding[:, None])
        return (outputs, features) if maps else outputs

    def classify(self, embedding: Tensor) -> Tensor:
        """(B, D) -> logits (B, C_all), in the precision of the weights even under mixed precision."""
        with torch.autocast(embedding.device.type, enabled=False):
            return torch.cat([head(embedding.to(head.weight.dtype)) for head in self.heads], dim=1)

    def token_distances(self) -> None:
        """There are no task tokens."""

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """What the names in `freeze_task` and `freeze_ft` mean; there are no tokens and no divergence head."""
        heads = list(self.heads)
        return {"all": [self], "sab": [self.encoder], "heads": heads, "old_heads": heads[:-1], "head_div": []}

    def reset_classifiers(self) -> None:
        """Give the classifier fresh weights."""
        for head in self.heads:
            head.reset_parameters()


def pooled(options: ModelOptions, encoder: nn.Module, drop_path_rates: list[float]) -> dict[str, Any]:
    """The arguments of an Extractor as the options say them.

    The blocks after `local_up_to_layer` pool: as class attention, or among the patches. A network of timm or of one's own is
    whole as it is, and the mean of its patches is taken, unless `class_attention` is on.
    """
    if options.model not in ("convit", "vit") and not options.class_attention:
        drop_path_rates = []
    pooling = "mean" if not drop_path_rates else "attention" if options.class_attention else "token"
    return {
        "encoder": encoder,
        "num_heads": options.num_heads,
        "drop_path_rates": drop_path_rates,
        "pooling": pooling,
        "norm": options.norm,
    }
