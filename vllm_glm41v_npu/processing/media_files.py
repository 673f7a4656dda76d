# SPDX-License-Identifier: Apache-2.0
"""Files of pictures and videos: told apart, and read without waiting for pipes and devices."""

from __future__ import annotations

import base64
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vllm_glm41v_npu.processing.containers import format_of
from vllm_glm41v_npu.processing.picture_formats import SUFFIXES, is_picture

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".webm", ".mkv", ".avi", ".wmv", ".asf"),
    *(".flv", ".f4v", ".ogv", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".mpe", ".vob"),
)
MEDIA_SUFFIXES = SUFFIXES + VIDEOS
_PROGRAMS = (".ts", ".mts")
"""Suffixes that TypeScript has too; only the content says which it is."""

_HEAD = 4 + 192 + 1
"""Bytes up to the second packet of MPEG-TS, whose beginnings tell it."""


def is_medium(path: Path) -> bool:
    """Return True for a picture or a video, by its name."""
    suffix = path.suffix.lower()
    return suffix in MEDIA_SUFFIXES and (
        suffix not in _PROGRAMS or format_of(_head(path)) is not None
    )


def is_video(path: Path) -> bool:
    """Return True for a video, by its name."""
    return path.suffix.lower() in VIDEOS


def kind_of(path: Path) -> str | None:
    """Return "image" or "video", by the first bytes; by the name where these tell nothing.

    None where neither does. What cannot be read is told by its name.
    """
    head = _head(path)
    if is_picture(head):
        return "image"
    if format_of(head):
        return "video"
    if path.suffix.lower() in SUFFIXES:
        return "image"
    return "video" if is_video(path) else None


def _head(path: Path) -> bytes:
    """Return the first bytes of a file; nothing where it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def open_file(path: Path) -> BinaryIO:
    """Open a file; a pipe, a socket or a device, which may never end, is refused.

    Raises:
        OSError: It is not there, is no regular file, or may not be read; `strerror` says which.
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
    """Return the content of a file of at most `most` bytes.

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
    """Return a URL that holds a file, so that no folder has to be shared with its reader."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
