# SPDX-License-Identifier: Apache-2.0
"""Let the server check bodies before pydantic does, and refuse them without a traceback.

vLLM 0.23.0 refuses a message without a role in forty lines with the body and a path of the server
in them, says "list index out of range" to no messages, answers a field of the wrong type with 500,
and closes the connection after most of its own refusals. Ends when it answers
`tests/end_to_end/test_refusals.py` in sentences.
"""

from __future__ import annotations

import sys
from typing import Any

from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Improve every application that is built in this process."""
    from vllm.entrypoints.openai import api_server

    modules: tuple[Any, ...] = (api_server, sys.modules["__main__"])  # python -m vllm.entrypoints.
    for module in modules:
        if hasattr(module, "build_app"):
            wrap(module, "build_app", _improved)


def _improved(build: Any) -> Any:
    def build_app(*arguments: Any, **options: Any) -> Any:
        from vllm_glm41v_npu.serving.refused_requests import improve

        return improve(build(*arguments, **options))

    return build_app
