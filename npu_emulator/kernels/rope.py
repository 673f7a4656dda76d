# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings: by cos and sin, or by positions into a cache of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_emulator.kernels.registry import kernel


def _pair(x: Tensor, rotary_mode: str) -> tuple[Tensor, Tensor]:
    """Views of the first and the second member of every rotated pair in the last dimension."""
    if rotary_mode == "half":
        first, second = x.chunk(2, -1)
        return first, second
    if rotary_mode == "interleave":
        return x[..., ::2], x[..., 1::2]
    raise ValueError(f"A rotation pairs channels by 'half' or 'interleave', not {rotary_mode!r}.")


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str) -> Tensor:
    """x * cos + rotate(x) * sin in float32, where rotate takes a pair (a, b) to (-b, a)."""
    x, sin = x.float(), sin.float()
    result = x * cos.float()
    a, b = _pair(x, rotary_mode)
    sin_a, sin_b = _pair(sin, rotary_mode)
    result_a, result_b = _pair(result, rotary_mode)
    result_a.addcmul_(b, sin_a, value=-1)
    result_b.addcmul_(a, sin_b)
    return result


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str, out: Tensor) -> None:
    """Write the rotated x into out; cos and sin have one value per pair. x may be out."""
    a, b = (part.float() for part in _pair(x, rotary_mode))
    out_a, out_b = _pair(out, rotary_mode)
    rotated_a, rotated_b = a * cos - b * sin, b * cos + a * sin
    out_a.copy_(rotated_a)
    out_b.copy_(rotated_b)


@kernel("npu::npu_rotary_mul")
def rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """x * r1 + rotate(x) * r2; a given `rotate` is the matrix of that map: rotate(x) = x @ rotate.

    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_rotary_mul.md
    """
    if rotate is None:
        return _rotate(input, r1, r2, rotary_mode).to(input.dtype)
    x = input.float()
    return (x * r1.float() + (x @ rotate.float()) * r2.float()).to(input.dtype)


@kernel("npu::npu_apply_rotary_pos_emb")
def apply_rotary_pos_emb(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str = "BSND",
    rotary_mode: str = "half",
) -> tuple[Tensor, Tensor]:
    """query = query * cos + rotate(query) * sin, key likewise: both IN PLACE, and returned.

    cos and sin have a 1 in place of the heads, so that every layout is a broadcast.
    op-plugin 26.0.0: op_plugin/ops/opapi/ApplyRotaryPosEmbNpuOpApi.cpp (no page of docs/ has it);
    the formula is in its test/test_custom_ops/test_npu_apply_rotary_pos_emb.py
    """
    if cos.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"npu_apply_rotary_pos_emb turns whole heads: cos has {cos.shape[-1]} channels, "
            f"query {query.shape[-1]}."
        )
    for x in (query, key):
        x.copy_(_rotate(x, cos, sin, rotary_mode))
    return query, key


def _merge_sections(x: Tensor, sections: Sequence[int], cache_mode: str) -> Tensor:
    """(axes, tokens, pairs) -> (tokens, pairs): the channels that each axis of M-RoPE turns."""
    if cache_mode == "default":
        parts = x.split(list(sections), -1)
        return torch.cat([part[axis] for axis, part in enumerate(parts)], -1)
    if cache_mode == "interleave":
        merged = x[0].clone()
        end = sections[1] * 3
        for axis in (1, 2):
            merged[..., axis:end:3] = x[axis, ..., axis:end:3]
        return merged
    raise ValueError(f"npu_mrope knows no cache_mode {cache_mode!r}.")


@kernel("npu::npu_mrope")
def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    *,
    mrope_section: Sequence[int] | None = None,
    rotary_mode: str | None = "half",
    cache_mode: str | None = "default",
) -> tuple[Tensor, Tensor]:
    """The first rotary_dim channels of every head, turned by the rows `positions` of the cache.

    Positions of two dimensions (axes, tokens) are M-RoPE: mrope_section says how many pairs each
    axis turns, one section after the other or (cache_mode "interleave") in turn.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_mrope.md
    """
    cos, sin = cos_sin_cache[positions].float().chunk(2, -1)  # (axes, tokens, pairs)
    if positions.dim() == 2:
        if not mrope_section:
            raise ValueError("npu_mrope needs mrope_section for positions of two dimensions.")
        cos, sin = (_merge_sections(x, mrope_section, cache_mode or "default") for x in (cos, sin))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (tokens, 1, pairs)
    rotary_dim = cos_sin_cache.shape[-1]
    results = []
    for x in (query, key):
        result = x.clone(memory_format=torch.contiguous_format)
        heads = result.view(positions.shape[-1], -1, head_size)[..., :rotary_dim]
        _rotate_pairs(heads, cos, sin, rotary_mode or "half", heads)
        results.append(result)
    return results[0], results[1]


@kernel("atb::_npu_rotary_embedding")
def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox_style: bool,
) -> None:
    """query and key, turned IN PLACE by the rows `positions` of the cache of cos and sin.

    Pairs are halves with is_neox_style, else neighbours; of a longer head the first rotary_dim
    channels are turned. (The operator keeps the first cache it is given for the process's life;
    this kernel does not.)
    op-plugin 26.0.0: op_plugin/ops/atb/RopeAtb.cpp
    """
    cos, sin = cos_sin_cache[positions.flatten()].float().unsqueeze(1).chunk(2, -1)
    rotary_dim = cos_sin_cache.shape[-1]
    for x in (query, key):
        # (tokens, heads * head_size) or (tokens, heads, head_size) -> (tokens, heads, rotary_dim)
        heads = x.view(positions.numel(), -1, head_size)[..., :rotary_dim]
        _rotate_pairs(heads, cos, sin, "half" if is_neox_style else "interleave", heads)
