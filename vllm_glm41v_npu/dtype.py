# SPDX-License-Identifier: Apache-2.0
"""What `--dtype auto` means for GLM-4.1V on each backend."""

from __future__ import annotations

import functools
import logging
from typing import Any

from vllm_glm41v_npu.backends import Backend

logger = logging.getLogger(f"vllm.{__name__}")


def auto_dtype(backend: Backend, dtype: str, quantized: bool) -> str:
    """What `--dtype auto` is for a checkpoint in `dtype`: the rule below, then vLLM's."""
    only_one = backend.dtypes == (backend.auto_dtype,)
    if backend.auto_dtype is not None and (only_one or not quantized):
        return backend.auto_dtype
    return "bfloat16" if dtype == "float32" else dtype


@functools.cache
def choose_dtype(backend: Backend, model_type: str) -> None:
    """Make `--dtype auto` the backend's dtype for this model.

    A quantized checkpoint keeps vLLM's choice, since most quantization methods have no float32;
    but where the backend computes in one dtype alone, "auto" is that one for every checkpoint.
    """
    if backend.auto_dtype is None:
        return

    from vllm.config import model as model_config

    # vLLM 0.23.0 decides "auto" in a private function and offers no hook before it: when the
    # model's own config check runs, "auto" and a dtype named by the user look the same. This
    # wrapper can go once vLLM asks the platform or the model for the dtype that "auto" means.
    # `--quantization` of an unquantized checkpoint is not visible here: where the method has no
    # float32, vLLM's own error lists its dtypes, and the user must name one (--dtype bfloat16).
    verify = getattr(model_config, "_get_and_verify_dtype", None)
    if verify is None:
        logger.warning(
            "This vLLM decides --dtype auto in a place that vllm-glm41v-npu does not know; "
            "name --dtype %s, which is the right one on %s.",
            backend.auto_dtype,
            backend.name,
        )
        return
    only_one = backend.dtypes == (backend.auto_dtype,)

    @functools.wraps(verify)
    def get_and_verify_dtype(model_id, config, dtype, **options):
        ours = dtype == "auto" and config.model_type == model_type
        if ours and (only_one or not _is_quantized(config)):
            dtype = backend.auto_dtype
        return verify(model_id, config, dtype, **options)

    model_config._get_and_verify_dtype = get_and_verify_dtype


def _is_quantized(config: Any) -> bool:
    """Whether config.json, or its text part, names a method under either key that vLLM reads.

    msModelSlim's checkpoints name none, and run in float32 too.
    """
    parts = (config, getattr(config, "text_config", None))
    keys = ("quantization_config", "compression_config")
    found = (getattr(part, key, None) for part in parts for key in keys)
    return any(settings.get("quant_method") for settings in found if settings is not None)
