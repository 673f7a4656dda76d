# SPDX-License-Identifier: Apache-2.0
"""The vision tower in captured graphs, one for each budget of merged tokens.

Opt-in, with vLLM's `--compilation-config '{"cudagraph_mm_encoder": true}'`. Except in attention the
tower computes patch by patch, and vllm-ascend updates attention's lengths before a replay. So a
graph captured over one row of patches is replayed on any pictures that fit.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import scatter_output_slices
from vllm.v1.worker.encoder_cudagraph_defs import (
    EncoderCudaGraphCaptureInputs,
    EncoderCudaGraphConfig,
    EncoderCudaGraphReplayBuffers,
    EncoderItemSpec,
)

from vllm_glm41v_npu.backends import current_backend
from vllm_glm41v_npu.models.rope import PatchRotation
from vllm_glm41v_npu.models.vision import VisionTransformer

SMALLEST_BUDGET = 64
"""Merged tokens of the smallest graph: a picture of 224 x 224 pixels."""

BUFFERS = ("pixel_values", "positions", "cos", "sin", "cu_seqlens")


class EncoderGraph:
    """Methods of vLLM's `SupportsEncoderCudaGraph`, for a model whose tower is `visual`."""

    supports_encoder_cudagraph: Literal[True] = True
    visual: VisionTransformer
    model_config: Any
    multimodal_config: Any

    def get_encoder_cudagraph_config(self) -> EncoderCudaGraphConfig:
        backend = current_backend()
        if not backend.captures_encoder:
            raise ValueError(
                f"cudagraph_mm_encoder is set, and on {backend.name} a captured vision tower would "
                "keep the picture sizes of its capture. Leave it out of --compilation-config."
            )
        # A request that sends embeddings has no pixels to replay on.
        modalities = [] if self.multimodal_config.enable_mm_embeds else ["image"]
        return EncoderCudaGraphConfig(modalities, list(BUFFERS), self.visual.out_hidden_size)

    def get_input_modality(self, mm_kwargs: dict[str, Any]) -> str:
        return "image"

    def get_max_frames_per_video(self) -> int:
        return 1

    def get_encoder_cudagraph_budget_range(self, vllm_config: VllmConfig) -> tuple[int, int]:
        largest = vllm_config.scheduler_config.max_num_batched_tokens
        return SMALLEST_BUDGET, max(SMALLEST_BUDGET, min(largest, self.model_config.max_model_len))

    def get_encoder_cudagraph_item_specs(self, mm_kwargs: dict[str, Any]) -> list[EncoderItemSpec]:
        merged = self.visual.spatial_merge_size**2
        sizes = [t * h * w for t, h, w in _grids(mm_kwargs)]
        return [EncoderItemSpec(size, size // merged) for size in sizes]

    def select_encoder_cudagraph_items(
        self, mm_kwargs: dict[str, Any], indices: list[int]
    ) -> dict[str, Any]:
        grids = _grids(mm_kwargs)
        parts = mm_kwargs["pixel_values"].split([t * h * w for t, h, w in grids])
        pixels = [parts[index] for index in indices] or [mm_kwargs["pixel_values"][:0]]
        return {
            "pixel_values": torch.cat(pixels),
            "image_grid_thw": torch.tensor([grids[index] for index in indices], device="cpu"),
        }

    def postprocess_encoder_output(
        self,
        output: torch.Tensor,
        indices: list[int],
        per_item_out_tokens: list[int],
        dest: dict[int, torch.Tensor] | list[torch.Tensor | None],
        clone: bool = False,
        batch_mm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        scatter_output_slices(output, indices, per_item_out_tokens, dest, clone)

    def prepare_encoder_cudagraph_capture_inputs(
        self,
        token_budget: int,
        max_batch_size: int,
        max_frames_per_batch: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> EncoderCudaGraphCaptureInputs:
        """Return buffers for `token_budget` merged tokens, filled as one row of patches."""
        merge = self.visual.spatial_merge_size
        patches = token_budget * merge**2
        width = self.visual.patch_embed.proj.weight.shape[1]
        pixels = torch.zeros(patches, width, dtype=torch.uint8, device=device)
        values = self._graph_inputs(pixels, [[1, merge, token_budget * merge]])
        # One sequence for each possible picture; a replay leaves the unused ones zero.
        ends = torch.arange(max_batch_size + 1, dtype=torch.int32, device="cpu")
        values["cu_seqlens"] = ends * patches // max_batch_size
        return EncoderCudaGraphCaptureInputs(values)

    def prepare_encoder_cudagraph_replay_buffers(
        self, mm_kwargs: dict[str, Any], max_batch_size: int, max_frames_per_batch: int
    ) -> EncoderCudaGraphReplayBuffers:
        return EncoderCudaGraphReplayBuffers(
            dict(self._graph_inputs(mm_kwargs["pixel_values"], _grids(mm_kwargs)))
        )

    @torch.no_grad()  # vLLM copies into these tensors outside inference mode
    def _graph_inputs(
        self, pixels: torch.Tensor, grids: list[list[int]]
    ) -> dict[str, torch.Tensor]:
        positions, rotation, cu_seqlens = self.visual.prepare(grids)
        return dict(zip(BUFFERS, (pixels, positions, *rotation, cu_seqlens), strict=True))

    def encoder_cudagraph_forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        pixels, positions, cos, sin, cu_seqlens = (inputs[name] for name in BUFFERS)
        return self.visual.encode(pixels, positions, PatchRotation(cos, sin), cu_seqlens)

    def encoder_eager_forward(self, mm_kwargs: dict[str, Any]) -> torch.Tensor:
        return self.visual(mm_kwargs["pixel_values"], _grids(mm_kwargs))


def _grids(mm_kwargs: dict[str, Any]) -> list[list[int]]:
    return mm_kwargs["image_grid_thw"].tolist()
