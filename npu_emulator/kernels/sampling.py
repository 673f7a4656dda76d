# SPDX-License-Identifier: Apache-2.0
"""The filter before sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_emulator.kernels.registry import kernel


@kernel("npu::npu_top_k_top_p")
def top_k_top_p(logits: Tensor, p: Tensor | None = None, k: Tensor | None = None) -> Tensor:
    """Logits below the k-th largest become -inf, then the tail of probability at most 1 - p.

    Values equal to the k-th stay; the largest stays whatever p is. Probabilities are summed from
    the smallest.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_top_k_top_p.md
    """
    values, indices = logits.float().sort(dim=-1, stable=True)  # (batch, vocabulary), ascending
    if k is not None:
        kth = (values.shape[-1] - k.long()).clamp_(0, values.shape[-1] - 1).unsqueeze(-1)
        values.masked_fill_(values < values.gather(-1, kth), -torch.inf)
    if p is not None:
        tail = values.softmax(-1).cumsum(-1) <= 1 - p.float().unsqueeze(-1)
        tail[:, -1] = False
        values.masked_fill_(tail, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, indices, values.to(logits.dtype))
