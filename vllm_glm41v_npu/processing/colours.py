# SPDX-License-Identifier: Apache-2.0
"""Pictures of any PIL mode as RGB: transparency on a background, deep grey scaled to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from .settings import logger

RGB = "RGB"
WHITE = (255, 255, 255)
_DEEP_MODES = ("I", "F")  # and I;16 with its byte orders
_ROWS = 256  # scaled at a time, so that float copies stay small

Colour = tuple[int, int, int]


def to_rgb(picture: Image.Image, background: Colour | None = None) -> Image.Image:
    """The picture in mode RGB.

    Transparency of every kind (an alpha channel, a transparent colour, a palette with alpha) is
    laid on ``background``, and dropped where it is None, as transformers does. Grey of more than 8
    bits is scaled, see `_eight_bits`; transformers clips it, which leaves most of it white. All
    other modes go through ``PIL.Image.convert``, as in transformers.
    """
    alpha = None
    if background is not None and picture.has_transparency_data:
        picture, alpha = _without_alpha(picture)
    if picture.mode.startswith("I;16") or picture.mode in _DEEP_MODES:
        picture = _eight_bits(picture)
    if picture.mode != RGB:
        picture = picture.convert(RGB)
    if alpha is None:
        return picture
    ground = Image.new(RGB, picture.size, background)
    ground.info = picture.info
    ground.paste(picture, mask=alpha)
    return ground


def _without_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The picture and, in mode L, how opaque each pixel is."""
    key = picture.info.get("transparency")
    if picture.mode.startswith("I;16") or picture.mode in _DEEP_MODES:
        if not isinstance(key, int):
            return picture, None
        opaque = np.asarray(picture) != key
        return picture, Image.fromarray(opaque.astype(np.uint8) * 255)
    if picture.mode == RGB and isinstance(key, tuple) and max(key) > 255:
        # Of a file with 16 bits a colour, which Pillow reads as 8.
        picture = picture.copy()
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    full = picture.convert("RGBA")
    return full, full.getchannel("A")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats, scaled to 0..255, in mode L.

    16 bits count from 0 to 65535. Of 32 bits and floats the range is not known: 0..255 stays as it
    is, as in transformers; floats in 0..1 and integers in 0..65535 count as such; anything else is
    stretched from its least to its greatest value.
    """
    values = np.asarray(picture)
    low, high = _range(picture.mode, values)
    if (low, high) == (0, 255):
        return picture
    logger.warning_once(
        "A picture is grey with more than 8 bits (PIL mode %s): its values are scaled to 0..255. "
        "transformers clips them instead, so its answers differ.",
        picture.mode,
    )
    scaled = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):
        part = np.nan_to_num(values[row : row + _ROWS].astype(np.float64), nan=low)
        part = (part.clip(low, high) - low) * (255 / (high - low)) + 0.5
        scaled[row : row + _ROWS] = part.astype(np.uint8)
    grey = Image.fromarray(scaled)
    grey.info = picture.info
    return grey


def _range(mode: str, values: np.ndarray) -> tuple[float, float]:
    """What becomes black and white; the second is greater."""
    if mode.startswith("I;16"):
        return 0, 65535
    finite: Any = values if mode == "I" else values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low >= 0 and mode == "F" and high <= 1:
        return 0, 1
    if low >= 0 and high <= 255:
        return 0, 255
    if low >= 0 and mode == "I" and high <= 65535:
        return 0, 65535
    return low, high if high > low else low + 1
