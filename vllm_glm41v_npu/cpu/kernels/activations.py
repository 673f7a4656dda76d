# SPDX-License-Identifier: Apache-2.0
"""Quantization of activations to int8, in plain PyTorch: torch.compile makes one loop of each.

All arithmetic is in float32, whatever the dtype of x, as in the kernels of npu_emulator/.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def quantize_static(
    x: Tensor, scale: float, offset: int, rule: Literal["msmodelslim", "npu"] = "msmodelslim"
) -> Tensor:
    """Quantize x, floating point of any shape, with one scale and offset: int8 of x's shape.

    Args:
        scale: the width of a step; x_q is near x / scale + offset.
        rule: "msmodelslim" is its published formula, clip(round(x / scale) + offset, -128, 127)
            (quantization of `complex_quantifier.py`). "npu" is `npu_quantize` as vllm-ascend calls
            it: round(x * reciprocal + offset), where scale and 1 / scale are rounded to the dtype
            of x (op-plugin 26.0.0: torch_npu-npu_quantize.md, div_mode=False). Halves go to the
            even integer in both; the results differ by at most one step but for that rounding.
    """
    if rule == "msmodelslim":
        steps = (x.float() / scale).round() + offset
    else:
        reciprocal = 1 / torch.full((), scale, dtype=x.dtype)
        steps = (x.float() * reciprocal.float() + offset).round()
    return steps.clamp(-128, 127).to(torch.int8)


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of x, floating point [M, K], by its own largest absolute value.

    Returns int8 [M, K] and the scales, float32 [M]: scale = max(abs(x)) / 127 and
    x_q = round(x / scale), halves to even. A row of zeros gives zeros and a scale of 0. The rule of
    `npu_dynamic_quant` (op-plugin 26.0.0: torch_npu-npu_dynamic_quant.md).
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127  # [M, 1]
    x_q = (x / scale.masked_fill(scale == 0, 1.0)).round().clamp(-128, 127).to(torch.int8)
    return x_q, scale.squeeze(-1)
