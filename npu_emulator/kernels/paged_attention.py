# SPDX-License-Identifier: Apache-2.0
"""ATB's operators on a paged key and value cache.

A cache is ND, (blocks, block_size, kv_heads, dim), or on 310P in the order of FRACTAL_NZ,
(blocks, kv_heads * dim / 16, block_size, 16).
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_emulator.kernels.attention import attend, split_heads
from npu_emulator.kernels.masks import check_compressed, nd_mask
from npu_emulator.kernels.registry import kernel


def is_nz(cache: Tensor, kv_heads: int, dim: int) -> bool:
    """Whether a cache of such heads has the order of FRACTAL_NZ; raise ValueError if neither."""
    _, second, third, last = cache.shape
    if (third, last) == (kv_heads, dim):
        return False
    if (second * 16, last) == (kv_heads * dim, 16):
        return True
    raise ValueError(f"A cache {tuple(cache.shape)} does not fit {kv_heads} heads of {dim}.")


@kernel("atb::_npu_reshape_and_cache")
def reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor
) -> None:
    """Write the key and value of each token into its slot, block * block_size + offset, IN PLACE.

    A token whose slot is negative is written nowhere.
    op-plugin 26.0.0: op_plugin/ops/atb/ReshapeAndCachAtb.cpp
    """
    slots = slot_indices.long()
    kept = slots >= 0
    if not bool(kept.all()):
        slots, key, value = slots[kept], key[: kept.numel()][kept], value[: kept.numel()][kept]
    for cache, x in ((key_cache, key), (value_cache, value)):
        x = x[: slots.numel()]
        if is_nz(cache, *x.shape[1:]):
            size = cache.shape[2]
            # (tokens, kv_heads, dim) -> (tokens, kv_heads * dim / 16, 16)
            cache[slots // size, :, slots % size] = x.reshape(x.shape[0], cache.shape[1], 16)
        else:
            size = cache.shape[1]
            cache[slots // size, slots % size] = x


def read_cache(cache: Tensor, blocks: Tensor, length: int, kv_heads: int, dim: int) -> Tensor:
    """The first `length` rows of the blocks of one sequence: (length, kv_heads, dim)."""
    nz = is_nz(cache, kv_heads, dim)
    size = cache.shape[2 if nz else 1]
    pages = cache.index_select(0, blocks[: -(-length // size)])
    if nz:
        pages = pages.transpose(1, 2)  # (blocks, size, kv_heads * dim / 16, 16)
    return pages.reshape(-1, kv_heads, dim)[:length]  # (blocks * size, kv_heads, dim)


@kernel("atb::_npu_paged_attention")
def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    *,
    workspace: Tensor | None = None,
) -> None:
    """out = softmax(scale_value * q @ k^T) @ v; row i is the one query of sequence i.

    op-plugin 26.0.0: op_plugin/ops/atb/PagedAttentionAtb.cpp
    """
    q, o = split_heads(query, num_heads), split_heads(out, num_heads)
    for i, length in enumerate(context_lens.tolist()[: q.shape[0]]):
        key = read_cache(key_cache, block_table[i], length, num_kv_heads, q.shape[-1])
        value = read_cache(value_cache, block_table[i], length, num_kv_heads, o.shape[-1])
        attend(o[i : i + 1], q[i : i + 1], key, value, scale_value)


@kernel("atb::_npu_paged_attention_get_workspace")
def paged_attention_get_workspace(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
) -> Tensor:
    """Bytes for _npu_paged_attention to work in, of which this kernel needs none.

    op-plugin 26.0.0: op_plugin/ops/atb/PagedAttentionAtb.cpp
    """
    return query.new_empty(16, dtype=torch.uint8)


def _splitfuse(
    out: Tensor,
    query: Tensor,
    caches: tuple[Tensor, Tensor],
    block_table: Tensor,
    context_lens: Tensor,
    seq_len: Tensor,
    heads: tuple[int, int],
    scale: float,
    mask: Tensor | None,
) -> None:
    """Sequence i brings seq_len[i] queries, the last of its context_lens[i] tokens."""
    q, o = split_heads(query, heads[0]), split_heads(out, heads[0])
    start = 0
    for i, (rows, length) in enumerate(zip(seq_len.tolist(), context_lens.tolist(), strict=False)):
        if rows == 0:
            continue
        span = slice(start, start + rows)
        key = read_cache(caches[0], block_table[i], length, heads[1], q.shape[-1])
        value = read_cache(caches[1], block_table[i], length, heads[1], o.shape[-1])
        part = None if mask is None else mask[span, :length].float()
        attend(o[span], q[span], key, value, scale, causal=mask is None, mask=part)
        start += rows


@kernel("atb::_npu_paged_attention_splitfuse")
def paged_attention_splitfuse(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: Tensor,
) -> None:
    """Attention of several queries per sequence; mask has a row for each token, and is added.

    op-plugin 26.0.0: op_plugin/ops/atb/PagedAttentionSplitfuse.cpp (MASK_TYPE_SPEC), and for the
    mask test/test_custom_ops/test_atb_paged_attention_splitfuse.py
    """
    caches, heads = (key_cache, value_cache), (num_heads, num_kv_heads)
    lengths = (context_lens, seq_len)
    _splitfuse(out, query, caches, block_table, *lengths, heads, scale_value, nd_mask(mask))


@kernel("atb::_npu_paged_attention_splitfuse_v2")
def paged_attention_splitfuse_v2(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    *,
    mask_type: int | None = 5,
    out: Tensor,
) -> None:
    """Causal attention of several queries per sequence; mask is the compressed one, of type 5.

    op-plugin 26.1.0: op_plugin/ops/atb/PagedAttentionSplitfuseV2.cpp (MASK_TYPE_NORM_COMPRESS)
    """
    if mask_type not in (None, 5):
        raise ValueError(f"_npu_paged_attention_splitfuse_v2 takes mask_type 5, not {mask_type}.")
    check_compressed(mask)
    caches, heads = (key_cache, value_cache), (num_heads, num_kv_heads)
    lengths = (context_lens, seq_len)
    _splitfuse(out, query, caches, block_table, *lengths, heads, scale_value, None)
