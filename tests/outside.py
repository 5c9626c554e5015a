"""What a user's script could hold: methods, an encoder, a loss, a data set, a selection rule and a metric of its own."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import continual
from continual.data import material
from continual.losses import Term, cross_entropy, soft_cross_entropy
from continual.methods.finetuning import Finetuning
from continual.methods.rehearsal import Rehearsal
from continual.options import COUNT, NOT_NEGATIVE, POSITIVE, Section, option
from continual.tasks import Remembering


class LwF(Finetuning):
    """Learning without Forgetting (Li & Hoiem, ECCV 2016): no memory; the old model's answers to the new images are kept."""

    @dataclass(frozen=True)
    class Options(Section):
        """LwF (method: lwf)"""

        lwf_weight: float = option(1.0, "weight of the old answers", NOT_NEGATIVE)
        lwf_tau: float = option(2.0, "temperature at which they are compared", POSITIVE)

    def losses(self, task, *, distil, divergence):
        def clf(seen):
            return cross_entropy(seen.outputs.logits, seen.targets)

        def old(seen):
            student = seen.outputs.logits[:, : task.nb_old]
            return self.own.lwf_weight * soft_cross_entropy(student, seen.taught.logits, self.own.lwf_tau)

        return {"clf": Term(clf), "old": Term(old, frozenset({"teacher"}))}


class TwoPhase(Rehearsal):
    """Uses all of the contract: phases by names of its own, held-out images, maps, hooks, state, an answer of its own.

    calls: of its hooks, by name and phase. draws: a random number of every hook. means (C, D): mean features of the classes.
    """

    @dataclass(frozen=True)
    class Options(Section):
        """two phases around the training (method: twophase)"""

        twophase_epochs: int = option(2, "epochs of the warm-up, and of the polish", COUNT)
        twophase_held_out: float = option(0.5, "weight of the loss on the held-out images", NOT_NEGATIVE)

    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        self.calls, self.draws, self.means = {}, [], torch.zeros(0, 0)

    def held_out(self, task):
        return 0.2

    def steps(self, task):
        training = self.training(task, {"clf": self._clf(), "held out": self._held_out()})
        warm_up = replace(
            training,
            name="warm up",
            losses={
                "clf": self._clf(),
                "maps": Term(lambda seen: sum(x.square().mean() for x in seen.maps), frozenset({"maps"})),
            },
            epochs=self.own.twophase_epochs,
            scheduled=False,
            frozen=() if task.first else ("old_heads",),
        )
        polish = replace(
            warm_up,
            name="polish",
            losses={"clf": self._clf()},
            data=material.held_out,
            sampler="shuffled",
            frozen=("sab",),
            freeze_eval=True,
            mixing=None,
        )
        phases = [warm_up, training] if task.first else [warm_up, training, polish]
        return [*map(self._on_trial, phases), Remembering()]

    def _clf(self):
        return Term(lambda seen: cross_entropy(seen.outputs.logits, seen.targets))

    def _held_out(self):
        def loss(seen):
            return self.own.twophase_held_out * cross_entropy(seen.held_out.outputs.logits, seen.held_out.targets)

        return Term(loss, frozenset({"held_out"}))

    def _note(self, hook, phase):
        name = f"{hook} {phase.name}"
        self.calls[name] = self.calls.get(name, 0) + 1
        self.draws.append(float(torch.rand(())))

    def before(self, phase, moment):
        self._note("before", phase)
        if phase.name == "polish":
            with torch.no_grad():
                moment.model.heads[-1].weight.add_(0.01 * torch.randn(moment.model.heads[-1].weight.shape))

    def after_epoch(self, phase, epoch, moment):
        self._note("after epoch", phase)

    def after(self, phase, moment):
        self._note("after", phase)
        if phase.name != "training":
            return ""
        features, labels = F.normalize(moment.features(moment.new).cpu(), dim=1), torch.from_numpy(moment.new.y)
        new = range(moment.task.nb_old, moment.task.nb_seen)
        own = torch.stack([features[labels == label].mean(0) for label in new])
        self.means = torch.cat([self.means.reshape(-1, own.shape[1])[: moment.task.nb_old], own])
        return f"means of {len(self.means)} classes"

    def answer(self, moment):
        means = self.means

        def scores(outputs):
            near = F.normalize(outputs.tokens.flatten(1).cpu(), dim=1) @ means.T if len(means) else torch.zeros(1, 0)
            near = F.pad(near, (0, outputs.logits.shape[1] - near.shape[1])).to(outputs.logits.device)
            return outputs.logits + 0.5 * near

        return scores

    def state_dict(self):
        return {"calls": dict(self.calls), "draws": list(self.draws), "means": self.means}

    def load_state_dict(self, state):
        self.calls, self.draws, self.means = dict(state["calls"]), list(state["draws"]), state["means"]


class LittleConv(nn.Module):
    """Two convolutions with batch norm; each gives a map."""

    def __init__(self, options, drop_path_rates):
        super().__init__()
        self.embed_dim = dim = options.embed_dim
        self.first = nn.Sequential(nn.Conv2d(3, dim, 3, stride=2, padding=1), nn.BatchNorm2d(dim), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(dim, dim, 3, stride=2, padding=1), nn.BatchNorm2d(dim), nn.ReLU())

    def forward(self, images):
        first = self.first(images)
        return [x.flatten(2).transpose(1, 2) for x in (first, self.second(first))]


def spread(seen):
    """Large logits cost."""
    return seen.outputs.logits.square().mean()


def bars(data_path, train):
    """Images with one bright column; which one is the class."""
    y = np.tile(np.arange(4), 20 if train else 5)
    x = np.random.default_rng(int(train)).integers(0, 100, (len(y), 8, 8), dtype=np.uint8)
    x[np.arange(len(y)), :, 2 * y] = 250
    return x, y


def extremes(features, k, rng):
    """Those with the largest embeddings."""
    return (-np.linalg.norm(features, axis=1)).argsort(kind="stable")[:k]


def worst(matrix):
    """The lowest accuracy of the newest evaluation."""
    return min(matrix[-1])


continual.register_method("lwf", LwF)
continual.register_method("twophase", TwoPhase)
continual.register_encoder("little_conv", LittleConv)
continual.register_loss("spread", spread)
continual.register_data_set("bars", bars)
continual.register_rule("extremes", extremes)
continual.register_metric("worst", worst)

if __name__ == "__main__":
    continual.main()
