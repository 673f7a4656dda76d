# SPDX-License-Identifier: Apache-2.0
"""The tables of what the chips take: legal calls pass, and each planted fault is refused.

Tensors on the meta device stand for those of the NPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from npu_emulator.chips.a2 import ATLAS_A2
from npu_emulator.chips.atlas_310p import ATLAS_310P
from npu_emulator.chips.conditions import FRACTAL_NZ
from npu_emulator.chips.rules import Operator, Refusal, Tensor, check
from npu_emulator.kernels.registry import find_schema
from tests.emulator.attention_calls import BF16, HALF, INT, device, host
from tests.emulator.calls import BICUBIC, MROPE, ROPE

TABLES: dict[str, Mapping[str, Operator]] = {"A2": ATLAS_A2, "310P": ATLAS_310P}
BORDER = 1
FIA = "npu::npu_fused_infer_attention_score"


def paged_call(cache: torch.Tensor, dtype: torch.dtype = HALF) -> dict[str, Any]:
    return {
        "query": device(3, 32, 128, dtype=dtype),
        "key_cache": cache,
        "value_cache": cache,
        "num_kv_heads": 2,
        "num_heads": 32,
        "scale_value": 0.1,
        "block_table": device(3, 8, dtype=INT),
        "context_lens": device(3, dtype=INT),
        "out": device(3, 32, 128, dtype=dtype),
        "workspace": None,
    }


SLICED_CACHE = device(8, 2 * 128 // 16, 128, 16)
PLAIN_CACHE = device(8, 128, 2, 128)
FIA_CALL: dict[str, Any] = {
    "query": device(6, 32, 128),
    "key": device(8, 128, 256),
    "value": device(8, 128, 256),
    "atten_mask": device(2048, 2048, dtype=torch.int8),
    "actual_seq_lengths": [4, 6],
    "actual_seq_lengths_kv": [40, 90],
    "block_table": device(2, 8, dtype=INT),
    "num_heads": 32,
    "num_key_value_heads": 2,
    "input_layout": "TND",
    "sparse_mode": 3,
    "inner_precise": 0,
    "block_size": 128,
    "query_rope": None,
}
FLASH_CALL: dict[str, Any] = {
    "query": device(48, 32, 128),
    "key": device(48, 2, 128),
    "value": device(48, 2, 128),
    "mask": device(1, 128, 2048, 16),
    "seq_len": host(2),
    "scale_value": 0.1,
    "num_heads": 32,
    "num_kv_heads": 2,
    "mask_type": 3,
    "out": device(48, 32, 128),
}
QUANT_CALL: dict[str, Any] = {
    "x1": device(3, 256, dtype=torch.int8),
    "x2": device(256, 512, dtype=torch.int8),
    "scale": device(512, dtype=torch.int64),
    "bias": device(512, dtype=INT),
    "offset": None,
    "pertoken_scale": None,
    "output_dtype": 5,
}
PICTURE_CALL: dict[str, Any] = {
    "input": device(1, 8, 24, 24, dtype=torch.float32),
    "grid": device(1, 10, 1, 2, dtype=torch.float32),
    "interpolation_mode": BICUBIC,
    "padding_mode": BORDER,
    "align_corners": False,
}
SUM_CALL: dict[str, Any] = {"x1": device(3, 64), "x2": device(3, 64), "gamma": device(64)}
MERGE_CALL: dict[str, Any] = {
    "self": device(9, 64),
    "indices": [device(9, dtype=torch.bool)],
    "values": device(4, 64),
    "accumulate": False,
}

LEGAL: list[tuple[str, str, dict[str, Any]]] = [
    ("A2", "aten::add.Tensor", {"self": device(2, dtype=BF16), "other": device(2, dtype=BF16)}),
    ("310P", "aten::add.Tensor", {"self": device(2), "other": host(dtype=HALF)}),
    ("310P", "aten::copy_", {"self": device(2), "src": host(2, dtype=BF16)}),
    ("A2", "aten::grid_sampler_2d", PICTURE_CALL),
    ("310P", "aten::grid_sampler_2d", PICTURE_CALL | {"interpolation_mode": 0}),
    ("A2", "aten::index_put_", MERGE_CALL),
    ("310P", "aten::index_put_", MERGE_CALL | {"indices": [device(4, dtype=torch.int64)]}),
    ("310P", "aten::index_put_", MERGE_CALL | {"self": device(9, dtype=INT)}),
    ("A2", FIA, FIA_CALL),
    ("A2", FIA, FIA_CALL | {"block_table": None, "sparse_mode": 0, "atten_mask": None}
     | dict.fromkeys(("key", "value"), device(6, 2, 128))),
    ("310P", "atb::_npu_flash_attention_v3", FLASH_CALL),
    ("310P", "atb::_npu_paged_attention", paged_call(SLICED_CACHE)),
    ("A2", "atb::_npu_paged_attention", paged_call(PLAIN_CACHE)),
    ("A2", "npu::npu_mrope", MROPE),
    ("310P", "npu::npu_apply_rotary_pos_emb", ROPE),
    ("A2", "npu::npu_quant_matmul", QUANT_CALL),
    ("310P", "npu::npu_quant_matmul", QUANT_CALL | {"output_dtype": HALF}),
    ("310P", "npu::npu_add_rms_norm", SUM_CALL),
    ("A2", "_C_ascend::npu_add_rms_norm_bias", SUM_CALL | {"beta": None}),
    ("310P", "npu::npu_swiglu", {"input": device(3, 128), "dim": -1}),
    ("310P", "npu::npu_format_cast", {"input": device(64, 32), "acl_format": FRACTAL_NZ}),
    ("A2", "c10d::allreduce_", {"tensors": [device(4, dtype=torch.int64)]}),
    ("310P", "c10d::allgather_", {"input_tensors": [device(4, dtype=torch.int64)]}),
]  # fmt: skip

FAULTS: list[tuple[str, str, dict[str, Any], str, str]] = [
    # chip, operator, call, the argument refused, part of the rule
    ("310P", "aten::add.Tensor", {"self": device(2, dtype=BF16)}, "self", "one of"),
    ("310P", "aten::embedding", {"indices": device(3, dtype=torch.int16)}, "indices", "int32"),
    ("310P", "aten::grid_sampler_2d", PICTURE_CALL, "interpolation_mode", "bilinear"),
    ("310P", "aten::index_put_", MERGE_CALL, "indices", "of integers"),
    ("A2", "aten::index_put_", MERGE_CALL | {"indices": [device(4)]}, "indices", "int64"),
    ("310P", "aten::_to_copy", {"self": device(2, dtype=BF16)}, "self", "one of"),
    ("A2", FIA, FIA_CALL | {"input_layout": "THD"}, "input_layout", "'TND'"),
    ("A2", FIA, FIA_CALL | {"sparse_mode": 5}, "sparse_mode", "0 or 1"),
    ("A2", FIA, FIA_CALL | {"query": device(6, 32, 64)}, "query", "head size 128"),
    ("A2", FIA, FIA_CALL | {"block_size": 120}, "key", "block_size"),
    ("A2", FIA, FIA_CALL | {"actual_seq_lengths": [1] * 4097}, "actual_seq_lengths", "4096"),
    ("A2", FIA, FIA_CALL | {"atten_mask": device(6, 90, dtype=torch.int8)}, "atten_mask", "2048"),
    ("A2", FIA, FIA_CALL | {"block_table": host(2, 8)}, "block_table", "on the device"),
    ("A2", FIA, FIA_CALL | {"block_table": device(3, 8, dtype=INT)}, "block_table", "a row"),
    ("A2", FIA, FIA_CALL | {"num_key_value_heads": 3}, "num_key_value_heads", "divisor"),
    ("310P", "atb::_npu_flash_attention_v3", FLASH_CALL | {"seq_len": device(2, dtype=INT)},
     "seq_len", "host memory"),
    ("310P", "atb::_npu_flash_attention_v3", FLASH_CALL | {"mask": device(2048, 2048)},
     "mask", "2048, 16"),
    ("310P", "atb::_npu_paged_attention", paged_call(PLAIN_CACHE), "key_cache", "16"),
    ("310P", "atb::_npu_paged_attention", paged_call(SLICED_CACHE.to(BF16), BF16),
     "query", "float16"),
    ("A2", "atb::_npu_paged_attention", paged_call(device(8, 256, 2, 128)), "key_cache", "128"),
    ("A2", "atb::_npu_paged_attention",
     paged_call(PLAIN_CACHE) | {"context_lens": host(3, dtype=torch.int64)}, "context_lens", "int"),
    ("A2", "npu::npu_mrope", MROPE | {"mrope_section": [16, 8, 8]}, "mrope_section", "half"),
    ("A2", "npu::npu_mrope", MROPE | {"rotary_mode": "interleaved"}, "rotary_mode", "'half'"),
    ("310P", "npu::npu_apply_rotary_pos_emb", ROPE | {"rotary_mode": "interleave"},
     "rotary_mode", "'half'"),
    ("A2", "npu::npu_apply_rotary_pos_emb", ROPE | {"cos": device(1, 5, 2, 64)},
     "cos", "one head"),
    ("310P", "npu::npu_quant_matmul", QUANT_CALL | {"pertoken_scale": device(3)},
     "pertoken_scale", "None"),
    ("310P", "npu::npu_quant_matmul", QUANT_CALL | {"output_dtype": 15}, "scale", "output_dtype"),
    ("A2", "npu::npu_quant_matmul", QUANT_CALL | {"output_dtype": BF16}, "scale", "output_dtype"),
    ("310P", "npu::npu_rms_norm", {"input": device(3, 8), "gamma": device(8)}, "input", "32 bytes"),
    ("310P", "npu::npu_add_rms_norm", SUM_CALL | {"gamma": device(64, dtype=torch.float32)},
     "x2", "dtype of x1"),
    ("310P", "npu::npu_swiglu", {"input": device(3, 48), "dim": -1}, "input", "64 bytes"),
    ("A2", "npu::npu_swiglu", {"input": device(3, 256)[:, ::2], "dim": -1}, "input", "contiguous"),
    ("310P", "npu::npu_format_cast", {"input": device(64, 1), "acl_format": FRACTAL_NZ},
     "input", "FRACTAL_NZ"),
    ("310P", "c10d::allreduce_", {"tensors": [device(4, dtype=torch.int64)]}, "tensors", "int8"),
    ("310P", "c10d::broadcast_", {"tensors": [device(4, dtype=BF16)]}, "tensors", "int8"),
]  # fmt: skip


@pytest.mark.parametrize(("chip", "name", "call"), LEGAL)
def test_a_legal_call_passes(chip: str, name: str, call: dict[str, Any]) -> None:
    check(chip, TABLES[chip], name, call)


@pytest.mark.parametrize(("chip", "name", "call", "argument", "rule"), FAULTS)
def test_a_fault_is_refused_by_name_argument_rule_and_document(
    chip: str, name: str, call: dict[str, Any], argument: str, rule: str
) -> None:
    document = TABLES[chip][name].document
    with pytest.raises(Refusal) as refusal:
        check(chip, TABLES[chip], name, call)
    message = str(refusal.value)
    assert message.startswith(f"{chip} refuses {name}: {argument} is ")
    assert rule in message.split("has to be")[1]
    assert message.endswith(f"({document})")


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        ("310P", FIA),
        ("310P", FIA + ".out"),
        ("310P", "npu::npu_mrope"),
        ("310P", "_C_ascend::npu_add_rms_norm_bias"),
        ("310P", "aten::nan_to_num"),
        ("A2", "npu::npu_matmul_compress_dequant"),
    ],
)
def test_an_absent_operator_is_refused_with_the_reason(chip: str, name: str) -> None:
    row = TABLES[chip][name]
    with pytest.raises(Refusal) as refusal:
        check(chip, TABLES[chip], name, {})
    assert str(refusal.value) == f"{chip} has no {name}: {row.absent} ({row.document})"


@pytest.mark.parametrize("chip", TABLES)
def test_an_operator_without_a_row_is_refused(chip: str) -> None:
    with pytest.raises(Refusal, match=rf"aten::cholesky has no row in the table of {chip}"):
        check(chip, TABLES[chip], "aten::cholesky", {"self": device(2, 2)})


def test_both_chips_know_the_same_operators() -> None:
    assert set(ATLAS_A2) == set(ATLAS_310P)


@pytest.mark.parametrize("chip", TABLES)
def test_every_row_names_a_document(chip: str) -> None:
    sources = "guess|op-plugin|hicann/|cann/|vllm-ascend|Ascend/pytorch"
    for name, row in TABLES[chip].items():
        assert re.match(rf"({sources})[^:]*: \S", row.document), name


@pytest.mark.parametrize("chip", TABLES)
def test_every_row_names_arguments_of_the_schema(chip: str) -> None:
    for name, row in TABLES[chip].items():
        schema = find_schema(name)
        assert schema or not name.startswith("aten::"), f"torch has no {name}"
        if schema:  # npu, atb and _C_ascend are known where torch_npu is
            known = {argument.name for argument in schema.arguments}
            assert {*row.arguments, *(rule.argument for rule in row.rules)} <= known, name


@pytest.mark.parametrize("chip", TABLES)
def test_every_row_names_dtypes_of_torch(chip: str) -> None:
    for row in TABLES[chip].values():
        own = [wanted.dtypes for wanted in row.arguments.values() if isinstance(wanted, Tensor)]
        for dtype in {*row.dtypes, *(dtype for dtypes in own for dtype in dtypes)}:
            assert isinstance(getattr(torch, dtype), torch.dtype)


def test_bfloat16_is_only_moved_on_the_310p() -> None:
    takers = {
        name
        for name, row in ATLAS_310P.items()
        if "bfloat16" in row.dtypes
        or any("bfloat16" in getattr(wanted, "dtypes", ()) for wanted in row.arguments.values())
    }
    assert takers == {f"aten::{n}" for n in ("copy_", "clone", "contiguous", "_local_scalar_dense")}
