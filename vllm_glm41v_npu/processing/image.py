# SPDX-License-Identifier: Apache-2.0
"""Still pictures: open, resize and cut into patches, in uint8 throughout.

Bit for bit what transformers 5.5.4 ``Glm4vImageProcessor`` (torchvision backend) computes before
it rescales and normalises, with one temporal slice instead of two equal ones.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from .grid import PatchGeometry, PixelLimits, smart_resize

Picture: TypeAlias = Image.Image | np.ndarray | torch.Tensor
"""A PIL picture of any mode, or uint8 RGB: numpy [height, width, 3] or torch [3, height, width]."""

_DECODED_MODE = "RGB"
_ORIENTATION, _UPRIGHT = 0x0112, 1  # the EXIF tag and its neutral value


def open_picture(picture: Picture, name: str = "The picture") -> Picture:
    """Check a picture, and decode, turn (EXIF orientation) and convert a PIL one to RGB.

    Alpha is dropped and other modes go through ``PIL.Image.convert``, as in transformers. A
    picture that comes out of here passes through again unchanged.

    Raises:
        ValueError: what is wrong with the picture, called ``name``, and what to do about it.
    """
    if isinstance(picture, Image.Image):
        return _open_pil(picture, name)
    if isinstance(picture, (np.ndarray, torch.Tensor)):
        _check_array(picture, name)
        return picture
    raise ValueError(
        f"{name} is a {type(picture).__name__}; expected a PIL picture, a numpy array or a "
        "torch tensor. Open files and URLs before passing them on."
    )


def process_picture(
    picture: Picture, geometry: PatchGeometry, limits: PixelLimits
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Resize one opened picture and cut it into patches.

    Returns:
        Patches, uint8 [h * w, 3 * patch_size**2], and the grid (1, h, w) in patches. Rows go
        through merge blocks (the 2 x 2 patches of a token are neighbours), columns are
        (channel, y, x). Source: ``Glm4vImageProcessor._preprocess``.

    Raises:
        ValueError: an empty picture or a side ratio over 200.
    """
    pixels = _to_tensor(picture)  # [3, H, W]
    height, width = pixels.shape[-2:]
    size = smart_resize(height, width, geometry, limits)
    return cut_patches(resize(pixels, size), geometry), geometry.grid(*size)


def resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with antialiasing, uint8 [3, H, W] to uint8 [3, *size].

    Torch has a uint8 kernel of its own for this, the one torchvision calls. Channels-last input
    gives the same bytes faster.
    """
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]


def cut_patches(pixels: torch.Tensor, geometry: PatchGeometry) -> torch.Tensor:
    """[3, H, W], multiples of ``geometry.factor``, to [h * w, 3 * patch_size**2], same dtype."""
    patch, merge = geometry.patch_size, geometry.merge_size
    channels, height, width = pixels.shape
    # [3, H, W] -> [3, h/merge, merge, patch, w/merge, merge, patch]
    blocks = pixels.reshape(
        channels, height // geometry.factor, merge, patch, width // geometry.factor, merge, patch
    )
    # -> [h/merge, w/merge, merge, merge, 3, patch, patch] -> [h * w, 3 * patch * patch]
    return blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, channels * patch * patch)


def _to_tensor(picture: Picture) -> torch.Tensor:
    """uint8 [3, H, W]; a PIL picture is copied, channels last in memory."""
    if isinstance(picture, torch.Tensor):
        return picture.cpu()
    if isinstance(picture, Image.Image):
        array = np.array(picture)
    else:  # torch wraps neither read-only arrays nor negative strides
        array = np.require(picture, requirements=["C", "W"])
    return torch.from_numpy(array).permute(2, 0, 1)


def _open_pil(picture: Image.Image, name: str) -> Image.Image:
    width, height = picture.size
    if width < 1 or height < 1:
        raise ValueError(
            f"{name} is {width} x {height} pixels (width x height), so it is empty; expected at "
            "least 1 x 1. Send a picture with content."
        )
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(
            f"{name} is {width} x {height} pixels (width x height), {width * height} in all; at "
            f"most {most} are accepted. Send a smaller picture, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS where the server starts."
        )
    try:
        picture.load()
        upright = _upright(picture)
        return upright if upright.mode == _DECODED_MODE else upright.convert(_DECODED_MODE)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(
            f"{name} cannot be decoded ({type(error).__name__}: {error}); the file is truncated, "
            "damaged or of a kind Pillow cannot read. Send it again, as PNG or JPEG."
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says it is looked at."""
    try:
        orientation = picture.getexif().get(_ORIENTATION, _UPRIGHT)
    except (SyntaxError, ValueError, struct.error, OSError):
        # Damaged metadata is no reason to refuse a picture. Pillow raises once and then has none,
        # which matters to vLLM's hasher.
        return picture
    return picture if orientation == _UPRIGHT else ImageOps.exif_transpose(picture)


def _check_array(picture: np.ndarray | torch.Tensor, name: str) -> None:
    """uint8, not empty, and RGB in the layout of its kind."""
    is_numpy = isinstance(picture, np.ndarray)
    layout, channel_dim = ("[height, width, 3]", -1) if is_numpy else ("[3, height, width]", 0)
    shape, dtype = tuple(picture.shape), str(picture.dtype).removeprefix("torch.")
    kind = "numpy array" if is_numpy else "torch tensor"
    if dtype != "uint8" or len(shape) != 3 or shape[channel_dim] != 3 or 0 in shape:
        raise ValueError(
            f"{name} is a {kind} of dtype {dtype} and shape {list(shape)}; expected uint8 RGB of "
            f"shape {layout}, not empty. Convert it to 0..255 and that layout, or pass a PIL "
            "picture."
        )
