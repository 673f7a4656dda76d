# SPDX-License-Identifier: Apache-2.0
"""Patches of upstream: one file each.

Each file says what is wrong, in which release it was seen, and when the patch can go; its `apply()`
is called once in every process of vLLM, before the model is loaded. A patch owns a test that fails
when upstream no longer needs it. Models of others are served as ever (`is_ours`).
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from vllm_glm41v_npu import backends
from vllm_glm41v_npu.backends import Backend

EVERYWHERE = (
    "drained_shutdown",
    "engine_watch",
    "front_end",
    "grammar_backends",
    "media_cache",
    "thinking_drafts",
)
ON_CPU = ("pinned_memory", "sampler_argument")


@functools.cache
def apply_patches(backend: Backend) -> None:
    """Apply those of `backend`, once in a process."""
    for name in (*EVERYWHERE, *(ON_CPU if backend.stack == backends.ON_CPU else ())):
        import_module(f"{__name__}.{name}").apply()


def is_ours(model_config: Any) -> bool:
    """Whether vLLM's ModelConfig is of GLM-4.1V. A process may serve other models, too."""
    from vllm_glm41v_npu.plugin import MODEL_TYPE

    return getattr(getattr(model_config, "hf_config", None), "model_type", None) == MODEL_TYPE
