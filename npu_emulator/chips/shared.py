# SPDX-License-Identifier: Apache-2.0
"""Rows of npu and atb operators that the chips share up to their dtypes."""

from __future__ import annotations

from npu_emulator.chips.conditions import FRACTAL_NZ, Arguments, same_dtype, shape_of, when
from npu_emulator.chips.rules import Operator, Rule, Tensor, Value

DOCS = "op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/"
FORMATS = (-1, 0, 2, 3, 4, 12, 16, 27, FRACTAL_NZ, 30, 32, 33, 35, 47)


def rope_rows(dtypes: tuple[str, ...], atb: tuple[str, ...]) -> dict[str, Operator]:
    """npu_apply_rotary_pos_emb and ATB's _npu_rotary_embedding."""
    part = Tensor(dtypes, ranks=(3, 4), last=(64, 128))

    def one_length(a: Arguments) -> bool:
        leading = 1 if a["layout"] == "TND" else 2
        names = ("query", "key", "cos", "sin")
        return len({(len(shape_of(a, n)), shape_of(a, n)[:leading]) for n in names}) == 1

    def one_width(a: Arguments) -> bool:
        query, key, cos, sin = (shape_of(a, n) for n in ("query", "key", "cos", "sin"))
        return query[-1] == key[-1] and cos == sin and cos[-2] == 1 and cos[-1] == query[-1]

    return {
        "npu::npu_apply_rotary_pos_emb": Operator(
            "op-plugin 26.1.0: docs/zh/custom_APIs/torch_npu/torch_npu-apply_rotary_pos_emb.md",
            {
                **dict.fromkeys(("query", "key", "cos", "sin"), part),
                "layout": Value(("BSND", "TND")),
                "rotary_mode": Value(("half",)),
            },
            (
                same_dtype("query", "key", "cos", "sin"),
                Rule("query", "of the batch and length of key, cos and sin", one_length),
                Rule("cos", "of one head as wide as those of query and key, and as sin", one_width),
            ),
        ),
        "atb::_npu_rotary_embedding": atb_rope_row(atb),
    }


def atb_rope_row(dtypes: tuple[str, ...]) -> Operator:
    """_npu_rotary_embedding, which turns query and key in place."""
    part = Tensor(dtypes, ranks=(2, 3), contiguous=True)
    return Operator(
        "op-plugin 26.0.0: op_plugin/ops/atb/RopeAtb.cpp",
        {
            "positions": Tensor(("int32", "int64")),
            "query": part,
            "key": part,
            "cos_sin_cache": Tensor(dtypes, ranks=(2, 2)),
        },
        (
            same_dtype("query", "key", "cos_sin_cache"),
            Rule(
                "head_size",
                "the width of cos_sin_cache, which rotates whole heads",
                lambda a: shape_of(a, "cos_sin_cache")[-1] == a["head_size"],
            ),
            Rule(
                "query",
                "of whole heads in the last dimension, as is key",
                lambda a: (
                    shape_of(a, "query")[-1] % a["head_size"] == 0
                    and shape_of(a, "key")[-1] % a["head_size"] == 0
                ),
            ),
        ),
    )


def swiglu_row(dtypes: tuple[str, ...], tail_bytes: int) -> Operator:
    """npu_swiglu, whose halved dimension is even and a multiple of `tail_bytes`."""

    def even(a: Arguments) -> bool:
        return shape_of(a, "input")[a["dim"]] % 2 == 0

    def aligned(a: Arguments) -> bool:
        return shape_of(a, "input")[-1] * a["input"].element_size() % tail_bytes == 0

    whole = Rule("input", f"of a multiple of {tail_bytes} bytes in the last dimension", aligned)
    return Operator(
        "hicann/ops-nn 9.1.0: activation/swi_glu/docs/aclnnSwiGlu.md",
        {"input": Tensor(dtypes, ranks=(1, 8), contiguous=True)},
        (
            Rule("input", "even in the dimension that is halved", even),
            *([whole] if tail_bytes > 1 else []),
        ),
    )


def format_cast_rows(only_wide: bool = False) -> dict[str, Operator]:
    """npu_format_cast; `only_wide` keeps vectors out of FRACTAL_NZ."""
    wide = Rule(
        "input",
        "of more than one row and column for FRACTAL_NZ",
        lambda a: min(shape_of(a, "input")[-2:]) > 1,
    )
    document = DOCS + "（beta）torch_npu-npu_format_cast.md"
    if only_wide:
        document += "; vllm-ascend releases/v0.23.0: vllm_ascend/ops/linear.py"
    row = Operator(
        document,
        {"acl_format": Value(FORMATS)},
        (when(lambda a: a["acl_format"] == FRACTAL_NZ, wide),) if only_wide else (),
    )
    base = Operator(document)
    return {
        **{f"npu::{name}": row for name in ("npu_format_cast", "_npu_format_cast")},
        "npu::npu_format_cast_.acl_format": row,
        "npu::npu_format_cast.Tensor": base,
        "npu::npu_format_cast_": base,
    }
