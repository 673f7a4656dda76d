# SPDX-License-Identifier: Apache-2.0
"""How msModelSlim stores a dequantization scale."""

from __future__ import annotations

import torch


def float_scale(scale: torch.Tensor) -> torch.Tensor:
    """float32 of the same shape; of an int64 scale, the low 32 bits are a float32's.

    Source: msmodelslim/pytorch/llm_ptq/llm_ptq_tools/save/complex_quantifier.py.
    """
    if scale.dtype == torch.int64:
        return scale.to(torch.int32).view(torch.float32)
    return scale.float()
