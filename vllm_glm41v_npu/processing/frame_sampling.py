# SPDX-License-Identifier: Apache-2.0
"""Frame sampling: which frames of a video the model sees, and at which seconds.

The rule is that of transformers 5.5.4 ``Glm4vVideoProcessor.sample_frames``: 2 frames a second of
at most 300 s, each once, an even number.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from vllm.logger import init_logger

from vllm_glm41v_npu.processing.video_settings import VideoSettings

_HIGHEST_FPS = 1e6  # no clip has more, and numbers beyond it overflow
FPS_WHERE_UNKNOWN = 24.0
"""Frames a second of a video that does not say, as ``Glm4vProcessor`` assumes."""

logger = init_logger(__name__)


@dataclass(frozen=True)
class Timeline:
    """The length of a video: its number of frames, frames a second, and seconds.

    ``duration`` is 0 where it is not known. ``times`` are the seconds of all frames, ascending
    from 0, where they are more exact than ``fps``; else it is empty.
    """

    total_num_frames: int
    fps: float
    duration: float = 0.0
    times: tuple[float, ...] = field(default=(), repr=False)

    def seconds(self, frames_indices: Sequence[int]) -> list[int]:
        """Return the full second of the first frame of each temporal pair."""
        if self.times:
            return [int(self.times[index]) for index in frames_indices[::2]]
        return [int(index / self.fps) for index in frames_indices[::2]]

    def frame_at(self, second: float) -> int:
        """Return the index of the first frame at ``second`` or later, or of the last one."""
        index = bisect_left(self.times, second) if self.times else math.ceil(second * self.fps)
        return min(self.total_num_frames - 1, index)


def sample_frames(timeline: Timeline, settings: VideoSettings, name: str) -> list[int]:
    """Return the indices of the frames to take, ascending, an even number: the last may be twice.

    A clip longer than ``max_duration`` is sampled over its whole length, more thinly. A clip so
    short that the rule takes no frame (where transformers fails) gives its first and last one.

    Raises:
        ValueError: They are more frames than a request may ask for.
    """
    last = timeline.total_num_frames - 1
    duration = timeline.duration or round(last / timeline.fps) + 1
    if settings.num_frames is not None:
        count = settings.num_frames
        indices = [index * timeline.total_num_frames // count for index in range(count)]
    elif duration <= settings.max_duration:
        indices = _every(timeline, duration, settings.fps)
    else:
        wanted = settings.max_duration * settings.fps
        if wanted >= timeline.total_num_frames:
            indices = list(range(timeline.total_num_frames))
        else:
            seconds = np.linspace(0, duration, int(wanted))
            indices = [timeline.frame_at(second) for second in seconds.tolist()]
        logger.warning(
            "%s lasts %.1f s, more than max_duration=%g: %d frames spread over all of it are kept.",
            name,
            duration,
            settings.max_duration,
            len(indices),
        )
    indices = list(dict.fromkeys(indices)) or sorted({0, last})
    return pad_to_pairs(_thinned(indices, settings, name))


def pad_to_pairs(indices: Sequence[int]) -> list[int]:
    """Return the indices, with the last one twice where their number is odd."""
    return [*indices, *indices[len(indices) - len(indices) % 2 :]]


def _every(timeline: Timeline, duration: float, fps: float) -> list[int]:
    """Return the indices of ``fps`` frames a second over ``duration``.

    A request for more frames than there are gets each frame once, in the same time.
    """
    last, own = timeline.total_num_frames - 1, timeline.fps
    fps = min(fps, max(own, _HIGHEST_FPS))
    if timeline.times:
        most = duration * fps
        slots = [min(math.floor(second * fps), most - 1) for second in timeline.times]
        return [i for i, slot in enumerate(slots) if i == 0 or slot > slots[i - 1]]
    # What comes later than the last frame is the last frame, and need not be counted out.
    count = math.floor(min(duration * fps, math.ceil(last * fps / own) + 2))
    if fps >= own and count:
        return list(range(min(last, math.ceil((count - 1) * own / fps)) + 1))
    return [min(last, math.ceil(index * own / fps)) for index in range(count)]


def _thinned(indices: list[int], settings: VideoSettings, name: str) -> list[int]:
    most = settings.frame_limit
    if len(indices) <= most:
        return indices
    if settings.must_fit:
        raise ValueError(
            f"{name} has {len(indices)} frames at fps={settings.fps:g}, but this server takes at "
            f"most {most} of a video. Ask for fps={settings.fps * most / len(indices):.3g} or "
            f"less, or for num_frames or max_frames, up to {most}."
        )
    logger.warning(
        "%s has %d frames to take, more than max_frames=%d: these many, evenly spread, are kept.",
        name,
        len(indices),
        most,
    )
    kept = np.linspace(0, len(indices) - 1, most).round().astype(int)
    return [indices[place] for place in kept]
