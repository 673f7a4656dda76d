# SPDX-License-Identifier: Apache-2.0
"""Clips that show one number after another, for a second or a few each.

Like `tools.tiny.number_pictures`: everything comes from a seed, and the `heldout` split uses font
families and background kinds that `train` never shows. A number changes only where the model
starts a new pair of frames, so that "the number at second 2" is one number.

`python -m tools.tiny.clips` writes the example files in `assets/videos`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tools.tiny.ink import Ink, printed
from tools.tiny.number_pictures import (
    NumberPicture,
    background,
    digit_height,
    is_readable,
    lay,
    random_number,
)
from tools.tiny.video_talk import KINDS, ask

# Width and height of a frame as the model sees it: 9 to 25 merged tokens a pair.
SEEN_SIZES = (
    (84, 84), (112, 84), (84, 112), (112, 112), (140, 112), (112, 140), (140, 140),
    (140, 84), (168, 84), (168, 56), (168, 112), (84, 140),
)  # fmt: skip
PER_SECOND = 2  # frames a second that the model's processor samples
SLOW_SHARE = 0.2  # of the clips have one frame a second: their pairs are two seconds long
LONGEST = 10  # seconds, so that a timestamp is one digit
MOST_SEGMENTS, MOST_DIGITS = 6, 2
SHAKE = 2  # pixels that a frame is off its place, at most


@dataclass(frozen=True)
class NumberClip:
    """Frames, uint8 [frames, height, width, 3], and which number is shown from when to when.

    `shown` has (number, first second, last second), both inclusive, in order.
    """

    frames: np.ndarray
    fps: int
    shown: tuple[tuple[str, int, int], ...]

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def at(self, second: int) -> str:
        """The number shown at that second."""
        return next(number for number, first, last in self.shown if first <= second <= last)

    def answer(self, kind: str, second: int = 0) -> str:
        """The answer to a question of this kind: "first", "last" or "at"."""
        return {"first": self.shown[0][0], "last": self.shown[-1][0]}.get(kind) or self.at(second)


def sampled_frames(count: int, fps: float) -> list[int]:
    """The frames the model's processor takes: Glm4vVideoProcessor.sample_frames at its rate."""
    wanted = math.floor(count / fps * PER_SECOND)
    indices = [min(count - 1, math.ceil(i * fps / PER_SECOND)) for i in range(wanted)]
    unique = list(dict.fromkeys(indices))
    return unique + unique[-1:] * (len(unique) % 2)


def timestamps(count: int, fps: float) -> list[int]:
    """The second that the prompt states after each pair of frames."""
    return [int(index / fps) for index in sampled_frames(count, fps)[::2]]


def draw_scene(
    rng: np.random.Generator,
    ink: Ink,
    size: tuple[int, int],
    seen: tuple[int, int],
    scenery: tuple[np.ndarray, np.ndarray],
) -> NumberPicture:
    """Ink somewhere on the scenery, a `background` of this size (width, height)."""
    for _ in range(20):
        angle = rng.uniform(-6, 6)
        digit = digit_height(rng, ink, size, seen, angle)
        if is_readable(ink, digit, size, seen):
            break
    alpha, where, reach = lay(rng, ink, digit, size, angle)
    canvas, front = scenery
    pixels = np.clip(canvas + alpha * (front - canvas), 0, 255).astype(np.uint8)
    return NumberPicture(Image.fromarray(pixels), ink.answer, where, reach)


def readable_ink(
    rng: np.random.Generator, split: str, number: str, size: tuple[int, int], seen: tuple[int, int]
) -> Ink:
    """A printed number in a font of the split whose digits can be large enough for this size."""
    for _ in range(20):
        ink = printed(rng, split, number)
        tallest = math.floor(min(0.85 * size[0] / ink.aspect, 0.70 * size[1]))
        if is_readable(ink, tallest, size, seen):
            break
    return ink


def draw_plan(rng: np.random.Generator, slow: bool) -> list[int]:
    """How many pairs of frames each number is shown for: 1 or 2."""
    limit = LONGEST // 2 if slow else LONGEST
    lengths = [1] * int(rng.integers(2, min(MOST_SEGMENTS, limit) + 1))
    for i in rng.permutation(len(lengths)):
        if sum(lengths) < limit and rng.random() < 0.35:
            lengths[i] = 2
    return lengths


def different_numbers(rng: np.random.Generator, count: int) -> list[str]:
    numbers: dict[str, None] = {}
    while len(numbers) < count:
        numbers[random_number(rng, 1, MOST_DIGITS)] = None
    return list(numbers)


def native_size(rng: np.random.Generator, seen: tuple[int, int]) -> tuple[int, int]:
    """Even, as H.264 wants it, and close enough to be resized to `seen`."""
    width, height = (side + 2 * int(rng.integers(-6, 7)) for side in seen)
    return width, height


def shaken(
    rng: np.random.Generator, pixels: np.ndarray, noise: float, count: int
) -> list[np.ndarray]:
    """Frames of a scene that is 2 * SHAKE pixels too large each way, each with its own noise."""
    height, width = (side - 2 * SHAKE for side in pixels.shape[:2])
    frames = []
    for top, left in rng.integers(0, 2 * SHAKE + 1, (count, 2)):
        cut = pixels[top : top + height, left : left + width].astype(np.float32)
        cut = cut + noise * rng.standard_normal(cut.shape, np.float32)
        frames.append(np.clip(cut, 0, 255).astype(np.uint8))
    return frames


def draw_clip(split: str, seed: int, index: int) -> NumberClip:
    """Clip `index` of the split ("train" or "heldout"); depends on these three only."""
    rng = np.random.default_rng([seed, len(split), 9, index])
    slow = bool(rng.random() < SLOW_SHARE)
    fps = 1 if slow else int(rng.integers(2, 9))
    lengths = draw_plan(rng, slow)
    numbers = different_numbers(rng, len(lengths))
    seen = SEEN_SIZES[rng.integers(len(SEEN_SIZES))]
    width, height = native_size(rng, seen)
    size = (width + 2 * SHAKE, height + 2 * SHAKE)
    keeps, noise = rng.random() < 0.5, rng.uniform(0, 8)
    scenery = background(rng, split, size, 0.15)
    frames, shown, start = [], [], 0
    for number, length in zip(numbers, lengths, strict=True):
        if not keeps:
            scenery = background(rng, split, size, 0.15)
        seconds = length * (2 if slow else 1)
        ink = readable_ink(rng, split, number, size, seen)
        picture = draw_scene(rng, ink, size, seen, scenery)
        frames += shaken(rng, np.asarray(picture.image), noise, seconds * fps)
        shown.append((number, start, start + seconds - 1))
        start += seconds
    return NumberClip(np.stack(frames), fps, tuple(shown))


def clip_questions(split: str, count: int, seed: int = 0) -> list[tuple[str, NumberClip, str]]:
    """(question, clip, answer) about `count` clips; half ask for a second, a quarter for an end.

    A second that is asked for is one that the prompt states.
    """
    asked = []
    for i in range(count):
        clip = draw_clip(split, seed, i)
        rng = np.random.default_rng([seed, len(split), 10, i])
        kind = KINDS[i % len(KINDS)]
        second = int(rng.choice(timestamps(len(clip.frames), clip.fps)))
        asked.append((ask(rng, kind, second), clip, clip.answer(kind, second)))
    return asked
