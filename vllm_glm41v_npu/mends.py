# SPDX-License-Identifier: Apache-2.0
"""What vLLM 0.23.0 itself gets wrong on a CPU, set right in this one place.

Each mend says when it can go. All are safe to repeat.
"""

from __future__ import annotations

from typing import Any


def mend_cpu() -> None:
    """Set right what stops LoRA and speculative decoding on the CPU."""
    _leave_host_memory_unpinned()
    _take_the_samplers_new_argument()


def _leave_host_memory_unpinned() -> None:
    """Let `async_tensor_h2d` work in a CUDA build of torch, PyPI's, on a machine without a GPU.

    It pins host memory by default, which needs the driver. The CPU worker puts another function in
    its place, but vLLM's LoRA layers were imported, with the first one, before that worker. Can go
    when the default asks the platform, as vLLM's other pinned copies do.
    """
    from vllm.utils.torch_utils import async_tensor_h2d

    async_tensor_h2d.__defaults__ = (False,)


def _take_the_samplers_new_argument() -> None:
    """Let the CPU's kernel for recovered tokens be called as the rejection sampler calls it.

    The sampler passes USE_FP64_GUMBEL, which chooses the precision of a GPU's random numbers; the
    CPU kernel has no such parameter. Can go when `cpu_triton_utils` takes it.
    """
    import inspect

    from vllm.utils import cpu_triton_utils

    kernel = cpu_triton_utils.sample_recovered_tokens_kernel
    implementation = kernel.func
    if "USE_FP64_GUMBEL" in inspect.signature(implementation).parameters:
        return

    def takes_it(*arguments: Any, USE_FP64_GUMBEL: bool = False, **options: Any) -> None:
        implementation(*arguments, **options)

    kernel.func = takes_it
