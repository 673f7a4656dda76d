# SPDX-License-Identifier: Apache-2.0
"""Quantizes a float checkpoint to msModelSlim's W8A8, W8A8_DYNAMIC or W8A8S, a block at a time."""

from vllm_glm41v_npu.quant.quantizer.plan import TYPES, W8A8, W8A8_DYNAMIC, W8A8S, QuantizerError
from vllm_glm41v_npu.quant.quantizer.quantize import Request, quantize
from vllm_glm41v_npu.quant.quantizer.report import Report
from vllm_glm41v_npu.quant.quantizer.scheme import Settings

__all__ = [
    "TYPES",
    "W8A8",
    "W8A8S",
    "W8A8_DYNAMIC",
    "QuantizerError",
    "Report",
    "Request",
    "Settings",
    "quantize",
]
