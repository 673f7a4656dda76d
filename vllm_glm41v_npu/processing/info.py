# SPDX-License-Identifier: Apache-2.0
"""Answers to vLLM about media before any request: limits, sizes, and the largest inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from vllm.config.multimodal import BaseDummyOptions, VideoDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseProcessingInfo,
    InputProcessingContext,
)

from vllm_glm41v_npu.backends import current_backend
from vllm_glm41v_npu.processing.budget import process_budget
from vllm_glm41v_npu.processing.connector import register_connector
from vllm_glm41v_npu.processing.decode_time import DecodeTime
from vllm_glm41v_npu.processing.grid import (
    PatchGeometry,
    largest_picture,
    largest_video,
    smart_resize,
)
from vllm_glm41v_npu.processing.limits import MAX_FILE_MB, max_file_bytes
from vllm_glm41v_npu.processing.parser import Glm41vDataParser
from vllm_glm41v_npu.processing.pixel_settings import (
    REQUEST_KWARGS,
    SERVER_KWARGS,
    ImageSettings,
    PixelSettings,
    overrides_for,
)
from vllm_glm41v_npu.processing.prefetch import Prefetch
from vllm_glm41v_npu.processing.prompt import PLACEHOLDER_TEXTS, Placeholder
from vllm_glm41v_npu.processing.refusals import callers_error
from vllm_glm41v_npu.processing.video_settings import VideoSettings

S = TypeVar("S", bound=PixelSettings)


class Glm41vProcessingInfo(BaseProcessingInfo):
    """Settings and sizes of pictures and videos, by the checkpoint and the server's arguments."""

    def __init__(self, ctx: InputProcessingContext) -> None:
        super().__init__(ctx)
        _check_limits()
        register_connector(self.prefetch, self._video_backend())

    def _video_backend(self) -> str | None:
        config = self.ctx.model_config.multimodal_config
        options = (config and config.media_io_kwargs) or {}
        return options.get("video", {}).get("video_backend")

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        limits: dict[str, int | None] = {each.modality: None for each in self.placeholders}
        return limits if self.video_settings.refusal is None else limits | {"video": 0}

    def validate_num_items(self, modality: str, num_items: int) -> None:
        """Check as vLLM does, and refuse videos of a checkpoint with another video processor.

        Raises:
            ValueError: There are more than the server takes, or there is any such video.
        """
        refusal = self.video_settings.refusal
        if modality == "video" and num_items and refusal is not None:
            raise VLLMValidationError(refusal, parameter="video")
        super().validate_num_items(modality, num_items)

    def get_data_parser(self) -> Glm41vDataParser:
        return Glm41vDataParser(
            self.geometry, expected_hidden_size=self._get_expected_hidden_size()
        )

    @callers_error()
    def parse_mm_data(
        self, mm_data: MultiModalDataDict, *, validate: bool = True
    ) -> MultiModalDataItems:
        return super().parse_mm_data(mm_data, validate=validate)

    @cached_property
    def geometry(self) -> PatchGeometry:
        return PatchGeometry.from_vision_config(self.get_hf_config().vision_config)

    @cached_property
    def placeholders(self) -> tuple[Placeholder, Placeholder]:
        config = self.get_hf_config()
        return Placeholder.image(config), Placeholder.video(config)

    def encode_digits(self, digits: str) -> list[int]:
        return self.get_tokenizer().encode(digits, add_special_tokens=False)

    @cached_property
    def image_settings(self) -> ImageSettings:
        """The checkpoint's settings of pictures, changed by ``--mm-processor-kwargs``."""
        return self._server_settings(ImageSettings, "images_kwargs")

    @cached_property
    def video_settings(self) -> VideoSettings:
        """The checkpoint's settings of videos, changed by ``--mm-processor-kwargs``."""
        return self._server_settings(VideoSettings, "videos_kwargs")

    def _server_settings(self, kind: type[S], name: str) -> S:
        model_config = self.ctx.model_config
        settings = kind.from_pretrained(model_config.model, model_config.revision, self.geometry)
        overrides = overrides_for(name, self.ctx.get_merged_mm_kwargs({}), SERVER_KWARGS)
        return settings.with_overrides(overrides, self.geometry, SERVER_KWARGS)

    def get_image_settings(self, mm_kwargs: Mapping[str, object]) -> ImageSettings:
        """Return the settings of pictures of one request.

        Raises:
            ValueError: A key is unknown, a value out of range, or more than the server takes.
        """
        overrides = overrides_for("images_kwargs", mm_kwargs, REQUEST_KWARGS)
        settings = self.image_settings.with_overrides(overrides, self.geometry, REQUEST_KWARGS)
        settings.check_max_pixels(self.image_settings)
        return settings

    def get_video_settings(
        self, mm_kwargs: Mapping[str, object], media_io_kwargs: Mapping[str, object]
    ) -> VideoSettings:
        """Return the settings of one video.

        The request's ``mm_processor_kwargs`` count first, then ``media_io_kwargs`` (the request's
        or the server's), then the server's settings.

        Raises:
            ValueError: A key is unknown, a value out of range, or more than the server takes.
        """
        overrides = overrides_for("videos_kwargs", mm_kwargs, REQUEST_KWARGS)
        settings = self.video_settings.with_overrides(
            media_io_kwargs, self.geometry, "media_io_kwargs"
        )
        settings = settings.with_overrides(overrides, self.geometry, REQUEST_KWARGS)
        return settings.within(self.video_settings)

    @cached_property
    def prefetch(self) -> Prefetch:
        """Decodes the videos that this process fetches, with the settings of its server."""
        return Prefetch(lambda video: self.get_video_settings({}, video.options), self.geometry)

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Return the tokens of a picture of this size under the server's settings."""
        size = smart_resize(image_height, image_width, self.geometry, self.image_settings.limits)
        return self.geometry.num_tokens(self.geometry.grid(*size))

    def get_image_size_with_most_features(self) -> tuple[int, int]:
        """Return the (height, width) of the largest picture in pixels."""
        return largest_picture(self.geometry, self.image_settings.limits)

    def get_video_size_with_most_features(self, seq_len: int) -> tuple[int, int, int]:
        """Return the (frames, height, width) of the largest video in a prompt of ``seq_len``."""
        settings = self.video_settings
        return largest_video(
            self.geometry, settings.limits, settings.frame_limit, self.tokens_around_pair, seq_len
        )

    @cached_property
    def tokens_around_pair(self) -> int:
        """Tokens of a temporal pair beside those of its patches: start, end, second."""
        return 2 + len(self.encode_digits(str(int(self.video_settings.max_duration))))

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        height, width = self.get_image_size_with_most_features()
        frames, rows, columns = self.get_video_size_with_most_features(seq_len)
        pairs = frames // self.geometry.temporal_patch_size
        return {
            "image": self.get_num_image_tokens(image_width=width, image_height=height),
            "video": self.geometry.num_tokens(self.geometry.grid(rows, columns, pairs)),
        }


