"""What Pillow does to the pixels of an image, for many images at once.

Images are planar, uint8 (b, 3, H, W), on any device; strengths are float64 (b,) on the same one. Each function gives a new
tensor. Grey levels are computed in integers, or in floating point by one elementary operation at a time, so that the
result for an image depends neither on the others nor on its place among them. No function waits for its device.

Letters:  b images   H, W their height and width in pixels
"""

from functools import cache

import torch
from torch import Tensor

RGBX = 4  # bytes per pixel where a pixel is one number
FEW = 8  # images


def send(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; the host does not wait for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def bytes_of(x: Tensor) -> Tensor:
    """Grey levels from 0 to 255, what is behind the point cut off: float (...) -> uint8 (...). Faster in two steps."""
    return x.to(torch.int16).to(torch.uint8)


def luminance(x: Tensor) -> Tensor:
    """Pillow's grey of every pixel, by ITU-R 601-2 in fixed point: uint8 (b, 3, H, W) -> int32 (b, 1, H, W)."""
    red, green, blue = x.to(torch.int32).split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


# --- Blends between an image and a lesser form of it: 0 gives that, 1 the image, more than 1 what lies beyond ---


def blended(x: Tensor, lesser: Tensor, factor: Tensor) -> Tensor:
    """lesser + factor * (x - lesser), cut off to a grey level. lesser: float32 that broadcasts to the shape of x."""
    y = x.float().sub_(lesser).mul_(factor.float()[:, None, None, None]).add_(lesser)
    return bytes_of(y.clamp_(0, 255))


def brightened(x: Tensor, factor: Tensor) -> Tensor:
    """A blend with black."""
    return bytes_of(x.float().mul_(factor.float()[:, None, None, None]).clamp_(0, 255))


def contrasted(x: Tensor, factor: Tensor) -> Tensor:
    """A blend with the mean grey of the image, rounded."""
    mean = luminance(x).sum(dim=(1, 2, 3)).double().div_(x.shape[2] * x.shape[3]).add_(0.5).floor_()
    return blended(x, mean.float()[:, None, None, None], factor)


def coloured(x: Tensor, factor: Tensor) -> Tensor:
    """A blend with the greys of the image."""
    return blended(x, luminance(x).float(), factor)


def sharpened(x: Tensor, factor: Tensor) -> Tensor:
    """A blend with the image smoothed by a 3 × 3 window, its centre 5 times as heavy; the outermost pixels are not smoothed."""
    smooth = x.float()
    if min(x.shape[2:]) > 2:
        wide = x.to(torch.int16)
        columns = wide[:, :, :-2].add(wide[:, :, 1:-1]).add_(wide[:, :, 2:])
        sums = columns[..., :-2].add(columns[..., 1:-1]).add_(columns[..., 2:])
        sums += wide[:, :, 1:-1, 1:-1] * 4
        smooth[:, :, 1:-1, 1:-1] = sums.float().add_(6.5).mul_(1 / 13).floor_()  # the sum of the weights is 13
    return blended(x, smooth, factor)


# --- One table of 256 grey levels per image and channel ---


def inverted(x: Tensor, _: Tensor) -> Tensor:
    return x.bitwise_not()


def posterized(x: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest bits of every grey level; none of them where `bits` is 0 or less."""
    kept = bits.clamp(0, 8).to(torch.int32)[:, None, None, None]
    return x & (0xFF00 >> kept).to(torch.uint8)


def solarized(x: Tensor, threshold: Tensor) -> Tensor:
    """Inverts every grey level from the threshold (0 to 256) on."""
    return x ^ _from(x, threshold)


def solarized_by_addition(x: Tensor, added: Tensor) -> Tensor:
    """Adds a grey level of up to 128 to every one below 128."""
    sums = (x.to(torch.int16) + added.to(torch.int16)[:, None, None, None]).clamp_(max=255).to(torch.uint8)
    high = (x >> 7) * 255  # 255 from 128 on, else 0
    return (x & high).bitwise_or_(sums.bitwise_and_(high.bitwise_not()))


def _from(x: Tensor, threshold: Tensor) -> Tensor:
    """255 where a grey level is at the threshold or above it, 0 elsewhere."""
    wide = x.to(torch.int16) - threshold.to(torch.int16)[:, None, None, None]  # negative below
    return (wide >> 15).to(torch.uint8).bitwise_not()


def looked_up(x: Tensor, table: Tensor) -> Tensor:
    """Every grey level's entry of its image's and channel's table: table uint8 (b, 3, 256) -> (b, 3, H, W)."""
    return table.gather(2, x.flatten(2).long()).view(x.shape)


def autocontrasted(x: Tensor, _: Tensor) -> Tensor:
    """Stretches every channel so that its darkest pixel becomes 0 and its brightest 255."""
    flat = x.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    levels = _levels(x.device)
    scale = torch.full_like(low, 255.0) / (high - low).clamp_(min=1)  # 255 / x would be 255 * (1 / x)
    table = bytes_of((levels * scale).add_(-low * scale).clamp_(0, 255))
    return looked_up(x, torch.where(high > low, table, levels.to(torch.uint8)))


def equalized(x: Tensor, _: Tensor) -> Tensor:
    """Spreads the grey levels of every channel so that all are about equally frequent."""
    flat = x.flatten(2).long()
    ones = torch.ones(1, dtype=torch.int32, device=x.device).expand(flat.shape)
    counts = torch.zeros(*x.shape[:2], 256, dtype=torch.int32, device=x.device).scatter_add_(2, flat, ones).long()
    levels = _levels(x.device).long()
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return looked_up(x, torch.where(step > 0, table, levels).to(torch.uint8))


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.arange(256, dtype=torch.float64, device=device)


# --- Blur ---


def blurred(x: Tensor, radius: Tensor) -> Tensor:
    """Pillow's Gaussian blur, three box blurs along every axis. radius: up to 2 pixels, the boxes then reach 2 pixels far."""
    variance = radius * radius / 3
    half = ((12.0 * variance + 1.0).sqrt() - 1.0).div(2.0).floor()
    part = (2 * half + 1) * (half * (half + 1) - 3 * variance) / (6 * (variance - (half + 1) * (half + 1)))
    box = (half + part).float()  # as Pillow keeps it
    whole = box.floor()
    inner = (torch.full_like(box, 1 << 24) / (box * 2 + 1)).long()
    edge = ((1 << 24) - (whole.long() * 2 + 1) * inner) // 2
    near, far = torch.where(whole > 0, inner, edge), torch.where(whole > 0, edge, 0)
    weights = [each[:, None, None, None] for each in (inner, near, far)]
    y = x.long()
    for _ in range(3):
        y = _boxed(y, weights)
    y = y.transpose(2, 3)
    for _ in range(3):
        y = _boxed(y, weights)
    return y.transpose(2, 3).to(torch.uint8).contiguous()


def _boxed(x: Tensor, weights: list[Tensor]) -> Tensor:
    """One box blur along the last axis; beyond the edge lies the outermost pixel. x: int64 grey levels (b, 3, H, W)."""
    width = x.shape[3]
    columns = torch.arange(-2, width + 2, device=x.device).clamp_(0, width - 1)
    padded = x.index_select(3, columns)
    taps = [padded[..., k : k + width] for k in range(5)]
    own, near, far = weights
    return (taps[2] * own + (taps[1] + taps[3]) * near + (taps[0] + taps[4]) * far + (1 << 23)) >> 24


# --- Shifts, shears and rotations ---


def rows_moved(x: Tensor, slope: Tensor, shift: Tensor, *, cubic: bool, fill: Tensor) -> Tensor:
    """Every pixel gets what lies slope * y + shift to its right, y being its centre's height in pixels from the top.

    cubic: by four pixels, else by two (bilinear). fill: uint8 (3, 1, 1), the colour of what comes from outside.
    """
    height, width = x.shape[2:]
    device = x.device
    middles = torch.arange(height, dtype=torch.float64, device=device).add_(0.5)
    offset = slope[:, None] * middles + shift[:, None]  # (b, H)
    base = offset.floor()
    part = (offset - base).float()[:, None, :, None]
    columns = torch.arange(-1, width + 2, device=device)
    index = (base.long()[:, :, None] + columns).clamp_(0, width - 1)
    taps = x.gather(3, index[:, None].expand(-1, 3, -1, -1)).float()  # from one pixel before to two pixels after
    y = (_cubic_of_row if cubic else _linear_of_row)(taps, part)
    source = offset[:, :, None] + torch.arange(width, dtype=torch.float64, device=device).add_(0.5)
    return _covered(bytes_of(y), (source >= 0) & (source < width), fill)


def columns_moved(x: Tensor, slope: Tensor, shift: Tensor, *, cubic: bool, fill: Tensor) -> Tensor:
    """As `rows_moved`, with rows and columns exchanged: what lies slope * x + shift below."""
    return rows_moved(x.transpose(2, 3).contiguous(), slope, shift, cubic=cubic, fill=fill).transpose(2, 3).contiguous()


def _cubic_of_row(taps: Tensor, part: Tensor) -> Tensor:
    """Pillow's cubic through four neighbours (a = -1), at `part` between the second and the third; from 0 to 255."""
    width = taps.shape[3] - 3
    steps = taps[..., 1:] - taps[..., :-1]
    first = steps[..., :width]
    third = first + steps[..., 2:]
    rest = third + first
    y = third.mul_(part).sub_(rest)
    y.mul_(part).add_(torch.add(first, steps[..., 1 : width + 1], out=rest)).mul_(part).add_(taps[..., 1 : width + 1])
    return y.clamp_(0, 255)


def _linear_of_row(taps: Tensor, part: Tensor) -> Tensor:
    width = taps.shape[3] - 3
    here = taps[..., 1 : width + 1]
    return (taps[..., 2 : width + 2] - here).mul_(part).add_(here)


def _covered(x: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """x where `inside` (b, H, W), else the fill."""
    kept = inside.to(torch.uint8).neg_()[:, None]  # 255 inside
    return x.bitwise_and_(kept).bitwise_or_(kept.bitwise_not() & fill)


def turned(x: Tensor, matrix: Tensor, *, cubic: bool, fill: Tensor) -> Tensor:
    """Every pixel gets what an affine map finds: matrix (b, 6), rows of x' and y' from (x, y, 1), centres of pixels, in pixels.

    cubic: by 4 × 4 pixels, else by 2 × 2 (bilinear). fill: uint8 (3, 1, 1), the colour of what comes from outside.
    """
    height, width = x.shape[2:]
    across = torch.arange(width, dtype=torch.float64, device=x.device).add_(0.5)
    down = torch.arange(height, dtype=torch.float64, device=x.device).add_(0.5)[:, None]
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    column, row = a * across + b * down + c, d * across + e * down + f  # (b, H, W)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    (columns, part_x), (rows, part_y) = _taps(column, width, cubic), _taps(row, height, cubic)  # (n, b, H, W), (b, H, W)
    pixels, curve = _packed(x), _cubic if cubic else _linear
    firsts = torch.arange(0, len(pixels), height * width, dtype=torch.int32, device=x.device)[:, None, None]
    part_x, part_y = _repeated(part_x), _repeated(part_y)
    together = len(rows) if len(x) <= FEW else 1  # lines at a time: fewer calls, or less memory
    shape = (together, *part_x.shape)
    reused, lines = [torch.empty(shape, device=x.device) for _ in columns[1:]], []  # memory that was just used is the fastest
    for some in rows.split(together):
        start = firsts + some * width
        values = [*reused, torch.empty(shape, device=x.device)]
        for value, each in zip(values, columns, strict=True):
            value.copy_(pixels.index_select(0, (start + each).flatten()).view(torch.uint8).view(shape))
        lines += curve(values, part_x).unbind(0)
    y = curve(lines, part_y).clamp_(0, 255)
    return _covered(bytes_of(y)[..., :3].permute(0, 3, 1, 2).contiguous(), inside, fill)


def _taps(position: Tensor, size: int, cubic: bool) -> tuple[Tensor, Tensor]:
    """The pixels around a position along one axis, and how far it is from the one before it: (4 or 2, ...) int32, (...)."""
    position = position - 0.5
    base = position.floor()
    around = torch.arange(*((-1, 3) if cubic else (0, 2)), dtype=torch.int32, device=position.device)
    pixels = base.to(torch.int32) + around.view(-1, *[1] * position.ndim)
    return pixels.clamp_(0, size - 1), (position - base).float()


def _cubic(values: list[Tensor], part: Tensor) -> Tensor:
    """The cubic of four values, as in `_cubic_of_row`. It is put in the place of the last one; the others are lost."""
    before, here, after, beyond = values
    third = beyond.sub_(after)
    after.sub_(before)
    first = torch.sub(here, before, out=before)
    third.add_(first)
    first.add_(third)
    return third.mul_(part).sub_(first).mul_(part).add_(after).mul_(part).add_(here)


def _linear(values: list[Tensor], part: Tensor) -> Tensor:
    """Between two values; put in the place of the last one."""
    here, after = values
    return after.sub_(here).mul_(part).add_(here)


def _repeated(part: Tensor) -> Tensor:
    """The same for every channel of a pixel: (b, H, W) -> (b, H, W, RGBX). Faster than to expand, by far."""
    wide = torch.empty(*part.shape, RGBX, device=part.device)
    for channel in wide.unbind(-1):
        channel.copy_(part)
    return wide


def _packed(x: Tensor) -> Tensor:
    """A pixel as one number: uint8 (b, 3, H, W) -> int32 (b * H * W,)."""
    pixels = torch.zeros(len(x), *x.shape[2:], RGBX, dtype=torch.uint8, device=x.device)
    pixels[..., :3] = x.permute(0, 2, 3, 1)
    return pixels.view(torch.int32).flatten()
