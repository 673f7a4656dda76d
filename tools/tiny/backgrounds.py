# SPDX-License-Identifier: Apache-2.0
"""Backgrounds for the number pictures: kinds to train on and kinds held out."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

BACKGROUNDS = {
    "train": (
        "solid",
        "gradient",
        "blotches",
        "stripes",
        "halves",
        "grain",
        "boxes",
        "lattice",
        "waves",
        "confetti",
        "scratches",
        "dots",
    ),
    "heldout": ("checkerboard", "radial", "ruled"),
}
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
MIN_CONTRAST, MAX_TEXTURE = 105.0, 38.0  # in luma, 0..255


def random_color(rng: np.random.Generator) -> np.ndarray:
    """An RGB colour, float32 [3] in 0..255; one in four is a grey."""
    if rng.random() < 0.25:
        return np.full(3, rng.uniform(0, 255), np.float32)
    return rng.uniform(0, 255, 3).astype(np.float32)


def contrasting(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two background colours of similar luma and an ink colour that stands out from both."""
    while True:
        first, second, front = (random_color(rng) for _ in range(3))
        a, b, c = (float(color @ LUMA) for color in (first, second, front))
        if abs(a - b) < MAX_TEXTURE and min(abs(a - c), abs(b - c)) > MIN_CONTRAST:
            return first, second, front


def paint(
    kind: str,
    rng: np.random.Generator,
    width: int,
    height: int,
    first: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """A background of the kind, mixed of two colours: float32 [height, width, 3] in 0..255."""
    share = SHARES[kind](rng, width, height)  # share of the second colour, [height, width]
    return first + share[:, :, None].astype(np.float32) * (second - first)


def _axes(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x, y


def _tilted(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Distance in pixels along a random direction."""
    x, y = _axes(width, height)
    turn = rng.uniform(0, 2 * math.pi)
    return x * math.cos(turn) + y * math.sin(turn)


def _solid(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def _gradient(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    ramp = _tilted(rng, width, height)
    return (ramp - ramp.min()) / max(1e-3, float(np.ptp(ramp)))


def _blotches(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (int(rng.integers(2, 9)), int(rng.integers(2, 9))))
    image = Image.fromarray(coarse.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def _stripes(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    period = rng.uniform(0.05, 0.5) * max(width, height)
    wave = np.sin(2 * math.pi * _tilted(rng, width, height) / period)
    return np.clip(wave * rng.uniform(0.5, 6) + 0.5, 0, 1)


def _halves(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    ramp = _tilted(rng, width, height)
    return (ramp > rng.uniform(ramp.min(), ramp.max())).astype(np.float32)


def _grain(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    return rng.uniform(0, 1, (height, width)).astype(np.float32)


def _boxes(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    share = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 7))):
        left, top = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(2, width), rng.integers(2, height)
        share[top : top + h, left : left + w] = rng.uniform(0, 1)
    return share


def _lattice(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    period = max(6.0, rng.uniform(0.08, 0.3) * max(width, height))
    one, other = _tilted(rng, width, height), _tilted(rng, width, height)
    thick = max(1.0, rng.uniform(0.05, 0.2) * period)
    return ((one % period < thick) | (other % period < thick)).astype(np.float32)


def _waves(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    period = rng.uniform(0.08, 0.4) * max(width, height)
    one, other = (np.sin(2 * math.pi * _tilted(rng, width, height) / period) for _ in range(2))
    return np.clip(one * other * rng.uniform(0.5, 3) + 0.5, 0, 1)


def _confetti(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    share = np.zeros((height, width), np.float32)
    side = max(3, round(rng.uniform(0.03, 0.12) * max(width, height)))
    for _ in range(int(rng.integers(20, 80))):
        left, top = rng.integers(-side, width), rng.integers(-side, height)
        w, h = rng.integers(side // 2, side + 2, 2)
        share[max(0, top) : max(0, top + h), max(0, left) : max(0, left + w)] = 1
    return share


def _scratches(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 15))):
        ends = rng.uniform(-0.2, 1.2, 4) * np.array([width, height, width, height])
        pen.line([float(e) for e in ends], 255, max(1, round(rng.uniform(0.005, 0.04) * width)))
    return np.asarray(image, np.float32) / 255


def _checkerboard(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    x, y = _axes(width, height)
    cell = rng.uniform(0.06, 0.3) * max(width, height)
    return ((x // cell + y // cell) % 2).astype(np.float32)


def _radial(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    x, y = _axes(width, height)
    away = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
    return away / max(1e-3, float(away.max()))


def _ruled(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    _, y = _axes(width, height)
    period = max(5.0, rng.uniform(0.08, 0.25) * height)
    return ((y + rng.uniform(0, period)) % period < max(1.0, 0.1 * period)).astype(np.float32)


def _dots(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    x, y = _axes(width, height)
    period = max(6.0, rng.uniform(0.08, 0.25) * max(width, height))
    away = np.hypot(x % period - period / 2, y % period - period / 2)
    return (away < rng.uniform(0.15, 0.4) * period).astype(np.float32)


SHARES = {
    "solid": _solid,
    "gradient": _gradient,
    "blotches": _blotches,
    "stripes": _stripes,
    "halves": _halves,
    "grain": _grain,
    "boxes": _boxes,
    "lattice": _lattice,
    "waves": _waves,
    "confetti": _confetti,
    "scratches": _scratches,
    "checkerboard": _checkerboard,
    "radial": _radial,
    "ruled": _ruled,
    "dots": _dots,
}
