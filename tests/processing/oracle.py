# SPDX-License-Identifier: Apache-2.0
"""transformers' pictures and ours in comparable form."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor

from vllm_glm41v_npu.processing.grid import PatchGeometry, PixelLimits
from vllm_glm41v_npu.processing.image import Picture, open_picture, picture_grid, process_picture

GEOMETRY = PatchGeometry()
LIMITS = PixelLimits(min_pixels=112 * 112, max_pixels=28 * 28 * 15000)


def random_picture(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth shapes under noise, so that resizing both averages and overshoots."""
    rng = np.random.default_rng([seed, height, width])
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 4), dtype=np.uint8), mode="RGBA")
    large = np.asarray(small.resize((width, height), Image.Resampling.NEAREST)).astype(np.int16)
    noisy = large + rng.integers(-40, 40, large.shape, dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), mode="RGBA").convert(mode)


def theirs(
    picture: Image.Image, limits: PixelLimits = LIMITS, normalised: bool = False
) -> tuple[torch.Tensor, list[int]]:
    """transformers' patches, [h * w, 3, 2, 14 * 14], uint8 unless normalised, and the grid."""
    processor = Glm4vImageProcessor(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        do_rescale=normalised,
        do_normalize=normalised,
    )
    outputs = processor(picture, return_tensors="pt")
    (grid,) = outputs["image_grid_thw"].tolist()
    # [h * w, 3 * 2 * 14 * 14] -> [h * w, 3, 2, 14 * 14]
    return outputs["pixel_values"].reshape(-1, 3, 2, 14 * 14), grid


def ours(picture: Picture, limits: PixelLimits = LIMITS) -> tuple[torch.Tensor, list[int]]:
    """Our patches, uint8 [h * w, 3, 14 * 14], and the grid."""
    opened = open_picture(picture)
    grid = picture_grid(opened, GEOMETRY, limits)
    patches = torch.empty(grid[1] * grid[2], GEOMETRY.row_size, dtype=torch.uint8)
    process_picture(opened, GEOMETRY, grid, patches)
    return channels_first(patches, 1)[:, :, 0], list(grid)


def channels_first(patches: torch.Tensor, frames: int) -> torch.Tensor:
    """Our rows in transformers' order: [rows, 3, frames, 14 * 14]."""
    # [rows, frames * 14 * 14 * 3] -> [rows, frames, 14 * 14, 3] -> [rows, 3, frames, 14 * 14]
    return patches.reshape(len(patches), frames, 14 * 14, 3).permute(0, 3, 1, 2)


def assert_same_as_transformers(picture: Image.Image, limits: PixelLimits = LIMITS) -> None:
    """Equal grids, and our slice equal to both of theirs in every byte."""
    (expected, expected_grid), (found, grid) = theirs(picture, limits), ours(picture, limits)
    assert grid == expected_grid
    assert expected.dtype == torch.uint8
    for time in range(expected.shape[2]):
        assert torch.equal(found, expected[:, :, time])
