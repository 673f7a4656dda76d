# SPDX-License-Identifier: Apache-2.0
"""RMS norms and SwiGLU against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npu_emulator.kernels.norm import (
    add_rms_norm,
    add_rms_norm_bias,
    add_rms_norm_dynamic_quant,
    add_rms_norm_quant,
    rms_norm,
    swiglu,
)
from tests.emulator.attention_oracle import assert_rounded_once, random

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# The shapes of x and gamma: one normalised dimension, and two.
SHAPES = [((3, 5, 48), (48,)), ((7, 4096), (4096,)), ((2, 3, 4, 16), (4, 16))]


def formula(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """In float64: (y, rstd), one row after another."""
    width = gamma.numel()
    rows = x.double().reshape(-1, width)
    rstd = torch.tensor([1 / (float((row * row).sum()) / width + epsilon) ** 0.5 for row in rows])
    y = rows * rstd.double().unsqueeze(-1) * gamma.double().reshape(-1)
    front = x.shape[: x.dim() - gamma.dim()]
    return y.view(x.shape), rstd.double().view(*front, *[1] * gamma.dim())


def summed(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """(what is normalised, what is returned): only float16 is rounded before the norm."""
    total = x1.double() + x2.double()
    rounded = total.to(x1.dtype)
    return (rounded.double() if x1.dtype == torch.float16 else total), rounded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "width"), SHAPES)
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_rms_norm(shape, width, dtype: torch.dtype, epsilon: float) -> None:
    x, gamma = random(*shape, dtype=dtype), random(*width, dtype=dtype, seed=1)
    before = x.clone()
    y, rstd = rms_norm(x, gamma, epsilon)
    expected, expected_rstd = formula(x, gamma, epsilon)
    assert y.dtype == dtype and rstd.dtype == torch.float32
    assert y.shape == x.shape and rstd.shape == expected_rstd.shape
    assert_rounded_once(y, expected)
    assert_rounded_once(rstd, expected_rstd)
    assert torch.equal(x, before)


def test_rms_norm_takes_a_float32_gamma() -> None:
    x, gamma = random(4, 32, dtype=torch.bfloat16), random(32, seed=1)
    y, _ = rms_norm(x, gamma)
    assert y.dtype == torch.bfloat16
    assert_rounded_once(y, formula(x, gamma, 1e-6)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "width"), SHAPES)
def test_add_rms_norm(shape, width, dtype: torch.dtype) -> None:
    x1, x2 = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=2)
    gamma = random(*width, dtype=dtype, seed=1)
    y, rstd, x = add_rms_norm(x1, x2, gamma, 1e-5)
    total, rounded = summed(x1, x2)
    expected, expected_rstd = formula(total, gamma, 1e-5)
    assert torch.equal(x, rounded)
    assert_rounded_once(y, expected)
    assert_rounded_once(rstd, expected_rstd)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_add_rms_norm_bias(dtype: torch.dtype, with_bias: bool) -> None:
    x1, x2, gamma, beta = (random(6, 64, dtype=dtype, seed=seed) for seed in range(4))
    gamma, beta = gamma[0], beta[0]
    y, rstd, x = add_rms_norm_bias(x1, x2, gamma, beta if with_bias else None)
    total, rounded = summed(x1, x2)
    expected, expected_rstd = formula(total, gamma, 1e-6)
    assert torch.equal(x, rounded)
    assert_rounded_once(y, expected + beta.double() if with_bias else expected)
    assert_rounded_once(rstd, expected_rstd)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("div_mode", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_add_rms_norm_quant(dtype: torch.dtype, div_mode: bool, second: bool) -> None:
    x1, x2, gamma, beta = (random(8, 96, dtype=dtype, seed=seed) for seed in range(4))
    gamma, beta = gamma[0], beta[0]
    scales = [random(96, seed=seed).abs() + 0.02 for seed in (7, 8)]
    zeros = [torch.randint(-20, 20, (96,), dtype=torch.int32) for _ in range(2)]
    more = (scales[1], zeros[1]) if second else (None, None)
    y1, y2, x = add_rms_norm_quant(
        x1, x2, gamma, scales[0], zeros[0], beta, *more, div_mode=div_mode
    )
    total, rounded = summed(x1, x2)
    y = formula(total, gamma, 1e-6)[0] + beta.double()
    assert torch.equal(x, rounded)
    assert y1.dtype == y2.dtype == torch.int8 and y1.shape == y2.shape == x1.shape
    for result, scale, zero in list(zip((y1, y2), scales, zeros, strict=True))[: 1 + second]:
        exact = (y / scale.double() if div_mode else y * scale.double()) + zero
        # One step of int8, unless the value is within 1e-3 of the middle of two.
        difference = (result.double() - exact.clamp(-128, 127)).abs()
        assert float(difference.max()) < 0.501
        assert int(result.unique().numel()) > 20


def test_add_rms_norm_quant_without_zero_points_and_beta() -> None:
    x, gamma, scales = random(3, 32), torch.ones(32), torch.full((32,), 0.1)
    y1, _, _ = add_rms_norm_quant(x, torch.zeros_like(x), gamma, scales, None)
    exact = formula(x, gamma, 1e-6)[0] / 0.1
    assert float((y1.double() - exact).abs().max()) < 0.501


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", [[True, False], [True, True], []])
def test_add_rms_norm_dynamic_quant(dtype: torch.dtype, mask: list[bool]) -> None:
    x1, x2, gamma, beta = (random(8, 96, dtype=dtype, seed=seed) for seed in range(4))
    gamma, beta = gamma[0], beta[0]
    y1, y2, x, scale1, scale2 = add_rms_norm_dynamic_quant(
        x1, x2, gamma, beta=beta, epsilon=1e-5, output_mask=mask
    )
    total, rounded = summed(x1, x2)
    y = formula(total, gamma, 1e-5)[0] + beta.double()
    assert torch.equal(x, rounded)
    both = mask == [True, True]
    for result, scale in [(y1, scale1), (y2, scale2)][: 1 + both]:
        torch.testing.assert_close(scale.double(), y.abs().amax(-1) / 127, rtol=1e-5, atol=0)
        difference = (result.double() - y / scale.double()[:, None]).abs()
        assert float(difference.max()) < 0.501
    assert y2.numel() == (0 if mask == [True, False] else y1.numel())
    assert scale2.any() == both


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), [((5, 64), -1), ((3, 4, 10), 1), ((6, 2, 2), 0)])
def test_swiglu(shape, dim: int, dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype) * 4
    half = shape[dim] // 2
    a, b = x.double().narrow(dim, 0, half), x.double().narrow(dim, half, half)
    result = swiglu(x, dim)
    assert result.dtype == dtype
    assert_rounded_once(result, a / (1 + (-a).exp()) * b)
