"""The encoder: ConViT blocks with Gated Positional Self-Attention, and the class attention of the task decoder.

GPSA is from ConViT (d'Ascoli et al., ICML 2021, arXiv 2103.10697), class attention from CaiT (Touvron et al., ICCV 2021,
arXiv 2103.17239). DyTox (arXiv 2111.11326, section 3) calls the blocks built on them SAB and TAB.

Letters:  B batch   N patches   s = sqrt(N) patches a side   D embed_dim   H heads   d = D / H   T task tokens
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continual.randomness import draws


class ScaleNorm(nn.Module):
    """x / max(|x|, eps) * g with one learned length g, in place of LayerNorm (Nguyen & Salazar 2019). (..., D) -> (..., D)"""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.g = nn.Parameter(torch.tensor([dim**0.5]))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp(min=self.eps) * self.g


NORMS = {"layer": nn.LayerNorm, "scale": ScaleNorm}


class PatchEmbed(nn.Module):
    """Images (B, 3, S, S) to patch embeddings (B, N, D), N = (S / patch_size)^2, by one strided convolution."""

    def __init__(self, input_size: int, patch_size: int, embed_dim: int):
        super().__init__()
        self.grid = input_size // patch_size
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, D, s, s) -> (B, N, D)


class MLP(nn.Module):
    """Linear, GELU, Linear with a hidden width of ratio * D. (..., D) -> (..., D)"""

    def __init__(self, dim: int, ratio: int = 4):
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, an update is left out with `drop_prob`, or scaled up.

    (B, ..., D), one draw for each row of the first dimensions `drawn`: 1 for each image, 2 for each image and task.
    """

    def __init__(self, drop_prob: float, drawn: int = 1):
        super().__init__()
        self.drop_prob, self.drawn = drop_prob, drawn

    def forward(self, update: Tensor) -> Tensor:
        if not self.drop_prob or not self.training:
            return update
        shape = update.shape[: self.drawn]
        kept = draws(shape[0], shape[1:].numel(), update.device) >= self.drop_prob
        return update * (kept / (1 - self.drop_prob)).to(update.dtype).view(*shape, *[1] * (update.ndim - self.drawn))


def split_heads(x: Tensor, nb_heads: int) -> Tensor:
    return x.unflatten(-1, (nb_heads, -1)).transpose(-3, -2)  # (B, N, D) -> (B, H, N, d)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)  # (B, H, N, d) -> (B, N, D)


def relative_positions(grid: int) -> Tensor:
    """r_ij = (dx, dy, dx^2 + dy^2) from query patch i to key patch j, in patches. (N, N, 3)"""
    row, col = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    dx = col.flatten()[None, :] - col.flatten()[:, None]
    dy = row.flatten()[None, :] - row.flatten()[:, None]
    return torch.stack([dx, dy, dx**2 + dy**2], dim=-1).float()


class GPSA(nn.Module):
    """Gated Positional Self-Attention (ConViT, eq. 5). (B, N, D) -> (B, N, D)

    Each head mixes what patches look like with where they are: (1 - sigma(g)) * patch + sigma(g) * position. At the start
    the heads attend to a small neighbourhood, one offset each, like the taps of a convolution.
    """

    def __init__(self, dim: int, nb_heads: int, *, grid: int, locality_strength: float = 1.0):
        super().__init__()
        self.nb_heads = nb_heads
        self.locality_strength = locality_strength
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(3, nb_heads)
        self.gating_param = nn.Parameter(torch.ones(nb_heads))
        self.register_buffer("positions", relative_positions(grid), persistent=False)

    @torch.no_grad()
    def init_like_convolution(self) -> None:
        """Values pass unchanged; head h1 + k * h2 looks at the patch at offset (h2, h1) from the centre of a k x k window."""
        nn.init.eye_(self.v.weight)
        k = int(self.nb_heads**0.5)  # heads past k^2 keep their random weights
        centre = (k - 1) / 2 if k % 2 == 0 else k // 2
        for h1 in range(k):
            for h2 in range(k):
                offset = [2 * (h2 - centre), 2 * (h1 - centre), -1.0]
                self.pos_proj.weight[h1 + k * h2] = torch.tensor(offset)
        self.pos_proj.weight.mul_(self.locality_strength)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (split_heads(part, self.nb_heads) for part in self.qk(x).chunk(2, dim=-1))  # (B, H, N, d)
        v = split_heads(self.v(x), self.nb_heads)
        gate = torch.sigmoid(self.gating_param)[:, None, None]  # (H, 1, 1)

        # Attention is linear in its scores, so the two kinds are applied apart: no (B, H, N, N) is kept for the patches,
        # and the position scores, the same for every image, are computed once.
        by_patch = F.scaled_dot_product_attention(q, k, v)
        position = self.pos_proj(self.positions).permute(2, 0, 1).softmax(dim=-1)  # (N, N, H) -> (H, N, N)
        by_position = torch.einsum("hnm,bhmd->bhnd", position.to(v.dtype), v)

        return self.proj(merge_heads(((1 - gate) * by_patch + gate * by_position).to(v.dtype)))


