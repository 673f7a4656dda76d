# SPDX-License-Identifier: Apache-2.0
"""The calls that the Atlas A2 (Ascend 910B) takes."""

from __future__ import annotations

from npu_emulator.chips.atb_attention import paged_rows, reshape_row, self_attention_rows
from npu_emulator.chips.aten import aten_rows
from npu_emulator.chips.attention import fused_infer_rows, fusion_row, prompt_row
from npu_emulator.chips.collectives import collective_rows
from npu_emulator.chips.conditions import (
    Arguments,
    absent,
    dtype_of,
    same_dtype,
    same_shape,
    shape_of,
)
from npu_emulator.chips.quantized import (
    A2_COMBINATIONS,
    add_norm_dynamic_quant_row,
    add_norm_quant_row,
    dynamic_quant_row,
    quant_matmul_row,
    quantize_row,
)
from npu_emulator.chips.rules import Operator, Rule, Tensor, Value
from npu_emulator.chips.shared import DOCS, format_cast_rows, rope_rows, swiglu_row

HALVES = ("float16", "bfloat16")
FLOATS = (*HALVES, "float32")


def norm_rows() -> dict[str, Operator]:
    values = Tensor(FLOATS, ranks=(1, 8))
    norm = Rule(
        "gamma",
        "of the dtype of input, or float32",
        lambda a: dtype_of(a, "gamma") in (dtype_of(a, "input"), "float32"),
    )
    added = {"x1": values, "x2": values, "gamma": values}
    sums = (same_dtype("x1", "x2", "gamma"), same_shape("x1", "x2"))
    return {
        "npu::npu_rms_norm": Operator(
            DOCS + "（beta）torch_npu-npu_rms_norm.md",
            {"input": values, "gamma": values},
            (norm,),
        ),
        "npu::npu_add_rms_norm": Operator(DOCS + "torch_npu-npu_add_rms_norm.md", added, sums),
        "_C_ascend::npu_add_rms_norm_bias": Operator(
            "vllm-ascend releases/v0.23.0: csrc/moe/add_rms_norm_bias/op_host",
            {**added, "beta": values},
            (*sums, same_dtype("gamma", "beta")),
        ),
        "npu::npu_add_rms_norm_quant": add_norm_quant_row(
            (("float16", "float32", "int32"), ("bfloat16", "bfloat16", "bfloat16"))
        ),
        "npu::npu_add_rms_norm_dynamic_quant": add_norm_dynamic_quant_row(HALVES),
    }


def mrope_row() -> Operator:
    sections = ([16, 24, 24], [24, 20, 20], [8, 12, 12], [16, 16, 16, 16])

    def section(a: Arguments) -> list[int]:
        return list(a["mrope_section"] or [])

    def is_plain(a: Arguments) -> bool:
        return not any(section(a))

    def known_section(a: Arguments) -> bool:
        rows = shape_of(a, "positions")
        if is_plain(a):
            return len(rows) == 1
        rotary = shape_of(a, "cos_sin_cache")[-1]
        return section(a) in sections and (
            (len(rows), rows[0], 2 * sum(section(a))) == (2, len(section(a)), rotary)
        )

    def widths(a: Arguments) -> bool:
        multiple = 16 if dtype_of(a, "query") == "float32" else 32
        rotary, head = shape_of(a, "cos_sin_cache")[-1], a["head_size"]
        return rotary <= head and rotary % multiple == head % multiple == 0

    def cache_mode(a: Arguments) -> bool:
        return a["cache_mode"] == "default" or (not is_plain(a) and len(section(a)) == 3)

    values = Tensor(FLOATS, ranks=(2, 2))
    return Operator(
        DOCS + "torch_npu-npu_mrope.md",
        {
            "positions": Tensor(("int32", "int64"), ranks=(1, 2)),
            **dict.fromkeys(("query", "key", "cos_sin_cache"), values),
            # The document calls the second one interleaved; op-plugin takes only this spelling.
            "rotary_mode": Value(("half", "interleave")),
            "cache_mode": Value(("default", "interleave")),
        },
        (
            same_dtype("query", "key", "cos_sin_cache"),
            Rule(
                "mrope_section",
                f"one of {sections} that adds up to half of the rotary size, with a row of "
                "positions for each part; or none with positions of one dimension",
                known_section,
            ),
            Rule(
                "head_size",
                "at least the rotary size, and both multiples of 32 (16 for float32)",
                widths,
            ),
            Rule("cache_mode", "default, but for three-part sections", cache_mode),
        ),
    )


def interleave_rope_row() -> Operator:
    part = Tensor(HALVES, ranks=(4, 4), last=(64,), contiguous=True)
    return Operator(
        DOCS + "torch_npu-npu_interleave_rope.md",
        dict.fromkeys(("x", "cos", "sin"), part),
        (
            same_dtype("x", "cos", "sin"),
            same_shape("cos", "sin"),
            Rule("cos", "of one head", lambda a: shape_of(a, "cos")[1] == 1),
        ),
    )


