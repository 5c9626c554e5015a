"""A trained model for others to run: programs that need none of this code, weights, and what their numbers mean.

    model.onnx          for ONNX Runtime: images (B, 3, S, S) float32, normalised -> logits (B, C_all), any B
    model.pt2           the same for torch.export.load
    model.safetensors   the weights, under this project's names
    released.pth        the weights under the names of the released code, of a model that it has
    config.json         classes, their tasks, what is done to an image before, the options, and what is not in here

What config.json says stands in every file but released.pth, too. A bundle is written as a whole or not at all, once every
file of it was read back and its logits on real images were those of the model, in batches of 64 and one by one.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continual.data.samples import Samples
from continual.data.transforms import plain_side
from continual.dytox import Outputs, from_released, to_released
from continual.errors import CheckpointError, DataError, Refused, one_line
from continual.files import UNREADABLE, write_json
from continual.options import PATHS, PER_CALL, Options, flat
from continual.options import replace as changed
from continual.runs import answering
from continual.runs.experiment import data_of
from continual.runs.loading import Trained, trained_from
from continual.training.precision import products_of_torch

ONNX, PROGRAM, WEIGHTS, RELEASED, CONFIG = "model.onnx", "model.pt2", "model.safetensors", "released.pth", "config.json"
FILES = {"onnx": ONNX, "torch": PROGRAM, "weights": WEIGHTS, "released": RELEASED}
KEY = "continual"  # under which config.json stands in the metadata of the other files
EXTRA = f"{KEY}.json"  # and in the program of torch
TOLERANCE = 1e-4
TOGETHER = 64
NB_IMAGES, SINGLY = 200, 8  # and how many of them are passed one by one through what torch runs, which is slow at it

Logits = Callable[[Tensor], Tensor]  # images (B, 3, S, S) -> (B, C_all)


class Classified(nn.Module):
    """images (B, 3, S, S) -> logits (B, C_all)"""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def write(trained: Trained, folder: Path, images: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """Make the bundle in a folder that is not there yet. images (n, 3, S, S): real ones, normalised, to check it on.

    kinds: some of `FILES`. Returns how far logits are apart at most, by file. Raises Refused, and then leaves nothing.
    """
    above = next(each for each in folder.parents if each.exists())
    unfinished = above / f".{folder.name}.{os.getpid()}.unfinished"
    try:
        unfinished.mkdir()
        apart = {}
        for name, logits in _files(trained, unfinished, kinds, config_of(trained)):
            apart[name] = distance(trained.model, logits, images, singly=len(images) if name == ONNX else SINGLY)
            if not apart[name] <= TOLERANCE:
                told = f"its logits are up to {apart[name]:.1e} from the model's; {TOLERANCE} is allowed"
                raise Refused(f"{name} does not agree with the model, and nothing is kept: {told}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(unfinished, folder)
        return apart
    except OSError as error:
        raise Refused(f"{folder} cannot be written: {error.strerror or error}") from None
    except Refused:
        raise
    except Exception as error:  # each library has its own, for what it cannot write or read back
        raise Refused(f"nothing is kept: what was exported does not run ({one_line(error)[:300]})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _files(trained: Trained, folder: Path, kinds: Sequence[str], config: dict[str, Any]) -> Iterator[tuple[str, Logits]]:
    """Write the files one after another, and give of each a function that computes logits from nothing but the file."""
    write_json(folder / CONFIG, config)
    text = json.dumps(config)
    if "weights" in kinds:
        save_weights(trained.model, folder / WEIGHTS, text)
        yield WEIGHTS, Classified(read(folder).model)
    if "released" in kinds:
        torch.save({"model": released_weights(trained.model)}, folder / RELEASED)
        stored = torch.load(folder / RELEASED, weights_only=True)["model"]
        again = from_released(stored, nb_classes=list(trained.model.classes), ind_clf=trained.model.ind_clf)
        yield RELEASED, Classified(again.eval())
    if {"onnx", "torch"} & set(kinds):
        program = program_of(trained)
    if "torch" in kinds:
        torch.export.save(program, folder / PROGRAM, extra_files={EXTRA: text})
        yield PROGRAM, torch.export.load(folder / PROGRAM).module()
    if "onnx" in kinds:
        save_onnx(program, folder / ONNX, text)
        yield ONNX, onnx_logits(folder / ONNX)


def kinds_of(trained: Trained) -> list[str]:
    """All that can be written of this model."""
    try:
        released_weights(trained.model)
        return list(FILES)
    except Refused:
        return [kind for kind in FILES if kind != "released"]


def config_of(trained: Trained) -> dict[str, Any]:
    """What config.json says; no path of this machine."""
    size, view, left_out = trained.preprocess.input_size, trained.preprocess, PER_CALL | PATHS
    return {
        "format": 1,
        "method": trained.options.method,
        "checkpoint": {"name": trained.checkpoint, "sha256": trained.digest},
        "classes": trained.classes,
        "tasks": trained.task_of,
        "classes_per_task": [task.nb_new for task in trained.method.tasks],
        "model_classes": list(trained.model.classes),
        "replicas": trained.method.replicas,
        "input": {
            "name": "images",
            "shape": ["batch", 3, size, size],
            "opened": "RGB, 8 bits" + (", turned as EXIF says" if view.upright else ", not turned by EXIF"),
            "shorter_side": plain_side(size),
            "interpolation": "bicubic",
            "center_crop": size,
            "mean": list(view.mean),
            "std": list(view.std),
        },
        "output": {"name": "logits", "shape": ["batch", len(trained.classes)]},
        "not_in_here": missing(trained),
        "versions": {"torch": str(torch.__version__)},
        "options": {key: value for key, value in flat(trained.options).items() if key not in left_out},
    }


def missing(trained: Trained) -> str:
    """What the run has to answer with, and a bundle has not; empty for a method that answers by its logits."""
    own = f"the rule by which {trained.options.method} answers, on top of the model: only the model's logits are in here"
    try:
        return "" if answering.own_rule(trained, root=trained.root) is Outputs.scores else own
    except DataError:
        return own


def save_weights(model: nn.Module, path: Path, text: str) -> None:
    """As safetensors, with `text` in the metadata."""
    from safetensors.torch import save_file

    weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt", KEY: text})


def released_weights(model: nn.Module) -> dict[str, Tensor]:
    """Raises Refused if the released code has no such model."""
    try:
        return to_released(model)
    except ValueError as error:
        raise Refused(f"{RELEASED}: {error}") from None


def program_of(trained: Trained) -> torch.export.ExportedProgram:
    """The model for batches of any size. Raises Refused if it cannot be exported."""
    size = trained.preprocess.input_size
    batch = {"images": {0: torch.export.Dim("batch")}}
    try:
        with _quietly(), products_of_torch(), torch.no_grad():
            model = Classified(trained.model).eval()
            return torch.export.export(model, (torch.zeros(3, 3, size, size),), dynamic_shapes=batch)
    except Exception as error:
        told = one_line(error)[:300]
        raise Refused(f"{trained.options.model.model} cannot be exported for batches of any size: {told}") from error


def save_onnx(program: torch.export.ExportedProgram, path: Path, text: str) -> None:
    """Raises Refused if ONNX cannot say what the model does, or what is needed is not installed."""
    try:
        with _quietly(), products_of_torch():
            names = {"input_names": ["images"], "output_names": ["logits"]}
            found = torch.onnx.export(program, dynamo=True, verbose=False, **names)
            found.model.metadata_props[KEY] = text
            found.save(path)
    except ImportError as error:
        raise Refused(f"{ONNX} needs what requirements.txt names: {error}") from None
    except Exception as error:
        raise Refused(f"{ONNX}: the model cannot be written as ONNX: {one_line(error)[:300]}") from error


def onnx_logits(path: Path) -> Logits:
    """What ONNX Runtime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def distance(model: nn.Module, logits: Logits, images: Tensor, *, singly: int) -> float:
    """How far logits are from the model's at most, on images (n, 3, S, S) in batches, and on the first `singly` one by one."""
    expected = torch.cat([model(batch).logits for batch in images.split(TOGETHER)])
    found = [
        torch.cat([logits(batch) for batch in some.split(size)]) for some, size in ((images, TOGETHER), (images[:singly], 1))
    ]
    if any(each.shape[1:] != expected.shape[1:] for each in found):
        return float("inf")
    return max(float((each - expected[: len(each)]).abs().max()) for each in found)


