# SPDX-License-Identifier: Apache-2.0
"""Files of pictures: an explicit list of formats, headers first, and only pictures or refusals."""

from __future__ import annotations

import random
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.processing.oracle import random_picture
from tests.processing.picture_files import (
    KINDS,
    chunk,
    codestream,
    encoded,
    icon,
    large_precincts,
    many_frames,
    png,
    scans,
    tiff,
)
from vllm_glm41v_npu.processing.budget import Budget, RequestEnded
from vllm_glm41v_npu.processing.picture_file import plan_picture
from vllm_glm41v_npu.processing.picture_formats import formats


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_opened(kind: str) -> None:
    """A format that the documents name, and others that a program saves by the same name."""
    plan = plan_picture(encoded(kind))
    picture = plan.decode()
    assert picture.mode == "RGB"
    assert picture.size == (48, 40) or "ICO" in kind  # which has sizes of its own
    assert picture.width * picture.height * 4 == plan.held <= plan.peak <= plan.held * 10


OTHERS = ["EPS", "TGA", "PPM", "ICNS", "DDS", "PCX", "SGI", "SPIDER", "IM", "MSP", "BLP", "PDF"]


@pytest.mark.parametrize("file_format", [*OTHERS, "SVG", "text", "nothing"])
def test_what_is_not_opened(file_format: str) -> None:
    """EPS runs Ghostscript where it is installed; SPIDER, BLP and DDS raise what is no OSError."""
    buffer = BytesIO()
    if file_format in OTHERS:
        mode = {"MSP": "1", "BLP": "P", "SPIDER": "F"}.get(file_format, "RGB")
        random_picture(40, 48).convert(mode).save(buffer, file_format)
    else:
        buffer.write({"SVG": b"<svg/>", "text": b"a text", "nothing": b""}[file_format])
    with pytest.raises(ValueError, match=r"not a picture of a kind .*PNG, JPEG.* Check what"):
        plan_picture(buffer.getvalue())


def test_heic_where_a_decoder_is_installed() -> None:
    """It is opened if pillow-heif is there, and named in the refusal only then."""
    assert ("HEIF" in formats()) == (find_spec("pillow_heif") is not None)


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed at random, most often in the header, and the end cut off at times."""
    file = bytearray(data)
    for _ in range(rng.choice((1, 2, 4, 16))):
        file[rng.randrange(min(len(file), rng.choice((40, 200, len(file)))))] = rng.randrange(256)
    return bytes(file[: rng.randrange(1, len(file))] if rng.random() < 0.3 else file)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_give_a_picture_or_a_refusal(kind: str) -> None:
    """Property: nothing but a ValueError leaves this, whatever Pillow raises, in bounded time.

    Pillow raises SyntaxError, struct.error, KeyError, NotImplementedError and more on such files,
    which vLLM answers with 500.
    """
    rng = random.Random(kind)
    files = [encoded(kind, mode) for mode in ("RGB", "L") if kind != "APNG" or mode == "RGB"]
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            data = flipped(rng, rng.choice(files))
            start = time.thread_time()
            try:
                plan = plan_picture(data)
                if plan.peak < 1 << 28:
                    assert plan.decode().mode == "RGB"
            except ValueError as error:
                assert str(error).startswith("The picture ") and str(error).count(". ") >= 1
                refused += 1
            assert time.thread_time() - start < 5
    assert 0 < refused < 150


def test_a_png_with_a_chunk_without_a_name() -> None:
    """SyntaxError in Pillow, 500 on the server."""
    start = png(64, 64).index(b"IDAT") - 4
    cut_off = chunk(b"IDAT", zlib.compress(bytes(64 * 9))[:10])
    data = png(64, 64)[:start] + cut_off + b"\0\0\0\4\xff\xfe\xfd\xfcabcd\0\0\0\0"
    with pytest.raises(ValueError, match="The picture cannot be decoded .*Send it again"):
        plan_picture(data).decode()


@pytest.mark.parametrize("kind", [1, 2, 11], ids=["bytes", "text", "float"])
def test_a_tiff_whose_tiles_have_no_size(kind: int) -> None:
    """A TypeError, 500 on the server; Pillow does not look at tiles where there are strips."""
    strips = (273, 4, 1, 8), (278, 4, 1, 64), (279, 4, 1, 64)
    data = tiff(64, 64, *strips, (322, kind, 1, 0x616263), (323, kind, 1, 0x616263))
    with pytest.raises(ValueError, match="because the size of its tiles is no whole number. Send"):
        plan_picture(data)


def test_no_memory_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so, and not that the file is damaged."""
    plan = plan_picture(encoded("PNG"))

    def fails(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fails)
    with pytest.raises(ValueError, match="the machine has no memory left"):
        plan.decode()


# --- sizes ---


