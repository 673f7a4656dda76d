# SPDX-License-Identifier: Apache-2.0
"""vLLM's loader of pictures and videos by URL: guarded, and with clearer answers to bad files."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from PIL import Image, UnidentifiedImageError
from vllm import envs
from vllm.multimodal.media import (
    MEDIA_CONNECTOR_REGISTRY,
    ImageMediaIO,
    MediaConnector,
)
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import global_thread_pool

from .encoded_video import EncodedVideo
from .fetching import MediaRefused, fetch, fetch_async, max_bytes, read_file, split_data_url
from .refusals import callers_error
from .video_loading import EncodedVideoIO

_VIDEO_PROCESSORS = (None, "Glm4vVideoProcessor")


@MEDIA_CONNECTOR_REGISTRY.register("http")
class Glm41vMediaConnector(MediaConnector):
    """Takes the place of vLLM's default connector in processes that import this module.

    What it loads from where is checked in fetching.py; what fails there is the caller's error
    (400), where vLLM 0.23.0 answers some with 500.

    Videos of this model come out as an `EncodedVideo`; those of other models, and those for which
    a loader of vLLM's is named (``video_backend``, VLLM_VIDEO_LOADER_BACKEND), as ever.

    Pillow's refusal of a decompression bomb is no ``ValueError`` nor ``OSError``, so vLLM 0.23.0
    answers it with 500, as if the server had failed; here the caller is told (400). And of a file
    that is no picture, vLLM's message says only at which address in memory it was.
    """

    prepare: ClassVar[Callable[[EncodedVideo], None] | None] = None
    """Called with each video in the thread that fetched it."""

    def load_from_url(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        if not _is_remote(url):
            return self._load_here(url, media_io)
        data = self._get_cached_bytes(url)
        if data is None:
            data = fetch(url, self.allowed_media_domains, _limit(media_io), fetch_timeout)
            self._put_cached_bytes(url, data)
        return media_io.load_bytes(data)

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        def in_thread(function: Callable[..., Any], *args: Any) -> Any:
            return asyncio.get_running_loop().run_in_executor(global_thread_pool, function, *args)

        if not _is_remote(url):
            return await in_thread(self._load_here, url, media_io)
        data = await in_thread(self._get_cached_bytes, url)
        if data is None:
            allowed = self.allowed_media_domains
            data = await fetch_async(url, allowed, _limit(media_io), fetch_timeout)
            await in_thread(self._put_cached_bytes, url, data)
        return await in_thread(media_io.load_bytes, data)

    def _load_here(self, url: str, media_io: MediaIO[Any]) -> Any:
        """Of a data or file URL."""
        if url[:5].lower() == "data:":
            media_type, data = split_data_url(url, _limit(media_io))
            try:
                return media_io.load_base64(media_type, data)
            except binascii.Error as error:
                raise MediaRefused(
                    f"A data URL is not in base64 ({error}); expected letters, digits, + and / "
                    "after the comma, and = at the end. Check whether it was cut off."
                ) from error
        folder = self.allowed_local_media_path
        if folder is None:
            raise MediaRefused(
                "Files of this machine are not read unless the server is started with "
                "--allowed-local-media-path. Send the file in the request, as a data URL."
            )
        parts = urlsplit(url)
        path = Path(unquote(parts.netloc.replace("localhost", "") + parts.path))
        return media_io.load_bytes(read_file(path, folder, _limit(media_io)))

    def fetch_image(self, image_url: str, **kwargs: Any) -> Image.Image:
        with callers_error(), _clear_refusals():
            return super().fetch_image(image_url, **kwargs)

    async def fetch_image_async(self, image_url: str, **kwargs: Any) -> Image.Image:
        with callers_error(), _clear_refusals():
            return await super().fetch_image_async(image_url, **kwargs)

    def fetch_video(self, video_url: str, **kwargs: Any) -> Any:
        with callers_error():
            video_io = self._video_io(**kwargs)
            if video_io is None:
                return super().fetch_video(video_url, **kwargs)
            timeout = envs.VLLM_VIDEO_FETCH_TIMEOUT
            return self.load_from_url(video_url, video_io, fetch_timeout=timeout)

    async def fetch_video_async(self, video_url: str, **kwargs: Any) -> Any:
        with callers_error():
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


def _is_remote(url: str) -> bool:
    """Whether a URL is to be fetched; `fetch` refuses what is of no kind known here."""
    if not isinstance(url, str):  # vLLM does not look at parts that have no "type"
        raise MediaRefused(f"A URL is {url!r:.80}; expected a string.")
    return url[:5].lower() not in ("data:", "file:")


def _limit(media_io: MediaIO[Any]) -> int:
    kind = "IMAGE" if isinstance(media_io, ImageMediaIO) else "VIDEO"
    return max_bytes(f"VLLM_GLM41V_NPU_MAX_{kind}_MB")


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
