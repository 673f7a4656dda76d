# SPDX-License-Identifier: Apache-2.0
"""vLLM's loader of pictures and videos by URL: videos resized as they are decoded, and clearer
answers to bad files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import pybase64
from PIL import Image, UnidentifiedImageError
from vllm import envs
from vllm.multimodal.media import (
    MEDIA_CONNECTOR_REGISTRY,
    ImageMediaIO,
    MediaConnector,
    VideoMediaIO,
)

from .encoded_video import EncodedVideo
from .grid import PatchGeometry
from .sampling import VideoSettings

_VIDEO_PROCESSORS = (None, "Glm4vVideoProcessor")
_JPEG_FRAMES = "video/jpeg"  # vLLM's media type for frames sent one by one
_REMEMBERED = 256


@MEDIA_CONNECTOR_REGISTRY.register("http")
class Glm41vMediaConnector(MediaConnector):
    """Takes the place of vLLM's default connector in processes that import this module.

    Videos of this model come out as an `EncodedVideo`; those of other models, and those for which
    a loader of vLLM's is named (``video_backend``, VLLM_VIDEO_LOADER_BACKEND), as ever.

    Pillow's refusal of a decompression bomb is no ``ValueError`` nor ``OSError``, so vLLM 0.23.0
    answers it with 500, as if the server had failed; here the caller is told (400). And of a file
    that is no picture, vLLM's message says only at which address in memory it was.
    """

    prepare: ClassVar[Callable[[EncodedVideo], None] | None] = None
    """Called with each video in the thread that fetched it."""

    def fetch_image(self, image_url: str, **kwargs: Any) -> Image.Image:
        with _clear_refusals():
            return super().fetch_image(image_url, **kwargs)

    async def fetch_image_async(self, image_url: str, **kwargs: Any) -> Image.Image:
        with _clear_refusals():
            return await super().fetch_image_async(image_url, **kwargs)

    def fetch_video(self, video_url: str, **kwargs: Any) -> Any:
        video_io = self._video_io(**kwargs)
        if video_io is None:
            return super().fetch_video(video_url, **kwargs)
        timeout = envs.VLLM_VIDEO_FETCH_TIMEOUT
        return self.load_from_url(video_url, video_io, fetch_timeout=timeout)

    async def fetch_video_async(self, video_url: str, **kwargs: Any) -> Any:
        video_io = self._video_io(**kwargs)
        if video_io is None:
            return await super().fetch_video_async(video_url, **kwargs)
        timeout = envs.VLLM_VIDEO_FETCH_TIMEOUT
        return await self.load_from_url_async(video_url, video_io, fetch_timeout=timeout)

    def _video_io(
        self, image_mode: str = "RGB", video_processor: str | None = None
    ) -> EncodedVideoIO | None:
        options = self.media_io_kwargs.get("video", {})
        names_loader = "video_backend" in options or envs.is_set("VLLM_VIDEO_LOADER_BACKEND")
        if names_loader or self.prepare is None or video_processor not in _VIDEO_PROCESSORS:
            return None
        image_io = ImageMediaIO(image_mode=image_mode, **self.media_io_kwargs.get("image", {}))
        return EncodedVideoIO(image_io, type(self).prepare, **options)


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


@contextmanager
def _clear_refusals() -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"The picture was not decoded: {error} Send a smaller picture.") from error
    except ValueError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        raise ValueError(
            "The file is not a picture of a kind that Pillow reads, whatever its name says; "
            "expected PNG, JPEG, WebP or the like. Check what was sent."
        ) from error
