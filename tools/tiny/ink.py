# SPDX-License-Identifier: Apache-2.0
"""Numbers as coverage masks: printed in fonts from PyPI, or in real handwriting."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_PACKAGES = {
    "train": (
        "font_roboto",
        "font_source_sans_pro",
        "font_source_serif_pro",
        "font_hanken_grotesk",
        "font_manrope",
        "font_fredoka_one",
        "font_intuitive",
        "font_fjallaone",
    ),
    "heldout": ("font_lato", "font_rhd", "font_caladea"),
}
# Hairlines vanish when a picture is scaled down to some 100 pixels.
FAINT_STYLES = ("Thin", "ExtraLight", "Variable")
HELDOUT_EVERY = 5  # every fifth handwritten digit is held out
MIN_DIGIT_HEIGHT = 22.0  # pixels, as the model sees them


@dataclass(frozen=True)
class Ink:
    """A number that can be drawn at any digit height (pixels): coverage mask and x centres."""

    answer: str
    aspect: float  # width of the whole number / height of a digit
    smallest: float  # height of a digit in pixels, as the model sees it
    draw: Callable[[int], tuple[Image.Image, list[float]]]


@lru_cache(maxsize=2)
def font_families(split: str) -> tuple[tuple[Path, ...], ...]:
    """Font files of a split, one tuple a family, without faint styles."""
    if split not in FONT_PACKAGES:
        raise ValueError(f"unknown split {split!r}: expected one of {sorted(FONT_PACKAGES)}")
    families = []
    for name in FONT_PACKAGES[split]:
        folder = Path(str(importlib.import_module(name).__file__)).parent / "files"
        by_style = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix in (".otf", ".ttf")}
        families.append(
            tuple(p for s, p in sorted(by_style.items()) if not any(f in s for f in FAINT_STYLES))
        )
    return tuple(families)


@lru_cache(maxsize=4096)
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@lru_cache(maxsize=256)
def digit_box(path: Path) -> tuple[float, float]:
    """Top and bottom of the font's digits, in units of the font size."""
    _, top, _, bottom = load_font(path, 100).getbbox("0123456789")
    return top / 100, bottom / 100


def printed(rng: np.random.Generator, split: str, answer: str) -> Ink:
    families = font_families(split)
    family = families[rng.integers(len(families))]
    path = family[rng.integers(len(family))]
    tracking = max(0.0, rng.uniform(-0.08, 0.16))  # extra space between digits, in font sizes
    # Training fonts are also squeezed and stretched: more shapes than there are font files.
    stretch = math.exp(rng.uniform(-0.45, 0.2)) if split == "train" else 1.0
    top, bottom = digit_box(path)
    widths = [load_font(path, 100).getlength(c) / 100 + tracking for c in answer]

    def draw(height: int) -> tuple[Image.Image, list[float]]:
        size = max(8, round(height / (bottom - top)))
        font = load_font(path, size)
        margin = math.ceil(0.08 * size)
        mask = Image.new("L", (math.ceil(sum(widths) * size) + 2 * margin, height + 2 * margin))
        pen, centres = float(margin), []
        for character, width in zip(answer, widths, strict=True):
            ImageDraw.Draw(mask).text((pen, margin - top * size), character, 255, font)
            centres.append(pen + (width - tracking) * size / 2)
            pen += width * size
        mask = mask.resize((round(mask.width * stretch), mask.height), Image.Resampling.BICUBIC)
        return mask, [x * stretch for x in centres]

    aspect = stretch * (sum(widths) + 0.16) / (bottom - top)
    return Ink(answer, aspect, MIN_DIGIT_HEIGHT, draw)


@lru_cache(maxsize=1)
def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's real handwritten digits: uint8 [1797, 8, 8] coverage, int [1797] labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).astype(np.uint8), data.target


def handwriting_indices(split: str) -> np.ndarray:
    index = np.arange(len(handwriting()[1]))
    if split not in FONT_PACKAGES:
        raise ValueError(f"unknown split {split!r}: expected one of {sorted(FONT_PACKAGES)}")
    held = index % HELDOUT_EVERY == 0
    return index[held] if split == "heldout" else index[~held]


def handwritten(rng: np.random.Generator, indices: list[int], wild: float = 1.0) -> Ink:
    """Digits of the handwriting data set side by side; `wild` scales their variation."""
    images, labels = handwriting()
    widths = [0.8 + wild * rng.uniform(-0.15, 0.15) for _ in indices]
    slants = [wild * rng.uniform(-0.2, 0.2) for _ in indices]
    gamma = float(np.exp(wild * rng.uniform(-0.5, 0.4)))

    def draw(height: int) -> tuple[Image.Image, list[float]]:
        mask = Image.new("L", (math.ceil(sum(widths) * height), height))
        pen, centres = 0.0, []
        for index, width, slant in zip(indices, widths, slants, strict=True):
            ink = (images[index] / 255.0) ** gamma * 255
            size = (round(width * height), height)
            glyph = Image.fromarray(ink.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
            shear = (1, slant, -slant * height / 2, 0, 1, 0)
            glyph = glyph.transform(size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
            mask.paste(glyph, (round(pen), 0))
            centres.append(pen + width * height / 2)
            pen += width * height
        return mask, centres

    smallest = MIN_DIGIT_HEIGHT if len(indices) > 1 else 1.25 * MIN_DIGIT_HEIGHT
    return Ink("".join(str(labels[i]) for i in indices), sum(widths), smallest, draw)