TOO_LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "black and white": (lambda: png(10000, 10000, rows=1), "100000000 in all; at most 89478485"),
    "twice": (lambda: png(30000, 30000, rows=1), "decompression bomb"),
    "icon": (lambda: icon(png(9400, 9400, rows=1)), "icon of 9400 x 9400 pixels"),
    "BMP in an icon": (
        lambda: icon(struct.pack("<IiiHHIIiiII", 40, 9000, 18000, 1, 32, 0, 0, 0, 0, 0, 0)),
        "icon of 9000 x 18000 pixels",
    ),
    "tile": (lambda: tiff(64, 64, (322, 4, 1, 60000), (323, 4, 1, 60000), (324, 4, 1, 8),
                           (325, 4, 1, 8)), "60000 x 60000 pixels"),
    "codestream": (lambda: codestream(0xFF51, 9500, 9500, 0, 0, 9500, 9500, 0, 0), "9500 x 9500"),
    "many tiles": (lambda: codestream(0xFF51, 240, 240, 0, 0, 1, 1, 0, 0), "57600 tiles"),
    "precincts": (large_precincts, "8340737 precincts"),
    "compressed text": (
        lambda: png(64, 64, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(20 << 20), 9))),
        "cannot be decoded",
    ),
    "profile": (
        lambda: png(64, 64, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(20 << 20), 9))),
        "cannot be decoded",
    ),
}  # fmt: skip
"""Small files whose decoders take much memory, and of the refusal."""


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which this process's memory grew at most."""

    def read(name: str) -> int:
        status = open("/proc/self/status").read()  # noqa: SIM115
        return int(status.split(name)[1].split()[0]) << 10

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # so that the highest value begins anew
    before = read("VmRSS:")
    work()
    return read("VmHWM:") - before


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_too_large_is_refused_before_decoding(kind: str) -> None:
    """Measured in memory: some decoders take it when they open a file, or do not believe it."""
    make, message = TOO_LARGE[kind]
    data = make()

    def refused() -> None:
        with pytest.raises(ValueError, match=message):
            plan_picture(data)

    refused()  # what is imported the first time is not counted
    assert peak_of(refused) < 40 << 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive", "WEBP", "AVIF", "JPEG2000", "lzw"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_decoding_takes_what_was_planned(kind: str, mode: str) -> None:
    """The budget is a number without meaning if a decoder takes more than it was told."""
    if mode == "RGBA" and KINDS[kind][0] == "JPEG":
        mode = "CMYK"
    buffer = BytesIO()
    file_format, options = KINDS[kind]
    smooth = random_picture(20, 30, mode="RGBA").resize((1000, 900)).convert(mode)
    smooth.save(buffer, file_format, **options)
    plan = plan_picture(buffer.getvalue())
    assert peak_of(plan.decode) < plan.peak + (4 << 20)


@pytest.mark.parametrize("frames", [1, 2])
def test_an_avif_that_lies(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 x 64 in its box and 1500 x 1200 in its AV1 data, by which the decoder takes memory."""
    large = [Image.new("RGB", (1500, 1200))] * frames
    buffer = BytesIO()
    large[0].save(buffer, "AVIF", speed=10, save_all=frames > 1, append_images=large[1:])
    data = buffer.getvalue().replace(
        b"ispe" + struct.pack(">III", 0, 1500, 1200), b"ispe" + struct.pack(">III", 0, 64, 64)
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match="1500 x 1200 pixels"):
        plan_picture(data)


def test_a_large_picture_is_taken() -> None:
    """88 megapixels fit the budget of a request, as they are within Pillow's limit."""
    assert plan_picture(png(9400, 9400, rows=1)).peak < 1 << 30


# --- work ---


def test_scans_of_a_progressive_jpeg() -> None:
    """Each costs as much as the picture: 300 hold a thread for minutes."""
    with pytest.raises(ValueError, match="a JPEG of 300 scans; at most 100"):
        plan_picture(scans(300))
    assert plan_picture(scans(90)).decode().size == (48, 40)
    # The same bytes in metadata, or after the end, are no scans.
    plain = encoded("JPEG")
    assert plan_picture(plain + b"\xff\xda" * 300).decode().size == (48, 40)
    comment = b"\xff\xfe" + struct.pack(">H", 602) + b"\xff\xda" * 300
    assert plan_picture(plain[:2] + comment + plain[2:]).decode().size == (48, 40)


def test_many_frames() -> None:
    """The first is decoded, and the others are not looked for."""
    for kind, data in many_frames():
        start = time.thread_time()
        assert plan_picture(data).decode().size == (8, 8), kind
        assert time.thread_time() - start < 0.5, kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG2000", "BMP"])
def test_a_client_that_left_ends_its_decode(kind: str) -> None:
    """Pillow reads in pieces, and asks between them."""
    with Budget(1 << 30, 1 << 30).request() as share:
        plan = plan_picture(encoded(kind))
        share.has_ended = True
        with pytest.raises(RequestEnded):
            plan.decode()


def test_headers_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planned takes no memory by what the file says, until there is some."""
    # Pillow decodes icons when it opens them, so these are held to a size before.
    files = [encoded(kind) for kind in KINDS if "ICO" not in kind]
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for data in files:
        plan_picture(data)


def test_pixels_are_those_of_pillow() -> None:
    """Equal to what Pillow decodes, for the kinds that people send."""
    for kind in KINDS:
        data = encoded(kind)
        expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
        assert np.array_equal(np.asarray(plan_picture(data).decode()), expected)
