"""What DyTox is compared with: one encoder and one classifier that grows, without task tokens (`dytox: false`).

With it come the parts of the standard rivals that are not losses: WA's weight aligning and iCaRL's nearest mean of exemplars.

Letters:  B batch   N patches   D embed_dim   C_all classes seen
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continual.convit import SAB, TAB, init_weights
from continual.dytox import Outputs


class Baseline(nn.Module):
    """Encoder, pooling, and a linear classifier to which every task adds rows. Call `add_task` before the first forward.

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
        self.classes: list[int] = []
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
        self.heads = nn.ModuleList()

    def add_task(self, nb_new: int) -> None:
        """Add the rows of `nb_new` classes to the classifier."""
        self.classes.append(nb_new)
        self.heads.append(nn.Linear(self.embed_dim, nb_new).to(next(self.parameters()).device))

    def forward(self, images: Tensor, *, maps: bool = False) -> Outputs | tuple[Outputs, list[Tensor]]:
        """images (B, 3, S, S) -> Outputs with one embedding, (B, 1, D); with `maps`, also the encoder's maps but the last."""
        features = self.encoder(images)
        embedding = self.norm(self.pool(features[-1]))  # (B, D)
        outputs = Outputs(self.classify(embedding), None, embedding[:, None])
        return (outputs, features[:-1]) if maps else outputs

    def classify(self, embedding: Tensor) -> Tensor:
        """(B, D) -> logits (B, C_all), in the precision of the weights even under mixed precision."""
        with torch.autocast(embedding.device.type, enabled=False):
            return torch.cat([head(embedding.to(head.weight.dtype)) for head in self.heads], dim=1)

    def token_distances(self) -> None:
        """There are no task tokens."""

    def pool(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        if self.pooling == "mean":
            return patches.mean(dim=1)
        token = self.class_token.expand(len(patches), -1, -1)
        if self.pooling == "attention":
            for block in self.blocks:
                token = block(token, patches)
            return token[:, 0]
        x = torch.cat([token, patches], dim=1)  # (B, 1 + N, D)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """What the names in `freeze_task` and `freeze_ft` mean; there are no tokens and no divergence head."""
        heads = list(self.heads)
        return {"all": [self], "sab": [self.encoder], "heads": heads, "old_heads": heads[:-1], "head_div": []}

    def reset_classifiers(self) -> None:
        """Give the classifier fresh weights."""
        for head in self.heads:
            head.reset_parameters()

    @torch.no_grad()
    def align(self) -> float:
        """Weight Aligning (Zhao et al., CVPR 2020): scale the newest classes' weights to the old ones' mean norm.

        Returns the factor. Biases stay as they are.
        """
        old = torch.cat([head.weight for head in self.heads[:-1]]).norm(dim=1).mean()
        new = self.heads[-1].weight.norm(dim=1).mean()
        self.heads[-1].weight.mul_(old / new)
        return float(old / new)


def class_means(features: Tensor, labels: Tensor, nb_classes: int) -> Tensor:
    """Means of L2-normalised exemplars, normalised again (iCaRL, section 3.1). (n, D), (n,) -> (nb_classes, D)"""
    features = F.normalize(features, dim=1)
    sums = torch.zeros(nb_classes, features.shape[1], dtype=features.dtype, device=features.device)
    return F.normalize(sums.index_add_(0, labels, features), dim=1)


def nearest_mean_scores(outputs: Outputs, means: Tensor) -> Tensor:
    """Minus the distance of each image's embedding to each class mean; the highest is iCaRL's answer. (B, C)

    A class without exemplars has a mean of 0; it lies further away than any other, which is 2 at most.
    """
    scores = -torch.cdist(F.normalize(outputs.tokens.flatten(1).float(), dim=1), means.float())
    return scores.masked_fill((means == 0).all(dim=1), -3.0)
