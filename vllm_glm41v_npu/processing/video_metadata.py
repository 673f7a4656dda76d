# SPDX-License-Identifier: Apache-2.0
"""Metadata of frames in memory: the length of their clip, and the place of each frame in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from vllm_glm41v_npu.processing.frame_sampling import FPS_WHERE_UNKNOWN, Timeline

_RANGES = {
    "fps": (1e-6, 1e6, "above 0, at least 0.000001, and at most 1,000,000 frames a second"),
    "duration": (0, 1e9, "0 or more, and at most 1,000,000,000 seconds"),
}
_MOST_FRAMES = 10**9


def read_metadata(
    metadata: Mapping[str, Any], num_frames: int, name: str
) -> tuple[Timeline, list[int], bool | None]:
    """Return the clip's timeline, the place in it of each frame, and ``do_sample_frames``.

    Args:
        metadata: ``fps``, ``total_num_frames``, ``duration``, ``frames_indices`` and
            ``do_sample_frames``, as vLLM's loaders, transformers' ``VideoMetadata`` and
            qwen_vl_utils give them. Numbers may be Python's, numpy's, fractions, or tensors.
        num_frames: the number of frames in memory.

    Raises:
        ValueError: Numbers are out of range, or not of these frames.
    """
    total = _plain(metadata.get("total_num_frames", num_frames))
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    is_count = isinstance(total, int) and not isinstance(total, bool)
    if not is_count or not num_frames <= total <= _MOST_FRAMES:
        raise ValueError(
            f"{name} has {num_frames} frames, and its metadata total_num_frames={total!r:.80}; "
            "expected a whole number, not less than the frames given."
        )
    fps = _number("fps", metadata.get("fps", FPS_WHERE_UNKNOWN), name)
    duration = _number("duration", metadata.get("duration", 0), name)
    indices = _indices(metadata.get("frames_indices", range(num_frames)), num_frames, name)
    if indices and indices[-1] >= total:
        raise ValueError(
            f"{name} has frames_indices up to {indices[-1]} in its metadata, outside a clip of "
            f"total_num_frames={total}. Count them from 0."
        )
    asked = _plain(metadata.get("do_sample_frames"))
    if asked is not None and not isinstance(asked, bool):
        raise ValueError(f"{name} has do_sample_frames={asked!r:.80}; expected true or false.")
    return Timeline(total, fps, duration), indices, asked


def _plain(value: Any) -> Any:
    """Return a number of numpy, torch or fractions as Python's own; anything else as it is."""
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    return value


def _number(key: str, value: Any, name: str) -> float:
    number = _plain(value)
    least, most, expected = _RANGES[key]
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or not least <= number <= most:
        raise ValueError(f"{name} has {key}={value!r:.80} in its metadata; expected {expected}.")
    return float(number)


def _indices(values: Any, num_frames: int, name: str) -> list[int]:
    if isinstance(values, (np.ndarray, torch.Tensor)):
        values = values.tolist()
    indices = [_plain(value) for value in values] if _is_list(values) else []
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in indices):
        raise ValueError(
            f"{name} has frames_indices={values!r:.80} in its metadata; expected whole numbers."
        )
    is_ascending = all(a <= b for a, b in zip(indices, indices[1:], strict=False))
    if len(indices) != num_frames or not is_ascending or min(indices, default=0) < 0:
        raise ValueError(
            f"{name} has {num_frames} frames, and {len(indices)} frames_indices in its metadata, "
            f"from {min(indices, default=None)} to {max(indices, default=None)}; expected the "
            "place in the clip of each frame, in ascending order."
        )
    return indices


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, (str, bytes))
