# SPDX-License-Identifier: Apache-2.0
"""The calls that the Atlas inference series (Ascend 310P) takes."""

from __future__ import annotations

from dataclasses import replace

from npu_emulator.chips.atb_attention import (
    compressed_rows_310p,
    paged_rows,
    reshape_row,
    self_attention_rows,
)
from npu_emulator.chips.aten import BICUBIC, INDEX_PUT, aten_rows
from npu_emulator.chips.attention import FIA, prompt_row
from npu_emulator.chips.collectives import collective_rows
from npu_emulator.chips.conditions import (
    Arguments,
    absent,
    dtype_of,
    same_dtype,
    same_shape,
    scalar_type,
    shape_of,
)
from npu_emulator.chips.quantized import (
    ADD_NORM_DYNAMIC_QUANT,
    INT8_COMBINATIONS,
    add_norm_quant_row,
    dynamic_quant_row,
    quant_matmul_row,
    quantize_row,
)
from npu_emulator.chips.rules import Operator, Rule, Tensor, Value, is_host, tensors_of
from npu_emulator.chips.shared import DOCS, format_cast_rows, rope_rows, swiglu_row

HALF = ("float16",)
FLOATS = ("float16", "float32")
NOT_LISTED = "its document does not list the Atlas inference series"


def aten_rows_310p() -> dict[str, Operator]:
    """The shared rows, and where this chip takes less."""
    rows = aten_rows(bfloat16=False)

    def no_mask_of_floats(a: Arguments) -> bool:
        masks = [t for t in tensors_of(a["indices"]) if str(t.dtype) == "torch.bool"]
        return not masks or dtype_of(a, "self") not in FLOATS

    mask = Rule(
        "indices",
        "of integers where floats are written: a mask goes to an AI CPU kernel, which fails",
        no_mask_of_floats,
    )
    for name in INDEX_PUT:
        document = rows[name].document + "; vllm-ascend issues 4419 and 12086"
        rows[name] = replace(rows[name], document=document, rules=(*rows[name].rules, mask))

    sampler = rows["aten::grid_sampler_2d"]
    bicubic = Rule(
        "interpolation_mode",
        "bilinear or nearest (0 or 1)",
        lambda a: a["interpolation_mode"] != BICUBIC,
    )
    rows["aten::grid_sampler_2d"] = replace(
        sampler,
        document="hicann/ops-cv 9.1.0: image/grid_sample/op_api/aclnn_grid_sampler2d.cpp",
        rules=(*sampler.rules, bicubic),
    )
    cast = rows["aten::_to_copy"]
    rows["aten::_to_copy"] = replace(cast, rules=(*cast.rules, cast_rule(cast.dtypes)), lacks=())
    for name in ("aten::minimum", "aten::minimum.out"):
        dtypes = tuple(dtype for dtype in rows[name].dtypes if dtype != "bool")
        rows[name] = replace(rows[name], dtypes=dtypes)
    names = ["aten::nan_to_num", "aten::nan_to_num.out", "aten::nan_to_num_"]
    why = NOT_LISTED + ", and vllm-ascend leaves it out there"
    return rows | absent(rows[names[0]].document, why, names)


def cast_rule(dtypes: tuple[str, ...]) -> Rule:
    """bfloat16 may come and go, and be cast as it leaves the host, but not on the device."""

    def holds(a: Arguments) -> bool:
        source = dtype_of(a, "self")
        target = scalar_type(a.get("dtype")) or source
        if is_host(a["self"]):
            return target == source or target != "bfloat16"
        leaves = a.get("device") is not None and a["device"].type == "cpu"
        return leaves or "bfloat16" not in (source, target)

    return Rule("self", f"one of {', '.join(dtypes)}, as what it is cast to", holds)


def norm_rows() -> dict[str, Operator]:
    values = Tensor(FLOATS, ranks=(1, 8), tail_bytes=32)
    added = Tensor(FLOATS, ranks=(1, 8))
    return {
        "npu::npu_rms_norm": Operator(
            DOCS + "（beta）torch_npu-npu_rms_norm.md",
            {"input": values, "gamma": values},
            (same_dtype("input", "gamma"),),
        ),
        "npu::npu_add_rms_norm": Operator(
            DOCS + "torch_npu-npu_add_rms_norm.md",
            dict.fromkeys(("x1", "x2", "gamma"), added),
            (same_dtype("x1", "x2", "gamma"), same_shape("x1", "x2")),
        ),
        "npu::npu_add_rms_norm_quant": add_norm_quant_row(
            (("float16", "float32", "int32"),), fewest=32
        ),
    }


def rotary_mul_row() -> Operator:
    values = Tensor(FLOATS, ranks=(4, 4), last_multiple_of=2)

    def broadcasts(a: Arguments) -> bool:
        shape, cos = shape_of(a, "input"), shape_of(a, "r1")
        return all(part in (1, whole) for part, whole in zip(cos, shape, strict=True))

    return Operator(
        "op-plugin 26.0.0: op_plugin/ops/aclops/RotaryMulKernelNpu.cpp",
        {**dict.fromkeys(("input", "r1", "r2"), values), "rotary_mode": Value(("half",))},
        (
            same_dtype("input", "r1", "r2"),
            same_shape("r1", "r2"),
            Rule("r1", "of the dimensions of input, or of 1", broadcasts),
            Rule("rotate", "None", lambda a: a.get("rotate") is None),
        ),
    )


