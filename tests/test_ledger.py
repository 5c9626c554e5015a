"""What a run costs, counted without changing it."""

import json
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from jobs import THREE_TASKS, assert_equal, checkpoints, finish, folders, logs, run
from tiny import CPU, TASKS, dytox, images
from torch import nn
from torch.nn import functional as F

from continual.rehearsal import Memory
from continual.runs import ledger as books
from continual.runs.ledger import EVALUATION, OTHER, PARTS, SAVING, STEP, Ledger, Line
from continual.seeing.tables import amount, cost_text


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(books.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def ledger(clock):
    return Ledger(torch.device("cpu"))


def test_every_second_is_charged_to_one_part(ledger, clock):
    clock.now += 1
    with ledger.part(EVALUATION, TASKS[1]):
        clock.now += 2
        with pytest.raises(RuntimeError), ledger.part(SAVING):
            clock.now += 4
            raise RuntimeError
        clock.now += 8
    clock.now += 16
    assert ledger.total() == 31
    assert ledger.seconds == dict.fromkeys(PARTS, 0.0) | {OTHER: 17, EVALUATION: 10, SAVING: 4}
    assert ledger.lines == {(1, EVALUATION): Line(seconds=10)}


def test_training_waits_for_data_steps_and_goes_on(ledger, clock):
    def batches():
        for _ in range(3):
            with ledger.waiting():
                clock.now += 1
            clock.now += 10
            yield {}, 4

    for _ in ledger.training(batches(), TASKS[0], "training"):
        clock.now += 100
    assert ledger.seconds == dict.fromkeys(PARTS, 0.0) | {"data": 3, STEP: 30, OTHER: 300}
    assert ledger.lines[0, "training"] == Line(images=12, steps=3, seconds=33)


def test_what_is_waited_for_a_loader_is_data(ledger, clock, monkeypatch):
    loader = ledger.timed(CPU).loader(images(5), [[0, 1], [2, 3]])
    opened = type(loader.dataset).__getitem__
    monkeypatch.setattr(
        type(loader.dataset), "__getitem__", lambda *item: (setattr(clock, "now", clock.now + 1), opened(*item))[1]
    )
    with ledger.part(STEP):
        batches = list(loader)
    assert [len(x) for x, _ in batches] == [2, 2]
    assert ledger.seconds["data"] == 4 and ledger.seconds[STEP] == 0


# FLOPs: a product of (n, m) with (m, k) is 2 n m k.

LINEAR = 2 * 5 * 3  # of one image in nn.Linear(5, 3)


def steps_of(model, sizes, optimizer=None):
    for size in sizes:
        x = torch.ones(size, 5, requires_grad=True)
        model(x).sum().backward()
        yield {}, size


def test_flops_of_a_tiny_model_are_those_on_paper(ledger):
    list(ledger.training(steps_of(nn.Linear(5, 3), [4, 4, 2]), TASKS[0], "training"))
    assert ledger.lines[0, "training"].flops == 10 * 3 * LINEAR  # forward, and the gradients of input and weights


def test_flops_are_measured_anew_for_every_phase_of_every_task_and_only_then(ledger, monkeypatch):
    measured, count = [], books._Flops
    monkeypatch.setattr(books, "_Flops", lambda: measured.append(1) or count())
    for task in TASKS:
        for phase in ("training", "finetuning"):
            for _ in range(3):
                list(ledger.training(steps_of(nn.Linear(5, 3), [4, 4]), task, phase))
    assert len(measured) == 4


def test_a_pass_over_images_counts_them_and_measures_its_first_batch(ledger):
    model = nn.Linear(5, 3)
    for _ in range(2):
        with ledger.part(EVALUATION, TASKS[0], model), torch.no_grad():
            for size in (4, 4, 1):
                model(torch.ones(size, 5))
    model(torch.ones(7, 5))
    assert ledger.lines[0, EVALUATION].images == 18
    assert ledger.lines[0, EVALUATION].flops == 18 * LINEAR


def test_a_pass_that_fails_leaves_no_count_behind(ledger):
    model = nn.Linear(5, 3)
    with pytest.raises(RuntimeError), ledger.part(EVALUATION, TASKS[0], model):
        model(torch.ones(4, 6))
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_attention_on_the_cpu_is_counted():
    """PyTorch itself takes it for nothing; once it does not, ATTENTION_ON_CPU can go."""
    q, k, v = (torch.ones(2, 3, n, d, requires_grad=True) for n, d in ((5, 8), (7, 8), (7, 8)))
    with books._Flops() as counted:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert counted.nb == 7 * (2 * 2 * 3 * 5 * 7 * 8)  # two products forward, five backward
    with torch.utils.flop_counter.FlopCounterMode(display=False) as theirs:
        F.scaled_dot_product_attention(q, k, v)
    assert theirs.get_total_flops() == 0


@pytest.mark.parametrize(
    "model",
    [dytox(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(144, 3))],
    ids=["attention", "convolutions"],
)
@pytest.mark.parametrize("without_gradients", [nullcontext, torch.no_grad, torch.inference_mode])
def test_as_many_as_pytorch_counts(model, without_gradients):
    def compute():
        with without_gradients():
            x = torch.rand(2, 3, 8, 8)
            logits = model(x)
            logits = getattr(logits, "logits", logits)
        if logits.requires_grad:
            logits.square().sum().backward()

    with books._Flops() as counted:
        compute()
    with torch.utils.flop_counter.FlopCounterMode(display=False, custom_mapping=books.ATTENTION_ON_CPU) as theirs:
        theirs.mod_tracker.__exit__()  # its hooks stop at views made without gradients
        compute()
        theirs.mod_tracker.__enter__()
    assert counted.nb == theirs.get_total_flops() > 0


def test_what_is_waited_for_is_no_flop_and_counting_goes_on_behind_it(ledger):
    def steps():
        nn.Linear(5, 3)(torch.ones(1, 5))
        with ledger.waiting():
            assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()  # workers forked here count nothing
            nn.Linear(5, 3)(torch.ones(100, 5))
        nn.Linear(5, 3)(torch.ones(1, 5))
        yield {}, 2

    list(ledger.training(steps(), TASKS[0], "training"))
    assert ledger.lines[0, "training"].flops == 2 * LINEAR


@pytest.mark.parametrize("amp", [False, True])
def test_counting_changes_no_bit(ledger, amp):
    def train(model, book):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        def steps():
            for seed in range(3):
                torch.manual_seed(seed)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                    loss = model(torch.rand(4, 3, 8, 8)).logits.float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                yield {}, 4

        list(book(steps()))
        return model.state_dict()

    counted = train(dytox(drop_path=0.5), lambda steps: ledger.training(steps, TASKS[1], "training"))
    assert_equal(counted, train(dytox(drop_path=0.5), iter))
    assert ledger.lines[1, "training"].flops > 0
    model, x = dytox(), torch.rand(4, 3, 8, 8)
    with torch.no_grad(), ledger.part(EVALUATION, TASKS[1], model):
        assert torch.equal(model(x).logits, model(x).logits)  # the first is counted, the second is not


# What is kept.


def test_a_ledger_goes_on_from_its_state(ledger, clock):
    list(ledger.training(steps_of(nn.Linear(5, 3), [4, 4]), TASKS[0], "training"))
    clock.now += 5
    state = json.loads(json.dumps(ledger.state_dict()))
    again = Ledger(torch.device("cpu"))
    clock.now += 1000
    again.load_state_dict(state, seconds=-1.0)
    for each in (ledger, again):
        list(each.training(steps_of(nn.Linear(5, 3), [2]), TASKS[0], "training"))
    assert again.lines == ledger.lines and again.total() == 5
    older = Ledger(torch.device("cpu"))
    older.load_state_dict({}, seconds=7.0)  # of a checkpoint that knows no more
    assert older.total() == 7.0 and older.seconds[OTHER] == 7.0


def test_the_cost_in_bytes_and_words(ledger):
    memory, teacher = Memory(9), nn.Linear(5, 3, bias=False)
    cost = ledger.cost(nn.BatchNorm1d(4), teacher, memory)
    assert cost["model_bytes"] == 4 * 4 * 4 + 8 and cost["teacher_bytes"] == 60  # float32; one int64 counts batches
    assert cost["exemplar_bytes"] == 0 and not cost["exemplars_are_paths"] and cost["peak_device_memory"] is None
    assert cost["peak_host_memory"] > 50e6  # Python with torch
    memory.add(np.zeros((3, 8, 8, 3), dtype=np.uint8), np.arange(3), np.arange(3))
    cost = ledger.cost(nn.BatchNorm1d(4), None, memory)
    assert cost["exemplar_bytes"] == 3 * 8 * 8 * 3 and cost["teacher_bytes"] == 0
    assert cost_text(cost).endswith("teacher 0 B, exemplars 576 B") and len(cost_text(cost).splitlines()) == 3
    memory.x = np.array(["a.jpg", "b.jpg", "c.jpg"])
    cost = ledger.cost(teacher, None, memory)
    assert cost["exemplar_bytes"] == 0 and cost_text(cost).endswith("exemplars paths")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999.4, "999 B"), (999.6, "1 kB"), (1234567, "1.23 MB"), (5e21, "5 ZB"), (5e25, "5e+04 ZB")],
)
def test_amounts(number, text):
    assert amount(number, "B") == text


