# SPDX-License-Identifier: Apache-2.0
"""int8 products as operators in `torch.ops.glm41v`, which torch.compile does not look into.

They are exact on every CPU. vLLM's and PyTorch's own int8 kernels are not exact without VNNI: they
add two products of int8 in int16, and saturate. Where a CPU multiplies int8 in full (VNNI, AMX),
oneDNN's product is used for many tokens, after a test that it is exact.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vllm_glm41v_npu.cpu.kernels.packing import PackedWeight
from vllm_glm41v_npu.cpu.kernels.product import FIELDS, worker
from vllm_glm41v_npu.cpu.kernels.strassen import PARTS, PRODUCTS
from vllm_glm41v_npu.cpu.kernels.team import run
from vllm_glm41v_npu.cpu.kernels.tiles import BLOCK, PAIR

_LIBRARY = torch.library.Library("glm41v", "FRAGMENT")
_MANY_INT8, _MANY_INT4 = 8, 32  # tokens from which PyTorch's product is faster
_WIDE = 64  # columns from which it is used; PyTorch 2.11 is wrong for a single column
_CHUNK = 4096  # rows of the weight at a time in PyTorch's product
_LEAST_TOKENS, _LEAST_COLUMNS, _LEAST_ROWS = 192, 2048, 256  # for Strassen's parts; rows a thread
_MOST_TOKENS = 512  # for Strassen's parts, at a time
_WEIGHT = "Tensor x, Tensor values, Tensor? starts, Tensor? columns, Tensor? outliers"
_LIBRARY.define(f"int8_matmul({_WEIGHT}) -> Tensor")
_LIBRARY.define(
    f"int8_linear({_WEIGHT}, Tensor deq_scale, Tensor? quant_bias, Tensor? token_scale) -> Tensor"
)


def int8_matmul(x_q: Tensor, weight: PackedWeight) -> Tensor:
    """Return the exact product x_q . W^T of int8 [M, K] and [N, K], int32 [M, N].

    Raises:
        TypeError: x_q is not int8.
        ValueError: x_q is not [M, K].
    """
    _check("x_q", x_q, torch.int8, (None, weight.shape[1]))
    return torch.ops.glm41v.int8_matmul(x_q, *_tensors(weight))


def int8_linear(
    x_q: Tensor,
    weight: PackedWeight,
    deq_scale: Tensor,
    quant_bias: Tensor | None = None,
    token_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return (x_q . W^T + quant_bias) * deq_scale * token_scale[:, None], [M, N].

    The integer part is exact. The scales are applied in float64 and the result is rounded to
    float32, then to `out_dtype`, as in `npu_quant_matmul` of npu_emulator/.

    Args:
        x_q: int8 [M, K].
        deq_scale: float32 [N], input scale times weight scale (msModelSlim).
        quant_bias: int32 [N].
        token_scale: float32 [M], from `quantize_per_token`.

    Raises:
        TypeError: A tensor has another dtype.
        ValueError: A tensor has another shape.
    """
    rows, columns = weight.shape
    _check("x_q", x_q, torch.int8, (None, columns))
    _check("deq_scale", deq_scale, torch.float32, (rows,))
    if quant_bias is not None:
        _check("quant_bias", quant_bias, torch.int32, (rows,))
    if token_scale is not None:
        _check("token_scale", token_scale, torch.float32, (x_q.shape[0],))
    tensors = (*_tensors(weight), deq_scale, quant_bias, token_scale)
    return torch.ops.glm41v.int8_linear(x_q, *tensors).to(out_dtype)


