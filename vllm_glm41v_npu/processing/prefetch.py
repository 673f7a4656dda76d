# SPDX-License-Identifier: Apache-2.0
"""Decoding of a video before vLLM's processor asks for it, in the thread that fetched it.

The processor works in one thread for all requests, where decoding would hold up the others. A video
seen before is likely in the processor's cache, and need not be decoded at all; if it is not, the
processor decodes it after all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.grid import PatchGeometry
from vllm_glm41v_npu.processing.video_settings import VideoSettings

_REMEMBERED = 256


class Prefetch:
    """Decodes a video in the thread that fetched it, unless the same was seen not long ago.

    Args:
        settings_of: Returns the settings that the processor will use for a video.
        geometry: The patch sizes of the vision tower.
    """

    def __init__(
        self, settings_of: Callable[[EncodedVideo], VideoSettings], geometry: PatchGeometry
    ) -> None:
        self.settings_of = settings_of
        self.geometry = geometry
        self._seen: OrderedDict[tuple[str, VideoSettings], None] = OrderedDict()
        self._lock = Lock()

    def cost(self, video: EncodedVideo) -> tuple[int, int]:
        """Return the bytes that decoding it takes at most, and the bytes that stay of it.

        Raises:
            ValueError: It is no video, or its settings are out of range.
        """
        settings = self.settings_of(video)
        if self._has_seen(video, settings):
            return 0, 0
        return video.cost(settings, self.geometry)

    def __call__(self, video: EncodedVideo) -> None:
        """Decode the video, which keeps the result, unless the same was seen not long ago."""
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
        """Decode this video again when it comes again: the processor's cache has lost it."""
        with self._lock:
            for key in [key for key in self._seen if key[0] == video.digest]:
                del self._seen[key]
