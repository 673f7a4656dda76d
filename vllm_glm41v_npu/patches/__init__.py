# SPDX-License-Identifier: Apache-2.0
"""What upstream gets wrong, set right: one file a patch.

Each file says what is wrong, in which release it was seen, and when the patch can go; its `apply()`
is called once in every process of vLLM, before the model is loaded. A patch owns a test that fails
when upstream no longer needs it.
"""

from __future__ import annotations

import functools
from importlib import import_module

from vllm_glm41v_npu.platform import Backend

EVERYWHERE = (
    "drained_shutdown",
    "empty_media",
    "engine_watch",
    "front_end",
    "grammar_backends",
    "long_texts",
    "media_cache",
    "media_names",
    "media_request",
    "thinking_drafts",
)
ON_CPU = ("pinned_memory", "sampler_argument")


@functools.cache
def apply_patches(backend: Backend) -> None:
    """Apply those of `backend`, once in a process."""
    for name in (*EVERYWHERE, *(() if backend.is_ascend else ON_CPU)):
        import_module(f"{__name__}.{name}").apply()
