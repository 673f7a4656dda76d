# SPDX-License-Identifier: Apache-2.0
"""Schemes of quantized linear layers on Atlas A2."""

from __future__ import annotations

from torch import nn
from vllm_ascend.quantization.methods.w8a8_dynamic import AscendW8A8DynamicLinearMethod
from vllm_ascend.quantization.methods.w8a8_static import AscendW8A8LinearMethod

from vllm_glm41v_npu.ascend.norms import FusesNorms
from vllm_glm41v_npu.checkpoint.description import DYNAMIC, STATIC


class StaticScheme(FusesNorms, AscendW8A8LinearMethod):
    """W8A8, and W8A8S with the same tensors and arithmetic; vllm-ascend has no scheme for W8A8S."""


class DynamicScheme(AscendW8A8DynamicLinearMethod):
    """W8A8_DYNAMIC, with the weights' scale in float32, which the operator needs for float16."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        super().process_weights_after_loading(layer)
        layer.weight_scale.data = layer.weight_scale_fp32


SCHEMES: dict[str, type] = {**dict.fromkeys(STATIC, StaticScheme), DYNAMIC: DynamicScheme}
