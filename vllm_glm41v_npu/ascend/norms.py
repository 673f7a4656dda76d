# SPDX-License-Identifier: Apache-2.0
"""The decoder's input norms, which can quantize their output in the operator that normalizes.

A decoder layer's norms before qkv_proj and gate_up_proj add the residual, and only that one linear
layer reads their output. vllm-ascend fuses the two steps in compiled graphs on Atlas A2 alone, and
with a scale in the network's dtype, which the operator takes in bfloat16 only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_npu
from torch import nn
from vllm.config import get_current_vllm_config
from vllm_ascend._310p.ops.layernorm import AscendRMSNorm310
from vllm_ascend.ops.layernorm import AscendRMSNorm

SCALE_DTYPES = {
    torch.float16: (torch.float32, torch.int32),
    torch.bfloat16: (torch.bfloat16, torch.bfloat16),
}
"""Dtype of the network to the dtypes of scale and offset. Source: op-plugin's document of
npu_add_rms_norm_quant."""


class A2InputNorm(AscendRMSNorm):
    """RMSNorm that adds the residual, and quantizes once `quantize_output` gave it a scale."""

    output_scale: torch.Tensor | None = None
    output_offset: torch.Tensor | None = None

    def quantize_output(self, scale: torch.Tensor, offset: torch.Tensor) -> None:
        """Return int8 from now on, wherever there is a residual.

        Args:
            scale: [hidden_size], the width of a step of each channel.
            offset: [hidden_size], the step of zero.
        """
        scale_dtype, offset_dtype = SCALE_DTYPES[self.weight.dtype]
        self.output_scale, self.output_offset = scale.to(scale_dtype), offset.to(offset_dtype)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Norm x, or the sum of x and residual, [tokens, hidden_size]; return the sum too."""
        if residual is None or self.output_scale is None:
            return super().forward(x, residual)
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


class Atlas310PInputNorm(A2InputNorm, AscendRMSNorm310):
    """A2InputNorm over vllm-ascend's norm for Atlas 310P."""


class FusesNorms:
    """Base of a scheme whose layers' norms quantize; placed before vllm-ascend's class."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Prepare the weights as vllm-ascend does, then call `fuse_norms`."""
        scheme: Any = super()
        scheme.process_weights_after_loading(layer)
        fuse_norms(layer)


def fuse_norms(layer: nn.Module) -> None:
    """Let the norms before a static layer quantize for it, once its weights are there.

    `layer.input_norms` are the norms whose output only this layer reads. vLLM's LoRA layers
    multiply that output too, in the network's dtype, so with LoRA nothing is fused.
    """
    if get_current_vllm_config().lora_config is not None:
        return
    for norm in getattr(layer, "input_norms", ()):
        norm.quantize_output(layer.aclnn_input_scale.data, layer.aclnn_input_offset.data)
