"""What the kept checkpoints of a run give on some of its images: features, task embeddings, tokens, weights, attention.

Checkpoints are chosen, at most ten of them evenly over the tasks; images are chosen, evenly over the classes. Nothing is
trained and nothing is written. What cannot be had is told in words.

Letters:  n images   N patches   D embed_dim   T tasks   C classes   H heads
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continual.data.identity import of_data
from continual.data.samples import Samples
from continual.datasets import Benchmark
from continual.errors import CheckpointError, Refused, one_line
from continual.files import UNREADABLE
from continual.jobs import distributed
from continual.methods import Moment
from continual.randomness import seeded
from continual.report.reading import Past
from continual.runs import predictions
from continual.runs.experiment import benchmark_of, images_of
from continual.runs.loading import Trained
from continual.runs.predictions import Predictions
from continual.training import evaluation
from continual.training.evaluation import evaluating
from continual.training.loading import Loading

CHECKPOINTS = 10  # looked into, at most
TRAINING_IMAGES, TEST_IMAGES = 2000, 2000  # chosen, about; at most AT_MOST of a class for probes
AT_MOST = 100
FEATURES = 2048  # of an image's embeddings; more are projected at random (Johnson and Lindenstrauss 1984)
FAILS = (Refused, *UNREADABLE, RuntimeError, AttributeError)  # what loading and using a model of anyone's can raise


@dataclass(frozen=True, eq=False)
class View:
    """How one model sees the chosen images, those of training first.

    patches: (n, D) the mean of the encoder's last map over the patches; of several encoders side by side. None without an
    `encoder`. embeddings: (n, T D) the task embeddings, or the projection of them. norms: (C,) the length of every class's row
    in the classifiers; None where no linear layer gives the classes. tokens: (T, D) the task tokens; None without any.
    """

    patches: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    norms: np.ndarray | None = None
    tokens: np.ndarray | None = None


@dataclass(eq=False)
class Inside:
    """All that a run's checkpoints give. views: by task; untrained: how a model with fresh weights sees the same images.

    samples: the chosen images; is_test: (n,) which of them are for testing; places: (n,) where these stand among all test
    images, else -1. attention: (B, T, H, 1 + N) of the newest model over `shown`, places of test images.
    missing: what could not be had, one line each.
    """

    views: dict[int, View] = field(default_factory=dict)
    untrained: View | None = None
    samples: Samples | None = None
    is_test: np.ndarray | None = None
    places: np.ndarray | None = None
    pixels: np.ndarray | None = None  # (B, S, S, 3) of the images shown, in [0, 1]
    shown: np.ndarray | None = None
    attention: np.ndarray | None = None
    missing: list[str] = field(default_factory=list)

    def features(self, kind: str) -> dict[int, np.ndarray]:
        """ "patches" or "embeddings" by task, of the views that have them."""
        return {task: getattr(view, kind) for task, view in self.views.items() if getattr(view, kind) is not None}


class Data:
    """The images of a run, where they are still there, in the plain view. Raises DataError, OptionsError, CheckpointError."""

    def __init__(self, past: Past, trained: Trained):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.loading = Loading(self.device, distributed.workers_of_this_process(trained.options.data.num_workers))
        self.benchmark: Benchmark = benchmark_of(trained.options, download=False)
        found = of_data(self.benchmark)
        for key in ("classes", "training_digest", "test_digest"):
            if past.identity.get(key, found[key]) != found[key]:
                raise CheckpointError(f"the data set is no longer that of the run ({key.replace('_', ' ')} differs)")
        self.images = images_of(trained.options, self.benchmark, self.device)
        self.size = trained.options.data.eval_batch_size

    def passing(self, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (B, 3, S, S) and labels (B,)."""
        dataset = self.images(samples, augment=False)
        for _, images, labels in evaluation.one_pass(dataset, self.size, loading=self.loading, spread=False):
            yield images, labels

    def answered(self, trained: Trained, task: int) -> Predictions:
        """What the model of a checkpoint answers on the test images of the classes seen, as its run would have kept it."""
        model, tasks, test = trained.model.to(self.device), trained.tasks[: task + 1], self.benchmark.test_samples
        features = partial(evaluation.extract_features, model, loading=self.loading, batch_size=self.size, key=())

        def of_samples(samples: Samples) -> Tensor:
            return torch.from_numpy(features(self.images(samples, augment=False))).to(self.device)

        new = self.benchmark.train(task)
        moment = Moment(tasks[-1], model, trained.memory, new, of_samples, self.passing)
        kept: list[Tensor] = []
        evaluation.evaluate(
            model,
            self.images(test.take(test.t <= task), augment=False),
            tasks,
            loading=self.loading,
            batch_size=self.size,
            spread=False,
            score=trained.method.answer(moment),
            kept=kept,
        )
        return predictions.of_rows(torch.cat(kept).numpy(), test, tasks).packed()


