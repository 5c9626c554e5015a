"""The blocks, against timm's ConViT and CaiT on the same weights, and against what they should be at the start."""

import pytest
import torch
from stored import distance
from timm.models import cait
from timm.models import convit as timm_convit
from timm.models.vision_transformer import Block
from torch import nn

from continual.convit import (
    GPSA,
    MLP,
    SAB,
    TAB,
    ClassAttention,
    ConViT,
    PatchEmbed,
    ScaleNorm,
    init_weights,
    relative_positions,
)

TOLERANCE = 1e-5
B, GRID, D, H, T = 3, 4, 24, 4, 3
N = GRID**2


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that hide nothing: no zeros, no ones, every term of the sum counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    return module


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_patch_embedding_reads_patches_row_by_row():
    embed = PatchEmbed(8, 4, D)
    images = noise(B, 3, 8, 8)
    corners = [images[:, :, r : r + 4, c : c + 4].flatten(1) for r in (0, 4) for c in (0, 4)]
    expected = torch.stack(corners, dim=1) @ embed.proj.weight.flatten(1).T + embed.proj.bias
    assert embed.grid == 2
    assert distance(embed(images), expected) < TOLERANCE


def test_relative_positions_go_from_the_query_to_the_key():
    r = relative_positions(3)
    assert r.shape == (9, 9, 3)
    assert r[0, 5].tolist() == [2, 1, 5]  # from row 0, column 0 to row 1, column 2
    assert r[5, 0].tolist() == [-2, -1, 5]
    assert r[4, 4].tolist() == [0, 0, 0]


def test_gpsa_equals_timm():
    theirs = scramble(timm_convit.GPSA(D, H))
    ours = GPSA(D, H, grid=GRID)
    ours.load_state_dict(theirs.state_dict())
    x, weight = noise(B, N, D), noise(B, N, D, seed=2)
    a, b = ours(x), theirs(x)
    assert distance(a, b) < TOLERANCE
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name == "pos_proj.bias":  # a softmax does not see it: its gradient is rounding
            assert mine.grad.abs().max() < 1e-4
        else:
            assert distance(mine.grad, other.grad) < 1e-4, name


@pytest.mark.parametrize(("nb_heads", "strength"), [(4, 1.0), (9, 1.0), (9, 0.5)])
def test_gpsa_starts_as_timm_does(nb_heads, strength):
    ours = GPSA(36, nb_heads, grid=GRID, locality_strength=strength)
    theirs = timm_convit.GPSA(36, nb_heads, locality_strength=strength)
    ours.init_like_convolution()
    theirs.local_init()
    assert torch.equal(ours.pos_proj.weight, theirs.pos_proj.weight)
    assert torch.equal(ours.v.weight, torch.eye(36))
    assert torch.equal(ours.gating_param, torch.ones(nb_heads))


def test_gpsa_heads_look_at_the_taps_of_a_convolution():
    attn = GPSA(36, 9, grid=5)
    init_weights(attn.pos_proj)
    attn.init_like_convolution()
    seen = attn.pos_proj(attn.positions)[12].argmax(dim=0)  # from the middle of 5 x 5
    assert sorted(seen.tolist()) == [6, 7, 8, 11, 12, 13, 16, 17, 18]


def test_heads_past_the_square_keep_their_random_weights():
    attn = GPSA(30, 5, grid=GRID)
    before = attn.pos_proj.weight.detach().clone()
    attn.init_like_convolution()
    assert torch.equal(attn.pos_proj.weight[4], before[4])
    assert (attn.pos_proj.weight[:4, 2] == -1).all()


def test_sab_equals_timm():
    theirs = scramble(timm_convit.Block(D, H, norm_layer=nn.LayerNorm, use_gpsa=True))
    ours = SAB(D, H, grid=GRID)
    ours.load_state_dict(theirs.state_dict())
    x = noise(B, N, D)
    assert distance(ours(x), theirs(x)) < TOLERANCE


