# SPDX-License-Identifier: Apache-2.0
"""Pictures of numbers: 1 to 4 digits, printed in many fonts or written by hand.

Everything is drawn from a seed, so the same call gives the same pictures on every machine with
the same Pillow, NumPy and font packages. The `heldout` split uses font families, background
kinds and handwritten digits that the `train` split never shows.

`python -m tools.tiny.examples` writes the example files in `assets/pictures` from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from tools.tiny.backgrounds import BACKGROUNDS, contrasting, paint
from tools.tiny.ink import Ink, handwriting_indices, handwritten, printed

MIN_DIGIT_WIDTH = 15.0  # pixels, as the model sees them
SHORTEST_EDGE, LONGEST_EDGE = 112 * 112, 2 * 112 * 112  # of the tiny model's preprocessor

QUESTIONS = (
    "What number is written in the picture?",
    "Read the number.",
    "What is the number in this image?",
    "Which number do you see?",
    "What does the picture say?",
    "图片里写的是什么数字？",
    "读出图中的数字。",
)
DIGIT_QUESTIONS = ("Which digit is this?", "What digit is written here?", "这是哪个数字？")
SEVERAL_QUESTIONS = (
    "What numbers are in the pictures?",
    "Read the numbers.",
    "Which number is written in each picture?",
    "这些图片里写的是什么数字？",
)


@dataclass(frozen=True)
class NumberPicture:
    """A picture, the number in it, where its digits are (in 0..1), and how large they are.

    `centres` has (digit, x, y) for each digit; `reach` is half a digit's width and height.
    """

    image: Image.Image
    answer: str
    centres: tuple[tuple[int, float, float], ...]
    reach: tuple[float, float]


def picture_size(rng: np.random.Generator, aspect: float) -> tuple[int, int]:
    """Width and height: any shape that leaves room for ink of this aspect."""
    side = math.exp(rng.uniform(math.log(56), math.log(220)))
    if rng.random() < 0.05:
        side *= 2.5
    shape = math.exp(rng.uniform(math.log(0.55), math.log(1.6))) * max(1.0, aspect**0.6)
    return max(28, round(side * shape**0.5)), max(28, round(side / shape**0.5))


def seen_size(width: int, height: int) -> tuple[int, int]:
    """Width and height after the tiny model's own resize."""
    from transformers.models.glm4v.image_processing_glm4v import smart_resize

    seen_h, seen_w = smart_resize(
        2, height, width, min_pixels=SHORTEST_EDGE, max_pixels=LONGEST_EDGE
    )
    return seen_w, seen_h


def digit_height(
    rng: np.random.Generator,
    ink: Ink,
    size: tuple[int, int],
    seen: tuple[int, int],
    angle: float,
) -> int:
    """A height in pixels that fits the picture and stays readable after the resize to `seen`."""
    (width, height), (seen_w, seen_h) = size, seen
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    fits = min(
        0.92 * width / (ink.aspect * cos + 1.2 * sin),
        0.90 * height / (ink.aspect * sin + 1.2 * cos),
    )
    readable = max(
        ink.smallest * height / seen_h,
        MIN_DIGIT_WIDTH * width / seen_w * len(ink.answer) / ink.aspect,
    )
    return max(8, round(rng.uniform(min(readable, fits), fits)))


def is_readable(ink: Ink, digit: int, size: tuple[int, int], seen: tuple[int, int]) -> bool:
    """Whether digits of this height in a picture of this size are large enough once resized."""
    (width, height), (seen_w, seen_h) = size, seen
    return digit * seen_h / height >= ink.smallest * 0.95 and (
        digit * ink.aspect / len(ink.answer) * seen_w / width >= MIN_DIGIT_WIDTH * 0.95
    )


def compose(
    rng: np.random.Generator, ink: Ink, split: str, plain: float, noise: float, blur: float
) -> NumberPicture:
    """Ink somewhere on a background of the split; with probability `plain` on a single colour."""
    angle = rng.uniform(-6, 6)
    for _ in range(20):  # a picture too narrow for its number is drawn again
        size = picture_size(rng, ink.aspect)
        digit = digit_height(rng, ink, size, seen_size(*size), angle)
        if is_readable(ink, digit, size, seen_size(*size)):
            break
    alpha, where, reach = lay(rng, ink, digit, size, angle)
    canvas, front = background(rng, split, size, plain)
    canvas += alpha * (front - canvas)
    canvas += rng.uniform(0, noise) * rng.standard_normal(canvas.shape, np.float32)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.04 * digit)))
    return NumberPicture(image, ink.answer, where, reach)


