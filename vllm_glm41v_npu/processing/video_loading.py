# SPDX-License-Identifier: Apache-2.0
"""Videos in the media connector: an `EncodedVideo`, decoded in the thread that fetched it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

from vllm_glm41v_npu.processing.budget import Plan
from vllm_glm41v_npu.processing.containers import WELL_MARKED, format_of
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.grid import PatchGeometry
from vllm_glm41v_npu.processing.media_io import PlannedIO
from vllm_glm41v_npu.processing.mp4_tables import claims_too_much
from vllm_glm41v_npu.processing.sampling import VideoSettings
from vllm_glm41v_npu.processing.sent_frames import MEDIA_TYPE, plan_frames

_REMEMBERED = 256


class EncodedVideoIO(PlannedIO[Any], VideoMediaIO):
    """Makes an `EncodedVideo` of a file, and an array of frames sent one by one.

    ``options`` are ``media_io_kwargs`` for videos.
    """

    def __init__(self, image_io: ImageMediaIO, prepare: Preparation | None, **options: Any) -> None:
        super().__init__(image_io)
        self.options = options
        self.prepare = prepare

    def plan(self, data: bytes) -> Plan[EncodedVideo]:
        video = EncodedVideo(data, self.options)
        prepare = self.prepare
        if prepare is None:
            return Plan(0, 0, lambda: video)

        def decode() -> EncodedVideo:
            prepare(video)
            return video

        return Plan(*prepare.cost(video), decode)

    def plan_base64(self, media_type: str, text: str) -> Plan[Any]:
        if media_type.lower() == MEDIA_TYPE:
            return plan_frames(text, self.options)
        return super().plan_base64(media_type, text)


class GuardedVideoIO(VideoMediaIO):
    """vLLM's own loaders, for formats that FFmpeg takes for nothing else.

    They let FFmpeg guess the format, and some formats make it open other files and sockets.
    """

    def load_bytes(self, data: bytes) -> Any:
        kind = format_of(data)
        if kind not in WELL_MARKED or (kind == "mov" and claims_too_much(data)):
            raise ValueError(
                "The video is of no format that this server's loader of videos "
                "(video_backend) may open; expected MP4, MOV, WebM, MKV, AVI, WMV, FLV or OGV."
            )
        return super().load_bytes(data)


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

    def cost(self, video: EncodedVideo) -> tuple[int, int]:
        """Bytes that decoding it takes at most, and those that stay of it.

        Raises:
            ValueError: no video, or settings out of range.
        """
        settings = self.settings_of(video)
        if self._has_seen(video, settings):
            return 0, 0
        return video.cost(settings, self.geometry)

    def __call__(self, video: EncodedVideo) -> None:
        settings = self.settings_of(video)
        key = video.digest, settings
        if self._has_seen(video, settings):
            return
        video.process(settings, self.geometry)
        with self._lock:
            self._seen[key] = None
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)

    def _has_seen(self, video: EncodedVideo, settings: VideoSettings) -> bool:
        key = video.digest, settings
        with self._lock:
            if key in self._seen:
                self._seen.move_to_end(key)
                return True
        return False

    def forget(self, video: EncodedVideo) -> None:
        """The processor's cache had it no longer."""
        with self._lock:
            for key in [key for key in self._seen if key[0] == video.digest]:
                del self._seen[key]
