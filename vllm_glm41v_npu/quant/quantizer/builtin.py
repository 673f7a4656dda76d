# SPDX-License-Identifier: Apache-2.0
"""The built-in calibration set: drawn pictures, short films and text, the same on every machine.

The pictures are chosen for variety, not for beauty: flat areas, gradients, noise, shapes, writing,
a table of bars. Static ranges follow from the largest values, and those come from the first tokens
of a prompt and from a few channels, whatever the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Generator = np.random.Generator
Conversation = tuple[list[Image.Image], bool, str, str]
"""Pictures, whether they are frames of one film, the question, and an answer."""

PICTURES, PAIRS, FILMS, TEXTS = 20, 4, 4, 4
FRAMES = 8

QUESTIONS = (
    "Describe what you see.",
    "What does the picture say?",
    "Which colours are in the image, and where?",
    "How many shapes are there?",
    "What number is written in the picture?",
    "Explain step by step what the picture shows.",
    "描述这张图片。",
    "图片里写的是什么数字？",
)
FILM_QUESTIONS = ("What happens in the video?", "What moves, and where to?", "视频里发生了什么？")
TEXT_QUESTIONS = (
    "What is 17 times 23? Think before you answer.",
    "Write a function in Python that reverses a list.",
    "Explain in three sentences why the sky is blue.",
    "用一句话说明什么是量化。",
)
THOUGHTS = (
    "The picture is small and clear. I look at it from the left to the right, then compare the "
    "parts with what was asked: {seen}. There is nothing else that matters here.",
    "Let me look closely. I see {seen}. First, the question asks for one thing only; second, "
    "nothing in the picture speaks against it. So the answer follows.",
    "图中有{seen}。先看整体，再看细节，最后回答问题。",
)


def conversations(seed: int) -> Iterator[Conversation]:
    """The whole set, drawn from `seed`; answers are of the model's own form."""
    rng = np.random.default_rng(seed)
    for index in range(PICTURES):
        picture, seen = _picture(rng, index)
        yield [picture], False, QUESTIONS[index % len(QUESTIONS)], _answer(index, seen)
    for index in range(PAIRS):
        (first, seen), (second, other) = _picture(rng, index), _picture(rng, index + 1)
        question = f"{QUESTIONS[index % len(QUESTIONS)]} Compare both pictures."
        yield [first, second], False, question, _answer(index, f"{seen}, {other}")
    for index in range(FILMS):
        question = FILM_QUESTIONS[index % len(FILM_QUESTIONS)]
        yield _film(rng), True, question, _answer(index, "a disc")
    for index in range(TEXTS):
        yield [], False, TEXT_QUESTIONS[index % len(TEXT_QUESTIONS)], _answer(index, "no picture")


def _answer(index: int, seen: str) -> str:
    thought = THOUGHTS[index % len(THOUGHTS)].format(seen=seen)
    return f"<think>{thought}</think><answer>{seen}</answer>"


def _picture(rng: Generator, index: int) -> tuple[Image.Image, str]:
    """A picture of a kind that follows from `index`, and what is in it."""
    width, height = (int(side) for side in rng.integers(112, 449, 2))
    return KINDS[index % len(KINDS)](rng, width, height)


def _colour(rng: Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def _gradient(rng: Generator, width: int, height: int) -> Image.Image:
    """Return a picture that goes from one colour to another, across and down."""
    start, end = (np.array(_colour(rng), dtype=float) for _ in range(2))
    across, down = np.linspace(0, 0.5, width), np.linspace(0, 0.5, height)
    part = (across[None, :] + down[:, None])[..., None]  # [height, width, 1]
    return Image.fromarray((start + (end - start) * part).astype(np.uint8))


def _number(rng: Generator, width: int, height: int) -> tuple[Image.Image, str]:
    picture = _gradient(rng, width, height)
    number = str(rng.integers(0, 10 ** int(rng.integers(1, 5))))
    size = max(24, int(min(height * 0.6, 1.5 * width / len(number))))
    middle = np.asarray(picture)[height // 2, width // 2].mean()
    ink = (0, 0, 0) if middle > 127 else (255, 255, 255)
    _write(picture, (width / 2, height / 2), number, size, ink)
    return picture, number


def _shapes(rng: Generator, width: int, height: int) -> tuple[Image.Image, str]:
    picture = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(picture)
    count = int(rng.integers(2, 9))
    for index in range(count):
        side = int(rng.integers(12, max(13, min(width, height) // 2)))
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        shape = draw.ellipse if index % 2 else draw.rectangle
        shape((left, top, left + side, top + side), fill=_colour(rng))
    return picture, f"{count} shapes"


def _noise(rng: Generator, width: int, height: int) -> tuple[Image.Image, str]:
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), "noise"


def _lines(rng: Generator, width: int, height: int) -> tuple[Image.Image, str]:
    """A page of writing."""
    picture = Image.new("RGB", (width, height), "white")
    words = QUESTIONS[0].split() + QUESTIONS[5].split()
    for top in range(16, height - 8, 24):
        chosen = " ".join(rng.choice(words, max(1, width // 60)))
        _write(picture, (width / 2, top), chosen, 14, (0, 0, 0))
    return picture, "a page of words"


def _bars(rng: Generator, width: int, height: int) -> tuple[Image.Image, str]:
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    count = int(rng.integers(3, 8))
    for index, share in enumerate(rng.uniform(0.1, 0.9, count)):
        left, right = width * index // count + 4, width * (index + 1) // count - 4
        draw.rectangle((left, int(height * (1 - share)), right, height), fill=_colour(rng))
    return picture, f"{count} bars"


KINDS: tuple[Callable[[Generator, int, int], tuple[Image.Image, str]], ...]
KINDS = (_number, _shapes, _number, _lines, _bars, _number, _noise)


def _film(rng: Generator) -> list[Image.Image]:
    """A disc that crosses a gradient."""
    width, height = (int(side) for side in rng.integers(112, 225, 2))
    ground, ink = _gradient(rng, width, height), _colour(rng)
    (x, y), (to_x, to_y) = rng.uniform(0.2, 0.8, (2, 2))
    frames = []
    for part in np.linspace(0, 1, FRAMES):
        frame = ground.copy()
        centre = (width * (x + (to_x - x) * part), height * (y + (to_y - y) * part))
        ImageDraw.Draw(frame).circle(centre, width / 8, fill=ink)
        frames.append(frame)
    return frames


def _write(
    picture: Image.Image, centre: tuple[float, float], text: str, size: int, ink: tuple[int, ...]
) -> None:
    """Letters in Pillow's own font; where its FreeType is missing, small ones."""
    font = ImageFont.load_default(size)
    width, height = font.getbbox(text)[2:]
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    ImageDraw.Draw(picture).text(corner, text, fill=ink, font=font)