def background(
    rng: np.random.Generator, split: str, size: tuple[int, int], plain: float
) -> tuple[np.ndarray, np.ndarray]:
    """A background, float32 [height, width, 3] in 0..255, and an ink colour [3] to show on it."""
    first, second, front = contrasting(rng)
    kind = (
        "solid"
        if rng.random() < plain
        else BACKGROUNDS[split][rng.integers(len(BACKGROUNDS[split]))]
    )
    return paint(kind, rng, *size, first, second), front


def lay(
    rng: np.random.Generator, ink: Ink, digit: int, size: tuple[int, int], angle: float
) -> tuple[np.ndarray, tuple[tuple[int, float, float], ...], tuple[float, float]]:
    """Ink of this digit height somewhere in a picture: coverage, float32 [height, width, 1].

    Also the `centres` and the `reach` of a NumberPicture.
    """
    width, height = size
    flat, centres = ink.draw(digit)
    mask = flat.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    left = int(rng.integers(0, max(1, width - mask.width + 1)))
    top = int(rng.integers(0, max(1, height - mask.height + 1)))
    alpha = np.zeros((height, width, 1), np.float32)
    cut = np.asarray(mask, np.float32)[: height - top, : width - left] / 255
    alpha[top : top + cut.shape[0], left : left + cut.shape[1], 0] = cut
    where = rotated_centres(ink.answer, centres, flat, mask, angle, left, top, size)
    return alpha, where, (flat.width / len(ink.answer) / width / 2, digit / height / 2)


def rotated_centres(
    answer: str,
    centres: list[float],
    flat: Image.Image,
    mask: Image.Image,
    angle: float,
    left: int,
    top: int,
    size: tuple[int, int],
) -> tuple[tuple[int, float, float], ...]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return tuple(
        (
            int(digit),
            (left + mask.width / 2 + cos * (x - flat.width / 2)) / size[0],
            (top + mask.height / 2 - sin * (x - flat.width / 2)) / size[1],
        )
        for digit, x in zip(answer, centres, strict=True)
    )


def random_number(rng: np.random.Generator, fewest: int = 1, most: int = 4) -> str:
    """A number of `fewest` to `most` digits, each length equally likely, no leading zero."""
    length = int(rng.integers(fewest, most + 1))
    low = 0 if length == 1 else 10 ** (length - 1)
    return str(rng.integers(low, 10**length))


def draw_written(
    rng: np.random.Generator, split: str, fewest: int = 1, most: int = 4
) -> NumberPicture:
    ink = printed(rng, split, random_number(rng, fewest, most))
    return compose(rng, ink, split, plain=0.15, noise=18, blur=0.15)


def draw_handwritten(
    rng: np.random.Generator, split: str, indices: list[int], wild: float = 1.0
) -> NumberPicture:
    ink = handwritten(rng, indices, wild)
    return compose(rng, ink, split, plain=0.6, noise=12, blur=0)


def written_numbers(split: str, count: int, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """`count` RGB pictures of printed numbers of 1 to 4 digits, with their answers.

    `split` is "train" or "heldout" (other font families and background kinds). Picture i depends
    on (split, seed, i) only.
    """
    streams = np.random.SeedSequence([seed, len(split)]).spawn(count)
    drawn = [draw_written(np.random.default_rng(s), split) for s in streams]
    return [(p.image, p.answer) for p in drawn]


def handwritten_digits(
    split: str, count: int | None = None, seed: int = 0
) -> list[tuple[Image.Image, str]]:
    """RGB pictures of single handwritten digits of the split: the first `count`, or all.

    "heldout" has every fifth digit of scikit-learn's `load_digits` (360), "train" the others.
    """
    indices = handwriting_indices(split)[:count]
    streams = np.random.SeedSequence([seed, len(split), 8]).spawn(len(indices))
    drawn = [
        draw_handwritten(np.random.default_rng(s), split, [int(i)], 0.5)
        for s, i in zip(streams, indices, strict=True)
    ]
    return [(p.image, p.answer) for p in drawn]
