# SPDX-License-Identifier: Apache-2.0
"""MindIE's routes beside vLLM's: `--middleware vllm_glm41v_npu.serving.mindie.MindIERoutes`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`MindIERoutes`, loaded when it is asked for: `config` is read where no server runs."""
    if name == "MindIERoutes":
        from vllm_glm41v_npu.serving.mindie.routes import MindIERoutes

        return MindIERoutes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
