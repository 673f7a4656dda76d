# SPDX-License-Identifier: Apache-2.0
"""float16 and the decoder's residual stream, which may not grow beyond 65,504.

Each layer adds the outputs of two RMSNorms to the stream, and a norm bounds its output: a channel
of weight w is at most w * sqrt(hidden_size). So the loaded weights tell how large the stream can
get. Where float16 holds that, nothing is checked when running. Otherwise every addition saturates
where it would have overflowed to infinity, which turns all that follows to NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import nn

logger = logging.getLogger(f"vllm.{__name__}")

LARGEST = torch.finfo(torch.float16).max
LARGEST_START = 16384.0
"""The largest value that embeddings enter the stream with; those of pictures are clamped to it."""


def _addends(layer: nn.Module) -> torch.Tensor:
    """Return float32 [2, hidden_size]: the most that attention and MLP add to each channel."""
    norms = (layer.post_self_attn_layernorm, layer.post_mlp_layernorm)
    weights = torch.stack([norm.weight.detach().float().abs() for norm in norms])
    largest = weights * weights.shape[-1] ** 0.5
    for row, norm in zip(largest, norms, strict=True):
        bias = getattr(norm, "bias", None)  # see norm_bias.py
        if bias is not None:
            row += bias.detach().float().abs()
    return largest


def may_overflow(layers: Sequence[nn.Module], depth: int) -> bool:
    """Return whether the stream can leave float16's range.

    Args:
        layers: The decoder layers of this pipeline stage.
        depth: Number of layers of all stages; the others are taken to be like these.
    """
    grown = sum(_addends(layer).sum(dim=0) for layer in layers)  # [hidden_size]
    return LARGEST_START + grown.max().item() * depth / len(layers) > LARGEST


def guard_residual(layers: Iterable[nn.Module], depth: int) -> None:
    """Let each of the float16 `layers` saturate if their loaded weights allow an overflow.

    May be called again; it warns when the answer turns to yes.
    """
    layers = [layer for layer in layers if not layer.post_mlp_layernorm.weight.is_meta]
    saturates = bool(layers) and may_overflow(layers, depth)
    if saturates and not all(layer.saturates for layer in layers):
        logger.warning(
            "These weights may bring the hidden states beyond float16's %.0f, so every addition "
            "to them saturates. bfloat16 has no such limit.",
            LARGEST,
        )
    for layer in layers:
        layer.saturates = saturates


def summands(
    x: torch.Tensor, residual: torch.Tensor, saturates: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as they are, or clamped to half of float16's range so that their sum fits."""
    if not saturates:
        return x, residual
    return x.clamp(-LARGEST / 2, LARGEST / 2), residual.clamp(-LARGEST / 2, LARGEST / 2)
