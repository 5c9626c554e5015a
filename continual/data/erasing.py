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
        """float32 (B, 3, S, S), contiguous, keys int64 (B,) on the host -> x itself, changed"""
        chosen = (uniform(keys, self.first) <= self.chance).nonzero().squeeze(1)
        if not len(chosen):
            return x
        keys, size = keys[chosen], x.shape[2] * x.shape[3]
        covers = _covers(self.blocks(keys, *x.shape[2:]), *x.shape[2:]).flatten(1)
        place = covers.flatten().nonzero().squeeze(1)
        image = torch.arange(len(keys)).repeat_interleave((covers > 0).sum(1), output_size=len(place))
        pixel = place - image * size
        block = covers.flatten()[place] - 1
        target = chosen[image] * (3 * size) + pixel
        index = torch.cat([target, target + size, target + 2 * size])
        x.view(-1).scatter_(0, send(index, x.device), send(self._filling(keys[image], block, pixel).flatten(), x.device))
        return x

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

    def _filling(self, keys: Tensor, block: Tensor, pixel: Tensor) -> Tensor:
        """What erased pixels become, by the key, block and position of each: int64 (N,) all three -> float32 (3, N)."""
        if self.mode == "const":
            return torch.zeros(3, len(keys))
        if self.mode == "rand":
            return torch.stack([_normal()[entries(uniform(keys, PIXELS + 3 * block + k))] for k in range(3)])
        bits = (uniform(keys, pixel + PIXELS) * 2.0**48).long()  # one draw is enough for three channels
        parts = torch.stack([bits >> 32, (bits >> 16) & (FINE - 1), bits & (FINE - 1)])
        return _normal().index_select(0, parts.flatten()).view(3, -1)


def _covers(blocks: Tensor, height: int, width: int) -> Tensor:
    """The last block over every pixel, counted from 1, 0 where there is none: (b, n, 4) -> int32 (b, height, width)."""
    covers = torch.zeros(len(blocks), height, width, dtype=torch.int32)
    rows, columns = torch.arange(height), torch.arange(width)
    for k, block in enumerate(blocks.unbind(1)):
        top, left, high, wide = block[:, :, None].unbind(1)
        across, down = (columns >= left) & (columns < left + wide), (rows >= top) & (rows < top + high)
        covers.masked_fill_(down[:, :, None] & across[:, None, :], k + 1)
    return covers


@cache
def _normal() -> Tensor:
    return quantiles().float()
