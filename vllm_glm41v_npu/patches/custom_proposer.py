# SPDX-License-Identifier: Apache-2.0
"""Let vllm-ascend's runner take a proposer of draft tokens that the user names by its class.

vllm-ascend 0.23.0 does not know the method `custom_class`, which vLLM's own runner takes. And on
Atlas 310P its runner makes every step eager that has no draft tokens, and then finds at its start
that it should have captured a piecewise graph. Ends when `get_spec_decode_method` knows
`custom_class`, and `NPUModelRunner310._determine_batch_execution_and_padding` lets such captures
pass.
"""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.backends import current_backend
from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Patch the function before the runner, which takes it by its name, is first imported."""
    import vllm_ascend.ops  # noqa: F401  before the other, or they import each other in a circle
    import vllm_ascend.spec_decode as spec_decode

    wrap(spec_decode, "get_spec_decode_method", _taking_classes)


def _taking_classes(known: Any) -> Any:
    def get_spec_decode_method(method: str, vllm_config: Any, device: Any, runner: Any) -> Any:
        leave_out_pieces(vllm_config.compilation_config)
        if method == "custom_class":
            from vllm_glm41v_npu.ascend.proposer import AscendCustomProposer

            return AscendCustomProposer(vllm_config, runner)
        return known(method, vllm_config, device, runner)

    return get_spec_decode_method


def leave_out_pieces(compilation: Any) -> None:
    """Leave only the graphs of whole steps in vLLM's CompilationConfig, where the chip needs it."""
    from vllm.config import CUDAGraphMode

    mode = compilation.cudagraph_mode
    takes_pieces = current_backend().captures_pieces_with_drafts
    if not takes_pieces and mode.mixed_mode() == CUDAGraphMode.PIECEWISE:
        full = mode.decode_mode() == CUDAGraphMode.FULL
        compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY if full else CUDAGraphMode.NONE
