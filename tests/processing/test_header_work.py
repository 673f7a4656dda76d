# SPDX-License-Identifier: Apache-2.0
"""Small files whose headers would take hours to read: each is refused, or read, at once.

What reads them is Python's own code, which nothing interrupts; the search for the scans of a JPEG
even stops all other threads of the server.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.clips import Clip
from tests.processing.picture_files import encoded, scans
from tests.processing.video_files import fragmented
from vllm_glm41v_npu.processing.av1 import av1_sizes
from vllm_glm41v_npu.processing.mp4_tables import claims_too_much
from vllm_glm41v_npu.processing.picture_file import plan_picture

MEBIBYTE = 1 << 20


@contextmanager
def at_once() -> Iterator[None]:
    """Fail after two seconds of this thread; what is guarded against takes minutes to days."""
    start = time.thread_time()
    yield
    assert time.thread_time() - start < 2


def test_fill_bytes_of_a_jpeg() -> None:
    """Markers may have any number of 0xFF before them; here no marker follows."""
    with at_once(), pytest.raises(ValueError, match="a JPEG of 300 scans"):
        plan_picture(scans(300)[:-2] + b"\xff" * MEBIBYTE)
    scan = scans(300).index(b"\xff\xda")
    filled = scans(300)[:scan] + b"\xff" * 100 + scans(300)[scan:]
    with at_once(), pytest.raises(ValueError, match="a JPEG of 300 scans"):
        plan_picture(filled)


@pytest.mark.parametrize(
    "box",
    [
        b"stco\0\0\0\0\0\0\x27\x10",  # 10,000 chunks
        b"co64\0\0\0\0\0\0\x27\x10",
        b"iloc\0\0\0\0\0\0\x27\x10",  # 10,000 items without an extent
    ],
)
def test_lists_of_an_avif(box: bytes) -> None:
    """Each of many boxes lists many places, all of the same bytes."""
    data = encoded("AVIF")
    free = struct.pack(">I4s", 8 + MEBIBYTE, b"free")
    many = box * (MEBIBYTE // len(box))
    with at_once(), pytest.raises(ValueError, match="was not decoded, because its boxes list more"):
        plan_picture(data + free + many.ljust(MEBIBYTE, b"\0"))
    assert plan_picture(data + free + box + bytes(MEBIBYTE)).decode().size


def test_a_unit_of_an_avif_with_an_endless_size() -> None:
    """Each byte makes a number longer, up to millions of digits."""
    place = 16
    data = b"stco\0\0\0\0\0\0\0\1" + struct.pack(">I", place) + b"\x0a" + b"\xff" * MEBIBYTE
    with at_once():
        assert list(av1_sizes(data)) in ([], [(65536, 65536)])


@pytest.mark.parametrize(
    "boxes",
    [
        struct.pack(">I4s", 8, b"free") * MEBIBYTE,
        struct.pack(">I4s", 8, b"mdat") * MEBIBYTE,
        struct.pack(">I4s", 4 * MEBIBYTE, b"moov") + b"trak" * MEBIBYTE,
        struct.pack(">I4s", 4 * MEBIBYTE, b"moov") + b"stsc" * MEBIBYTE,
        struct.pack(">I4s", 4 * MEBIBYTE, b"moov") + b"trun" * MEBIBYTE,
    ],
    ids=["empty", "empty media", "tracks", "chunks", "fragments"],
)
def test_boxes_of_an_mp4(boxes: bytes) -> None:
    """A list of millions of boxes takes gigabytes, and tables within tables a day."""
    with at_once():
        assert claims_too_much(boxes)
    for usual in (Clip(8, 32).encode(), fragmented()):
        assert not claims_too_much(usual)
