# SPDX-License-Identifier: Apache-2.0
"""transformers' videos and ours in comparable form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.processing.oracle import GEOMETRY, channels_first
from vllm_glm41v_npu.processing.video import ProcessedVideo
from vllm_glm41v_npu.processing.video_settings import VideoSettings

SETTINGS = VideoSettings()


class Expected(NamedTuple):
    """What transformers makes of a clip; patches are uint8 [rows, 3, 2, 14 * 14]."""

    patches: torch.Tensor
    grid: list[int]
    timestamps: list[int]
    frames_indices: list[int]


def theirs(
    frames: np.ndarray,
    metadata: VideoMetadata | None,
    settings: VideoSettings = SETTINGS,
    **options: Any,
) -> Expected:
    """transformers' own processor, stopped before it rescales and normalises."""
    limits = settings.limits
    processor = Glm4vVideoProcessor(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        do_rescale=False,
        do_normalize=False,
    )
    given = None
    if metadata is not None:  # transformers writes into it
        every = metadata.frames_indices or list(range(len(frames)))
        given = [replace(metadata, frames_indices=every)]
    done = processor(
        videos=[frames], video_metadata=given, return_tensors="pt", return_metadata=True, **options
    )
    (grid,), (found,) = done["video_grid_thw"].tolist(), done["video_metadata"]
    found.fps = found.fps or 24  # as Glm4vProcessor has it
    patches = done["pixel_values_videos"].reshape(-1, 3, 2, 14 * 14)
    seconds = [int(second) for second in found.timestamps[::2]]
    return Expected(patches, grid, seconds, list(found.frames_indices))


def assert_same(found: ProcessedVideo, expected: Expected) -> None:
    """Equal grids, seconds, and bytes."""
    assert list(found.grid) == expected.grid
    assert found.timestamps == expected.timestamps
    assert found.patches.dtype == expected.patches.dtype == torch.uint8
    assert found.patches.shape[1] == GEOMETRY.video_row_size
    assert torch.equal(channels_first(found.patches, 2), expected.patches)
