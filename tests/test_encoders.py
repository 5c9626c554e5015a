"""Encoders under DyTox and under a growing classifier: tokens, gradients, freezing, and what is refused."""

import pytest
import timm
import torch

from continual import encoders
from continual.dytox import freeze
from continual.errors import DataError, OptionsError
from continual.methods import method_of
from continual.options import Options, parse
from continual.randomness import seeded

TIMM = {  # name -> tokens of an image of 64 px: small relatives of the usual networks
    "timm:test_resnet": 4,
    "timm:resnet10t": 4,
    "timm:test_convnext": 4,
    "timm:swin_tiny_patch4_window7_224": 4,
    "timm:test_vit": 16,
}
OWN = {"convit": 16, "vit": 16}
DYTOX = ("--dytox", "--class-attention", "--ind-clf", "1-1", "--head-div", "0.1")


def options_for(name: str, *argv: str, input_size: int = 64) -> Options:
    sizes = ["--input-size", str(input_size), "--patch-size", "16", "--embed-dim", "24", "--num-heads", "4"]
    return parse(["--model", name, *sizes, "--depth", "3", "--local-up-to-layer", "2", *argv])


def build(options: Options, classes: tuple[int, ...] = (2, 3)) -> torch.nn.Module:
    with seeded("model"):
        model = method_of(options, ()).build()
        for nb_new in classes:
            model.add_task(nb_new)
    return model


@pytest.mark.parametrize("kind", [DYTOX, ()], ids=["dytox", "growing classifier"])
@pytest.mark.parametrize(("name", "nb_tokens"), (TIMM | OWN).items())
def test_an_encoder_gives_tokens_and_every_parameter_a_gradient(name, nb_tokens, kind):
    model = build(options_for(name, *kind, "--drop-path", "0"))
    images = torch.randn(3, 3, 64, 64)
    features = model.encoder(images)
    assert features[-1].shape == (3, nb_tokens, 24)
    assert all(each.ndim == 3 and int(each.shape[1] ** 0.5) ** 2 == each.shape[1] for each in features)

    outputs, maps = model(images, maps=True)
    assert outputs.logits.shape == (3, 5) and outputs.tokens.shape == (3, 2 if kind else 1, 24)
    assert [each.shape for each in maps] == [each.shape for each in features[:-1]]
    (outputs.logits.square().sum() + (outputs.div.sum() if kind else 0)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # several processes would wait for it


@pytest.mark.parametrize("name", [*TIMM, "convit", "vit"])
def test_tokens_differ_by_place_and_by_image(name):
    model = build(options_for(name, *DYTOX)).eval()
    with torch.no_grad():
        features = model.encoder(torch.randn(2, 3, 64, 64))[-1]
    assert (features[0] - features[1]).abs().max() > 1e-4
    assert (features[:, 0] - features[:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", [DYTOX, ()], ids=["dytox", "growing classifier"])
@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "convit", "vit"])
def test_sab_means_the_encoder_whichever_it_is(name, kind):
    model = build(options_for(name, *kind))
    freeze(model, ("sab",))
    assert not any(p.requires_grad for p in model.encoder.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    assert others and all(p.requires_grad for p in others)
    freeze(model, ("sab",), eval_mode=True)
    assert not any(module.training for module in model.encoder.modules()) and model.training


def test_maps_keep_rows_and_columns_apart():
    """A change in the lower right corner shows in the last cell of every map of a network with small receptive fields."""
    encoder = encoders.TimmEncoder("convnext_atto", input_size=64, embed_dim=24, drop_path=0.0, pretrained=False).eval()
    images = torch.zeros(1, 3, 64, 64)
    changed = images.clone()
    changed[..., -2:, -2:] = 3.0
    with torch.no_grad():
        first, second = encoder(images), encoder(changed)
    assert [each.shape[2] for each in first] == [40, 80, 160, 320, 24]
    assert (first[0] - second[0]).abs().sum(-1).argmax() == 255


def test_drop_path_reaches_the_network():
    model = build(options_for("timm:test_vit", "--drop-path", "0.7"))
    images = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model.encoder(images)[-1], model.encoder(images)[-1])
    model.eval()
    assert torch.equal(model.encoder(images)[-1], model.encoder(images)[-1])


def test_vit_has_plain_attention_without_positions():
    gated, plain = build(options_for("convit")), build(options_for("vit"))
    assert any("pos_proj" in name for name, _ in gated.named_parameters())
    assert not any("pos_proj" in name for name, _ in plain.named_parameters())
    assert any(name.startswith("encoder.sabs.1.attn.qkv") for name, _ in plain.named_parameters())


def one_line(error: Exception) -> str:
    assert len(str(error).splitlines()) == 1
    return str(error)


def test_weights_that_cannot_be_fetched(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*args, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    with pytest.raises(DataError) as raised:
        build(options_for("timm:test_resnet", "--pretrained"))
    assert one_line(raised.value) == "model: the weights of test_resnet could not be fetched: no network"


def test_weights_are_asked_for(monkeypatch):
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **wish: asked.append(pretrained) or create(name, **wish))
    build(options_for("timm:test_resnet", "--pretrained"))
    build(options_for("timm:test_resnet"))
    assert asked[0] is True and asked[-1] is False


def test_an_unknown_network_is_answered_with_near_ones():
    with pytest.raises(OptionsError) as raised:
        build(options_for("timm:resnet17"))
    assert one_line(raised.value).startswith("model: timm has no 'resnet17'; it has resnet18, ")


@pytest.mark.parametrize(("name", "input_size"), [("timm:test_vit", 40), ("timm:levit_128s", 30)])
def test_images_that_do_not_fit_are_refused(name, input_size):
    with pytest.raises(OptionsError) as raised:
        build(options_for(name, *DYTOX, input_size=input_size))
    assert str(input_size) in one_line(raised.value)


def test_one_image_is_too_few_for_batch_norm_on_one_cell():
    encoder = build(options_for("timm:test_resnet", *DYTOX, input_size=32)).encoder
    encoder(torch.randn(2, 3, 32, 32))
    with pytest.raises(OptionsError, match=r"^batch_size: 1 image.* too few for the network's batch norm"):
        encoder(torch.randn(1, 3, 32, 32))
