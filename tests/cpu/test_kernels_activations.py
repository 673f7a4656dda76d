# SPDX-License-Identifier: Apache-2.0
"""The quantizers of activations beside the published formula and the kernels of the emulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch import Tensor

from npu_emulator.kernels.quantization import dynamic_quant, quantize
from vllm_glm41v_npu.cpu.kernels import quantize_per_token, quantize_static

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
QINT8 = 1


def activations(dtype: torch.dtype) -> Tensor:
    """Values on both sides of every rounding, far beyond the range, and zeros."""
    halves = torch.arange(-300, 301) / 2  # ties where the scale is 1
    noise = 60 * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    far = torch.tensor([0.0, -0.0, 1e4, -1e4])
    return torch.cat([halves, noise, far]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "offset"), ((1.0, 0), (1.0, 3), (0.37, -128), (1.9, 127)))
def test_static_is_the_published_formula(dtype: torch.dtype, scale: float, offset: int) -> None:
    """clip(round_half_even(x / scale) + offset, -128, 127), as numpy computes it in float32."""
    x = activations(dtype)
    steps = np.rint(x.float().numpy() / np.float32(scale)) + offset
    result = quantize_static(x, scale, offset)
    assert result.dtype == torch.int8
    assert np.array_equal(result.numpy(), steps.clip(-128, 127).astype(np.int8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "offset"), ((1.0, 0), (1.0, 3), (0.37, -128), (1.9, 127)))
def test_static_gives_what_the_npu_gives(dtype: torch.dtype, scale: float, offset: int) -> None:
    """Quantize by the rule "npu": npu_quantize of the reciprocal, both in the dtype of x."""
    x = activations(dtype)
    reciprocal = 1 / torch.tensor([scale], dtype=dtype)
    expected = quantize(
        x, reciprocal, torch.tensor([offset], dtype=dtype), QINT8, axis=-1, div_mode=False
    )
    assert torch.equal(quantize_static(x, scale, offset, rule="npu"), expected)


def test_the_rules_differ_where_they_say() -> None:
    """A half plus an odd offset: rounded before the offset is added, or after."""
    x = torch.tensor([0.5])
    assert quantize_static(x, 1.0, 1).item() == 1
    assert quantize_static(x, 1.0, 1, rule="npu").item() == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_token_gives_what_the_npu_gives(dtype: torch.dtype) -> None:
    """npu_dynamic_quant, with a row of zeros and a row of the smallest numbers."""
    x = activations(dtype)[:3600].view(36, 100).clone()
    x[4] = 0
    x[5] = torch.finfo(dtype).tiny
    x_q, scale = quantize_per_token(x)
    expected, expected_scale = dynamic_quant(x)
    assert torch.equal(x_q, expected) and torch.equal(scale, expected_scale)
    assert not x_q[4].any() and scale[4] == 0 and (x_q[5] == 127).all()


@pytest.mark.usefixtures("compiler")
def test_compiled_rounding_is_the_same() -> None:
    """Inductor divides and rounds as eager PyTorch does."""

    def both(x: Tensor) -> tuple[Tensor, ...]:
        return quantize_static(x, 0.37, -5), *quantize_per_token(x)

    x = activations(torch.float32)[:3600].view(36, 100)
    compiled = torch.compile(both, fullgraph=True)
    with torch._inductor.config.patch(compile_threads=1):  # no pool of processes for one kernel
        fused = compiled(x)
    for eager, other in zip(both(x), fused, strict=True):
        assert torch.equal(eager, other)
