# SPDX-License-Identifier: Apache-2.0
"""Still pictures: open, resize and cut into patches, in uint8 throughout.

The bytes are those that transformers 5.5.4 ``Glm4vImageProcessor`` (torchvision backend) computes
before it rescales and normalises, with one temporal slice instead of two equal ones, and the
channels of a pixel side by side: decoders give them so, and PyTorch resizes this layout fastest.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TypeAlias, TypeGuard

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from vllm_glm41v_npu.processing.colours import to_rgb
from vllm_glm41v_npu.processing.grid import PatchGeometry, PixelLimits, smart_resize

_HOW_TO_OPEN: dict[type, str] = {
    Path: "Open the file: PIL.Image.open(path).",
    str: "Open a file with PIL.Image.open(path); send a URL in a chat, as image_url.",
    bytes: "Open the file that they are: PIL.Image.open(io.BytesIO(data)).",
    object: "Open files and URLs before passing them on.",
}

Picture: TypeAlias = Image.Image | np.ndarray | torch.Tensor
"""A PIL picture of any mode, or uint8 RGB: numpy [height, width, 3] or torch [3, height, width]."""

_ORIENTATION, UPRIGHT = 0x0112, 1  # the EXIF tag and its neutral value


def open_picture(picture: Picture, name: str = "The picture") -> Picture:
    """Check a picture, and decode, turn (EXIF orientation) and convert a PIL one to RGB.

    Alpha is dropped, as in transformers; see `to_rgb` about other modes. An opened picture passes
    through again unchanged.

    Raises:
        ValueError: The fault of the picture, called ``name``, and how to mend it.
    """
    if isinstance(picture, Image.Image):
        return _open_pil(picture, name)
    if isinstance(picture, (np.ndarray, torch.Tensor)):
        _check_array(picture, name)
        return picture
    raise ValueError(
        f"{name} is a {type(picture).__name__}; expected a PIL picture, a numpy array or a "
        f"torch tensor. {_HOW_TO_OPEN[_kind_of(picture)]}"
    )


def _kind_of(given: object) -> type:
    return next(kind for kind in _HOW_TO_OPEN if isinstance(given, kind))


def picture_grid(
    picture: Picture, geometry: PatchGeometry, limits: PixelLimits
) -> tuple[int, int, int]:
    """Return the grid (1, h, w) that `process_picture` cuts an opened picture into.

    Raises:
        ValueError: The picture is empty, or its sides have a ratio over 200.
    """
    if isinstance(picture, Image.Image):
        width, height = picture.size
    else:
        height, width = picture.shape[:2] if _is_numpy(picture) else picture.shape[1:]
    return geometry.grid(*smart_resize(height, width, geometry, limits))


def process_picture(
    picture: Picture, geometry: PatchGeometry, grid: tuple[int, int, int], patches: torch.Tensor
) -> None:
    """Resize one opened picture and cut it into ``patches``.

    Args:
        grid: (1, h, w) in patches, by `picture_grid`.
        patches: uint8 [h * w, patch_size**2 * 3], overwritten. Rows go through merge blocks (the
            2 x 2 patches of a token are neighbours), columns are (y, x, channel). Source:
            ``Glm4vImageProcessor._preprocess``, but for the columns.
    """
    _, h, w = grid
    size = h * geometry.patch_size, w * geometry.patch_size
    cut_patches(resize(_to_pixels(picture), size), geometry, patches)


def resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize uint8 [H, W, 3] to uint8 [*size, 3], bicubic with antialiasing.

    It calls torch's uint8 kernel, as torchvision does.
    """
    if tuple(pixels.shape[:2]) == size:
        return pixels
    # [H, W, 3] -> [1, 3, H, W], channels last in memory
    batch = pixels[None].permute(0, 3, 1, 2)
    return interpolate(batch, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0)


