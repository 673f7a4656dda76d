# SPDX-License-Identifier: Apache-2.0
"""Data URLs (RFC 2397) and base64, as requests carry pictures and videos in them."""

from __future__ import annotations

import binascii
import re
from urllib.parse import unquote

import pybase64

from vllm_glm41v_npu.processing.refusals import MediaRefused, check_size

_NOT_BASE64 = re.compile("[^A-Za-z0-9+/]")
_URL_SAFE = str.maketrans("-_", "+/", "\t\n\v\f\r ")


def is_data_url(url: str) -> bool:
    """Return True for a URL that holds the file itself."""
    return url[:5].lower() == "data:"


def split_data_url(url: str, limit: int) -> tuple[str, str]:
    """Return the media type and the base64 text of a data URL.

    Raises:
        MediaRefused: It is not in base64, or too large.
    """
    head, comma, data = url[len("data:") :].partition(",")
    media_type, *parameters = (part.strip() for part in head.split(";"))
    if not comma or [part.lower() for part in parameters[-1:]] != ["base64"]:
        raise MediaRefused(
            "A data URL is not in base64; expected data:image/png;base64, or "
            "data:video/mp4;base64, and then the file."
        )
    check_size(len(data) * 3 // 4, limit)
    return media_type, data


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64, also where it is broken into lines, of the URL-safe alphabet,
    percent-encoded, or without the = at its end, as people send it.

    Raises:
        MediaRefused: Something else is in it, or it was cut off.
    """
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass  # it takes a closer look
    plain = (unquote(text) if "%" in text else text).translate(_URL_SAFE).rstrip("=")
    if (odd := _NOT_BASE64.search(plain)) is not None:
        raise MediaRefused(
            f"The data is not base64: it has {odd[0]!r} at letter {odd.start() + 1}; expected "
            "letters, digits, + and /. Send the file encoded in base64."
        )
    if len(plain) % 4 == 1:
        raise MediaRefused(
            f"The data is not whole base64: its {len(plain)} letters are one too many or some too "
            "few. Check whether it was cut off."
        )
    return pybase64.b64decode(plain + "=" * (-len(plain) % 4))
