# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings of both towers, over whole heads in half (NeoX) form.

The checkpoint's decoder rotates the first channels of a head in interleaved form, by the pairs
(0, 1), (2, 3), .... Ascend's kernels document only the half form, with the pairs (0, d/2),
(1, d/2 + 1), ..., and are fastest on whole heads. A permutation of channels that is the same for q
and k leaves every score q.k unchanged. So `deinterleave` moves the two channels of a pair half a
head apart; channels that are not rotated fill the rest of both halves, with frequency zero. It is
applied when weights are loaded, and nothing after that knows the interleaved form.

Sources: RoFormer (arXiv 2104.09864); Qwen2-VL (arXiv 2409.12191) for the three-axis positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from vllm import _custom_ops as ops
from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb

from vllm_glm41v_npu.backends import current_backend, resolve
from vllm_glm41v_npu.checkpoint.shapes import head_size


def deinterleave(rows: torch.Tensor, head_dim: int, rotated: int) -> torch.Tensor:
    """Reorder the rows of a q or k projection from interleaved partial to half form.

    Args:
        rows: [heads * head_dim, ...], any dtype: a weight, a bias, or a per-channel scale.
        head_dim: Number of channels of one head.
        rotated: Number of leading channels of a head that are rotated.

    Returns:
        The same shape. The first half of each head holds the even rotated rows and half of the
        others; the second half holds the odd rotated rows and the rest.
    """
    order = torch.arange(head_dim)
    even, odd = order[:rotated].view(-1, 2).t()
    rest, other = order[rotated:].chunk(2)
    heads = rows.reshape(-1, head_dim, *rows.shape[1:])  # [heads, head_dim, ...]
    return heads[:, torch.cat((even, rest, odd, other))].reshape(rows.shape)


def rotary_dim(config) -> int:
    """Return how many leading channels of a decoder head are rotated."""
    return int(head_size(config) * config.rope_parameters["partial_rotary_factor"])


def text_inverse_frequencies(config) -> tuple[torch.Tensor, float]:
    """Return the inverse frequencies float32 [rotary_dim / 2] and the factor on cos and sin.

    `config` is a text config with `rope_parameters`, of a type in `config_rope.ROPE_TYPES`.
    """
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    exponent = torch.arange(0, rotary_dim(config), 2, dtype=torch.float32) / rotary_dim(config)
    return 1.0 / rope["rope_theta"] ** exponent, 1.0


def whole_head_frequencies(config) -> tuple[torch.Tensor, torch.Tensor]:
    """Return frequency, and factor on cos and sin, of each pair of channels of a whole head.

    Pairs that do not rotate have frequency 0 and factor 1: yarn's factor applies to rotated
    channels only.

    Returns:
        Both are float32 [head_dim / 2], on torch's default device.
    """
    inv_freq, factor = text_inverse_frequencies(config)
    inv_freq = inv_freq.to(torch.get_default_device())
    still = head_size(config) // 2 - inv_freq.numel()
    factors = torch.cat((torch.full_like(inv_freq, factor), inv_freq.new_ones(still)))
    return torch.cat((inv_freq, inv_freq.new_zeros(still))), factors


class RotaryStep(NamedTuple):
    """Cos and sin of the tokens of one step: made once, and used by every decoder layer.

    Args:
        index: int64 [tokens], the row of each token; or [3, tokens], one row for each axis.
        rows: [rows, head_dim]: first the cosines, then the sines.
    """

    index: torch.Tensor
    rows: torch.Tensor


