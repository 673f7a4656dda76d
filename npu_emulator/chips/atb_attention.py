# SPDX-License-Identifier: Apache-2.0
"""Rows of ATB's attention operators, whose keys and values lie in a paged cache or end to end."""

from __future__ import annotations

from npu_emulator.chips.attention import COMPRESSED_MASK, divides
from npu_emulator.chips.conditions import (
    Arguments,
    last_dimensions,
    same_dtype,
    same_shape,
    shape_of,
)
from npu_emulator.chips.rules import Operator, Rule, Tensor, Value

ATB = "op-plugin 26.0.0: op_plugin/ops/atb/"
ATB_DOCS = "op-plugin 26.0.0: op_plugin/python/atb/_atb_api_docs.py"

# ATB takes lengths from host or from device memory, but for those that it reads while it plans.
HOST_LENGTHS = Tensor(("int32",), ranks=(1, 1), host=True)
CONTEXT_LENGTHS = Tensor(("int32",), host=None)
ATB_HEADS = Rule(
    "num_kv_heads",
    "a divisor of num_heads",
    lambda a: divides(a["num_kv_heads"], a["num_heads"], a["num_heads"]),
)


def cache_rules(a310p: bool) -> tuple[Rule, ...]:
    """Shape of a paged cache: (blocks, block, heads, size), or in slices of 16 on the 310P."""
    block_axis = 2 if a310p else 1

    def block(a: Arguments) -> bool:
        size = shape_of(a, "key_cache")[block_axis]
        return size % 16 == 0 and size <= 128

    def heads(a: Arguments) -> bool:
        shape = shape_of(a, "key_cache")
        size = shape[1] * 16 // (a["num_kv_heads"] or a["num_heads"]) if a310p else shape[3]
        most = 16384 // shape[block_axis]  # block times head size is at most 128 * 128
        return 0 < size <= min(256, most) and (not a310p or size % 16 == 0)

    return (
        same_dtype("query", "key_cache", "value_cache", "out"),
        same_shape("key_cache", "value_cache"),
        Rule("key_cache", "of blocks of a multiple of 16 tokens, and at most 128", block),
        Rule("key_cache", "of heads of at most 256, and 16384 elements of a head a block", heads),
        ATB_HEADS,
    )


def paged_arguments(dtypes: tuple[str, ...], a310p: bool) -> dict[str, Tensor]:
    """Arguments that every kernel on a paged cache has."""
    cache = Tensor(dtypes, ranks=(4, 4), last=(16,) * a310p, contiguous=True)
    return {
        "query": Tensor(dtypes, ranks=(2, 3)),
        "key_cache": cache,
        "value_cache": cache,
        "block_table": Tensor(("int32",), ranks=(2, 2)),
        "context_lens": CONTEXT_LENGTHS,
        "out": Tensor(dtypes, ranks=(2, 3), contiguous=True),
    }


def paged_rows(dtypes: tuple[str, ...], a310p: bool) -> dict[str, Operator]:
    """Decoding and chunks of prompts on a paged cache."""
    arguments, rules = paged_arguments(dtypes, a310p), cache_rules(a310p)
    batch = Rule(
        "block_table",
        "of at most 2048 rows on the Atlas inference series",
        lambda a: shape_of(a, "block_table")[0] <= 2048,
    )
    most = (batch,) if a310p else ()
    decode = Operator(ATB_DOCS + " (_npu_paged_attention_v2)", arguments, (*rules, *most))
    chunk = {**arguments, "seq_len": HOST_LENGTHS, "mask": Tensor(dtypes)}
    return {
        "atb::_npu_paged_attention": decode,
        "atb::_npu_paged_attention_get_workspace": decode,
        "atb::_npu_paged_attention_splitfuse": Operator(
            ATB + "PagedAttentionSplitfuse.cpp", chunk, rules
        ),
    }


