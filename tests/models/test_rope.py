# SPDX-License-Identifier: Apache-2.0
"""Rope in half form against transformers' interleaved form, and the vision tower's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Glm4vTextConfig
from transformers.models.glm4v.modeling_glm4v import (
    Glm4vTextRotaryEmbedding,
    Glm4vVisionRotaryEmbedding,
    apply_rotary_pos_emb,
)

from vllm_glm41v_npu.models.rope import (
    TextRotaryEmbedding,
    deinterleave,
    merge_order,
    vision_angles,
)

STRETCHED: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 512}
ROPES: tuple[dict[str, Any], ...] = (
    {},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", **STRETCHED},
    {"rope_type": "yarn", "attention_factor": 0.7, **STRETCHED},
    {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **STRETCHED},
)
"""One of each type that config_rope takes; yarn scales what it rotates."""


def text_config(section: list[int], head_dim: int, **rope) -> Glm4vTextConfig:
    return Glm4vTextConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 2 * sum(section) / head_dim,
            "mrope_section": section,
        }
        | rope,
    )


def test_deinterleave_puts_the_partners_half_a_head_apart() -> None:
    """Guards the permutation that every per-channel tensor of q and k gets."""
    rows = torch.arange(12)  # two heads of 6, 4 of them rotary
    assert deinterleave(rows, 6, 4).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(
        deinterleave(rows[:, None].expand(-1, 3), 6, 4)[:, 2], deinterleave(rows, 6, 4)
    )


@pytest.mark.parametrize("section", [[8, 12, 12], [4, 2, 2], [2, 1, 1, 4]])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.get("rope_type", "default"))
def test_scores_equal_those_of_the_interleaved_form(section: list[int], rope: dict) -> None:
    """Guards de-interleaving and the three-axis rows together: q.k must not change."""
    head_dim, tokens = 4 * sum(section), 11
    config = text_config(section, head_dim, **rope)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(tokens, 4, head_dim, generator=generator)
    k = torch.randn(tokens, 2, head_dim, generator=generator)
    positions = torch.randint(0, 900, (3, tokens), generator=generator)

    cos, sin = Glm4vTextRotaryEmbedding(config)(q, positions[:, None])
    want_q, want_k = apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2)

    ours = TextRotaryEmbedding(config, torch.float32)
    rotated = 2 * sum(section)
    half_q, half_k = (
        deinterleave(x.flatten(1).t(), head_dim, rotated).t().contiguous() for x in (q, k)
    )
    got_q, got_k = ours(ours.step(positions), half_q, half_k)

    def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, dim=1))

    got = scores(got_q.view_as(q), got_k.view_as(k))
    torch.testing.assert_close(got, scores(want_q[0], want_k[0]), atol=2e-4, rtol=1e-4)


def test_the_plain_form_equals_the_kernel() -> None:
    """Guards the form that a compiler sees against the CPU kernel that eager mode calls."""
    config = text_config([4, 6, 6], 64, rope_type="yarn", **STRETCHED)
    ours = TextRotaryEmbedding(config, torch.float32)
    qkv = torch.randn(5, 8 * 64)
    q, k, _ = qkv.clone().split([4 * 64, 2 * 64, 2 * 64], dim=-1)
    rows = ours.rows(torch.arange(5))
    plain = ours.rotate(rows, q), ours.rotate(rows, k)
    kernel = ours(ours.step(torch.arange(5)), q, k)
    for a, b in zip(plain, kernel, strict=True):
        torch.testing.assert_close(a, b)


def test_equal_axes_need_no_second_dimension() -> None:
    """Guards the one-dimensional positions that vLLM passes for plain text."""
    ours = TextRotaryEmbedding(text_config([8, 12, 12], 128), torch.float32)
    positions = torch.arange(7)
    assert torch.equal(ours.rows(positions), ours.rows(positions.expand(3, -1)))


@pytest.mark.parametrize("grids", [[[1, 4, 6]], [[1, 2, 8], [3, 4, 4]]])
def test_vision_rope_equals_transformers(grids: list[list[int]]) -> None:
    """Guards the order of the patches and the split of the frequencies between the two axes."""
    head_dim, merge = 64, 2
    table = Glm4vVisionRotaryEmbedding(head_dim // 2)(32)
    angles = []
    for t, h, w in grids:
        row, col = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        ids = merge_order(torch.stack((row, col), dim=-1), merge).repeat(t, 1)
        angles.append(table[ids].flatten(1))
    torch.testing.assert_close(vision_angles(grids, head_dim, merge), torch.cat(angles))


def test_merge_order_puts_the_patches_of_a_token_together() -> None:
    """Guards the order (h / m, w / m, m, m)."""
    grid = torch.arange(8).view(2, 4, 1)
    assert merge_order(grid, 2)[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
