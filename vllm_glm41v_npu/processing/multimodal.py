# SPDX-License-Identifier: Apache-2.0
"""vLLM's multimodal processor for this model, without a Hugging Face processor behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.config.multimodal import BaseDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.processor import MultiModalPromptUpdates, PlaceholderFeaturesInfo

from .grid import PatchGeometry, largest_picture, smart_resize
from .image import Picture, process_picture
from .media import Glm41vMediaConnector  # noqa: F401, it registers itself
from .parser import Glm41vDataParser, image_fields
from .prompt import Placeholder
from .settings import ImageSettings


class Glm41vProcessingInfo(BaseProcessingInfo):
    """What the checkpoint and the server's arguments say about pictures."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_data_parser(self) -> Glm41vDataParser:
        return Glm41vDataParser(
            self.geometry, expected_hidden_size=self._get_expected_hidden_size()
        )

    @cached_property
    def geometry(self) -> PatchGeometry:
        return PatchGeometry.from_vision_config(self.get_hf_config().vision_config)

    @cached_property
    def image_placeholder(self) -> Placeholder:
        return Placeholder.image(self.get_hf_config())

    @cached_property
    def image_settings(self) -> ImageSettings:
        """Those of the checkpoint under the server's ``--mm-processor-kwargs``."""
        model_config = self.ctx.model_config
        settings = ImageSettings.from_pretrained(
            model_config.model, model_config.revision, self.geometry
        )
        server_kwargs = self.ctx.get_merged_mm_kwargs({})
        return settings.with_overrides(server_kwargs, self.geometry, "--mm-processor-kwargs")

    def get_image_settings(self, mm_kwargs: Mapping[str, object]) -> ImageSettings:
        """The settings of one request.

        Raises:
            ValueError: an unknown key, a value out of range, or ``max_pixels`` above the server's,
                for which memory was set aside at start-up.
        """
        settings = self.image_settings.with_overrides(mm_kwargs, self.geometry)
        asked, allowed = settings.limits.max_pixels, self.image_settings.limits.max_pixels
        if asked > allowed:
            raise ValueError(
                f"mm_processor_kwargs has max_pixels={asked}, but this server was started for at "
                f"most {allowed}. Ask for less, or start the server with "
                f"--mm-processor-kwargs '{{\"max_pixels\": {asked}}}'."
            )
        return settings

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Tokens of a picture of this size under the server's settings."""
        size = smart_resize(image_height, image_width, self.geometry, self.image_settings.limits)
        return self.geometry.num_tokens(self.geometry.grid(*size))

    def get_image_size_with_most_features(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return largest_picture(self.geometry, self.image_settings.limits)

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        height, width = self.get_image_size_with_most_features()
        return {"image": self.get_num_image_tokens(image_width=width, image_height=height)}


class Glm41vDummyInputsBuilder(BaseDummyInputsBuilder[Glm41vProcessingInfo]):
    """The inputs with which vLLM measures memory: the largest pictures allowed."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        token_id = self.info.image_placeholder.token_id
        return self.info.get_tokenizer().decode([token_id]) * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: Mapping[str, BaseDummyOptions],
    ) -> MultiModalDataDict:
        height, width = self.info.get_image_size_with_most_features()
        return {
            "image": self._get_dummy_images(
                width=width,
                height=height,
                num_images=mm_counts.get("image", 0),
                overrides=mm_options.get("image"),
            )
        }


class Glm41vMultiModalProcessor(BaseMultiModalProcessor[Glm41vProcessingInfo]):
    """Tokenises the prompt, processes the pictures and says where their tokens go.

    vLLM calls the place of the work after Hugging Face's processors; none is behind it here.
    """

    def _call_hf_processor(
        self,
        prompt: str,
        mm_data: Mapping[str, object],
        mm_kwargs: Mapping[str, object],
        tok_kwargs: Mapping[str, object],
    ) -> BatchFeature:
        """``input_ids`` (not expanded) and, with pictures, what `_process_pictures` returns."""
        outputs: dict[str, object] = {
            "input_ids": [self.info.get_tokenizer().encode(prompt, **tok_kwargs)]
        }
        if pictures := mm_data.get("images"):
            outputs |= self._process_pictures(pictures, mm_kwargs)  # type: ignore[arg-type]
        return BatchFeature(outputs)

    def _process_pictures(
        self, pictures: Sequence[Picture], mm_kwargs: Mapping[str, object]
    ) -> dict[str, torch.Tensor]:
        """
        Returns:
            pixel_values: uint8 [sum of h * w, 3 * patch_size**2], the pictures one after another;
                see `process_picture`.
            image_grid_thw: int64 [pictures, 3].
        """
        limits = self.info.get_image_settings(mm_kwargs).limits
        patches, grids = zip(
            *(process_picture(picture, self.info.geometry, limits) for picture in pictures),
            strict=True,
        )
        return {
            "pixel_values": patches[0] if len(patches) == 1 else torch.cat(patches),
            "image_grid_thw": torch.tensor(grids, dtype=torch.int64),
        }

    def _hf_processor_applies_updates(self, *args: object, **kwargs: object) -> bool:
        return False  # `_call_hf_processor` leaves expansion to `_apply_prompt_updates`

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return image_fields(hf_inputs, self.info.geometry)

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        placeholder = self.info.image_placeholder

        def expansion(item_idx: int) -> list[int]:
            grid_thw = out_mm_kwargs["image"][item_idx]["image_grid_thw"].data
            return placeholder.expansion(self.info.geometry.num_tokens(grid_thw.tolist()))

        return [
            PromptReplacement(
                modality=placeholder.modality,
                target=[placeholder.token_id],
                replacement=expansion,
            )
        ]

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: MultiModalPromptUpdates
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        placeholder = self.info.image_placeholder
        num_items = len(mm_prompt_updates.get(placeholder.modality, []))
        placeholder.check_count(token_ids, num_items)
        return super()._apply_prompt_updates(token_ids, mm_prompt_updates)
