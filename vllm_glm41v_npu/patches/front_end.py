# SPDX-License-Identifier: Apache-2.0
"""Apply the patches of the processes that take requests: offline, and in the server.

vLLM 0.23.0 offers a plugin no place that only these processes pass. They alone make a renderer, and
with it they have loaded the modules that are patched; the processes that compute must not load
them. Ends when vLLM calls plugins once its front end is loaded.
"""

from __future__ import annotations

import sys
from typing import Any

from vllm_glm41v_npu.backends import current_backend
from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import FRONT_END, SERVER, apply_patches, wrap

_SERVES = "vllm.entrypoints.serve.render.serving"
"""The module that every server of vLLM's has loaded, and nothing else."""


def apply() -> None:
    """Wait for the first renderer of this model."""
    from vllm.renderers.registry import RendererRegistry

    wrap(RendererRegistry, "load_renderer", _patching)


def _patching(load: Any) -> Any:
    def load_renderer(self: Any, mode: str, config: Any, *arguments: Any, **options: Any) -> Any:
        if is_ours(config.model_config):
            apply_to_requests(serves=_SERVES in sys.modules)
        return load(self, mode, config, *arguments, **options)

    return load_renderer


def apply_to_requests(*, serves: bool) -> None:
    """Apply the patches of a front end, and those of a server where this process `serves`."""
    stack = current_backend().stack
    for place in (FRONT_END, *((SERVER,) if serves else ())):
        apply_patches(stack, place)