def test_class_attention_of_one_token_equals_timm():
    theirs = scramble(cait.ClassAttn(D, H))
    ours = ClassAttention(D, H)
    ours.load_state_dict(theirs.state_dict())
    token, patches = noise(B, 1, D), noise(B, N, D, seed=2)
    assert distance(ours(token, patches), theirs(torch.cat([token, patches], dim=1))) < TOLERANCE


def test_tab_of_one_token_equals_timm_without_layer_scale():
    theirs = scramble(cait.LayerScaleBlockClassAttn(D, H))
    nn.init.ones_(theirs.gamma_1)
    nn.init.ones_(theirs.gamma_2)
    ours = TAB(D, H)
    ours.load_state_dict({name: p for name, p in theirs.state_dict().items() if "gamma" not in name})
    token, patches = noise(B, 1, D), noise(B, N, D, seed=2)
    assert distance(ours(token, patches), theirs(patches, token)) < TOLERANCE


@pytest.mark.parametrize("batch", [1, B])
def test_tokens_together_equal_tokens_one_after_another(batch):
    tab = scramble(TAB(D, H))
    tokens, patches = noise(batch, T, D), noise(B, N, D, seed=2)
    together = tab(tokens, patches)
    apart = torch.cat([tab(tokens[:, t : t + 1], patches) for t in range(T)], dim=1)
    assert together.shape == (B, T, D)
    assert distance(together, apart) < 1e-6


def test_a_token_does_not_see_other_tokens():
    tab = scramble(TAB(D, H))
    tokens, patches = noise(B, T, D), noise(B, N, D, seed=2)
    others = tokens.clone()
    others[:, 1:] = 3 * noise(B, T - 1, D, seed=3)
    assert torch.equal(tab(tokens, patches)[:, 0], tab(others, patches)[:, 0])
    assert not torch.equal(tab(tokens, patches)[:, 1], tab(others, patches)[:, 1])


