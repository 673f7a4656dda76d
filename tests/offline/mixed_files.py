# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures and clips with known answers, and of files that nobody can read."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.clips import audio_only
from tools.tiny.clips import write_clip
from tools.tiny.number_clips import clip_questions
from tools.tiny.number_pictures import QUESTIONS, written_numbers

FORMATS = ("png", "jpg", "bmp", "webp", "gif", "tif")
CLIP_FORMATS = {"mp4": "libx264", "avi": "mpeg4", "mkv": "libx264"}
IN_A_FOLDER = 40
CLIP_EVERY, BROKEN_EVERY, LARGE_EVERY = 10, 12, 7
LARGE = 1200
"""Pixels of the longer side: a bitmap of 3 MB, which the model's processor makes small."""


@dataclass(frozen=True)
class Asked:
    """A file, what to ask about it, and the number it shows; None where it cannot be read."""

    path: Path
    question: str
    answer: str | None


def write_mixed(folder: Path, count: int) -> list[Asked]:
    """`count` files in nested folders, in natural order: 9.png stands before 10.png."""
    pictures = iter(written_numbers("heldout", count))
    clips = iter(clip_questions("heldout", count // CLIP_EVERY))
    asked = []
    for number in range(count):
        place = folder / f"part-{number // IN_A_FOLDER}" / "files"
        place.mkdir(parents=True, exist_ok=True)
        if number % BROKEN_EVERY == 1:
            path = _write_broken(place, number)
            asked.append(Asked(path, QUESTIONS[0], None))
        elif number % CLIP_EVERY == 0:
            question, clip, answer = next(clips)
            form = list(CLIP_FORMATS)[number // CLIP_EVERY % len(CLIP_FORMATS)]
            path = place / f"{number}.{form}"
            container = "matroska" if form == "mkv" else form
            write_clip(clip, path, CLIP_FORMATS[form], container)
            asked.append(Asked(path, question, answer))
        else:
            picture, answer = next(pictures)
            path = place / f"{number}.{FORMATS[number % len(FORMATS)]}"
            if number % LARGE_EVERY == 0:
                path = path.with_suffix(".bmp")
                factor = LARGE / max(picture.size)
                size = (round(picture.width * factor), round(picture.height * factor))
                picture = picture.resize(size, Image.Resampling.BICUBIC)
            picture.save(path)
            asked.append(Asked(path, QUESTIONS[number % len(QUESTIONS)], answer))
    return asked


def _write_broken(place: Path, number: int) -> Path:
    """One of eight kinds.

    Cut off, empty, text, without a header, sound alone, a dead link, a bad chunk, a pipe.
    """
    kind = number // BROKEN_EVERY % 8
    path = place / f"{number}.{('png', 'jpg', 'webp', 'mp4', 'mp4', 'png', 'png', 'mp4')[kind]}"
    if kind == 0:
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == 5:
        path.symlink_to(place / "gone.png")
    elif kind == 6:
        path.write_bytes(broken_png())
    elif kind == 7:
        os.mkfifo(path)
    else:
        data = (b"", b"no picture", audio_only()[100:], audio_only())[kind - 1]
        path.write_bytes(data)
    return path


def broken_png() -> bytes:
    """A PNG with a chunk whose name is no name, at which Pillow raises SyntaxError."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(64 * 193))[:20])
    return b"\x89PNG\r\n\x1a\n" + header + pixels + b"\0\0\0\4\xff\xfe\xfd\xfcabcd\0\0\0\0"
