# SPDX-License-Identifier: Apache-2.0
"""int8 products on the CPU: exact to the last bit; one token takes the time of reading memory."""

from vllm_glm41v_npu.cpu.kernels.activations import quantize_per_token, quantize_static
from vllm_glm41v_npu.cpu.kernels.ops import int8_linear, int8_matmul
from vllm_glm41v_npu.cpu.kernels.packing import PackedWeight, pack_weight

__all__ = [
    "PackedWeight",
    "int8_linear",
    "int8_matmul",
    "pack_weight",
    "quantize_per_token",
    "quantize_static",
]
