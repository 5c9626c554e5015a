"""Pillow's resize, with its antialiasing, for many images at once: equal to the last bit.

It works in fixed point, so that integers give the same on any device. Images are planar, uint8 (b, 3, H, W).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from continual.data.pixels import send

PRECISION = 22  # bits behind the point
SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}  # pixels
Weights = tuple[Tensor, Tensor]  # the first pixel (..., S) int64 and the weights from there on (..., S, K) int32


def resized(x: Tensor, height: int, width: int, interpolation: str = "bicubic") -> Tensor:
    """uint8 (b, 3, H, W) -> (b, 3, height, width)"""
    if width != x.shape[3]:
        x = _along_rows(x, *(part.to(x.device) for part in weights(x.shape[3], width, interpolation)))
    if height != x.shape[2]:
        x = _along_columns(x, *(part.to(x.device) for part in weights(x.shape[2], height, interpolation)))
    return x


def crops_resized(x: Tensor, boxes: list[tuple[int, int, int, int]], side: int, interpolations: list[str]) -> Tensor:
    """One part of every image, resized by its own interpolation: uint8 (b, 3, H, W) -> (b, 3, side, side).

    boxes: top, left, height and width of the parts, in pixels.
    """
    named = list(zip(boxes, interpolations, strict=True))
    x = _along_rows(x, *_stacked([(left, weights(width, side, name)) for (_, left, _, width), name in named], x.device))
    return _along_columns(x, *_stacked([(top, weights(height, side, name)) for (top, _, height, _), name in named], x.device))


def _stacked(parts: list[tuple[int, Weights]], device: torch.device) -> Weights:
    """The weights of many images, padded with zeros to the same length; each begins at an offset of its own."""
    most = max(table.shape[1] for _, (_, table) in parts)
    firsts = torch.stack([first + offset for offset, (first, _) in parts])
    tables = torch.stack([torch.nn.functional.pad(table, (0, most - table.shape[1])) for _, (_, table) in parts])
    return send(firsts, device), send(tables, device)


def _along_rows(x: Tensor, first: Tensor, table: Tensor) -> Tensor:
    """(b, 3, H, W) -> (b, 3, H, S). first (S,) or (b, S); table (S, K) or (b, S, K)."""
    b, _, height, width = x.shape
    first, table = (part.expand(b, *part.shape[-k:]) for k, part in ((1, first), (2, table)))
    sums = torch.full((b, 3, height, first.shape[1]), 1 << (PRECISION - 1), dtype=torch.int32, device=x.device)
    for k in range(table.shape[2]):
        index = (first + k).clamp_(max=width - 1)[:, None, None].expand(-1, 3, height, -1)
        sums += x.gather(3, index).to(torch.int32).mul_(table[:, None, None, :, k])
    return (sums >> PRECISION).clamp_(0, 255).to(torch.uint8)


def _along_columns(x: Tensor, first: Tensor, table: Tensor) -> Tensor:
    return _along_rows(x.transpose(2, 3).contiguous(), first, table).transpose(2, 3).contiguous()


@lru_cache(maxsize=4096)
def weights(size: int, side: int, interpolation: str) -> Weights:
    """What each of `side` pixels takes of `size` pixels: the first of them (S,), and their weights in fixed point (S, K)."""
    if interpolation == "nearest":
        return _nearest(size, side)
    scale = size / side
    stretch = max(scale, 1.0)
    support = SUPPORT[interpolation] * stretch
    middles = (np.arange(side) + 0.5) * scale
    first = np.maximum((middles - support + 0.5).astype(np.int64), 0)
    end = np.minimum((middles + support + 0.5).astype(np.int64), size)
    pixels = first[:, None] + np.arange((end - first).max())
    table = _curve((pixels - middles[:, None] + 0.5) * (1.0 / stretch), interpolation)
    table[pixels >= end[:, None]] = 0.0
    total = np.zeros(side)
    for column in table.T:  # from left to right, as sums of floating point depend on the order
        total += column
    table = table / np.where(total == 0.0, 1.0, total)[:, None] * (1 << PRECISION)
    return torch.from_numpy(first), torch.from_numpy(np.trunc(table + np.copysign(0.5, table)).astype(np.int32))


def _nearest(size: int, side: int) -> Weights:
    step = size / side
    position, first = step * 0.5, []
    for _ in range(side):
        first.append(min(int(position), size - 1))
        position += step
    return torch.tensor(first), torch.full((side, 1), 1 << PRECISION, dtype=torch.int32)


def _curve(x: np.ndarray, interpolation: str) -> np.ndarray:
    """The weight at a distance from the middle, in pixels of the coarser grid: float64 (...) -> (...)."""
    if interpolation == "box":
        return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    if interpolation == "bicubic":  # a = -0.5
        near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    window = (
        np.sinc(x / 3.0)
        if interpolation == "lanczos"
        else np.float32(0.54).item() + np.float32(0.46).item() * np.cos(np.pi * x)
    )
    return np.where(x < SUPPORT[interpolation], np.sinc(x) * window, 0.0)
