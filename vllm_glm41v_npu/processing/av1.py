# SPDX-License-Identifier: Apache-2.0
"""AVIF: the size within the AV1 data, with which its decoder works.

The size in the boxes around it may be another one: a file of 1 KB that says 64 x 64 has the decoder
take memory for up to 16384 x 16384.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SEQUENCE_HEADER = 1
_LOCATIONS = re.compile(rb"iloc|stco|co64")
_MAX_PLACES = 10_000


def av1_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of each sequence header that an item or a track of the file begins with.

    Raises:
        IndexError: the data ends within a header.
    """
    for place in sorted({place for place in _places(data) if place < len(data)}):
        yield from _sizes_at(data, place)


def _places(data: bytes) -> Iterator[int]:
    """Where items (`iloc`) and the chunks of tracks (`stco`, `co64`) lie."""
    for found in _LOCATIONS.finditer(data):
        reader = _Bits(data, found.end())
        if found[0] == b"iloc":
            yield from _items(reader, data)
        else:
            reader.read(32)
            size = 64 if found[0] == b"co64" else 32
            for _ in range(min(reader.read(32), _MAX_PLACES)):
                yield reader.read(size)


def _items(reader: _Bits, data: bytes) -> Iterator[int]:
    version = reader.read(8)
    reader.read(24)
    offset_size, length_size, base_size, index_size = (8 * reader.read(4) for _ in range(4))
    inside = data.find(b"idat") + 4  # where items of construction method 1 are
    for _ in range(min(reader.read(32 if version == 2 else 16), _MAX_PLACES)):
        reader.read(32 if version == 2 else 16)
        method = reader.read(16) & 15 if version else 0
        reader.read(16)
        base = reader.read(base_size)
        for _ in range(min(reader.read(16), _MAX_PLACES)):
            if version:
                reader.read(index_size)
            yield base + reader.read(offset_size) + (inside if method == 1 else 0)
            reader.read(length_size)


def _sizes_at(data: bytes, place: int) -> Iterator[tuple[int, int]]:
    """Of the sequence headers among the units (OBUs) at ``place``."""
    for _ in range(_MAX_PLACES):
        if place >= len(data) or data[place] & 0x81:
            return  # no unit
        kind, has_extension, has_size = data[place] >> 3, data[place] & 4, data[place] & 2
        place += 2 if has_extension else 1
        size, shift = (0, 0) if has_size else (len(data) - place, 0)
        while has_size:
            byte = data[place]
            place += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if kind == _SEQUENCE_HEADER:
            yield _frame_size(_Bits(data, place))
        place += size


class _Bits:
    """Reads whole numbers of so many bits, the highest first."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data = data
        self.place = place * 8

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self.data[self.place >> 3] >> (7 - self.place % 8) & 1
            self.place += 1
        return value


def _frame_size(bits: _Bits) -> tuple[int, int]:
    """The largest (width, height) of frames by a sequence header (AV1, 5.5.1)."""
    bits.read(3 + 1)  # profile, still picture
    if bits.read(1):  # the short header of a still picture
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):  # pictures of equal intervals: a number after as many zeros as it has bits
            zeros = 0
            while zeros < 32 and not bits.read(1):
                zeros += 1
            bits.read(zeros)
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    has_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_delay and bits.read(1):
            bits.read(4)