class Glm41vDummyInputsBuilder(BaseDummyInputsBuilder[Glm41vProcessingInfo]):
    """The inputs that vLLM measures memory with: the largest pictures and videos allowed.

    On a backend whose memory vLLM does not measure they are the smallest, and only warm it up.
    """

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        texts = PLACEHOLDER_TEXTS.items()
        return "".join(text * mm_counts.get(modality, 0) for modality, text in texts)

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: Mapping[str, BaseDummyOptions],
    ) -> MultiModalDataDict:
        side = self.info.geometry.factor
        if current_backend().measures_memory:
            height, width = self.info.get_image_size_with_most_features()
            video_size = self.info.get_video_size_with_most_features(seq_len)
        else:
            height, width, video_size = side, side, (2, side, side)
        videos = mm_counts.get("video", 0)
        options = mm_options.get("video")
        return {
            "image": self._get_dummy_images(
                width=width,
                height=height,
                num_images=mm_counts.get("image", 0),
                overrides=mm_options.get("image"),
            ),
            "video": [_blank_video(video_size, options) for _ in range(videos)],
        }


def _check_limits() -> None:
    """Raise ValueError about a wrong limit when the server starts, before any request."""
    process_budget()
    DecodeTime()
    for kind in MAX_FILE_MB:
        max_file_bytes(kind)


def _blank_video(
    size: tuple[int, int, int], options: BaseDummyOptions | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return black frames and their metadata; ``size`` is (frames, height, width)."""
    frames, height, width = size
    if isinstance(options, VideoDummyOptions):
        frames = min(frames, options.num_frames or frames)
        height = min(height, options.height or height)
        width = min(width, options.width or width)
    metadata = {"fps": 2.0, "do_sample_frames": False}
    return np.zeros((frames, height, width, 3), np.uint8), metadata
