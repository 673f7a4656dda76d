# SPDX-License-Identifier: Apache-2.0
"""Videos: frames selected, resized and cut into patches in uint8, one frame in memory at a time.

Frames, seconds and grids are those of transformers 5.5.4 ``Glm4vVideoProcessor``, and so are the
bytes before it rescales and normalises. Their order in a row differs: the two frames of a temporal
pair lie one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.logger import init_logger

from vllm_glm41v_npu.processing.frame_sampling import (
    FPS_WHERE_UNKNOWN,
    Timeline,
    pad_to_pairs,
    sample_frames,
)
from vllm_glm41v_npu.processing.grid import PatchGeometry, smart_resize
from vllm_glm41v_npu.processing.image import cut_patches, resize, to_tensor
from vllm_glm41v_npu.processing.video_metadata import read_metadata
from vllm_glm41v_npu.processing.video_settings import VideoSettings

logger = init_logger(__name__)


@dataclass(frozen=True)
class ProcessedVideo:
    """A video as the engine takes it.

    patches: uint8 [t * h * w, 2 * patch_size**2 * 3], columns (frame of the pair, y, x, channel),
        rows as a picture's, pair by pair.
    grid: (t, h, w), t counted in pairs.
    timestamps: the full second of each pair.
    """

    patches: torch.Tensor
    grid: tuple[int, int, int]
    timestamps: list[int]


@dataclass(frozen=True)
class Selection:
    """The frames to take of a video.

    ``frames_indices`` are counted in the clip; their number is even. ``num_frames`` is the number
    that the size of frames is computed with.
    """

    frames_indices: list[int]
    num_frames: int

    @classmethod
    def of(cls, indices: Sequence[int], is_sampled: bool) -> Selection:
        """Return the selection of these indices, padded to pairs.

        transformers pads frames that it samples before it computes their size, and frames that
        were sampled earlier after it. One frame is a still picture.
        """
        padded = pad_to_pairs(indices)
        return cls(padded, len(padded) if is_sampled else max(2, len(indices)))


def cut_video(
    frames: Iterable[np.ndarray | torch.Tensor],
    selection: Selection,
    timeline: Timeline,
    settings: VideoSettings,
    geometry: PatchGeometry,
    name: str,
) -> ProcessedVideo:
    """Resize and cut ``frames``, RGB [height, width, 3], as they come.

    They are the frames of ``selection``, in order; where the last are missing, the one before is
    repeated.

    Raises:
        ValueError: There is no frame, or `smart_resize` refuses the size.
    """
    pairs = len(selection.frames_indices) // geometry.temporal_patch_size
    cutter: _Cutter | None = None
    taken = 0
    for frame in frames:
        if cutter is None:
            height, width = frame.shape[:2]
            size = smart_resize(
                height, width, geometry, settings.limits, selection.num_frames, name
            )
            cutter = _Cutter(geometry, size, pairs)
        cutter.cut(frame, taken)
        taken += 1
    if cutter is None:
        raise ValueError(f"{name} has no frame that can be decoded. Send a whole video file.")
    for place in range(taken, 2 * pairs):
        cutter.repeat(taken - 1, place)
    return ProcessedVideo(
        cutter.patches.flatten(0, 1),
        geometry.grid(*cutter.size, pairs),
        timeline.seconds(selection.frames_indices),
    )


class _Cutter:
    """Writes frames of any size to their place in the patches of a video."""

    def __init__(self, geometry: PatchGeometry, size: tuple[int, int], pairs: int) -> None:
        self.geometry = geometry
        self.size = size
        _, h, w = geometry.grid(*size)
        self.patches = torch.empty(pairs, h * w, geometry.video_row_size, dtype=torch.uint8)

    def place(self, index: int) -> torch.Tensor:
        """Return the place of frame ``index``: [h * w, patch_size**2 * 3]."""
        pair, slice_ = divmod(index, self.geometry.temporal_patch_size)
        row_size = self.geometry.row_size
        return self.patches[pair, :, slice_ * row_size : (slice_ + 1) * row_size]

    def cut(self, frame: np.ndarray | torch.Tensor, index: int) -> None:
        pixels = frame if isinstance(frame, torch.Tensor) else to_tensor(frame)
        cut_patches(resize(pixels, self.size), self.geometry, self.place(index))

    def repeat(self, index: int, again: int) -> None:
        self.place(again).copy_(self.place(index))


class DecodedVideo(tuple):
    """Frames in memory: a whole clip, or frames that were sampled from one before.

    A tuple of the frames and their facts, because vLLM hashes tuples by their parts.

    Args:
        frames: uint8 RGB [frames, height, width, 3].
        metadata: see `read_metadata`; any key may be missing or None.
        name: the name of the video in messages.

    Raises:
        ValueError: Metadata is out of range, or not of these frames.
    """

    options: Mapping[str, object] = {}

    frames: np.ndarray | torch.Tensor
    name: str
    timeline: Timeline
    frames_indices: Sequence[int]
    has_rate: bool
    do_sample_frames: bool | None

    def __new__(
        cls, frames: np.ndarray | torch.Tensor, metadata: Mapping[str, Any], name: str
    ) -> DecodedVideo:
        found = {key: value for key, value in metadata.items() if value is not None}
        timeline, indices, asked = read_metadata(found, len(frames), name)
        known: dict[str, Any] = {
            "timeline": repr(timeline),
            "frames_indices": list(indices),
            "has_rate": "fps" in found,
            "do_sample_frames": asked,
        }
        video = super().__new__(cls, (frames, known))
        video.frames, video.name = frames, name
        video.timeline, video.frames_indices = timeline, indices
        video.has_rate, video.do_sample_frames = known["has_rate"], known["do_sample_frames"]
        return video

    def process(self, settings: VideoSettings, geometry: PatchGeometry) -> ProcessedVideo:
        """Sample, resize and cut the frames.

        Raises:
            ValueError: They cannot be sampled, or are too many.
        """
        selection, places = self._select(settings)
        frames = (self.frames[place] for place in places)
        return cut_video(frames, selection, self.timeline, settings, geometry, self.name)

    def _select(self, settings: VideoSettings) -> tuple[Selection, Sequence[int]]:
        """Return the frames to take, and their places in `frames`."""
        if self._is_sampled(settings):
            indices = sample_frames(self.timeline, settings, self.name)
            return Selection.of(indices, True), indices
        check_count(len(self.frames), settings, self.name)
        return Selection.of(self.frames_indices, False), range(len(self.frames))

    def _is_sampled(self, settings: VideoSettings) -> bool:
        is_whole = len(self.frames) == self.timeline.total_num_frames
        for asked in (settings.do_sample_frames, self.do_sample_frames):
            if asked is not None:
                break
        else:
            asked = is_whole and self.has_rate
        if asked and not is_whole:
            raise ValueError(
                f"{self.name} has do_sample_frames=true, and {len(self.frames)} frames of a clip "
                f"whose metadata says total_num_frames={self.timeline.total_num_frames}. Give all "
                "frames, or do_sample_frames=false."
            )
        if not self.has_rate:
            logger.warning_once(
                "A video came without metadata: its frames are taken as they are, %g a second, as "
                'transformers does. Give (frames, {"fps": ...}) for other seconds.',
                FPS_WHERE_UNKNOWN,
            )
        return asked


def check_count(count: int, settings: VideoSettings, name: str) -> None:
    """Refuse more frames than ``settings`` allow, where none is to be left out.

    Raises:
        ValueError: There are more.
    """
    if count > settings.frame_limit:
        raise ValueError(
            f"{name} has {count} frames that are not to be sampled; at most "
            f"{settings.frame_limit} are taken. Send fewer, or let them be sampled "
            "(do_sample_frames=true, with the clip's fps)."
        )
