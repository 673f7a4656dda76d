# SPDX-License-Identifier: Apache-2.0
"""Encoded videos: decoded frame by frame by what vLLM decodes with, OpenCV or PyAV.

vLLM's loaders decode all frames to keep before anything is resized: 3.7 GB for 300 s of 1080p.
Here a frame is resized and cut as soon as it is decoded, so that only what the model sees is held.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from vllm.multimodal.video import PyAVVideoBackendMixin, VideoBackend, VideoSourceMetadata

from .grid import PatchGeometry
from .sampling import FPS_WHERE_UNKNOWN, Timeline, VideoSettings, sample_frames
from .settings import SAMPLING_KEYS, logger
from .video import ProcessedVideo, Selection, check_count, cut_video

BACKENDS = ("opencv", "pyav")
_WITHOUT_EFFECT = {"frame_recovery"}
_CHUNK = 16  # frames that PyAV's path of vLLM decodes at a time
_USUAL_FPS = 1000
"""A higher rate in a header is more likely an error than a rate."""
MAX_FRAME_PIXELS = 100_000_000
"""As MindIE's limit of a picture; a decoder takes the memory of a frame before anyone sees it."""


class EncodedVideo(tuple):
    """The bytes of a video file, and how they are to be decoded.

    A tuple of the two, because vLLM hashes tuples by their parts.

    Args:
        data: the file.
        media_io_kwargs: ``backend`` ("opencv" or "pyav") and any of `SAMPLING_KEYS`, as given to
            the server or the request for videos.
        name: what messages call the video.

    Raises:
        ValueError: an unknown key or backend.
    """

    data: bytes
    name: str
    backend: str
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
        video = super().__new__(cls, (data, {"backend": backend, **options}))
        video.data, video.name = data, name
        video.backend, video.options = backend, options
        video._processed = None
        return video

    @cached_property
    def digest(self) -> str:
        """Of the file and the options."""
        options = repr((self.backend, sorted(self.options.items()))).encode()
        return hashlib.blake2b(self.data, key=hashlib.blake2b(options).digest()).hexdigest()

    def process(self, settings: VideoSettings, geometry: PatchGeometry) -> ProcessedVideo:
        """Decode, resize and cut; the same settings again cost nothing.

        Raises:
            ValueError: no video, or none that can be decoded.
        """
        if not self.is_processed(settings, geometry):
            self._processed = (settings, geometry, self._process(settings, geometry))
        assert self._processed is not None
        return self._processed[2]

    def is_processed(self, settings: VideoSettings, geometry: PatchGeometry) -> bool:
        """Whether `process` has been called with these settings last."""
        return self._processed is not None and self._processed[:2] == (settings, geometry)

    @cached_property
    def timeline(self) -> Timeline:
        """What the header says, or what counting the frames says where it says nothing.

        Raises:
            ValueError: no video stream, or no frame.
        """
        source = self._read_header()
        fps, total, duration = source.original_fps, source.total_frames_num, source.duration
        if not math.isfinite(fps) or fps <= 0:
            logger.warning("%s does not say its fps: %g is taken.", self.name, FPS_WHERE_UNKNOWN)
            fps = FPS_WHERE_UNKNOWN
        if fps > _USUAL_FPS:
            logger.warning(
                "%s says %g fps in its header, which is unlikely and leaves few frames of it. "
                "Pass num_frames to take that many whatever it says.",
                self.name,
                fps,
            )
        if total <= 0:
            total = sum(1 for _ in self._grab())
            duration = total / fps
        if total == 0:
            raise self._unreadable("no frame can be decoded")
        return Timeline(total, fps, duration)

    def _process(self, settings: VideoSettings, geometry: PatchGeometry) -> ProcessedVideo:
        is_sampled = settings.do_sample_frames is not False
        wanted = self._wanted(settings, is_sampled)
        found = 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal found
            for frame in self._decode(wanted):
                found += 1
                yield frame

        def cut(frames: Iterator[np.ndarray], indices: list[int]) -> ProcessedVideo:
            selection = Selection.of(indices, is_sampled)
            return cut_video(frames, selection, self.timeline, settings, geometry, self.name)

        video = cut(counted(), wanted)
        if found == len(wanted):
            return video
        logger.warning(
            "%s ends early: %d of %d frames could be decoded.", self.name, found, len(wanted)
        )
        # The size of frames depends on their number, so they are cut again.
        return cut(self._decode(wanted[:found]), wanted[:found])

    def _wanted(self, settings: VideoSettings, is_sampled: bool) -> list[int]:
        """Indices of the frames to decode, each once."""
        if is_sampled:
            return list(dict.fromkeys(sample_frames(self.timeline, settings, self.name)))
        check_count(self.timeline.total_num_frames, settings, self.name)
        return list(range(self.timeline.total_num_frames))

    def _read_header(self) -> VideoSourceMetadata:
        if self.backend == "pyav":
            with self._opened_by_pyav() as container:
                return PyAVVideoBackendMixin.get_metadata(container)
        return VideoBackend.get_video_metadata(self._opened_by_opencv())

    def _decode(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """RGB [height, width, 3] of the frames ``wanted``, ascending, until the file ends."""
        if self.backend == "pyav":
            yield from self._decode_by_pyav(wanted)
            return
        import cv2

        rest = iter(wanted)
        following = next(rest, None)
        for index, capture in enumerate(self._grab()):
            if index == following:
                is_read, frame = capture.retrieve()
                if not is_read:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                following = next(rest, None)
                if following is None:
                    return

    def _grab(self) -> Iterator[Any]:
        """OpenCV's capture, at each frame in turn.

        It closes when nothing refers to it; `release` crashes OpenCV 5.0.0 on data in memory.
        """
        capture = self._opened_by_opencv()
        while capture.grab():
            yield capture

    def _decode_by_pyav(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """By time and not by count, so with a variable frame rate the frames differ."""
        timeline = self.timeline
        for start in range(0, len(wanted), _CHUNK):
            chunk = list(wanted[start : start + _CHUNK])
            with self._opened_by_pyav() as container:  # vLLM's function takes a fresh one
                frames, valid = PyAVVideoBackendMixin.decode_frames(
                    container, chunk, timeline.fps, timeline.duration
                )
            yield from frames
            if len(valid) < len(chunk):
                return

    def _opened_by_opencv(self) -> Any:
        import cv2

        try:
            capture = VideoBackend.open_video_capture(self.data)
        except (ValueError, cv2.error) as error:
            raise self._unreadable(str(error)) from error
        width, height = cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT
        self._check_size(int(capture.get(width)), int(capture.get(height)))
        return capture

    def _opened_by_pyav(self) -> Any:
        try:
            import av
        except ImportError as error:
            raise ValueError(
                'media_io_kwargs asks for backend "pyav", which is not installed here: '
                "pip install av, or leave backend out."
            ) from error

        try:
            container = av.open(BytesIO(self.data))
        except (av.error.FFmpegError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        if not container.streams.video:
            container.close()
            raise self._unreadable("it has no video stream")
        stream = container.streams.video[0]
        self._check_size(stream.width, stream.height)
        return container

    def _check_size(self, width: int, height: int) -> None:
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
