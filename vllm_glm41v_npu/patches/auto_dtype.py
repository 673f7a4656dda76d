# SPDX-License-Identifier: Apache-2.0
"""Let the backend say which dtype `--dtype auto` means for this model.

vLLM 0.23.0 decides "auto" in a private function and offers no hook before it: when the model's own
settings checks run, "auto" and a dtype that the user named look the same. `--quantization` of an
unquantized checkpoint cannot be seen here: where that method has no float32, vLLM's own error lists
the method's dtypes, and the user must name one. Ends when vLLM asks the platform or the model.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm_glm41v_npu.backends import Backend, current_backend
from vllm_glm41v_npu.checks import auto_dtype
from vllm_glm41v_npu.family import MODEL_TYPE
from vllm_glm41v_npu.patches import wrap

FUNCTION = "_get_and_verify_dtype"

logger = logging.getLogger(f"vllm.{__name__}")


def apply() -> None:
    """Put the backend's dtype in the place of "auto", where the backend prefers one."""
    from vllm.config import model

    backend = current_backend()
    if backend.auto_dtype is None:
        return
    if hasattr(model, FUNCTION):
        wrap(model, FUNCTION, lambda verify: _choosing(verify, backend))
        return
    logger.warning(
        "This vLLM decides --dtype auto in a place that vllm-glm41v-npu does not know; name "
        "--dtype %s, which is the right one on %s.",
        backend.auto_dtype,
        backend.name,
    )


def _choosing(verify: Any, backend: Backend) -> Any:
    def get_and_verify_dtype(model_id: str, config: Any, dtype: Any, **options: Any) -> Any:
        if dtype == "auto" and config.model_type == MODEL_TYPE:
            dtype = auto_dtype(backend, _is_quantized(config)) or dtype
        return verify(model_id, config, dtype, **options)

    return get_and_verify_dtype


def _is_quantized(config: Any) -> bool:
    """Return whether config.json, or its text part, names a method under a key that vLLM reads.

    msModelSlim's checkpoints name none, and run in float32 too.
    """
    parts = (config, getattr(config, "text_config", None))
    keys = ("quantization_config", "compression_config")
    found = (getattr(part, key, None) for part in parts for key in keys)
    return any(settings.get("quant_method") for settings in found if settings is not None)
