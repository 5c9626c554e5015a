"""Reads the stored numbers of tests/golden, and measures how far other numbers are from them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of tests/golden/`name`.npz."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def table(name: str) -> list | dict:
    """The content of tests/golden/`name`.json."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def config(stored: Mapping[str, np.ndarray]) -> dict:
    """Sizes of the model that the arrays belong to: img, patch, dim, depth, heads, classes, ind_clf."""
    return json.loads(str(stored["config"]))


def tensors(stored: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """The arrays whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in stored.items() if name.startswith(prefix)}


def distance(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """Largest difference, relative to the largest entry of `theirs`. Shapes must agree."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)}"
    largest = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)  # all zeros: ours must be zeros too
    return ((ours.detach() - theirs).abs().max() / largest).item()
