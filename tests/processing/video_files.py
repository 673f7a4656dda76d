# SPDX-License-Identifier: Apache-2.0
"""Files that are no videos, or more than they look; and videos of every format that is opened."""

from __future__ import annotations

import struct
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image

from tests.clips import Clip, moving_shapes

SMALL = (32, 32)


def gif(frames: int = 12) -> bytes:
    buffer = BytesIO()
    first, *others = (Image.fromarray(frame) for frame in moving_shapes(frames, SMALL))
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=125)
    return buffer.getvalue()


FORMATS = {
    "mov": lambda: Clip(8, 12, container="mov", size=SMALL).encode(),
    "mp4": lambda: Clip(8, 12, size=SMALL).encode(),
    "3gp": lambda: Clip(8, 12, "mpeg4", "3gp", SMALL).encode(),
    "fragmented": lambda: fragmented(),
    "matroska": lambda: Clip(8, 12, container="matroska", size=SMALL).encode(),
    "webm": lambda: Clip(8, 12, "libvpx", "webm", SMALL).encode(),
    "av1": lambda: Clip(8, 12, "libsvtav1", "mp4", (64, 64)).encode(),
    "avi": lambda: Clip(8, 12, "mpeg4", "avi", SMALL).encode(),
    "asf": lambda: Clip(8, 12, "wmv2", "asf", SMALL).encode(),
    "flv": lambda: Clip(8, 12, "flv", "flv", SMALL).encode(),
    "ogg": lambda: Clip(8, 12, "libvpx", "ogg", SMALL).encode(),
    "mpegts": lambda: Clip(25, 30, "mpeg2video", "mpegts", SMALL).encode(),
    "mpeg": lambda: Clip(25, 30, "mpeg2video", "mpeg", SMALL).encode(),
    "gif": gif,
    "h264": lambda: Clip(8, 12, container="h264", size=SMALL).encode(),
    "hevc": lambda: Clip(8, 12, "libx265", "hevc", SMALL).encode(),
}
"""A short clip in each format."""


def fragmented() -> bytes:
    """An MP4 without a table of its frames, as browsers record it."""
    buffer = BytesIO()
    flags = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(buffer, "w", format="mp4", options=flags) as out:
        stream = out.add_stream("libx264", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = SMALL
        for pixels in moving_shapes(12, SMALL):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        out.mux(stream.encode())
    return buffer.getvalue()


def recorded(milliseconds: list[int], live: bool = True) -> bytes:
    """A WebM as browsers record it: frames at these times, no rate, and no length where live.

    Frame ``i`` is of one grey, ``i % 256``.
    """
    buffer = BytesIO()
    options = {"live": "1"} if live else {}
    with av.open(buffer, "w", format="webm", options=options) as out:
        stream = out.add_stream("libvpx", rate=1000)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = SMALL
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.framerate = Fraction(0, 1)
        for index, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(np.full((*SMALL, 3), index % 256, np.uint8))
            frame.time_base, frame.pts = Fraction(1, 1000), time
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 that is to be shown under a matrix of -1, 0 and 1."""
    edited = bytearray(data)
    place = edited.index(b"tkhd") + 4 + 40
    unit = 1 << 16
    matrix = (a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    edited[place : place + 36] = struct.pack(">9i", *matrix)
    return bytes(edited)


def with_samples(data: bytes, count: int) -> bytes:
    """An MP4 of one chunk that claims ``count`` frames of one byte."""
    edited = bytearray(data)
    for box, offset, value in ((b"stsz", 8, 1), (b"stsz", 12, count), (b"stsc", 16, count)):
        struct.pack_into(">I", edited, edited.index(box) + offset, value)
    struct.pack_into(">I", edited, edited.index(b"stts") + 12, count)
    return bytes(edited)


def with_one_byte_frames(data: bytes, count: int) -> bytes:
    """An MP4 that has ``count`` frames of one byte, none of which can be decoded."""
    edited = bytearray(with_samples(data, count))
    struct.pack_into(">I", edited, edited.index(b"stco") + 12, len(edited) + 8)
    return bytes(edited) + struct.pack(">I", count + 8) + b"mdat" + bytes(count)


def with_frames_elsewhere(data: bytes, path: str) -> bytes:
    """A MOV that says, in an alias as a Macintosh wrote it, that its frames are in another file."""
    name = path.encode()
    record = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16)
    record += struct.pack(">HH16xHH", 1, 1, 2, len(name)) + name + b"\0" * (len(name) % 2)
    record += b"\xff\xff\0\0" + bytes(150)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    own = b"\0\0\0\x0curl \0\0\0\x01"
    edited = bytearray(data)
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.index(parent) - 4
        size = int.from_bytes(data[place : place + 4], "big") + len(entry) - len(own)
        edited[place : place + 4] = size.to_bytes(4, "big")
    return bytes(edited).replace(own, entry)


SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    b"m=video %d RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


def disguises(secret: str, port: int) -> dict[str, bytes]:
    """Texts and pictures that FFmpeg takes for lists of files, streams, subtitles or pictures.

    Args:
        secret: the path of a video that they name.
        port: that they would bind.
    """
    sdp = SDP % port
    ftyp = b"\0\0\0\x18ftypisom\0\0\0\0isommp42"
    name = secret.encode()
    png, webp = BytesIO(), BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    Image.new("RGB", (32, 32)).save(webp, "WEBP")
    dash = b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>%s</BaseURL>'
    return {
        "concat": b"ffconcat version 1.0\nfile '%s'\n" % name,
        "sdp": sdp,
        "sdp behind ftyp": ftyp + sdp,
        "concat behind ftyp": ftyp + b"\nffconcat version 1.0\nfile '%s'\n" % name,
        "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n#EXT-X-ENDLIST\n" % name,
        "hls with a mark": b"\xef\xbb\xbf#EXTM3U\n#EXTINF:10,\n%s\n" % name,
        "dash": dash % name + b"</MPD>",
        "imf": b'<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org">',
        "srt": b"1\n00:00:00,000 --> 00:00:02,000\nhello\n",
        "webvtt": b"WEBVTT\n\n00:00.000 --> 00:02.000\nhello\n",
        "ass": b"[Script Info]\nScriptType: v4.00+\n[Events]\n",
        "microdvd": b"{0}{25}hello\n{26}{50}you\n",
        "ffmetadata": b";FFMETADATA1\ntitle=x\n",
        "rtsp": b"rtsp://127.0.0.1:%d/x\n" % port,
        "asf redirect": b"[Reference]\nRef1=http://127.0.0.1:%d/x?MSWMExt=.asf\n" % port,
        "y4m": b"YUV4MPEG2 W16 H16 F25:1 Ip A0:0\nFRAME\n" + bytes(384),
        "png": png.getvalue(),
        "webp": webp.getvalue(),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://%s"/></svg>' % name,
        "ppm": b"P6 16 16 255\n" + bytes(768),
        "ansi art": b"\x1b[31mhello\x1b[0m\n" * 40,
        "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "zeros": bytes(5000),
        "path": name,
    }
