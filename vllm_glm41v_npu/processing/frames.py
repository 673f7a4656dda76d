# SPDX-License-Identifier: Apache-2.0
"""Frames in memory, in the forms of many libraries, turned into uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vllm_glm41v_npu.processing.budget import check_alive

_LARGEST = 255


def stack_frames(frames: Sequence[Any], name: str) -> np.ndarray:
    """Return a list of pictures or arrays of one size as [frames, height, width, 3].

    Raises:
        ValueError: The sizes differ, or the list is empty.
    """
    arrays = [_to_array(frame) for frame in frames]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        listed = ", ".join(str(list(shape)) for shape in sorted(shapes)) or "none"
        raise ValueError(
            f"{name} is a list of {len(frames)} frames of shapes {listed}; expected frames of one "
            "size. Resize them to the first one's."
        )
    return np.stack(arrays)


def _to_array(frame: Any) -> np.ndarray:
    if isinstance(frame, torch.Tensor):
        frame = frame.detach().cpu()
        frame = frame.float() if frame.is_floating_point() else frame
    return np.asarray(frame)


def check_frames(frames: np.ndarray | torch.Tensor, name: str) -> np.ndarray | torch.Tensor:
    """Return frames as uint8 RGB [frames, height, width, 3], also from [frames, 3, height, width].

    Floats are in 0..255, as qwen_vl_utils gives them, or in 0..1 where no value is larger than 1.
    They are rounded.

    Raises:
        ValueError: The shape or dtype is another, values are out of range, or there is no frame.
    """
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    is_float = "float" in dtype and "float8" not in dtype
    is_known = len(shape) == 4 and 0 not in shape and 3 in (shape[-1], shape[1])
    if not is_known or (dtype != "uint8" and not is_float):
        raise ValueError(
            f"{name} is of dtype {dtype} and shape {list(shape)}; expected uint8 RGB frames of "
            "shape [frames, height, width, 3] or [frames, 3, height, width], at least one, or "
            "such floats in 0..255 or 0..1. Convert them to that, or pass a list of PIL pictures."
        )
    if shape[-1] != 3:  # [n, 3, H, W] -> [n, H, W, 3]
        is_tensor = isinstance(frames, torch.Tensor)
        frames = frames.permute(0, 2, 3, 1) if is_tensor else frames.transpose(0, 2, 3, 1)  # type: ignore[union-attr]
    return _from_floats(frames, name) if is_float else frames


def _from_floats(frames: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Return floats of any width as uint8 [frames, height, width, 3], made one frame at a time."""
    pixels = frames if isinstance(frames, torch.Tensor) else torch.from_numpy(np.array(frames))
    pixels = pixels.detach()
    least, most = float(pixels.min()), float(pixels.max())
    if not (least >= 0 and most <= _LARGEST):  # also for NaN
        raise ValueError(
            f"{name} has floats from {least:g} to {most:g}; expected 0..255 or 0..1, before they "
            "are normalised."
        )
    scale = _LARGEST if most <= 1 else 1
    bytes_ = torch.empty(pixels.shape, dtype=torch.uint8)
    for frame, target in zip(pixels, bytes_, strict=True):
        check_alive()
        target.copy_((frame.float() * scale).round())
    return bytes_
