# SPDX-License-Identifier: Apache-2.0
"""Videos in the media connector: an `EncodedVideo`, decoded in the thread that fetched it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import pybase64
from PIL import Image, UnidentifiedImageError
from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

from .encoded_video import EncodedVideo
from .grid import PatchGeometry
from .sampling import VideoSettings

_JPEG_FRAMES = "video/jpeg"  # vLLM's media type for frames sent one by one
_REMEMBERED = 256
_MAX_PIXELS = 500_000_000
"""Of all frames that are sent one by one, which vLLM decodes before anything is resized: 1.5 GB."""


class EncodedVideoIO(VideoMediaIO):
    """Makes an `EncodedVideo` of a file, and leaves frames sent one by one to vLLM.

    ``options`` are ``media_io_kwargs`` for videos.
    """

    def __init__(
        self,
        image_io: ImageMediaIO,
        prepare: Callable[[EncodedVideo], None] | None,
        **options: Any,
    ) -> None:
        # Without a number vLLM would take the first 32 of frames sent one by one.
        super().__init__(image_io, **{"num_frames": -1, **options})
        self.options = options
        self.prepare = prepare

    def load_bytes(self, data: bytes) -> Any:
        video = EncodedVideo(data, self.options)
        if self.prepare is not None:
            self.prepare(video)
        return video

    def load_base64(self, media_type: str, data: str) -> Any:
        if media_type.lower() == _JPEG_FRAMES:
            _check_frames(data.split(","))
            return super().load_base64(media_type, data)
        return self.load_bytes(pybase64.b64decode(data))

    def load_file(self, filepath: Path) -> Any:
        return self.load_bytes(filepath.read_bytes())


class Preparation:
    """Decodes a video in the thread that fetched it, unless the same was seen not long ago.

    vLLM's processor does its work in one thread for all requests, where decoding would hold up
    the others. A video seen before is likely in the processor's cache, and need not be decoded at
    all; if it is not, the processor decodes it after all.
    """

    def __init__(
        self, settings_of: Callable[[EncodedVideo], VideoSettings], geometry: PatchGeometry
    ) -> None:
        self.settings_of = settings_of
        self.geometry = geometry
        self._seen: OrderedDict[tuple[str, VideoSettings], None] = OrderedDict()
        self._lock = Lock()

    def __call__(self, video: EncodedVideo) -> None:
        settings = self.settings_of(video)
        key = video.digest, settings
        with self._lock:
            if key in self._seen:
                self._seen.move_to_end(key)
                return
        video.process(settings, self.geometry)
        with self._lock:
            self._seen[key] = None
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)

    def forget(self, video: EncodedVideo) -> None:
        """The processor's cache had it no longer."""
        with self._lock:
            for key in [key for key in self._seen if key[0] == video.digest]:
                del self._seen[key]


def _check_frames(frames: list[str]) -> None:
    """Raise ValueError if frames in base64 are no pictures, or too large together."""
    pixels = 0
    for frame in frames:
        try:
            with Image.open(BytesIO(pybase64.b64decode(frame))) as picture:  # the header alone
                pixels += picture.width * picture.height
        except UnidentifiedImageError as error:
            raise ValueError("A frame is no JPEG; expected them in base64, with commas.") from error
        if pixels > _MAX_PIXELS:
            raise ValueError(
                f"The frames have over {_MAX_PIXELS:,} pixels together. Send a video file, which "
                "is decoded frame by frame, or smaller frames."
            )
