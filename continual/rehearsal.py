"""The memory of exemplars and the rules that choose them: arrays in, indices out. Nothing here knows a model or a process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continual.data.samples import Samples
from continual.errors import CheckpointError, OptionsError
from continual.options import RehearsalOptions
from continual.registry import RULES
from continual.tasks import Task

CPU = torch.device("cpu")
AT_ONCE = 12_000  # images; in ImageNet's last of ten tasks the features of each are 10 x 384 numbers
IN_A_ROW = 64  # picks of herding, before it looks whether they suffice: on a GPU each look waits


def _by_distance(features: np.ndarray) -> np.ndarray:
    """Indices of one class's features (n, D), the closest to their mean first. (n,)"""
    return np.linalg.norm(features - features.mean(axis=0), axis=1).argsort(kind="stable")


def closest(features: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The k closest to the class mean, the closest first."""
    return _by_distance(features)[:k]


def furthest(features: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The k furthest from the class mean, the furthest first."""
    return _by_distance(features)[::-1][:k]


def random(features: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k drawn without replacement."""
    return rng.permutation(len(features))[:k]


def icarl(features: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Herding, the most important first; see `herding`."""
    return herding([torch.from_numpy(features)], k)[0]


def herding(classes: Sequence[Tensor], k: int) -> list[np.ndarray]:
    """At most k of the rows of each class's features (n, F), the most important first; all classes at once.

    Herding (Welling 2009; iCaRL, Rebuffi et al., CVPR 2017): greedy on L2-normalised features, each pick is the one most in
    line with what the sum of the picks still lacks of the class mean. As in iCaRL's released code a pick may come up again: it
    then counts towards the sum, but takes no place. Computed in float64, on the device of the features.

    What the sum lacks after t picks is (t + 1) mean - sum of picks; so a row's score grows by its product with the mean, less
    that with the last pick, and these products are computed once.
    """
    sizes = torch.tensor([len(rows) for rows in classes], device=classes[0].device)
    rows = nn.utils.rnn.pad_sequence([each.double() for each in classes], batch_first=True)  # (C, n, F)
    rows = rows / (rows.norm(dim=2, keepdim=True) + 1e-8)
    mean = rows.sum(dim=1) / sizes[:, None]
    step = (rows @ mean[:, :, None])[:, :, 0]  # (C, n)
    products = rows @ rows.transpose(1, 2)  # (C, n, n)

    outside = torch.arange(rows.shape[1], device=rows.device) >= sizes[:, None]
    scores, every = step.masked_fill(outside, -torch.inf), torch.arange(len(rows), device=rows.device)
    wanted, most = sizes.clamp(max=k), 10 * sizes + 1000  # picks that come up again need an end: equal images would never stop
    picks, picked = [], torch.zeros_like(outside)
    while not (picks and bool(((picked.sum(dim=1) >= wanted) | (most <= len(picks))).all())):
        for _ in range(IN_A_ROW):
            picks.append(best := scores.argmax(dim=1))  # (C,)
            scores += step - products[every, best]
        picked.scatter_(1, torch.stack(picks[-IN_A_ROW:], dim=1), True)
    found = zip(rows.cpu(), torch.stack(picks, dim=1).tolist(), sizes.tolist(), most.tolist(), strict=True)
    return [_ranked(of_class[:size], ranking[:end], k) for of_class, ranking, size, end in found]


def _ranked(rows: Tensor, picks: Sequence[int], k: int) -> np.ndarray:
    """Each pick where it first came up, then, where too few were, the closest to the mean."""
    chosen = dict.fromkeys(picks)
    if len(chosen) < min(k, len(rows)):
        chosen |= dict.fromkeys(_by_distance(rows.numpy()).tolist())
    return np.array(list(chosen)[:k], dtype=int)


def choose(
    rule: str,
    features: np.ndarray | None,
    labels: np.ndarray,
    *,
    k: int,
    seed: Callable[[int], int],
    device: torch.device = CPU,
) -> list[np.ndarray]:
    """At most k exemplars of every class, classes in order of their labels, as rows of `features` and `labels`.

    rule: a name in `registry.RULES`. features: (n, F), None for "random". labels: (n,). seed: label -> the seed of what is
    drawn for that class. device: where it is herded.
    Raises OptionsError if a rule from outside does not give indices of its class.
    """
    pick = RULES.find(rule)
    if pick is icarl:
        found = [np.flatnonzero(labels == label) for label in np.unique(labels).tolist()]
        herded = herding([torch.from_numpy(features[of_class]).to(device) for of_class in found], k)
        return [of_class[rows] for of_class, rows in zip(found, herded, strict=True)]
    chosen = []
    for label in np.unique(labels).tolist():
        of_class = np.flatnonzero(labels == label)
        rows = of_class if features is None else features[of_class].astype(np.float64)
        chosen.append(of_class[_checked(rule, pick(rows, k, np.random.default_rng(seed(label))), len(of_class))[:k]])
    return chosen


def groups(labels: np.ndarray, most: int = AT_ONCE) -> list[np.ndarray]:
    """Rows (n_g,) of `labels` (n,), whole classes in order of their labels, in groups that begin every `most` images or so."""
    classes, sizes = np.unique(labels, return_counts=True)
    group = (np.cumsum(sizes) - sizes) // most
    return [np.flatnonzero(np.isin(labels, classes[group == each])) for each in np.unique(group)]


def _checked(rule: str, picks: np.ndarray, nb: int) -> np.ndarray:
    picks = np.asarray(picks)
    if picks.ndim != 1 or picks.dtype.kind not in "iu" or (len(picks) and not 0 <= picks.min() <= picks.max() < nb):
        raise OptionsError(f"selection rule {rule}: gives no indices of the {nb} images of a class")
    return picks


def in_turn(choices: list[np.ndarray]) -> np.ndarray:
    """Several choices as one: the first of each, then the second of each, and so on; repetitions stay."""
    longest = max(map(len, choices), default=0)
    ranks = [[choice[rank] for choice in choices if rank < len(choice)] for rank in range(longest)]
    return np.array([index for rank in ranks for index in rank], dtype=int)


@dataclass
class Memory:
    """Exemplars, in order of importance within a class, classes in order of arrival.

    memory_size: exemplars in total, over all classes and replicas.
    nb_classes: classes that share the memory; None = the classes seen so far (it changes with every task).
    nb_replicas: memories kept apart, each of memory_size / nb_replicas; 1 = one memory for all.
    x, y, t: the exemplars, as in `datasets.Samples`; replica (n,): the memory each belongs to.
    """

    memory_size: int
    nb_classes: int | None = None
    nb_replicas: int = 1
    x: np.ndarray | None = None
    y: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    t: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    replica: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def of(cls, options: RehearsalOptions, nb_classes: int, replicas: int) -> "Memory":
        """An empty memory as the options say it, for `nb_classes` in all: one for all replicas, or one each."""
        return cls(
            options.memory_size,
            nb_classes=nb_classes if options.fixed_memory else None,
            nb_replicas=replicas if options.distributed_memory else 1,
        )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def samples(self) -> Samples:
        """The exemplars as any other samples. Raises ValueError while there are none."""
        if self.x is None:
            raise ValueError("the memory is empty")
        return Samples(self.x, self.y, self.t)

    def knows(self, task: Task) -> bool:
        """Whether it has exemplars of the classes of a task already."""
        return bool((self.y >= task.nb_old).any())

    def quota(self, nb_seen: int) -> int:
        """Exemplars of one class in one replica's memory, once `nb_seen` classes are known."""
        return self.memory_size // self.nb_replicas // (self.nb_classes or nb_seen)

    def most(self) -> int:
        """Exemplars of the class that has most, in one replica's memory."""
        return max((int(((self.y == c) & (self.replica == r)).sum()) for r, c in self._groups()), default=0)

    def check(self, nb_classes: int) -> None:
        """Raise OptionsError if at the end some class would go without an exemplar."""
        needed = nb_classes * self.nb_replicas
        if 0 < self.memory_size < needed:
            per_replica = f" and {self.nb_replicas} replicas with a memory each" if self.nb_replicas > 1 else ""
            raise OptionsError(
                f"memory_size: {self.memory_size} is too small for {nb_classes} classes{per_replica}: "
                f"at least {needed}, or 0 for no memory"
            )

    def cut(self, quota: int) -> None:
        """Keep the first `quota` exemplars of each class and replica."""
        kept = [np.flatnonzero((self.y == c) & (self.replica == r))[:quota] for r, c in self._groups()]
        self._keep(np.concatenate(kept) if kept else np.zeros(0, dtype=int))

    def add(self, x: np.ndarray, y: np.ndarray, t: np.ndarray, replica: int = 0) -> None:
        """Put exemplars of new classes, the most important of each class first, behind those of `replica`."""
        self.x = x if self.x is None else np.concatenate([self.x, x])
        self.y, self.t = np.concatenate([self.y, y]), np.concatenate([self.t, t])
        self.replica = np.concatenate([self.replica, np.full(len(y), replica, dtype=np.int64)])
        self._keep(np.argsort(self.replica, kind="stable"))

    def view(self, replica: int) -> np.ndarray:
        """Indices of the exemplars that a replica sees, in memory order."""
        return np.flatnonzero(self.replica == replica % self.nb_replicas)

    def _groups(self) -> list[tuple[int, int]]:
        return list(dict.fromkeys(zip(self.replica.tolist(), self.y.tolist(), strict=True)))

    def _keep(self, indices: np.ndarray) -> None:
        self.x = None if self.x is None else self.x[indices]
        self.y, self.t, self.replica = self.y[indices], self.t[indices], self.replica[indices]

    def state_dict(self) -> dict[str, Any]:
        """Exemplars as tensors, or as paths below the data folder, valid wherever the data lies."""
        x = self.x
        if x is not None:
            x = (
                x.tolist()
                if x.dtype.kind == "U"
                else [torch.from_numpy(each) for each in x]
                if x.dtype == object
                else torch.from_numpy(x)
            )
        return {"x": x, **{name: torch.from_numpy(getattr(self, name)) for name in ("y", "t", "replica")}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises CheckpointError if that is kept apart for more or fewer replicas."""
        replicas = sorted(set(state["replica"].tolist()))
        if replicas and replicas != list(range(self.nb_replicas)):
            raise CheckpointError(
                f"its memories are those of {len(replicas)} replica(s); the options ask for {self.nb_replicas}"
            )
        x = state["x"]
        if isinstance(x, torch.Tensor):
            x = x.numpy()
        elif x and isinstance(x[0], torch.Tensor):
            images, x = x, np.empty(len(x), dtype=object)
            x[:] = [image.numpy() for image in images]
        elif x is not None:
            x = np.array(x, dtype=str)
        self.x = x
        for name in ("y", "t", "replica"):
            setattr(self, name, state[name].numpy())
