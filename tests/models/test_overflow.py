# SPDX-License-Identifier: Apache-2.0
"""When the float16 residual stream is guarded, and what the guard does to its numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vllm_glm41v_npu.models.overflow import guard_residual, may_overflow, summands

HALF_RANGE = 32752.0
"""Two of these are float16's largest number, 65,504."""
WIDTH = 16  # whose root is 4


def layer(weight: float, bias: float | None = None) -> Any:
    """A layer whose two norms let through 4 * weight, and a bias, each."""

    def norm() -> SimpleNamespace:
        values = torch.ones(WIDTH)
        values[3] = -weight  # one channel decides, of either sign
        vector = None if bias is None else nn.Parameter(torch.full((WIDTH,), -bias))
        return SimpleNamespace(weight=nn.Parameter(values), bias=vector)

    return SimpleNamespace(post_self_attn_layernorm=norm(), post_mlp_layernorm=norm())


# What is left of 65,504 beside embeddings of at most 16,384 is 49,120: two norms of 4 * 6,140.
@pytest.mark.parametrize(
    ("weights", "bias", "depth", "expected"),
    [
        ([6140.0], None, 1, False),
        ([6141.0], None, 1, True),
        ([6140.0], 1.0, 1, True),
        ([3070.0, 3070.0], None, 2, False),
        ([3070.0, 3071.0], None, 2, True),
        ([3070.0], None, 2, False),
        ([3071.0], None, 2, True),
        ([2046.0, 2046.0], None, 6, False),
    ],
)
def test_the_weights_say_whether_the_stream_may_overflow(
    weights: list[float], bias: float | None, depth: int, expected: bool
) -> None:
    """Guards the bound of a norm, its bias, and the layers of other pipeline stages."""
    if depth == 6:
        weights = [1023.0, 1023.0]  # 6 layers of 2 * 4 * 1023 are 49,104
    assert may_overflow([layer(weight, bias) for weight in weights], depth) is expected


def test_layers_of_other_stages_count() -> None:
    """Guards a stage whose own layers fit: the stream comes from those before it."""
    one = layer(3071.0)
    guard_residual([one], 1)
    assert one.saturates is False
    guard_residual([one], 2)
    assert one.saturates is True


def test_summands_saturate_at_half_of_the_range() -> None:
    """Guards the values themselves: a sum is at most float16's largest number, and no less."""
    x = torch.tensor([60000.0, -60000.0, 32000.0, 1.0]).half()
    residual = torch.tensor([60000.0, -60000.0, -65504.0, 2.0]).half()
    a, b = summands(x, residual, True)
    assert a.tolist() == [HALF_RANGE, -HALF_RANGE, 32000.0, 1.0]
    assert b.tolist() == [HALF_RANGE, -HALF_RANGE, -HALF_RANGE, 2.0]
    assert (a + b).tolist() == [65504.0, -65504.0, -752.0, 3.0]
    assert summands(x, residual, False) == (x, residual)
