# SPDX-License-Identifier: Apache-2.0
"""Loaders of pictures and videos, in vLLM's interface `MediaIO`.

Ours read a file's header first and say what decoding takes (a `Plan`), before they decode.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image
from vllm import envs
from vllm.multimodal.media import ImageMediaIO, MediaWithBytes, VideoMediaIO
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.video import get_video_loader_backend_for_processor

from vllm_glm41v_npu.checkpoint.processor_files import VIDEO_CLASS
from vllm_glm41v_npu.processing.budget import Plan
from vllm_glm41v_npu.processing.colours import WHITE
from vllm_glm41v_npu.processing.containers import WELL_MARKED, format_of
from vllm_glm41v_npu.processing.data_urls import decode_base64
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.mp4_tables import claims_too_much
from vllm_glm41v_npu.processing.picture_file import plan_picture
from vllm_glm41v_npu.processing.prefetch import Prefetch
from vllm_glm41v_npu.processing.refusals import MediaRefused
from vllm_glm41v_npu.processing.sent_frames import MEDIA_TYPE, plan_frames

T = TypeVar("T")

_BACKGROUND = "rgba_background_color"
_OUR_VIDEO_PROCESSORS = (None, VIDEO_CLASS)


class PlannedIO(MediaIO[T], Generic[T]):
    """vLLM's interface for callers that do not wait (offline); `plan` for the connector."""

    @abstractmethod
    def plan(self, data: bytes) -> Plan[T]:
        """Read the header of a file, and take no memory that the header asks for.

        Raises:
            ValueError: It is no such medium, or too large; a sentence for the caller.
        """

    def plan_base64(self, media_type: str, text: str) -> Plan[T]:
        """Plan the content of a data URL.

        Raises:
            ValueError: As in `plan`, or it is not base64.
        """
        return self.plan(decode_base64(text))

    def load_bytes(self, data: bytes) -> T:
        return self.plan(data).decode()

    def load_base64(self, media_type: str, data: str) -> T:
        return self.plan_base64(media_type, data).decode()

    def load_file(self, filepath: Path) -> T:
        return self.load_bytes(filepath.read_bytes())


class PictureIO(PlannedIO[MediaWithBytes[Image.Image]], ImageMediaIO):
    """Makes an upright RGB picture of a file.

    ``options`` are ``media_io_kwargs`` for pictures: ``rgba_background_color``, on which
    transparency is laid, white by default.

    Raises:
        ValueError: An option is unknown or out of range.
    """

    def __init__(self, **options: Any) -> None:
        unknown = sorted(options.keys() - {_BACKGROUND})
        if unknown:
            raise ValueError(
                f"media_io_kwargs for images has {', '.join(unknown)}; expected {_BACKGROUND}."
            )
        super().__init__(**options)

    def plan(self, data: bytes) -> Plan[MediaWithBytes[Image.Image]]:
        background = self.rgba_background_color
        plan = plan_picture(data, "The picture", background)
        # vLLM's caches know a picture by these bytes alone.
        known_by = data if background == WHITE else data + repr(background).encode()
        return Plan(plan.peak, plan.held, lambda: MediaWithBytes(plan.decode(), known_by))


class EncodedVideoIO(PlannedIO[Any], VideoMediaIO):
    """Makes an `EncodedVideo` of a file, and an array of frames sent one by one.

    ``options`` are ``media_io_kwargs`` for videos.
    """

    def __init__(self, image_io: ImageMediaIO, prefetch: Prefetch, **options: Any) -> None:
        super().__init__(image_io)
        self.options = options
        self.prefetch = prefetch

    def plan(self, data: bytes) -> Plan[EncodedVideo]:
        video = EncodedVideo(data, self.options)

        def decode() -> EncodedVideo:
            self.prefetch(video)
            return video

        return Plan(*self.prefetch.cost(video), decode)

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


def video_io(
    media_io_kwargs: Mapping[str, Mapping[str, Any]],
    processor: str | None,
    image_mode: str,
    prefetch: Prefetch | None,
    server_backend: str | None,
) -> MediaIO[Any]:
    """Return our loader of videos, or a guarded one of vLLM's.

    vLLM's are for other models, and for servers that were started with one of them
    (``video_backend`` in ``--media-io-kwargs``, VLLM_VIDEO_LOADER_BACKEND).

    Args:
        media_io_kwargs: The server's and the request's, by kind of medium.
        processor: The video processor of the model that asks.
        image_mode: vLLM's.
        prefetch: Ours, or None where this process serves no model of ours.
        server_backend: The ``video_backend`` that the server was started with.

    Raises:
        MediaRefused: The request names a ``video_backend``.
    """
    options = dict(media_io_kwargs.get("video", {}))
    image_io = ImageMediaIO(image_mode=image_mode, **media_io_kwargs.get("image", {}))
    if prefetch is not None and processor in _OUR_VIDEO_PROCESSORS:
        named = options.get("video_backend")
        if named not in (None, server_backend):
            raise MediaRefused(
                f"media_io_kwargs has video_backend={named!r:.80}; a loader of videos is chosen "
                "where the server starts. Leave it out: backend chooses a decoder."
            )
        if named is None and not envs.is_set("VLLM_VIDEO_LOADER_BACKEND"):
            return EncodedVideoIO(image_io, prefetch, **options)
    usual = get_video_loader_backend_for_processor(processor)
    if usual is not None:
        options.setdefault("video_backend", usual)
    return GuardedVideoIO(image_io, **options)
