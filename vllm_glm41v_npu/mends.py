# SPDX-License-Identifier: Apache-2.0
"""What vLLM 0.23.0 itself gets wrong, set right in this one place.

Each mend says when it can go. All are safe to repeat.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

_WATCH = "glm41v-parent-watch"


def end_engine_with_its_server() -> None:
    """Let an engine core end when the process that started it was killed.

    vLLM's workers watch the process above them; its engine core waits for requests for ever, and
    keeps the device's memory from the next server. Can go when the engine core watches too.
    """
    parent = multiprocessing.parent_process()
    is_engine = multiprocessing.current_process().name.startswith("EngineCore")
    watches = any(thread.name == _WATCH for thread in threading.enumerate())
    if parent is None or not is_engine or watches:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name=_WATCH, daemon=True).start()


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