def compressed_matmul_row() -> Operator:
    def sizes(a: Arguments) -> bool:
        rows, inner = shape_of(a, "x1")
        return rows <= 256 and inner > 256 and inner % 64 == 0

    def columns(a: Arguments) -> bool:
        size = shape_of(a, "bias")[-1]
        return size % 64 == 0 and size >= 128 and shape_of(a, "scale") in ((1, size), (1, 1))

    flat = Tensor(("int8",), ranks=(1, 1))
    return Operator(
        "hicann/ops-nn 9.1.0: matmul/matmul_v2_compress_dequant/docs/"
        "aclnnMatmulCompressDequant.md; op-plugin 26.0.0: op_plugin/python/meta",
        {
            "x1": Tensor(("int8",), ranks=(2, 2)),
            "x2": flat,
            "compress_index": flat,
            "bias": Tensor(("int32",), ranks=(2, 2)),
            "scale": Tensor(("uint64",), ranks=(2, 2)),
            "offsetW": Value((None,)),
            "offsetX": Value((None, 0)),
        },
        (
            Rule("x1", "of at most 256 rows, and of more than 256 columns in steps of 64", sizes),
            Rule("bias", "of at least 128 columns in steps of 64, and scale of as many", columns),
        ),
    )


def other_rows() -> dict[str, Operator]:
    layouts = ("BSH", "BSND", "BNSD", "BNSD_BSND")
    unsupported = "actual_seq_lengths actual_seq_lengths_kv pse_shift deq_scale1 quant_scale1 "
    unsupported += "deq_scale2 quant_scale2 quant_offset2"
    limits = {
        "sparse_mode": Value((0,)),
        "num_key_value_heads": Value((0,)),
        "pre_tokens": Value((2147483647,)),
        "next_tokens": Value((0, 2147483647)),
        **dict.fromkeys(unsupported.split(), Value((None,))),
    }
    prompt = prompt_row(HALF, layouts, **limits)
    batch = Rule("query", "of a batch of at most 128", lambda a: shape_of(a, "query")[0] <= 128)
    return {
        "npu::npu_swiglu": swiglu_row(FLOATS, 64),
        "npu::npu_rotary_mul": rotary_mul_row(),
        "npu::npu_prompt_flash_attention": replace(prompt, rules=(*prompt.rules, batch)),
        "npu::npu_quantize": quantize_row(FLOATS, True),
        "npu::npu_quant_matmul": quant_matmul_row(
            ("int8",), ("float32", "int64"), ("int32",), INT8_COMBINATIONS
        ),
        "npu::npu_dynamic_quant": dynamic_quant_row(HALF, 32),
        "npu::npu_matmul_compress_dequant": compressed_matmul_row(),
        "atb::_npu_reshape_and_cache": reshape_row(HALF, True),
    }


def absent_rows() -> dict[str, Operator]:
    """What this chip does not have."""
    fia = "npu::npu_fused_infer_attention_score"
    workspace = "npu::_npu_fused_infer_attention_score_get_max_workspace"
    documents = {
        FIA: [fia, fia + ".out", workspace],
        DOCS + "torch_npu-npu_fusion_attention.md": ["npu::npu_fusion_attention"],
        DOCS + "torch_npu-npu_mrope.md": ["npu::npu_mrope"],
        DOCS + "torch_npu-npu_interleave_rope.md": ["npu::npu_interleave_rope"],
        DOCS + "torch_npu-npu_top_k_top_p.md": ["npu::npu_top_k_top_p"],
        DOCS + "torch_npu-npu_prefetch.md": ["npu::npu_prefetch"],
        ADD_NORM_DYNAMIC_QUANT: ["npu::npu_add_rms_norm_dynamic_quant"],
    }
    rows: dict[str, Operator] = {}
    for document, names in documents.items():
        rows |= absent(document, NOT_LISTED, names)
    return (
        rows
        | absent(
            "vllm-ascend releases/v0.23.0: csrc/moe/add_rms_norm_bias/op_host",
            "it is built for the A2 and A3 alone",
            ["_C_ascend::npu_add_rms_norm_bias"],
        )
        | absent(
            "vllm-ascend releases/v0.23.0: vllm_ascend/_310p/worker_310p.py",
            "ATB has no such product there",
            ["atb::_npu_matmul_add_fp32"],
        )
    )


ATLAS_310P: dict[str, Operator] = {
    **aten_rows_310p(),
    **collective_rows(),
    **norm_rows(),
    **rope_rows(FLOATS, HALF),
    **format_cast_rows(only_wide=True),
    **paged_rows(HALF, True),
    **self_attention_rows(HALF, True),
    **compressed_rows_310p(),
    **other_rows(),
    **absent_rows(),
}
"""By operator."""