def self_attention_rows(dtypes: tuple[str, ...], a310p: bool) -> dict[str, Operator]:
    """Whole prompts, whose sequences lie end to end."""
    part = Tensor(dtypes, ranks=(2, 3))
    arguments = {
        **dict.fromkeys(("query", "key", "value"), part),
        "seq_len": HOST_LENGTHS,
        "out": Tensor(dtypes, ranks=(2, 3), contiguous=True),
    }

    def head_size(a: Arguments) -> bool:
        shape = shape_of(a, "query")
        size = shape[-1] if len(shape) == 3 else shape[-1] // a["num_heads"]
        return 0 < size <= (256 if a310p else 576) and (not a310p or size % 16 == 0)

    limit = "a multiple of 16 and at most 256" if a310p else "at most 576"
    rules = (
        same_dtype("query", "key", "value", "out"),
        Rule("query", f"of a head size that is {limit}", head_size),
        Rule(
            "key",
            "of as many dimensions as query",
            lambda a: len(shape_of(a, "key")) == len(shape_of(a, "query")),
        ),
        ATB_HEADS,
    )
    document = ATB_DOCS + " (_npu_flash_attention_v2)"
    return {
        "atb::_npu_flash_attention": Operator(
            document, {**arguments, "mask": Tensor(dtypes)}, rules
        ),
        "atb::_npu_flash_attention_unpad": Operator(document, arguments, rules),
    }


def compressed_rows_310p() -> dict[str, Operator]:
    """The kernels with compressed masks, of which only their caller says anything."""
    half = ("float16",)
    flash = self_attention_rows(half, True)
    paged = paged_rows(half, True)["atb::_npu_paged_attention_splitfuse"]
    caller = "guess: vllm-ascend releases/v0.23.0: vllm_ascend/_310p/"
    whole, unpad = flash["atb::_npu_flash_attention"], flash["atb::_npu_flash_attention_unpad"]
    square = (COMPRESSED_MASK, COMPRESSED_MASK)
    sliced = (1, COMPRESSED_MASK // 16, COMPRESSED_MASK, 16)
    return {
        "atb::_npu_flash_attention_v3": Operator(
            caller + "attention/attention_mask.py",
            {**whole.arguments, "mask_type": Value((3,))},
            (*whole.rules, last_dimensions("mask", *sliced)),
        ),
        "atb::_npu_flash_attention_unpad_v2": Operator(
            caller + "ops/mm_encoder_attention.py",
            {**unpad.arguments, "kernel_type": Value((0, 1, 2))},
            unpad.rules,
        ),
        "atb::_npu_paged_attention_splitfuse_v2": Operator(
            caller + "attention/attention_mask.py",
            {**paged.arguments, "mask": Tensor(half, ranks=(2, 2)), "mask_type": Value((5,))},
            (*paged.rules, last_dimensions("mask", *square)),
        ),
    }


def reshape_row(dtypes: tuple[str, ...], a310p: bool) -> Operator:
    """_npu_reshape_and_cache."""
    arguments = paged_arguments(dtypes, a310p)
    part = Tensor(dtypes, ranks=(3, 3))
    slots = Tensor(("int32",), ranks=(1, 1))

    def fits(a: Arguments) -> bool:
        key, cache = shape_of(a, "key"), shape_of(a, "key_cache")
        wanted = (key[1] * key[2] // 16,) if a310p else key[1:]
        return (cache[1:2] if a310p else cache[2:]) == wanted

    return Operator(
        ATB + "ReshapeAndCachAtb.cpp, and test/test_custom_ops/test_atb_reshape_and_cache.py",
        {
            **{name: arguments[name] for name in ("key_cache", "value_cache")},
            "key": part,
            "value": part,
            "slot_indices": slots,
        },
        (
            same_dtype("key", "value", "key_cache", "value_cache"),
            Rule("key_cache", "of the heads of key", fits),
            Rule(
                "slot_indices",
                "one for each token of key",
                lambda a: shape_of(a, "slot_indices")[:1] == shape_of(a, "key")[:1],
            ),
        ),
    )
