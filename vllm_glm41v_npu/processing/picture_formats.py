# SPDX-License-Identifier: Apache-2.0
"""The formats of pictures that are opened, by Pillow's names. Imports no torch or vLLM."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO")
"""Pillow's names. JPEG includes MPO, PNG includes APNG; HEIF comes where pillow-heif is installed.

Of several pictures in a file the first is opened.
"""


@cache
def formats() -> tuple[str, ...]:
    """`FORMATS`, and HEIF where a decoder is installed."""
    if find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif  # type: ignore[import-not-found]

    pillow_heif.register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")
