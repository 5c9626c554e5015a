"""What the tests of using a trained run share: images on disk, and whether anything of a run was touched."""

import hashlib
from pathlib import Path

import numpy as np
from digits import few_digits
from PIL import Image

import continual
from continual.datasets import Benchmark
from continual.options import STORED, parse


def everything(folder: Path) -> dict[str, str]:
    """Every file and folder below, with a digest of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def benchmark_of(logs: Path) -> Benchmark:
    """The data that a job of the tests was trained on."""
    patch = few_digits()
    try:
        return continual.benchmark(parse(["--options", str(logs / STORED)]))
    finally:
        patch.undo()


def as_files(x: np.ndarray, folder: Path) -> list[Path]:
    """Images (n, H, W, 3) as PNGs, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(len(x))]
    for path, image in zip(paths, x, strict=True):
        Image.fromarray(image).save(path)
    return paths
