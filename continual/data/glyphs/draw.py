"""Draw glyphs50.npz: 50 characters in the freely licensed fonts that are installed, families split into training and test.

    python continual/data/glyphs/draw.py --out glyphs50.npz

Needs Debian or Ubuntu with font packages (fonts-*), Pillow and `pip install fonttools`. The file beside this script was drawn
with the fonts of 76 packages; with other fonts, or other versions of them, other glyphs come out.
"""

import argparse
import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abdefghmnqrt" + "23456789" + "&?%$"  # no two that differ in size alone
LICENCES = re.compile(r"Open Font License|OFL-1\.1|Apache License|Apache-2|Bitstream Vera")
SIDE = 16  # pixels
FONTS_PER_FAMILY = 2  # a family's weights look alike
NB_TRAIN, NB_TEST = 180, 60  # fonts


def free_fonts() -> list[str]:
    """Paths of the fonts of Debian's packages whose copyright file names one of LICENCES, sorted."""
    paths = []
    for listing in Path("/var/lib/dpkg/info").glob("*.list"):
        package = listing.stem.split(":")[0]
        copyright_file = Path("/usr/share/doc", package, "copyright")
        if not package.startswith(("fonts-", "ttf-")) or not copyright_file.is_file():
            continue
        if LICENCES.search(copyright_file.read_text(errors="replace")):
            files = map(str.strip, listing.read_text().splitlines())
            paths += [file for file in files if file.lower().endswith((".ttf", ".otf"))]
    return sorted(set(paths))


def family(path: str) -> str | None:
    """The family that a font belongs to; None if a character is missing in it, or it cannot be read."""
    try:
        font = TTFont(path, lazy=True)
        drawn = font.getBestCmap() or {}
        return str(font["name"].getDebugName(1)) if all(ord(character) in drawn for character in CHARACTERS) else None
    except Exception:  # a broken font can raise nearly anything
        return None


def glyph(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """uint8 (SIDE, SIDE): the character white on black, cropped, in the middle of a square with a margin, and scaled."""
    page = Image.new("L", (120, 120), 0)
    ImageDraw.Draw(page).text((30, 20), character, font=font, fill=255)
    box = page.getbbox()
    if not box or box[2] - box[0] < 4 or box[3] - box[1] < 6:
        raise ValueError(f"{character} is hardly there")
    cropped = page.crop(box)
    side = max(cropped.size) + 8
    square = Image.new("L", (side, side), 0)
    square.paste(cropped, ((side - cropped.width) // 2, (side - cropped.height) // 2))
    return np.asarray(square.resize((SIDE, SIDE), Image.BICUBIC))


def alphabet(path: str) -> np.ndarray | None:
    """uint8 (50, SIDE, SIDE): all characters of a font; None if some cannot be told apart, as in one of capitals alone."""
    try:
        font = ImageFont.truetype(path, 48)
        images = np.stack([glyph(font, character) for character in CHARACTERS])
    except Exception:  # likewise
        return None
    return images if len({image.tobytes() for image in images}) >= len(CHARACTERS) - 2 else None


def is_test(name: str) -> bool:
    """Whether a family is of the test images: a quarter are, by a hash of the name, all their fonts together."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 4 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    args = parser.parse_args()
    fonts: dict[bool, list[np.ndarray]] = {False: [], True: []}  # test or not -> alphabets
    per_family: Counter[str] = Counter()
    seen = set()
    for path in free_fonts():
        name = family(path)
        images = alphabet(path) if name is not None and per_family[name] < FONTS_PER_FAMILY else None
        if images is None or images.tobytes() in seen:
            continue
        seen.add(images.tobytes())
        per_family[name] += 1
        fonts[is_test(name)].append(images)
    rng, arrays = np.random.RandomState(0), {}
    for split, nb in (("train", NB_TRAIN), ("test", NB_TEST)):
        found = np.stack(fonts[split == "test"])
        chosen = found[np.sort(rng.permutation(len(found))[:nb])]  # (fonts, 50, SIDE, SIDE)
        arrays[f"{split}_x"] = chosen.reshape(-1, SIDE, SIDE)
        arrays[f"{split}_y"] = np.tile(np.arange(len(CHARACTERS)), len(chosen)).astype(np.uint8)
    np.savez_compressed(args.out, **arrays, characters=np.array(list(CHARACTERS)))
    print(
        f"{sum(map(len, fonts.values()))} fonts of {len(per_family)} families; kept",
        *(arrays["train_x"].shape, arrays["test_x"].shape),
    )


if __name__ == "__main__":
    main()
