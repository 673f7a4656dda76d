# SPDX-License-Identifier: Apache-2.0
"""Sizes in the codestream of a JPEG 2000, checked before OpenJPEG takes memory for them.

The box around the codestream may state another size, and tiles, precincts and code blocks of a few
pixels take a thousand times the memory of their pixels: 8 GiB for a file of 200 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import ceil

MAX_TILES = 10_000
MAX_PRECINCTS = 100_000  # about 1 KB each
MAX_CODE_BLOCKS = 500_000  # about 200 bytes each
_MAX_SEGMENTS = 100_000
_SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_KNOWN = {_SIZ, _COD, _COC, _SOT, 0xFF50, 0xFF55, 0xFF57, 0xFF58, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E}
_KNOWN |= {0xFF5F, 0xFF60, 0xFF61, 0xFF63, 0xFF64, 0xFF74, 0xFF75, 0xFF77, 0xFF78}


class HeaderRefused(ValueError):
    """A header that no encoder of pictures writes; the message goes on after "because"."""


def codestream_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) of the codestream that is decoded.

    Raises:
        HeaderRefused: There is none, or it has more parts than a picture needs.
    """
    size, components = None, 0
    for marker, body in _segments(data, _start(data)):
        if marker == _SIZ:
            size, components = _size(body)
        elif size is None:
            raise HeaderRefused("its codestream does not begin with a size")
        elif marker == _COD:
            _check_blocks(size, components, body[0], body[5:])
        elif marker == _COC:
            after = 1 if components < 257 else 2  # the number of the component
            _check_blocks(size, components, body[after], body[after + 1 :])
    if size is None:
        raise HeaderRefused("its codestream has no size")
    return size


def _start(data: bytes) -> int:
    if data.startswith(b"\xff\x4f"):
        return 0
    place = 0
    for _ in range(_MAX_SEGMENTS):
        if place + 16 > len(data):
            break
        length, kind, long_length = struct.unpack(">I4sQ", data[place : place + 16])
        if kind == b"jp2c":
            return place + (16 if length == 1 else 8)
        length = long_length if length == 1 else length
        if length < 8:
            break
        place += length
    raise HeaderRefused("it has no codestream")


def _segments(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield each (marker, body) in the main header and in the headers of all tile parts."""
    place, end = start + 2, len(data)
    for _ in range(_MAX_SEGMENTS):
        marker = int.from_bytes(data[place : place + 2], "big")
        if marker == _EOC or place + 4 > len(data):
            return
        if marker == _SOD:
            if end <= place:
                return
            place = end
            continue
        if marker not in _KNOWN:  # decoders disagree on what follows
            raise HeaderRefused(f"its codestream has the unknown marker {marker:#x}")
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if marker == _SOT:
            part = int.from_bytes(body[2:6], "big")
            end = place + part if part else len(data)
        yield marker, body
        place += 2 + length
    raise HeaderRefused(f"its codestream has over {_MAX_SEGMENTS} segments")


def _size(body: bytes) -> tuple[tuple[int, int], int]:
    """Return the size in pixels, and the number of components."""
    right, bottom, left, top, width, height, tile_left, tile_top = struct.unpack(">8I", body[2:34])
    components = int.from_bytes(body[34:36], "big")
    tiles = ceil((right - tile_left) / width) * ceil((bottom - tile_top) / height)
    if tiles > MAX_TILES or components > 4:
        raise HeaderRefused(
            f"it has {tiles} tiles and {components} components; at most {MAX_TILES} and 4 are read"
        )
    return (right - left, bottom - top), components


def _check_blocks(size: tuple[int, int], components: int, style: int, coding: bytes) -> None:
    """Refuse too many code blocks or precincts; ``coding`` begins with the number of levels."""
    width, height = size
    levels, block_width, block_height = coding[0], coding[1] & 15, coding[2] & 15
    blocks = components * width * height >> (block_width + block_height + 4)
    precincts = 0
    if style & 1:
        for level, exponents in zip(range(levels, -1, -1), coding[5:], strict=False):
            columns = 1 + (width >> level + (exponents & 15))
            precincts += components * columns * (1 + (height >> level + (exponents >> 4)))
    if blocks > MAX_CODE_BLOCKS or precincts > MAX_PRECINCTS:
        raise HeaderRefused(
            f"it is cut into {blocks} code blocks and {precincts} precincts; at most "
            f"{MAX_CODE_BLOCKS} and {MAX_PRECINCTS} are read"
        )
