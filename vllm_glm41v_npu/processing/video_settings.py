# SPDX-License-Identifier: Apache-2.0
"""The settings of videos, by a checkpoint's files and by ``mm_processor_kwargs``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm_glm41v_npu.checkpoint.processor_files import VIDEOS, unknown_video_class
from vllm_glm41v_npu.processing.grid import PatchGeometry, PixelLimits
from vllm_glm41v_npu.processing.pixel_settings import REQUEST_KWARGS, SERVER_KWARGS, PixelSettings

_MOST_FRAMES = 1e9  # beyond any video


@dataclass(frozen=True)
class VideoSettings(PixelSettings):
    """The video settings of a checkpoint, transformers' ``Glm4vVideoProcessor``.

    ``limits`` count the pixels of all frames together. ``num_frames``, where given, is used
    instead of ``fps``. ``do_sample_frames`` is None where it is not set: then a whole clip is
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
    """The reason why videos of this checkpoint are refused, or None."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, object], geometry: PatchGeometry, source: str | None = None
    ) -> VideoSettings:
        problem = unknown_video_class(config)
        settings = super().from_config(config, geometry, source)
        return settings if problem is None else replace(settings, refusal=f"{problem}")

    @property
    def frame_limit(self) -> int:
        """The most frames of one video, an even number of at least 2."""
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
        """Return these settings with some of `PIXEL_KEYS` and `SAMPLING_KEYS` changed.

        Raises:
            ValueError: A value is out of range, or both ``fps`` and ``num_frames`` are given.
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
        """Return a request's settings, held to the limits the server was started with.

        More frames by a higher ``fps`` are refused later, when the length of the video is known.

        Raises:
            ValueError: It asks for more pixels or frames than the server takes.
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
