"""What task tokens look at: numbers and pictures from the attention of `DyTox.attention`.

Letters:  B images   T task tokens   H heads   N patches   s = sqrt(N) patches a side   S pixels a side
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import zoom


class Looks(NamedTuple):
    """How each token looks at images, means over these, (T,) each, in [0, 1].

    itself: attention on the token itself. spread: entropy over the patches, as a share of that of looking everywhere alike
    (1 if N is 1). peak: attention on the patch looked at most, of that on patches.
    """

    itself: np.ndarray
    spread: np.ndarray
    peak: np.ndarray


def over_patches(attention: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, T, H, 1 + N) -> what is on the token itself (B, T), and how the rest lies over the patches (B, T, N), sum 1.

    Means over heads. Raises ValueError if the patches are no square.
    """
    mean = attention.astype(np.float64).mean(2)
    patches = mean[..., 1:]
    if round(patches.shape[-1] ** 0.5) ** 2 != patches.shape[-1]:
        raise ValueError(f"{patches.shape[-1]} patches are no square")
    return mean[..., 0], patches / np.maximum(patches.sum(-1, keepdims=True), 1e-12)


def looks(itself: np.ndarray, patches: np.ndarray) -> Looks:
    """Of `over_patches`."""
    entropy = -(patches * np.log(np.maximum(patches, 1e-12))).sum(-1)
    most = np.log(patches.shape[-1])
    return Looks(itself.mean(0), (entropy / most if most else np.ones_like(entropy)).mean(0), patches.max(-1).mean(0))


def overlap(patches: np.ndarray) -> tuple[float, float]:
    """How much two maps have in common, sum of the lesser of both at every patch, in [0, 1]: (B, T, N) -> two means.

    First of different tokens over the same image; then of the same token over different images (each and the next one). NaN
    without a pair.
    """
    nb_images, nb_tokens = patches.shape[:2]
    pairs = [np.minimum(patches[:, i], patches[:, j]).sum(-1).mean() for i in range(nb_tokens) for j in range(i)]
    tokens = float(np.mean(pairs)) if pairs else float("nan")
    images = float(np.minimum(patches[1:], patches[:-1]).sum(-1).mean()) if nb_images > 1 else float("nan")
    return tokens, images


def upscaled(patches: np.ndarray, side: int) -> np.ndarray:
    """Maps (..., N) as smooth pictures (..., S, S): bilinear, in the same units."""
    grid = round(patches.shape[-1] ** 0.5)
    maps = patches.reshape(-1, grid, grid)
    if grid > 1:
        maps = np.clip(zoom(maps, (1, side / grid, side / grid), order=1, mode="nearest", grid_mode=True), 0, None)
    else:
        maps = np.broadcast_to(maps, (len(maps), side, side))
    return maps.reshape(*patches.shape[:-1], *maps.shape[1:])