def chosen(tasks: Sequence[int], most: int = CHECKPOINTS) -> list[int]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(tasks) <= most:
        return list(tasks)
    return [tasks[place] for place in np.unique(np.linspace(0, len(tasks) - 1, most).round().astype(int))]


def evenly(labels: np.ndarray, most: int) -> np.ndarray:
    """The places of at most so many images of each class, evenly over these, in order."""
    found = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        found.append(of_class[np.unique(np.linspace(0, len(of_class) - 1, min(most, len(of_class))).round().astype(int))])
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=int)


def class_norms(model: nn.Module, nb_classes: int) -> np.ndarray | None:
    """The length of every class's row of weights, (C,), times the scale of the LayerNorm before it where there is one.

    From `heads` that give each class once, in order, or from one `head`; None from anything else.
    """
    heads = list(getattr(model, "heads", None) or [getattr(model, "head", None)])
    rows = []
    for head in heads:
        linear, norm = getattr(head, "head", head), getattr(head, "norm", None)
        if not isinstance(linear, nn.Linear):
            return None
        scale = getattr(norm, "weight", None)
        weight = linear.weight.detach().double().cpu()
        rows.append((weight * scale.detach().double().cpu() if scale is not None else weight).norm(dim=1))
    found = torch.cat(rows).numpy()
    return found if len(found) == nb_classes else None


