# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM and vllm-ascend that moved between releases, each chosen by what is there.

`from vllm_glm41v_npu.upstream import DeltaMessage` imports it from where the installed release has
it. Importing this module alone loads nothing. A line that is dropped takes its paths with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_glm41v_npu.backends import resolve

if TYPE_CHECKING:  # where the stable line has them
    from vllm.entrypoints.openai.engine.protocol import DeltaMessage as DeltaMessage
    from vllm.entrypoints.serve.utils.error_response import (
        create_error_response as create_error_response,
    )

PATHS = {
    "DeltaMessage": (
        "vllm.entrypoints.openai.engine.protocol:DeltaMessage",
        "vllm.entrypoints.generate.base.protocol:DeltaMessage",  # 0.30
    ),
    "create_error_response": (
        "vllm.entrypoints.serve.utils.error_response:create_error_response",
        "vllm.entrypoints.serve.exception_handling.error_response:create_error_response",  # 0.30
    ),
    "scale_from_float_to_int64": (
        "vllm_ascend.quantization.methods.w8a8_dynamic:scale_from_float_to_int64",
        "vllm_ascend.quantization.methods.w8a8.w8a8_dynamic:scale_from_float_to_int64",  # 0.30
    ),
}
"""Name to the paths ("module:name") that may have it, the oldest line's first."""


def __getattr__(name: str) -> Any:
    """Return a moved name from the first place that has it.

    Raises:
        AttributeError: No place has it, or it is not in PATHS.
    """
    for path in PATHS.get(name, ()):
        try:
            return resolve(path)
        except (ImportError, AttributeError):
            continue
    raise AttributeError(f"{name!r} is not where {__name__} knows it to be")
