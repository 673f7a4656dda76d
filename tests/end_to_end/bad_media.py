# SPDX-License-Identifier: Apache-2.0
"""Pictures, videos and prompts that a server has to refuse."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

from tests.checkpoints import TINY
from tests.clips import Clip, audio_only
from tests.end_to_end.servers import (
    MAX_MODEL_LEN,
    PICTURES,
    VIDEOS,
    data_uri,
    request,
    video_uri,
)
from tests.processing.video_files import disguises, with_samples

QUESTION, FIRST = "What number is written in the picture?", "Which number comes first?"


def printed() -> str:
    """A good picture, of the number 6021."""
    return data_uri((PICTURES / "printed.png").read_bytes())


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    """The start of a PNG, with these compressed pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def empty_png() -> bytes:
    """A PNG that says it is 0 x 0 pixels."""
    return png_of(0, 0, zlib.compress(b"")) + b"\0\0\0\0IEND\xaeB`\x82"


def broken_png() -> bytes:
    """A PNG that is cut off, and goes on with a chunk whose name is no name."""
    pixels = zlib.compress(bytes(64 * (1 + 3 * 64)))
    return png_of(64, 64, pixels[:20]) + b"\0\0\0\4\xff\xfe\xfd\xfcabcd\0\0\0\0"


def truncated_jpeg() -> str:
    return data_uri((PICTURES / "photo.jpg").read_bytes()[:3000], "jpeg")


BAD_PICTURES = {
    "truncated": (truncated_jpeg, "truncated"),
    "text": (lambda: data_uri(b"this is a text file, not a picture"), "not a picture of a kind"),
    "empty": (lambda: data_uri(empty_png()), "not a picture of a kind"),
    "eps": (lambda: data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not a picture of a kind"),
    "chunk": (lambda: data_uri(broken_png()), "cannot be decoded"),
    "no-url": (lambda: "", "Picture 1 of 1 is empty: its URL is missing"),
    "too-wide": (lambda: data_uri(png(Image.new("RGB", (8080, 40)))), "202.0; at most 200"),
    "bomb": (lambda: data_uri(png(Image.new("1", (30000, 30000)))), "decompression bomb"),
    "private": (lambda: "http://127.0.0.1:1/a.png", "no public address"),
}
"""Name to what makes the URL, and of the refusal."""


DISGUISES = disguises(str(VIDEOS / "numbers.mp4"), 45_004)
BAD_VIDEOS = {
    "text": (lambda: video_uri(b"this is a text file, not a video"), {}, "cannot be decoded"),
    "empty": (lambda: video_uri(b""), {}, "cannot be decoded"),
    "playlist": (lambda: video_uri(DISGUISES["concat"]), {}, "by its first bytes"),
    "stream": (lambda: video_uri(DISGUISES["sdp"]), {}, "by its first bytes"),
    "picture": (lambda: video_uri(DISGUISES["png"]), {}, "by its first bytes"),
    "claims": (lambda: video_uri(with_samples(Clip(8, 9).encode(), 10**9)), {}, "claims more"),
    "audio": (lambda: video_uri(audio_only()), {}, "cannot be decoded"),
    "truncated": (lambda: video_uri(Clip(10, 40).encode()[:-800]), {}, "cannot be decoded"),
    "outside": (lambda: Path("/etc/hostname").as_uri(), {}, "There is no file"),
    "rate": (lambda: video_uri(Clip(10, 9).encode()), {"fps": 0}, "fps=0; expected"),
    "negative": (lambda: video_uri(Clip(10, 9).encode()), {"fps": -1}, "fps=-1; expected"),
    "many": (lambda: video_uri(Clip(10, 9).encode()), {"num_frames": 9999}, "at most 600 frames"),
}
"""Name to what makes the URL, settings of the request, and of the refusal."""


def wrong_placeholders(count: int) -> dict[str, Any]:
    """A request of two pictures whose text has `count` placeholders."""
    template = (TINY / "chat_template.jinja").read_text()
    template = template.replace("<|begin_of_image|><|image|><|end_of_image|>", "")
    text = "<|image|>" * count + QUESTION
    return request(text, printed(), printed()) | {"chat_template": template}


def bad_requests() -> list[dict[str, Any]]:
    """The body of a chat for each kind of bad input."""
    bodies = [request(QUESTION, make()) for make, _ in BAD_PICTURES.values()]
    bodies += [
        request(FIRST, make()) | {"mm_processor_kwargs": settings}
        for make, settings, _ in BAD_VIDEOS.values()
    ]
    bodies += [wrong_placeholders(count) for count in (0, 1, 3)]
    bodies += [request(QUESTION, *[printed()] * 4), request("7" * MAX_MODEL_LEN, printed())]
    bodies += [request(QUESTION, printed()) | {"mm_processor_kwargs": {"max_pixels": 10}}]
    return bodies
