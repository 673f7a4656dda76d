# SPDX-License-Identifier: Apache-2.0
"""What vLLM asks of the model before any request: limits, sizes, and the largest inputs."""

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
from vllm_glm41v_npu.processing.decode_time import DecodeTime
from vllm_glm41v_npu.processing.fetching import MAX_MEGABYTES, max_bytes
from vllm_glm41v_npu.processing.grid import (
    PatchGeometry,
    largest_picture,
    largest_video,
    smart_resize,
)
from vllm_glm41v_npu.processing.media import Glm41vMediaConnector
from vllm_glm41v_npu.processing.parser import Glm41vDataParser
from vllm_glm41v_npu.processing.prompt import PLACEHOLDER_TEXTS, Placeholder
from vllm_glm41v_npu.processing.refusals import callers_error
from vllm_glm41v_npu.processing.sampling import VideoSettings
from vllm_glm41v_npu.processing.settings import (
    REQUEST_KWARGS,
    SERVER_KWARGS,
    ImageSettings,
    PixelSettings,
    overrides_for,
)
from vllm_glm41v_npu.processing.video_loading import Preparation

S = TypeVar("S", bound=PixelSettings)


class Glm41vProcessingInfo(BaseProcessingInfo):
    """What the checkpoint and the server's arguments say about pictures and videos."""

    def __init__(self, ctx: InputProcessingContext) -> None:
        super().__init__(ctx)
        _check_limits()
        # Videos fetched in this process are decoded with the settings of its server.
        Glm41vMediaConnector.prepare = self.preparation
        Glm41vMediaConnector.video_backend = self._video_backend()

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
        """Those of the checkpoint under the server's ``--mm-processor-kwargs``."""
        return self._server_settings(ImageSettings, "images_kwargs")

    @cached_property
    def video_settings(self) -> VideoSettings:
        """Those of the checkpoint under the server's ``--mm-processor-kwargs``."""
        return self._server_settings(VideoSettings, "videos_kwargs")

    def _server_settings(self, kind: type[S], name: str) -> S:
        model_config = self.ctx.model_config
        settings = kind.from_pretrained(model_config.model, model_config.revision, self.geometry)
        overrides = overrides_for(name, self.ctx.get_merged_mm_kwargs({}), SERVER_KWARGS)
        return settings.with_overrides(overrides, self.geometry, SERVER_KWARGS)

    def get_image_settings(self, mm_kwargs: Mapping[str, object]) -> ImageSettings:
        """The settings of one request.

        Raises:
            ValueError: an unknown key, a value out of range, or more than the server takes.
        """
        overrides = overrides_for("images_kwargs", mm_kwargs, REQUEST_KWARGS)
        settings = self.image_settings.with_overrides(overrides, self.geometry, REQUEST_KWARGS)
        settings.check_max_pixels(self.image_settings)
        return settings

    def get_video_settings(
        self, mm_kwargs: Mapping[str, object], media_io_kwargs: Mapping[str, object]
    ) -> VideoSettings:
        """The settings of one video: of the request's ``mm_processor_kwargs``, else of
        ``media_io_kwargs`` (the request's or the server's), else the server's.

        Raises:
            ValueError: an unknown key, a value out of range, or more than the server takes.
        """
        overrides = overrides_for("videos_kwargs", mm_kwargs, REQUEST_KWARGS)
        settings = self.video_settings.with_overrides(
            media_io_kwargs, self.geometry, "media_io_kwargs"
        )
        settings = settings.with_overrides(overrides, self.geometry, REQUEST_KWARGS)
        return settings.within(self.video_settings)

    @cached_property
    def preparation(self) -> Preparation:
        return Preparation(lambda video: self.get_video_settings({}, video.options), self.geometry)

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Tokens of a picture of this size under the server's settings."""
        size = smart_resize(image_height, image_width, self.geometry, self.image_settings.limits)
        return self.geometry.num_tokens(self.geometry.grid(*size))

    def get_image_size_with_most_features(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return largest_picture(self.geometry, self.image_settings.limits)

    def get_video_size_with_most_features(self, seq_len: int) -> tuple[int, int, int]:
        """(frames, height, width) of the largest video that a prompt of ``seq_len`` can hold."""
        settings = self.video_settings
        return largest_video(
            self.geometry, settings.limits, settings.frame_limit, self.tokens_around_pair, seq_len
        )

    @cached_property
    def tokens_around_pair(self) -> int:
        """Tokens of a video beside those of its patches, per temporal pair: start, end, second."""
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
    """The inputs with which vLLM measures memory: the largest pictures and videos allowed.

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
    """Raise ValueError about a wrong limit when the server starts, and not to its callers."""
    process_budget()
    DecodeTime()
    for variable in MAX_MEGABYTES:
        max_bytes(variable)


def _blank_video(
    size: tuple[int, int, int], options: BaseDummyOptions | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Black frames and their metadata; ``size`` is (frames, height, width)."""
    frames, height, width = size
    if isinstance(options, VideoDummyOptions):
        frames = min(frames, options.num_frames or frames)
        height = min(height, options.height or height)
        width = min(width, options.width or width)
    metadata = {"fps": 2.0, "do_sample_frames": False}
    return np.zeros((frames, height, width, 3), np.uint8), metadata
