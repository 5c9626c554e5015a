"""Precision, loss scale, compilation: each says what it changes, and changes nothing else."""

import copy
import os

import pytest
import torch
from test_engine import batches_of, epoch_of, objective_of, sgd, steps_of, weights
from tiny import CPU, TASKS, dytox, images, sampler_of

from continual.data.images import InMemory
from continual.errors import NonFiniteLoss
from continual.losses import binary_cross_entropy, paper_objective
from continual.sam import Sam
from continual.training import precision
from continual.training.batches import Batches
from continual.training.compiling import Compiled
from continual.training.engine import Listener, train_one_epoch
from continual.training.loading import Loading
from continual.training.optim import trained
from continual.training.precision import LossScale

HALF = Loading(torch.device("cpu"), amp="fp16")


@pytest.mark.parametrize(
    ("amp", "has_bf16", "expected"), [("auto", True, "bf16"), ("auto", False, "fp16"), ("off", False, "off")]
)
def test_a_gpu_without_bfloat16_gets_float16(amp, has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert precision.chosen(amp, torch.device("cuda")) == expected
    assert precision.chosen(amp, torch.device("cpu")) == ("off" if amp == "off" else "bf16")


@pytest.mark.parametrize(("amp", "expected"), [("off", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_in_the_precision_that_is_asked_for(amp, expected):
    with precision.autocast(amp, torch.device("cpu")):
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == expected


def test_tensor_float_32_is_on_only_where_asked_for():
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    try:
        for amp, expected in (("tf32", "tf32"), ("off", "ieee")):
            precision.set_products(amp)
            assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def test_exporters_meet_the_settings_that_torch_begins_with():
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [place.fp32_precision for place in places]
    try:
        precision.set_products("off")
        with precision.products_of_torch():
            assert torch.backends.cudnn.allow_tf32  # which raises in between
        assert [place.fp32_precision for place in places[:2]] == ["ieee", "ieee"]
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


# ------------------------------------------------------------------------------------------------------------- float16


def test_float16_trains_close_to_float32():
    full, half, scale = dytox(), dytox(), LossScale(2.0**8)
    expected, losses = epoch_of(full), epoch_of(half, loading=HALF, scale=scale)
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=5e-3) and ours["total"] != theirs["total"]
    assert (weights(full) - weights(half)).abs().max() < 1e-2
    assert (scale.scale, scale.nb_good) == (2.0**8, len(expected))


def test_the_scale_alone_changes_nothing():
    """In float32, where a power of two is exact."""
    plain, scaled = dytox(), dytox()
    for expected, found in zip(epoch_of(plain), epoch_of(scaled, scale=LossScale(2.0**10)), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("with_sam", [False, True])
def test_a_step_that_overflows_is_left_out_and_the_scale_halves(with_sam):
    model, scale = dytox(), LossScale(2.0**126, patience=2)
    before = weights(model)
    sam = {"sam": Sam(trained(model), rho=0.1)} if with_sam else {}
    steps = steps_of(model, images(16), sampler_of(16), scale=scale, **sam)
    scale.scale = 2.0**160  # beyond float32
    next(steps)
    assert torch.equal(weights(model), before) and scale.scale == 2.0**159
    scale.scale = 2.0**10
    next(steps)
    assert not torch.equal(weights(model), before)
    next(steps)
    assert scale.scale == (2.0**12 if with_sam else 2.0**11)  # doubled by two good gradients: SAM takes two in a step


def test_the_scale_goes_on_after_a_resume():
    scale = LossScale(2.0**5, patience=7)
    scale.nb_good = 3
    fresh = LossScale()
    fresh.load_state_dict(scale.state_dict())
    assert (fresh.scale, fresh.nb_good) == (2.0**5, 3)


def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale():
    model = dytox()
    objective = paper_objective(model, lambda logits, y: binary_cross_entropy(logits, y) * torch.nan, task=TASKS[1])
    with pytest.raises(NonFiniteLoss, match="the loss is not finite at epoch 1, step 1"):
        next(steps_of(model, images(16), sampler_of(16), objective=objective, scale=LossScale()))


# --------------------------------------------------------------------------------------------- without waiting for a step


def late_steps(model, bad_step: int, heard: Listener):
    nb_calls = []

    def criterion(logits, targets):
        nb_calls.append(1)
        return binary_cross_entropy(logits, targets) * (torch.nan if len(nb_calls) == bad_step else 1.0)

    optimizer = torch.optim.AdamW(trained(model), lr=0.01, fused=True)
    objective = paper_objective(model, criterion, task=TASKS[1])
    batches = Batches(CPU.loader(images(24), sampler_of(24)))
    return train_one_epoch(objective, batches, optimizer, loading=CPU, listener=heard)


def test_heard_late_the_update_is_left_out_all_the_same():
    model, expected = dytox(), dytox()
    good = late_steps(expected, 99, Listener())
    next(good), next(good)
    steps = late_steps(model, 3, Listener(late=True))
    next(steps), next(steps)
    assert torch.equal(weights(model), weights(expected))
    next(steps)  # not finite, but the host does not know yet
    assert torch.equal(weights(model), weights(expected))
    with pytest.raises(NonFiniteLoss, match=r"the loss is not finite at epoch 1, step 3: clf nan, total nan"):
        next(steps)
    assert torch.equal(weights(model), weights(expected)), "nothing after it is taken either"


def test_what_was_not_heard_yet_is_heard_before_a_checkpoint():
    heard = Listener(late=True)
    steps = late_steps(dytox(), 1, heard)
    next(steps)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        heard.settle()


def test_a_stop_is_heard_with_the_gradients():
    asked = [False]
    for late in (False, True):
        asked[0] = False
        heard = Listener(late=late, requested=lambda: asked[0])
        steps = late_steps(dytox(), 99, heard)
        next(steps)
        asked[0] = True
        assert not heard.asked
        next(steps)
        assert heard.asked is not late
        next(steps)
        assert heard.asked


# ---------------------------------------------------------------------------------------------------- replicas together


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_draws_of_the_model_are_each_replicas_own(drop_path):
    apart, together = dytox(drop_path=drop_path), dytox(drop_path=drop_path)
    how = {"nb": 48, "replicas": 4, "batch_size": 3}
    for ours, theirs in zip(epoch_of(together, replicas_at_once=4, **how), epoch_of(apart, **how), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(weights(together), weights(apart), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- compilation


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its slow last part: the graphs that it finds run as they are. Returns their number so far."""
    compile, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda what, **how: compile(what, backend=backend, dynamic=how["dynamic"]))
    return graphs


def compiled_epoch(model, said: list, *, nb: int = 20, sampler=None, **how) -> list:
    objective = objective_of(model)
    sampler = sampler or sampler_of(nb)
    compiled = Compiled(objective, nb_rows=4, say=said.append)
    batches = Batches(CPU.loader(images(nb), sampler))
    steps = train_one_epoch(objective, batches, sgd(model), loading=how.pop("loading", CPU), compiled=compiled, **how)
    return [{name: float(value) for name, value in losses.items()} for losses, _ in steps]


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_one_graph_for_all_steps_and_the_same_numbers(amp, traced):
    plain, compiled, said = dytox(drop_path=0.5), dytox(drop_path=0.5), []
    loading = Loading(torch.device("cpu"), amp=amp)
    expected, found = epoch_of(plain, nb=20, loading=loading), compiled_epoch(compiled, said, loading=loading)
    assert len(traced) == 1 and not said and len(found) == 5
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5 if amp == "off" else 2e-2)
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-6 if amp == "off" else 1e-2)


def test_a_batch_of_another_size_goes_the_plain_way(traced):
    model = dytox()
    compiled = Compiled(objective_of(model), nb_rows=4)
    assert [compiled.fits(rows) for rows in ((3, 3), (4, 4), (4,), (3, 3), (4, 4))] == [False, True, False, False, True]
    ((x, y),) = batches_of(sampler_of(4), images(4))
    compiled(x, y), compiled(x, y)
    assert len(traced) == 1


def test_where_it_cannot_be_compiled_one_line_says_so(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nanywhere")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what, **how: compile(what, backend=broken))
    plain, compiled, said = dytox(), dytox(), []
    assert compiled_epoch(compiled, said) == epoch_of(plain, nb=20)
    assert torch.equal(weights(compiled), weights(plain))
    (line,) = said
    assert line.startswith("compile: it does not work here, the run goes on without it: ") and "\n" not in line


@pytest.mark.skipif("DYTOX_COMPILE" not in os.environ, reason="takes minutes; DYTOX_COMPILE=1 asks for it")
def test_compiled_for_real():
    """With torch's own compiler: close to the plain numbers, and the same again."""
    plain, once, again, said = dytox(), dytox(), dytox(), []
    expected = epoch_of(plain, nb=12)
    found = compiled_epoch(once, said, nb=12)
    assert not said
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert compiled_epoch(again, said, nb=12) == found and torch.equal(weights(once), weights(again))


# ------------------------------------------------------------------------------------------------------------ the layout


def test_channels_last_is_a_layout_alone():
    last = Loading(torch.device("cpu"), channels_last=True)
    dataset = images(4)
    in_memory = InMemory(dataset.samples, PixelsAsTheyAre(), device=last.device)
    for source in (dataset, in_memory):
        ((x, y),) = last.loader(source, sampler_of(4))
        ((plain, labels),) = CPU.loader(source, sampler_of(4))
        assert x.is_contiguous(memory_format=torch.channels_last) and not plain.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, plain) and torch.equal(y, labels)
    model = dytox().to(memory_format=torch.channels_last)
    torch.testing.assert_close(copy.deepcopy(model)(x).logits, dytox()(plain).logits, rtol=1e-5, atol=1e-6)


class PixelsAsTheyAre:
    """A view without anything random."""

    def prepared(self, pixels):
        return pixels

    def __call__(self, pixels, keys):
        return pixels.permute(0, 3, 1, 2).float().contiguous() / 255
