# SPDX-License-Identifier: Apache-2.0
"""float16 and the decoder's residual stream, which may not grow beyond 65,504.

What a layer adds to the stream comes out of an RMSNorm, which bounds it: a channel of weight w gives
at most w * sqrt(hidden_size). So the loaded weights say how large the stream can get. Where float16
holds that, nothing is checked when running; else every addition saturates where it would have
overflowed to infinity, and turned all after it to NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import nn

logger = logging.getLogger(f"vllm.{__name__}")

LARGEST = torch.finfo(torch.float16).max
LARGEST_START = 16384.0
"""What embeddings enter the stream with at most; those of pictures are cut off there."""


def addends(layer: nn.Module) -> torch.Tensor:
    """float32 [2, hidden_size]: the largest values that attention and MLP add to each channel."""
    norms = (layer.post_self_attn_layernorm, layer.post_mlp_layernorm)
    weights = torch.stack([norm.weight.detach().float().abs() for norm in norms])
    return weights * weights.shape[-1] ** 0.5


def residual_limit(layers: Iterable[nn.Module], depth: int) -> float | None:
    """What the stream must be cut to before an addition, or None where it cannot overflow.

    Args:
        layers: The decoder layers of this pipeline stage.
        depth: How many layers all stages have; the others are taken to be like these.
    """
    bounds = torch.stack([addends(layer) for layer in layers])  # [layers, 2, hidden_size]
    grown = bounds.sum(dim=(0, 1)).max().item() * depth / bounds.shape[0]
    if LARGEST_START + grown <= LARGEST:
        return None
    return max(LARGEST - bounds.max().item(), LARGEST / 2)


def guard_residual(layers: Iterable[nn.Module], depth: int) -> None:
    """Let each of the float16 `layers` saturate, if their weights allow an overflow."""
    layers = list(layers)
    limit = residual_limit(layers, depth) if layers else None
    if limit is not None:
        logger.warning(
            "These weights may bring the hidden states beyond float16's %.0f; they are cut to "
            "±%.0f before each addition. bfloat16 has no such limit.",
            LARGEST,
            limit,
        )
    for layer in layers:
        layer.residual_limit = limit


def cut(stream: torch.Tensor, limit: float | None) -> torch.Tensor:
    """`stream` within ±limit; itself where there is no limit."""
    return stream if limit is None else stream.clamp(-limit, limit)
