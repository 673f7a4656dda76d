# SPDX-License-Identifier: Apache-2.0
"""The kernels of memory, of sampling, and of a float32 product."""

from __future__ import annotations

import math

import pytest
import torch

from npu_emulator.kernels.matrix import matmul_add_fp32
from npu_emulator.kernels.memory import format_cast, prefetch
from npu_emulator.kernels.sampling import top_k_top_p
from tests.emulator.attention_oracle import assert_rounded_once, random


def test_format_cast_copies() -> None:
    x = random(4, 6).t()
    y = format_cast(x, 29)
    assert torch.equal(x, y) and y.shape == x.shape and y.dtype == x.dtype
    assert y.data_ptr() != x.data_ptr()


def test_prefetch_changes_nothing() -> None:
    x = random(4, 6)
    before = x.clone()
    assert prefetch(x, None, 100) is None
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matmul_add_fp32_in_place(dtype: torch.dtype) -> None:
    x, weight, total = random(7, 3, dtype=dtype), random(7, 5, dtype=dtype, seed=1), random(3, 5)
    expected = total.double() + x.double().t() @ weight.double()
    pointer = total.data_ptr()
    assert matmul_add_fp32(x, weight, total) is None
    assert total.data_ptr() == pointer
    assert_rounded_once(total, expected)


def kept(logits: list[float], p: float | None, k: int | None) -> set[int]:
    """Indices that survive, by lists and math.exp."""
    left = set(range(len(logits)))
    if k is not None:
        smallest = sorted(logits)[len(logits) - k]
        left = {i for i in left if logits[i] >= smallest}
    if p is not None:
        total = sum(math.exp(logits[i]) for i in left)
        below = 0.0
        order = sorted(left, key=lambda i: (logits[i], i))
        for i in order[:-1]:
            below += math.exp(logits[i]) / total
            if below <= 1 - p:
                left.remove(i)
    return left


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("with_p", [True, False])
@pytest.mark.parametrize("with_k", [True, False])
def test_top_k_top_p(with_p: bool, with_k: bool, dtype: torch.dtype) -> None:
    logits = (random(6, 50) * 3).to(dtype)
    p = torch.tensor([0.013, 0.307, 0.5, 0.911, 0.9987, 1.0]) if with_p else None
    k = torch.tensor([1, 2, 7, 49, 50, 20], dtype=torch.int32) if with_k else None
    before = logits.clone()
    result = top_k_top_p(logits, p, k)
    assert result.dtype == dtype and torch.equal(logits, before)
    for i, row in enumerate(logits.tolist()):
        left = kept(row, None if p is None else float(p[i]), None if k is None else int(k[i]))
        wanted = [x if j in left else -math.inf for j, x in enumerate(row)]
        assert result[i].tolist() == wanted


def test_values_equal_to_the_kth_stay() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    result = top_k_top_p(logits, None, torch.tensor([2], dtype=torch.int32))
    assert result.tolist() == [[-math.inf, 3.0, 2.0, 2.0, -math.inf]]


def test_the_largest_stays_whatever_p_is() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    result = top_k_top_p(logits, torch.tensor([0.0]))
    assert result.tolist() == [[-math.inf, 3.0, -math.inf]]
