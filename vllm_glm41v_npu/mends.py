# SPDX-License-Identifier: Apache-2.0
"""What vLLM 0.23.0 itself gets wrong on a CPU, set right in this one place.

Each mend says when it can go. All are safe to repeat.
"""

from __future__ import annotations


def mend_cpu() -> None:
    """Set right what stops LoRA on the CPU."""
    _leave_host_memory_unpinned()


def _leave_host_memory_unpinned() -> None:
    """Let `async_tensor_h2d` work in a CUDA build of torch, PyPI's, on a machine without a GPU.

    It pins host memory by default, which needs the driver. The CPU worker puts another function in
    its place, but vLLM's LoRA layers were imported, with the first one, before that worker. Can go
    when the default asks the platform, as vLLM's other pinned copies do.
    """
    from vllm.utils.torch_utils import async_tensor_h2d

    async_tensor_h2d.__defaults__ = (False,)
