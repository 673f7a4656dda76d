# SPDX-License-Identifier: Apache-2.0
"""Schemes of quantized linear layers on Atlas 310P."""

from __future__ import annotations

import math

import torch
import torch_npu
from torch import Tensor, nn
from vllm_ascend._310p.quantization.methods.w8a8_dynamic import AscendW8A8DynamicLinearMethod310
from vllm_ascend._310p.quantization.methods.w8a8_static import AscendW8A8LinearMethod310
from vllm_ascend._310p.quantization.methods.w8a8s import AscendW8A8SLinearMethod310
from vllm_ascend.quantization.methods.w8a8_dynamic import scale_from_float_to_int64

from vllm_glm41v_npu.ascend.compressed import CompressedScheme
from vllm_glm41v_npu.ascend.norms import FusesNorms
from vllm_glm41v_npu.checkpoint.description import COMPRESSED, DYNAMIC

LARGEST = torch.finfo(torch.float16).max


class StaticScheme(FusesNorms, AscendW8A8LinearMethod310):
    """W8A8."""


class SparseScheme(FusesNorms, AscendW8A8SLinearMethod310):
    """W8A8S; vllm-ascend keeps the file's order of its weight, so that shards can be saved."""


class DynamicScheme(AscendW8A8DynamicLinearMethod310):
    """W8A8_DYNAMIC, with the scale of the tokens applied after the product.

    The chip's product takes neither a scale of tokens, which vllm-ascend passes, nor a float bias.
    Its result is float16, and the sum times the weights' scale could overflow it. So that scale is
    divided by a power of two that is large enough for any input.
    """

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        # The largest sum of each channel, reached if every input is 127 or -127: float32 [N]
        largest = 127 * layer.weight.data.abs().sum(dim=1, dtype=torch.int32).float()
        super().process_weights_after_loading(layer)
        scale = layer.weight_scale.data  # float32 [N]
        most = (largest * scale).max().item()
        layer.taken_off = 2.0 ** max(0, math.ceil(math.log2(most / LARGEST))) if most else 1.0
        layer.weight_scale.data = scale_from_float_to_int64(scale / layer.taken_off)

    def apply(
        self, layer: nn.Module, x: Tensor, bias: Tensor | None = None, tp_rank: int | None = 0
    ) -> Tensor:
        """float16 [..., K] to float16 [..., N]."""
        rows = x.reshape(-1, x.shape[-1])  # [M, K]
        x_q, token_scale = torch_npu.npu_dynamic_quant(rows)
        y = torch_npu.npu_quant_matmul(
            x_q, layer.weight.data, layer.weight_scale, output_dtype=x.dtype
        )
        y = y.float() * (token_scale * layer.taken_off)[:, None]  # [M, 1]
        if bias is not None:
            y = y + bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], -1)  # [..., N]


SCHEMES: dict[str, type] = {
    "W8A8": StaticScheme,
    "W8A8S": SparseScheme,
    COMPRESSED: CompressedScheme,
    DYNAMIC: DynamicScheme,
}
