# SPDX-License-Identifier: Apache-2.0
"""Encoded videos: a file's bytes, decoded frame by frame.

vLLM's loaders decode all frames to keep before anything is resized: 3.7 GB for 300 s of 1080p.
Here a frame is resized and cut as soon as it is decoded, so that only what the model sees is held.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from vllm.logger import init_logger

from vllm_glm41v_npu.processing.containers import KNOWN, format_of
from vllm_glm41v_npu.processing.decode_time import TooMuchWork
from vllm_glm41v_npu.processing.frame_sampling import FPS_WHERE_UNKNOWN, Timeline, sample_frames
from vllm_glm41v_npu.processing.grid import PatchGeometry, smart_resize
from vllm_glm41v_npu.processing.mp4_tables import claims_too_much
from vllm_glm41v_npu.processing.pixel_settings import SAMPLING_KEYS
from vllm_glm41v_npu.processing.video import ProcessedVideo, Selection, check_count, cut_video
from vllm_glm41v_npu.processing.video_reader import (
    MAX_FRAMES,
    DecodeError,
    FrameTimes,
    Header,
    VideoReader,
)
from vllm_glm41v_npu.processing.video_settings import VideoSettings

logger = init_logger(__name__)

BACKENDS = ("opencv", "pyav")
"""vLLM's names of its decoders. Both are FFmpeg, and both names mean PyAV's here: OpenCV's decoder
can neither be held to a list of formats nor interrupted."""
_WITHOUT_EFFECT = {"frame_recovery"}
_USUAL_FPS = 1000
"""A higher rate in a header is more likely an error than a rate."""
MAX_FRAME_PIXELS = 100_000_000
"""The most pixels of a frame, MindIE's limit of a picture; a decoder holds whole frames."""
_FRAMES_IN_DECODER = 8  # frames it refers to, and frames it decodes side by side
_BYTES_OF_PIXEL = 2  # in the decoder; 3 more in RGB, and 3 in the resized frame


