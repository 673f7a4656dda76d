# SPDX-License-Identifier: Apache-2.0
"""Formats of video files that are opened, told by their first bytes.

FFmpeg reads over 300 formats, among them lists of other files and descriptions of network streams.
A file of a format that is not here never reaches it, and one that is here is opened as that format
alone, so FFmpeg has nothing to guess. Imports no torch or vLLM.
"""

from __future__ import annotations

from vllm_glm41v_npu.processing.picture_formats import BRANDS

KNOWN = "MP4, MOV, 3GP, WebM, MKV, AVI, WMV, FLV, OGV, MPEG-TS, MPEG-PS, GIF, raw H.264 or H.265"
"""The formats as messages name them."""

FORMATS = ("mov", "matroska", "avi", "asf", "flv", "ogg", "mpegts", "mpeg", "gif", "h264", "hevc")
"""The formats as FFmpeg names them."""

WELL_MARKED = FORMATS[:6]
"""The formats whose first bytes FFmpeg itself takes for nothing else."""

_PREFIXES = {
    b"\x1a\x45\xdf\xa3": "matroska",  # and WebM
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",  # WMV
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"\x00\x00\x01\xba": "mpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
}
_PICTURE_BRANDS = BRANDS | {b"jp2 ", b"jpx ", b"jxl "}
"""Kinds of pictures in the same boxes as MP4, also some that are not opened."""
_FIRST_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
"""First boxes of old QuickTime files, which have no ``ftyp``."""
_TS_SYNC, _TS_PACKETS = 0x47, ((0, 188), (4, 192))  # where the sync byte is, and how far apart
_H264_FIRST = {0x06, 0x09, 0x27, 0x47, 0x67}  # SEI, delimiter, parameter sets
_HEVC_FIRST = {0x40, 0x42, 0x46, 0x4E}  # parameter sets, delimiter, SEI


def format_of(data: bytes) -> str | None:
    """Return the one of `FORMATS` that a file has by its first bytes, or None if it is no video.

    A file that ends early is still what it begins as.
    """
    for prefix, name in _PREFIXES.items():
        if data.startswith(prefix):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    box = data[4:8]
    if box in _FIRST_BOXES or (box == b"ftyp" and data[8:12] not in _PICTURE_BRANDS):
        return "mov"
    if _is_transport_stream(data):
        return "mpegts"
    return _raw_format(data)


def _is_transport_stream(data: bytes) -> bool:
    for first, step in _TS_PACKETS:
        syncs = data[first : first + 8 * step : step]
        if len(syncs) > 1 and syncs.count(_TS_SYNC) == len(syncs):
            return True
    return False


def _raw_format(data: bytes) -> str | None:
    """Return the format of a stream without a container, by the kind of its first unit."""
    for start in (b"\x00\x00\x00\x01", b"\x00\x00\x01"):
        if data.startswith(start) and len(data) > len(start):
            kind = data[len(start)]
            return "h264" if kind in _H264_FIRST else "hevc" if kind in _HEVC_FIRST else None
    return None
