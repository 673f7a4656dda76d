# SPDX-License-Identifier: Apache-2.0
"""Quantization to int8, static and dynamic, and the int8 matrix product with its dequantization."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_emulator.compressed_weights import decode
from npu_emulator.kernels.registry import kernel

# The numbers by which operators name a dtype (c10::ScalarType). The quantized types are returned
# as the integers that hold them.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    3: torch.int32,
    5: torch.float16,
    6: torch.float32,
    12: torch.int8,  # qint8
    13: torch.uint8,  # quint8
    14: torch.int32,  # qint32
    15: torch.bfloat16,
}


def dtype_of(number: int) -> torch.dtype:
    """The dtype that an operator's integer argument names."""
    if number not in _DTYPES:
        raise NotImplementedError(f"No kernel here computes the output type number {number}.")
    return _DTYPES[number]


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, rounded half to even and limited to the range of the integer type `dtype`.

    Overwrites x.
    """
    limits = torch.iinfo(dtype)
    if x.dtype == torch.float32 and limits.bits > 24:
        x = x.double()  # float32 holds neither limit of int32
    return x.round_().clamp_(limits.min, limits.max).to(dtype)


def _along(vector: Tensor, axis: int, dims: int) -> Tensor:
    """A 1-D tensor of several values, shaped to broadcast along `axis` of `dims` dimensions."""
    if vector.dim() != 1 or vector.numel() == 1:
        return vector
    shape = [1] * dims
    shape[axis] = -1
    return vector.view(shape)


@kernel("npu::npu_quantize")
def quantize(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    dtype: int,
    axis: int = 1,
    div_mode: bool = True,
) -> Tensor:
    """round(input / scales + zero_points), or with div_mode False input * scales.

    With div_mode False an axis above -2 means the last one.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_quantize.md
    """
    target = dtype_of(dtype)
    if not div_mode:
        axis = min(axis, -1)
    scales = _along(scales, axis, input.dim()).float()
    x = input.float()
    x = x / scales if div_mode else x * scales
    if zero_points is not None:
        x += _along(zero_points, axis, input.dim()).float()
    return round_to(x, target)


def _smooth(x: Tensor, scales: Tensor, group_index: Tensor | None) -> Tensor:
    """x * scales; with group_index, row i of scales is for the rows of x up to group_index[i]."""
    if group_index is None:
        return x * scales.float()
    ends = group_index.long()
    rows = x.view(-1, x.shape[-1])  # (tokens, channels)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    return (rows * scales.float().repeat_interleave(counts, 0)).view(x.shape)


@kernel("npu::npu_dynamic_quant")
def dynamic_quant(
    input: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """scale = max(abs(x * smooth)) / 127 of each token, y = round(x * smooth / scale).

    Returns (y, scale), scale in float32 without the last dimension. A token of zeros gives zeros.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_dynamic_quant.md
    """
    target = dtype_of(1 if dst_type is None else dst_type)
    x = input.float()
    if smooth_scales is not None:
        x = _smooth(x, smooth_scales, group_index)
    if quant_mode == "pertensor":
        largest = x.abs().amax().view([1] * x.dim())
    elif quant_mode in ("pertoken", "perchannel"):
        largest = x.abs().amax(-1 if quant_mode == "pertoken" else -2, keepdim=True)
    else:
        raise ValueError(f"npu_dynamic_quant knows no quant_mode {quant_mode!r}.")
    scale = largest / torch.iinfo(target).max
    y = round_to(x / scale.masked_fill(scale == 0, 1.0), target)
    if quant_mode == "pertensor":
        return y, scale.view(1)
    return y, scale.squeeze(-1 if quant_mode == "pertoken" else -2)


def float_scale(scale: Tensor) -> Tensor:
    """A dequantization scale in float32: of a 64-bit scale the low 32 bits are a float32."""
    if scale.dtype in (torch.int64, torch.uint64):
        words = scale.contiguous().view(torch.int32)  # little endian: low, high, low, high ...
        return words[..., ::2].contiguous().view(torch.float32)
    return scale.float()


@kernel("npu::npu_quant_matmul")
def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: list[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """(x1 @ x2 + bias) * scale * pertoken_scale + offset with an int32 bias; int8 by default.

    A floating bias is added after the scales. The sum over K is exact: float64 holds every
    integer below 2^53, and the result is rounded once, from float64.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_quant_matmul.md; the terms with
    pertoken_scale are in ops-nn: matmul/quant_batch_matmul_v3/docs/aclnnQuantMatmulV4.md
    """
    if x1.dtype != torch.int8 or x2.dtype != torch.int8 or group_sizes or y_scale is not None:
        raise NotImplementedError("npu_quant_matmul is computed here for int8 by int8, ungrouped.")
    target = dtype_of(1 if output_dtype is None else output_dtype)
    total = x1.double() @ x2.double()  # (..., m, n)
    if bias is not None and bias.dtype == torch.int32:
        total += bias
        bias = None
    total *= float_scale(scale)
    if pertoken_scale is not None:
        total *= pertoken_scale.view(-1, 1)  # (m,) -> (m, 1)
    for term in (bias, offset):
        if term is not None:
            total += term
    return total.to(target) if target.is_floating_point else round_to(total, target)


@kernel("npu::npu_matmul_compress_dequant")
def matmul_compress_dequant(
    x1: Tensor,
    x2: Tensor,
    compress_index: Tensor,
    bias: Tensor,
    scale: Tensor,
    *,
    offsetW: Tensor | None = None,
    offsetX: int | None = None,
) -> Tensor:
    """(x1 @ decompress(x2, compress_index) + bias) * scale in float16.

    The compressed stream is that of npu_emulator/compressed_weights.py, as the chip's is not
    published.
    hicann/ops-nn 9.1.0: matmul/matmul_v2_compress_dequant/docs/aclnnMatmulCompressDequant.md
    """
    stream, index = x2.numpy(), compress_index.numpy()
    weight = torch.from_numpy(decode(stream, index, bias.shape[-1], x1.shape[-1]))  # (n, k)
    total = x1.double() @ weight.double().t() + bias  # (m, n)
    return (total * float_scale(scale)).half()