def test_a_killed_and_resumed_run_counts_what_an_undisturbed_one_does(tmp_path, done):
    job = run([*THREE_TASKS, *folders(tmp_path)], tmp_path, fault="kill:step:9")
    assert job.codes == [-9]
    begun = time.monotonic()
    finish(["--resume", str(checkpoints(tmp_path))], tmp_path)
    whole, killed = (json.loads((logs(folder) / "summary.json").read_text()) for folder in (done, tmp_path))
    for key in ("images", "steps", "flops", "images_evaluated", "model_bytes", "exemplar_bytes"):
        assert killed["cost"][key] == whole["cost"][key] > 0, key
    for summary in (whole, killed):
        assert summary["time"] == pytest.approx(sum(summary["cost"]["seconds"].values()), abs=0.2)
    assert killed["time"] < whole["time"] + time.monotonic() - begun


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_views_of_weights_are_no_trouble_where_there_are_no_gradients(ledger, without_gradients):
    class Viewing(nn.Linear):
        def forward(self, x):
            return nn.Identity()(self.weight.view(3, 5)) @ x.T

    model = Viewing(5, 3)
    with ledger.part(EVALUATION, TASKS[0], model), without_gradients():
        model(torch.ones(4, 5))
    assert ledger.lines[0, EVALUATION].flops == 4 * LINEAR
