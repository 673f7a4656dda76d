# SPDX-License-Identifier: Apache-2.0
"""Files of pictures: which are opened, what of their headers is believed, and how they are decoded.

Pillow reads some forty formats, among them ones that run other programs. Here it opens those of
`FORMATS`, and decodes nothing before the size is known and allowed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from io import BytesIO

from PIL import Image, ImageFile, UnidentifiedImageError

from .budget import Plan, RequestEnded, check_alive
from .colours import WHITE, Colour, to_rgb
from .image import check_pixels, undecodable, upright

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO")
"""Pillow's names. JPEG includes MPO, PNG includes APNG; HEIF is added where pillow-heif is installed.

Of several pictures in a file the first is opened.
"""

_HELD = 4  # bytes of a pixel in Pillow's RGB
_PEAK = {"WEBP": 24, "AVIF": 24, "HEIF": 24, "JPEG2000": 40, "JPEG": 20}
_USUAL_PEAK = 16
"""Bytes of a pixel while it is decoded, converted and turned; measured, rounded up."""

MAX_SCANS = 100
"""Of a progressive JPEG. Encoders write about ten; each costs as much as decoding the picture."""

_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51..(..)(.{32})", re.DOTALL)


def plan_picture(
    data: bytes, name: str = "The picture", background: Colour | None = WHITE
) -> Plan[Image.Image]:
    """Read the header of a file.

    Decoding gives mode RGB, turned as EXIF says, transparency laid on ``background``.

    Raises:
        ValueError: no picture of `FORMATS`, or too large; a sentence for the caller.
    """
    try:
        picture = _open(data, name)
        sizes = [picture.size, *_hidden_sizes(picture, data)]
    except (RequestEnded, ValueError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise undecodable(name, error) from error
    for size in sizes:
        check_pixels(*size, name)
    pixels = max(width * height for width, height in sizes)
    kind = "JPEG" if picture.format == "MPO" else str(picture.format)
    if kind == "JPEG":
        _check_scans(data, name)

    def decode() -> Image.Image:
        try:
            picture.load()
            check_alive()
            return to_rgb(upright(picture), background)
        except RequestEnded:
            raise
        except Exception as error:
            raise undecodable(name, error) from error

    return Plan(pixels * _PEAK.get(kind, _USUAL_PEAK), pixels * _HELD, decode)


@cache
def formats() -> tuple[str, ...]:
    """`FORMATS`, and HEIF where a decoder is installed."""
    if find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")


class _Watched(BytesIO):
    """A file that ends its decoder, between two pieces, when nobody waits for it any more."""

    def read(self, size: int | None = -1, /) -> bytes:
        check_alive()
        return super().read(size)


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    try:
        return Image.open(_Watched(data), formats=formats())
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not a picture of a kind that is read here, whatever its name says, or its "
            f"header is damaged; expected {', '.join(formats())}. Check what was sent."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large, and was not decoded: {error} Send a smaller picture."
        ) from error


def _hidden_sizes(picture: ImageFile.ImageFile, data: bytes) -> Iterator[tuple[int, int]]:
    """Sizes that a decoder works with, and that Pillow does not tell from the header."""
    if picture.format == "ICO":
        yield from _icon_size(picture, data)
    elif picture.format == "JPEG2000":
        for found in _CODESTREAM.finditer(data):
            right, bottom, left, top, width, height, *_ = struct.unpack(">8I", found[2])
            yield right - left, bottom - top
    elif picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        if 322 in tags and 323 in tags:  # TileWidth, TileLength
            yield tags[322], tags[323]


def _icon_size(picture: ImageFile.ImageFile, data: bytes) -> Iterator[tuple[int, int]]:
    """Of the PNG or BMP inside, which the list of an icon's pictures may contradict."""
    icon = picture.ico  # type: ignore[attr-defined]
    start = icon.entry[icon.getentryindex(picture.size)].offset
    inside = data[start : start + 24]
    if len(inside) < 24:
        return
    if inside.startswith(b"\x89PNG"):
        yield struct.unpack(">II", inside[16:24])
    elif inside[0] == 12:  # the header of OS/2
        yield struct.unpack("<HH", inside[4:8])
    else:
        width, height = struct.unpack("<ii", inside[4:12])
        yield abs(width), abs(height)


def _check_scans(data: bytes, name: str) -> None:
    if data.count(_SCAN) > MAX_SCANS and (scans := _count_scans(data)) > MAX_SCANS:
        raise ValueError(
            f"{name} is a JPEG of {scans} scans; at most {MAX_SCANS} are decoded, and usual files "
            "have about ten. Save it again, as JPEG or PNG."
        )


def _count_scans(data: bytes) -> int:
    """Scans of the first picture of a JPEG file, thumbnails in its metadata left out."""
    scans, place = 0, 2
    while (marker := _MARKER.search(data, place)) is not None:
        kind, place = marker[0][-1], marker.end()
        if kind == 0xD9:  # the end of the picture
            break
        if kind == 0xDA:
            scans += 1
        if kind != 0x01:  # all others have a length
            place += int.from_bytes(data[place : place + 2], "big")
    return scans
