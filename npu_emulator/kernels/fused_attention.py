# SPDX-License-Identifier: Apache-2.0
"""npu_fused_infer_attention_score, also into given tensors, and its workspace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from npu_emulator.kernels.attention import attend, group_heads
from npu_emulator.kernels.masks import FAR, causal_mask, check_compressed, visible
from npu_emulator.kernels.registry import kernel

# A layout names the dimensions of a tensor; "BNSD_BSND" those of the query and of the output.
# B batch, S sequence, N heads, D channels, H = N * D, T = the tokens of all sequences.
Function = TypeVar("Function", bound=Callable[..., Any])


def _rows(x: Tensor, layout: str, batch: int, span: slice, heads: int) -> Tensor:
    """A view of the tokens `span` of one sequence: (rows, heads, dim)."""
    if layout == "TND":
        return x[span]
    if layout == "NTD":
        return x[:, span].transpose(0, 1)
    if layout == "BSH":
        return x[batch, span].unflatten(-1, (heads, -1))
    if layout == "BSND":
        return x[batch, span]
    if layout == "BNSD":
        return x[batch, :, span].transpose(0, 1)
    if layout == "NBSD":
        return x[:, batch, span].transpose(0, 1)
    raise ValueError(f"npu_fused_infer_attention_score knows no layout {layout!r}.")


def _spans(
    lengths: Sequence[int] | None, batches: int, whole: int, cumulative: bool
) -> list[slice]:
    """Where the tokens of each sequence lie, by the operator's lists of lengths."""
    if cumulative:
        ends = [0, *(lengths or ())]
        if any(b < a for a, b in zip(ends, ends[1:], strict=False)):
            raise ValueError("With TND the lengths are sums, and must not fall: " + str(lengths))
        return [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    if not lengths:
        return [slice(0, whole)] * batches
    if len(lengths) == 1:
        return [slice(0, lengths[0])] * batches
    return [slice(0, length) for length in lengths[:batches]]


def _read_pages(cache: Tensor, blocks: Tensor, length: int, heads: int) -> Tensor:
    """The first `length` rows of one sequence's blocks: (length, heads, dim).

    A cache is (blocks, size, heads * dim), (blocks, heads, size, dim) or, in the order of
    FRACTAL_NZ, (blocks, heads, dim / 16, size, 16).
    """
    size = cache.shape[cache.dim() - 2]
    pages = cache.index_select(0, blocks[: -(-length // size)])
    if cache.dim() == 4:
        pages = pages.transpose(1, 2)  # (blocks, size, heads, dim)
    elif cache.dim() == 5:
        pages = pages.permute(0, 3, 1, 2, 4)  # (blocks, size, heads, dim / 16, 16)
    return pages.reshape(pages.shape[0] * size, heads, -1)[:length]


def _page_dim(cache: Tensor, heads: int) -> int:
    """The channels of one head in such a cache."""
    if cache.dim() == 3:
        return int(cache.shape[2]) // heads
    return int(cache.shape[-1] * (cache.shape[2] if cache.dim() == 5 else 1))


def _log_sum_exp(
    query: Tensor, key: Tensor, scale: float, causal: bool, seen: Tensor | None
) -> Tensor:
    """log(sum(exp(scale * query @ key^T))) over the keys seen: (rows, heads, 1)."""
    q, k, _ = group_heads(query, key, key)
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    if causal:
        seen = causal_mask(query.shape[0], key.shape[0])
    if seen is not None:
        scores.masked_fill_(seen.logical_not(), -torch.inf)
    # (kv_heads, group, rows) -> (rows, heads, 1)
    return scores.logsumexp(-1).flatten(0, 1).t().unsqueeze(-1)


class _Call(NamedTuple):
    """The layout and the sizes that one call gives to its tensors."""

    layout: str
    layout_out: str
    heads: int
    kv_heads: int
    scale: float
    sparse_mode: int
    window: tuple[int, int]


def _outputs(query: Tensor, value_dim: int, call: _Call, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Zeros for the output and for the log-sum-exp; the latter has no element unless asked for."""
    sizes = dict(zip(call.layout, query.shape, strict=True))
    sizes |= {"N": call.heads, "D": value_dim, "H": call.heads * value_dim}
    out = query.new_zeros([sizes[name] for name in call.layout_out])
    lse_layout = "TN" if "T" in sizes else "BNS"
    shape = [*(sizes[name] for name in lse_layout), 1] if with_lse else [0]
    return out, query.new_zeros(shape, dtype=torch.float32)


def _check(sparse_mode: int, atten_mask: Tensor | None, others: Sequence[object]) -> None:
    if any(value is not None for value in others):
        raise NotImplementedError(
            "Fused attention is computed here without quantization, position shifts, left padding, "
            "shared prefixes and separate rope tensors."
        )
    if sparse_mode in (2, 3, 4):
        if atten_mask is None:
            raise ValueError(f"sparse_mode {sparse_mode} needs the compressed 2048 x 2048 mask.")
        check_compressed(atten_mask)


def _attend_batch(
    outputs: tuple[Tensor, Tensor],
    batch: int,
    span: slice,
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    call: _Call,
) -> None:
    """Fill the outputs of one sequence, whose query, key and value are (rows, heads, dim)."""
    out, lse = outputs
    query, key, value = tensors
    shape = (query.shape[0], key.shape[0])
    causal = call.sparse_mode == 3
    seen = visible(call.sparse_mode, mask, batch, shape, call.window)
    attend(
        _rows(out, call.layout_out, batch, span, call.heads),
        *(query, key, value),
        call.scale,
        causal=causal,
        mask=seen,
    )
    if lse.numel():
        target = _rows(lse, "TND" if lse.dim() == 3 else "BNSD", batch, span, call.heads)
        target.copy_(_log_sum_exp(query, key, call.scale, causal, seen))


@kernel("npu::npu_fused_infer_attention_score")
def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Sequence[int] | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = FAR,
    next_tokens: int = FAR,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * query @ key^T + atten_mask) @ value; returns (output, log-sum-exp or empty).

    With TND the lengths of the queries are sums, and so are those of the keys unless block_table
    is given. Sparse modes: 0 the given mask or none, 1 the given mask, 2 causal from the first
    token, 3 causal up to the last, 4 a band of pre_tokens and next_tokens about the line of 3.
    Tokens of no sequence give zeros.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_fused_infer_attention_score.md
    """
    _check(
        sparse_mode,
        atten_mask,
        (pse_shift, dequant_scale1, quant_scale1, dequant_scale2, quant_scale2, quant_offset2)
        + (antiquant_scale, antiquant_offset, key_antiquant_scale, key_antiquant_offset)
        + (value_antiquant_scale, value_antiquant_offset, query_padding_size, kv_padding_size)
        + (key_shared_prefix, value_shared_prefix, actual_shared_prefix_len)
        + (query_rope, key_rope, key_rope_antiquant_scale),
    )
    layout, _, layout_out = input_layout.partition("_")
    kv_heads = num_key_value_heads or num_heads
    cumulative = "T" in layout
    batches = 1 if cumulative else query.shape[layout.index("B")]
    length = 0 if cumulative else query.shape[layout.index("S")]
    if length == 1 and sparse_mode > 1:
        sparse_mode = 0  # one query per sequence: the mode has no effect
        atten_mask = None
    window = (pre_tokens, next_tokens)
    call = _Call(layout, layout_out or layout, num_heads, kv_heads, scale, sparse_mode, window)
    spans = _spans(actual_seq_lengths, batches, length, cumulative)
    if block_table is None:
        whole = 0 if cumulative else key.shape[layout.index("S")]
        spans_kv = _spans(actual_seq_lengths_kv, batches, whole, cumulative)
        value_dim = value.shape[-1] // (kv_heads if layout == "BSH" else 1)
    else:
        if not actual_seq_lengths_kv:
            raise ValueError("A paged cache says nothing without actual_seq_lengths_kv.")
        spans_kv = _spans(actual_seq_lengths_kv, len(spans), 0, False)
        value_dim = _page_dim(value, kv_heads)
        if block_size and block_size != key.shape[key.dim() - 2]:
            raise ValueError(f"block_size is {block_size}; the cache is {tuple(key.shape)}.")
    if len(spans_kv) < len(spans):
        raise ValueError(f"{len(spans)} queries came with {len(spans_kv)} lengths of keys.")
    outputs = _outputs(query, value_dim, call, softmax_lse_flag)
    for batch, (span, span_kv) in enumerate(zip(spans, spans_kv, strict=False)):
        if span.stop == span.start or span_kv.stop == span_kv.start:
            continue  # no queries, or no keys: a request that pads a graph's batch
        if block_table is None:
            k, v = (_rows(x, layout, batch, span_kv, kv_heads) for x in (key, value))
        else:
            pages = block_table[batch], span_kv.stop, kv_heads
            k, v = (_read_pages(x, *pages) for x in (key, value))
        q = _rows(query, layout, batch, span, num_heads)
        _attend_batch(outputs, batch, span, (q, k, v), atten_mask, call)
    return outputs


def _takes(*more: str) -> Callable[[Function], Function]:
    """Give a function of **options the signature of the operator above, with arguments appended.

    Repeating forty names twice would help nobody.
    """
    signature = inspect.signature(fused_infer_attention_score)
    appended = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    signature = signature.replace(parameters=[*signature.parameters.values(), *appended])

    def declare(function: Function) -> Function:
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return declare


@kernel("npu::npu_fused_infer_attention_score.out")
@_takes("workspace", "out")
def fused_infer_attention_score_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    workspace: Tensor | None = None,
    out: Sequence[Tensor],
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """npu_fused_infer_attention_score, written into out[0], and if asked for into out[1].

    op-plugin 26.0.0: op_plugin/ops/opapi/FusedInferAttentionScoreKernelNpuOpApi.cpp
    """
    result, lse = fused_infer_attention_score(query, key, value, **options)
    out[0].view(result.shape).copy_(result)
    if lse.numel():
        out[1].view(lse.shape).copy_(lse)
    return out[0], out[1]


@kernel("npu::_npu_fused_infer_attention_score_get_max_workspace")
@_takes()
def fused_infer_attention_score_get_max_workspace(
    query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> Tensor:
    """Memory for npu_fused_infer_attention_score to work in, of which its kernel needs none.

    op-plugin 26.0.0: op_plugin/ops/opapi/FusedInferAttentionScoreKernelNpuOpApi.cpp
    """
    return query.new_empty(16)
