# SPDX-License-Identifier: Apache-2.0
"""HCCL over gloo: process groups that name hccl, or nothing, get gloo's, on the same host memory.

The tensors of a collective are aliased as CPU tensors by boxed.cpp like those of any operator.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch.distributed as dist

FOR_HCCL = ("pg_options", "device_id")
"""Arguments that gloo cannot take."""


def _over_gloo(function: Any) -> Any:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        call = signature.bind(*arguments, **options).arguments
        backend = call.get("backend") or "hccl"
        if "hccl" in backend or backend == "gloo":
            call["backend"] = "gloo"
            for name in FOR_HCCL:
                call.pop(name, None)
        return function(**call)

    return wrapper


def install() -> None:
    """Let every process group of this process be made by gloo."""
    for name in ("init_process_group", "new_group"):
        wrapped = _over_gloo(getattr(dist, name))
        setattr(dist, name, wrapped)
        setattr(dist.distributed_c10d, name, wrapped)
