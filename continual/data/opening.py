"""From a file or a Pillow image of any kind to one in RGB with 8 bits per channel: one rule for every image.

1. Turned as its EXIF orientation says, where the caller wants that.
2. 16 bits per pixel are scaled to 8; 32-bit integers and floating point, whose white nobody knows, are refused.
3. What is see-through shows white.
4. Whatever else Pillow knows (grey, palettes, CMYK, ...) goes by its own `convert("RGB")`.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from continual.errors import DataError

# Opened by Pillow, but not decoded by it: videos, drawings, and formats that need another program.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# The formats in which Pillow knows pixels of 32 bits. (A grey PNG of mode I, in older versions of Pillow, has 16 bits.)
_WIDE_FORMATS = {"FITS", "IM", "MCIDAS", "PPM", "TIFF"}
BLOCK = 65_536  # paths looked at together


def open_rgb(path: str, *, upright: bool) -> Image.Image:
    """The image of a file; see `as_rgb`. Pillow raises errors of a dozen types on broken files.

    Raises:
        DataError: pixels of 32 bits.
    """
    # From an open file and not its path, because Pillow then maps no file into memory: what it maps of a TIFF whose
    # orientation says to turn it is garbled (12.3).
    with open(path, "rb") as file, Image.open(file) as image:
        return as_rgb(image, upright=upright, what=path)


def as_rgb(image: Image.Image, *, upright: bool, what: str = "the image") -> Image.Image:
    """The image in RGB, by the rule at the head of this file. what: its name in a refusal.

    Raises:
        DataError: pixels of 32 bits.
    """
    if _is_wide(image):
        raise DataError(_refusal(what, image))
    sixteen, white = image.mode.startswith("I"), _white(image)
    inverted = getattr(image, "tag_v2", {}).get(262) == 0  # PhotometricInterpretation of a TIFF: 0 is white
    key = _key(image)
    image.load()
    if key is not None:
        image.info["transparency"] = key
    if upright:
        image = _upright(image)
    if sixteen:
        image = _eight_bits(image, white)
        image = ImageOps.invert(image) if inverted else image
    if image.has_transparency_data:
        image = _over_white(image)
    return image.convert("RGB")


def refuse_wide(paths: Iterable[str]) -> None:
    """Refuses images of 32-bit pixels by their headers, before anything is trained on them.

    Give it the paths of `wide_among`. Does not check for broken files.

    Raises:
        DataError: names the first of them.
    """

    def refusal(path: str) -> str | None:
        try:
            with Image.open(path) as image:
                return _refusal(path, image) if _is_wide(image) else None
        except Exception:  # broken; told when it is opened
            return None

    with ThreadPoolExecutor() as pool:
        told = [message for message in pool.map(refusal, paths) if message]
    if told:
        raise DataError(told[0] + (f"; and {len(told) - 1} more like it" if len(told) > 1 else ""))


def wide_among(paths: np.ndarray) -> Iterator[str]:
    """The paths whose ending is of a format that can hold pixels of 32 bits; JPEG and PNG cannot."""
    for start in range(0, len(paths), BLOCK):
        block = paths[start : start + BLOCK].tolist()
        if _last_parts(block) & _wide_endings():
            yield from (path for path in block if _ending(path) in _wide_endings())


@cache
def endings() -> frozenset[str]:
    """The endings, in lower case and with their dot, of the image files that Pillow can open."""
    Image.init()
    known = Image.registered_extensions()
    # MPO is JPEG with a second picture, and opened as JPEG.
    return frozenset(end for end, kind in known.items() if (kind in Image.OPEN or kind == "MPO") and kind not in _NO_PICTURES)


def is_image(path: str) -> bool:
    """Whether the file's ending is one of an image."""
    return _ending(path) in endings()


def images_among(files: list[str]) -> tuple[list[str], list[str]]:
    """The files whose ending is one of an image, and the others, in their order. None of them may be hidden."""
    if _last_parts(files) <= endings():
        return files, []
    return [file for file in files if is_image(file)], [file for file in files if not is_image(file)]


def _last_parts(paths: list[str]) -> set[str]:
    """What follows a last dot anywhere in these paths, with the dot, in lower case: all endings there are, and perhaps more.

    To ask it first, and `_ending` of each path only if need be, saves seconds in ImageNet.
    """
    return {part.lower() for part in {path[path.rfind(".") :] for path in paths}}


def by_ending(paths: Sequence[str]) -> str:
    """How many files there are of each ending, the most frequent first: `10 .txt, 2 .mp4`."""
    counts = Counter(_ending(path) or "without an ending" for path in paths)
    return ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _ending(path: str) -> str:
    """In lower case, with its dot; empty without one."""
    dot = path.rfind(".")
    return path[dot:].lower() if dot > path.rfind("/") + 1 else ""


@cache
def _wide_endings() -> frozenset[str]:
    return frozenset(end for end in endings() if Image.registered_extensions()[end] in _WIDE_FORMATS)


def _is_wide(image: Image.Image) -> bool:
    """Whether pixels have 32 bits. Mode I holds 16 in grey PNG (older Pillow) and PGM files, which Pillow scales to 65535."""
    return image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM"))


def _refusal(what: str, image: Image.Image) -> str:
    kind = "floating point" if image.mode == "F" else "integers of 32 bits, or with a sign"
    return f"{what} has pixels in {kind} (mode {image.mode}), whose white is not known; save it with 8 or 16 bits per channel"


def _white(image: Image.Image) -> int:
    """The largest value of a pixel of 16 bits; of 12 bits in a TIFF of such."""
    (bits, *_) = getattr(image, "tag_v2", {}).get(258, (16,))  # BitsPerSample
    return 4095 if bits == 12 else 65535


def _key(image: Image.Image) -> int | tuple[int, ...] | None:
    """The see-through value of a PNG in the 8 bits that Pillow gives its pixels; None where it is so already.

    Of 16-bit colours Pillow keeps the upper halves, so all that share those count as see-through.
    """
    known = image.info.get("transparency")
    if image.format != "PNG" or known is None or not image.tile:
        return None
    kind = image.tile[0][3]
    kind = kind[0] if isinstance(kind, tuple) else kind
    if kind in ("L;2", "L;4"):
        return known * {"L;2": 85, "L;4": 17}[kind]
    return tuple(value >> 8 for value in known) if kind == "RGB;16B" else None


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; as it is where there is no EXIF, or one that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are loaded: only what lies beside them is broken
        return image


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    """A grey image of wider pixels to 8 bits. In a PNG one of its values may stand for see-through."""
    values = np.asarray(image)
    grey = Image.fromarray(eight_bits(values, white))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def eight_bits(values: np.ndarray, white: int = 65535) -> np.ndarray:
    """Integers from 0 to `white` to uint8 from 0 to 255, rounded."""
    return np.rint(values * np.float32(255 / white)).astype(np.uint8)  # exact: no value comes near the middle of two


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
