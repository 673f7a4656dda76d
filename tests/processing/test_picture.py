# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from tests.processing.oracle import (
    LIMITS,
    assert_same_as_transformers,
    ours,
    random_picture,
    theirs,
)
from vllm_glm41v_npu.processing.grid import PixelLimits
from vllm_glm41v_npu.processing.image import open_picture
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings

SIZES = [
    (1, 1), (1, 2), (3, 1), (13, 27), (27, 28), (28, 28), (29, 55), (111, 113), (112, 112),
    (84, 84), (336, 336), (333, 517), (1, 200), (200, 1), (20, 4000), (4000, 20), (57, 9999),
    (768, 1024), (1080, 1920), (2160, 3840), (4320, 1000), (2801, 2799),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_patches_of_sizes(size: tuple[int, int]) -> None:
    """The kernel, its rounding or the order of patches differs from transformers at some size."""
    assert_same_as_transformers(random_picture(*size))


def test_patches_of_random_sizes_and_limits() -> None:
    """Same, where the sizes and limits were not chosen by hand."""
    rng = random.Random(0)
    for seed in range(60):
        height = int(10 ** rng.uniform(0, 3))
        width = max(1, int(height * 10 ** rng.uniform(-1, 1)))
        limits = rng.choice([LIMITS, PixelLimits(12544, 50176), PixelLimits(400_000, 900_000)])
        assert_same_as_transformers(random_picture(height, width, seed), limits)


def test_normalised_patches() -> None:
    """The mean, deviation or scale that the vision tower folds in are not the checkpoint's."""
    picture, settings = random_picture(333, 517), ImageSettings()
    (expected, _), (pixels, _) = theirs(picture, normalised=True), ours(picture)
    mean, std = (
        torch.tensor(values)[:, None] * (1.0 / settings.rescale_factor)  # [3, 1]
        for values in (settings.mean, settings.std)
    )
    assert torch.equal((pixels - mean) / std, expected[:, :, 0])


COLOUR_MODES = ["P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
GREY_MODES = ["1", "L", "LA", "I", "F"]


@pytest.mark.parametrize("mode", COLOUR_MODES + GREY_MODES)
def test_modes(mode: str) -> None:
    """Some mode of PIL is refused, or converted in another way than transformers does."""
    if mode == "LAB":  # nothing converts to it
        picture = Image.frombytes(mode, (120, 90), np.random.default_rng(0).bytes(90 * 120 * 3))
    else:
        picture = random_picture(90, 120, mode="RGBA").convert("RGBA" if mode == "LA" else "RGB")
        picture = picture.convert(mode)
    assert picture.mode == mode
    assert_same_as_transformers(picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_from_a_file(mode: str, tmp_path: Path) -> None:
    """A transparent PNG is composited instead of having its alpha dropped."""
    picture = random_picture(60, 80, mode="RGBA").convert(mode)
    if mode == "P":
        picture.info["transparency"] = 0
    picture.save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as opened:
        assert opened.mode == mode and opened.has_transparency_data
        assert_same_as_transformers(opened)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_exif_orientation(orientation: int, file_format: str, tmp_path: Path) -> None:
    """A photograph taken with the camera on its side arrives on its side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture"
    random_picture(60, 90).save(path, format=file_format, exif=exif)
    (expected, expected_grid), (found, grid) = theirs(load_image(str(path))), ours(Image.open(path))
    assert grid == expected_grid
    assert torch.equal(found, expected[:, :, 0])


def test_broken_exif_does_not_matter() -> None:
    """A picture that every viewer shows is refused for its metadata."""
    buffer = BytesIO()
    random_picture(60, 90).save(buffer, format="PNG", exif=b"Exif\0\0garbage, not TIFF")
    opened = open_picture(Image.open(buffer))
    found, grid = ours(opened)
    expected, expected_grid = ours(random_picture(60, 90))
    assert grid == expected_grid and torch.equal(found, expected)
    # vLLM's hasher asks for the metadata next.
    assert isinstance(opened, Image.Image) and not opened.getexif()


def test_arrays_are_read_like_pictures() -> None:
    """Numpy or torch pixels are transposed, or a view is read in the order of its memory."""
    picture = random_picture(70, 110)
    array = np.array(picture)
    read_only = array.copy()
    read_only.flags.writeable = False
    flipped = np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    expected, expected_grid = ours(picture)
    for pixels in (array, read_only, flipped, torch.from_numpy(array).permute(2, 0, 1)):
        found, grid = ours(pixels)
        assert grid == expected_grid
        assert torch.equal(found, expected)


def test_opening_twice_changes_nothing() -> None:
    """vLLM parses a picture again when it misses the cache: it would be turned twice."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    random_picture(60, 90).save(buffer, format="JPEG", exif=exif)
    once = open_picture(Image.open(buffer))
    assert open_picture(once) is once
    assert once.size == (60, 90)


def encoded(file_format: str) -> bytes:
    buffer = BytesIO()
    random_picture(200, 300).save(buffer, format=file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_file(file_format: str) -> None:
    """Half a file ends in a decoder's own error, or in half a picture."""
    data = encoded(file_format)
    with pytest.raises(ValueError, match="cannot be decoded|cannot identify"):
        try:
            picture = Image.open(BytesIO(data[: len(data) // 2]))
        except OSError as error:  # seen by whoever opens the file, not by us
            raise ValueError(f"cannot identify: {error}") from error
        open_picture(picture)


def test_decompression_bomb_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that claims a huge picture takes the server's memory."""
    picture = Image.open(BytesIO(encoded("PNG")))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 300 - 1)
    monkeypatch.setattr(picture, "load", lambda: pytest.fail("decoded before the check"))
    with pytest.raises(ValueError, match="60000 in all; at most 59999 are accepted"):
        open_picture(picture)


BAD = {
    "no width": (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
    "nothing": (Image.new("RGB", (0, 0)), "0 x 0 pixels"),
    "too long": (Image.new("RGB", (402, 2)), "402 x 2 pixels .* side ratio of 201.0; at most 200"),
    "float array": (np.zeros((4, 4, 3), np.float32), r"dtype float32 .* expected uint8"),
    "CHW array": (np.zeros((3, 8, 9), np.uint8), r"shape \[3, 8, 9\]; .* \[height, width, 3\]"),
    "HWC tensor": (torch.zeros(8, 9, 3, dtype=torch.uint8), r"\[3, height, width\]"),
    "grey array": (np.zeros((8, 9), np.uint8), r"shape \[8, 9\]"),
    "RGBA array": (np.zeros((8, 9, 4), np.uint8), r"shape \[8, 9, 4\]"),
    "empty array": (np.zeros((0, 9, 3), np.uint8), "not empty"),
    "int tensor": (torch.zeros(3, 8, 9, dtype=torch.int32), "dtype int32"),
    "text": ("picture.png", r"is a str; expected a PIL picture.* PIL.Image.open\(path\)"),
    "path": (Path("picture.png"), r"is a PosixPath; .* PIL.Image.open\(path\)"),
    "bytes": (b"\x89PNG", r"is a bytes; .* PIL.Image.open\(io.BytesIO\(data\)\)"),
    "number": (7, "is a int; .* Open files and URLs before"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_picture(case: str) -> None:
    """The caller gets a trace from torch, or an answer about noise, instead of a sentence."""
    picture, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ours(picture)