class EncodedVideo(tuple):
    """The bytes of a video file, and the options of decoding them.

    A tuple of the two, because vLLM hashes tuples by their parts.

    Args:
        data: the file.
        media_io_kwargs: ``backend`` (one of `BACKENDS`) and any of `SAMPLING_KEYS`, as given to
            the server or the request for videos.
        name: the name of the video in messages.

    Raises:
        ValueError: A key or the backend is unknown.
    """

    data: bytes
    name: str
    options: dict[str, Any]
    _processed: tuple[VideoSettings, PatchGeometry, ProcessedVideo] | None

    def __new__(
        cls,
        data: bytes,
        media_io_kwargs: Mapping[str, Any] | None = None,
        name: str = "The video",
    ) -> EncodedVideo:
        options = dict(media_io_kwargs or {})
        backend = options.pop("backend", BACKENDS[0])
        unknown = sorted(options.keys() - SAMPLING_KEYS - _WITHOUT_EFFECT)
        if unknown or backend not in BACKENDS:
            raise ValueError(
                f"media_io_kwargs for videos has {', '.join(unknown) or f'{backend=!s}'}; "
                f"expected backend ({' or '.join(BACKENDS)}), {', '.join(sorted(SAMPLING_KEYS))}."
            )
        # vLLM writes -1 where no number is asked for.
        options = {k: v for k, v in options.items() if k in SAMPLING_KEYS and v != -1}
        video = super().__new__(cls, (data, options))
        video.data, video.name, video.options = data, name, options
        video._processed = None
        return video

    @cached_property
    def digest(self) -> str:
        """Hash of the file and the options."""
        options = repr(sorted(self.options.items())).encode()
        return hashlib.blake2b(self.data, key=hashlib.blake2b(options).digest()).hexdigest()

    def process(self, settings: VideoSettings, geometry: PatchGeometry) -> ProcessedVideo:
        """Decode, resize and cut; the same settings again cost nothing.

        Raises:
            ValueError: It is no video, cannot be decoded, or takes too long.
        """
        if not self.is_processed(settings, geometry):
            self._processed = (settings, geometry, self._process(settings, geometry))
        assert self._processed is not None
        return self._processed[2]

    def is_processed(self, settings: VideoSettings, geometry: PatchGeometry) -> bool:
        """Return True where the last call of `process` had these settings."""
        return self._processed is not None and self._processed[:2] == (settings, geometry)

    def cost(self, settings: VideoSettings, geometry: PatchGeometry) -> tuple[int, int]:
        """Return the most bytes that `process` takes, and the bytes that stay of it.

        Raises:
            ValueError: As in `process`, as far as headers show it.
        """
        is_sampled = settings.do_sample_frames is not False
        selection = Selection.of(self._wanted(settings, is_sampled), is_sampled)
        width, height = self.header.width, self.header.height
        size = smart_resize(
            height, width, geometry, settings.limits, selection.num_frames, self.name
        )
        held = 3 * math.prod(size) * len(selection.frames_indices)
        frame = width * height * (_FRAMES_IN_DECODER * _BYTES_OF_PIXEL + 6)
        return held + frame + 6 * math.prod(size), held

    @property
    def header(self) -> Header:
        """The header of the file."""
        return self._measures[0]

    @property
    def timeline(self) -> Timeline:
        """The timeline by the header, or by the times of the frames where the header says nothing,
        or an impossible number.

        Raises:
            ValueError: There is no video stream, or no frame.
        """
        return self._measures[1]

    @cached_property
    def _measures(self) -> tuple[Header, Timeline, FrameTimes | None]:
        with self._opened() as reader:
            header = reader.header()
            self._check_size(header.width, header.height)
            timeline, times = self._measure(header, reader)
        if timeline.total_num_frames == 0:
            raise self._unreadable("no frame can be decoded")
        if timeline.fps > _USUAL_FPS:
            logger.warning(
                "%s says %g fps in its header, which is unlikely and leaves few frames of it. "
                "Pass num_frames to take that many whatever it says.",
                self.name,
                timeline.fps,
            )
        return header, timeline, times

    def _measure(self, header: Header, reader: VideoReader) -> tuple[Timeline, FrameTimes | None]:
        """Return the timeline, and the times of frames where they tell which frame is which."""
        fps, total = header.fps, header.frames
        if 0 < total <= len(self.data) and fps > 0:
            if total > MAX_FRAMES:
                raise TooMuchWork(f"it has over {MAX_FRAMES:,} frames. Send a part of it")
            return Timeline(total, fps, total / fps), None
        times = reader.times()
        estimated = math.floor(header.seconds * fps + 0.5)
        if fps > 0 and abs(estimated - times.count) <= max(1, times.count // 50):
            # As OpenCV has it, and so transformers.
            return Timeline(estimated, fps, estimated / fps), None
        if times.seconds:
            length = times.seconds[-1]
            step = length / (times.count - 1)
            return Timeline(times.count, 1 / step, length + step, times.seconds), times
        if fps <= 0:
            logger.warning("%s does not say its fps: %g is taken.", self.name, FPS_WHERE_UNKNOWN)
            fps = FPS_WHERE_UNKNOWN
        return Timeline(times.count, fps, times.count / fps), None

    def _process(self, settings: VideoSettings, geometry: PatchGeometry) -> ProcessedVideo:
        is_sampled = settings.do_sample_frames is not False
        wanted = self._wanted(settings, is_sampled)
        found = 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal found
            for frame in self._decode(wanted):
                found += 1
                yield frame
            if found == 0:
                raise self._unreadable(f"no frame of its {self.header.codec} can be decoded")

        def cut(frames: Iterator[np.ndarray], indices: list[int]) -> ProcessedVideo:
            selection = Selection.of(indices, is_sampled)
            return cut_video(frames, selection, self.timeline, settings, geometry, self.name)

        with self._enough_memory():
            video = cut(counted(), wanted)
            if found == len(wanted):
                return video
            logger.warning(
                "%s ends early: %d of %d frames could be decoded.", self.name, found, len(wanted)
            )
            # The size of frames depends on their number, so they are cut again.
            return cut(self._decode(wanted[:found]), wanted[:found])

    def _wanted(self, settings: VideoSettings, is_sampled: bool) -> list[int]:
        """Return the indices of the frames to decode, each once."""
        if is_sampled:
            return list(dict.fromkeys(sample_frames(self.timeline, settings, self.name)))
        check_count(self.timeline.total_num_frames, settings, self.name)
        return list(range(self.timeline.total_num_frames))

    def _decode(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames ``wanted``, uint8 RGB [height, width, 3], until the file ends."""
        times = self._measures[2]
        with self._opened() as reader:
            yield from reader.frames(wanted, times)

    @contextmanager
    def _opened(self) -> Iterator[VideoReader]:
        demuxer = format_of(self.data)
        if demuxer is None:
            raise self._unreadable(f"by its first bytes it is none of {KNOWN}")
        if demuxer == "mov" and claims_too_much(self.data):
            raise self._unreadable("its header claims more frames or sound than can be read")
        try:
            with self._enough_memory(), VideoReader(self.data, demuxer, MAX_FRAME_PIXELS) as reader:
                yield reader
        except TooMuchWork as error:
            raise ValueError(f"{self.name} was not decoded: {error}.") from error
        except DecodeError as error:
            raise self._unreadable(str(error)) from error

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                raise
            raise ValueError(
                f"{self.name} was not decoded: the server is out of memory for its frames. Send "
                "it again later, or a smaller one."
            ) from error

    def _check_size(self, width: int, height: int) -> None:
        if width * height == 0:  # FFmpeg drops a size beyond its limit
            raise self._unreadable(
                f"its frames have no size, or over {MAX_FRAME_PIXELS:,} pixels each"
            )
        if width * height > MAX_FRAME_PIXELS:
            raise ValueError(
                f"{self.name} is {width} x {height}, over {MAX_FRAME_PIXELS:,} pixels a frame. "
                "Send a smaller one."
            )

    def _unreadable(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.name} cannot be decoded ({reason}); its {len(self.data)} bytes are no video, "
            "have no video stream, or are truncated. Send it again, as MP4 with H.264."
        )
