# SPDX-License-Identifier: Apache-2.0
"""A good call of every operator in the chips' tables, and calls that break one rule each.

Tensors on the meta device stand for those of the NPU. Calls of aten and c10d are made from their
schemas; those of npu, atb and _C_ascend are written here, as torch needs no torch_npu to read them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed  # noqa: F401  defines the operators of c10d

from npu_emulator.chips.conditions import FRACTAL_NZ
from npu_emulator.chips.rules import Operator, Tensor, Value
from npu_emulator.kernels.registry import find_schema
from tests.emulator.attention_calls import (
    ATTENTION_CALLS,
    BF16,
    BY_CHIP,
    FLOAT,
    HALF,
    INT,
    INT8,
    LONG,
    Call,
    both,
    device,
    host,
)

BICUBIC = 2


QUANTIZED: Call = {
    **both("x1", "x2", 3, 64),
    "gamma": device(64),
    "beta": device(64),
    **both("scales1", "scales2", 64, dtype=FLOAT),
    **both("zero_points1", "zero_points2", 64, dtype=INT),
    "axis": -1,
}
SUMMED: Call = {**both("x1", "x2", 3, 64), "gamma": device(64)}
DIVIDED: Call = {
    "input": device(3, 64),
    "scales": device(64, dtype=FLOAT),
    "zero_points": device(64, dtype=INT),
    "dtype": 1,
    "axis": -1,
    "div_mode": True,
}
MULTIPLIED = {**both("scales", "zero_points", 64), "div_mode": False}
PRODUCT: Call = {
    "x1": device(3, 256, dtype=INT8),
    "x2": device(256, 512, dtype=INT8),
    "scale": device(512, dtype=LONG),
    "offset": device(512, dtype=FLOAT),
    "bias": device(512, dtype=INT),
    "pertoken_scale": None,
    "output_dtype": 5,
}
ROPE: Call = {
    "query": device(1, 5, 32, 64),
    "key": device(1, 5, 2, 64),
    **both("cos", "sin", 1, 5, 1, 64),
    "layout": "BSND",
    "rotary_mode": "half",
}
MROPE: Call = {
    "positions": device(3, 5, dtype=LONG),
    "query": device(5, 4096),
    "key": device(5, 256),
    "cos_sin_cache": device(4096, 64),
    "head_size": 128,
    "mrope_section": [8, 12, 12],
    "rotary_mode": "half",
    "cache_mode": "default",
}
ONE_AXIS: Call = {"mrope_section": [0, 0, 0], "positions": device(5, dtype=LONG)}
COMPRESSED: Call = {
    "x1": device(256, 320, dtype=INT8),
    "x2": device(1000, dtype=INT8),
    "compress_index": device(80, dtype=INT8),
    "bias": device(1, 128, dtype=INT),
    "scale": device(1, 128, dtype=torch.uint64),
    "offsetW": None,
    "offsetX": 0,
}
CAST: Call = {"input": device(64, 32), "acl_format": FRACTAL_NZ}
CASTS = ("npu::npu_format_cast", "npu::_npu_format_cast", "npu::npu_format_cast_.acl_format")

CALLS: dict[str, tuple[Call, list[Call]]] = {
    "npu::npu_rms_norm": (
        {"input": device(3, 64), "gamma": device(64)},
        [{"gamma": device(64, dtype=BF16)}, {"gamma": device(64, dtype=FLOAT)}],
    ),
    "npu::npu_add_rms_norm": (
        SUMMED,
        [{"gamma": device(64, dtype=FLOAT)}, {"x2": device(4, 64)}],
    ),
    "_C_ascend::npu_add_rms_norm_bias": (
        SUMMED | {"beta": device(64)},
        [
            {"x2": device(3, 64, dtype=FLOAT)},
            {"x2": device(4, 64)},
            {"beta": device(64, dtype=FLOAT)},
        ],
    ),
    "npu::npu_add_rms_norm_quant": (
        QUANTIZED,
        [
            {"beta": device(64, dtype=BF16)},
            {"x2": device(4, 64)},
            {"scales2": device(64, dtype=HALF)},
            {"zero_points2": device(64, dtype=INT8)},
            both("zero_points1", "zero_points2", 64, dtype=BF16),
            both("scales1", "scales2", 64, dtype=BF16),
            both("x1", "x2", 3, 31),
            both("x1", "x2", 3, 0),
        ],
    ),
    "npu::npu_add_rms_norm_dynamic_quant": (
        SUMMED | dict.fromkeys(("beta", "smooth_scale1", "smooth_scale2"), device(64)),
        [{"smooth_scale2": device(64, dtype=BF16)}, {"x2": device(4, 64)}],
    ),
    "npu::npu_apply_rotary_pos_emb": (
        ROPE,
        [
            {"sin": device(1, 5, 1, 64, dtype=FLOAT)},
            {"query": device(1, 6, 32, 64)},
            {"layout": "TND", "query": device(2, 5, 32, 64)},
            both("cos", "sin", 1, 5, 2, 64),
            both("cos", "sin", 1, 5, 1, 128),
            {"key": device(1, 5, 2, 128)},
        ],
    ),
    "atb::_npu_rotary_embedding": (
        {
            "positions": device(5, dtype=LONG),
            "query": device(5, 512),
            "key": device(5, 256),
            "cos_sin_cache": device(16, 128),
            "head_size": 128,
        },
        [
            {"key": device(5, 256, dtype=BF16)},
            {"cos_sin_cache": device(16, 64)},
            {"query": device(5, 500)},
            {"key": device(5, 200)},
        ],
    ),
    "npu::npu_swiglu": (
        {"input": device(3, 64), "dim": -1},
        [{"dim": 0}, {"input": device(3, 48)}],
    ),
    **dict.fromkeys(CASTS, (CAST, [{"input": device(64, 1)}, {"input": device(1, 64)}])),
    "npu::npu_format_cast.Tensor": ({"input": device(64, 32), "dst": device(64, 32)}, []),
    "npu::npu_format_cast_": ({"input": device(64, 32), "src": device(64, 32)}, []),
    **ATTENTION_CALLS,
    "npu::npu_quantize": (
        DIVIDED,
        [
            {"scales": device(64)},
            {"zero_points": device(64)},
            MULTIPLIED | {"scales": device(64, dtype=FLOAT)},
            MULTIPLIED | {"axis": 0},
        ],
    ),
    "npu::npu_quant_matmul": (
        PRODUCT,
        [
            {"x2": device(256, 512, dtype=INT)},
            {"x2": device(256, 65536, dtype=INT8)},
            {"output_dtype": BF16},
            {"output_dtype": 15},
            {"scale": device(512, dtype=FLOAT), "pertoken_scale": device(3, dtype=FLOAT)},
        ],
    ),
    "npu::npu_dynamic_quant": (
        {
            "input": device(3, 64),
            "smooth_scales": device(64),
            "group_index": device(2, dtype=INT),
        },
        [],
    ),
    "npu::npu_matmul_compress_dequant": (
        COMPRESSED,
        [
            {"x1": device(257, 320, dtype=INT8)},
            {"x1": device(256, 256, dtype=INT8)},
            {"x1": device(256, 330, dtype=INT8)},
            {"bias": device(1, 64, dtype=INT), "scale": device(1, 1, dtype=torch.uint64)},
            {"bias": device(1, 160, dtype=INT), "scale": device(1, 1, dtype=torch.uint64)},
            {"scale": device(1, 64, dtype=torch.uint64)},
        ],
    ),
    "npu::npu_rotary_mul": (
        {"input": device(2, 5, 4, 128), **both("r1", "r2", 1, 5, 1, 128), "rotary_mode": "half"},
        [
            {"input": device(2, 5, 4, 128, dtype=FLOAT)},
            {"r2": device(1, 1, 1, 128)},
            both("r1", "r2", 1, 5, 1, 64),
            {"input": device(2, 5, 4, 896)} | both("r1", "r2", 1, 5, 1, 896),
            both("r1", "r2", 1, 4, 1, 128),
            {"input": device(2, 1000, 4, 128)} | both("r1", "r2", 1, 1, 1, 128),
            {"rotate": device(128, 128)},
        ],
    ),
    "npu::npu_mrope": (
        MROPE,
        [
            {"key": device(5, 256, dtype=FLOAT)},
            {"mrope_section": [16, 8, 8]},
            {"mrope_section": [16, 24, 24]},
            {"positions": device(5, dtype=LONG)},
            {"head_size": 32},
            {"head_size": 144},
            ONE_AXIS | {"cache_mode": "interleave"},
        ],
    ),
    "npu::npu_interleave_rope": (
        {"x": device(1, 4, 5, 64), **both("cos", "sin", 1, 1, 5, 64)},
        [
            {"x": device(1, 4, 5, 64, dtype=BF16)},
            {"sin": device(1, 1, 1, 64)},
            both("cos", "sin", 1, 4, 5, 64),
        ],
    ),
    "npu::npu_top_k_top_p": (
        {"logits": device(3, 100), "p": device(3), "k": device(3, dtype=INT)},
        [
            {"p": device(3, dtype=FLOAT)},
            {"p": device(2)},
            {"k": device(2, dtype=INT)},
        ],
    ),
    "npu::npu_prefetch": (
        {"input": device(3, 64), "dependency": None, "max_size": 1, "offset": 0},
        [{"max_size": 0}],
    ),
    "atb::_npu_matmul_add_fp32": (
        {"x": device(64, 3), "weight": device(64, 5), "C": device(3, 5, dtype=FLOAT)},
        [{"weight": device(64, 5, dtype=BF16)}],
    ),
}

ATEN_BREAKS: dict[str, list[Call]] = {
    "aten::grid_sampler_2d": [
        both("input", "grid", 1, 8, 4, 4, dtype=torch.float64) | {"interpolation_mode": BICUBIC},
        both("input", "grid", 1, 8, 4, 4, dtype=FLOAT) | {"interpolation_mode": BICUBIC},
        {"grid": device(1, 8, 4, 4, dtype=torch.float16)},
    ],
    **dict.fromkeys(
        ("aten::index_put_", "aten::index_put", "aten::_index_put_impl_"),
        [{"self": device(4, 4), "indices": [device(4, 4, dtype=torch.bool)]}],
    ),
    "aten::_to_copy": [
        {"self": device(4, 4), "dtype": BF16, "device": None},
        {"self": host(4, 4, dtype=FLOAT), "dtype": BF16, "device": torch.device("meta")},
    ],
}


def dtype_for(row: Operator, argument: str) -> torch.dtype:
    """A dtype that this tensor argument may have; int64 for indices."""
    wanted = row.arguments.get(argument)
    names = wanted.dtypes if isinstance(wanted, Tensor) and wanted.dtypes else row.dtypes
    if argument == "indices" and "int64" in names:
        return torch.int64
    return getattr(torch, names[0]) if names else FLOAT


def from_schema(name: str, row: Operator) -> Call:
    """A call whose tensors are all there, and all else has its default."""
    schema = find_schema(name)
    assert schema is not None, name
    call: Call = {}
    for argument in schema.arguments:
        kind, wanted = str(argument.type), row.arguments.get(argument.name)
        tensor = device(4, 4, dtype=dtype_for(row, argument.name))
        if isinstance(wanted, Tensor) and wanted.ranks == (4, 4):
            tensor = device(1, 8, 4, 4, dtype=tensor.dtype)
        if isinstance(wanted, Value):
            call[argument.name] = wanted.allowed[0]
        elif "List[List[Tensor" in kind:
            call[argument.name] = [[tensor]]
        elif "List[" in kind and "Tensor" in kind:
            call[argument.name] = [tensor]
        elif "Tensor" in kind:
            call[argument.name] = tensor
        else:
            default = argument.default_value if argument.has_default_value() else 0
            call[argument.name] = default
    return call


def good_call(chip: str, name: str, table: Mapping[str, Operator]) -> Call:
    """A call that the chip takes, with as many of its arguments as there are rules for."""
    written = BY_CHIP[chip].get(name) or CALLS.get(name)
    return dict(written[0]) if written else from_schema(name, table[name])


def breaks(chip: str, name: str) -> list[Call]:
    """What to change in the good call, so that one rule on several arguments is broken."""
    written = BY_CHIP[chip].get(name) or CALLS.get(name)
    return written[1] if written else ATEN_BREAKS.get(name, [])
