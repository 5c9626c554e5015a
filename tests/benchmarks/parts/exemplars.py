"""Herding of 5,000 images, 100 exemplars a class, beside the forward passes that give their features."""

from functools import partial
from types import SimpleNamespace

import numpy as np

from continual import rehearsal
from continual.randomness import seed_of
from continual.runs.experiment import images_of
from continual.training.evaluation import extract_features
from continual.training.loading import Loading
from parts.models import MEAN, STD, grown, made_up, method_for, options_of, tasks_of
from parts.setting import Row, Setting, alternating

IMAGES, EXEMPLARS = 5000, 100


def exemplars(setting: Setting) -> Row:
    """Herding by the embeddings of 10 tasks against the forward passes of the same images."""
    nb, few = (60, 20) if setting.tiny else (IMAGES, 5000 if setting.on_cuda else 256)
    tasks, options = tasks_of(10, 10), options_of("cifar", setting)
    model = grown(method_for(options, tasks), tasks, setting.device)
    images = images_of(options, SimpleNamespace(mean=MEAN, std=STD, root=None, upright=True), setting.device)
    plain = images(made_up(few, 32, tasks), augment=False)
    loading = Loading(setting.device)
    features = np.random.default_rng(0).normal(size=(nb, 10 * options.model.embed_dim)).astype(np.float32)
    pick = partial(rehearsal.choose, "icarl", features, k=EXEMPLARS, seed=partial(seed_of, "speed"))
    variants = {
        "forward": lambda: extract_features(model, plain, loading=loading, batch_size=256, key=("speed",)),
        "ten": lambda: pick(np.arange(nb) % 10),
        "one": lambda: pick(np.zeros(nb, dtype=np.int64)),
    }
    seconds = alternating(setting, variants, rounds=3)
    forward = seconds["forward"] * nb / few
    rows = [
        {"what": what, "herding (s)": seconds[key], "forward passes (s)": forward, "herding / forward": seconds[key] / forward}
        for what, key in ((f"{nb:,} images of 10 classes", "ten"), (f"{nb:,} images of one class", "one"))
    ]
    return {"rows": rows, "notes": [f"{EXEMPLARS} exemplars a class; forward passes timed on {few:,} images"]}
