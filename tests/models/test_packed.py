# SPDX-License-Identifier: Apache-2.0
"""The order of the output channels in the tensors that other tools write."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.models.other_tools import AWQ, pack
from vllm_glm41v_npu.models.packed import LayoutError, reorder_channels
from vllm_glm41v_npu.models.rope import deinterleave

HEAD, ROTATED, CHANNELS, INPUTS = 16, 8, 64, 32
REORDER = partial(deinterleave, head_dim=HEAD, rotated=ROTATED)


def reordered(suffix: str, tensor: torch.Tensor, awq: bool = False) -> torch.Tensor:
    return reorder_channels(suffix, tensor, CHANNELS, HEAD, REORDER, awq)


@pytest.fixture
def weight() -> torch.Tensor:
    """[CHANNELS, INPUTS] of four bits."""
    return torch.randint(0, 16, (CHANNELS, INPUTS), generator=torch.Generator().manual_seed(0))


def test_compressed_tensors(weight: torch.Tensor) -> None:
    """Guards W4A16, whose inputs are packed, and whose zero points are packed over outputs."""
    packed = pack(weight)
    assert torch.equal(reordered("weight_packed", packed), pack(REORDER(weight)))
    scales = weight[:, ::8].float()
    assert torch.equal(reordered("weight_scale", scales), REORDER(scales))
    zeros = pack(weight[:, ::8].t()).t()  # [outputs / 8, groups]
    assert torch.equal(reordered("weight_zero_point", zeros), pack(REORDER(weight[:, ::8]).t()).t())


def test_awq(weight: torch.Tensor) -> None:
    """Guards outputs that are packed along the last axis, in an order of their own."""
    for suffix, values in (("qweight", weight.t()), ("qzeros", weight.t()[::8])):
        want = pack(REORDER(values.t()).t(), AWQ)
        assert torch.equal(reordered(suffix, pack(values, AWQ), awq=True), want)
    scales = weight.t()[::8].half()
    assert torch.equal(reordered("scales", scales), REORDER(scales.t()).t())


def test_gptq(weight: torch.Tensor) -> None:
    """Guards inputs that are packed along the first axis, beside zeros packed over outputs."""
    packed = pack(weight).t()  # [inputs / 8, outputs]
    assert torch.equal(reordered("qweight", packed), pack(REORDER(weight)).t())
    zeros = weight.t()[::8]
    assert torch.equal(reordered("qzeros", pack(zeros)), pack(REORDER(zeros.t()).t()))


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [("weight_shape", [2]), ("g_idx", [CHANNELS]), ("weight_g_idx", [CHANNELS]), ("scale", [1])],
)
def test_what_says_nothing_of_a_channel_stays(suffix: str, shape: list[int]) -> None:
    """Guards against a permutation of the input channels, where there are as many as outputs."""
    tensor = torch.arange(shape[0])
    assert torch.equal(reordered(suffix, tensor), tensor)


@pytest.mark.parametrize("rows", [CHANNELS // HEAD, CHANNELS // (2 * HEAD)])
def test_scales_of_whole_heads_stay(rows: int) -> None:
    """Guards FP8 by blocks: a block of whole heads has the same channels after as before."""
    scales = torch.rand(rows, 2)
    assert torch.equal(reordered("weight_scale_inv", scales), scales)


@pytest.mark.parametrize(
    ("suffix", "tensor"),
    [
        ("weight_scale_inv", torch.rand(CHANNELS // 8, 2)),
        ("weight", torch.zeros(CHANNELS * INPUTS // 2, 1, dtype=torch.uint8)),
        ("absmax", torch.rand(CHANNELS)),
        ("qweight", torch.zeros(INPUTS, CHANNELS // 16, dtype=torch.int32)),
    ],
)
def test_unknown_layouts_are_refused(suffix: str, tensor: torch.Tensor) -> None:
    """Guards against rows that are left in the checkpoint's order in silence."""
    with pytest.raises(LayoutError):
        reordered(suffix, tensor)
