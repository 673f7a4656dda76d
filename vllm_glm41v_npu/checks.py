# SPDX-License-Identifier: Apache-2.0
"""The settings of GLM-4.1V that are refused before anything is loaded, and the own options.

Importing this module loads neither torch nor vLLM: commands and the planner read options here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm_glm41v_npu.backends import Backend

Check = Callable[[Any], None]
"""Looks at vLLM's ModelConfig or VllmConfig; raises ValueError with a sentence, or corrects it."""

MICRO_BATCH = "micro_batch"
"""Key in vLLM's `--additional-config`."""
FEWEST_TOKENS = 2048
"""Tokens of a step from which it is cut in two, where no number is given; MindIE's."""


class OptionError(ValueError):
    """An option that cannot be used; the message says what was found and what to do."""


def register_checks(
    architecture: str, on_model: Sequence[Check], on_engine: Sequence[Check]
) -> None:
    """Have vLLM call checks of a model's settings, in order, before it loads anything.

    Args:
        architecture: The key of the model in vLLM's registry.
        on_model: Get the ModelConfig, before vLLM looks at `--quantization`.
        on_engine: Get the whole VllmConfig, before a process reads weights.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class SettingsCheck(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            for check in on_model:
                check(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            for check in on_engine:
                check(vllm_config)

    MODELS_CONFIG_MAP[architecture] = SettingsCheck


def check_dtype(model_config: Any, backend: Backend) -> None:
    """Refuse a dtype that the backend computes wrongly.

    Raises:
        ValueError: It is none of `backend.dtypes`.
    """
    dtype = str(model_config.dtype).removeprefix("torch.")
    if dtype not in backend.dtypes:
        raise ValueError(
            f"--dtype {dtype} computes wrong results on {backend.name}; "
            f"leave --dtype out, or give one of: {', '.join(backend.dtypes)}."
        )


def check_options(vllm_config: Any) -> None:
    """Refuse own options that cannot be used.

    Raises:
        OptionError: One is malformed, or is on beside adapters.
    """
    micro_batch_tokens(vllm_config.additional_config, vllm_config.lora_config is not None)


def auto_dtype(backend: Backend, quantized: bool) -> str | None:
    """Return the dtype that `--dtype auto` means on a backend; None leaves the choice to vLLM.

    A quantized checkpoint keeps vLLM's choice, since most quantization methods have no float32;
    but where the backend computes in one dtype alone, "auto" is that one for every checkpoint.
    """
    is_only_one = backend.dtypes == (backend.auto_dtype,)
    return backend.auto_dtype if is_only_one or not quantized else None


def resolved_dtype(backend: Backend, dtype: str, quantized: bool) -> str:
    """Return the dtype that `--dtype auto` ends in for a checkpoint in `dtype`.

    Where the choice is vLLM's, it takes bfloat16 for float32, and else the checkpoint's.
    """
    chosen = auto_dtype(backend, quantized)
    return chosen or ("bfloat16" if dtype == "float32" else dtype)


def micro_batch_tokens(additional_config: Any, lora: bool = False) -> int | None:
    """Return the fewest tokens of a step that micro batching cuts in two, None where it is off.

    Args:
        additional_config: vLLM's; `micro_batch` in it is true, false, or that number.
        lora: Whether adapters are served.

    Raises:
        OptionError: It is something else, or is on beside adapters.
    """
    options = additional_config if isinstance(additional_config, dict) else {}
    found = options.get(MICRO_BATCH, False)
    if found is False:
        return None
    if found is True:
        found = FEWEST_TOKENS
    if not isinstance(found, int) or found < 2:
        raise OptionError(
            f"{MICRO_BATCH} in --additional-config is {found!r}; expected true, false, or the "
            "fewest tokens of a step that is cut in two, 2 or more."
        )
    if lora:
        raise OptionError(
            f"{MICRO_BATCH} in --additional-config is on beside --enable-lora: vLLM's LoRA layers "
            "look up the adapter of each token in the whole step. Leave out one of the two."
        )
    return found
