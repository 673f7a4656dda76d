# SPDX-License-Identifier: Apache-2.0
"""Files of this machine that a request names: those in the folder that the operator allows."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from vllm_glm41v_npu.processing.refusals import MediaRefused, check_size


def path_of(url: str) -> Path:
    """Return the path that a file URL names."""
    parts = urlsplit(url)
    return Path(unquote(parts.netloc.replace("localhost", "") + parts.path))


def find_file(path: Path, folder: Path, limit: int) -> Path:
    """Return the file itself, in `folder` or in a folder inside it, links followed.

    Raises:
        MediaRefused: It is not there, is no file, is too large, or is outside, be it by `..` or by
            a link.
    """
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_relative_to(folder.resolve()):
            raise FileNotFoundError
        if not resolved.is_file():  # reading a pipe would never end
            raise MediaRefused(f"{path} is no file. Give a picture or a video.")
        check_size(resolved.stat().st_size, limit)
        return resolved
    except MediaRefused:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, zeros in a name
        raise _missing(path) from error


def read_file(path: Path, folder: Path, limit: int) -> bytes:
    """Return the content of a file.

    Raises:
        MediaRefused: As in `find_file`, or it cannot be read.
    """
    try:
        return find_file(path, folder, limit).read_bytes()
    except OSError as error:
        raise _missing(path) from error


def _missing(path: Path) -> MediaRefused:
    return MediaRefused(
        f"There is no file {path} that this server may read. Give one that is in the folder of "
        "--allowed-local-media-path, links followed."
    )
