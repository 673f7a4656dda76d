# SPDX-License-Identifier: Apache-2.0
"""The scheme of W8A8SC, whose weights Atlas 310P decodes while it multiplies.

vllm-ascend's scheme keeps each compressed weight in a parameter of its uncompressed size, of which
the file fills the beginning, and passes any number of tokens in one call.

Source of the limits: hicann/ops-nn, matmul/matmul_v2_compress_dequant/docs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch_npu
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank
from vllm_ascend._310p.quantization.methods.w8a8sc import AscendW8A8SCLinearMethod310

from vllm_glm41v_npu.ascend.norms import fuse_norms
from vllm_glm41v_npu.checkpoint.description import COMPRESSED
from vllm_glm41v_npu.quant.w8a8sc.record import ShardError
from vllm_glm41v_npu.quant.w8a8sc.shards import stored_weights

MOST_TOKENS = 256
"""Largest number of tokens of one call."""
INPUTS_ABOVE, LEAST_OUTPUTS, STEP = 256, 128, 64
"""Limits of a layer: more inputs than the first, at least the second number of outputs, both
multiples of the third."""

_LIBRARY = torch.library.Library("glm41v", "FRAGMENT")
_LIBRARY.define(
    "compressed_linear(Tensor x, Tensor weight, Tensor index, Tensor bias, Tensor scale) -> Tensor"
)


class CompressedScheme(AscendW8A8SCLinearMethod310):
    """W8A8SC, in a parameter of its compressed size."""

    def get_weight(
        self, input_size: int, output_size: int, params_dtype: torch.dtype = torch.float16
    ) -> dict[str, Tensor]:
        """Return the layer's tensors, before the length of its compressed weight is known.

        Raises:
            ShardError: The operator does not take a layer of this size.
        """
        if (
            input_size <= INPUTS_ABOVE
            or output_size < LEAST_OUTPUTS
            or input_size % STEP
            or output_size % STEP
        ):
            raise ShardError(
                f"The description gives the type {COMPRESSED} to a layer that has {input_size} "
                f"inputs and {output_size} outputs on this rank; Atlas 310P takes more than "
                f"{INPUTS_ABOVE} inputs and at least {LEAST_OUTPUTS} outputs, in steps of "
                f"{STEP}. Use fewer ranks, or keep such layers float (`glm41v quantize "
                "--keep-float`) and compress again."
            )
        return super().get_weight(input_size, output_size, params_dtype)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        super().process_weights_after_loading(layer)
        layer.weight.data = layer.weight.data[: _stored_length(layer.prefix)].clone()
        fuse_norms(layer)

    def apply(
        self, layer: nn.Module, x: Tensor, bias: Tensor | None = None, tp_rank: int | None = 0
    ) -> Tensor:
        """[tokens, K] to float16 [tokens, N]; x is int8 where the norm before has quantized it."""
        if x.dtype != torch.int8:
            x = torch.ops.vllm.quantize(
                x,
                layer.aclnn_input_scale,
                layer.aclnn_input_scale_reciprocal,
                layer.aclnn_input_offset,
            )
        return torch.ops.glm41v.compressed_linear(
            x, layer.weight, layer.index, layer.quant_bias, layer.deq_scale
        )


def _multiply(x: Tensor, weight: Tensor, index: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Multiply in as many calls as the tokens need; torch.compile cannot count them itself."""
    parts = [
        torch_npu.npu_matmul_compress_dequant(part, weight, index, bias, scale)
        for part in x.split(MOST_TOKENS)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _shape_only(x: Tensor, weight: Tensor, index: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], bias.shape[-1], dtype=torch.float16)


_LIBRARY.impl("compressed_linear", _multiply, "PrivateUse1")
_LIBRARY.impl("compressed_linear", _shape_only, "Meta")


def _stored_length(layer: str) -> int:
    """Return the number of bytes of a layer's compressed weight in this rank's shard."""
    folder = Path(get_current_vllm_config().model_config.model)
    stored = _stored_weights(folder, get_tensor_model_parallel_rank())[layer]
    return stored.sizes["weight"][0]


_stored_weights = cache(stored_weights)
