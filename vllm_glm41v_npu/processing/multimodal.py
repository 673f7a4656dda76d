# SPDX-License-Identifier: Apache-2.0
"""vLLM's multimodal processor for this model, without a Hugging Face processor behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.inputs import MultiModalInput
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
    TimingContext,
)
from vllm.multimodal.processing.processor import MultiModalPromptUpdates, PlaceholderFeaturesInfo

from vllm_glm41v_npu.processing.embeddings import TIMESTAMPS, fields
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.image import Picture, picture_grid, process_picture
from vllm_glm41v_npu.processing.info import Glm41vProcessingInfo
from vllm_glm41v_npu.processing.parser import Video
from vllm_glm41v_npu.processing.prompt import Expansion
from vllm_glm41v_npu.processing.refusals import callers_error
from vllm_glm41v_npu.processing.video import ProcessedVideo

logger = init_logger(__name__)


class Glm41vMultiModalProcessor(BaseMultiModalProcessor[Glm41vProcessingInfo]):
    """Tokenizes the prompt, processes pictures and videos, and places their tokens.

    Some methods are named after Hugging Face's processors, by vLLM; none is used here.
    """

    @callers_error()
    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(
        self,
        prompt: str,
        mm_data: Mapping[str, object],
        mm_kwargs: Mapping[str, object],
        tok_kwargs: Mapping[str, object],
    ) -> BatchFeature:
        """Return ``input_ids`` (not expanded), and the tensors of pictures and videos."""
        outputs: dict[str, object] = {
            "input_ids": [self.info.get_tokenizer().encode(prompt, **tok_kwargs)]
        }
        if pictures := mm_data.get("images"):
            outputs |= self._process_pictures(pictures, mm_kwargs)  # type: ignore[arg-type]
        if videos := mm_data.get("videos"):
            outputs |= self._process_videos(videos, mm_kwargs)  # type: ignore[arg-type]
        return BatchFeature(outputs)

    def _process_pictures(
        self, pictures: Sequence[Picture], mm_kwargs: Mapping[str, object]
    ) -> dict[str, torch.Tensor]:
        """Cut all pictures of a request into patches.

        Returns:
            pixel_values: uint8 [sum of h * w, patch_size**2 * 3], the pictures one after another;
                see `process_picture`.
            image_grid_thw: int64 [pictures, 3].
        """
        geometry, limits = self.info.geometry, self.info.get_image_settings(mm_kwargs).limits
        grids = [picture_grid(picture, geometry, limits) for picture in pictures]
        grid_thw = torch.tensor(grids, dtype=torch.int64)
        sizes = grid_thw.prod(-1).tolist()
        patches = torch.empty(sum(sizes), geometry.row_size, dtype=torch.uint8)
        parts = zip(pictures, grids, patches.split(sizes), strict=True)
        _in_threads(lambda part: process_picture(part[0], geometry, *part[1:]), list(parts))
        return {"pixel_values": patches, "image_grid_thw": grid_thw}

    def _process_videos(
        self, videos: Sequence[Video], mm_kwargs: Mapping[str, object]
    ) -> dict[str, torch.Tensor]:
        """Decode all videos of a request, and cut them into patches.

        Returns:
            pixel_values_videos: uint8 [sum of t * h * w, 2 * patch_size**2 * 3], the videos one
                after another; see `ProcessedVideo`.
            video_grid_thw: int64 [videos, 3].
            timestamps: int64 [sum of t], the full second of each temporal pair.
        """

        def process(video: Video) -> ProcessedVideo:
            settings = self.info.get_video_settings(mm_kwargs, video.options)
            geometry = self.info.geometry
            if isinstance(video, EncodedVideo) and not video.is_processed(settings, geometry):
                self.info.prefetch.forget(video)
            return video.process(settings, geometry)

        done = _in_threads(process, videos)
        patches = [video.patches for video in done]
        return {
            "pixel_values_videos": patches[0] if len(patches) == 1 else torch.cat(patches),
            "video_grid_thw": torch.tensor([video.grid for video in done], dtype=torch.int64),
            TIMESTAMPS: torch.tensor([second for video in done for second in video.timestamps]),
        }

    def _hf_processor_applies_updates(self, *args: object, **kwargs: object) -> bool:
        return False  # `_call_hf_processor` leaves expansion to `_apply_prompt_updates`

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        geometry = self.info.geometry
        return fields("image", hf_inputs, geometry) | fields("video", hf_inputs, geometry)

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        expansion = Expansion.of(self.info.get_hf_config())
        geometry = self.info.geometry

        def picture(item_idx: int) -> list[int]:
            grid_thw = out_mm_kwargs["image"][item_idx]["image_grid_thw"].data
            return expansion.picture(geometry.num_tokens(grid_thw.tolist()))

        def video(item_idx: int) -> PromptUpdateDetails:
            item = out_mm_kwargs["video"][item_idx]
            _, h, w = item["video_grid_thw"].data.tolist()
            ids = expansion.video(
                item[TIMESTAMPS].data.tolist(),
                geometry.num_tokens((1, h, w)),
                self.info.encode_digits,
            )
            return PromptUpdateDetails.select_token_id(ids, expansion.embed_id)

        replacements = {"image": picture, "video": video}
        return [
            PromptReplacement(
                modality=placeholder.modality,
                target=[placeholder.token_id],
                replacement=replacements[placeholder.modality],
            )
            for placeholder in self.info.placeholders
        ]

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: MultiModalPromptUpdates
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        counts = {modality: len(updates) for modality, updates in mm_prompt_updates.items()}
        for placeholder in self.info.placeholders:
            # A token typed where there is no medium at all is text, as in transformers.
            if count := counts.get(placeholder.modality, 0):
                placeholder.check_count(token_ids, count)
        if all(counts.get(placeholder.modality) for placeholder in self.info.placeholders):
            logger.warning_once(
                "A request has pictures and videos together. The model was not trained on that: "
                "its answers may be worse than with either alone."
            )
        return super()._apply_prompt_updates(token_ids, mm_prompt_updates)


@cache
def _threads() -> ThreadPoolExecutor:
    count = len(os.sched_getaffinity(0))
    return ThreadPoolExecutor(count, "glm41v-processing")


def _in_threads(work: Callable, items: Sequence) -> list:
    """Return the results of ``work`` on each item; PyTorch's and OpenCV's kernels free the GIL."""
    return [work(items[0])] if len(items) == 1 else list(_threads().map(work, items))
