# SPDX-License-Identifier: Apache-2.0
"""The frequencies of stretched rope by the published formulas, and the rows made of them.

test_rope.py compares scores with transformers', whose own functions give the frequencies there.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import Glm4vTextConfig, Glm4vVisionConfig

from vllm_glm41v_npu.checkpoint.config import normalise
from vllm_glm41v_npu.checkpoint.config_rope import rope_parameters
from vllm_glm41v_npu.models.rope import TextRotaryEmbedding, text_inverse_frequencies
from vllm_glm41v_npu.processing.hf_config import Glm4vConfig

HEAD, ROTATED, THETA, FACTOR, LENGTH = 128, 64, 10000.0, 4.0, 8192


def text_config(**rope: Any) -> Any:
    """The text settings of a config.json whose rope is stretched in the older form."""
    text = {
        "hidden_size": 4 * HEAD,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "vocab_size": 151552,
        "max_position_embeddings": 4 * LENGTH,
        "rope_theta": THETA,
        "partial_rotary_factor": ROTATED / HEAD,
        "rope_scaling": {"mrope_section": [8, 12, 12], **rope},
    }
    vision = Glm4vVisionConfig().to_dict() | {"out_hidden_size": 4 * HEAD}
    content = normalise({"model_type": "glm4v", "text_config": text, "vision_config": vision})
    return Glm4vConfig(**content).text_config


def plain() -> list[float]:
    return [THETA ** (-2 * pair / ROTATED) for pair in range(ROTATED // 2)]


def yarn(fast: float = 32, slow: float = 1) -> list[float]:
    """Peng et al., "YaRN" (2023), 3.2: pairs that turn often stay, those that turn little slow."""

    def pair_that_turns(times: float) -> float:
        return ROTATED * math.log(LENGTH / (times * 2 * math.pi)) / (2 * math.log(THETA))

    low = max(math.floor(pair_that_turns(fast)), 0)
    high = min(math.ceil(pair_that_turns(slow)), ROTATED - 1)
    ramp = [min(max((pair - low) / (high - low), 0), 1) for pair in range(ROTATED // 2)]
    return [f * (1 - r) + f / FACTOR * r for f, r in zip(plain(), ramp, strict=True)]


def llama3(low: float = 1, high: float = 4) -> list[float]:
    """Llama 3.1: by the wavelength, with a smooth passage between the two factors."""
    found = []
    for frequency in plain():
        turns = LENGTH * frequency / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0), 1)
        found.append((1 - smooth) * frequency / FACTOR + smooth * frequency)
    return found


STRETCHED: dict[str, Any] = {"factor": FACTOR, "original_max_position_embeddings": LENGTH}
FORMS: dict[str, tuple[dict[str, Any], list[float], float]] = {
    "default": ({"type": "mrope"}, plain(), 1.0),
    "linear": ({"type": "linear", "factor": FACTOR}, [f / FACTOR for f in plain()], 1.0),
    "yarn": ({"type": "yarn", **STRETCHED}, yarn(), 0.1 * math.log(FACTOR) + 1),
    "yarn with its own factor": (
        {"type": "yarn", "attention_factor": 0.7, **STRETCHED},
        yarn(),
        0.7,
    ),
    "llama3": (
        {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **STRETCHED},
        llama3(),
        1.0,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_frequencies_are_the_published_ones(form: str) -> None:
    """Guards config.json's numbers on their way into the frequencies, and their factor."""
    rope, want, factor = FORMS[form]
    frequencies, found = text_inverse_frequencies(text_config(**rope))
    torch.testing.assert_close(frequencies, torch.tensor(want), rtol=1e-5, atol=0)
    assert found == pytest.approx(factor)


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_angles_of_each_axis(form: str) -> None:
    """Guards sections, the factor on rotated pairs alone, and pairs that stand still."""
    rope, want, factor = FORMS[form]
    positions = torch.tensor([[3, 40], [500, 7], [9000, 20000]])
    rows = TextRotaryEmbedding(text_config(**rope), torch.float32).rows(positions)
    axes = [0] * 8 + [1] * 12 + [2] * 12
    still = (HEAD - ROTATED) // 2
    for token in range(2):
        angles = [positions[axis, token].item() * f for axis, f in zip(axes, want, strict=True)]
        cos = [factor * math.cos(angle) for angle in angles] + [1.0] * still
        sin = [factor * math.sin(angle) for angle in angles] + [0.0] * still
        torch.testing.assert_close(rows[token], torch.tensor(cos + sin), rtol=0, atol=5e-3)


def test_a_theta_that_is_left_out_is_transformers_default() -> None:
    """Guards files that leave rope_theta to the code, as those of July 2025 may."""
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}
    theirs = Glm4vTextConfig(rope_parameters=dict(rope)).rope_parameters
    ours = rope_parameters(text_config(type="mrope").to_dict() | {"rope_parameters": rope}, {}, "")
    assert ours["rope_theta"] == theirs["rope_theta"] == 10000.0
