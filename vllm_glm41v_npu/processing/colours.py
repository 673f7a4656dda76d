# SPDX-License-Identifier: Apache-2.0
"""Pictures of any PIL mode as RGB: transparency on a background, deep grey scaled to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from vllm.logger import init_logger

logger = init_logger(__name__)


RGB = "RGB"
WHITE = (255, 255, 255)
_ROWS = 256  # converted at a time, so that copies stay small

Colour = tuple[int, int, int]


def to_rgb(picture: Image.Image, background: Colour | None = None) -> Image.Image:
    """Return the picture in mode RGB.

    Transparency of every kind (an alpha channel, a transparent colour, a palette with alpha) is
    laid on ``background``, and dropped where that is None, as transformers does. Grey of more than
    8 bits is scaled, see `_eight_bits`; transformers clips it, which leaves most of it white. All
    other modes go through ``PIL.Image.convert``, as in transformers.
    """
    if is_deep(picture.mode):
        picture = _eight_bits(picture)
    if background is not None and picture.has_transparency_data:
        return _laid_on(picture, background)
    return picture if picture.mode == RGB else picture.convert(RGB)


def is_deep(mode: str) -> bool:
    """Return True for a mode of grey with more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _laid_on(picture: Image.Image, background: Colour) -> Image.Image:
    """Lay a picture on a background, a few rows at a time, so that the whole is not copied."""
    ground = Image.new(RGB, picture.size, background)
    ground.info = picture.info
    key = picture.info.get("transparency")
    for top in range(0, picture.height, _ROWS):
        part = picture.crop((0, top, picture.width, min(top + _ROWS, picture.height)))
        if picture.mode == RGB and isinstance(key, tuple) and max(key) > 255:
            # The file has 16 bits a colour, and Pillow keeps the upper 8.
            part.info["transparency"] = tuple(value >> 8 for value in key)
        if part.mode in ("La", "RGBa"):
            part = part.convert(part.mode.upper())
        if part.mode != "RGBA":
            part = part.convert("RGBA")
        ground.paste(part, (0, top), part)
    return ground


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return grey of 16 or 32 bits or of floats as mode L, scaled to 0..255; LA with transparency.

    16 bits count from 0 to 65535. The range of 32 bits and of floats is not known: 0..255 stays as
    it is, as in transformers; floats in 0..1 and integers in 0..65535 count as such; anything else
    is stretched from its least to its greatest value.
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
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray((values != clear).astype(np.uint8) * 255))
    grey.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return grey


def _range(mode: str, values: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white; the second is greater."""
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
