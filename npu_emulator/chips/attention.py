# SPDX-License-Identifier: Apache-2.0
"""Rows of npu's fused attention operators."""

from __future__ import annotations

from typing import Any

from npu_emulator.chips.conditions import Arguments, dtype_of, same_dtype, shape_of, when
from npu_emulator.chips.rules import Operator, Rule, Tensor, Value, tensors_of

DOCS = "op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/"
FIA = DOCS + "torch_npu-npu_fused_infer_attention_score.md"

MAX_SEQUENCES = 4096
COMPRESSED_MASK = 2048
MASKS = ("bool", "int8", "uint8")
MOST_HEADS_PER_KV_HEAD = 64
HEADS = Rule(
    "num_key_value_heads",
    "0, or a divisor of num_heads and at least a 64th of it",
    lambda a: divides(a["num_key_value_heads"], a["num_heads"], MOST_HEADS_PER_KV_HEAD),
)


def divides(kv_heads: int, heads: int, at_most: int) -> bool:
    """Whether `kv_heads` (0 for as many as `heads`) can be shared by `heads`."""
    return not kv_heads or (heads % kv_heads == 0 and heads // kv_heads <= at_most)


def is_tnd(a: Arguments) -> bool:
    """Sequences end to end along the first dimension."""
    return "TND" in a["input_layout"]


def is_paged(a: Arguments) -> bool:
    """Keys and values lie in the blocks of a cache."""
    return a.get("block_table") is not None


def lengths(value: Any) -> int:
    """How many lengths there are; none for None."""
    return 0 if value is None else len(value)


def tnd_head_sizes(a: Arguments) -> bool:
    """The sizes of heads that TND takes."""
    if a.get("query_rope") is not None:
        return shape_of(a, "query")[-1] in (128, 512)
    query, key, value = (shape_of(a, name)[-1] for name in ("query", "key", "value"))
    if is_paged(a):
        # A cache of three dimensions has all heads in its last one.
        return query in (128, 192) and key % query == 0
    return (query, key, value) in ((128, 128, 128), (192, 192, 128), (192, 192, 192))


def paged_shapes(a: Arguments) -> bool:
    """A cache of (blocks, block, heads * size), with the heads apart, or in FRACTAL_NZ."""
    key, block = shape_of(a, "key"), a["block_size"]
    return shape_of(a, "value") == key and (
        (len(key) == 3 and key[1] == block)
        or (len(key) == 4 and key[2] == block)
        or (len(key) == 5 and key[3] == block)
    )


def paged_block(a: Arguments) -> bool:
    """The lengths of blocks that a layout takes."""
    block = a["block_size"]
    return block % 16 == 0 and 16 <= block <= 1024 if is_tnd(a) else block in (128, 256, 384, 512)


def heads_along(layout: str, shape: tuple[int, ...], heads: int) -> bool:
    """Whether `shape` has the dimensions of `layout`, and `heads` of them where it says so.

    B batch, S sequence, T tokens of all sequences, N heads, D channels, and H heads times channels.
    """
    if len(shape) != len(layout):
        return False
    return shape[layout.index("N")] == heads if "N" in layout else shape[-1] % heads == 0


def query_fits(a: Arguments) -> bool:
    """By the first part of a layout, whose second is that of the output."""
    return heads_along(a["input_layout"].split("_")[0], shape_of(a, "query"), a["num_heads"])


def key_fits(a: Arguments) -> bool:
    """Without a cache, key has the layout of query, and heads of the same size."""
    layout, heads = a["input_layout"].split("_")[0], a["num_heads"]
    query, key, kv_heads = shape_of(a, "query"), shape_of(a, "key"), a["num_key_value_heads"]
    packed = dtype_of(a, "key") != dtype_of(a, "query")
    one_size = layout != "BSH" or packed or query[-1] * (kv_heads or heads) == key[-1] * heads
    return one_size and heads_along(layout, key, kv_heads or heads)


def compressed_mask(a: Arguments) -> bool:
    """The triangle that stands for masks of every length."""
    shape = shape_of(a, "atten_mask")
    square = (COMPRESSED_MASK, COMPRESSED_MASK)
    return shape in (square, (1, *square), (1, 1, *square))


def with_lengths(argument: str) -> Rule:
    """The ends of all sequences, which TND needs."""

    def holds(a: Arguments) -> bool:
        return not is_tnd(a) or 1 <= lengths(a[argument]) <= MAX_SEQUENCES

    return Rule(argument, f"given with TND, for at most {MAX_SEQUENCES} sequences", holds)


FIA_ARGUMENTS: dict[str, Tensor | Value] = {
    "query": Tensor(("float16", "bfloat16", "int8"), ranks=(3, 4)),
    "key": Tensor(("float16", "bfloat16", "int8", "int32"), ranks=(3, 5)),
    "value": Tensor(("float16", "bfloat16", "int8", "int32"), ranks=(3, 5)),
    "pse_shift": Tensor(("float16", "bfloat16"), contiguous=True),
    "atten_mask": Tensor(MASKS, contiguous=True),
    "block_table": Tensor(("int32",), ranks=(2, 2)),
    "quant_scale1": Tensor(("float32",)),
    "dequant_scale1": Tensor(("uint64", "float32")),
    "dequant_scale2": Tensor(("uint64", "float32")),
    "quant_scale2": Tensor(("float32", "bfloat16")),
    "quant_offset2": Tensor(("float32", "bfloat16")),
    "query_rope": Tensor(("float16", "bfloat16"), last=(64,)),
    "key_rope": Tensor(("float16", "bfloat16"), last=(64,)),
    "input_layout": Value(
        ("BSH", "BSND", "BNSD", "BNSD_BSND", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD")
        + ("TND", "NTD", "TND_NTD", "NTD_TND", "BSH_BNSD", "BSND_BNSD")
    ),
    "sparse_mode": Value((0, 1, 2, 3, 4)),
    "inner_precise": Value((0, 1, 2, 3)),
}
FIA_RULES = (
    HEADS,
    same_dtype("key", "value"),
    Rule(
        "key",
        "of the query's dtype, or int8 or int32 (packed int4)",
        lambda a: dtype_of(a, "key") in (dtype_of(a, "query"), "int8", "int32"),
    ),
    Rule("query", "of the dimensions of input_layout, and of num_heads heads", query_fits),
    when(
        lambda a: not is_paged(a),
        Rule(
            "key",
            "of the dimensions of input_layout, and of num_key_value_heads heads of query's size",
            key_fits,
        ),
    ),
    with_lengths("actual_seq_lengths"),
    with_lengths("actual_seq_lengths_kv"),
    when(
        is_tnd,
        Rule(
            "query",
            "of head size 128 with TND, or 192 with values of 128 or 192, or 512 with query_rope",
            tnd_head_sizes,
        ),
    ),
    when(
        is_paged, Rule("key", "of blocks of block_size, and value of the same shape", paged_shapes)
    ),
    when(
        is_paged,
        Rule(
            "block_size",
            "a multiple of 16 up to 1024 with TND, else a multiple of 128 up to 512",
            paged_block,
        ),
    ),
    when(
        lambda a: is_paged(a) and is_tnd(a),
        Rule(
            "block_table",
            "of a row for each of actual_seq_lengths",
            lambda a: shape_of(a, "block_table")[0] == lengths(a["actual_seq_lengths"]),
        ),
    ),
    when(
        lambda a: a["sparse_mode"] in (2, 3, 4),
        Rule("atten_mask", "of 2048 x 2048 with sparse modes 2 to 4", compressed_mask),
    ),
    when(
        lambda a: a["input_layout"].startswith(("BSND", "BNSD")) and dtype_of(a, "query") != "int8",
        Rule(
            "query",
            "of a head size that is a multiple of 16 and at most 512",
            lambda a: shape_of(a, "query")[-1] % 16 == 0 and shape_of(a, "query")[-1] <= 512,
        ),
    ),
)


def fused_infer_rows() -> dict[str, Operator]:
    """npu_fused_infer_attention_score in its three forms.

    Its document asks for contiguous tensors; its definition makes them so
    (hicann/ops-transformer: attention/fused_infer_attention_score/op_host), and so no rule does.
    """

    def output_and_sum(a: Arguments) -> bool:
        out = tensors_of(a["out"])
        return len(out) == 2 and str(out[0].dtype) in (str(a["query"].dtype), "torch.int8")

    out = Rule("out", "an output of the query's dtype or int8, and a log-sum-exp", output_and_sum)
    row = Operator(FIA, FIA_ARGUMENTS, FIA_RULES)
    base = "npu::npu_fused_infer_attention_score"
    return {
        base: row,
        base + ".out": Operator(FIA, FIA_ARGUMENTS, (*FIA_RULES, out)),
        "npu::_npu_fused_infer_attention_score_get_max_workspace": row,
    }


def prompt_row(dtypes: tuple[str, ...], layouts: tuple[str, ...], **values: Value) -> Operator:
    """npu_prompt_flash_attention, with the values that a chip is limited to."""
    part = Tensor(dtypes, ranks=(3, 4), contiguous=True)
    return Operator(
        DOCS + "torch_npu-npu_prompt_flash_attention.md",
        {
            **dict.fromkeys(("query", "key", "value"), part),
            "atten_mask": Tensor(MASKS, contiguous=True),
            "input_layout": Value(layouts),
            **values,
        },
        (
            same_dtype("query", "key", "value"),
            HEADS,
            when(
                lambda a: a["sparse_mode"] in (2, 3, 4),
                Rule("atten_mask", "of 2048 x 2048 with sparse modes 2 to 4", compressed_mask),
            ),
        ),
    )


def fusion_row() -> Operator:
    """npu_fusion_attention."""
    part = Tensor(("float16", "bfloat16", "float32"), ranks=(3, 4))
    with_lengths = Rule(
        "actual_seq_qlen",
        "given with TND, as is actual_seq_kvlen",
        lambda a: bool(lengths(a["actual_seq_qlen"]) and lengths(a["actual_seq_kvlen"])),
    )
    return Operator(
        DOCS + "torch_npu-npu_fusion_attention.md",
        {
            **dict.fromkeys(("query", "key", "value"), part),
            "atten_mask": Tensor(("bool", "uint8")),
            "input_layout": Value(("BSH", "SBH", "BSND", "BNSD", "TND")),
            "sparse_mode": Value(tuple(range(9))),
        },
        (same_dtype("query", "key", "value"), when(is_tnd, with_lengths)),
    )
