# SPDX-License-Identifier: Apache-2.0
"""Let the CPU's kernel for recovered tokens be called as the rejection sampler calls it.

The sampler of vLLM 0.23.0 passes USE_FP64_GUMBEL, which chooses the precision of a GPU's random
numbers; the CPU kernel has no such parameter. Ends when `cpu_triton_utils` takes it.
"""

from __future__ import annotations

import inspect
from typing import Any

from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Take the argument, and ignore it."""
    from vllm.utils import cpu_triton_utils

    kernel = cpu_triton_utils.sample_recovered_tokens_kernel
    if "USE_FP64_GUMBEL" not in inspect.signature(inspect.unwrap(kernel.func)).parameters:
        wrap(kernel, "func", _ignoring)


def _ignoring(implementation: Any) -> Any:
    def take_it(*arguments: Any, USE_FP64_GUMBEL: bool = False, **options: Any) -> None:
        implementation(*arguments, **options)

    return take_it
