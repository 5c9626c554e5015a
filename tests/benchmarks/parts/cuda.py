"""What only a machine with a GPU can show: it computes what a CPU computes, resumes bit by bit, and how fast it is.

Every part stands alone: one that fails leaves its error in the report, and the next goes on. The most important come first.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from continual import rehearsal
from continual.randomness import seed_of
from continual.runs.experiment import images_of
from continual.training import precision
from continual.training.evaluation import extract_features
from continual.training.loading import Loading
from parts.epochs import cifar100
from parts.models import MEAN, STD, Steps, grown, made_up, method_for, options_of, tasks_of
from parts.resumed import kill_and_resume
from parts.setting import OutOfTime, Row, Setting, guarded, say
from parts.throughput import compiled, eager
from parts.together import processes

CPU = torch.device("cpu")
PLAIN = {"aa": None, "color_jitter": 0.0}  # shifts and flips, which no rounding touches
Part = Callable[[Setting], list[Row]]


def cuda(setting: Setting) -> Row:
    """On a GPU: agreement with the CPU, a killed and resumed run, images a second, and the first epochs of CIFAR-100."""
    if not torch.cuda.is_available():
        return {"rows": [], "notes": ["there is no CUDA device on this machine: nothing of this was measured"]}
    return measured(replace(setting, device=torch.device("cuda", 0)))


def measured(setting: Setting) -> Row:
    """All parts on the setting's device, the most important first; what is known so far is kept in cuda.json."""
    report: Row = {"rows": [], "notes": []}
    for name, part in PARTS.items():
        say(f"cuda: {name}")

        def rows(part: Part = part) -> Row:
            setting.need(15)
            return {"rows": part(setting)}

        found = guarded(rows)
        if "rows" in found:
            report[name] = found["rows"]
        else:
            report["notes"] += [f"{name}: {key}: {value}" for key, value in found.items()]
        setting.folder.mkdir(parents=True, exist_ok=True)
        (setting.folder / "cuda.json").write_text(json.dumps(report, indent=1))
        if setting.on_cuda:
            torch.cuda.empty_cache()
    return report


def largest(a: Tensor, b: Tensor) -> float:
    return float((a.detach().cpu().double() - b.detach().cpu().double()).abs().max())


def agrees(setting: Setting) -> list[Row]:
    """Outputs, gradients and chosen exemplars of the device beside those of the CPU, in float32 without TF32."""
    found = [
        guarded(lambda part=part: part(setting)) for part in (outputs_agree, gradients_agree, views_agree, exemplars_agree)
    ]
    return found


def outputs_agree(setting: Setting) -> Row:
    precision.set_products("off")
    tasks, options = tasks_of(10, 10), options_of("cifar", setting)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here, there = (
            grown(method_for(options, tasks), tasks, device).eval()(images.to(device)) for device in (CPU, setting.device)
        )
    size = float(here.logits.abs().max())
    return {"what": "outputs, 10 tasks", "largest difference": largest(here.logits, there.logits), "of values up to": size}


def gradients_agree(setting: Setting) -> Row:
    """One training step with the teacher, from the same images."""
    tasks, options = tasks_of(3, 2), options_of("cifar", setting, **PLAIN)
    both = [Steps(options, tasks, device, batch=8, nb_images=256) for device in (CPU, setting.device)]
    for steps in both:
        steps()
    gradients = []
    for steps in both:
        state = steps.trainer.optimizer.state
        gradients.append([10 * state[p]["exp_avg"].cpu() for p in steps.model.parameters() if p in state])
    here, there = gradients
    size = max(float(g.abs().max()) for g in here)
    difference = max(largest(a, b) for a, b in zip(here, there, strict=True))
    losses = [steps.trainer.sums.means()["total"] for steps in both]
    return {
        "what": "gradient of a training step",
        "largest difference": difference,
        "of values up to": size,
        "loss, difference": abs(losses[0] - losses[1]),
    }


def views_agree(setting: Setting) -> Row:
    """The augmentation of training: how many pixels come out unlike the CPU's."""
    samples = made_up(256, 32, tasks_of(1, 10))
    pixels = SimpleNamespace(mean=MEAN, std=STD, root=None, upright=True)
    keys = torch.arange(256)
    both = []
    for device in (CPU, setting.device):
        images = images_of(options_of("cifar", setting), pixels, device)(samples, augment=True)
        both.append(images.view(images.pixels, keys).cpu())
    apart = (both[0] - both[1]).abs()
    share = float((apart > 1e-4).double().mean())
    row = {"what": "augmented images", "largest difference": float(apart.max()), "of values up to": float(both[0].abs().max())}
    return {**row, "share that differs": share}


def exemplars_agree(setting: Setting) -> Row:
    """20 exemplars a class, herded by features of both."""
    tasks, options = tasks_of(3, 2), options_of("cifar", setting)
    samples = made_up(120, 32, tasks)
    pixels = SimpleNamespace(mean=MEAN, std=STD, root=None, upright=True)
    chosen, features = [], []
    for device in (CPU, setting.device):
        model = grown(method_for(options, tasks), tasks, device)
        images = images_of(options, pixels, device)(samples, augment=False)
        features.append(extract_features(model, images, loading=Loading(device), batch_size=64, key=("speed",)))
        picks = rehearsal.choose("icarl", features[-1], samples.y, k=10, seed=lambda label: seed_of("speed", label))
        chosen.append(np.concatenate(picks))
    return {
        "what": "herded exemplars",
        "largest difference": float(np.abs(features[0] - features[1]).max()),
        "of values up to": float(np.abs(features[0]).max()),
        "chosen alike": f"{int((chosen[0] == chosen[1]).sum())} of {len(chosen[0])}",
    }


def spread(setting: Setting) -> list[Row]:
    """Training steps by NCCL, on as many processes as there are GPUs."""
    if setting.tiny:
        raise OutOfTime("not measured: processes are no part of a tiny setting")
    return processes(setting)


PARTS: dict[str, Part] = {
    "beside the CPU": agrees,
    "killed and resumed": kill_and_resume,
    "images a second": eager,
    "CIFAR-100 in 10 steps": cifar100,
    "images a second, compiled": compiled,
    "processes": spread,
}
