# SPDX-License-Identifier: Apache-2.0
"""Files of pictures and videos, told apart by their names."""

from __future__ import annotations

import base64
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".wmv", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def is_medium(path: Path) -> bool:
    """Whether it is a picture or a video."""
    return path.suffix.lower() in PICTURES + VIDEOS


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def data_url(data: bytes, media_type: str) -> str:
    """A file within a URL, so that no folder has to be shared with whoever reads it."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