def real_images(trained: Trained, *, data_path: str = "", most: int = NB_IMAGES) -> tuple[Tensor, str]:
    """Images (n, 3, S, S) of the run, prepared as ever, and what they are: test images, else exemplars.

    Nothing is downloaded. Raises DataError if there are none.
    """
    options = changed(trained.options, data_path=data_path) if data_path else trained.options
    try:
        samples = data_of(options, download=False).test(len(trained.tasks) - 1)
        return _prepared(trained, samples, options.data.data_path, most), "test images"
    except Refused as error:
        if not len(trained.memory):
            told = f"neither test images nor exemplars: {error}"
            raise DataError(f"no real image is there to check an export on, {told}; --data-path says where they lie") from error
    return _prepared(trained, trained.memory.samples, options.data.data_path, most), "exemplars"


def _prepared(trained: Trained, samples: Samples, root: str, most: int) -> Tensor:
    """Some of them, from the first to the last."""
    rows = np.unique(np.linspace(0, len(samples.y) - 1, most).astype(int))
    images = trained.preprocess.images(samples, root or None)
    return torch.stack([images[int(row)][0] for row in rows])


def read(folder: Path) -> Trained:
    """The model of a bundle, with all that config.json says; its memory is empty. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        options = changed(Options(), **config["options"])
        pixels, weights = [config["input"][name] for name in ("mean", "std")], load_file(folder / WEIGHTS)
        identity = {"normalisation": pixels, "replicas": config["replicas"], "classes_per_task": config["classes_per_task"]}
        state = {
            "model": {"classes": config["model_classes"], "weights": weights},
            "classes": [{"name": name} for name in config["classes"]],
        }
        return trained_from(options, state, {**config["checkpoint"], "identity": identity})
    except (*UNREADABLE, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no exported model: {one_line(error)[:300]}") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what exporters say on the way; and without blocks that switch autocast off, which cannot be stored: it is off."""
    before, autocast = logging.root.manager.disable, torch.autocast
    logging.disable(logging.ERROR)
    torch.autocast = lambda *args, **how: contextlib.nullcontext()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.autocast = autocast
        logging.disable(before)
