"""The growing classifier, weight aligning, and the nearest mean of exemplars."""

import numpy as np
import pytest
import torch
from torch import nn

from continual.convit import ConViT
from continual.dytox import Outputs, freeze
from continual.errors import OptionsError
from continual.methods.classifier import GrowingClassifier
from continual.methods.icarl import class_means, nearest_mean_scores
from continual.methods.wa import align
from continual.options import parse
from continual.randomness import seeded

POOLINGS = {"mean": [], "attention": [0.0, 0.0], "token": [0.0]}


def classifier(pooling: str = "mean", classes: tuple[int, ...] = (2, 3), **settings) -> GrowingClassifier:
    with seeded("model"):
        encoder = ConViT(input_size=8, patch_size=4, embed_dim=8, num_heads=2, drop_path_rates=[0.0, 0.0])
        model = GrowingClassifier(encoder, num_heads=2, drop_path_rates=POOLINGS[pooling], pooling=pooling, **settings)
        for nb_new in classes:
            model.add_task(nb_new)
    return model.eval()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_grows_and_keeps_what_it_has(pooling):
    model, images = classifier(pooling, (2,)), torch.randn(4, 3, 8, 8)
    before = model(images)
    with seeded("growth"):
        model.add_task(3)
    after, maps = model(images, maps=True)
    assert model.classes == [2, 3] and after.div is None
    assert after.logits.shape == (4, 5) and after.tokens.shape == (4, 1, 8)
    assert torch.equal(after.tokens, before.tokens)
    torch.testing.assert_close(after.logits[:, :2], before.logits)
    assert [tuple(each.shape) for each in maps] == [(4, 4, 8)]


def test_mean_pooling_is_the_mean_of_the_patches():
    model, images = classifier("mean"), torch.randn(4, 3, 8, 8)
    embedding = nn.functional.layer_norm(model.encoder(images)[-1].mean(1), (8,))
    torch.testing.assert_close(model(images).tokens[:, 0], embedding)


def test_attention_leaves_the_patches_as_they_are_and_token_does_not():
    """In class attention only the token is updated: the encoder's patches reach every block unchanged."""
    patches = torch.randn(4, 4, 8)
    model = classifier("attention")
    token = model.class_token.expand(4, -1, -1)
    for block in model.blocks:
        token = block(token, patches)
    assert torch.equal(model.pool(patches), token[:, 0])

    model = classifier("token")
    x = model.blocks[0](torch.cat([model.class_token.expand(4, -1, -1), patches], 1))
    assert torch.equal(model.pool(patches), x[:, 0])


@pytest.mark.parametrize("norm", ["layer", "scale"])
def test_norm_reaches_the_pooling_blocks(norm):
    names = [name for name, _ in classifier("token", norm=norm).blocks.named_parameters()]
    assert ("0.norm1.g" in names) == (norm == "scale")


def test_parts():
    model = classifier("attention", (2, 3, 1))
    ours = dict(model.named_parameters())

    def frozen(*names: str) -> set[str]:
        freeze(model, names)
        return {name for name, p in ours.items() if not p.requires_grad}

    assert frozen() == set()
    assert frozen("all") == set(ours)
    assert frozen("sab") == {name for name in ours if name.startswith("encoder.")}
    assert frozen("heads") == {name for name in ours if name.startswith("heads.")}
    assert frozen("old_heads") == {name for name in ours if name.startswith(("heads.0.", "heads.1."))}
    assert frozen("head_div") == set()


@pytest.mark.parametrize("part", ["tab", "task_tokens", "old_task_tokens", "head_div"])
def test_parts_it_does_not_have_are_refused_in_the_options(part):
    with pytest.raises(OptionsError, match=f"without dytox there is no {part}"):
        parse(["--freeze-task", part])


def test_resetting_draws_new_classifiers_alone():
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_classifiers()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("heads."), name


def test_weight_aligning_brings_the_new_norms_to_the_old_mean():
    model = classifier(classes=(2, 3, 2))
    with torch.no_grad():
        model.heads[2].weight.mul_(7)
    before = {name: value.clone().double().numpy() for name, value in model.state_dict().items()}
    factor = align(torch.cat([head.weight for head in model.heads[:2]]), model.heads[2].weight)
    old = np.linalg.norm(np.concatenate([before["heads.0.weight"], before["heads.1.weight"]]), axis=1).mean()
    new = np.linalg.norm(before["heads.2.weight"], axis=1).mean()
    assert factor == pytest.approx(old / new, rel=1e-5) and factor < 0.5
    for name, value in model.state_dict().items():
        scale = factor if name == "heads.2.weight" else 1.0
        np.testing.assert_allclose(value.numpy(), before[name] * scale, rtol=1e-5)


def features(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def numpy_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([x[y == c].mean(0) for c in range(y.max() + 1)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_class_means():
    x, y = features(30) * np.arange(1, 31, dtype=np.float32)[:, None], np.arange(30) % 4
    means = class_means(torch.from_numpy(x), torch.from_numpy(y), 4)
    np.testing.assert_allclose(means.numpy(), numpy_means(x, y), rtol=1e-5, atol=1e-6)


def test_nearest_mean():
    x, y = features(30), np.arange(30) % 4
    means = numpy_means(x, y)
    images = features(9, seed=1) * 5  # their length plays no part
    outputs = Outputs(torch.zeros(9, 4), None, torch.from_numpy(images)[:, None])
    scores = nearest_mean_scores(outputs, torch.from_numpy(means))
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    expected = np.linalg.norm(unit[:, None] - means[None], axis=2)
    np.testing.assert_allclose(scores.numpy(), -expected, rtol=1e-4, atol=1e-5)
    assert scores.argmax(1).tolist() == expected.argmin(1).tolist()


def test_a_class_without_exemplars_is_out_of_reach_of_an_image_on_an_exemplar():
    x, y = features(6), np.array([0, 0, 0, 1, 1, 1])
    means = class_means(torch.from_numpy(x), torch.from_numpy(y), 3)
    scores = nearest_mean_scores(Outputs(torch.zeros(2, 3), None, means[:2, None]), means)
    assert scores.argmax(1).tolist() == [0, 1]


def test_a_class_without_exemplars_is_never_the_nearest():
    means = class_means(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 2)
    opposite = Outputs(torch.zeros(1, 2), None, torch.tensor([[[-1.0, 0.0]]]))
    scores = nearest_mean_scores(opposite, means)
    assert scores[0, 0] == pytest.approx(-2.0) and scores.argmax() == 0
