# SPDX-License-Identifier: Apache-2.0
"""Execution of a compiled function on the threads that PyTorch itself computes with.

vLLM binds one OpenMP thread to each core. A second set of threads would share one core with the
thread that started it, and wait while OpenMP's threads spin. So the function runs in a parallel
region of PyTorch's own OpenMP library: libgomp, or a library preloaded in its place. Each of them
exports GOMP_parallel, the entry point of a region that GCC compiles.
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
    """Return GOMP_parallel(function, data, threads, flags) of PyTorch's OpenMP library.

    None where PyTorch has no such library, as on macOS.
    """
    own = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for path in (None, own):  # a preloaded library comes first, as for the dynamic linker
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

    The function shares out the work itself, and does all of it with one thread. No GIL is held.
    """
    threads, region = torch.get_num_threads(), _parallel_region()
    if threads > 1 and region is not None:
        region(function, data, threads, 0)
    else:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)