@contextmanager
def _last_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that takes of every forward the mean of the last map of each encoder, (B, D)."""
    encoders = [
        each for each in [model, *getattr(model, "extractors", [])] if isinstance(getattr(each, "encoder", None), nn.Module)
    ]
    means: list[Tensor] = []
    hooks = [each.encoder.register_forward_hook(lambda _, __, maps: means.append(maps[-1].mean(1))) for each in encoders]
    try:
        yield means
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def view(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]] | None, nb_classes: int) -> View:
    """How a model sees batches of images; without any, its weights and tokens alone."""
    tokens = model.tokens()[0].float().cpu().numpy() if hasattr(model, "task_tokens") else None
    weights = {"norms": class_norms(model, nb_classes), "tokens": tokens}
    if batches is None:
        return View(**weights)
    patches, embeddings, project = [], [], None
    with evaluating(model), _last_maps(model) as means:
        for images, _ in batches:
            means.clear()
            rows = model(images).tokens.flatten(1).float()
            if rows.shape[1] > FEATURES:
                project = _projection(rows.shape[1], rows.device) if project is None else project
                rows = rows @ project
            embeddings.append(rows.cpu())
            patches.append(torch.cat(means, 1).float().cpu() if means else torch.empty(len(images), 0))
    maps = torch.cat(patches).numpy()
    return View(maps if maps.shape[1] else None, torch.cat(embeddings).numpy(), **weights)


def _projection(nb: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(nb, FEATURES, generator=generator) / FEATURES**0.5).to(device)


class Reader:
    """Goes through the checkpoints of a run once, in the order of the tasks."""

    def __init__(self, past: Past):
        self.past = past
        self.found = Inside()
        self.data: Data | None = None
        self.opened = False  # or tried to
        self.answers: dict[int, Predictions] = {}

    def read(self) -> tuple[dict[int, Predictions], Inside]:
        """What was answered after every task, by task, and what is inside the chosen checkpoints."""
        past, found = self.past, self.found
        finished = sorted({each.manifest["task"] for each in past.stored if each.finished_task})
        nb_tasks = max(past.nb_tasks, 1 + max(finished, default=-1))
        self.answers = {task: kept for task in range(nb_tasks) if (kept := past.predictions(task)) is not None}
        look_at = chosen(finished)
        if not finished:
            found.missing.append("no checkpoint of the end of a task was kept: features, tokens and weights are not shown")
        for task in [each for each in finished if each in look_at or each not in self.answers]:
            try:
                self._task(task, inside=task in look_at, last=task == look_at[-1], nb_checkpoints=len(look_at))
            except FAILS as error:
                reason = str(error) if isinstance(error, Refused) else one_line(error)[:300]
                found.missing.append(f"the checkpoint after task {task + 1} could not be looked into: {reason}")
        self._tell(nb_tasks, finished, look_at)
        return dict(sorted(self.answers.items())), found

    def _tell(self, nb_tasks: int, finished: list[int], look_at: list[int]) -> None:
        """What was left out, and why."""
        gone = [task + 1 for task in range(nb_tasks) if task not in self.answers]
        if gone:
            self.found.missing.append(f"what was answered after task {_numbers(gone)} is not known")
        if lost := [task + 1 for task in range(nb_tasks) if task not in finished] if finished else []:
            self.found.missing.append(f"no checkpoint of the end of task {_numbers(lost)} was kept")
        if len(look_at) < len(finished):
            words = _numbers([task + 1 for task in look_at])
            self.found.missing.append(f"of {len(finished)} checkpoints those after task {words} were looked into")

    def _task(self, task: int, *, inside: bool, last: bool, nb_checkpoints: int) -> None:
        trained = self.past.load(task)
        if not self.opened:
            self._open(trained)
        if self.data is None:
            if inside:
                self.found.views[task] = view(trained.model, None, len(trained.classes))
            return
        if task not in self.answers:
            self.answers[task] = self.data.answered(trained, task)
            self.found.missing.append(f"answers after task {task + 1} were not kept: its checkpoint was evaluated instead")
        if not inside:
            return
        model = trained.model.to(self.data.device)
        batches = partial(self.data.passing, self.found.samples)
        self.found.views[task] = view(model, batches(), len(trained.classes))
        if last:
            self.found.untrained = view(_untrained(trained).to(self.data.device), batches(), len(trained.classes))
            self._attention(model, task)

    def _open(self, trained: Trained) -> None:
        """Find the data, and choose images of all classes that the run has learned so far."""
        self.opened = True
        try:
            self.data = Data(self.past, trained)
        except FAILS as error:
            reason = str(error) if isinstance(error, Refused) else one_line(error)[:300]
            self.found.missing.append(f"the images are not to be had, so features and attention are not shown: {reason}")
            return
        newest = max(each.manifest["task"] for each in self.past.stored if each.finished_task)
        train, test = (
            part.take(part.t <= newest) for part in (self.data.benchmark.train_samples, self.data.benchmark.test_samples)
        )
        nb_classes = max(1, len(np.unique(train.y)))
        which = evenly(train.y, min(AT_MOST, max(5, TRAINING_IMAGES // nb_classes)))
        tested = evenly(test.y, max(5, TEST_IMAGES // nb_classes))
        places = np.flatnonzero(self.data.benchmark.test_samples.t <= newest)[tested]
        parts = zip(train.take(which), test.take(tested), strict=True)
        self.found.samples = Samples(*(np.concatenate(part) for part in parts))
        self.found.is_test = np.arange(len(which) + len(tested)) >= len(which)
        self.found.places = np.concatenate([np.full(len(which), -1), places])

    def _attention(self, model: nn.Module, task: int) -> None:
        """Of the newest model, over a few test images."""
        if not hasattr(model, "attention") or not hasattr(model, "task_tokens"):
            return
        shown = to_show(self.answers.get(task), self.data.benchmark.test_samples)
        with torch.inference_mode(), evaluating(model):
            images = torch.cat([images for images, _ in self.data.passing(self.data.benchmark.test_samples.take(shown))])
            self.found.attention = model.attention(images).float().cpu().numpy()
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.data.benchmark.mean, self.data.benchmark.std))
        self.found.pixels = (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        self.found.shown = shown


def to_show(found: Predictions | None, test: Samples, most: int = 6) -> np.ndarray:
    """Places of test images: of up to so many tasks, evenly, the first that is answered rightly; in place of the last one,
    where there are several tasks, the first that is answered with a class of another task, if there is any."""
    right = np.ones(len(test.y), dtype=bool)
    nb_tasks = int(test.t.max()) + 1
    wrong = np.empty(0, dtype=int)
    if found is not None:
        nb_tasks = len(found.sizes)
        right[found.places] = found.answers == found.labels
        wrong = found.places[found.task_of[found.answers] != found.tasks]
    rows = []
    for task in chosen(range(nb_tasks), most - 1):
        of_task = np.flatnonzero(test.t == task)
        rows += list(of_task[np.argsort(~right[of_task], kind="stable")][:1])
    return np.array([*rows, *wrong[:1]], dtype=int)


def _untrained(trained: Trained) -> nn.Module:
    """The same model with fresh weights, always the same ones."""
    trained.method.fetches_weights = False
    with seeded("untrained"):
        model = trained.method.build()
        for nb_new in trained.model.classes:
            model.add_task(nb_new)
    return model.eval()


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 12 else f"{numbers[0]} to {numbers[-1]} ({len(numbers)} of them)"


def describe(found: Inside) -> dict[str, Any]:
    """How many images and checkpoints all this rests on."""
    if found.samples is None:
        return {"training": 0, "test": 0, "checkpoints": len(found.views)}
    return {"training": int((~found.is_test).sum()), "test": int(found.is_test.sum()), "checkpoints": len(found.views)}
