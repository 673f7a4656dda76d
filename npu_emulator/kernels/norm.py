# SPDX-License-Identifier: Apache-2.0
"""RMS norms, alone and fused with a residual sum, a bias or a quantization; and SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_emulator.kernels.quantization import dtype_of, dynamic_quant, round_to
from npu_emulator.kernels.registry import kernel


def _normalise(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x (float32) over its last gamma.dim() dimensions: (x / rms(x) * gamma, 1 / rms(x))."""
    axes = tuple(range(-gamma.dim(), 0))
    rstd = x.square().mean(axes, keepdim=True).add_(epsilon).rsqrt_()
    return (x * rstd).mul_(gamma.float()), rstd


def _add(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """x1 + x2: (what is normalised, in float32; what is returned, in the operator's dtype).

    The chips' source (ops-nn, norm/add_rms_norm/op_kernel) adds float16 in float16 and normalises
    that; bfloat16 is added in float32 and normalised before it is rounded.
    """
    total = x1.float() + x2.float()
    rounded = total.to(x1.dtype)
    return (rounded.float() if x1.dtype == torch.float16 else total), rounded


@kernel("npu::npu_rms_norm")
def rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """y = x / rms(x) * gamma with rms(x) = sqrt(mean(x^2) + epsilon); returns (y, 1 / rms(x)).

    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/（beta）torch_npu-npu_rms_norm.md
    """
    y, rstd = _normalise(input.float(), gamma, epsilon)
    return y.to(input.dtype), rstd


@kernel("npu::npu_add_rms_norm")
def add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """x = x1 + x2, y = x / rms(x) * gamma; returns (y, 1 / rms(x), x).

    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_add_rms_norm.md
    """
    total, x = _add(x1, x2)
    y, rstd = _normalise(total, gamma, epsilon)
    return y.to(x1.dtype), rstd, x


@kernel("_C_ascend::npu_add_rms_norm_bias")
def add_rms_norm_bias(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None = None, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """x = x1 + x2, y = x / rms(x) * gamma + beta; returns (y, 1 / rms(x), x).

    vllm-ascend 0.23.0: csrc/moe/add_rms_norm_bias
    """
    total, x = _add(x1, x2)
    y, rstd = _normalise(total, gamma, epsilon)
    if beta is not None:
        y += beta.float()
    return y.to(x1.dtype), rstd, x


@kernel("npu::npu_add_rms_norm_quant")
def add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor | None,
    beta: Tensor | None = None,
    scales2: Tensor | None = None,
    zero_points2: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x = x1 + x2, y = x / rms(x) * gamma + beta, yi = round(y / scalesi + zero_pointsi).

    With div_mode False y is multiplied by the scales. Returns (y1, y2, x); without scales2 the
    second result has no meaning, and is zero here.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_add_rms_norm_quant.md
    """
    total, x = _add(x1, x2)
    y, _ = _normalise(total, gamma, epsilon)
    if beta is not None:
        y += beta.float()
    target = dtype_of(1 if dst_type is None else dst_type)

    def quantize(scales: Tensor, zero_points: Tensor | None) -> Tensor:
        scaled = y / scales.float() if div_mode else y * scales.float()
        if zero_points is not None:
            scaled += zero_points.float()
        return round_to(scaled, target)

    y1 = quantize(scales1, zero_points1)
    y2 = torch.zeros_like(y1) if scales2 is None else quantize(scales2, zero_points2)
    return y1, y2, x


@kernel("npu::npu_add_rms_norm_dynamic_quant")
def add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    output_mask: list[bool] = [],  # noqa: B006  as the schema has it; nothing changes it
    y_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x = x1 + x2, y = x / rms(x) * gamma + beta, yi = y * smoothi quantized for each token.

    Returns (y1, y2, x, scale1, scale2). What output_mask leaves out, or without it the second of
    one smooth_scale, has no meaning: a y is then empty or zero, a scale zero, as Meta has them.
    op-plugin 26.1.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_add_rms_norm_dynamic_quant.md
    """
    total, x = _add(x1, x2)
    y, _ = _normalise(total, gamma, epsilon)
    if beta is not None:
        y += beta.float()
    wanted = output_mask or [True, smooth_scale2 is not None]

    def quantize(index: int, smooth: Tensor | None) -> tuple[Tensor, Tensor]:
        if wanted[index]:
            return dynamic_quant(y, smooth_scales=smooth, dst_type=y_dtype)
        nothing = y.new_zeros(0 if output_mask else y.shape, dtype=torch.int8)
        return nothing, y.new_zeros(y.shape[:-1])

    (y1, scale1), (y2, scale2) = quantize(0, smooth_scale1), quantize(1, smooth_scale2)
    return y1, y2, x, scale1, scale2


@kernel("npu::npu_swiglu")
def swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """silu(a) * b with a, b the halves of the input along dim.

    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/（beta）torch_npu-npu_swiglu.md
    """
    gate, up = input.float().chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(input.dtype)
