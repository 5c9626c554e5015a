"""What a trained model answers on any images: by its method's own rule, with probabilities.

A probability is the softmax of the scores over the classes that can be answered: all that the model knows, or those of one
task. Of a model trained with cross entropy that is what it was trained to say. One trained with binary cross entropy (DyTox)
says sigma(l_c) for every class by itself; that exactly one of them is right then makes class c

    sigma(l_c) prod_{j != c} (1 - sigma(l_j)) / sum over classes  =  exp(l_c) / sum_j exp(l_j),

the softmax again. Of the nearest mean of exemplars (iCaRL) the scores are minus distances, at most 2: their softmax ranks
the classes, and is nearly flat.

Letters:  B images in a batch   C classes that can be answered   S side of the model's input
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from continual.data.samples import Samples
from continual.dytox import Outputs
from continual.errors import CheckpointError, DataError, OptionsError, one_line
from continual.methods import Moment
from continual.training import evaluation, precision
from continual.training.loading import Loading

if TYPE_CHECKING:
    from continual.runs.loading import Trained

T = TypeVar("T")
Score = Callable[[Outputs], Tensor]


class Answer(NamedTuple):
    """One class that an image may be of; task: the one that brought it, from 0."""

    name: str
    task: int
    probability: float
    label: int


def loading_of(trained: Trained) -> Loading:
    """The device that the model is on, and the precision that the run evaluates in there."""
    device, optim = next(trained.model.parameters()).device, trained.options.optim
    return Loading(device, amp=precision.chosen("off" if optim.no_amp else optim.amp, device))


def by_classifier(outputs: Outputs) -> Tensor:
    """What a rule of scores falls back on: the model's own. (B, C_all)"""
    return outputs.scores()


def own_rule(trained: Trained, *, root: str | None = None) -> Score:
    """What the method turns Outputs into scores by. root: the data folder, where the memory holds paths.

    Raises DataError if the rule needs images that are not there.
    """
    labels_of(trained, None)
    loading = loading_of(trained)

    def features(samples: Samples) -> Tensor:
        images = trained.preprocess.images(samples, root)
        size = trained.options.data.eval_batch_size
        found = evaluation.extract_features(trained.model, images, loading=loading, batch_size=size, key=())
        return torch.from_numpy(found).to(loading.device)

    def batches(samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
        images, size = trained.preprocess.images(samples, root), trained.options.data.eval_batch_size
        for _, x, y in evaluation.one_pass(images, size, loading=loading, spread=False):
            yield x, y

    none = Samples(np.zeros((0, 1, 1, 3), dtype=np.uint8), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    moment = Moment(trained.tasks[-1], trained.model, trained.memory, none, features, batches)
    try:
        return trained.method.answer(moment)
    except Exception as error:
        told = str(error) if isinstance(error, DataError) else one_line(error)
        raise DataError(f"the rule by which {trained.options.method} answers needs its images: {told}") from error


def labels_of(trained: Trained, task: int | None) -> range:
    """The labels that can be answered: of one task (from 0), or all.

    Raises OptionsError for a task that was not learned, CheckpointError if none was.
    """
    if not trained.tasks:
        raise CheckpointError(f"the checkpoint {trained.checkpoint} is of the very start: no task was learned yet")
    if task is None:
        return range(len(trained.classes))
    if not 0 <= task < len(trained.tasks):
        raise OptionsError(f"task: {task} is not one of the {len(trained.tasks)} tasks that the model knows, counted from 0")
    return range(trained.tasks[task].nb_old, trained.tasks[task].nb_seen)


def answers(
    trained: Trained,
    images: Iterable[Any],
    *,
    score: Score,
    top: int = 5,
    task: int | None = None,
    batch_size: int = 64,
    refused: Callable[[Any, DataError], None] | None = None,
) -> Iterator[list[Answer]]:
    """The likeliest classes of every image, the likeliest first, as fast as they come.

    images: of any kind that `Preprocessing` takes. refused: hears of an image that cannot be read, which gets no answers;
    without it the DataError is raised. task: the only one whose classes are answered.
    """
    labels, loading = labels_of(trained, task), loading_of(trained)

    def opened(image: Any) -> Tensor | DataError:
        try:
            return trained.preprocess.pixels(image)
        except DataError as error:
            return error

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        batches = ((batch, pool.map(opened, batch)) for batch in _batches(images, batch_size))
        for batch, found in _one_ahead(batches):
            found = list(found)
            for image, each in zip(batch, found, strict=True):
                if isinstance(each, DataError):
                    if refused is None:
                        raise each
                    refused(image, each)
            good = [each for each in found if isinstance(each, Tensor)]
            told = iter(_told(trained, torch.stack(good), labels, top, score, loading) if good else [])
            yield from ([] if isinstance(each, DataError) else next(told) for each in found)


@torch.inference_mode()
def _told(trained: Trained, pixels: Tensor, labels: range, top: int, score: Score, loading: Loading) -> Sequence[list[Answer]]:
    """pixels uint8 (B, 3, S, S) -> the answers on each."""
    images = trained.preprocess.finish(pixels.to(loading.device))
    with evaluation.evaluating(trained.model), loading.precision():
        outputs = trained.model(images)
    scores = score(outputs).float()[:, labels.start : labels.stop]  # (B, C)
    best = scores.softmax(dim=1).topk(min(top, len(labels)), dim=1)
    names, of_task = trained.classes, trained.task_of
    return [
        [
            Answer(names[label], of_task[label], probability, label)
            for label, probability in zip((labels.start + index for index in indices), probabilities, strict=True)
        ]
        for indices, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _batches(images: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(images)
    while batch := list(islice(rest, size)):
        yield batch


def _one_ahead(values: Iterable[T]) -> Iterator[T]:
    """The same, each once the next has been asked for: whose images are then opened while the model computes."""
    rest = iter(values)
    for value in islice(rest, 1):
        for following in rest:
            yield value
            value = following
        yield value
