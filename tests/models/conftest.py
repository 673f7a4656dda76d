# SPDX-License-Identifier: Apache-2.0
"""vLLM's loader in this process, with no engine around the network that it fills."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[..., nn.Module]]:
    """From a folder, a dtype and vLLM's options to the network with its weights."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.distributed.parallel_state import model_parallel_is_initialized
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model
    from vllm.utils.network_utils import get_open_port

    init_distributed_environment(1, 0, f"tcp://127.0.0.1:{get_open_port()}", 0, "gloo")

    def fill(folder: Path, dtype: str = "float32", **options: Any) -> nn.Module:
        settings: dict[str, Any] = {"max_model_len": 512, "enforce_eager": True, "dtype": dtype}
        config = EngineArgs(str(folder), **settings | options).create_engine_config()
        with set_current_vllm_config(config):
            if not model_parallel_is_initialized():  # else as a test has made the groups look
                ensure_model_parallel_initialized(1, 1)
            return get_model(vllm_config=config)

    yield fill
    cleanup_dist_env_and_memory()
