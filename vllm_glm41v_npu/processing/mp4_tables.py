# SPDX-License-Identifier: Apache-2.0
"""How many samples an MP4 or MOV file claims to have, looked at before FFmpeg believes it.

FFmpeg takes 40 bytes of memory for each sample as soon as it opens the file, and a claim of 80
million samples takes 12 bytes in it: 3 GB and half a minute, which nothing can interrupt.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_SAMPLES = 5_000_000
"""Of all tracks together; 10 hours of a film with sound have 3.5 million."""
_MAX_TABLES = 64 << 20  # bytes beside pictures and sound


def claims_too_much(data: bytes) -> bool:
    """Whether FFmpeg would take memory out of proportion to open this file."""
    parts = list(_outside_media(data))
    if sum(end - start for start, end in parts) > _MAX_TABLES:
        return True
    tables = b"\0".join(data[start:end] for start, end in parts)
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


def _outside_media(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the boxes of the file begin and end that hold no pictures and no sound."""
    place = 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        end = place + size if size >= 8 else len(data)
        if kind != b"mdat":
            yield place, min(end, len(data))
        place = end


def _counts(tables: bytes, kind: bytes, offset: int) -> Iterator[int]:
    """The numbers of 4 bytes that lie ``offset`` bytes behind the name of each such box."""
    place = tables.find(kind)
    while place >= 0:
        start = place + 4 + offset
        yield int.from_bytes(tables[start : start + 4], "big")
        place = tables.find(kind, place + 4)


def _is_pcm(track: bytes) -> bool:
    """Whether each sample lasts one tick: sound that is not compressed."""
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
        first = place + 12
        for entry in range(first, min(first + 12 * entries, len(track)), 12):
            largest = max(largest, int.from_bytes(track[entry + 4 : entry + 8], "big"))
        place = track.find(b"stsc", place + 4)
    return largest
