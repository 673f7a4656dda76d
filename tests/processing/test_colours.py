# SPDX-License-Identifier: Apache-2.0
"""Pictures of every mode as RGB: transparency on white, deep grey scaled and not clipped."""

from __future__ import annotations

import base64
import logging
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.image import rgba_to_rgb

from tests.processing.loading import load
from tests.processing.oracle import random_picture
from vllm_glm41v_npu.processing.colours import to_rgb
from vllm_glm41v_npu.processing.image import open_picture
from vllm_glm41v_npu.processing.media_io import PictureIO

WHITE, BLACK = [255, 255, 255], [0, 0, 0]


def black_ink() -> dict[str, tuple[Image.Image, str, dict[str, object]]]:
    """Black ink on a clear ground, in each way to store it: picture, format and options."""
    ink = np.zeros((40, 40), np.uint8)
    ink[10:30, 18:22] = 1
    alpha, black = Image.fromarray(ink * 255), Image.new("L", (40, 40), 0)
    palette = Image.fromarray(ink).convert("P")
    palette.putpalette([0] * 768)
    clear = palette.copy()
    clear.putpalette([255, 255, 255, 0, 0, 0, 0, 255] + [0] * 1016, "RGBA")
    rgba = Image.merge("RGBA", [black] * 3 + [alpha])
    deep = Image.fromarray(ink.astype(np.uint16))
    return {
        "RGBA": (rgba, "PNG", {}),
        "LA": (Image.merge("LA", [black, alpha]), "PNG", {}),
        "P": (palette, "PNG", {"transparency": 0}),
        "P with alpha": (clear, "PNG", {"transparency": b"\0\xff"}),
        "1": (Image.fromarray((1 - ink) * 255).convert("1"), "PNG", {"transparency": 1}),
        "L": (Image.fromarray(ink), "PNG", {"transparency": 0}),
        "RGB": (Image.fromarray(np.dstack([ink] * 3)), "PNG", {"transparency": (0, 0, 0)}),
        "I;16": (deep, "PNG", {"transparency": 0}),
        "GIF": (palette, "GIF", {"transparency": 0}),
        "WebP": (rgba, "WEBP", {"lossless": True, "exact": True}),
        "TIFF": (rgba, "TIFF", {}),
        "ICO": (rgba, "ICO", {"sizes": [(40, 40)]}),
        "AVIF": (rgba, "AVIF", {"quality": 100}),
        "JPEG 2000": (rgba, "JPEG2000", {}),
    }


@pytest.mark.parametrize("kind", black_ink())
def test_transparency_is_laid_on_white(kind: str) -> None:
    """Black on black: the answer is about an empty picture."""
    picture, file_format, options = black_ink()[kind]
    buffer = BytesIO()
    picture.save(buffer, file_format, **options)
    seen = np.asarray(load("data:;base64," + base64.b64encode(buffer.getvalue()).decode()))
    assert seen[0, 0].tolist() == WHITE
    assert max(seen[20, 20]) <= 2


def test_half_transparency_is_that_of_vllm() -> None:
    """Another formula, or another one for each band of rows."""
    picture = random_picture(700, 90, mode="RGBA")
    assert to_rgb(picture, (10, 20, 30)).tobytes() == rgba_to_rgb(picture, (10, 20, 30)).tobytes()


def test_a_clear_colour_of_16_bits() -> None:
    """Pillow reads such a file as 8 bits, and its clear colour as 16."""
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    picture.info["transparency"] = (0x0110, 0x0220, 0x0330)
    assert np.asarray(to_rgb(picture, (255, 255, 255)))[0, 0].tolist() == WHITE


def test_another_background() -> None:
    """The same file on another colour is another picture for vLLM's caches."""
    buffer = BytesIO()
    random_picture(40, 40, mode="RGBA").save(buffer, "PNG")
    white = PictureIO().load_bytes(buffer.getvalue())
    black = PictureIO(rgba_background_color=[0, 0, 0]).load_bytes(buffer.getvalue())
    assert white.media.tobytes() != black.media.tobytes()
    assert white.original_bytes != black.original_bytes
    with pytest.raises(ValueError, match="images has image_mode; expected rgba"):
        PictureIO(image_mode="L")


DEEP = {
    "16 bits": (np.linspace(0, 65535, 256), np.uint16, np.arange(256)),
    "dark 16 bits": (np.linspace(0, 255, 256), np.uint16, np.zeros(256)),
    "int32": (np.linspace(-5000, 5000, 256), np.int32, np.arange(256)),
    "int32 of 16 bits": (np.linspace(0, 65535, 256), np.int32, np.arange(256)),
    "int32 of 8 bits": (np.arange(256), np.int32, np.arange(256)),
    "large int32": (np.linspace(0, 2**31 - 1, 256), np.int32, np.arange(256)),
    "floats": (np.linspace(0, 1, 256), np.float32, np.arange(256)),
    "floats of 8 bits": (np.arange(256), np.float32, np.arange(256)),
    "heights": (np.linspace(-400, 8848, 256), np.float32, np.arange(256)),
    "one height": (np.full(256, 700), np.float32, np.zeros(256)),
    "no number": (np.r_[np.nan, np.linspace(0, 1, 254), np.inf], np.float32, None),
    "only no number": (np.full(256, np.nan), np.float32, np.zeros(256)),
}
"""Values of a row of grey, their type, and what is seen."""


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("is_file", [True, False])
def test_deep_grey_is_scaled(kind: str, is_file: bool) -> None:
    """Clipped, as transformers does it, nearly all of it is white."""
    values, dtype, expected = DEEP[kind]
    picture = Image.fromarray(np.tile(values.astype(dtype), (300, 1)))
    if is_file:
        buffer = BytesIO()
        picture.save(buffer, "TIFF")
        seen = np.asarray(PictureIO().load_bytes(buffer.getvalue()).media)
    else:
        seen = np.asarray(open_picture(picture))
    assert (seen == seen[0]).all() and (seen == seen[..., :1]).all()
    if expected is None:  # NaN is as black as the least value, infinity as white as the greatest
        assert seen[0, [0, 1, 127, -2, -1], 0].tolist() == [0, 0, 127, 255, 255]
    else:
        assert np.abs(seen[0, :, 0] - expected.astype(int)).max() <= 1


def test_a_png_of_16_bits() -> None:
    """The usual kind: scans, and depth maps."""
    buffer = BytesIO()
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None]).save(buffer, "PNG")
    seen = np.asarray(PictureIO().load_bytes(buffer.getvalue()).media)[0, :, 0]
    assert np.abs(seen - np.arange(256)).max() <= 1


def test_scaling_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Answers differ from transformers' without a word."""
    from vllm_glm41v_npu.processing.colours import logger

    logging.getLogger("vllm").propagate = True
    with caplog.at_level(logging.WARNING, logger.name):
        # A mode of its own, because each is said once in a process.
        open_picture(Image.frombytes("I;16B", (2, 2), bytes(8)))
    assert "scaled to 0..255. transformers clips them" in caplog.text
