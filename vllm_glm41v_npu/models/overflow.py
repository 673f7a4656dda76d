# SPDX-License-Identifier: Apache-2.0
"""float16 and the decoder's residual stream, which may not grow beyond 65,504.

What a layer adds to the stream comes out of an RMSNorm, which bounds it: a channel of weight w
gives at most w * sqrt(hidden_size). So the loaded weights say how large the stream can get. Where
float16 holds that, nothing is checked when running; else every addition saturates where it would
have overflowed to infinity, and turned all after it to NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

logger = logging.getLogger(f"vllm.{__name__}")

LARGEST = torch.finfo(torch.float16).max
LARGEST_START = 16384.0
"""What embeddings enter the stream with at most; those of pictures are cut off there."""


def _addends(layer: nn.Module) -> torch.Tensor:
    """float32 [2, hidden_size]: the largest values that attention and MLP add to each channel."""
    norms = (layer.post_self_attn_layernorm, layer.post_mlp_layernorm)
    weights = torch.stack([norm.weight.detach().float().abs() for norm in norms])
    largest = weights * weights.shape[-1] ** 0.5
    for row, norm in zip(largest, norms, strict=True):
        bias = getattr(norm, "bias", None)  # see norm_bias.py
        if bias is not None:
            row += bias.detach().float().abs()
    return largest


def may_overflow(layers: Sequence[nn.Module], depth: int) -> bool:
    """Whether the stream can leave float16's range.

    Args:
        layers: The decoder layers of this pipeline stage.
        depth: How many layers all stages have; the others are taken to be like these.
    """
    grown = sum(_addends(layer).sum(dim=0) for layer in layers)  # [hidden_size]
    return LARGEST_START + grown.max().item() * depth / len(layers) > LARGEST


def guard_residual(layers: Iterable[nn.Module], depth: int) -> None:
    """Let each of the float16 `layers` saturate, if the weights allow an overflow."""
    layers = [layer for layer in layers if not layer.post_mlp_layernorm.weight.is_meta]
    saturates = bool(layers) and may_overflow(layers, depth)
    if saturates:
        logger.warning(
            "These weights may bring the hidden states beyond float16's %.0f, so every addition "
            "to them saturates. bfloat16 has no such limit.",
            LARGEST,
        )
    for layer in layers:
        layer.saturates = saturates


@QuantizeMethodBase.register
class GuardAfterLoading:
    """As `quant_method` of the decoder, guards it when vLLM has filled its parameters.

    vLLM calls this of every module, whichever loader it was: `load_weights` is not always.
    """

    def process_weights_after_loading(self, decoder: nn.Module) -> None:
        guard_residual(decoder.stage_layers, len(decoder.layers))


def summands(
    x: torch.Tensor, residual: torch.Tensor, saturates: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as they are, or within half of float16's range, so that their sum is within it."""
    if not saturates:
        return x, residual
    return x.clamp(-LARGEST / 2, LARGEST / 2), residual.clamp(-LARGEST / 2, LARGEST / 2)
