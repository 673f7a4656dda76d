# SPDX-License-Identifier: Apache-2.0
"""Write `assets/pictures`: real files of several kinds, from held-out fonts and handwriting.

    python -m tools.tiny.examples assets/pictures

`answers.json` gives the number in each file, as it reads after its EXIF rotation is applied.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tools.tiny.ink import handwriting_indices, printed
from tools.tiny.number_pictures import NumberPicture, draw_handwritten, draw_written

ORIENTATION_TAG, TURN_RIGHT = 0x0112, 6  # EXIF: turn the stored picture by 90 degrees clockwise


def first_written(seed: int, fits: Callable[[NumberPicture], bool]) -> NumberPicture:
    """The first held-out printed number from this seed on that fits."""
    rng = np.random.default_rng(seed)
    while True:
        picture = draw_written(rng, "heldout")
        if fits(picture):
            return picture


def on_transparency(seed: int, answer: str) -> Image.Image:
    """Dark digits, RGBA; what is transparent is white below, so both readings of alpha agree."""
    flat, _ = printed(np.random.default_rng(seed), "heldout", answer).draw(70)
    mask = ImageOps.expand(flat, 24)
    digits = Image.new("RGB", mask.size, (20, 40, 110))
    image = Image.composite(digits, Image.new("RGB", mask.size, "white"), mask)
    image.putalpha(mask)
    return image


def save_turned(picture: Image.Image, path: Path) -> None:
    """As a phone does: stored lying on its side, with the tag that says how to turn it back."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = TURN_RIGHT
    picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=92, exif=exif)


def write_examples(folder: Path) -> dict[str, str]:
    """Write the files and their index; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    printed_ = first_written(1, lambda p: len(p.answer) == 4)
    photo = first_written(2, lambda p: len(p.answer) == 3)
    large = first_written(3, lambda p: min(p.image.size) > 320 and len(p.answer) > 1)
    wide = first_written(4, lambda p: p.image.width > 3 * p.image.height and len(p.answer) == 4)
    turned = first_written(5, lambda p: p.image.width > 1.4 * p.image.height and len(p.answer) == 2)
    digit = int(handwriting_indices("heldout")[8])
    by_hand = draw_handwritten(np.random.default_rng(8), "heldout", [digit], 0.5)

    printed_.image.save(folder / "printed.png")
    photo.image.save(folder / "photo.jpg", quality=90)
    large.image.save(folder / "large.jpg", quality=75)
    wide.image.save(folder / "wide.png")
    save_turned(turned.image, folder / "turned-by-exif.jpg")
    by_hand.image.save(folder / "handwritten.png")
    on_transparency(7, "507").save(folder / "transparent.png")
    answers = {
        "printed.png": printed_.answer,
        "photo.jpg": photo.answer,
        "large.jpg": large.answer,
        "wide.png": wide.answer,
        "turned-by-exif.jpg": turned.answer,
        "handwritten.png": by_hand.answer,
        "transparent.png": "507",
    }
    (folder / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example pictures.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("assets/pictures"))
    print(json.dumps(write_examples(parser.parse_args().folder), indent=2))


if __name__ == "__main__":
    main()
