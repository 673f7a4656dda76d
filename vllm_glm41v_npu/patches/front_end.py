# SPDX-License-Identifier: Apache-2.0
"""Apply the patches of the processes that take requests: offline, and in the server.

Only those make a renderer, and with it they have loaded what is patched here; the processes that
compute shall not load it. Of other models nothing is changed.
"""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from typing import Any

OFFLINE_TOO = (
    "beam_search",
    "chat_parts",
    "closed_thinking",
    "embedding_files",
    "empty_media",
    "long_texts",
    "media_names",
    "media_request",
)
SERVING = ("answer_parser", "anthropic_errors", "refused_requests")
_SERVES = "vllm.entrypoints.serve.render.serving"
"""The module that every server of vLLM's has loaded, and nothing else."""


def apply() -> None:
    """Wait for the first renderer of this model."""
    from vllm.renderers.registry import RendererRegistry

    from vllm_glm41v_npu.patches import is_ours

    load = RendererRegistry.load_renderer

    @functools.wraps(load)
    def load_renderer(self: Any, mode: str, config: Any, *arguments: Any, **options: Any) -> Any:
        if is_ours(config.model_config):
            apply_to_requests(serves=_SERVES in sys.modules)
        return load(self, mode, config, *arguments, **options)

    RendererRegistry.load_renderer = load_renderer


@functools.cache
def _apply(name: str) -> None:
    import_module(f"vllm_glm41v_npu.patches.{name}").apply()


def apply_to_requests(*, serves: bool) -> None:
    """Apply them, each once in a process."""
    for name in (*OFFLINE_TOO, *(SERVING if serves else ())):
        _apply(name)
