# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled function on the threads that PyTorch itself computes with.

vLLM ties one OpenMP thread to each core. A second set of threads would share the core of the
thread that made it, and wait while OpenMP's threads spin. So the function runs in a parallel
region of the OpenMP library that PyTorch is bound to: libgomp, or what is preloaded in its place.
All of these export GOMP_parallel, the entry point that GCC compiles a region to.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

_Region = Callable[[int, int, int, int], None]


@functools.cache
def _parallel_region() -> _Region | None:
    """GOMP_parallel(function, data, threads, flags), found as the dynamic linker found PyTorch's.

    None where PyTorch has no such library, as on macOS.
    """
    own = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for path in (None, own):  # what is preloaded comes first
        if path is not None and not path.exists():
            continue
        region = getattr(ctypes.CDLL(None if path is None else str(path)), "GOMP_parallel", None)
        if region is not None:
            region.restype = None
            region.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            return region
    return None


def run(function: int, data: int) -> None:
    """Call function(data), two addresses, on every one of torch.get_num_threads() threads.

    The threads share the work among themselves; one alone would do it all. Without the GIL.
    """
    threads, region = torch.get_num_threads(), _parallel_region()
    if threads > 1 and region is not None:
        region(function, data, threads, 0)
    else:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)
