# SPDX-License-Identifier: Apache-2.0
"""Attention over one sequence, and ATB's operators over sequences that lie one after another."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from npu_emulator.kernels.masks import causal_mask, check_compressed, nd_mask
from npu_emulator.kernels.registry import kernel


def group_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, heads, dim) of each -> float32 (kv_heads, query heads of each, rows, dim)."""
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly.")
    group = heads // kv_heads
    # (rows, heads, dim) -> (rows, kv_heads, group, dim) -> (kv_heads, group, rows, dim)
    q = query.float().unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
    # (rows, kv_heads, dim) -> (kv_heads, 1, rows, dim) -> (kv_heads, group, rows, dim), no copy
    k, v = (x.float().transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1) for x in (key, value))
    return q, k, v


def attend(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> None:
    """out = softmax(scale * query @ key^T + mask) @ value, all (rows, heads, dim), in float32.

    A bool mask (rows of query, rows of key) is True where a query may look; another one is added.
    `causal` lines up the last query with the last key. A query that may look nowhere gives zeros.
    """
    rows, columns = query.shape[0], key.shape[0]
    if rows == 0:
        return
    if columns == 0:
        out.zero_()
        return
    square = causal and rows == columns > 1
    if causal and rows > 1 and not square:
        mask = causal_mask(rows, columns)
    q, k, v = group_heads(query, key, value)
    result = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=square, scale=scale)
    # (kv_heads, group, rows, dim) -> (rows, kv_heads, group, dim); the copy rounds to out's dtype
    out.unflatten(1, result.shape[:2]).copy_(result.permute(2, 0, 1, 3))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(tokens, heads, dim) or (tokens, heads * dim) -> (tokens, heads, dim), a view."""
    return x.view(x.shape[0], heads, -1)


def _attend_each(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    scale: float,
    heads: tuple[int, int],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> None:
    """Attention inside each of the sequences, whose tokens lie one after another."""
    q, o = split_heads(query, heads[0]), split_heads(out, heads[0])
    k, v = split_heads(key, heads[1]), split_heads(value, heads[1])
    start = 0
    for length in seq_len.tolist():
        stop = start + length
        part = None if mask is None else mask[:length, :length].float()
        span = slice(start, stop)
        attend(o[span], q[span], k[span], v[span], scale, causal=causal, mask=part)
        start = stop


@kernel("atb::_npu_flash_attention")
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> None:
    """out = softmax(scale_value * q @ k^T + mask) @ v inside each sequence; mask is added whole.

    op-plugin 26.0.0: op_plugin/ops/atb/SelfAttentionAtb.cpp (PA_ENCODER, MASK_TYPE_NORM)
    """
    heads = (num_heads, num_kv_heads)
    _attend_each(out, query, key, value, seq_len, scale_value, heads, mask=nd_mask(mask))


@kernel("atb::_npu_flash_attention_v3")
def flash_attention_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    *,
    mask_type: int | None = 3,
    out: Tensor,
) -> None:
    """Causal attention inside each sequence; mask is the compressed one, of which 3 is the type.

    op-plugin 26.1.0: op_plugin/ops/atb/SelfAttentionAtbV3.cpp (MASK_TYPE_NORM_COMPRESS, isTriuMask)
    """
    if mask_type not in (None, 3):
        raise ValueError(f"_npu_flash_attention_v3 takes mask_type 3, not {mask_type}.")
    check_compressed(mask)
    heads = (num_heads, num_kv_heads)
    _attend_each(out, query, key, value, seq_len, scale_value, heads, causal=True)


@kernel("atb::_npu_flash_attention_unpad")
def flash_attention_unpad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> None:
    """out = softmax(scale_value * q @ k^T) @ v inside each sequence, without a mask.

    op-plugin 26.0.0: op_plugin/ops/atb/SelfAttentionUnpadAtb.cpp
    """
    _attend_each(out, query, key, value, seq_len, scale_value, (num_heads, num_kv_heads))


@kernel("atb::_npu_flash_attention_unpad_v2")
def flash_attention_unpad_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    *,
    kernel_type: int | None = 0,
    out: Tensor,
) -> None:
    """As _npu_flash_attention_unpad; kernel_type chooses how exactly a chip takes exp.

    op-plugin 26.1.0: op_plugin/ops/atb/SelfAttentionUnpadAtbV2.cpp
    """
    _attend_each(out, query, key, value, seq_len, scale_value, (num_heads, num_kv_heads))
