# SPDX-License-Identifier: Apache-2.0
"""Frames that a client sends one by one, not as a file: ``data:video/jpeg;base64,...,...``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vllm_glm41v_npu.processing.budget import Plan, check_alive
from vllm_glm41v_npu.processing.data_urls import decode_base64
from vllm_glm41v_npu.processing.picture_file import plan_picture
from vllm_glm41v_npu.processing.pixel_settings import SAMPLING_KEYS

MEDIA_TYPE = "video/jpeg"
MAX_PIXELS = 500_000_000
"""The most pixels of all frames together: 1.5 GB."""
_HELD = 4  # bytes of a pixel in a picture's plan
_METADATA_KEYS = ("total_num_frames", "fps", "duration", "frames_indices", "do_sample_frames")
_DEFAULT_METADATA = {"fps": 1, "do_sample_frames": False}  # vLLM's
_WITHOUT_EFFECT = {"backend", "frame_recovery"}


def plan_frames(text: str, media_io_kwargs: Mapping[str, Any]) -> Plan[Any]:
    """Read the headers of frames in base64, separated by commas, and return the decoding's plan.

    Decoding gives the frames, uint8 RGB [frames, height, width, 3], and their metadata.

    Args:
        media_io_kwargs: ``fps``, ``frames_indices`` and so on, as vLLM takes them for such
            frames; of more frames than ``num_frames`` the first ones are taken.

    Raises:
        ValueError: Frames are no pictures, differ in size, or are too large together; or an option
            is unknown.
    """
    options = {key: value for key, value in media_io_kwargs.items() if value is not None}
    unknown = sorted(options.keys() - _WITHOUT_EFFECT - SAMPLING_KEYS - set(_METADATA_KEYS))
    if unknown:
        raise ValueError(
            f"media_io_kwargs for frames sent one by one has {', '.join(unknown)}; expected "
            f"{', '.join(_METADATA_KEYS)}, num_frames."
        )
    parts = text.split(",")
    count = options.get("num_frames", -1)
    if isinstance(count, bool) or not isinstance(count, int) or count < -1 or count == 0:
        raise ValueError(f"media_io_kwargs has num_frames={count!r}; expected 1 or more, or -1.")
    parts = parts[:count] if count > 0 else parts
    metadata = _DEFAULT_METADATA | {key: options[key] for key in _METADATA_KEYS if key in options}
    plans: list[Plan[Image.Image]] = []
    held = 0
    for number, part in enumerate(parts, 1):
        check_alive()
        plans.append(plan_picture(decode_base64(part), f"Frame {number} of {len(parts)}"))
        held += plans[-1].held
        if held > _HELD * MAX_PIXELS:
            raise ValueError(
                f"The frames have over {MAX_PIXELS:,} pixels together. Send a video file, which "
                "is decoded frame by frame, or smaller frames."
            )
    most = max(plan.peak for plan in plans)
    return Plan(held + most, held, lambda: (_decode(plans), metadata))


def _decode(plans: Sequence[Plan[Image.Image]]) -> np.ndarray:
    """Decode the frames one by one, so that no two are held as pictures."""
    first = np.asarray(plans[0].decode())
    frames = np.empty((len(plans), *first.shape), np.uint8)
    frames[0] = first
    for place, plan in enumerate(plans[1:], 1):
        pixels = np.asarray(plan.decode())
        if pixels.shape != first.shape:
            raise ValueError(
                f"Frame {place + 1} of {len(plans)} is {pixels.shape[1]} x {pixels.shape[0]} "
                f"pixels, and the first one {first.shape[1]} x {first.shape[0]}; expected frames "
                "of one size. Resize them to the first one's, or send a video file."
            )
        frames[place] = pixels
    return frames
