# SPDX-License-Identifier: Apache-2.0
"""Picture files for tests: of every format that is opened, and small ones that decode to much."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from tests.processing.oracle import random_picture
from vllm_glm41v_npu.processing import picture_file
from vllm_glm41v_npu.processing.picture_formats import FORMATS

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FORMATS},
    "MPO": ("MPO", {"save_all": True, "append_images": [random_picture(40, 48)]}),
    "progressive": ("JPEG", {"progressive": True}),
    "APNG": ("PNG", {"save_all": True, "append_images": [random_picture(40, 48, 1)]}),
    "lossless": ("WEBP", {"lossless": True}),
    "J2K": ("JPEG2000", {"no_jp2": True}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg in TIFF": ("TIFF", {"compression": "jpeg"}),
    "BMP in ICO": ("ICO", {"bitmap_format": "bmp"}),
}
"""Pillow's format and options of each kind of file that is opened."""


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 48)) -> bytes:
    file_format, options = KINDS[kind]
    buffer = BytesIO()
    random_picture(*size, mode=mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(width: int, height: int, *chunks: bytes, rows: int | None = None) -> bytes:
    """Black and white, with further chunks before the pixels."""
    row = bytes(1 + (width + 7) // 8)
    pixels = zlib.compress(row * (height if rows is None else rows), 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    end = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + end


def icon(inside: bytes) -> bytes:
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inside


def tiff(width: int, height: int, *tags: tuple[int, int, int, int]) -> bytes:
    """Grey, deflated; nothing but tags, each (number, type, count, value)."""
    usual = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8)]
    usual += [(262, 3, 1, 1), (277, 3, 1, 1)]
    every = sorted([*usual, *tags])
    packed = b"".join(struct.pack("<HHII", *tag) for tag in every)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(every)) + packed + bytes(4)


def codestream(place: int, *values: int) -> bytes:
    """J2K of 40 x 48 with other values in its SIZ, or in its COD, where ``place`` is its marker."""
    data = bytearray(encoded("J2K", "L"))
    start = data.index(place.to_bytes(2, "big"))
    if place == 0xFF51:
        struct.pack_into(">8I", data, start + 6, *values)
        return bytes(data)
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    cod = data[start : start + 2 + length]
    cod[4] |= 1
    cod += bytes(values)
    struct.pack_into(">H", cod, 2, len(cod) - 2)
    return bytes(data[:start] + cod + data[start + 2 + length :])


def large_precincts() -> bytes:
    wide = bytearray(codestream(0xFF52, *[0x11] * 6))
    struct.pack_into(">8I", wide, 8, 5000, 5000, 0, 0, 5000, 5000, 0, 0)
    return bytes(wide)


def scans(count: int) -> bytes:
    """A progressive JPEG of so many scans."""
    data = encoded("progressive", "L")
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    third = data.index(b"\xff\xda", second + 2)
    start = data.rindex(b"\xff\xc4", first, second) if b"\xff\xc4" in data[first:second] else second
    usual = picture_file._count_scans(data)
    return data[:third] + data[start:third] * (count - usual) + data[third:]


def many_frames() -> Iterator[tuple[str, bytes]]:
    frame = encoded("GIF", "P", (8, 8))
    start = frame.index(b"\x2c")
    yield "GIF", frame[:start] + frame[start:-1] * 100_000 + b";"
    page = bytearray(encoded("TIFF", "L", (8, 8)))
    place = struct.unpack("<I", page[4:8])[0]
    size = 2 + 12 * struct.unpack("<H", page[place : place + 2])[0]
    entry, following = bytes(page[place : place + size]), place + size
    for _ in range(100_000):
        struct.pack_into("<I", page, following, len(page))
        following = len(page) + size
        page += entry + bytes(4)
    yield "TIFF", bytes(page)
    struct.pack_into("<I", page, place + size, place)  # to itself
    yield "loop", bytes(page)
