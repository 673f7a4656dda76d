# SPDX-License-Identifier: Apache-2.0
"""The decoder's rope on the emulated chip's kernel beside the plain form on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Glm4vTextConfig

pytestmark = pytest.mark.ascend
HEAD, TOKENS = 128, 6
STRETCHED = {"factor": 4.0, "original_max_position_embeddings": 512}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "yarn", **STRETCHED},
    {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **STRETCHED},
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_the_chip_turns_as_the_plain_form(emulated: None, rope: dict[str, Any]) -> None:
    """Guards sections, pairs that stand still, yarn's factor and the order within a head."""
    from vllm.config import VllmConfig, set_current_vllm_config

    from vllm_glm41v_npu.models.rope import TextRotaryEmbedding, text_rotary_embedding

    config = Glm4vTextConfig(
        hidden_size=4 * HEAD,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [8, 12, 12],
        }
        | rope,
    )
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(TOKENS, 4 * HEAD, generator=generator).half()
    k = torch.randn(TOKENS, 2 * HEAD, generator=generator).half()
    positions = torch.randint(0, 900, (3, TOKENS), generator=generator)
    plain = TextRotaryEmbedding(config, torch.float32)
    rows = plain.rows(positions)
    want = plain.rotate(rows, q.float()), plain.rotate(rows, k.float())

    with set_current_vllm_config(VllmConfig()):
        ours = text_rotary_embedding(config, torch.float16, 2048).npu()
    with torch.inference_mode():  # as in the engine, whose buffers the chip's form shares
        got = turn(ours, positions.npu(), q.npu(), k.npu())
    for found, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(found.cpu().float(), wanted, atol=6e-3, rtol=2e-3)


def turn(rope: Any, positions: Any, q: Any, k: Any) -> tuple[Any, Any]:
    """As a step of the decoder does; on Atlas 310P its runner merges the axes before."""
    from vllm_glm41v_npu.backends import ATLAS_310P, current_backend

    if current_backend() is not ATLAS_310P:
        return rope(rope.step(positions), q, k)
    from vllm_ascend._310p.ops.rotary_embedding import set_mrope_apply_rotary_slices

    set_mrope_apply_rotary_slices(  # as prepare_mrope_cos_sin_slices_from_runner does
        rope.cos_sin_cache,
        positions,
        mrope_section=rope.mrope_section,
        mrope_interleaved=rope.mrope_interleaved,
        capacity_tokens=TOKENS,
    )
    return rope(rope.step(positions), q, k)
