# SPDX-License-Identifier: Apache-2.0
"""What vLLM refuses of GLM-4.1V's settings before anything is loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_glm41v_npu.backends import Backend
from vllm_glm41v_npu.options import micro_batch_tokens


@functools.cache
def check_settings(
    backend: Backend,
    architecture: str,
    check_files: Callable[[Any, str], None] = lambda model_config, stack: None,
) -> None:
    """Have vLLM refuse bad files, a dtype that `backend` computes wrongly, and options of ours.

    Args:
        backend: What computes.
        architecture: The model's name in vLLM's registry.
        check_files: Refuses a checkpoint's files; `file_checks.check_files`.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class SettingsCheck(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            check_files(model_config, backend.stack)
            dtype = str(model_config.dtype).removeprefix("torch.")
            if dtype not in backend.dtypes:
                raise ValueError(
                    f"--dtype {dtype} computes wrong results on {backend.name}; "
                    f"leave --dtype out, or give one of: {', '.join(backend.dtypes)}."
                )

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            lora = vllm_config.lora_config is not None
            micro_batch_tokens(vllm_config.additional_config, lora)

    MODELS_CONFIG_MAP[architecture] = SettingsCheck