class ClassAttention(nn.Module):
    """Task-attention (DyTox, eq. 3-6): each task token reads the patches and itself, never another task's token.

    Keys and values of the patches are the same for every task, so they are computed once for all T tokens.
    """

    def __init__(self, dim: int, nb_heads: int):
        super().__init__()
        self.nb_heads = nb_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def attention(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) of every token over itself (column 0) and the patches.

        tokens (B or 1, T, D), patches (B, N, D), both normalised -> (B, T, H, 1 + N)
        """
        q, k = split_heads(self.q(tokens), self.nb_heads), split_heads(self.k(patches), self.nb_heads)
        to_patches = q @ k.transpose(-2, -1)  # (B, H, T, N)
        to_itself = (q * split_heads(self.k(tokens), self.nb_heads)).sum(-1, keepdim=True)  # (B or 1, H, T, 1)
        scores = torch.cat([to_itself.expand(*to_patches.shape[:3], 1), to_patches], dim=-1)
        return (scores * q.shape[-1] ** -0.5).softmax(dim=-1).transpose(1, 2)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """tokens (B or 1, T, D), patches (B, N, D), both normalised -> (B, T, D)"""
        attention = self.attention(tokens, patches).transpose(1, 2)  # (B, H, T, 1 + N)
        itself, others = attention[..., :1], attention[..., 1:]
        v_token, v_patches = split_heads(self.v(tokens), self.nb_heads), split_heads(self.v(patches), self.nb_heads)
        others = others.to(v_patches.dtype)
        return self.proj(merge_heads(itself.to(v_token.dtype) * v_token + others @ v_patches))


class SAB(nn.Module):
    """Self-Attention Block: a ConViT block on the patches (DyTox, eq. 1). (B, N, D) -> (B, N, D)

    gated=False puts plain multi-head self-attention (timm's) in the place of GPSA; `grid` then plays no part.
    """

    def __init__(
        self,
        dim: int,
        nb_heads: int,
        *,
        grid: int,
        drop_path: float = 0.0,
        locality_strength: float = 1.0,
        norm: str = "layer",
        gated: bool = True,
    ):
        super().__init__()
        self.norm1 = NORMS[norm](dim)
        if gated:
            self.attn = GPSA(dim, nb_heads, grid=grid, locality_strength=locality_strength)
        else:
            from timm.layers import Attention

            self.attn = Attention(dim, num_heads=nb_heads, qkv_bias=False)
        self.norm2 = NORMS[norm](dim)
        self.mlp = MLP(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TAB(nn.Module):
    """Task-Attention Block (DyTox, eq. 7-8): the task tokens read the patches. One set of weights for every task."""

    def __init__(self, dim: int, nb_heads: int, *, drop_path: float = 0.0, norm: str = "layer"):
        super().__init__()
        self.norm1 = NORMS[norm](dim)
        self.attn = ClassAttention(dim, nb_heads)
        self.norm2 = NORMS[norm](dim)
        self.mlp = MLP(dim)
        self.drop_path = DropPath(drop_path, drawn=2)  # for each (image, task) apart, as when tasks pass one after another

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """tokens (B or 1, T, D), patches (B, N, D) -> (B, T, D). LN1 works row by row, so LN1([token, x]) is taken apart."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), self.norm1(patches)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def init_weights(module: nn.Module) -> None:
    """Linears truncated normal of std 0.02, biases 0. For `Module.apply`; convolutions and classifiers keep torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConViT(nn.Module):
    """Patch embedding and a stack of SABs. Images (B, 3, S, S) -> the output of every SAB, each (B, N, D).

    gated=False makes it a plain vision transformer (without a class token).
    """

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        embed_dim: int,
        num_heads: int,
        drop_path_rates: list[float],
        drop: float = 0.0,
        norm: str = "layer",
        locality_strength: float = 1.0,
        gated: bool = True,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_embed = PatchEmbed(input_size, patch_size, embed_dim)
        grid = self.patch_embed.grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2, embed_dim))
        self.drop = nn.Dropout(drop)
        self.sabs = nn.ModuleList(
            SAB(
                embed_dim,
                num_heads,
                grid=grid,
                drop_path=rate,
                locality_strength=locality_strength,
                norm=norm,
                gated=gated,
            )
            for rate in drop_path_rates
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.sabs.apply(init_weights)
        if gated:
            for sab in self.sabs:
                sab.attn.init_like_convolution()

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.drop(self.patch_embed(images) + self.pos_embed)
        outputs = []
        for sab in self.sabs:
            x = sab(x)
            outputs.append(x)
        return outputs