def rotary_mul_row() -> Operator:
    values = Tensor(FLOATS, ranks=(3, 4), last_multiple_of=2)

    def fits(a: Arguments) -> bool:
        shape, cos = shape_of(a, "input"), shape_of(a, "r1")
        return len(cos) == len(shape) and all(
            part == whole or (part == 1 and whole < 1000)
            for part, whole in zip(cos[:-1], shape[:-1], strict=True)
        )

    return Operator(
        "hicann/ops-transformer: posembedding/rotary_position_embedding/docs/"
        "aclnnRotaryPositionEmbedding.md",
        {
            **dict.fromkeys(("input", "r1", "r2"), values),
            "rotary_mode": Value(("half", "interleave")),
        },
        (
            same_shape("r1", "r2"),
            Rule(
                "r1",
                "as wide as input, and of less than 896",
                lambda a: shape_of(a, "r1")[-1] == shape_of(a, "input")[-1] < 896,
            ),
            Rule("r1", "of input's dimensions, or of 1 for those below 1000", fits),
        ),
    )


def sampling_row() -> Operator:
    def one_a_row(a: Arguments) -> bool:
        rows = shape_of(a, "logits")[:1]
        return all(shape_of(a, name) in ((), rows) for name in ("p", "k"))

    return Operator(
        DOCS + "torch_npu-npu_top_k_top_p.md",
        {
            "logits": Tensor(FLOATS, ranks=(2, 2)),
            "p": Tensor(FLOATS, ranks=(1, 1)),
            "k": Tensor(("int32",), ranks=(1, 1)),
        },
        (same_dtype("logits", "p"), Rule("logits", "of as many rows as p and k", one_a_row)),
    )


def other_rows() -> dict[str, Operator]:
    layouts = ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND")
    sparse = Value((0, 1, 2, 3, 4))
    product = Tensor(HALVES, ranks=(2, 2))
    return {
        "npu::npu_swiglu": swiglu_row(FLOATS, 1),
        "npu::npu_rotary_mul": rotary_mul_row(),
        "npu::npu_mrope": mrope_row(),
        "npu::npu_interleave_rope": interleave_rope_row(),
        "npu::npu_prompt_flash_attention": prompt_row(
            (*HALVES, "int8"), layouts, sparse_mode=sparse
        ),
        "npu::npu_fusion_attention": fusion_row(),
        "npu::npu_quantize": quantize_row(FLOATS, False),
        "npu::npu_quant_matmul": quant_matmul_row(
            ("int8", "int32"),
            ("float32", "int64", "bfloat16"),
            ("int32", *FLOATS),
            A2_COMBINATIONS,
        ),
        "npu::npu_dynamic_quant": dynamic_quant_row(HALVES, 1),
        "npu::npu_top_k_top_p": sampling_row(),
        "npu::npu_prefetch": Operator(
            DOCS + "torch_npu-npu_prefetch.md",
            rules=(Rule("max_size", "more than 0", lambda a: a["max_size"] > 0),),
        ),
        "atb::_npu_reshape_and_cache": reshape_row((*HALVES, "int8"), False),
        "atb::_npu_matmul_add_fp32": Operator(
            "op-plugin 26.0.0: op_plugin/ops/atb/LinearAtb.cpp, and "
            "test/test_custom_ops/test_atb_linear.py",
            {"x": product, "weight": product, "C": Tensor(("float32",), ranks=(2, 2))},
            (same_dtype("x", "weight"),),
        ),
    }


ATLAS_A2: dict[str, Operator] = {
    **aten_rows(bfloat16=True),
    **collective_rows(moved="bfloat16", reduced="int64 bfloat16"),
    **norm_rows(),
    **rope_rows(FLOATS, HALVES),
    **format_cast_rows(),
    **fused_infer_rows(),
    **paged_rows(HALVES, False),
    **self_attention_rows(HALVES, False),
    **other_rows(),
    **absent(
        "hicann/ops-nn 9.1.0: matmul/matmul_v2_compress_dequant/docs/aclnnMatmulCompressDequant.md",
        "only the Atlas inference series reads compressed weights",
        ["npu::npu_matmul_compress_dequant"],
    ),
    **absent(
        "guess: vllm-ascend releases/v0.23.0 calls it for the Atlas inference series alone",
        "nothing says that this chip has it",
        [
            "atb::_npu_flash_attention_v3",
            "atb::_npu_flash_attention_unpad_v2",
            "atb::_npu_paged_attention_splitfuse_v2",
        ],
    ),
}
"""By operator."""
