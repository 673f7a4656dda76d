# SPDX-License-Identifier: Apache-2.0
"""vLLM's loader of pictures and videos by URL: guarded, and with clearer answers to bad files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from vllm import envs
from vllm.multimodal.media import (
    MEDIA_CONNECTOR_REGISTRY,
    ImageMediaIO,
    MediaConnector,
)
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import global_thread_pool
from vllm.multimodal.video import get_video_loader_backend_for_processor

from vllm_glm41v_npu.processing.budget import Plan, process_budget
from vllm_glm41v_npu.processing.downloads import claim, download
from vllm_glm41v_npu.processing.fetching import (
    MediaRefused,
    fetch,
    fetch_async,
    find_file,
    max_bytes,
    read_file,
    split_data_url,
)
from vllm_glm41v_npu.processing.media_io import PlannedIO
from vllm_glm41v_npu.processing.picture_loading import PictureIO
from vllm_glm41v_npu.processing.refusals import callers_error
from vllm_glm41v_npu.processing.video_loading import EncodedVideoIO, GuardedVideoIO, Preparation

_VIDEO_PROCESSORS = (None, "Glm4vVideoProcessor")


@MEDIA_CONNECTOR_REGISTRY.register("http")
class Glm41vMediaConnector(MediaConnector):
    """Takes the place of vLLM's default connector in processes that import this module.

    What it loads from where is checked in fetching.py; what fails there is the caller's error
    (400), where vLLM 0.23.0 answers some with 500.

    Videos of this model come out as an `EncodedVideo`. Those of other models come out as ever, and
    so do all where the server was started with a loader of vLLM's (``video_backend`` in
    ``--media-io-kwargs``, VLLM_VIDEO_LOADER_BACKEND); a request may not choose one.

    Each is loaded in steps, so that memory is known before it is taken, and no thread waits for it:
    the file, its header (a `Plan`), and the decoding. See budget.py.
    """

    prepare: ClassVar[Preparation | None] = None
    """Called with each video in the thread that fetched it."""
    video_backend: ClassVar[str | None] = None
    """The loader of vLLM's that the server was started with, in ``--media-io-kwargs``."""

    def load_from_url(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        """Load it without a budget: whoever calls this has nobody else to wait for."""
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
        """Load it within the budget of its request, waiting while the process has none left."""
        url = _stripped(url)
        with process_budget().request() as share:
            if _is_remote(url):
                fetched = partial(self._fetch, url, media_io, fetch_timeout)
                data, lease = await download(share, fetched)
                read = partial(_plan, media_io, data)
            else:
                # base64 is 4 letters for 3 bytes, and is copied once while it is read
                size, text = (len(url) * 3 // 4, len(url)) if _is_data(url) else (0, 0)
                size = size or await _in_thread(self._file_size, url, media_io)
                lease = await share.take(size + text, size)
                read = partial(self._plan_here, url, media_io)
            plan = await lease.run(read, global_thread_pool)
            lease.shrink()
            lease = await share.take(plan.peak, plan.held)
            medium = await lease.run(plan.decode, global_thread_pool)
            lease.shrink()
            return medium

    async def _fetch(self, url: str, media_io: MediaIO[Any], fetch_timeout: int | None) -> bytes:
        """What a URL holds; or what it held not long ago, where there is a VLLM_MEDIA_CACHE."""
        data = await _in_thread(self._get_cached_bytes, url)
        if data is not None:
            claim(len(data), is_all=True)
            return data
        allowed = self.allowed_media_domains
        data = await fetch_async(url, allowed, _limit(media_io), fetch_timeout)
        await _in_thread(self._put_cached_bytes, url, data)
        return data

    def _file_size(self, url: str, media_io: MediaIO[Any]) -> int:
        return find_file(self._path(url), self._folder, _limit(media_io)).stat().st_size

    def _plan_here(self, url: str, media_io: MediaIO[Any]) -> Plan[Any]:
        """Plan a data or file URL."""
        limit = _limit(media_io)
        if not _is_data(url):
            return _plan(media_io, read_file(self._path(url), self._folder, limit))
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

    @staticmethod
    def _path(url: str) -> Path:
        parts = urlsplit(url)
        return Path(unquote(parts.netloc.replace("localhost", "") + parts.path))

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
        """Our loader, or a guarded one of vLLM's: for other models, and where the server names it.

        Raises:
            MediaRefused: the request names one.
        """
        options = dict(self.media_io_kwargs.get("video", {}))
        image_io = ImageMediaIO(image_mode=image_mode, **self.media_io_kwargs.get("image", {}))
        prepare, named = type(self).prepare, options.get("video_backend")
        is_ours = prepare is not None and video_processor in _VIDEO_PROCESSORS
        if is_ours and named not in (None, type(self).video_backend):
            raise MediaRefused(
                f"media_io_kwargs has video_backend={named!r:.80}; a loader of videos is chosen "
                "where the server starts. Leave it out: backend chooses a decoder."
            )
        if is_ours and named is None and not envs.is_set("VLLM_VIDEO_LOADER_BACKEND"):
            return EncodedVideoIO(image_io, prepare, **options)
        usual = get_video_loader_backend_for_processor(video_processor)
        if usual is not None:
            options.setdefault("video_backend", usual)
        return GuardedVideoIO(image_io, **options)


async def _in_thread(work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(global_thread_pool, work, *args)


def _stripped(url: str) -> str:
    """A URL without the spaces around it, as browsers take it."""
    if not isinstance(url, str):  # vLLM does not look at parts that have no "type"
        raise MediaRefused(f"A URL is {url!r:.80}; expected a string.")
    return url.strip()


def _is_remote(url: str) -> bool:
    """Whether a URL is to be fetched; `fetch` refuses what is of no kind known here."""
    return not _is_data(url) and url[:5].lower() != "file:"


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _limit(media_io: MediaIO[Any]) -> int:
    kind = "IMAGE" if isinstance(media_io, ImageMediaIO) else "VIDEO"
    return max_bytes(f"VLLM_GLM41V_NPU_MAX_{kind}_MB")


def _plan(media_io: MediaIO[Any], data: bytes) -> Plan[Any]:
    if isinstance(media_io, PlannedIO):
        return media_io.plan(data)
    return Plan(0, 0, lambda: media_io.load_bytes(data))  # a loader of vLLM's, not ours to judge
