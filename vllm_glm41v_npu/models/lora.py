# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of a decoder whose q and k rows were permuted at load."""

from __future__ import annotations

from typing import Any

import torch

from .rope import deinterleave


def deinterleave_adapters(qkv_proj: Any, head_dim: int, rotated: int) -> None:
    """Make vLLM's LoRA wrapper of a qkv projection permute the rows of every adapter it is given.

    An adapter is trained against the checkpoint, whose q and k rows are interleaved; see
    `rope.deinterleave`. Its B matrices [rows, rank] get the permutation of the weights.
    """
    set_lora = qkv_proj.set_lora

    def set_permuted(
        index: int, lora_a: list[torch.Tensor | None], lora_b: list[torch.Tensor | None]
    ) -> None:
        q, k, v = lora_b
        rows = [None if b is None else deinterleave(b, head_dim, rotated) for b in (q, k)]
        set_lora(index, lora_a, [*rows, v])

    qkv_proj.set_lora = set_permuted
