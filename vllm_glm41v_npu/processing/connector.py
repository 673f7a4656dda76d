# SPDX-License-Identifier: Apache-2.0
"""The media connector: loads the pictures and videos of a request by URL, within its budget.

It takes the place of vLLM's own. A URL is a data URL (`data_urls`), a file in the allowed folder
(`allowed_files`), or fetched by http (`fetching`). A failure there is the caller's error (400);
vLLM 0.23.0 answers some with 500.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO, MediaConnector
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import global_thread_pool

from vllm_glm41v_npu.processing.allowed_files import find_file, path_of, read_file
from vllm_glm41v_npu.processing.budget import Plan, process_budget
from vllm_glm41v_npu.processing.data_urls import is_data_url, split_data_url
from vllm_glm41v_npu.processing.downloads import claim, download
from vllm_glm41v_npu.processing.fetching import fetch, fetch_async
from vllm_glm41v_npu.processing.limits import max_file_bytes
from vllm_glm41v_npu.processing.media_io import PictureIO, PlannedIO, video_io
from vllm_glm41v_npu.processing.prefetch import Prefetch
from vllm_glm41v_npu.processing.refusals import MediaRefused, callers_error


def register_connector(prefetch: Prefetch, video_backend: str | None) -> None:
    """Have vLLM load the media of this process by `Glm41vMediaConnector`.

    Called when the processor of a served model is made, and not by the plugin's list: processes
    that serve other models keep vLLM's connector, and only here the model's settings are known.

    Args:
        prefetch: Decodes videos with the settings of the served model.
        video_backend: The loader of vLLM's that the server was started with, if any.
    """
    connector: Any = partial(
        Glm41vMediaConnector, prefetch=prefetch, server_video_backend=video_backend
    )
    MEDIA_CONNECTOR_REGISTRY.register("http")(connector)  # vLLM only calls it


class Glm41vMediaConnector(MediaConnector):
    """Loads pictures as RGB, and videos of this model as an `EncodedVideo`.

    Each is loaded in steps, so that memory is known before it is taken, and no thread waits for it:
    the file, its header (a `Plan`), and the decoding; see budget.py. Videos of other models are
    loaded by vLLM's own loaders; see `video_io`.

    Args:
        prefetch, server_video_backend: As in `register_connector`.
        arguments: vLLM's.
    """

    def __init__(
        self,
        *arguments: Any,
        prefetch: Prefetch | None = None,
        server_video_backend: str | None = None,
        **named_arguments: Any,
    ) -> None:
        super().__init__(*arguments, **named_arguments)
        self.prefetch = prefetch
        self.server_video_backend = server_video_backend

    def fetch_image(self, image_url: str, *, image_mode: str = "RGB") -> Any:
        with callers_error():
            timeout = envs.VLLM_IMAGE_FETCH_TIMEOUT
            return self.load_from_url(image_url, self._image_io(), fetch_timeout=timeout)

    async def fetch_image_async(self, image_url: str, *, image_mode: str = "RGB") -> Any:
        with callers_error():
            timeout = envs.VLLM_IMAGE_FETCH_TIMEOUT
            return await self.load_from_url_async(
                image_url, self._image_io(), fetch_timeout=timeout
            )

    def fetch_video(self, video_url: str, **kwargs: Any) -> Any:
        with callers_error():
            timeout = envs.VLLM_VIDEO_FETCH_TIMEOUT
            return self.load_from_url(video_url, self._video_io(**kwargs), fetch_timeout=timeout)

    async def fetch_video_async(self, video_url: str, **kwargs: Any) -> Any:
        with callers_error():
            timeout = envs.VLLM_VIDEO_FETCH_TIMEOUT
            return await self.load_from_url_async(
                video_url, self._video_io(**kwargs), fetch_timeout=timeout
            )

    def _image_io(self) -> PictureIO:
        return PictureIO(**self.media_io_kwargs.get("image", {}))

    def _video_io(
        self, image_mode: str = "RGB", video_processor: str | None = None
    ) -> MediaIO[Any]:
        return video_io(
            self.media_io_kwargs,
            video_processor,
            image_mode,
            self.prefetch,
            self.server_video_backend,
        )

    def load_from_url(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        """Load a medium without a budget: this caller has nobody else to wait for."""
        url = _stripped(url)
        if not _is_remote(url):
            return self._plan_here(url, media_io).decode()
        data = self._get_cached_bytes(url)
        if data is None:
            data = fetch(url, self.allowed_media_domains, _limit(media_io), fetch_timeout)
            self._put_cached_bytes(url, data)
        return _plan(media_io, data).decode()

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        """Load a medium within the budget of its request; wait while the process has none left."""
        url = _stripped(url)
        with process_budget().request() as share:
            if _is_remote(url):
                fetched = partial(self._fetch, url, media_io, fetch_timeout)
                data, lease = await download(share, fetched)
                read = partial(_plan, media_io, data)
            else:
                size, text = await self._size_here(url, media_io)
                lease = await share.take(size + text, size)
                read = partial(self._plan_here, url, media_io)
            plan = await lease.run(read, global_thread_pool)
            lease.shrink()
            lease = await share.take(plan.peak, plan.held)
            medium = await lease.run(plan.decode, global_thread_pool)
            lease.shrink()
            return medium

    async def _fetch(self, url: str, media_io: MediaIO[Any], fetch_timeout: int | None) -> bytes:
        """Return the file of a URL, from vLLM's cache where VLLM_MEDIA_CACHE is set."""
        data = await _in_thread(self._get_cached_bytes, url)
        if data is not None:
            claim(len(data), is_all=True)
            return data
        allowed = self.allowed_media_domains
        data = await fetch_async(url, allowed, _limit(media_io), fetch_timeout)
        await _in_thread(self._put_cached_bytes, url, data)
        return data

    async def _size_here(self, url: str, media_io: MediaIO[Any]) -> tuple[int, int]:
        """Return the bytes of a data or file URL's file, and those that reading it takes beside."""
        if is_data_url(url):  # base64 is 4 letters for 3 bytes, and is copied once while it is read
            return len(url) * 3 // 4, len(url)
        return await _in_thread(self._file_size, url, media_io), 0

    def _file_size(self, url: str, media_io: MediaIO[Any]) -> int:
        return find_file(path_of(url), self._folder, _limit(media_io)).stat().st_size

    def _plan_here(self, url: str, media_io: MediaIO[Any]) -> Plan[Any]:
        """Plan the medium of a data or file URL."""
        limit = _limit(media_io)
        if not is_data_url(url):
            return _plan(media_io, read_file(path_of(url), self._folder, limit))
        media_type, text = split_data_url(url, limit)
        if isinstance(media_io, PlannedIO):
            return media_io.plan_base64(media_type, text)
        return Plan(0, 0, lambda: media_io.load_base64(media_type, text))

    @property
    def _folder(self) -> Path:
        if self.allowed_local_media_path is None:
            raise MediaRefused(
                "Files of this machine are not read unless the server is started with "
                "--allowed-local-media-path. Send the file in the request, as a data URL."
            )
        return self.allowed_local_media_path


async def _in_thread(work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(global_thread_pool, work, *args)


def _stripped(url: str) -> str:
    """Return a URL without the spaces around it, as browsers take it."""
    if not isinstance(url, str):  # vLLM does not look at parts that have no "type"
        raise MediaRefused(f"A URL is {url!r:.80}; expected a string.")
    return url.strip()


def _is_remote(url: str) -> bool:
    """Return True for a URL to fetch; `fetch` refuses those of an unknown kind."""
    return not is_data_url(url) and url[:5].lower() != "file:"


def _limit(media_io: MediaIO[Any]) -> int:
    return max_file_bytes("image" if isinstance(media_io, ImageMediaIO) else "video")


def _plan(media_io: MediaIO[Any], data: bytes) -> Plan[Any]:
    if isinstance(media_io, PlannedIO):
        return media_io.plan(data)
    return Plan(0, 0, lambda: media_io.load_bytes(data))  # a loader of vLLM's plans nothing
