# SPDX-License-Identifier: Apache-2.0
"""GLM-4.1V for vLLM: the vision tower and the decoder, joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from typing_extensions import Self
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMRoPE,
    SupportsMultiModal,
    SupportsPP,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import maybe_prefix
from vllm.model_executor.models.vision import run_dp_sharded_mrope_vision_model
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.sequence import IntermediateTensors

from vllm_glm41v_npu.backends import current_backend, resolve
from vllm_glm41v_npu.checkpoint.names import NETWORK
from vllm_glm41v_npu.checkpoint.shapes import head_size
from vllm_glm41v_npu.models.convert import Layout
from vllm_glm41v_npu.models.decoder import LanguageModel
from vllm_glm41v_npu.models.encoder_graph import EncoderGraph
from vllm_glm41v_npu.models.lora import take_over_adapters
from vllm_glm41v_npu.models.micro_batch import MicroBatch
from vllm_glm41v_npu.models.norm_bias import add_norm_biases
from vllm_glm41v_npu.models.overflow import LARGEST_START, guard_residual
from vllm_glm41v_npu.models.rope import rotary_dim
from vllm_glm41v_npu.models.vision import VisionTransformer
from vllm_glm41v_npu.models.weights import HF_TO_VLLM, WeightLoader
from vllm_glm41v_npu.processing.embeddings import PIXELS, Modality
from vllm_glm41v_npu.processing.grid import PatchGeometry
from vllm_glm41v_npu.processing.info import Glm41vDummyInputsBuilder, Glm41vProcessingInfo
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings
from vllm_glm41v_npu.processing.prompt import PLACEHOLDER_TEXTS

PARTIAL_FORMATS = ("dummy", "sharded_state", "runai_streamer_sharded", "tensorizer")
"""Load formats that fill the parameters themselves: `load_weights` only gets later updates."""


@MULTIMODAL_REGISTRY.register_processor(
    Glm41vMultiModalProcessor,
    info=Glm41vProcessingInfo,
    dummy_inputs=Glm41vDummyInputsBuilder,
)
class Glm41vForConditionalGeneration(
    nn.Module, EncoderGraph, SupportsMultiModal, SupportsLoRA, SupportsPP, SupportsMRoPE
):
    """GLM-4.1V-9B-Thinking (arXiv 2507.01006) on vLLM's layers."""

    packed_modules_mapping = LanguageModel.packed_modules_mapping
    hf_to_vllm_mapper = HF_TO_VLLM
    supports_encoder_tp_data = True

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return the text of one picture or video in a prompt whose template takes plain text."""
        medium = modality.removesuffix("_embeds")  # its embeddings have the same placeholder
        if medium in PLACEHOLDER_TEXTS:
            return PLACEHOLDER_TEXTS[medium]
        raise ValueError(f"GLM-4.1V takes pictures and videos, not {modality!r}.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        self.config = model_config.hf_config
        self.model_config = model_config
        self.multimodal_config = model_config.multimodal_config
        self.quantized = vllm_config.quant_config is not None
        self.awq = "awq" in str(model_config.quantization)
        load_format = vllm_config.load_config.load_format
        self.starts_without_weights = load_format in PARTIAL_FORMATS
        self.data_parallel = self.multimodal_config.mm_encoder_tp_mode == "data"
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            self.visual = VisionTransformer(
                self.config.vision_config,
                vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "visual"),
            )
        with self._mark_language_model(vllm_config):
            self.language_model = initialize_model(
                # Layers that ask which model they belong to find the text config.
                vllm_config.with_hf_config(self.config.text_config, ["Glm4ForCausalLM"]),
                model_class=LanguageModel,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        if float_layers := current_backend().float_layers:
            resolve(float_layers)(self, model_config.dtype)
        self.micro_batch = MicroBatch.of(self.language_model.model, vllm_config)
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        if load_format == "sharded_state":
            add_norm_biases(self, getattr(vllm_config.quant_config, "quant_description", ()))

    @property
    def lora_manager(self) -> Any:
        """vLLM's manager of LoRA adapters; set by vLLM where it serves adapters."""
        return self._lora_manager

    @lora_manager.setter
    def lora_manager(self, manager: Any) -> None:
        text = self.config.text_config
        take_over_adapters(manager, self, head_size(text), rotary_dim(text))
        self._lora_manager = manager

    def eval(self) -> Self:
        """Finish loading: every loader of vLLM calls this last, once the parameters are filled."""
        self._guard_float16()
        return super().eval()

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Return one [tokens, hidden_size] tensor a picture, then one a video, in the order given.

        Args:
            image_grid_thw: int64 [pictures, 3], (1, rows, columns) of patches.
            pixel_values: uint8 [patches, patch_size^2 * channels].
            image_embeds: [tokens, hidden_size], instead of `pixel_values`.
            video_grid_thw, pixel_values_videos, video_embeds: The same for videos; time is counted
                in pairs of frames, and a row of pixels is twice as wide.
        """
        embeddings: list[torch.Tensor] = []
        for modality in get_args(Modality):
            grid_thw = kwargs.get(f"{modality}_grid_thw")
            if grid_thw is not None:
                pixels, embeds = kwargs.get(PIXELS[modality]), kwargs.get(f"{modality}_embeds")
                embeddings += self._encode(grid_thw.tolist(), pixels, embeds)
        return embeddings

    def _encode(
        self,
        grids: list[list[int]],
        pixel_values: torch.Tensor | None,
        embeds: torch.Tensor | None,
    ) -> Sequence[torch.Tensor]:
        merged = self.config.vision_config.spatial_merge_size**2
        sizes = [t * h * w // merged for t, h, w in grids]
        if embeds is not None:
            # The tower may be absent: a server that takes only embeddings leaves it out.
            return embeds.to(self.model_config.dtype).split(sizes)
        assert pixel_values is not None
        if self.data_parallel:
            # A rank without a picture returns an empty tensor of its input's dtype.
            return run_dp_sharded_mrope_vision_model(
                self.visual, pixel_values.to(self.visual.dtype), grids, rope_type="rope_3d"
            )
        return self.visual(pixel_values, grids).split(sizes)

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return embeddings [tokens, hidden_size], those of pictures and videos in their places.

        vLLM's own method assigns by a boolean mask, which Atlas 300I DUO cannot do.

        Args:
            input_ids: int [tokens].
            multimodal_embeddings: [tokens, hidden_size] for each picture or video.
            is_multimodal: bool [tokens], on the host; true where a token stands for one of them.

        Raises:
            ValueError: There are more or fewer of these tokens than embeddings.
        """
        embeds = self._embed_text_input_ids(
            input_ids, self.language_model.embed_input_ids, is_multimodal=is_multimodal
        )
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
            return embeds
        assert is_multimodal is not None
        pictures = torch.cat(list(multimodal_embeddings)).to(embeds.dtype)
        if embeds.dtype == torch.float16:
            pictures = pictures.clamp(-LARGEST_START, LARGEST_START)
        index = is_multimodal.cpu().nonzero().flatten()
        if index.numel() != pictures.shape[0]:
            raise ValueError(
                f"The pictures and videos of this step have {pictures.shape[0]} embeddings, and "
                f"the prompts have {index.numel()} places for them."
            )
        return embeds.index_copy_(0, index.to(embeds.device), pictures)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[torch.Tensor, int]:
        """Return a prompt's positions int64 [3, tokens], and the offset to add when decoding.

        Text advances all axes together. The tokens of a picture, or of a pair of frames, keep the
        time of their first one and count rows and columns from it; the text after them goes on
        from the largest position so far.
        """
        parts: list[np.ndarray] = []
        token = position = 0
        for offset, (rows, columns) in self._merged_grids(mm_features):
            parts.append(np.arange(position, position + offset - token)[None].repeat(3, 0))
            position += offset - token
            # [3, 1 * rows * columns]
            parts.append(np.indices((1, rows, columns)).reshape(3, -1) + position)
            token = offset + rows * columns
            position += max(rows, columns)
        rest = len(input_tokens) - token
        parts.append(np.arange(position, position + rest)[None].repeat(3, 0))
        positions = np.concatenate(parts, axis=1)
        return torch.from_numpy(positions), position + rest - len(input_tokens)

    def _merged_grids(
        self, mm_features: list[MultiModalFeatureSpec]
    ) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield first token, merged rows and columns of each picture or pair of frames in order."""
        merge = self.config.vision_config.spatial_merge_size
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            assert feature.data is not None
            _, h, w = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
            for first, _ in feature.mm_position.extract_embeds_range():
                yield first, (h // merge, w // merge)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Return hidden states [tokens, hidden_size]; `positions` is int64 [3, tokens]."""
        decoder: Callable[..., torch.Tensor | IntermediateTensors] = self.language_model.model
        if self.micro_batch is not None and self.micro_batch.takes(positions.shape[-1]):
            decoder = self.micro_batch
        return decoder(
            input_ids=input_ids,
            positions=positions,
            intermediate_tensors=intermediate_tensors,
            inputs_embeds=inputs_embeds,
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Fill parameters from `weights` and return their names; see `WeightLoader.load`."""
        loaded = self.weight_loader.load(weights)
        self._guard_float16()  # an update of a running model is not followed by `eval`
        return loaded

    def _guard_float16(self) -> None:
        if self.model_config.dtype == torch.float16:
            decoder = self.language_model.model
            guard_residual(decoder.stage_layers, len(decoder.layers))

    @cached_property
    def weight_loader(self) -> WeightLoader:
        settings = ImageSettings.from_pretrained(
            self.model_config.model,
            self.model_config.revision,
            PatchGeometry.from_vision_config(self.config.vision_config),
        )
        layout = Layout(self.config, settings, self.quantized, self.awq)
        return WeightLoader(self, layout, complete=self.starts_without_weights)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model=NETWORK.text.rstrip("."),
            connector=f"{NETWORK.vision}merger.",
            tower_model=NETWORK.vision,
        )

    def get_num_mm_encoder_tokens(self, num_image_tokens: int) -> int:
        return num_image_tokens * self.config.vision_config.spatial_merge_size**2

    def get_num_mm_connector_tokens(self, num_vision_tokens: int) -> int:
        return num_vision_tokens // self.config.vision_config.spatial_merge_size**2
