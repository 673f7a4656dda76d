# SPDX-License-Identifier: Apache-2.0
"""The grid of patches of a picture or a video: geometry, target size, the largest grid.

Sizes are (height, width) in pixels; grids are (t, h, w) in patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_SIDE_RATIO = 200
"""Longest side over shortest side, as in transformers' Glm4v ``smart_resize``."""


@dataclass(frozen=True)
class PixelLimits:
    """The least and most pixels of a resized picture or video, counted over all its frames.

    ``size`` in the preprocessor files counts so too; a still picture counts as
    ``temporal_patch_size`` frames.
    """

    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class PatchGeometry:
    """The patch sizes of the vision tower, and sizes that follow from them."""

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    channels: int = 3

    @classmethod
    def from_vision_config(cls, vision_config: PretrainedConfig) -> PatchGeometry:
        return cls(
            patch_size=vision_config.patch_size,
            merge_size=vision_config.spatial_merge_size,
            temporal_patch_size=vision_config.temporal_patch_size,
            channels=getattr(vision_config, "in_channels", cls.channels),
        )

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one token; sizes are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def row_size(self) -> int:
        """Values in one row of a still picture's ``pixel_values`` (one temporal slice)."""
        return self.channels * self.patch_size**2

    @property
    def video_row_size(self) -> int:
        """Values in one row of a video's ``pixel_values_videos``: its temporal slices in turn."""
        return self.temporal_patch_size * self.row_size

    @property
    def pixels_per_token(self) -> int:
        """Pixels of `PixelLimits` that one token of a picture takes."""
        return self.temporal_patch_size * self.factor**2

    def grid(self, height: int, width: int, pairs: int = 1) -> tuple[int, int, int]:
        """Return the (t, h, w) patches of a size that is a multiple of `factor` already.

        t is 1 in a still picture, and half the frames in a video.
        """
        return pairs, height // self.patch_size, width // self.patch_size

    def num_tokens(self, grid_thw: tuple[int, int, int]) -> int:
        """Return the tokens that the language model sees for a grid of (t, h, w) patches."""
        return math.prod(grid_thw) // self.merge_size**2


def smart_resize(
    height: int,
    width: int,
    geometry: PatchGeometry,
    limits: PixelLimits,
    num_frames: int | None = None,
    name: str = "The picture",
) -> tuple[int, int]:
    """Return the (height, width) that a picture or frame is resized to.

    They are multiples of ``geometry.factor`` near its own shape, and within ``limits``.

    ``num_frames`` defaults to one temporal patch, which is a still picture. Results are those of
    transformers 5.5.4 ``models/glm4v/image_processing_glm4v.smart_resize``, including where the
    limits are missed: a side never falls below one factor, and rounding up may pass the maximum.

    Raises:
        ValueError: The picture is empty, or its sides have a ratio over 200.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"{name} is {width} x {height} pixels (width x height), so it is empty; "
            "expected at least 1 x 1. Send one with content."
        )
    factor = geometry.factor
    num_frames = geometry.temporal_patch_size if num_frames is None else num_frames
    given_size = f"{width} x {height}"
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)

    side_ratio = max(height, width) / min(height, width)
    if side_ratio > MAX_SIDE_RATIO:
        raise ValueError(
            f"{name} is {given_size} pixels (width x height), a side ratio of "
            f"{side_ratio:.1f}; at most {MAX_SIDE_RATIO} is accepted. Crop it or pad its short "
            "side."
        )
    frames = round(num_frames / geometry.temporal_patch_size) * geometry.temporal_patch_size
    rounded = round(height / factor) * factor, round(width / factor) * factor
    pixels = frames * rounded[0] * rounded[1]
    if pixels > limits.max_pixels:
        shrink = math.sqrt(num_frames * height * width / limits.max_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if pixels < limits.min_pixels:
        grow = math.sqrt(limits.min_pixels / (num_frames * height * width))
        return (
            math.ceil(height * grow / factor) * factor,
            math.ceil(width * grow / factor) * factor,
        )
    return rounded


def largest_picture(geometry: PatchGeometry, limits: PixelLimits) -> tuple[int, int]:
    """Return the (height, width) of a picture with as many tokens as any picture can have.

    Usually it is the best grid of blocks that fits ``max_pixels``; with small limits a thin picture
    may have more, because `smart_resize` misses the limits there. Of several the one nearest to a
    square is returned. The size is the picture's own, before `smart_resize`.
    """

    def tokens_then_height(size: tuple[int, int]) -> tuple[int, int]:
        grid = geometry.grid(*smart_resize(*size, geometry, limits))
        return geometry.num_tokens(grid), size[0]

    return max(_largest_picture_candidates(geometry, limits), key=tokens_then_height)


def _largest_picture_candidates(
    geometry: PatchGeometry, limits: PixelLimits
) -> Iterator[tuple[int, int]]:
    """Yield sizes of wide pictures only: `smart_resize` treats height and width alike."""
    factor = geometry.factor
    yield factor, MAX_SIDE_RATIO * factor  # its height cannot shrink, so it may pass max_pixels
    most, least = (
        pixels / geometry.pixels_per_token for pixels in (limits.max_pixels, limits.min_pixels)
    )
    for rows in range(1, math.isqrt(int(most)) + 1):
        # The longest row of blocks within the maximum.
        yield rows * factor, min(int(most) // rows, MAX_SIDE_RATIO * rows) * factor
        # Just too small, so that both sides are rounded up past the minimum.
        columns = min(math.ceil(least / rows) - 1, MAX_SIDE_RATIO * rows - 1)
        if columns >= rows:
            yield rows * factor, columns * factor + factor // 2 - 1


def largest_video(
    geometry: PatchGeometry, limits: PixelLimits, frame_limit: int, text_tokens: int, room: int
) -> tuple[int, int, int]:
    """Return the (frames, height, width) of a video with the most tokens of the vision tower.

    With the ``text_tokens`` beside the tokens of each temporal pair it fits ``room`` tokens.
    Videos of extreme side ratio, where `smart_resize` misses the limits, are left out: the engine
    refuses one that is larger than this.
    """

    def blocks(pairs: int) -> tuple[int, int]:
        """Return rows and columns of tokens in a pair, nearly square, as many as fit."""
        most = limits.max_pixels // (geometry.pixels_per_token * pairs)
        count = max(1, min(most, room // pairs - text_tokens))
        rows = math.isqrt(count)
        return rows, count // rows

    def tokens_then_pairs(pairs: int) -> tuple[int, int]:
        return pairs * math.prod(blocks(pairs)), pairs

    most_pairs = min(frame_limit // geometry.temporal_patch_size, room // (text_tokens + 1))
    pairs = max(range(1, max(1, most_pairs) + 1), key=tokens_then_pairs)
    rows, columns = blocks(pairs)
    return pairs * geometry.temporal_patch_size, rows * geometry.factor, columns * geometry.factor