def _tensors(weight: PackedWeight) -> tuple[Tensor | None, ...]:
    return weight.values, weight.starts, weight.columns, weight.outliers


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    if tensor.dtype != dtype:
        raise TypeError(
            f"{name} is {tensor.dtype}; expected {dtype}. Convert it before the product."
        )
    sizes = ["M" if size is None else size for size in shape]
    if tensor.dim() != len(shape) or any(
        size is not None and size != found for size, found in zip(shape, tensor.shape, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; expected {sizes} to go with the weight and "
            "the tokens. Flatten leading dimensions, and pass the weight that belongs to it."
        )


@functools.cache
def multiplies_in_full() -> bool:
    """Return whether PyTorch's product of int8 may be used: VNNI, and the worst cases are right.

    On other CPUs it saturates or is slow. The same holds where a variable such as
    ONEDNN_MAX_CPU_ISA limits the instructions that oneDNN uses.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.cpu._is_vnni_supported():
        return False
    extremes = torch.tensor([127, -128, 127, 127, -128, -128, 1], dtype=torch.int8)
    x = extremes.repeat(64 * 512)[: 64 * 512].view(64, 512)
    weight = extremes.flip(0).repeat(100 * 512)[: 100 * 512].view(100, 512)
    return torch.equal(torch._int_mm(x, weight.t()).double(), x.double() @ weight.double().t())


_Weight = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
_Scales = tuple[Tensor | None, Tensor | None, Tensor | None]
_UNSCALED = (None, None, None)


def _run(name: str, weight: _Weight, columns: int, **fields: Tensor | int | None) -> None:
    """Run a job (`product.JOB`) with a weight of so many columns; tensors become addresses."""
    four_bits = weight[0].dtype == torch.uint8
    fields |= {"bits": 4 if four_bits else 8, "rows": len(weight[0])}
    fields |= {"columns": 2 * weight[0].shape[1] if four_bits else columns}
    fields |= {"blocks": -(-columns // BLOCK)}
    fields |= zip(("weight", "starts", "outlier_columns", "outlier_values"), weight, strict=True)
    values = (fields.get(name) for name in FIELDS)
    numbers = [x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in values]
    job = np.array(numbers, np.int64)
    run(worker(name), job.ctypes.data)


def _product(x: Tensor, weight: _Weight, scales: _Scales = _UNSCALED) -> Tensor:
    """Multiply to int32 [M, N], or float32 with scales: deq_scale, quant_bias, token_scale."""
    dtype = torch.int32 if scales[0] is None else torch.float32
    out = x.new_empty(x.shape[0], len(weight[0]), dtype=dtype)
    if not len(x):
        return out
    x = x.contiguous()
    many = _MANY_INT8 if weight[0].dtype == torch.int8 else _MANY_INT4
    if len(x) >= many and x.shape[1] >= _WIDE and multiplies_in_full():
        _multiply_in_full(x, weight, scales, out)
    elif _parts_pay(len(x), x.shape[1], len(weight[0])):
        _multiply_parts(x, weight, scales, out)
    else:
        _multiply(x, weight, scales, out)
    return out


def _multiply(x: Tensor, weight: _Weight, scales: _Scales, out: Tensor) -> None:
    """Multiply with the tiles of `tiles.py`."""
    tokens, columns = x.shape
    blocks = -(-columns // BLOCK)
    wide = x.new_empty(blocks, tokens, BLOCK, dtype=torch.int16)
    # [M, K] -> [M, blocks, 1024] -> [blocks, M, 1024]
    whole = pad(x, (0, -columns % BLOCK)) if columns % BLOCK else x
    wide.copy_(whole.view(tokens, blocks, BLOCK).transpose(0, 1))
    _run(
        "multiply",
        weight,
        columns,
        x=wide,
        x_stride=2 * BLOCK,
        tokens=tokens,
        out=out,
        out_stride=4 * out.shape[1],
        **dict(zip(("scale", "bias", "token_scale"), scales, strict=True)),
    )


def _parts_pay(tokens: int, columns: int, rows: int) -> bool:
    """Return whether strassen.py saves more in products than its additions cost."""
    share = rows // torch.get_num_threads()  # its tasks are large, and every thread needs some
    return tokens >= _LEAST_TOKENS and columns >= _LEAST_COLUMNS and share >= _LEAST_ROWS


def _multiply_parts(x: Tensor, weight: _Weight, scales: _Scales, out: Tensor) -> None:
    """Multiply with Strassen's parts, some tokens at a time."""
    scale, bias, token_scale = scales
    size = -(-len(x) // -(-len(x) // _MOST_TOKENS))
    for start in range(0, len(x), size):
        chosen = slice(start, min(start + size, len(x)))
        own = None if token_scale is None else token_scale[chosen]
        _multiply_group(x[chosen], weight, (scale, bias, own), out[chosen])


def _multiply_group(x: Tensor, weight: _Weight, scales: _Scales, out: Tensor) -> None:
    """Multiply a group of tokens, chunk after chunk of columns; the last chunk scales the sums."""
    columns = x.shape[1]
    chunks = -(-columns // (PARTS * BLOCK))
    size = -(-columns // (PARTS * chunks * PAIR)) * PAIR
    tokens = -(-len(x) // PARTS)
    whole = pad(x, (0, PARTS * chunks * size - columns, 0, PARTS * tokens - len(x)))
    # [4 * tokens, chunks * 4 * size] -> [chunks, 4, 4, tokens, size]
    parts = whole.view(PARTS, tokens, chunks, PARTS, size).permute(2, 0, 3, 1, 4).contiguous()
    factors = x.new_empty(PRODUCTS, tokens, BLOCK, dtype=torch.int16)
    sizes = {"part_tokens": tokens, "part_columns": size}
    for chunk in range(chunks):
        _run("add_activations", weight, columns, x=parts[chunk], out=factors, **sizes)
        _run(
            "multiply_parts",
            weight,
            columns,
            x=factors,
            tokens=len(x),
            out=out,
            out_stride=4 * out.shape[1],
            first_column=chunk * PARTS * size,
            last=chunk == chunks - 1,
            **sizes,
            **dict(zip(("scale", "bias", "token_scale"), scales, strict=True)),
        )


def _rows(weight: _Weight, blocks: int, start: int, end: int) -> _Weight:
    """Return some rows of a weight; the index of their outliers stays that of the whole weight."""
    values, starts, columns, outliers = weight
    index = None if starts is None else starts[start * blocks : end * blocks + 1]
    return values[start:end], index, columns, outliers


def _multiply_in_full(x: Tensor, weight: _Weight, scales: _Scales, out: Tensor) -> None:
    """Multiply with PyTorch's product of int8, some rows of the weight at a time."""
    tokens, columns = x.shape
    blocks = -(-columns // BLOCK)
    scale, bias, token_scale = scales
    for start in range(0, out.shape[1], _CHUNK):
        chosen = slice(start, min(start + _CHUNK, out.shape[1]))
        part = _rows(weight, blocks, chosen.start, chosen.stop)
        whole = part[0]
        if whole.dtype == torch.uint8:
            whole = x.new_empty(len(whole), columns)
            _run("unpack", part, columns, out=whole, out_stride=columns)
        sums = torch._int_mm(x, whole.t())
        _run(
            "scale",
            part,
            columns,
            x=sums,
            x_stride=4 * len(whole),
            tokens=tokens,
            out=out[:, chosen],
            out_stride=4 * out.shape[1],
            scale=None if scale is None else scale[chosen],
            bias=None if bias is None else bias[chosen],
            token_scale=token_scale,
        )


def _matmul(x, *weight):
    return _product(x, weight)


def _linear(x, values, starts, columns, outliers, deq_scale, quant_bias, token_scale):
    bias = None if quant_bias is None else quant_bias.contiguous()
    tokens = None if token_scale is None else token_scale.contiguous()
    scales = deq_scale.contiguous(), bias, tokens
    return _product(x, (values, starts, columns, outliers), scales)


_LIBRARY.impl("int8_matmul", _matmul, "CPU")
_LIBRARY.impl("int8_linear", _linear, "CPU")


@torch.library.register_fake("glm41v::int8_matmul", lib=_LIBRARY)
def _fake_matmul(x, values, *rest):
    return x.new_empty(x.shape[0], values.shape[0], dtype=torch.int32)


@torch.library.register_fake("glm41v::int8_linear", lib=_LIBRARY)
def _fake_linear(x, values, *rest):
    return x.new_empty(x.shape[0], values.shape[0], dtype=torch.float32)
