# SPDX-License-Identifier: Apache-2.0
"""HCCL over gloo: process groups that name hccl get gloo's, on the same host memory.

The tensors of a collective are aliased as CPU tensors by boxed.cpp like those of any operator.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.distributed as dist


def _over_gloo(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        arguments = tuple("gloo" if value == "hccl" else value for value in arguments)
        backend = options.get("backend")
        if isinstance(backend, str) and "hccl" in backend:
            options["backend"] = "gloo"
        if "gloo" in arguments or options.get("backend") == "gloo":
            # Both are meant for HCCL.
            options.pop("pg_options", None)
            options.pop("device_id", None)
        return function(*arguments, **options)

    return wrapper


def install() -> None:
    """Let every process group of this process be made by gloo."""
    for name in ("init_process_group", "new_group"):
        wrapped = _over_gloo(getattr(dist, name))
        setattr(dist, name, wrapped)
        setattr(dist.distributed_c10d, name, wrapped)
