# SPDX-License-Identifier: Apache-2.0
"""The stored form of msModelSlim's dequantization scale, to and from float32.

A checkpoint for bfloat16 has float32; one for float16 has int64, whose low 32 bits are those of a
float32.

Source: msModelSlim 26.1.0, llm_ptq_tools/save/complex_quantifier.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def float_scale(stored: Tensor) -> Tensor:
    """Return a stored scale, or any other, as float32 of the same shape."""
    if stored.dtype == torch.int64:
        return stored.to(torch.int32).view(torch.float32)
    return stored.float()


def stored_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a scale as a file has it.

    Args:
        scale: float32.
        dtype: The dtype that the checkpoint is made for.

    Returns:
        int64 for float16, else float32; of the same shape.
    """
    return scale.view(torch.int32).to(torch.int64) if dtype == torch.float16 else scale