def test_attention_is_over_the_token_itself_then_the_patches():
    attn = scramble(ClassAttention(D, H))
    tokens, patches = noise(B, T, D), noise(B, N, D, seed=2)
    attention = attn.attention(tokens, patches)
    assert attention.shape == (B, T, H, 1 + N)
    assert torch.allclose(attention.sum(-1), torch.ones(B, T, H))
    # By hand, for image 1, token 2, head 3.
    rows = torch.cat([tokens[1, 2:3], patches[1]])
    d = slice(3 * D // H, D)
    expected = ((attn.q(tokens[1, 2])[d] @ attn.k(rows)[:, d].T) / (D // H) ** 0.5).softmax(0)
    assert distance(attention[1, 2, 3], expected) < TOLERANCE


def test_mlp_is_four_times_as_wide():
    mlp = scramble(MLP(D))
    x = noise(B, N, D)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    assert hidden.shape[-1] == 4 * D
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    assert distance(mlp(x), gelu @ mlp.fc2.weight.T + mlp.fc2.bias) < TOLERANCE


def test_scale_norm():
    norm = ScaleNorm(4)
    assert norm.g.item() == 2.0  # the length a row of unit variance has
    nn.init.constant_(norm.g, 10.0)
    assert torch.allclose(norm(torch.tensor([[3.0, 0.0, 4.0, 0.0]])), torch.tensor([[6.0, 0.0, 8.0, 0.0]]))
    zero = torch.zeros(1, 4, requires_grad=True)
    norm(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()
    tiny = torch.tensor([[3e-7, 0.0, 4e-7, 0.0]])
    assert torch.allclose(norm(tiny), tiny / 1e-5 * 10)


@pytest.mark.parametrize(("norm", "kind"), [("layer", nn.LayerNorm), ("scale", ScaleNorm)])
def test_norm_of_the_blocks(norm, kind):
    for block in (SAB(D, H, grid=GRID, norm=norm), TAB(D, H, norm=norm)):
        assert type(block.norm1) is type(block.norm2) is kind
    assert nn.LayerNorm(D).eps == 1e-5


def test_drop_path_of_a_sab_leaves_out_whole_images():
    sab = SAB(D, H, grid=GRID, drop_path=0.5)
    nn.init.zeros_(sab.mlp.fc2.weight)
    nn.init.zeros_(sab.mlp.fc2.bias)
    x = noise(64, N, D)
    torch.manual_seed(0)
    moved = (sab(x) - x).flatten(1)
    kept = moved.abs().amax(1) > 0
    assert 0 < kept.sum() < 64
    sab.eval()
    assert distance(moved[kept], 2 * (sab(x) - x).flatten(1)[kept]) < TOLERANCE


def test_drop_path_of_a_tab_draws_for_each_image_and_task():
    tab = TAB(D, H, drop_path=0.5)
    nn.init.zeros_(tab.mlp.fc2.weight)
    nn.init.zeros_(tab.mlp.fc2.bias)
    tokens, patches = noise(64, T, D), noise(64, N, D, seed=2)
    torch.manual_seed(0)
    kept = (tab(tokens, patches) - tokens).abs().amax(-1) > 0  # (B, T)
    assert 0 < kept.sum() < kept.numel()
    assert (kept != kept[:1]).any(), "the same for all images"
    assert (kept != kept[:, :1]).any(), "the same for all tasks"
    tab.eval()
    assert torch.equal(tab(tokens, patches), tab(tokens, patches))


def convit(**changes: object) -> ConViT:
    sizes = {"input_size": 16, "patch_size": 4, "embed_dim": D, "num_heads": H, "drop_path_rates": [0.0, 0.2, 0.4]}
    return ConViT(**(sizes | changes))


def test_encoder_gives_the_output_of_every_block():
    encoder = convit().eval()
    images = noise(2, 3, 16, 16)
    outputs = encoder(images)
    assert [tuple(x.shape) for x in outputs] == [(2, N, D)] * 3
    x = encoder.patch_embed(images) + encoder.pos_embed
    for sab, output in zip(encoder.sabs, outputs, strict=True):
        x = sab(x)
        assert torch.equal(x, output)
    assert [sab.drop_path.drop_prob for sab in encoder.sabs] == [0.0, 0.2, 0.4]


def test_encoder_starts_like_a_convolution():
    encoder = convit(locality_strength=0.5, embed_dim=96)
    for sab in encoder.sabs:
        assert torch.equal(sab.attn.v.weight, torch.eye(96))
        assert (sab.attn.pos_proj.weight[:, 2] == -0.5).all()
        assert (sab.attn.pos_proj.bias == 0).all() and (sab.mlp.fc1.bias == 0).all()
        assert sab.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert sab.attn.qk.bias is None and sab.attn.v.bias is None
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)


def test_encoder_without_gates_is_a_plain_vision_transformer():
    encoder = convit(gated=False, drop_path_rates=[0.0]).eval()
    theirs = scramble(Block(D, H, mlp_ratio=4, qkv_bias=False))
    nn.init.zeros_(theirs.attn.proj.bias)
    sab = encoder.sabs[0]
    sab.load_state_dict(theirs.state_dict())
    x = noise(B, N, D)
    expected = nn.functional.scaled_dot_product_attention(
        *theirs.attn.qkv(theirs.norm1(x)).view(B, N, 3, H, D // H).permute(2, 0, 3, 1, 4)
    )
    y = x + theirs.attn.proj(expected.transpose(1, 2).flatten(2))
    assert distance(sab(x), y + theirs.mlp(theirs.norm2(y))) < 2e-5  # timm's LayerNorm has another eps
    assert not [name for name in encoder.state_dict() if "gating" in name or "pos_proj" in name]


def test_dropout_follows_the_position_embedding():
    encoder = convit(drop=0.5, drop_path_rates=[0.0])
    images = noise(2, 3, 16, 16)
    torch.manual_seed(0)
    assert not torch.equal(encoder(images)[0], encoder(images)[0])
    encoder.eval()
    assert torch.equal(encoder(images)[0], encoder(images)[0])


def test_positions_are_no_weights():
    assert not [name for name in convit().state_dict() if "positions" in name]
