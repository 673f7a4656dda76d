# SPDX-License-Identifier: Apache-2.0
"""Files of pictures and videos: told apart, and read without waiting for what is no file."""

from __future__ import annotations

import base64
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vllm_glm41v_npu.processing.containers import format_of

PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp"),
    *(".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".ico", ".heic", ".heif"),
)
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".webm", ".mkv", ".avi", ".wmv", ".asf"),
    *(".flv", ".f4v", ".ogv", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".mpe", ".vob"),
)
_PROGRAMS = (".ts", ".mts")
"""Suffixes that TypeScript has too; only the content says which it is."""

_STILL_PREFIXES = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0"),
    *(b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
)
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
"""Kinds of pictures in the same boxes as MP4."""

_HEAD = 4 + 192 + 1
"""Bytes up to the second packet of MPEG-TS, whose beginnings tell it."""


def is_medium(path: Path) -> bool:
    """Whether it is a picture or a video, by its name."""
    suffix = path.suffix.lower()
    return suffix in PICTURES + VIDEOS and (
        suffix not in _PROGRAMS or format_of(_head(path)) is not None
    )


def is_video(path: Path) -> bool:
    """Whether it is a video, by its name."""
    return path.suffix.lower() in VIDEOS


def kind_of(path: Path) -> str | None:
    """Return "image" or "video", by the first bytes; by the name where these tell nothing.

    None where neither does. What cannot be read is told by its name.
    """
    head = _head(path)
    if _is_still(head):
        return "image"
    if format_of(head):
        return "video"
    if path.suffix.lower() in PICTURES:
        return "image"
    return "video" if is_video(path) else None


def _is_still(head: bytes) -> bool:
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    in_boxes = head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS
    return webp or in_boxes or head.startswith(_STILL_PREFIXES)


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of one that cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def open_file(path: Path) -> BinaryIO:
    """Open a file; a pipe, a socket or a device, which may never end, is refused.

    Raises:
        OSError: It is not there, is none, or may not be read; `strerror` says which.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a device may already do something
            raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, and no file")
        # A pipe that takes the file's place between the two calls is not waited for.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL, or half a character
        raise OSError(errno.EINVAL, "no file can have such a name") from error
    return os.fdopen(number, "rb")


def read_file(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        OSError: It cannot be read, or has more; `strerror` says which.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(most, max(size, _HEAD)) + 1) if size <= most else b""
    if size > most or len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB, the most that is loaded")
    return data


def data_url(data: bytes, media_type: str) -> str:
    """A file within a URL, so that no folder has to be shared with whoever reads it."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
