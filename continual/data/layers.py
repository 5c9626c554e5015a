"""Which operations change an image, and how strongly: RandAugment and colour jitter, planned on the host for a whole batch.

A plan goes layer by layer. In a layer the images are sorted by their operation, so that each operation works on a batch of
its own; they go back to their places at the end.

Letters:  B images in a batch   L layers   O operations of a RandAugment   S side of an image in pixels
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from continual.data import pixels, transforms
from continual.data.draws import entries, quantiles
from continual.data.pixels import send
from continual.randomness import uniform

CHUNK = 64  # images; about as many as a processor's cache holds
COLUMNS = 6  # numbers that tell one operation what to do to one image


@dataclass(frozen=True)
class Level:
    """How timm turns a magnitude of 0 to 10 (or more) into the strength of an operation.

    The magnitude's share of 10, times `scale` and cut off at `most`, is added to `base`, subtracted from it (`sign` -1), or
    either with equal chance (0). The strength is never below `least`.
    """

    scale: float = 0.0
    most: float = math.inf
    whole: bool = False  # cut off to an integer before it is added
    base: float = 0.0
    sign: int = 1
    least: float = -math.inf


ENHANCE, EITHER_WAY = Level(1.8, base=0.1), Level(0.9, base=1.0, sign=0, least=0.1)

# What timm's names stand for: an operation of `KINDS`, and its level.
OPERATIONS = {
    "AutoContrast": ("autocontrast", Level()),
    "Equalize": ("equalize", Level()),
    "Invert": ("invert", Level()),
    "Rotate": ("rotate", Level(30.0, sign=0)),  # degrees
    "Posterize": ("posterize", Level(4.0, whole=True)),  # bits
    "PosterizeIncreasing": ("posterize", Level(4.0, whole=True, base=4.0, sign=-1)),
    "Solarize": ("solarize", Level(256.0, whole=True, most=256.0)),  # grey levels
    "SolarizeIncreasing": ("solarize", Level(256.0, whole=True, most=256.0, base=256.0, sign=-1)),
    "SolarizeAdd": ("solarize_add", Level(110.0, whole=True, most=128.0)),
    "Color": ("color", ENHANCE),
    "ColorIncreasing": ("color", EITHER_WAY),
    "Contrast": ("contrast", ENHANCE),
    "ContrastIncreasing": ("contrast", EITHER_WAY),
    "Brightness": ("brightness", ENHANCE),
    "BrightnessIncreasing": ("brightness", EITHER_WAY),
    "Sharpness": ("sharpness", ENHANCE),
    "SharpnessIncreasing": ("sharpness", EITHER_WAY),
    "ShearX": ("shear_x", Level(0.3, sign=0)),
    "ShearY": ("shear_y", Level(0.3, sign=0)),
    "TranslateXRel": ("translate_x", Level(0.45, sign=0)),  # parts of the side
    "TranslateYRel": ("translate_y", Level(0.45, sign=0)),
    "Desaturate": ("color", Level(0.5, most=0.5, base=0.5, sign=-1)),
    "GaussianBlur": ("blur", Level(1.9, most=1.9, base=0.1)),  # pixels
}

Operation = Callable[[Tensor, Tensor], Tensor]  # images uint8 (b, 3, S, S), numbers (b, COLUMNS) -> images


@cache
def _fill(device: torch.device) -> Tensor:
    return torch.tensor(transforms.UNCOVERED, dtype=torch.uint8, device=device).view(3, 1, 1)


def _by_strength(operation: Operation) -> Operation:
    return lambda x, numbers: operation(x, numbers[:, 0])


def _moved(x: Tensor, numbers: Tensor, *, operation: Callable, cubic: bool) -> Tensor:
    return operation(x, numbers[:, 0], numbers[:, 1], cubic=cubic, fill=_fill(x.device))


def _turned(x: Tensor, numbers: Tensor, *, cubic: bool) -> Tensor:
    return pixels.turned(x, numbers, cubic=cubic, fill=_fill(x.device))


# In a layer images are sorted by the index of their operation here.
KINDS: dict[str, Operation] = {
    "nothing": lambda x, _: x,
    "autocontrast": _by_strength(pixels.autocontrasted),
    "equalize": _by_strength(pixels.equalized),
    "invert": _by_strength(pixels.inverted),
    "posterize": _by_strength(pixels.posterized),
    "solarize": _by_strength(pixels.solarized),
    "solarize_add": _by_strength(pixels.solarized_by_addition),
    "color": _by_strength(pixels.coloured),
    "contrast": _by_strength(pixels.contrasted),
    "brightness": _by_strength(pixels.brightened),
    "sharpness": _by_strength(pixels.sharpened),
    "blur": _by_strength(pixels.blurred),
    "rows bilinear": partial(_moved, operation=pixels.rows_moved, cubic=False),
    "rows bicubic": partial(_moved, operation=pixels.rows_moved, cubic=True),
    "columns bilinear": partial(_moved, operation=pixels.columns_moved, cubic=False),
    "columns bicubic": partial(_moved, operation=pixels.columns_moved, cubic=True),
    "rotate bilinear": partial(_turned, cubic=False),
    "rotate bicubic": partial(_turned, cubic=True),
}
INDEX = {name: index for index, name in enumerate(KINDS)}
FUNCTIONS = tuple(KINDS.values())
WARPS = {"rotate": "rotate", "shear_x": "rows", "translate_x": "rows", "shear_y": "columns", "translate_y": "columns"}


@dataclass(frozen=True)
class Plan:
    """What to do to the images of a batch, all on the host.

    kinds: int64 (B, L), indices into `KINDS`. numbers: float64 (B, L, COLUMNS): strength and nothing else, but slope and shift
    of rows and columns, and the matrix of a rotation.
    """

    kinds: Tensor
    numbers: Tensor

    def applied(self, x: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> the same, on the same device."""
        if not self.kinds.any():
            return x
        batch, layers = self.kinds.shape
        place, sources, numbers = torch.arange(batch), [], []
        for layer in range(layers):
            order = self.kinds[:, layer].argsort(stable=True)
            sources.append(place[order])
            numbers.append(self.numbers[order, layer])
            place = torch.empty_like(order).index_copy_(0, order, torch.arange(batch))
        moves, sent = send(torch.stack([*sources, place]), x.device), send(torch.stack(numbers), x.device)
        for layer in range(layers):
            counts = torch.bincount(self.kinds[:, layer], minlength=len(KINDS)).tolist()
            x = torch.cat(list(_layer(x, counts, moves[layer], sent[layer])))
        return x.index_select(0, moves[layers])