def cut_patches(pixels: torch.Tensor, geometry: PatchGeometry, patches: torch.Tensor) -> None:
    """Write [H, W, 3], multiples of ``geometry.factor``, into [h * w, patch_size**2 * 3].

    ``patches`` may be columns of a wider tensor; both have one dtype.
    """
    patch, merge = geometry.patch_size, geometry.merge_size
    height, width, channels = pixels.shape
    rows, columns = height // geometry.factor, width // geometry.factor
    line = patch * channels  # bytes of a patch that lie side by side in both
    # [H, W, 3] -> [rows, merge, patch, columns, merge, patch * 3]
    blocks = pixels.reshape(rows, merge, patch, columns, merge, line)
    # [h * w, patch**2 * 3] -> [rows, columns, merge, merge, patch, patch * 3]
    target = patches.view(rows, columns, merge, merge, patch, line)
    target.copy_(blocks.permute(0, 3, 1, 4, 2, 5))


def _to_pixels(picture: Picture) -> torch.Tensor:
    """Return the pixels as uint8 [H, W, 3]."""
    if isinstance(picture, torch.Tensor):
        return picture.cpu().permute(1, 2, 0)
    if isinstance(picture, Image.Image):
        picture = np.asarray(_Lent(np.asarray(picture)))
    return to_tensor(picture)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Return the array as a tensor; a copy where torch would not take it."""
    # torch takes neither negative strides nor, without a warning, read-only arrays.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class _Lent:
    """Pillow's read-only copy of a picture, marked writable: saves a copy of 25 MB at 4K.

    Nothing writes to it. NumPy keeps this object, and so the array, as long as it is used.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def _open_pil(picture: Image.Image, name: str) -> Image.Image:
    check_pixels(*picture.size, name)
    try:
        picture.load()
        return to_rgb(upright(picture))
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise undecodable(name, error) from error


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuse an empty picture, and one that is too large to decode.

    Raises:
        ValueError: It has no pixels, or more than Pillow's MAX_IMAGE_PIXELS.
    """
    if width < 1 or height < 1:
        raise ValueError(
            f"{name} is {width} x {height} pixels (width x height), so it is empty; expected at "
            "least 1 x 1. Send a picture with content."
        )
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(
            f"{name} is {width} x {height} pixels (width x height), {width * height} in all; at "
            f"most {most} are accepted, against decompression bombs. Send a smaller picture, or "
            "raise PIL.Image.MAX_IMAGE_PIXELS where the server starts."
        )


def undecodable(name: str, error: Exception) -> ValueError:
    """Return the refusal of a picture whose decoder raised ``error``."""
    if isinstance(error, MemoryError):
        return ValueError(
            f"{name} was not decoded, because the machine has no memory left for it. Send it again "
            "later, or a smaller one."
        )
    return ValueError(
        f"{name} cannot be decoded ({type(error).__name__}: {error}); the file is truncated, "
        "damaged or of a kind Pillow cannot read. Send it again, as PNG or JPEG."
    )


def upright(picture: Image.Image) -> Image.Image:
    """Return the picture turned by its EXIF orientation."""
    return picture if orientation(picture) == UPRIGHT else ImageOps.exif_transpose(picture)


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, `UPRIGHT` where there is none."""
    try:
        return picture.getexif().get(_ORIENTATION, UPRIGHT)
    except (SyntaxError, ValueError, struct.error, OSError):
        # Damaged metadata is no reason to refuse a picture. Pillow raises once and then has none,
        # which matters to vLLM's hasher.
        return UPRIGHT


def _is_numpy(picture: object) -> TypeGuard[np.ndarray]:
    return isinstance(picture, np.ndarray)


def _check_array(picture: np.ndarray | torch.Tensor, name: str) -> None:
    """Refuse an array that is not uint8 RGB in the layout of its kind, or is empty."""
    is_numpy = _is_numpy(picture)
    layout, channel_dim = ("[height, width, 3]", -1) if is_numpy else ("[3, height, width]", 0)
    shape, dtype = tuple(picture.shape), str(picture.dtype).removeprefix("torch.")
    kind = "numpy array" if is_numpy else "torch tensor"
    if dtype != "uint8" or len(shape) != 3 or shape[channel_dim] != 3 or 0 in shape:
        raise ValueError(
            f"{name} is a {kind} of dtype {dtype} and shape {list(shape)}; expected uint8 RGB of "
            f"shape {layout}, not empty. Convert it to 0..255 and that layout, or pass a PIL "
            "picture."
        )
