# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings of the two towers, both in half (NeoX) form.

The checkpoint's decoder uses the interleaved form: it rotates the pairs (0, 1), (2, 3), ... of a
head. Ascend's kernels document only the half form, which rotates the pairs (0, d/2), (1, d/2 + 1),
.... The two differ by a permutation of the rows of the q and k projections, and a permutation
applied to both leaves every score q.k unchanged. `deinterleave` is that permutation; the loader
applies it, so nothing after it knows the interleaved form.

Sources: RoFormer (arXiv 2104.09864); Qwen2-VL (arXiv 2409.12191) for the three-axis positions.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from vllm import _custom_ops as ops

from ..platform import current_backend


def deinterleave(rows: torch.Tensor, head_dim: int, rotated: int) -> torch.Tensor:
    """Reorder the rows of a q or k projection from interleaved to half form.

    Args:
        rows: [heads * head_dim, ...], any dtype: a weight, a bias, or a per-channel scale.
        head_dim: Channels of one head.
        rotated: Leading channels of a head that are rotated; the rest stay in place.

    Returns:
        The same shape; of each head first the even rotary rows, then the odd ones, then the rest.
    """
    order = torch.arange(head_dim)
    order[:rotated] = order[:rotated].view(-1, 2).t().flatten()
    heads = rows.reshape(-1, head_dim, *rows.shape[1:])  # [heads, head_dim, ...]
    return heads[:, order].reshape(rows.shape)


def rotary_dim(config) -> int:
    """Leading channels of a decoder head that are rotated."""
    head_dim = config.hidden_size // config.num_attention_heads
    return int(head_dim * config.rope_parameters["partial_rotary_factor"])


def text_inverse_frequencies(config) -> tuple[torch.Tensor, float]:
    """Inverse frequencies float32 [rotary_dim / 2] and the factor on cos and sin.

    `config` is a text config with `rope_parameters`, of a type in `config.ROPE_TYPES`.
    """
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    exponent = torch.arange(0, rotary_dim(config), 2, dtype=torch.float32) / rotary_dim(config)
    return 1.0 / rope["rope_theta"] ** exponent, 1.0


class TextRotaryEmbedding(nn.Module):
    """Partial three-axis rope of the decoder.

    A token has a position on each of three axes (time, height, width); each frequency belongs to
    one axis. `rows` merges them once per step, and every layer rotates with the same rows.
    """

    def __init__(self, config, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.dtype = dtype
        self.in_place = current_backend().rotates_in_place
        inv_freq, self.scaling = text_inverse_frequencies(config)
        section = config.rope_parameters["mrope_section"]
        axis = [part % 3 for part, count in enumerate(section) for _ in range(count)]
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("axis", torch.tensor(axis), persistent=False)
        self.rotary_dim = 2 * inv_freq.numel()

    def rows(self, positions: torch.Tensor) -> torch.Tensor:
        """The cos and sin of each token.

        Args:
            positions: int64 [3, tokens], or [tokens] where the three axes agree.

        Returns:
            [tokens, rotary_dim] of the model's dtype: first the cosines, then the sines.
        """
        if positions.dim() == 2:
            positions = positions[self.axis]  # [rotary_dim / 2, tokens]
            angles = positions.t().float() * self.inv_freq
        else:
            angles = positions[:, None].float() * self.inv_freq
        return (torch.cat((angles.cos(), angles.sin()), dim=-1) * self.scaling).to(self.dtype)

    def forward(
        self, rows: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate q [tokens, heads * head_dim] and k [tokens, kv_heads * head_dim] by `rows`."""
        if self.in_place and not torch.compiler.is_compiling():
            # In place, strided, one pass; under a compiler the plain form fuses better.
            index = torch.arange(rows.shape[0], device=rows.device)
            ops.rotary_embedding(index, q, k, self.head_dim, rows, True)
            return q, k
        return self.rotate(rows, q), self.rotate(rows, k)

    def rotate(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The plain form of the rotation, on x [tokens, heads * head_dim]; x is left alone."""
        cos, sin = rows[:, None].chunk(2, dim=-1)  # [tokens, 1, rotary_dim / 2] each
        heads = x.view(x.shape[0], -1, self.head_dim)  # [tokens, heads, head_dim]
        half = self.rotary_dim // 2
        a, b, rest = heads.split([half, half, self.head_dim - self.rotary_dim], dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).view_as(x)


def merge_order(grid: torch.Tensor, merge: int) -> torch.Tensor:
    """[h, w, ...] in raster order to [h * w, ...] in the order of the patches.

    The patches of one merged token are neighbours in the sequence: (h / m, w / m, m, m).
    """
    h, w, *rest = grid.shape
    blocks = grid.view(h // merge, merge, w // merge, merge, *rest)
    return blocks.transpose(1, 2).reshape(h * w, *rest)


def vision_cos_sin(
    grid_thw: list[list[int]], head_dim: int, merge: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [patches, head_dim / 2] of the vision tower's two-axis rope.

    The first half of the frequencies turns with a patch's row, the second with its column;
    `grid_thw` lists frames, rows and columns of patches for each picture.
    """
    exponent = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
    inv_freq = 10000.0**-exponent  # [head_dim / 4]
    angles = []
    for t, h, w in grid_thw:
        row = torch.arange(h, dtype=torch.float32)[:, None, None] * inv_freq  # [h, 1, d/4]
        col = torch.arange(w, dtype=torch.float32)[None, :, None] * inv_freq  # [1, w, d/4]
        both = torch.cat((row.expand(h, w, -1), col.expand(h, w, -1)), dim=-1)
        angles.append(merge_order(both, merge).repeat(t, 1))
    angle = torch.cat(angles)
    return angle.cos().to(dtype), angle.sin().to(dtype)
