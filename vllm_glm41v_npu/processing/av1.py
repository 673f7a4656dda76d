# SPDX-License-Identifier: Apache-2.0
"""Sizes of AVIF pictures, read from the AV1 data that the decoder works with.

The boxes around the data may state another size: for a file of 1 KB that states 64 x 64 a decoder
may take memory for 16384 x 16384.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vllm_glm41v_npu.processing.jpeg2000 import HeaderRefused

MAX_STEPS = 300_000
"""The most numbers and units that are read, in some tenths of a second; an animation of 10,000
frames has a quarter of them."""
_SEQUENCE_HEADER = 1
_LOCATIONS = re.compile(rb"iloc|stco|co64")
_MAX_PLACES = 10_000
_SIZE_BITS = 56  # of a unit's size, which has at most 8 bytes


def av1_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the (width, height) of each sequence header that begins an item or a track of the file.

    Raises:
        IndexError: The data ends within a header.
        HeaderRefused: There is more to read than in any picture.
    """
    steps = _Steps()
    for place in sorted({place for place in _places(data, steps) if place < len(data)}):
        yield from _sizes_at(data, place, steps)


class _Steps:
    """Counts the steps of reading one file, which may name the same places again and again."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise HeaderRefused("its boxes list more parts than a picture has")


def _places(data: bytes, steps: _Steps) -> Iterator[int]:
    """Yield the places of items (`iloc`) and of the chunks of tracks (`stco`, `co64`)."""
    for found in _LOCATIONS.finditer(data):
        reader = _Bits(data, found.end(), steps)
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


def _sizes_at(data: bytes, place: int, steps: _Steps) -> Iterator[tuple[int, int]]:
    """Yield the sizes in the sequence headers among the units (OBUs) at ``place``."""
    for _ in range(_MAX_PLACES):
        if place >= len(data) or data[place] & 0x81:
            return  # no unit
        steps.take()
        kind, has_extension, has_size = data[place] >> 3, data[place] & 4, data[place] & 2
        place += 2 if has_extension else 1
        size, shift = (0, 0) if has_size else (len(data) - place, 0)
        while has_size:
            byte = data[place]
            place += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128 or shift >= _SIZE_BITS:
                break
        if kind == _SEQUENCE_HEADER:
            yield _frame_size(_Bits(data, place, steps))
        place += size


class _Bits:
    """Reads whole numbers of a given count of bits, the highest bit first."""

    def __init__(self, data: bytes, place: int, steps: _Steps) -> None:
        self.data, self.steps = data, steps
        self.place = place * 8

    def read(self, count: int) -> int:
        self.steps.take()
        start, self.place = self.place, self.place + count
        end = -(-self.place // 8)
        if end > len(self.data):
            raise IndexError("the data ends within a header")
        value = int.from_bytes(self.data[start // 8 : end], "big") >> (8 * end - self.place)
        return value & ((1 << count) - 1)


def _frame_size(bits: _Bits) -> tuple[int, int]:
    """Return the largest (width, height) of frames by a sequence header (AV1, 5.5.1)."""
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
