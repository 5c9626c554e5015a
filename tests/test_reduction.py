"""The mean of gradients over processes: whatever is sliced, early or late, it is the mean."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from jobs import SERVER, TIMEOUT
from torch import Tensor, nn

from continual.jobs import reduction
from continual.jobs.reduction import Reduction

NB = 2


def model_of() -> nn.ModuleDict:
    torch.manual_seed(0)
    sizes = {"first": (4, 6), "second": (6, 5), "third": (5, 3), "unused": (3, 2)}
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})


def loss_of(model: nn.ModuleDict, rank: int, step: int, batch: int) -> Tensor:
    """In step 1 the second layer is skipped, in step 2 it is back, and so is what was never used before."""
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(100 * step + 10 * batch + rank))
    x = model["first"](x).tanh()
    x = model["second"](x).tanh() if step != 1 else x[:, :5]
    x = model["third"](x)
    return (model["unused"](x) if step == 2 else x).square().mean()


def gradients(model: nn.Module) -> list[list[float] | None]:
    return [None if p.grad is None else p.grad.flatten().tolist() for p in model.parameters()]


def reduce_together(rank: int, store: str, said: str, size: int) -> None:
    torch.set_num_threads(1)
    reduction.SLICE = size
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NB, timeout=timedelta(seconds=60))
    model = model_of()
    reduce = Reduction(model.parameters())
    found = []
    for step in range(4):
        loss_of(model, rank, step, 0).backward()
        words = reduce.backward(loss_of(model, rank, step, 1), torch.tensor([float(rank + step), 1.0]))
        found.append([gradients(model), words.tolist()])
        model.zero_grad(set_to_none=True)
    Path(said).write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 40, 2**20], ids=["every parameter alone", "some together", "all together"])
def test_every_process_gets_the_mean(size, tmp_path):
    files = [tmp_path / str(rank) for rank in range(NB)]
    args = [(rank, str(tmp_path / "store"), str(file), size) for rank, file in enumerate(files)]
    started = [SERVER.Process(target=reduce_together, args=each) for each in args]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT)
    first, second = (json.loads(file.read_text()) for file in files)
    assert first == second
    for step, (found, words) in enumerate(first):
        assert words == [step + 0.5, 1.0]
        of_ranks = []
        for rank in range(NB):
            model = model_of()
            for batch in range(2):
                loss_of(model, rank, step, batch).backward()
            of_ranks.append(gradients(model))
        for mine, *theirs in zip(found, *of_ranks, strict=True):
            if theirs == [None, None]:
                assert mine is None
            else:
                mean = torch.tensor(theirs).mean(0)
                torch.testing.assert_close(torch.tensor(mine), mean, rtol=1e-6, atol=1e-8)


def test_alone_nothing_is_copied():
    model = model_of()
    reduce = Reduction(model.parameters())
    words = torch.tensor([3.0])
    assert reduce.backward(loss_of(model, 0, 0, 0), words) is words
    plain = model_of()
    loss_of(plain, 0, 0, 0).backward()
    assert gradients(model) == gradients(plain) and not reduce._slices
