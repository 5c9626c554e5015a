"""The model: against stored outputs of the released code, how it grows, what freezes, and how checkpoints are read."""

import numpy as np
import pytest
import torch
from stored import arrays, config, distance, tensors
from torch import Tensor, nn

from continual.convit import ConViT
from continual.dytox import DyTox, freeze, from_released, rename_released

KINDS = ("1-1", "1-n", "n-1", "n-n")
D = 24


def tiny(ind_clf: str = "1-1", *, tasks: tuple[int, ...] = (), head_div: bool = True, **changes: object) -> DyTox:
    encoder = ConViT(input_size=8, patch_size=4, embed_dim=D, num_heads=4, drop_path_rates=[0.0, 0.0])
    options = {"num_heads": 4, "drop_path_rates": [0.0, 0.0]} | changes
    model = DyTox(encoder, ind_clf=ind_clf, head_div=head_div, **options)
    for nb_new in tasks:
        model.add_task(nb_new)
    return model


def images(nb: int = 3) -> Tensor:
    return torch.randn(nb, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# Outputs


def averaged(logits: np.ndarray, classes: list[int]) -> np.ndarray:
    """The mean over the heads that predict a class, from the released code's logits of a "-n" classifier.

    That code sums the logits of all heads and then divides the first |C^i| columns by (number of heads - i), for each i in
    turn. It means to divide the classes of task i, but counts the columns from 0 each time: with tasks of 3, 2 and 2 classes
    it divides columns 0 and 1 by 3 * 2 * 1, column 2 by 3, and the others by 1. Here its divisor is undone, and the sum is
    divided by the number of heads that predict the class.
    """
    nb_heads = len(classes)
    divisor = np.ones(sum(classes), dtype=np.float32)
    for i, nb in enumerate(classes):
        divisor[:nb] *= nb_heads - i
    heads_of_class = np.repeat([nb_heads - t for t in range(nb_heads)], classes).astype(np.float32)
    return logits * divisor / heads_of_class


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_the_released_code(kind):
    stored = arrays(f"model_{kind}")
    sizes = config(stored)
    model = from_released(tensors(stored, "state/")).eval()
    assert (model.ind_clf, model.classes) == (kind, sizes["classes"])

    x = torch.from_numpy(stored["images"])
    with torch.no_grad():
        outputs, maps = model(x, maps=True)
    logits = averaged(stored["logits"], sizes["classes"]) if kind.endswith("-n") else stored["logits"]
    assert distance(outputs.logits, logits) < 1e-5
    assert distance(outputs.div, stored["div_logits"]) < 1e-5
    assert distance(outputs.tokens, stored["tokens"]) < 1e-5
    assert distance(torch.stack(maps), stored["features"]) < 1e-5
    assert distance(model.attention(x), stored["attention"]) < 1e-5


@pytest.mark.parametrize("nb_tabs", [1, 2])
def test_all_tasks_at_once_equal_one_pass_per_task(nb_tabs):
    model = tiny(tasks=(3, 2, 2), drop_path_rates=[0.0] * nb_tabs).eval()
    x = images()
    features = model.encoder(x)[-1]
    passes = []
    for token in model.task_tokens:
        for tab in model.tabs:
            token = tab(token, features)
        passes.append(token)
    outputs = model(x)
    assert distance(outputs.tokens, torch.cat(passes, dim=1)) < 1e-6
    logits = torch.cat([head(token[:, 0]) for head, token in zip(model.heads, passes, strict=True)], dim=1)
    assert distance(outputs.logits, logits) < 1e-6
    assert distance(outputs.div, model.head_div(passes[-1][:, 0])) < 1e-6


def test_a_new_task_does_not_change_what_old_ones_see():
    model = tiny(tasks=(3, 2)).eval()
    before = model(images())
    model.add_task(2)
    after = model.eval()(images())
    assert distance(after.tokens[:, :2], before.tokens) < 1e-6
    assert distance(after.logits[:, :5], before.logits) < 1e-6


def test_classes_of_a_mean_are_weighed_by_the_heads_that_predict_them():
    model = tiny("1-n", tasks=(2, 1))
    tokens = torch.randn(4, 2, D)
    first, second = model.heads[0](tokens[:, 0]), model.heads[1](tokens[:, 1])
    expected = torch.cat([(first + second[:, :2]) / 2, second[:, 2:]], dim=1)
    assert distance(model.classify(tokens), expected) < 1e-6


def test_attention_of_every_task():
    model = tiny(tasks=(2, 2, 2)).eval()
    attention = model.attention(images())
    assert attention.shape == (3, 3, 4, 1 + 4)
    assert torch.allclose(attention.sum(-1), torch.ones(3, 3, 4))
    assert tiny(tasks=(2, 2), drop_path_rates=[0.0]).attention(images()).shape == (3, 2, 4, 5)


# Growth


def test_a_task_adds_a_token_and_a_classifier_and_nothing_else():
    model = tiny(tasks=(3,))
    assert model.head_div is None and model(images()).div is None
    before, same = weights(model), dict(model.named_parameters())
    model.add_task(2)
    added = set(weights(model)) - set(before)
    own = {f"heads.1.{part}" for part in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
    div = {f"head_div.{part}" for part in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
    assert added == {"task_tokens.1"} | own | div
    for name, p in model.named_parameters():
        if name in before:
            assert p is same[name] and torch.equal(p, before[name]), name


def test_the_divergence_head_is_made_anew():
    model = tiny(tasks=(3, 2))
    old = model.head_div
    assert old.head.weight.shape == (1 + 2, D)
    model.add_task(4)
    assert model.head_div is not old
    assert model.head_div.head.weight.shape == (1 + 4, D)
    assert tiny(tasks=(3, 2, 4), head_div=False).head_div is None


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("1-1", [(3, D), (2, D), (4, D)]),
        ("1-n", [(3, D), (5, D), (9, D)]),
        ("n-1", [(3, D), (2, 2 * D), (4, 3 * D)]),
        ("n-n", [(3, D), (5, 2 * D), (9, 3 * D)]),
        ("", [(9, 3 * D)]),
    ],
)
def test_what_classifiers_read_and_predict(kind, shapes):
    model = tiny(kind, tasks=(3, 2, 4))
    assert [tuple(head.head.weight.shape) for head in model.heads] == shapes
    assert [tuple(head.norm.weight.shape) for head in model.heads] == [shape[1:] for shape in shapes]
    assert model(images()).logits.shape == (3, 9)


def test_the_single_classifier_is_made_anew():
    model = tiny("", tasks=(3,))
    old = model.heads[0]
    model.add_task(2)
    assert len(model.heads) == 1 and model.heads[0] is not old


def test_tokens_start_small_and_different():
    model = tiny(tasks=(1,) * 40)
    tokens = torch.cat(list(model.task_tokens))
    assert tokens.shape == (40, 1, D)
    assert tokens.std().item() == pytest.approx(0.02, rel=0.15)
    assert len({tuple(token.flatten().tolist()) for token in tokens}) == 40


def test_classifiers_can_start_again():
    torch.manual_seed(0)
    model = tiny(tasks=(3, 2))
    nn.init.constant_(model.heads[0].norm.weight, 7.0)
    before = weights(model)
    model.reset_classifiers()
    for name, p in model.named_parameters():
        fresh = name.startswith("heads.") and ("head.weight" in name or "head.bias" in name)
        if name == "heads.0.norm.weight":
            assert torch.equal(p, torch.ones(D))
        else:
            assert torch.equal(p, before[name]) != fresh, name


# Freezing

FROZEN = {
    "all": ("",),
    "sab": ("encoder.",),
    "tab": ("tabs.",),
    "task_tokens": ("task_tokens.",),
    "old_task_tokens": ("task_tokens.0", "task_tokens.1"),
    "heads": ("heads.",),
    "old_heads": ("heads.0.", "heads.1."),
    "head_div": ("head_div.",),
}


def frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("part", FROZEN)
def test_every_part_freezes(part):
    model = tiny(tasks=(2, 2, 2))
    freeze(model, (part,))
    expected = {name for name, _ in model.named_parameters() if name.startswith(FROZEN[part])}
    assert expected
    assert frozen(model) == expected
    assert all(module.training for module in model.modules()), "frozen parts stay in train mode"


def test_every_part_has_a_name():
    assert set(tiny(tasks=(2,)).parts()) == set(FROZEN)


def test_freezing_begins_by_unfreezing():
    model = tiny(tasks=(2, 2))
    freeze(model, ("all",), eval_mode=True)
    freeze(model, ("sab", "old_heads"))
    expected = {name for name in weights(model) if name.startswith(("encoder.", "heads.0."))}
    assert frozen(model) == expected
    assert model.training and model.encoder.training
    freeze(model, ())
    assert frozen(model) == set()


def test_nothing_is_old_in_the_first_task():
    model = tiny(tasks=(2,))
    freeze(model, ("old_task_tokens", "old_heads", "head_div"))
    assert frozen(model) == set()


def test_frozen_parts_can_leave_train_mode():
    model = tiny(tasks=(2, 2))
    freeze(model, ("sab", "old_heads"), eval_mode=True)
    assert not any(module.training for module in [*model.encoder.modules(), *model.heads[0].modules()])
    assert model.training and all(module.training for module in [*model.tabs.modules(), *model.heads[1].modules()])


def test_unknown_parts_do_not_freeze():
    with pytest.raises(KeyError, match="tabs"):
        freeze(tiny(tasks=(2,)), ("tabs",))


# Released checkpoints


def released(model: DyTox, *, prefix: str = "") -> dict[str, Tensor]:
    """Weights under the names of the released code, with a buffer of its own."""
    state = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("encoder.")
        if name.startswith("heads."):
            name = name.replace("heads.0." if model.ind_clf == "" else "heads.", "head.")
        state[prefix + name] = value
    state[prefix + "sabs.0.attn.rel_indices"] = torch.zeros(1, 4, 4, 3)
    return state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_sizes_are_read_off_released_weights(kind, prefix):
    model = tiny(kind, tasks=(3, 2, 2)).eval()
    loaded = from_released(released(model, prefix=prefix)).eval()
    assert (loaded.ind_clf, loaded.classes) == (kind, [3, 2, 2])
    assert len(loaded.tabs) == 2 and len(loaded.encoder.sabs) == 2
    for a, b in zip(loaded(images()), model(images()), strict=True):
        assert torch.equal(a, b)


def test_growing_tasks_are_told_by_the_divergence_head():
    loaded = from_released(released(tiny("1-1", tasks=(2, 3, 4))))
    assert (loaded.ind_clf, loaded.classes) == ("1-1", [2, 3, 4])
    state = released(tiny("1-1", tasks=(2, 3, 4), head_div=False))
    loaded = from_released(state, ind_clf="1-1")
    assert (loaded.classes, loaded.head_div) == ([2, 3, 4], None)


def test_a_loaded_model_can_learn_on():
    loaded = from_released(released(tiny(tasks=(3, 2))))
    loaded.add_task(4)
    outputs = loaded(images())
    assert (outputs.logits.shape, outputs.div.shape) == ((3, 9), (3, 5))


def test_scale_norm_is_told_by_its_parameter():
    encoder = ConViT(input_size=8, patch_size=4, embed_dim=D, num_heads=4, drop_path_rates=[0.0], norm="scale")
    model = DyTox(encoder, num_heads=4, drop_path_rates=[0.0], norm="scale", ind_clf="1-1")
    model.add_task(2)
    assert torch.equal(from_released(released(model))(images()).logits, model(images()).logits)


def test_single_classifier():
    model = tiny("", tasks=(3, 2))
    assert "head.head.weight" in released(model)
    loaded = from_released(released(model))
    assert (loaded.ind_clf, loaded.classes) == ("", [3, 2])
    assert torch.equal(loaded(images()).logits, model(images()).logits)


def test_tasks_of_a_single_classifier_must_be_given():
    state = released(tiny("", tasks=(3, 2, 2)))
    with pytest.raises(ValueError, match="nb_classes"):
        from_released(state)
    assert from_released(state, nb_classes=[3, 2, 2]).classes == [3, 2, 2]


def without(state: dict[str, Tensor], *starts: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    "broken",
    [
        lambda state: {},
        lambda state: {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        lambda state: without(state, "patch_embed.proj.weight"),
        lambda state: without(state, "sabs.0.attn.gating_param"),
        lambda state: without(state, "task_tokens", "head."),
        lambda state: without(state, "head."),
        lambda state: without(state, "head.1.head.weight"),
        lambda state: without(state, "tabs.1.attn.q"),
        lambda state: without(state, "pos_embed"),
        lambda state: state | {"tabs.0.attn.q.weight": torch.zeros(D, D + 1)},
        lambda state: state | {"pos_embed": torch.zeros(1, 7, D)},
        lambda state: state | {"fc.weight": torch.zeros(3, 3)},
    ],
    ids=[
        "empty",
        "resnet",
        "no patch embedding",
        "no gate",
        "no task",
        "no classifier",
        "half a classifier",
        "half a TAB",
        "no positions",
        "wrong shape",
        "no square",
        "more than DyTox",
    ],
)
def test_other_weights_are_refused(broken):
    with pytest.raises(ValueError):
        from_released(broken(released(tiny(tasks=(3, 2)))))


@pytest.mark.parametrize("options", [{"nb_classes": [4, 1]}, {"nb_classes": [3]}, {"ind_clf": "n-n"}, {"ind_clf": ""}])
def test_weights_that_do_not_fit_what_is_asked_are_refused(options):
    with pytest.raises(ValueError):
        from_released(released(tiny(tasks=(3, 2))), **options)


def test_names_are_those_of_the_package():
    model = tiny(tasks=(3, 2))
    assert set(rename_released(released(model, prefix="module."))) == set(model.state_dict())


def test_distances_between_task_tokens_are_over_all_pairs():
    model = tiny(tasks=(2, 2, 1))
    tokens = torch.cat([token[0] for token in model.task_tokens]).detach().numpy()
    pairs = [(i, j) for i in range(len(tokens)) for j in range(i)]
    expected = sorted(float(np.linalg.norm(tokens[i] - tokens[j])) for i, j in pairs)
    assert sorted(model.token_distances()) == pytest.approx(expected, rel=1e-5) and len(expected) > 1
    assert tiny(tasks=(2,)).token_distances() == []
