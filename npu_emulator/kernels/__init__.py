# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of the NPU operators that vllm-ascend calls; importing this package fills KERNELS."""

from npu_emulator.kernels import (
    attention,
    fused_attention,
    matrix,
    memory,
    norm,
    paged_attention,
    quantization,
    rope,
    sampling,
)
from npu_emulator.kernels.registry import KERNELS, register

__all__ = [
    "KERNELS",
    "attention",
    "fused_attention",
    "matrix",
    "memory",
    "norm",
    "paged_attention",
    "quantization",
    "register",
    "rope",
    "sampling",
]
