# SPDX-License-Identifier: Apache-2.0
"""The names of GLM-4.1V in config.json and in vLLM, and how its models are told from others."""

from __future__ import annotations

from typing import Any

ARCHITECTURE = "Glm4vForConditionalGeneration"
"""The key of the network in vLLM's registry of models."""
MODEL_TYPE = "glm4v"
"""`model_type` of the whole model in config.json."""
MODEL_TYPES = (MODEL_TYPE, "glm4v_text")
"""`model_type` of the configs that the layers find: the vision tower's and the decoder's."""
MODEL_CLASS = "vllm_glm41v_npu.models.glm41v:Glm41vForConditionalGeneration"
PUBLISHED_NAME = "zai-org/GLM-4.1V-9B-Thinking"
"""The hub name of the published checkpoint, and the default of commands."""
REASONING_PARSER = "glm41v"
"""Value of `--reasoning-parser`."""
REASONING_PARSER_CLASS = "vllm_glm41v_npu.serving.reasoning:Glm41vReasoningParser"


def is_ours(model_config: Any) -> bool:
    """Return whether vLLM's ModelConfig is of GLM-4.1V; a process may serve other models too."""
    hf_config = getattr(model_config, "hf_config", None)
    return getattr(hf_config, "model_type", None) == MODEL_TYPE


def is_our_config(hf_config: Any) -> bool:
    """Return whether a transformers config is of GLM-4.1V, or of its decoder."""
    return getattr(hf_config, "model_type", None) in MODEL_TYPES