def _layer(x: Tensor, counts: list[int], source: Tensor, numbers: Tensor) -> Iterator[Tensor]:
    """The images of one layer, operation by operation."""
    start = 0
    for function, count in zip(FUNCTIONS, counts, strict=True):
        pieces = max(round(count / CHUNK), 1) if x.device.type == "cpu" else 1
        for piece in range(pieces if count else 0):
            a, b = (start + count * k // pieces for k in (piece, piece + 1))
            yield function(x.index_select(0, source[a:b]), numbers[a:b])
        start += count


class RandAugment:
    """The draws of timm's RandAugment, by the numbers from `first` on; 5 per layer."""

    def __init__(self, aa: str, *, input_size: int, interpolation: str, first: int):
        """Raises OptionsError: `aa` is no setting of RandAugment."""
        made = transforms.rand_augment(aa, input_size=input_size, interpolation=interpolation)
        self.layers, self.side, self.first = made.num_layers, input_size, first
        self.chance, self.magnitude = made.ops[0].prob, made.ops[0].magnitude
        self.spread, self.most = made.ops[0].magnitude_std, made.ops[0].magnitude_max or 10.0
        self.cubic = {"bilinear": 0.0, "random": 0.5}.get(interpolation, 1.0)  # the chance of bicubic
        names, weights = [op.name for op in made.ops], made.choice_weights
        # Whole numbers, so that no sum depends on its order.
        self.weights = None if weights is None else torch.tensor((weights / weights.min()).round()).long()
        self.table = _table(names)

    def __call__(self, keys: Tensor) -> Plan:
        """keys: int64 (B,)"""
        numbers = torch.arange(5 * self.layers) + self.first
        draws = uniform(keys[:, None], numbers).view(len(keys), self.layers, 5)
        which, chance, spread, sign, cubic = draws.unbind(-1)
        chosen = self._chosen(which)
        strength = self._strength(chosen, self._magnitude(spread), sign)
        done = chance <= self.chance
        kinds = self.table["kind"][chosen] + (self.table["warp"][chosen] & (cubic < self.cubic))
        return planned(torch.where(done, kinds, 0), strength, self.side * self.table["shift"][chosen], self.side)

    def _chosen(self, which: Tensor) -> Tensor:
        """The operations: int64 (B, L). With weights, none of them twice for an image."""
        if self.weights is None:
            return (which * len(self.table["kind"])).long()
        weights, chosen = self.weights.expand(len(which), -1).clone(), []
        for draw in which.unbind(1):
            sums = weights.cumsum(1)
            ticket = (draw * sums[:, -1]).long()
            chosen.append((sums <= ticket[:, None]).sum(1))
            weights.scatter_(1, chosen[-1][:, None], 0)
        return torch.stack(chosen, 1) if chosen else which.long()

    def _magnitude(self, draw: Tensor) -> Tensor:
        if self.spread == math.inf:
            magnitude = draw * self.magnitude
        elif self.spread > 0:
            magnitude = quantiles()[entries(draw)] * self.spread + self.magnitude
        else:
            magnitude = torch.full_like(draw, self.magnitude)
        return magnitude.clamp_(0.0, self.most)

    def _strength(self, chosen: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
        of = {name: column[chosen] for name, column in self.table.items()}
        share = torch.minimum(magnitude / 10.0 * of["scale"], of["most"])
        share = torch.where(of["whole"], share.floor(), share)
        signs = torch.where(of["sign"] == 0, torch.where(sign > 0.5, -1.0, 1.0).double(), of["sign"].double())
        return torch.maximum(of["base"] + share * signs, of["least"])


def _table(names: list[str]) -> dict[str, Tensor]:
    """The operations of a RandAugment by columns (O,): the fields of `Level`, and

    kind: index into `KINDS`, of the bilinear one where there are two. warp: whether there are two. shift: 1 where the strength
    is a shift, else 0.
    """
    kinds = [OPERATIONS[name][0] for name in names]
    levels = [OPERATIONS[name][1] for name in names]
    columns = {field: np.array([getattr(level, field) for level in levels]) for field in Level.__dataclass_fields__}
    columns = {field: torch.from_numpy(column) for field, column in columns.items()}  # float64, unlike torch.tensor's
    bilinear = [f"{WARPS[kind]} bilinear" if kind in WARPS else kind for kind in kinds]
    return columns | {
        "kind": torch.tensor([INDEX[kind] for kind in bilinear]),
        "warp": torch.tensor([kind in WARPS for kind in kinds]),
        "shift": torch.tensor([kind.startswith("translate") for kind in kinds]).double(),
    }


def planned(kinds: Tensor, strength: Tensor, shift: Tensor, side: int) -> Plan:
    """A plan, and the matrices of its rotations. kinds, strength and shift (B, L); side: S.

    shift: what a strength of 1 moves an image by, in pixels; 0 where the operation moves none.
    """
    numbers = torch.zeros(*kinds.shape, COLUMNS, dtype=torch.float64)
    numbers[..., 0] = torch.where(shift > 0, 0.0, strength)
    numbers[..., 1] = strength * shift
    turned = (kinds >= INDEX["rotate bilinear"]).nonzero(as_tuple=True)
    if len(turned[0]):
        numbers[turned] = torch.tensor([rotation(degrees, side) for degrees in strength[turned].tolist()], dtype=torch.float64)
    return Plan(kinds, numbers)


def rotation(degrees: float, side: int) -> tuple[float, ...]:
    """Where a pixel's colour comes from when the image is turned anticlockwise about its middle; rounded as Pillow does.

    By Python's functions: those of torch may give another last bit at another place in a batch.
    """
    angle, middle = -math.radians(degrees % 360.0), side / 2
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    across, down = cos * -middle + sin * -middle, -sin * -middle + cos * -middle
    return cos, sin, across + middle, -sin, cos, down + middle


class ColorJitter:
    """The draws of torchvision's ColorJitter by the numbers from `first` on: brightness, contrast and saturation in any order.

    Each by a factor of 1 - strength (at least 0) to 1 + strength.
    """

    def __init__(self, strength: float, *, first: int):
        self.low, self.high, self.first = max(1.0 - strength, 0.0), 1.0 + strength, first
        kinds = [INDEX[kind] for kind in ("brightness", "contrast", "color")]
        self.orders = torch.tensor(list(permutations(kinds)))

    def __call__(self, keys: Tensor) -> Plan:
        """keys: int64 (B,)"""
        draws = uniform(keys[:, None], torch.arange(4) + self.first)
        factors = draws[:, 1:] * (self.high - self.low) + self.low
        return planned(self.orders[(draws[:, 0] * 6).long()], factors, torch.zeros_like(factors), side=0)
