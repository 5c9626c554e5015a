"""Random erasing (Zhong et al., AAAI 2020), as timm does it, for whole batches.

Letters:  B images in a batch   b those of them that lose something   n blocks per image   S side of an image in pixels
"""

from functools import cache

import torch
from torch import Tensor

from continual.data.draws import FINE, entries, quantiles, ratios
from continual.data.pixels import send
from continual.randomness import uniform

AREA, RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of all blocks of an image: their share of it; of a block: height by width
TRIES = 10  # to draw a block that fits
PIXELS = 1 << 32  # number of the first pixel's draw


class Erasing:
    """Blocks of images become black ("const"), each one colour ("rand") or noise ("pixel"), after normalisation.

    An image loses `most` blocks at most, with a chance of `chance`; draws have the numbers from `first` on.
    """

    def __init__(self, chance: float, *, mode: str, most: int, first: int):
        self.chance, self.mode, self.most, self.first = chance, mode, most or 1, first

    def __call__(self, x: Tensor, keys: Tensor) -> Tensor:
        """float32 (B, 3, S, S), keys int64 (B,) on the host -> x itself, changed"""
        chosen = (uniform(keys, self.first) <= self.chance).nonzero().squeeze(1)
        if not len(chosen):
            return x
        keys = keys[chosen]
        blocks = self.blocks(keys, *x.shape[2:])
        index = send(chosen, x.device)
        return x.index_copy_(0, index, self._erased(x.index_select(0, index), keys, send(blocks, x.device)))

    def blocks(self, keys: Tensor, height: int, width: int) -> Tensor:
        """The blocks that keys (b,) draw: int64 (b, n, 4), top, left, height and width in pixels; all 0 where there is none."""
        b, n = len(keys), self.most
        count = (uniform(keys, self.first + 1) * n).floor() + 1
        numbers = torch.arange(n * TRIES * 4) + self.first + 2
        draws = uniform(keys[:, None], numbers).view(b, n, TRIES, 4)
        area = (draws[..., 0] * (AREA[1] - AREA[0]) + AREA[0]) * (height * width) / count[:, None, None]
        ratio = ratios(*RATIO)[entries(draws[..., 1])]
        high, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (wide < width) & (high < height)
        top, left = (draws[..., 2] * (height - high + 1)).floor(), (draws[..., 3] * (width - wide + 1)).floor()
        first = fits.to(torch.uint8).argmax(2)[..., None, None].expand(-1, -1, 1, 4)
        blocks = torch.stack([top, left, high, wide], 3).gather(2, first).squeeze(2)
        there = fits.any(2) & (torch.arange(n) < count[:, None])
        return torch.where(there[..., None], blocks, 0.0).long()

    def _erased(self, x: Tensor, keys: Tensor, blocks: Tensor) -> Tensor:
        """x (b, 3, S, S), keys (b,) on the host, blocks (b, n, 4) -> (b, 3, S, S)"""
        covered = [_covered(block, *x.shape[2:]) for block in blocks.unbind(1)]
        if self.mode == "rand":
            colours = quantiles()[entries(uniform(keys[:, None], torch.arange(3 * self.most) + PIXELS))].float()
            colours = send(colours, x.device).view(len(x), self.most, 3, 1, 1)
            for k, inside in enumerate(covered):
                x = torch.where(inside, colours[:, k], x)
            return x
        inside = covered[0]
        for other in covered[1:]:
            inside = inside | other
        return torch.where(inside, _noise(send(keys, x.device), *x.shape[2:]) if self.mode == "pixel" else 0.0, x)


def _covered(block: Tensor, height: int, width: int) -> Tensor:
    """The pixels of one block per image: (b, 4) -> bool (b, 1, height, width)."""
    top, left, high, wide = block[:, :, None].unbind(1)
    rows, columns = (torch.arange(size, device=block.device) for size in (height, width))
    across, down = (columns >= left) & (columns < left + wide), (rows >= top) & (rows < top + high)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _noise(keys: Tensor, height: int, width: int) -> Tensor:
    """Standard normal noise, by one draw per pixel for its three channels: keys (b,) -> float32 (b, 3, height, width)."""
    numbers = torch.arange(height * width, device=keys.device) + PIXELS
    bits = (uniform(keys[:, None], numbers) * 2.0**48).long()
    parts = torch.stack([bits >> 32, (bits >> 16) & (FINE - 1), bits & (FINE - 1)], 1)
    return _table(keys.device).index_select(0, parts.flatten()).view(-1, 3, height, width)


@cache
def _table(device: torch.device) -> Tensor:
    return quantiles().float().to(device)
