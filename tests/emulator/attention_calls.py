# SPDX-License-Identifier: Apache-2.0
"""Good calls of the attention operators in the chips' tables, and calls that break one rule each.

Tensors on the meta device stand for those of the NPU.
"""

from __future__ import annotations

from typing import Any

import torch

Call = dict[str, Any]
HALF, BF16, FLOAT, INT = torch.float16, torch.bfloat16, torch.float32, torch.int32
INT8, LONG = torch.int8, torch.int64


def device(*shape: int, dtype: torch.dtype = HALF) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def host(*shape: int, dtype: torch.dtype = INT) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def both(first: str, second: str, *shape: int, dtype: torch.dtype = HALF) -> Call:
    return dict.fromkeys((first, second), device(*shape, dtype=dtype))


FIA: Call = {
    "query": device(6, 32, 128),
    **both("key", "value", 8, 128, 256),
    "pse_shift": None,
    "atten_mask": device(2048, 2048, dtype=INT8),
    "actual_seq_lengths": [4, 6],
    "actual_seq_lengths_kv": [40, 90],
    "dequant_scale1": device(1, dtype=FLOAT),
    "quant_scale1": device(1, dtype=FLOAT),
    "dequant_scale2": device(1, dtype=FLOAT),
    "quant_scale2": device(1, dtype=FLOAT),
    "quant_offset2": device(1, dtype=FLOAT),
    "block_table": device(2, 8, dtype=INT),
    "num_heads": 32,
    "num_key_value_heads": 2,
    "input_layout": "TND",
    "sparse_mode": 3,
    "inner_precise": 0,
    "block_size": 128,
    "query_rope": None,
    "key_rope": None,
}
UNPAGED: Call = {"block_table": None, "sparse_mode": 0, "atten_mask": None}
FIA_BREAKS: list[Call] = [
    {"num_key_value_heads": 3},
    {"num_heads": 130, "num_key_value_heads": 2, "query": device(6, 130, 128)},
    {"value": device(8, 128, 256, dtype=INT8)},
    both("key", "value", 8, 128, 256, dtype=BF16),
    {"num_heads": 16},
    UNPAGED | both("key", "value", 6, 4, 128),
    UNPAGED | {"input_layout": "BSH", "query": device(1, 6, 4096)}
    | both("key", "value", 1, 6, 512),
    {"actual_seq_lengths": [1] * 4097, "block_table": device(4097, 8, dtype=INT)},
    {"actual_seq_lengths": None, "block_table": device(0, 8, dtype=INT)},
    {"actual_seq_lengths_kv": [1] * 4097},
    {"actual_seq_lengths_kv": None},
    {"query": device(6, 32, 64)},
    {"query": device(6, 32, 192)},
    UNPAGED | {"query": device(6, 32, 64)} | both("key", "value", 6, 2, 64),
    {"value": device(8, 128, 512)},
    {"block_size": 1040} | both("key", "value", 8, 1040, 256),
    {"block_size": 120} | both("key", "value", 8, 120, 256),
    {"block_size": 16, "input_layout": "BSH", "query": device(1, 6, 4096)}
    | both("key", "value", 8, 16, 256),
    {"block_table": device(3, 8, dtype=INT)},
    {"atten_mask": device(2048, 2047, dtype=INT8)},
    UNPAGED | {"input_layout": "BSND", "query": device(1, 6, 32, 528)}
    | both("key", "value", 1, 6, 2, 528),
    UNPAGED | {"input_layout": "BNSD", "query": device(1, 32, 6, 120)}
    | both("key", "value", 1, 2, 6, 120),
]  # fmt: skip
OUT = {"out": [device(6, 32, 128), device(6, 32, 1, dtype=FLOAT)]}
OUT_BREAKS: list[Call] = [{"out": OUT["out"][::-1]}, {"out": OUT["out"][:1]}]

PLAIN, SLICED = (8, 128, 2, 128), (8, 16, 128, 16)
"""The shape of a cache on A2, and on 310P."""
PAGED: Call = {
    "query": device(3, 32, 128),
    **both("key_cache", "value_cache", *PLAIN),
    "num_kv_heads": 2,
    "num_heads": 32,
    "scale_value": 0.1,
    "block_table": device(3, 8, dtype=INT),
    "context_lens": device(3, dtype=INT),
    "out": device(3, 32, 128),
}
CHUNK = PAGED | {"seq_len": host(3), "mask": device(128, 128)}


def caches(*shape: int) -> Call:
    return both("key_cache", "value_cache", *shape)


PAGED_BREAKS: dict[str, list[Call]] = {
    "A2": [
        {"out": device(3, 32, 128, dtype=BF16)},
        {"value_cache": device(9, 128, 2, 128)},
        caches(8, 256, 2, 64),
        caches(8, 120, 2, 128),
        caches(8, 128, 2, 144),
        caches(8, 16, 2, 272),
        {"num_kv_heads": 3},
    ],
    "310P": [
        {"value_cache": device(9, 16, 128, 16)},
        caches(8, 8, 256, 16),
        caches(8, 16, 120, 16),
        caches(8, 18, 128, 16),
        caches(8, 24, 128, 16) | {"num_kv_heads": 32},
        caches(8, 24, 128, 16) | {"num_kv_heads": 3},
    ],
}
ROWS_310P: list[Call] = [{"block_table": device(2049, 8, dtype=INT)}]

