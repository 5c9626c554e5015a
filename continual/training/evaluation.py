"""A model as it stands: evaluation, and the extraction of features.

Letters:  B batch   T tasks seen   D embed_dim   C_all classes seen
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continual.data.images import Images, InMemory
from continual.data.samplers import Draw
from continual.dytox import Outputs
from continual.jobs import distributed
from continual.metrics import Scores
from continual.tasks import Task
from continual.training.loading import Loading


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside every module is in the mode it was in, frozen parts included."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def rounds(nb_samples: int, batch_size: int, *, spread: bool, rank: int | None = None) -> list[list[int]]:
    """Consecutive batches, the same for any number of processes.

    spread: round-robin over processes; returns the batches of process `rank` (this one), padded with empty ones.
    """
    batches = [list(range(i, min(i + batch_size, nb_samples))) for i in range(0, nb_samples, batch_size)]
    if not spread:
        return batches
    processes = distributed.nb_processes()
    batches += [[]] * (-len(batches) % processes)
    return batches[distributed.rank() if rank is None else rank :: processes]


def one_pass(
    dataset: Images | InMemory,
    batch_size: int,
    *,
    loading: Loading,
    spread: bool,
    key: tuple | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Indices, images and labels of this process's batches, in order.

    key: what the augmentation depends on, besides the position, if the data set augments. before_batch: called before every
    round, by all processes together, so that they can agree to leave.
    """
    own = rounds(len(dataset), batch_size, spread=spread)
    draws = [Draw(np.array(batch), key, np.array(batch)) for batch in own if batch]
    loaded = iter(loading.loader(dataset, draws))
    for indices in own:
        before_batch()
        if indices:
            yield indices, *next(loaded)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Images | InMemory,
    tasks: Sequence[Task],
    *,
    loading: Loading,
    batch_size: int,
    spread: bool,
    score: Callable[[Outputs], Tensor] = Outputs.scores,
    before_batch: Callable[[], None] = lambda: None,
    kept: list[Tensor] | None = None,
) -> Scores:
    """Score the model, as it stands, on images of the given tasks, all of them seen. The counts are over all processes.

    spread: each process evaluates its share (`dist_eval`); else every process evaluates everything.
    score: Outputs -> (B, C_all), the higher the likelier. before_batch: see `one_pass`. kept: a list that takes of each batch
    (B, C_all + 2) what it was answered: the class with task unknown, with task known, and the scores; see `in_order`.
    """
    of_task = torch.repeat_interleave(
        torch.arange(len(tasks), device=loading.device),
        torch.tensor([task.nb_new for task in tasks], device=loading.device),
    )  # (C_all,), the task of each class
    distributed.share_buffers(model)
    counts = torch.zeros(5, len(tasks), dtype=torch.float64, device=loading.device)
    for _, images, labels in one_pass(dataset, batch_size, loading=loading, spread=spread, before_batch=before_batch):
        with evaluating(model), loading.precision():
            outputs = model(images)
        logits = score(outputs).float()
        task = of_task[labels]  # (B,)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = ranked == labels[:, None]
        answer_known = logits.masked_fill(of_task[None, :] != task[:, None], -torch.inf).argmax(1)
        known = answer_known == labels
        loss = F.cross_entropy(logits, labels, reduction="none")
        if kept is not None:
            kept.append(torch.cat([ranked[:, :1], answer_known[:, None], logits], dim=1).cpu())
        for row, value in enumerate((torch.ones_like(loss), hits[:, 0], hits.any(1), known, loss)):
            counts[row].index_add_(0, task, value.double())
    if spread:
        distributed.sum_over_processes(counts)
    return Scores.from_lists(counts.tolist())


@torch.inference_mode()
def extract_features(
    model: nn.Module,
    dataset: Images | InMemory,
    *,
    loading: Loading,
    batch_size: int,
    key: tuple,
    newest_only: bool = False,
    before_batch: Callable[[], None] = lambda: None,
) -> np.ndarray | None:
    """Task embeddings of every image in float32, on the main process; None on the others, which compute their share.

    (n, T D), e_1 .. e_T one behind the other; newest_only: (n, D), e_T alone. Never in mixed precision, as in the released
    code. key, before_batch: see `one_pass`.
    """
    distributed.share_buffers(model)
    own = []
    for _, images, _ in one_pass(dataset, batch_size, loading=loading, spread=True, key=key, before_batch=before_batch):
        with evaluating(model):
            tokens = model(images).tokens
        own.append((tokens[:, -1] if newest_only else tokens.flatten(1)).float().cpu())
    return in_order(own, len(dataset), batch_size)


def in_order(own: Sequence[Tensor], nb_samples: int, batch_size: int, *, spread: bool = True) -> np.ndarray | None:
    """Rows (b, F) of this process's batches of one pass -> (n, F) of all samples, on the main process; None on the others."""
    rows = torch.cat(list(own)) if own else torch.empty(0, 0)
    if not spread:
        return rows.numpy() if distributed.is_main() else None
    gathered = distributed.gather_rows(rows)
    if gathered is None:
        return None
    found = np.empty((nb_samples, gathered[0].shape[1]), dtype=np.float32)
    for rank, of_rank in enumerate(gathered):
        indices = [index for batch in rounds(nb_samples, batch_size, spread=True, rank=rank) for index in batch]
        if indices:  # a process may have had no batch, and then does not know how wide a row is
            found[indices] = of_rank.numpy()
    return found