class TextRotaryEmbedding(nn.Module):
    """Three-axis rope of the decoder, in plain PyTorch and with vLLM's CPU kernel.

    A token has a position on each of three axes (time, height, width); each frequency belongs to
    one axis. `step` merges the axes once per step, and every layer rotates with the same rows.
    """

    def __init__(self, config, dtype: torch.dtype, max_positions: int = 0) -> None:
        super().__init__()  # no rows are kept, so `max_positions` is for other classes
        self.head_dim = head_size(config)
        self.dtype = dtype
        inv_freq, factors = whole_head_frequencies(config)
        section = config.rope_parameters["mrope_section"]
        axis = [part % 3 for part, count in enumerate(section) for _ in range(count)]
        axis += [0] * (inv_freq.numel() - len(axis))
        self.scales = text_inverse_frequencies(config)[1] != 1
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("factors", factors.repeat(2), persistent=False)
        self.register_buffer("axis", torch.tensor(axis), persistent=False)

    def rows(self, positions: torch.Tensor) -> torch.Tensor:
        """Return cos and sin of each token.

        Args:
            positions: int64 [3, tokens], or [tokens] where the three axes agree.

        Returns:
            [tokens, head_dim] in the model's dtype: first the cosines, then the sines.
        """
        if positions.dim() == 2:
            positions = positions[self.axis]  # [head_dim / 2, tokens]
            angles = positions.t().float() * self.inv_freq
        else:
            angles = positions[:, None].float() * self.inv_freq
        rows = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return (rows * self.factors if self.scales else rows).to(self.dtype)

    def step(self, positions: torch.Tensor) -> RotaryStep:
        """Merge the axes of a step's `positions` into one row for each token."""
        index = torch.arange(positions.shape[-1], device=positions.device)
        return RotaryStep(index, self.rows(positions))

    def forward(
        self, step: RotaryStep, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate q [tokens, heads * head_dim] and k [tokens, kv_heads * head_dim]."""
        index, rows = step
        if not torch.compiler.is_compiling():
            # In place, strided, one pass; under a compiler the plain form fuses better.
            ops.rotary_embedding(index, q, k, self.head_dim, rows, True)
            return q, k
        return self.rotate(rows, q), self.rotate(rows, k)

    def rotate(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Rotate a copy of x [tokens, heads * head_dim], in plain PyTorch."""
        cos, sin = rows[:, None].chunk(2, dim=-1)  # [tokens, 1, head_dim / 2] each
        a, b = x.view(x.shape[0], -1, self.head_dim).chunk(2, dim=-1)  # [tokens, heads, d / 2]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).view_as(x)


def merge_order(grid: torch.Tensor, merge: int) -> torch.Tensor:
    """Reorder [h, w, ...] from raster order to [h * w, ...] in the order of the patches.

    That order is (h / m, w / m, m, m): the patches of one merged token are neighbours.
    """
    h, w, *rest = grid.shape
    blocks = grid.view(h // merge, merge, w // merge, merge, *rest)
    return blocks.transpose(1, 2).reshape(h * w, *rest)


def vision_angles(grid_thw: list[list[int]], head_dim: int, merge: int) -> torch.Tensor:
    """Return angles float32 [patches, head_dim / 2] of the vision tower's two-axis rope.

    The first half of the frequencies turns with a patch's row, the second with its column.
    `grid_thw` lists frames, rows and columns of patches for each picture or video.
    """
    exponent = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
    inv_freq = 10000.0**-exponent  # [head_dim / 4]
    angles = []
    for t, h, w in grid_thw:
        row = torch.arange(h, dtype=torch.float32)[:, None, None] * inv_freq  # [h, 1, d/4]
        col = torch.arange(w, dtype=torch.float32)[None, :, None] * inv_freq  # [1, w, d/4]
        both = torch.cat((row.expand(h, w, -1), col.expand(h, w, -1)), dim=-1)
        angles.append(merge_order(both, merge).repeat(t, 1))
    return torch.cat(angles)


class PatchRotation(NamedTuple):
    """Cos and sin of the patches of a batch: made once, and used by every block of the tower.

    Both are [patches, head_dim / 2], or [patches, 1, head_dim] on Ascend.
    """

    cos: torch.Tensor
    sin: torch.Tensor


class VisionRotaryEmbedding(nn.Module):
    """Two-axis rope of the vision tower, through vLLM's layer."""

    def __init__(self, head_dim: int, merge: int) -> None:
        super().__init__()
        self.head_dim, self.merge = head_dim, merge
        self.apply_rotary_emb = ApplyRotaryEmb(enforce_enable=True)

    def rotation(
        self, grid_thw: list[list[int]], dtype: torch.dtype, device: torch.device
    ) -> PatchRotation:
        """Return the rotation of a batch of pictures or videos; see `vision_angles`."""
        angles = vision_angles(grid_thw, self.head_dim, self.merge)
        return PatchRotation(angles.cos().to(device, dtype), angles.sin().to(device, dtype))

    def forward(
        self, rotation: PatchRotation, qk: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate qk [1, patches, 2 * heads, head_dim]: q and k [1, patches, heads, head_dim]."""
        q, k = self.apply_rotary_emb(qk, *rotation).chunk(2, dim=2)
        return q, k


def text_rotary_embedding(config, dtype: torch.dtype, max_positions: int) -> nn.Module:
    """Return the decoder's rope, in the backend's class."""
    return resolve(current_backend().text_rope)(config, dtype, max_positions)


def vision_rotary_embedding(head_dim: int, merge: int) -> nn.Module:
    """Return the vision tower's rope, in the backend's class."""
    return resolve(current_backend().vision_rope)(head_dim, merge)
