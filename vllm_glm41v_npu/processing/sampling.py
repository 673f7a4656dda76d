# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video the model sees, and at which seconds; `VideoSettings`.

The rule is that of transformers 5.5.4 ``Glm4vVideoProcessor.sample_frames``: 2 frames a second of
at most 300 s, each once, an even number.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vllm_glm41v_npu.checkpoint.processor_files import VIDEOS, unknown_video_class
from vllm_glm41v_npu.processing.grid import PatchGeometry, PixelLimits
from vllm_glm41v_npu.processing.settings import REQUEST_KWARGS, SERVER_KWARGS, PixelSettings, logger

_MOST_FRAMES = 1e9  # beyond any video
_HIGHEST_FPS = 1e6  # no clip has more, and numbers beyond it overflow
FPS_WHERE_UNKNOWN = 24.0
"""Frames a second of a video that does not say, as ``Glm4vProcessor`` assumes."""


@dataclass(frozen=True)
class VideoSettings(PixelSettings):
    """The video settings of a checkpoint, transformers' ``Glm4vVideoProcessor``.

    ``limits`` count the pixels of all frames together. ``num_frames``, where given, is taken
    instead of ``fps``. ``do_sample_frames`` is None where nobody said so: then a whole clip is
    sampled, and frames that were sampled before are taken as they are. ``must_fit`` refuses more
    frames than ``frame_limit`` instead of thinning them out.
    """

    PLACE = VIDEOS

    limits: PixelLimits = PixelLimits(min_pixels=112 * 112, max_pixels=28 * 28 * 2 * 30000)
    fps: float = 2.0
    num_frames: int | None = None
    max_frames: int | None = None
    max_duration: float = 300.0
    do_sample_frames: bool | None = None
    must_fit: bool = False
    refusal: str | None = None
    """Why videos of this checkpoint are not taken."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, object], geometry: PatchGeometry, source: str | None = None
    ) -> VideoSettings:
        problem = unknown_video_class(config)
        settings = super().from_config(config, geometry, source)
        return settings if problem is None else replace(settings, refusal=f"{problem}")

    @property
    def frame_limit(self) -> int:
        """The most frames taken of one video, an even number of at least 2."""
        most = self.max_frames or math.ceil(min(self.max_duration * self.fps, _MOST_FRAMES))
        return max(2, most - most % 2)

    @classmethod
    def of_file(cls, config: Mapping[str, object]) -> dict[str, object]:
        # `num_frames` is in the file too, and transformers does not use it for this model.
        keys = ("fps", "max_duration")
        return super().of_file(config) | {key: config[key] for key in keys if key in config}

    def with_overrides(
        self, overrides: Mapping[str, object], geometry: PatchGeometry, source: str
    ) -> VideoSettings:
        """These settings under some of `PIXEL_KEYS` and `SAMPLING_KEYS`.

        Raises:
            ValueError: a value out of range, or both ``fps`` and ``num_frames``.
        """
        if "fps" in overrides and "num_frames" in overrides:
            raise ValueError(
                f"{source} has both fps={overrides['fps']!r} and "
                f"num_frames={overrides['num_frames']!r}; give one of the two."
            )
        settings = super().with_overrides(overrides, geometry, source)
        changes = {key: overrides[key] for key in _CHECKS if key in overrides}
        for key, value in changes.items():
            is_right, expected = _CHECKS[key]
            if not is_right(value):
                raise ValueError(f"{source} has {key}={value!r}; expected {expected}.")
        if "fps" in changes:
            changes["num_frames"] = None
        return replace(settings, **changes)  # type: ignore[arg-type]

    def within(self, server: VideoSettings) -> VideoSettings:
        """A request's settings, held to the limits the server was started with.

        More frames by a higher ``fps`` are refused when the length of the video is known.

        Raises:
            ValueError: more pixels or more frames asked for than the server takes.
        """
        self.check_max_pixels(server)
        most = server.frame_limit
        for key in ("num_frames", "max_frames"):
            asked = getattr(self, key)
            if asked is not None and asked > most and asked != getattr(server, key):
                raise ValueError(
                    f"{REQUEST_KWARGS} has {key}={asked}, but this server takes at most {most} "
                    f"frames of a video. Ask for less, or start the server with {SERVER_KWARGS} "
                    f"'{{\"max_frames\": {asked}}}'."
                )
        asks_more = self.fps > server.fps and self.max_frames == server.max_frames
        return replace(self, max_frames=min(self.max_frames or most, most), must_fit=asks_more)


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_CHECKS = {
    "fps": (_is_positive, "frames a second, a number above 0"),
    "num_frames": (_is_count, "a whole number of frames, at least 1"),
    "max_frames": (lambda value: _is_count(value) and value > 1, "a whole number, at least 2"),
    "max_duration": (_is_positive, "seconds, a number above 0"),
    "do_sample_frames": (lambda value: isinstance(value, bool), "true or false"),
}


@dataclass(frozen=True)
class Timeline:
    """How long a video is: its number of frames, frames a second, and seconds.

    ``duration`` is 0 where it is not known. ``times`` are the seconds of all frames, ascending
    from 0, where they say more than ``fps`` does; else it is empty.
    """

    total_num_frames: int
    fps: float
    duration: float = 0.0
    times: tuple[float, ...] = field(default=(), repr=False)

    def seconds(self, frames_indices: Sequence[int]) -> list[int]:
        """The full second of the first frame of each temporal pair."""
        if self.times:
            return [int(self.times[index]) for index in frames_indices[::2]]
        return [int(index / self.fps) for index in frames_indices[::2]]

    def frame_at(self, second: float) -> int:
        """The index of the first frame at ``second`` or later, or of the last one."""
        index = bisect_left(self.times, second) if self.times else math.ceil(second * self.fps)
        return min(self.total_num_frames - 1, index)


def sample_frames(timeline: Timeline, settings: VideoSettings, name: str) -> list[int]:
    """Indices of the frames to take: an even number, not descending, the last one twice if need be.

    A clip longer than ``max_duration`` is sampled over its whole length, more thinly. A clip so
    short that the rule takes no frame (where transformers fails) gives its first and last one.

    Raises:
        ValueError: more frames than a request may ask for.
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
    """The last one twice where their number is odd."""
    return [*indices, *indices[len(indices) - len(indices) % 2 :]]


def _every(timeline: Timeline, duration: float, fps: float) -> list[int]:
    """Indices of ``fps`` frames a second over ``duration``. Whoever asks for more than there are
    gets each frame once, and it takes no longer."""
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
