# SPDX-License-Identifier: Apache-2.0
"""Quantization against exact arithmetic, and the int8 product at its extremes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from npu_emulator.kernels.quantization import (
    dtype_of,
    dynamic_quant,
    quant_matmul,
    quantize,
)
from tests.emulator.attention_oracle import assert_rounded_once, random

QINT8, QUINT8, QINT32, INT8, INT32, FLOAT16, BFLOAT16 = 12, 13, 14, 1, 3, 5, 15
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [-1, 1])
def test_quantize_as_vllm_ascend_calls_it(dtype: torch.dtype, axis: int) -> None:
    """Scales, reciprocal, and zero points for each channel in the dtype of x."""
    x = random(4, 5, 32, dtype=dtype) * 3
    scales = (random(32, seed=1).abs() * 20 + 1).to(dtype)
    zeros = torch.randint(-30, 30, (32,)).to(dtype)
    result = quantize(x, scales, zeros, QINT8, axis, False)
    exact = x.double() * scales.double() + zeros.double()
    assert result.dtype == torch.int8 and result.shape == x.shape
    assert float((result.double() - exact.clamp(-128, 127)).abs().max()) < 0.501
    assert int(result.min()) == -128 and int(result.max()) == 127


@pytest.mark.parametrize("number", [QINT8, QUINT8, QINT32])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quantize_by_division_along_an_axis(axis: int, number: int) -> None:
    x = random(3, 4, 5) * 4
    scales = random(x.shape[axis], seed=1).abs() + 0.05
    zeros = torch.arange(x.shape[axis], dtype=torch.int32)
    result = quantize(x, scales, zeros, number, axis)
    limits = torch.iinfo(result.dtype)
    assert result.dtype == {12: torch.int8, 13: torch.uint8, 14: torch.int32}[number]
    for i in range(x.shape[axis]):
        exact = x.select(axis, i).double() / float(scales[i]) + i
        exact = exact.clamp(limits.min, limits.max)
        assert float((result.select(axis, i).double() - exact).abs().max()) < 0.501


def test_quantize_rounds_halves_to_even_and_stays_in_range() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 500.0, -128.5, -900.0])
    wanted = [0, 2, 2, 0, -2, 126, 127, 127, -128, -128]
    one = torch.ones(1)
    assert quantize(x, one, None, QINT8, -1, False).tolist() == wanted
    assert quantize(x, one, None, QINT8, 0, True).tolist() == wanted
    far = torch.tensor([1e12, -1e12])
    assert quantize(far, one, None, QINT32, 0).tolist() == [2**31 - 1, -(2**31)]


def test_quantize_second_last_axis() -> None:
    x, scales = random(2, 3, 4), torch.tensor([1.0, 10.0, 100.0])
    result = quantize(x, scales, None, QINT8, -2, False)
    exact = (x.double() * scales.double().view(3, 1)).clamp(-128, 127)
    assert float((result.double() - exact).abs().max()) < 0.501


def test_other_types_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="16"):
        dtype_of(16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smooth", [False, True])
def test_dynamic_quant(dtype: torch.dtype, smooth: bool) -> None:
    x, factor = random(3, 6, 64, dtype=dtype), random(64, dtype=dtype, seed=1)
    y, scale = dynamic_quant(x, smooth_scales=factor if smooth else None)
    exact = x.double() * factor.double() if smooth else x.double()
    wanted = exact.abs().amax(-1) / 127
    assert y.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (3, 6)
    assert_rounded_once(scale, wanted)
    assert float((y.double() - exact / wanted.unsqueeze(-1)).abs().max()) < 0.501
    assert bool((y.abs().amax(-1) == 127).all())


def test_dynamic_quant_of_a_token_of_zeros() -> None:
    y, scale = dynamic_quant(torch.zeros(2, 8, dtype=torch.float16))
    assert not bool(y.any()) and not bool(scale.any())


def test_dynamic_quant_by_groups() -> None:
    x, factors = random(2, 4, 16), random(3, 16, seed=1)
    ends = torch.tensor([2, 2, 8], dtype=torch.int32)
    y, scale = dynamic_quant(x, smooth_scales=factors, group_index=ends)
    rows = x.view(8, 16)
    for i in range(8):
        one, its_scale = dynamic_quant(rows[i : i + 1], smooth_scales=factors[0 if i < 2 else 2])
        assert torch.equal(y.view(8, 16)[i], one[0])
        assert float(scale.view(8)[i]) == float(its_scale[0])


def test_dynamic_quant_by_channel_and_by_tensor() -> None:
    x = random(2, 5, 16)
    y, scale = dynamic_quant(x, quant_mode="perchannel")
    assert scale.shape == (2, 16)
    assert_rounded_once(scale, x.double().abs().amax(1) / 127)
    exact = x.double() / (x.double().abs().amax(1, keepdim=True) / 127)
    assert float((y.double() - exact).abs().max()) < 0.501
    y, scale = dynamic_quant(x, quant_mode="pertensor")
    assert scale.shape == (1,)
    assert float((y.double() - x.double() / float(scale)).abs().max()) < 0.501
    with pytest.raises(ValueError, match="quant_mode"):
        dynamic_quant(x, quant_mode="perhaps")


def int8(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def bits(scale: Tensor) -> Tensor:
    """float32 scales in the low halves of int64, as a checkpoint holds them."""
    return scale.view(torch.int32).long() & 0xFFFFFFFF


def integer_product(x1: Tensor, x2: Tensor) -> Tensor:
    return (x1.long().unsqueeze(-1) * x2.long()).sum(-2)


@pytest.mark.parametrize("form", ["int64", "uint64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("number", "dtype"), [(FLOAT16, torch.float16), (BFLOAT16, torch.bfloat16)]
)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("count", [1, 24])
def test_quant_matmul(form: str, number: int, dtype, with_bias: bool, count: int) -> None:
    x1, x2 = int8(7, 40), int8(40, 24, seed=1)
    scale = random(count, seed=2) * 1e-3
    if form == "bfloat16":
        scale = scale.bfloat16()
    given = {"int64": bits, "uint64": lambda s: bits(s).view(torch.uint64)}.get(form, lambda s: s)
    bias = torch.randint(-9999, 9999, (24,), dtype=torch.int32) if with_bias else None
    result = quant_matmul(x1, x2, given(scale), bias=bias, output_dtype=number)
    total = integer_product(x1, x2) + (bias.long() if bias is not None else 0)
    assert result.dtype == dtype and result.shape == (7, 24)
    assert_rounded_once(result, total.double() * scale.double())


def test_negative_scales_keep_their_sign_in_64_bits() -> None:
    scale = torch.tensor([-0.5, 0.25])
    x = torch.full((1, 4), 3, dtype=torch.int8)
    result = quant_matmul(x, torch.full((4, 2), 2, dtype=torch.int8), bits(scale), output_dtype=5)
    assert result.tolist() == [[-12.0, 6.0]]
    # What stands in the high half does not belong to the scale.
    marked = bits(scale) | (1 << 46)
    assert torch.equal(quant_matmul(x, x.t().expand(4, 2), marked, output_dtype=5), result * 1.5)


@pytest.mark.parametrize("k", [1, 1041, 27392])
@pytest.mark.parametrize(("a", "b"), [(-128, -128), (-128, 127), (127, 127)])
def test_the_sum_over_k_is_exact(k: int, a: int, b: int) -> None:
    x1 = torch.full((2, k), a, dtype=torch.int8)
    x2 = torch.full((k, 3), b, dtype=torch.int8)
    x1[1, 0] = 1 if k > 1 else a  # one row of another sum
    bias = torch.tensor([0, 1, -1], dtype=torch.int32)
    result = quant_matmul(x1, x2, torch.ones(3), bias=bias, output_dtype=INT32)
    assert result.dtype == torch.int32
    second = (k - 1) * a * b + (b if k > 1 else a * b)
    assert result.tolist() == [
        [k * a * b + n for n in (0, 1, -1)],
        [second + n for n in (0, 1, -1)],
    ]


def test_random_sums_are_exact_and_rounded_once() -> None:
    x1, x2 = int8(3, 5000), int8(5000, 4, seed=1)
    total = integer_product(x1, x2)
    scale = random(4, seed=3) * 1e-5
    assert torch.equal(quant_matmul(x1, x2, torch.ones(1), output_dtype=INT32).long(), total)
    result = quant_matmul(x1, x2, bits(scale), output_dtype=FLOAT16)
    exact = [
        [Fraction(int(n)) * Fraction(float(s)) for n, s in zip(r, scale, strict=True)]
        for r in total
    ]
    wanted = torch.tensor([[float(f) for f in row] for row in exact], dtype=torch.float64).half()
    assert torch.equal(result, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quant_matmul_with_pertoken_scale_and_floating_bias(dtype: torch.dtype) -> None:
    x1, x2 = int8(6, 32), int8(32, 8, seed=1)
    scale, pertoken = random(8, seed=2) * 1e-2, random(6, seed=3).abs()
    bias = random(8, seed=4).to(dtype)
    result = quant_matmul(x1, x2, scale, pertoken_scale=pertoken, bias=bias, output_dtype=BFLOAT16)
    total = integer_product(x1, x2).double() * scale.double() * pertoken.double().unsqueeze(-1)
    assert_rounded_once(result, total + bias.double())


def test_quant_matmul_gives_int8_by_default() -> None:
    x1, x2 = int8(6, 32), int8(32, 8, seed=1)
    scale, offset = random(8, seed=2).abs() * 2e-3, torch.tensor([3.0])
    bias = torch.arange(8, dtype=torch.int32) * 100
    result = quant_matmul(x1, x2, scale, offset=offset, bias=bias)
    exact = (integer_product(x1, x2) + bias).double() * scale.double() + 3
    assert result.dtype == torch.int8
    assert float((result.double() - exact.clamp(-128, 127)).abs().max()) < 0.501


def test_quant_matmul_of_batches_and_of_a_transposed_weight() -> None:
    x1, x2 = int8(2, 3, 16), int8(4, 16, seed=1).t()
    result = quant_matmul(x1, x2, torch.ones(4), output_dtype=INT32)
    assert torch.equal(result.long(), torch.stack([integer_product(x, x2) for x in x1]))


def test_what_is_not_computed_says_so() -> None:
    x = torch.ones(2, 2, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="int8"):
        quant_matmul(x, x, torch.ones(2))
