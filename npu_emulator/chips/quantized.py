# SPDX-License-Identifier: Apache-2.0
"""Rows of quantization, and of the norms that end in it."""

from __future__ import annotations

from npu_emulator.chips.conditions import (
    Arguments,
    dtype_of,
    same_dtype,
    same_shape,
    scalar_type,
    shape_of,
    when,
)
from npu_emulator.chips.rules import Operator, Rule, Tensor, Value

DOCS = "op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/"
ADD_NORM_DYNAMIC_QUANT = (
    "op-plugin 26.1.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_add_rms_norm_dynamic_quant.md"
)
MOST_COLUMNS = 65535

Combination = tuple[tuple[str, ...], tuple[str | None, ...], bool | None, str]
"""Of npu_quant_matmul: dtypes of scale and of bias, a scale per token or not (None for either),
and the dtype of the output."""
INT8_COMBINATIONS: tuple[Combination, ...] = (
    (("int64", "float32"), ("int32", None), False, "float16"),
    (("int64", "float32"), ("int32", None), False, "int8"),
)
A2_COMBINATIONS: tuple[Combination, ...] = (
    *INT8_COMBINATIONS,
    (("float32", "bfloat16"), ("int32", "bfloat16", "float32", None), None, "bfloat16"),
    (("float32",), ("int32", "bfloat16", "float16", "float32", None), True, "float16"),
    (("float32", "bfloat16"), ("int32", None), False, "int32"),
)


def quant_matmul_row(
    dtypes: tuple[str, ...],
    scales: tuple[str, ...],
    biases: tuple[str, ...],
    combinations: tuple[Combination, ...],
) -> Operator:
    """npu_quant_matmul."""

    def combines(a: Arguments) -> bool:
        if dtype_of(a, "x1") != "int8":
            return True  # packed int4, which has combinations of its own
        output = scalar_type(a.get("output_dtype")) or "int8"
        per_token = a.get("pertoken_scale") is not None
        return any(
            dtype_of(a, "scale") in scale
            and dtype_of(a, "bias") in bias
            and output == out
            and tokens in (None, per_token)
            for scale, bias, tokens, out in combinations
        )

    per_token = any(tokens is not False for _, _, tokens, _ in combinations)
    matrix = Tensor(dtypes, ranks=(2, 6))
    return Operator(
        DOCS + "torch_npu-npu_quant_matmul.md",
        {
            "x1": matrix,
            "x2": matrix,
            "scale": Tensor(scales, ranks=(1, 2)),
            "offset": Tensor(("float32", "float16")),
            "bias": Tensor(biases, ranks=(1, 3)),
            "pertoken_scale": Tensor(("float32",)) if per_token else Value((None,)),
        },
        (
            same_dtype("x1", "x2"),
            Rule(
                "x2",
                f"of at most {MOST_COLUMNS} columns, as is x1",
                lambda a: max(shape_of(a, "x1")[-1], shape_of(a, "x2")[-1]) <= MOST_COLUMNS,
            ),
            Rule(
                "scale",
                "of a dtype that goes with those of bias, pertoken_scale and output_dtype",
                combines,
            ),
        ),
    )


def quantize_row(floats: tuple[str, ...], last_axis_only: bool) -> Operator:
    """npu_quantize."""

    def divided(a: Arguments) -> bool:
        return bool(a["div_mode"])

    def last_axis(a: Arguments) -> bool:
        return a["axis"] in (-1, len(shape_of(a, "input")) - 1)

    scale = Tensor(tuple(dtype for dtype in floats if dtype != "float16"))
    points = tuple(dtype for dtype in floats if dtype == "bfloat16")
    scales_rule = Rule(
        "scales",
        f"of dtype {' or '.join(scale.dtypes)} with div_mode",
        lambda a: dtype_of(a, "scales") in scale.dtypes,
    )
    points_rule = Rule(
        "zero_points",
        "of an integer dtype (or bfloat16 where the chip has it) with div_mode",
        lambda a: dtype_of(a, "zero_points") in (None, "int8", "uint8", "int32", *points),
    )
    product = same_dtype("input", "scales", "zero_points")
    axis = Rule("axis", "the last one without div_mode", last_axis)
    return Operator(
        DOCS + "torch_npu-npu_quantize.md",
        {"input": Tensor(floats, ranks=(1, 8))},
        (
            when(divided, scales_rule),
            when(divided, points_rule),
            when(lambda a: not divided(a), product),
            *([when(lambda a: not divided(a), axis)] if last_axis_only else []),
        ),
        dtypes=(*floats, "int8", "uint8", "int32"),
    )


def dynamic_quant_row(floats: tuple[str, ...], multiple: int) -> Operator:
    """npu_dynamic_quant."""
    return Operator(
        "hicann/ops-nn 9.1.0: quant/dynamic_quant/docs/aclnnDynamicQuant.md",
        {
            "input": Tensor(floats, ranks=(2, 8), last_multiple_of=multiple),
            "smooth_scales": Tensor(floats, ranks=(1, 2)),
            "group_index": Tensor(("int32",)),
        },
    )


def add_norm_quant_row(combinations: tuple[tuple[str, str, str], ...], fewest: int = 1) -> Operator:
    """npu_add_rms_norm_quant, from its dtypes of x, scales and zero points."""
    floats = tuple(x for x, _, _ in combinations)
    values = Tensor(floats, ranks=(1, 8))

    def combines(a: Arguments) -> bool:
        return any(
            (dtype_of(a, "x1"), dtype_of(a, "scales1")) == (x, scale)
            and dtype_of(a, "zero_points1") in (points, None)
            for x, scale, points in combinations
        )

    return Operator(
        DOCS + "torch_npu-npu_add_rms_norm_quant.md",
        {
            "x1": values,
            "x2": values,
            "gamma": values,
            "beta": values,
            "scales1": Tensor(tuple(scale for _, scale, _ in combinations)),
            "zero_points1": Tensor(tuple(points for _, _, points in combinations)),
            "axis": Value((-1,)),
        },
        (
            same_dtype("x1", "x2", "gamma", "beta"),
            same_shape("x1", "x2"),
            same_dtype("scales1", "scales2"),
            same_dtype("zero_points1", "zero_points2"),
            Rule(
                "scales1",
                " or ".join(f"{scale} and {p} zero points for {x}" for x, scale, p in combinations),
                combines,
            ),
            Rule(
                "x1",
                f"of at least {fewest} values in the last dimension",
                lambda a: shape_of(a, "x1")[-1] >= fewest,
            ),
        ),
    )


def add_norm_dynamic_quant_row(floats: tuple[str, ...]) -> Operator:
    """npu_add_rms_norm_dynamic_quant."""
    values = Tensor(floats, ranks=(2, 8))
    vector = Tensor(floats, ranks=(1, 1))
    vectors = ("gamma", "beta", "smooth_scale1", "smooth_scale2")
    return Operator(
        ADD_NORM_DYNAMIC_QUANT,
        {"x1": values, "x2": values, **dict.fromkeys(vectors, vector)},
        (same_dtype("x1", "x2", *vectors), same_shape("x1", "x2")),
    )
