# SPDX-License-Identifier: Apache-2.0
"""Formats of picture files that are opened: their names, first bytes and suffixes.

Imports no torch or vLLM, and Pillow's plug-in for HEIF only where it is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple


class Format(NamedTuple):
    """One format of picture files.

    suffixes: of file names.
    beginnings: first bytes of a file.
    brands: kinds of files in the same boxes as MP4 (``ftyp``) that are one picture.
    moving_brands: those that are several pictures, of which FFmpeg makes a video.
    """

    suffixes: tuple[str, ...]
    beginnings: tuple[bytes, ...] = ()
    brands: tuple[bytes, ...] = ()
    moving_brands: tuple[bytes, ...] = ()


_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
_JPEG2000 = (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")

_FORMATS = {
    "PNG": Format((".png", ".apng"), (b"\x89PNG",)),
    "JPEG": Format((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), (b"\xff\xd8\xff",)),
    "WEBP": Format((".webp",)),
    "GIF": Format((".gif",), (b"GIF8",)),
    "BMP": Format((".bmp", ".dib"), (b"BM",)),
    "TIFF": Format((".tif", ".tiff"), (b"II*\0", b"MM\0*")),
    "AVIF": Format((".avif",), (), (b"avif",), (b"avis",)),
    "JPEG2000": Format((".jp2", ".j2k", ".jpx", ".jpf"), _JPEG2000),
    "ICO": Format((".ico",), (b"\0\0\1\0",)),
    "HEIF": Format((".heic", ".heif"), (), _HEIF_BRANDS, (b"msf1",)),
}
"""Pillow's name to the format. JPEG includes MPO, PNG includes APNG."""

FORMATS = tuple(name for name in _FORMATS if name != "HEIF")
"""Pillow's names of the formats that it opens by itself; of several pictures it opens the first."""

SUFFIXES = tuple(suffix for each in _FORMATS.values() for suffix in each.suffixes)
BRANDS = frozenset(brand for each in _FORMATS.values() for brand in each.brands)
_MOVING_BRANDS = frozenset(brand for each in _FORMATS.values() for brand in each.moving_brands)
_BEGINNINGS = tuple(begin for each in _FORMATS.values() for begin in each.beginnings)


@cache
def formats() -> tuple[str, ...]:
    """Return `FORMATS`, and HEIF where a decoder is installed."""
    if find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif  # type: ignore[import-not-found]

    pillow_heif.register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")


def is_picture(head: bytes) -> bool:
    """Return True for the first bytes, at least 12, of a picture of one of the formats."""
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_boxed = head[4:8] == b"ftyp" and head[8:12] in BRANDS | _MOVING_BRANDS
    return is_webp or is_boxed or head.startswith(_BEGINNINGS)
