# SPDX-License-Identifier: Apache-2.0
"""Norms that quantize what they return, in the operator that both chips have for it.

A decoder layer's norms before qkv_proj and gate_up_proj add the residual, and nothing but that one
layer takes what they return. vllm-ascend fuses them in compiled graphs on Atlas A2 alone, and with
a scale in the dtype of the network, which the operator takes in bfloat16 only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_npu
from torch import nn
from vllm.config import get_current_vllm_config
from vllm_ascend.ops.layernorm import AscendRMSNorm

SCALE_DTYPES = {
    torch.float16: (torch.float32, torch.int32),
    torch.bfloat16: (torch.bfloat16, torch.bfloat16),
}
"""Dtype of the network to those of scale and offset. Source: op-plugin's document of
npu_add_rms_norm_quant."""


class QuantizingRMSNorm(AscendRMSNorm):
    """Adds the residual, norms and quantizes in one operator; with no residual it only norms."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """As RMSNorm's, but int8 where there is a residual."""
        if residual is None:
            return super().forward(x)
        residual = torch.ops.vllm.maybe_chunk_residual(x, residual)
        x_q, _, total = torch_npu.npu_add_rms_norm_quant(
            x,
            residual,
            self.weight,
            self.output_scale,
            self.output_offset,
            self.bias,
            epsilon=self.variance_epsilon,
        )
        return x_q, total


class FusesNorms:
    """A scheme, before vllm-ascend's in the order of bases, whose layers' norms quantize."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """As vllm-ascend's, then `fuse_norms`."""
        scheme: Any = super()
        scheme.process_weights_after_loading(layer)
        fuse_norms(layer)


def fuse_norms(layer: nn.Module) -> None:
    """Let the norms before a static layer quantize for it, once its weights are there.

    `layer.input_norms` are those whose output is its input, and nothing else's. vLLM's LoRA layers
    multiply that input too, in the network's dtype, so with LoRA nothing is fused.
    """
    if get_current_vllm_config().lora_config is not None:
        return
    for norm in getattr(layer, "input_norms", ()):
        scale, offset = SCALE_DTYPES[norm.weight.dtype]
        norm.output_scale = layer.aclnn_input_scale.data.to(scale)  # [K]
        norm.output_offset = layer.aclnn_input_offset.data.to(offset)  # [K]
        norm.__class__ = QuantizingRMSNorm  # in place, so that names and references stay
