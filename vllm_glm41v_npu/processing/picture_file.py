# SPDX-License-Identifier: Apache-2.0
"""Files of pictures: opened by Pillow after a look at their headers, and decoded.

Pillow reads some forty formats, and runs other programs for some. Here it opens those of `FORMATS`,
and decodes nothing before the size is known and allowed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageFile, UnidentifiedImageError

from vllm_glm41v_npu.processing.av1 import av1_sizes
from vllm_glm41v_npu.processing.budget import Plan, RequestEnded, check_alive
from vllm_glm41v_npu.processing.colours import RGB, WHITE, Colour, is_deep, to_rgb
from vllm_glm41v_npu.processing.image import (
    UPRIGHT,
    check_pixels,
    orientation,
    undecodable,
    upright,
)
from vllm_glm41v_npu.processing.jpeg2000 import HeaderRefused, codestream_size
from vllm_glm41v_npu.processing.picture_formats import formats

_HELD = 4  # bytes of a pixel in Pillow's RGB, as in most of its modes
_DEPTHS = {"1": 1, "L": 1, "P": 1}
_DECODERS = {"WEBP": 16, "AVIF": 20, "HEIF": 20, "JPEG2000": 28, "TIFF": 4, "PNG": 4}
"""Bytes of a pixel that decoders take beside the picture they write; measured, rounded up."""

MAX_SCANS = 100
"""The most scans of a JPEG. Encoders write about ten; each costs as much as the picture."""

_ICON, _MAX_ICON = b"\0\0\1\0", 2048 * 2048
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # fill bytes before it are looked at once


def plan_picture(
    data: bytes, name: str = "The picture", background: Colour | None = WHITE
) -> Plan[Image.Image]:
    """Read the header of a picture file, and return the plan of its decoding.

    Decoding gives mode RGB, turned by EXIF, with transparency laid on ``background``.

    Raises:
        ValueError: It is no picture of `FORMATS`, or too large; a sentence for the caller.
    """
    picture, sizes = _open(data, name)
    for size in sizes:
        check_pixels(*size, name)
    pixels = max(width * height for width, height in sizes)
    if picture.format in ("JPEG", "MPO"):
        _check_scans(data, name)

    def decode() -> Image.Image:
        try:
            picture.load()
            check_alive()
            return to_rgb(upright(picture), background)
        except Exception as error:
            check_alive()  # OpenJPEG loses what its file raised
            raise undecodable(name, error) from error

    return Plan(pixels * _bytes_per_pixel(picture), pixels * _HELD, decode)


class _Watched(BytesIO):
    """A file that ends its decoding, between two reads, when nobody waits for it any more."""

    def read(self, size: int | None = -1, /) -> bytes:
        check_alive()
        return super().read(size)


def _open(data: bytes, name: str) -> tuple[ImageFile.ImageFile, list[tuple[int, int]]]:
    """Return the picture, and each (width, height) that its decoder works with."""
    try:
        if data.startswith(_ICON):
            _check_icon(data)
        picture = Image.open(_Watched(data), formats=formats())
        return picture, [picture.size, *_hidden_sizes(picture, data)]
    except RequestEnded:
        raise
    except HeaderRefused as error:
        raise ValueError(
            f"{name} was not decoded, because {error}. Send it again, as PNG or JPEG."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not a picture of a kind that is read here, whatever its name says, or its "
            f"header is damaged; expected {', '.join(formats())}. Check what was sent."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large, and was not decoded: {error} Send a smaller picture."
        ) from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise undecodable(name, error) from error


def _bytes_per_pixel(picture: ImageFile.ImageFile) -> int:
    """Return the bytes of a pixel that are held at once in decoding, turning and converting."""
    depth = _DEPTHS.get(picture.mode, _HELD)
    decoder = _DECODERS.get(str(picture.format), 0)
    if "progressive" in picture.info:
        decoder += 2 * len(picture.getbands())  # its coefficients
    if is_deep(picture.mode):
        decoder += 2 * _HELD  # copies in which the range of values is looked for
    is_turned = picture.format in ("JPEG", "MPO") and orientation(picture) != UPRIGHT
    is_copied = is_turned or picture.mode != RGB
    return depth + decoder + is_copied * _HELD


def _hidden_sizes(picture: ImageFile.ImageFile, data: bytes) -> Iterator[tuple[int, int]]:
    """Yield sizes that a decoder works with, and that Pillow does not read from the header."""
    if picture.format == "JPEG2000":
        yield codestream_size(data)
    elif picture.format == "AVIF":
        yield from av1_sizes(data)
    elif picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        if 322 in tags and 323 in tags:  # TileWidth, TileLength
            tile = tags[322], tags[323]
            if not all(isinstance(side, int) for side in tile):
                raise HeaderRefused("the size of its tiles is no whole number")
            yield tile


def _check_icon(data: bytes) -> None:
    """Raise HeaderRefused for an icon with a large picture.

    Pillow decodes one when it opens the file, and the list of pictures may state wrong sizes.
    """
    count = int.from_bytes(data[4:6], "little")
    for entry in range(6, 6 + 16 * count, 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        inside = data[start : start + 24].ljust(24, b"\0")
        if inside.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", inside[16:24])
        elif inside[0] == 12:  # a BMP with the header of OS/2
            width, height = struct.unpack("<HH", inside[4:8])
        else:
            width, height = map(abs, struct.unpack("<ii", inside[4:12]))
        if width * height > _MAX_ICON:
            raise HeaderRefused(
                f"it has an icon of {width} x {height} pixels; at most {_MAX_ICON} in all are read"
            )


def _check_scans(data: bytes, name: str) -> None:
    if data.count(_SCAN) > MAX_SCANS and (scans := _count_scans(data)) > MAX_SCANS:
        raise ValueError(
            f"{name} is a JPEG of {scans} scans; at most {MAX_SCANS} are decoded, and usual files "
            "have about ten. Save it again, as JPEG or PNG."
        )


def _count_scans(data: bytes) -> int:
    """Return the scans of the first picture of a JPEG file, without thumbnails in its metadata."""
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
