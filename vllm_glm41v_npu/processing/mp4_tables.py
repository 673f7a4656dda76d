# SPDX-License-Identifier: Apache-2.0
"""The number of samples that an MP4 or MOV file claims to have, checked before FFmpeg opens it.

FFmpeg takes 40 bytes of memory for each sample as soon as it opens the file, and a claim of 80
million samples takes 12 bytes in it: 3 GB and half a minute, which nothing can interrupt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MAX_SAMPLES = 5_000_000
"""The most samples of all tracks; 10 hours of a film with sound have 3.5 million."""
_MAX_TABLES = 64 << 20  # bytes beside pictures and sound
_MAX_BOXES = 1_000_000  # in a row; a live recording has two for each of its fragments
_MAX_FRAGMENTS = 500_000
_MAX_TRACKS = 200
_PER_TRACK = (b"trak", b"stts", b"stsz", b"stz2", b"stsc", b"stco", b"co64")


def claims_too_much(data: bytes) -> bool:
    """Return True where FFmpeg would take memory out of proportion to open this file."""
    parts, size = [], 0
    for number, (start, end) in enumerate(_boxes(data)):
        if number == _MAX_BOXES:
            return True
        if data[start + 4 : start + 8] != b"mdat":
            parts.append((start, end))
            size += end - start
        if size > _MAX_TABLES:
            return True
    tables = b"\0".join(data[start:end] for start, end in parts)
    if tables.count(b"trun") > _MAX_FRAGMENTS:
        return True
    if any(tables.count(kind) > _MAX_TRACKS for kind in _PER_TRACK):
        return True  # what is below would take long, too
    if b"cmov" in tables:  # a header that is compressed, which nobody has written for 20 years
        return True
    claimed = sum(_counts(tables, b"trun", 4))
    for track in tables.split(b"trak"):
        sizes = max(_counts(track, b"stsz", 8), default=0)
        sizes = max(sizes, *_counts(track, b"stz2", 8), 0)
        if _is_pcm(track):  # FFmpeg counts its samples by chunks of up to 1024
            sizes = _largest_chunk(track) * max(_chunks(track), default=0) // 1024
        claimed += sizes
    return claimed > MAX_SAMPLES


def _boxes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of each box of the file; those with pictures and sound are mdat."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        end = min(place + size, len(data)) if size >= 8 else len(data)
        yield place, end
        place = end


def _counts(tables: bytes, kind: bytes, offset: int) -> Iterator[int]:
    """Yield the numbers of 4 bytes that lie ``offset`` bytes behind the name of each such box."""
    place = tables.find(kind)
    while place >= 0:
        start = place + 4 + offset
        yield int.from_bytes(tables[start : start + 4], "big")
        place = tables.find(kind, place + 4)


def _is_pcm(track: bytes) -> bool:
    """Return True where each sample lasts one tick, as in sound that is not compressed."""
    entries, ticks = list(_counts(track, b"stts", 4)), list(_counts(track, b"stts", 12))
    return b"soun" in track and b"vide" not in track and set(entries) == set(ticks) == {1}


def _chunks(track: bytes) -> Iterator[int]:
    yield from _counts(track, b"stco", 4)
    yield from _counts(track, b"co64", 4)


def _largest_chunk(track: bytes) -> int:
    largest = 0
    place = track.find(b"stsc")
    while place >= 0:
        entries = int.from_bytes(track[place + 8 : place + 12], "big")
        # first chunk, samples of each from there, and their kind: 4 bytes each
        whole = min(entries, (len(track) - place - 12) // 12)
        if whole > 0:
            table = np.frombuffer(track, ">u4", 3 * whole, place + 12)
            largest = max(largest, int(table[1::3].max()))
        place = track.find(b"stsc", place + 4)
    return largest
