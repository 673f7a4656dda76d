# SPDX-License-Identifier: Apache-2.0
"""Let `async_tensor_h2d` work in a CUDA build of torch, PyPI's, on a machine without a GPU.

vLLM 0.23.0 pins host memory by default, which needs the driver. The CPU worker puts another
function in its place, but vLLM's LoRA layers were imported, with the first one, before that worker.
Ends when the default asks the platform, as vLLM's other pinned copies do.
"""

from __future__ import annotations


def apply() -> None:
    """Leave host memory unpinned by default."""
    from vllm.utils.torch_utils import async_tensor_h2d

    if async_tensor_h2d.__defaults__ == (True,):
        async_tensor_h2d.__defaults__ = (False,)
