"""Evaluation and the extraction of features."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from tiny import CLASSES, CPU, TASKS, dytox, images
from torch import nn
from torch.nn import functional as F

from continual.data.images import Images
from continual.dytox import freeze
from continual.jobs import distributed
from continual.training.evaluation import evaluate, evaluating, extract_features, one_pass, rounds
from continual.training.loading import Loading


def brute_force(model: nn.Module, dataset: Images) -> list[list[float]]:
    """Images, top-1, top-5, correct with the task known, sum of losses; per task. One image at a time, in plain loops."""
    counts = [[0.0] * len(TASKS) for _ in range(5)]
    for i in range(len(dataset)):
        x, label = dataset[i]
        scores = model(x[None]).logits[0].tolist()
        task = 0 if label < CLASSES[0] else 1
        mine = range(TASKS[task].nb_old, TASKS[task].nb_seen)
        ranked = sorted(range(len(scores)), key=lambda c: -scores[c])
        values = (1, ranked[0] == label, label in ranked[:5], max(mine, key=lambda c: scores[c]) == label)
        for row, value in enumerate(values):
            counts[row][task] += value
        counts[4][task] += float(F.cross_entropy(torch.tensor([scores]), torch.tensor([label])))
    return counts


@pytest.mark.parametrize("spread", [False, True])
def test_evaluation_counts(spread):
    model, dataset = dytox(), images(50)
    with torch.no_grad():  # away from the start, where all scores are much alike
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        expected = brute_force(copy.deepcopy(model).eval(), dataset)
    scores = evaluate(model, dataset, TASKS, loading=CPU, batch_size=16, spread=spread)
    for ours, theirs in zip(scores.to_lists(), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert sum(scores.top1) < sum(scores.known) < 50 and sum(scores.top1) < sum(scores.top5) < 50
    assert model.training


def test_evaluation_takes_another_score():
    model, dataset = dytox(), images(14)
    right = torch.eye(7)[torch.from_numpy(dataset.samples.y)]
    scores = evaluate(model, dataset, TASKS, loading=CPU, batch_size=14, spread=False, score=lambda _: right)
    assert scores.top1 == scores.nb == (8, 6)


@pytest.mark.parametrize("nb_processes", [1, 2, 3])
def test_evaluation_batches_are_dealt_out_once(monkeypatch, nb_processes):
    monkeypatch.setattr(distributed, "nb_processes", lambda: nb_processes)
    shares = []
    for rank in range(nb_processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(rounds(50, 8, spread=True))
        assert sum(map(len, rounds(50, 8, spread=False))) == 50
    assert {len(share) for share in shares} == {-(-7 // nb_processes)}  # all take part in every round
    together = [batch for share in shares for batch in share if batch]
    assert sorted(map(tuple, together)) == [tuple(range(i, min(i + 8, 50))) for i in range(0, 50, 8)]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_can_leave_between_batches(monkeypatch, rank):
    """Seven batches for two processes: the second one has none in the last round, but is asked nevertheless."""
    monkeypatch.setattr(distributed, "nb_processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    asked = []
    take = partial(one_pass, images(50), 8, loading=CPU, spread=True)
    seen = [index for indices, *_ in take(before_batch=lambda: asked.append(0)) for index in indices]
    assert len(asked) == 4 and len(seen) == (26, 24)[rank]

    def leave():
        asked.append(0)
        if len(asked) == 3:
            raise KeyboardInterrupt

    asked.clear()
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for indices, *_ in take(before_batch=leave):
            seen.append(indices[0])
    assert seen == [8 * rank, 16 + 8 * rank]


def test_evaluating_restores_every_mode():
    model = dytox()
    freeze(model, ("sab",), eval_mode=True)
    modes = [module.training for module in model.modules()]
    assert True in modes and False in modes
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_features_are_the_embeddings():
    model, dataset = dytox(drop_path=0.5), images(20)
    features = extract_features(model, dataset, loading=CPU, batch_size=8, key=())
    x = torch.stack([dataset[i][0] for i in range(20)])
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x).tokens
    assert features.shape == (20, 16) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected.flatten(1).numpy(), rtol=1e-5, atol=1e-6)
    newest = extract_features(model, dataset, loading=CPU, batch_size=8, key=(), newest_only=True)
    np.testing.assert_array_equal(newest, features[:, 8:])
    assert model.training


def test_features_of_augmented_images_depend_on_the_key_alone():
    dataset = images(20)
    dataset.transform = lambda image, plain=dataset.transform: plain(image) + torch.randn(3, 1, 1)
    take = partial(extract_features, dytox(), dataset, loading=CPU)
    first = take(batch_size=8, key=(0, "exemplars"))
    np.testing.assert_allclose(take(batch_size=20, key=(0, "exemplars")), first, rtol=1e-4, atol=1e-6)
    assert np.abs(take(batch_size=8, key=(1, "exemplars")) - first).max() > 1e-3


def test_bfloat16_evaluates_close_to_float32():
    model, dataset = dytox(), images(40)
    half = Loading(torch.device("cpu"), amp="bf16")
    full, halved = (evaluate(model, dataset, TASKS, loading=loading, batch_size=16, spread=False) for loading in (CPU, half))
    assert sum(halved.loss_sum) == pytest.approx(sum(full.loss_sum), rel=2e-2) and halved.loss_sum != full.loss_sum
    features = [extract_features(model, dataset, loading=loading, batch_size=16, key=()) for loading in (CPU, half)]
    assert np.array_equal(*features)  # always float32
