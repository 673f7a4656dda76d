# SPDX-License-Identifier: Apache-2.0
"""The numbers of msModelSlim's format: integers, scales, and the products they stand for.

Static types (W8A8, W8A8S) compute `x_q = clip(round(x / input_scale) + input_offset)` and
`y = (x_q . weight^T + quant_bias) * deq_scale`, W8A8_DYNAMIC
`y = (round(x / token_scale) . weight^T) * token_scale * weight_scale + bias`.
Source: msModelSlim 26.1.0, llm_ptq_tools/save/complex_quantifier.py; vllm-ascend 0.23.0,
quantization/methods/w8a8_static.py and w8a8_dynamic.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_glm41v_npu.quant.quantizer.plan import QuantizerError

LEAST, MOST = -128, 127
LEVELS = MOST - LEAST
LARGEST_BIAS = 2**31 - 1 - 2**30
"""Leaves half of int32 to the product."""


@dataclass(frozen=True)
class InputScale:
    """A static input scale per tensor.

    Attributes:
        scale: float32 [1], exact in the dtype the checkpoint runs in.
        offset: float32 [1], an integer from -128 to 127.
    """

    scale: Tensor
    offset: Tensor

    def quantize(self, x: Tensor) -> Tensor:
        """float32 of integers, of x's shape."""
        return x.div(self.scale).round_().add_(self.offset).clamp_(LEAST, MOST)

    def restore(self, x_q: Tensor) -> Tensor:
        return (x_q - self.offset) * self.scale

    def clipped_share(self, x: Tensor) -> float:
        """The share of values that lie outside the range by more than half a step."""
        levels = x / self.scale + self.offset
        return ((levels < LEAST - 0.5) | (levels > MOST + 0.5)).float().mean().item()


def round_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 `values` >= 0 rounded to `dtype`, none of them down: [...] to float32 [...].

    A scale that is rounded down would clip the largest value. Zero gives the smallest positive
    number.
    """
    rounded = values.to(dtype)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where((rounded.float() < values) | (rounded == 0), above, rounded).float()


def input_scale(low: Tensor, high: Tensor, dtype: torch.dtype) -> InputScale:
    """The scale and offset for inputs from `low` to `high` (float32 scalars) in 256 steps.

    Zero is always one of the steps. In float16 the reciprocal, by which vllm-ascend multiplies,
    stays finite.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    least = 2 / torch.finfo(dtype).max
    scale = round_up(((high - low) / LEVELS).clamp(min=least), dtype)
    offset = (LEAST - low / scale).round().clamp(LEAST, MOST)
    return InputScale(scale.reshape(1), offset.reshape(1))


def weight_scale(weight: Tensor) -> Tensor:
    """max(abs(row)) / 127 of each row: float32 [N, K] to [N, 1].

    A row of zeros gets the scale of the row with the largest value, so that its bias, which is
    counted in steps of that scale, is still exact enough.
    """
    largest = weight.abs().amax(1, keepdim=True)
    whole = largest.amax() if largest.amax() > 0 else largest.new_ones(())
    return torch.where(largest > 0, largest, whole) / MOST


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """float32 of integers [N, K], symmetric: no weight is -128."""
    return weight.div(scale).round_().clamp_(-MOST, MOST)


def dynamic_input(x: Tensor) -> Tensor:
    """x after quantization with max(abs(token)) / 127 and back: float32 [tokens, K]."""
    scale = (x.abs().amax(-1, keepdim=True) / MOST).clamp(min=torch.finfo(x.dtype).tiny)
    return x.div(scale).round_().mul_(scale)


def quant_bias(
    weight: Tensor, bias: Tensor | None, deq_scale: Tensor, offset: Tensor, name: str
) -> Tensor:
    """round(bias / deq_scale) - offset * sum(weight row), as int32 [N].

    Args:
        weight: Integers [N, K] of any dtype.
        bias: [N] in the units of the output, or none.
        deq_scale: float32 [N].
        offset: float32 [1].
        name: The layer's, for the message.

    Raises:
        QuantizerError: The bias is so many steps that the sum could leave int32.
    """
    total = -weight.double().sum(1) * offset.double()
    if bias is not None:
        total += bias.double() / deq_scale.double()
    if total.abs().amax() > LARGEST_BIAS:
        raise QuantizerError(
            f"{name} has a bias of up to {bias.abs().max() if bias is not None else 0:.3g} beside "
            f"output steps of down to {deq_scale.min():.3g}, too many for int32. Keep the layer "
            "float with --keep-float."
        )
    return total.round().to(torch.int32)