FLASH: Call = {
    "query": device(48, 32, 128),
    **both("key", "value", 48, 2, 128),
    "mask": device(128, 128),
    "seq_len": host(2),
    "scale_value": 0.1,
    "num_heads": 32,
    "num_kv_heads": 2,
    "out": device(48, 32, 128),
}
UNPAD = {name: value for name, value in FLASH.items() if name != "mask"}
FLASH_BREAKS: dict[str, list[Call]] = {
    "A2": [
        {"out": device(48, 32, 128, dtype=BF16)},
        {"query": device(48, 32, 577)},
        {"query": device(48, 31)},
        {"key": device(48, 256)},
        {"num_kv_heads": 3},
    ],
    "310P": [
        {"query": device(48, 32, 272)},
        {"query": device(48, 32, 120)},
        {"key": device(48, 256)},
        {"num_kv_heads": 3},
    ],
}

PROMPT: Call = {
    "query": device(1, 32, 6, 128),
    **both("key", "value", 1, 32, 6, 128),
    "atten_mask": device(2048, 2048, dtype=torch.bool),
    "input_layout": "BNSD",
    "num_heads": 32,
    "num_key_value_heads": 0,
    "sparse_mode": 0,
    "pre_tokens": 2147483647,
    "next_tokens": 0,
    **dict.fromkeys(("actual_seq_lengths", "actual_seq_lengths_kv", "pse_shift")),
    **dict.fromkeys(("deq_scale1", "quant_scale1", "deq_scale2", "quant_scale2", "quant_offset2")),
}
RESHAPED: Call = {
    **both("key", "value", 5, 2, 128),
    **caches(*PLAIN),
    "slot_indices": device(5, dtype=INT),
}
FIA_NAME = "npu::npu_fused_infer_attention_score"

ATTENTION_CALLS: dict[str, tuple[Call, list[Call]]] = {
    FIA_NAME: (FIA, FIA_BREAKS),
    FIA_NAME + ".out": (FIA | OUT, FIA_BREAKS + OUT_BREAKS),
    "npu::_npu_fused_infer_attention_score_get_max_workspace": (FIA, FIA_BREAKS),
    "npu::npu_prompt_flash_attention": (
        PROMPT,
        [
            {"key": device(1, 32, 6, 128, dtype=BF16)},
            {"num_key_value_heads": 3},
            {"sparse_mode": 2, "atten_mask": device(6, 6, dtype=torch.bool)},
            {"query": device(129, 32, 6, 128)},
        ],
    ),
    "npu::npu_fusion_attention": (
        {
            **dict.fromkeys(("query", "key", "value"), device(6, 32, 128)),
            "atten_mask": device(6, 6, dtype=torch.bool),
            "input_layout": "TND",
            "actual_seq_qlen": [4, 6],
            "actual_seq_kvlen": [4, 6],
            "sparse_mode": 0,
        },
        [
            {"value": device(6, 32, 128, dtype=BF16)},
            {"actual_seq_qlen": None},
            {"actual_seq_kvlen": None},
        ],
    ),
}

BY_CHIP: dict[str, dict[str, tuple[Call, list[Call]]]] = {"A2": {}, "310P": {}}
for chip, shape in (("A2", PLAIN), ("310P", SLICED)):
    cache, rows = caches(*shape), ROWS_310P if chip == "310P" else []
    paged, flash = PAGED_BREAKS[chip], FLASH_BREAKS[chip]
    BY_CHIP[chip] = {
        "atb::_npu_paged_attention": (PAGED | cache, paged + rows),
        "atb::_npu_paged_attention_get_workspace": (PAGED | cache, paged + rows),
        "atb::_npu_paged_attention_splitfuse": (CHUNK | cache, paged),
        "atb::_npu_flash_attention": (FLASH, flash),
        "atb::_npu_flash_attention_unpad": (UNPAD, flash),
        "atb::_npu_flash_attention_v3": (
            FLASH | {"mask": device(1, 128, 2048, 16), "mask_type": 3},
            [*flash, {"mask": device(2048, 2048)}],
        ),
        "atb::_npu_flash_attention_unpad_v2": (UNPAD | {"kernel_type": 0}, flash),
        "atb::_npu_paged_attention_splitfuse_v2": (
            CHUNK | cache | {"mask": device(2048, 2048), "mask_type": 5},
            [*paged, {"mask": device(2048, 1024)}],
        ),
        "atb::_npu_reshape_and_cache": (
            RESHAPED | cache,
            [
                {"key": device(5, 2, 64)},
                {"slot_indices": device(4, dtype=INT)},
                {"value": device(5, 2, 128, dtype=INT8)},
            ],
        ),
    }
